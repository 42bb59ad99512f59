//! The manual page, made from the tables that the parsers use.

use std::fmt::Write as _;

use super::{COMMANDS, GLOBAL_OPTIONS};
use crate::getopt::OptionSpec;

/// The page in the `man` macros, for section 1.
pub(super) fn page(name: &str) -> String {
    let version = env!("CARGO_PKG_VERSION");
    let mut text = format!(
        ".TH {} 1 \"\" \"Drystone {version}\" \"Disk images\"\n.SH NAME\n{} \\- disk image utility\n.SH SYNOPSIS\n\
         .B {}\n.RI [ OPTION ]...\n.I COMMAND\n.RI [ ARGUMENT ]...\n.SH DESCRIPTION\n\
         Makes, examines, converts and changes disk images.\nIts commands, options, output and exit codes are those of\n\
         .BR qemu\\-img (1),\nwhich it can stand in for.\n.PP\n\
         Sizes are bytes, or end in k, M, G, T, P or E (powers of 1024), and may have a fraction: 1.5G.\n\
         Cache modes are none, writeback, writethrough, directsync and unsafe.\n.SH OPTIONS\n",
        escape(&name.to_uppercase()),
        escape(name),
        escape(name)
    );
    options(&mut text, GLOBAL_OPTIONS);
    text += ".SH COMMANDS\n";
    for command in COMMANDS {
        let _ = writeln!(
            text,
            ".SS {}\n.B {} {}\n.RI [ OPTION ]...\n.I {}\n.PP\n{}.",
            command.name,
            escape(name),
            command.name,
            escape(command.operands),
            escape(command.about)
        );
        options(&mut text, command.options);
    }
    text += ".SH EXIT STATUS\n0 when all went well, 1 when not.\n.B check\nends with 2 when the image is corrupt, with 3 when \
             it only leaks, and with 63 when its format cannot be checked;\n.B compare\nends with 1 when the images differ, \
             and with 2 or more when they could not be compared.\n.SH SEE ALSO\n.BR qemu\\-img (1)\n";
    text
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
