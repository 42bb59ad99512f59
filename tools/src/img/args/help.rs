//! Help texts, made from the tables that the parsers use.

use std::fmt::Write as _;

use crate::getopt::OptionSpec;

use super::{COMMANDS, CommandSpec, GLOBAL_OPTIONS};

/// The release of the reference whose interface this is; scripts look for `version X.Y.Z`.
const INTERFACE: &str = "10.0.2";

pub(super) fn version(name: &str) -> String {
    format!("{name} version {INTERFACE} (Drystone {})\n", env!("CARGO_PKG_VERSION"))
}

/// The help of the whole tool; scripts find the formats in the line that starts with `Supported formats:`.
#[must_use]
pub fn of_tool(name: &str, formats: &[&str]) -> String {
    let mut text = version(name);
    text +=
        &format!("\nDisk image utility.\n\nUsage: {name} [OPTION]... COMMAND [ARGUMENT]...\n\nOptions:\n");
    append_options(&mut text, GLOBAL_OPTIONS);
    text += &format!("\nCommands ({name} COMMAND --help says more):\n");
    for command in COMMANDS {
        text += &format!("  {:<9}{}\n", command.name, command.about);
    }
    text += "\nSizes are bytes, or end in k, M, G, T, P or E (powers of 1024): 1.5G.\n";
    text += "Cache modes: none, writeback, writethrough, directsync, unsafe.\n";
    text += &format!("\nSupported formats: {}\n", formats.join(" "));
    text
}

pub(super) fn of_command(name: &str, command: &CommandSpec) -> String {
    let mut text =
        format!("{}.\n\nUsage: {name} {} [OPTION]... {}\n", command.about, command.name, command.operands);
    text += "\nOptions:\n";
    append_options(&mut text, command.options);
    text
}

/// One option a line, its explanation below when it does not fit beside.
pub(crate) fn append_options(text: &mut String, options: &[OptionSpec]) {
    for option in options {
        let short = option.short.chars().next().map_or("    ".to_owned(), |letter| format!("-{letter}, "));
        let value = option.value.map_or(String::new(), |value| format!(" {value}"));
        let names = format!("  {short}--{}{value}", option.long[0]);
        let gap = if names.len() < 34 { format!("{names:<34}") } else { format!("{names}\n{:34}", "") };
        writeln!(text, "{gap}{}", option.help).expect("writing to a string does not fail");
    }
}
