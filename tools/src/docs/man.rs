//! The manual page, made from the tables that the parsers use.

use std::fmt::Write as _;

use super::Tool;
use crate::getopt::OptionSpec;

/// The page in the `man` macros, for section 1.
pub(super) fn page(tool: &Tool, name: &str) -> String {
    let version = env!("CARGO_PKG_VERSION");
    let (title, name, reference) = (escape(&name.to_uppercase()), escape(name), escape(tool.reference));
    let mut text = format!(
        ".TH {title} 1 \"\" \"Drystone {version}\" \"{}\"\n.SH NAME\n{name} \\- {}\n.SH SYNOPSIS\n.B {name}\n\
         .RI [ OPTION ]...\n{}.SH DESCRIPTION\n",
        escape(tool.subject),
        escape(tool.summary),
        operands(tool.operands)
    );
    let _ = writeln!(
        text,
        "{}\nIts options, output and exit codes are those of\n.BR {reference} (1),\nwhich it can stand in for.",
        escape(tool.description[0])
    );
    for paragraph in &tool.description[1..] {
        let _ = writeln!(text, ".PP\n{}", escape(paragraph));
    }
    text += ".SH OPTIONS\n";
    options(&mut text, tool.options);
    if !tool.commands.is_empty() || !tool.lines.is_empty() {
        text += ".SH COMMANDS\n";
    }
    for command in &tool.commands {
        let _ = writeln!(
            text,
            ".SS {}\n.B {name} {}\n.RI [ OPTION ]...\n.I {}\n.PP\n{}.",
            command.name,
            command.name,
            escape(command.operands),
            escape(command.about)
        );
        options(&mut text, command.options);
    }
    for (usage, about) in &tool.lines {
        let _ = writeln!(text, ".TP\n.B {}\n{}.", escape(usage), escape(about));
    }
    let _ = writeln!(text, ".SH EXIT STATUS\n{}\n.SH SEE ALSO\n.BR {reference} (1)", escape(tool.exit));
    text
}

fn operands(operands: &str) -> String {
    operands.split(' ').map(|word| format!(".I {}\n", escape(word))).collect()
}

fn options(text: &mut String, options: &[OptionSpec]) {
    for option in options {
        let short = option.short.chars().map(|letter| format!("\\fB\\-{letter}\\fR"));
        let long = option.long.iter().map(|long| format!("\\fB\\-\\-{}\\fR", escape(long)));
        let names = short.chain(long).collect::<Vec<_>>().join(", ");
        let value = option.value.map_or(String::new(), |value| format!(" \\fI{}\\fR", escape(value)));
        let _ = writeln!(text, ".TP\n{names}{value}\n{}.", escape(option.help));
    }
}

/// Text as it is to be read: no character of it begins a request or an escape.
fn escape(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    match text.starts_with(['.', '\'']) {
        true => format!("\\&{text}"),
        false => text,
    }
}
