//! Completion for shells, made from the tables that the parsers use.
//!
//! All three shells do the same: where a tool has commands, the first word that is no option is one; after it come that
//! command's options and file names. An option's argument is completed where its name in help lists the choices (`human|json`).

use std::fmt::Write as _;

use super::Tool;
use crate::getopt::OptionSpec;

/// The script that makes a shell complete the words of `name`; `None` for a shell that is not known.
pub(super) fn script(tool: &Tool, name: &str, shell: &str) -> Option<String> {
    match shell {
        "bash" => Some(bash(tool, name)),
        "zsh" => Some(zsh(tool, name)),
        "fish" => Some(fish(tool, name)),
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

fn bash(tool: &Tool, name: &str) -> String {
    let function = function_name(name);
    let begin = |declared: &str| {
        format!(
            "# bash completion for {name}\n_{function}()\n{{\n    local word=${{COMP_WORDS[COMP_CWORD]}} \
             before=${{COMP_WORDS[COMP_CWORD-1]}}{declared}\n    COMPREPLY=()\n"
        )
    };
    // What completes by an option's choices; `command` comes before the option in what the shell looks at.
    let by_choices = |text: &mut String, command: &str, options: &[OptionSpec]| {
        for option in options {
            let Some(list) = choices(option) else { continue };
            let patterns: Vec<_> = words(option).map(|word| format!("{command}{word}")).collect();
            let _ = writeln!(
                text,
                "        {}) COMPREPLY=($(compgen -W '{}' -- \"$word\")); return ;;",
                patterns.join("|"),
                list.join(" ")
            );
        }
    };
    let end = |condition: &str, options: &str| {
        format!(
            "    esac\n    if [[ {condition} ]]; then\n        \
             COMPREPLY=($(compgen -W {options} -- \"$word\"))\n    else\n        \
             compopt -o filenames 2>/dev/null\n        COMPREPLY=($(compgen -f -- \"$word\"))\n    fi\n}}\n\
             complete -F _{function} {name}\n"
        )
    };
    if tool.commands.is_empty() {
        let mut text = begin("") + "    case $before in\n";
        by_choices(&mut text, "", tool.options);
        return text + &end("$word == -*", &format!("'{}'", all_words(tool.options)));
    }
    let mut text = begin(" command= options= i")
        + "    for ((i = 1; i < COMP_CWORD; i++)); do\n        case ${COMP_WORDS[i]} in\n            -*) ;;\n            \
           *) command=${COMP_WORDS[i]}; break ;;\n        esac\n    done\n    case $command,$before in\n";
    for command in &tool.commands {
        by_choices(&mut text, &format!("{},", command.name), command.options);
    }
    let commands: Vec<_> = tool.commands.iter().map(|command| command.name).collect();
    text += "    esac\n    case $command in\n";
    let _ = writeln!(text, "        '') options='{} {}' ;;", all_words(tool.options), commands.join(" "));
    for command in &tool.commands {
        let _ = writeln!(text, "        {}) options='{}' ;;", command.name, all_words(command.options));
    }
    text + &end("$word == -* || -z $command", "\"$options\"")
}

fn zsh(tool: &Tool, name: &str) -> String {
    let quoted = |text: &str| text.replace('\'', "'\\''");
    let bracketed = |text: &str| quoted(text).replace('[', "\\[").replace(']', "\\]").replace(':', "\\:");
    let function = function_name(name);
    let arguments = |text: &mut String, options: &[OptionSpec], indent: &str| {
        let _ = writeln!(text, "{indent}_arguments -s \\");
        for option in options {
            let argument = match (option.value, choices(option)) {
                (None, _) => String::new(),
                (Some(_), Some(list)) => format!(":value:({})", list.join(" ")),
                (Some(value), None) => format!(":{}:_files", bracketed(value)),
            };
            for word in words(option) {
                let _ = writeln!(text, "{indent}    '{word}[{}]{argument}' \\", bracketed(option.help));
            }
        }
        let _ = writeln!(text, "{indent}    '*:file:_files'");
    };
    let mut text = format!("#compdef {name}\n_{function}() {{\n");
    if tool.commands.is_empty() {
        arguments(&mut text, tool.options, "    ");
    } else {
        text += "    local -a commands\n    commands=(\n";
        for command in &tool.commands {
            let _ = writeln!(text, "        '{}:{}'", command.name, quoted(command.about));
        }
        text += "    )\n    if (( CURRENT == 2 )); then\n        _describe command commands\n        return\n    fi\n    \
                 case $words[2] in\n";
        for command in &tool.commands {
            let _ = writeln!(text, "        {})\n            shift words; (( CURRENT-- ))", command.name);
            arguments(&mut text, command.options, "            ");
            text += "            ;;\n";
        }
        text += "    esac\n";
    }
    let _ = write!(text, "}}\n_{function} \"$@\"\n");
    text
}

fn fish(tool: &Tool, name: &str) -> String {
    let quoted = |text: &str| text.replace('\\', "\\\\").replace('\'', "\\'");
    let mut text = format!("# fish completion for {name}\n");
    for command in &tool.commands {
        let _ = writeln!(
            text,
            "complete -c {name} -n __fish_use_subcommand -f -a {} -d '{}'",
            command.name,
            quoted(command.about)
        );
    }
    let mut option_line = |begin: String, option: &OptionSpec| {
        let mut line = begin;
        option.short.chars().for_each(|letter| line += &format!(" -s {letter}"));
        option.long.iter().for_each(|long| line += &format!(" -l {long}"));
        match (option.value, choices(option)) {
            (None, _) => {}
            (Some(_), Some(list)) => line += &format!(" -x -a '{}'", list.join(" ")),
            (Some(_), None) => line += " -r",
        }
        let _ = writeln!(text, "{line} -d '{}'", quoted(option.help));
    };
    if tool.commands.is_empty() {
        tool.options.iter().for_each(|option| option_line(format!("complete -c {name}"), option));
    }
    for command in &tool.commands {
        let begin = format!("complete -c {name} -n '__fish_seen_subcommand_from {}'", command.name);
        command.options.iter().for_each(|option| option_line(begin.clone(), option));
    }
    text
}
