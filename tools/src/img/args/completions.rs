//! Completion for shells, made from the tables that the parsers use.
//!
//! All three shells do the same: the first word that is no option is a command; after it come that command's options and
//! file names. An option's argument is completed where its name in help lists the choices (`human|json`).

use std::fmt::Write as _;

use super::{COMMANDS, GLOBAL_OPTIONS};
use crate::getopt::OptionSpec;

/// Shells that there are completions for.
pub(super) const SHELLS: &str = "bash|zsh|fish";

/// The script that makes a shell complete the words of `name`; `None` for a shell that is not known.
pub(super) fn script(name: &str, shell: &str) -> Option<String> {
    match shell {
        "bash" => Some(bash(name)),
        "zsh" => Some(zsh(name)),
        "fish" => Some(fish(name)),
        _ => None,
    }
}

/// The option's names as they are typed.
fn words(option: &OptionSpec) -> impl Iterator<Item = String> {
    let short = option.short.chars().map(|letter| format!("-{letter}"));
    short.chain(option.long.iter().map(|long| format!("--{long}")))
}

/// The choices of an option's argument, where help lists them.
fn choices(option: &OptionSpec) -> Option<Vec<&'static str>> {
    let value = option.value?;
    let lower = |text: &str| text.chars().all(|c| c.is_ascii_lowercase() || c == '-');
    let list: Vec<_> = value.split('|').collect();
    (list.len() > 1 && list.iter().all(|one| lower(one))).then_some(list)
}

fn function_name(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect()
}

fn all_words(options: &[OptionSpec]) -> String {
    options.iter().flat_map(words).collect::<Vec<_>>().join(" ")
}

fn bash(name: &str) -> String {
    let function = function_name(name);
    let commands: Vec<_> = COMMANDS.iter().map(|command| command.name).collect();
    let mut text = format!(
        "# bash completion for {name}\n_{function}()\n{{\n    local word=${{COMP_WORDS[COMP_CWORD]}} \
         before=${{COMP_WORDS[COMP_CWORD-1]}} command= options= i\n    COMPREPLY=()\n    \
         for ((i = 1; i < COMP_CWORD; i++)); do\n        case ${{COMP_WORDS[i]}} in\n            -*) ;;\n            \
         *) command=${{COMP_WORDS[i]}}; break ;;\n        esac\n    done\n    case $command,$before in\n"
    );
    for command in COMMANDS {
        for option in command.options {
            let Some(list) = choices(option) else { continue };
            let patterns: Vec<_> = words(option).map(|word| format!("{},{word}", command.name)).collect();
            let _ = writeln!(
                text,
                "        {}) COMPREPLY=($(compgen -W '{}' -- \"$word\")); return ;;",
                patterns.join("|"),
                list.join(" ")
            );
        }
    }
    text += "    esac\n    case $command in\n";
    let _ = writeln!(text, "        '') options='{} {}' ;;", all_words(GLOBAL_OPTIONS), commands.join(" "));
    for command in COMMANDS {
        let _ = writeln!(text, "        {}) options='{}' ;;", command.name, all_words(command.options));
    }
    let _ = write!(
        text,
        "    esac\n    if [[ $word == -* || -z $command ]]; then\n        \
         COMPREPLY=($(compgen -W \"$options\" -- \"$word\"))\n    else\n        \
         compopt -o filenames 2>/dev/null\n        COMPREPLY=($(compgen -f -- \"$word\"))\n    fi\n}}\n\
         complete -F _{function} {name}\n"
    );
    text
}

fn zsh(name: &str) -> String {
    let quoted = |text: &str| text.replace('\'', "'\\''");
    let bracketed = |text: &str| quoted(text).replace('[', "\\[").replace(']', "\\]").replace(':', "\\:");
    let function = function_name(name);
    let mut text = format!("#compdef {name}\n_{function}() {{\n    local -a commands\n    commands=(\n");
    for command in COMMANDS {
        let _ = writeln!(text, "        '{}:{}'", command.name, quoted(command.about));
    }
    text += "    )\n    if (( CURRENT == 2 )); then\n        _describe command commands\n        return\n    fi\n    \
             case $words[2] in\n";
    for command in COMMANDS {
        let _ = writeln!(
            text,
            "        {})\n            shift words; (( CURRENT-- ))\n            _arguments -s \\",
            command.name
        );
        for option in command.options {
            let argument = match (option.value, choices(option)) {
                (None, _) => String::new(),
                (Some(_), Some(list)) => format!(":value:({})", list.join(" ")),
                (Some(value), None) => format!(":{}:_files", bracketed(value)),
            };
            for word in words(option) {
                let _ = writeln!(text, "                '{word}[{}]{argument}' \\", bracketed(option.help));
            }
        }
        text += "                '*:file:_files'\n            ;;\n";
    }
    let _ = write!(text, "    esac\n}}\n_{function} \"$@\"\n");
    text
}

fn fish(name: &str) -> String {
    let quoted = |text: &str| text.replace('\\', "\\\\").replace('\'', "\\'");
    let mut text = format!("# fish completion for {name}\n");
    for command in COMMANDS {
        let _ = writeln!(
            text,
            "complete -c {name} -n __fish_use_subcommand -f -a {} -d '{}'",
            command.name,
            quoted(command.about)
        );
    }
    for command in COMMANDS {
        for option in command.options {
            let mut line = format!("complete -c {name} -n '__fish_seen_subcommand_from {}'", command.name);
            option.short.chars().for_each(|letter| line += &format!(" -s {letter}"));
            option.long.iter().for_each(|long| line += &format!(" -l {long}"));
            match (option.value, choices(option)) {
                (None, _) => {}
                (Some(_), Some(list)) => line += &format!(" -x -a '{}'", list.join(" ")),
                (Some(_), None) => line += " -r",
            }
            let _ = writeln!(text, "{line} -d '{}'", quoted(option.help));
        }
    }
    text
}
