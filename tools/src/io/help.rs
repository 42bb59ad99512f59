//! Help: of the tool, of all commands, and of one.

use std::fmt::Write as _;

use super::args::OPTIONS;
use super::command::{COMMANDS, Spec};

/// The release of the reference whose interface this is.
const INTERFACE: &str = "10.0.2";

/// The line of `--version`.
#[must_use]
pub fn version(name: &str) -> String {
    format!("{name} version {INTERFACE} (Drystone {})\n", env!("CARGO_PKG_VERSION"))
}

/// The help of the tool.
#[must_use]
pub fn of_tool(name: &str) -> String {
    let mut text =
        format!("Usage: {name} [OPTION]... [-c COMMAND]... [FILE]\n\nReads and writes an image by hand.\n");
    text += "Without -c, commands are read from the standard input.\n\nOptions:\n";
    crate::img::args::append_options(&mut text, OPTIONS);
    writeln!(text, "\n'{name} -c help' lists the commands.").expect("writing to a string does not fail");
    text
}

/// One line for each command.
#[must_use]
pub fn of_commands() -> String {
    let mut text: String = COMMANDS.iter().map(Spec::usage_line).collect();
    text += "\nUse 'help commandname' for extended help.\n";
    text
}

/// What each flag does, by command and letter.
const FLAGS: &[(&str, &str)] = &[
    ("-b", "the state of a machine rather than the disk"),
    ("-c", "compressed, where the format can: whole clusters that hold nothing yet"),
    ("-C", "statistics for machines: bytes,ops,time,bytes/sec,ops/sec"),
    ("-f", "durable when it completes"),
    ("-i", "make no request, as if it had been an invalid one"),
    ("-l", "with -P, how many bytes are compared"),
    ("-n", "with -z, fail rather than write zeros as data"),
    ("-p", "means nothing, and is taken for the sake of old scripts"),
    ("-P", "the byte to write, or the one that everything read must be"),
    ("-q", "say nothing of success"),
    ("-r", "the buffers are worth registering; the executor does as it likes with them"),
    ("-s", "write the bytes of a file, over and over; or with -P, the first byte that is compared"),
    ("-u", "with -z, space may be given back"),
    ("-v", "show the bytes"),
    ("-z", "write zeros, as such"),
];

/// More about one command.
#[must_use]
pub fn of_command(spec: &Spec) -> String {
    let mut text = spec.usage_line();
    if spec.usage.contains("off len") {
        text += "\n Offsets and lengths are bytes, or end in k, M, G, T, P or E (powers of 1024).\n\n";
        let letters = spec.flags.chars().filter(|letter| *letter != ':');
        for letter in letters {
            if let Some((flag, about)) = FLAGS.iter().find(|(flag, _)| flag.ends_with(letter)) {
                writeln!(text, " {flag}, -- {about}").expect("writing to a string does not fail");
            }
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flag_of_a_request_is_explained() {
        for spec in COMMANDS.iter().filter(|spec| spec.usage.contains("off len")) {
            let help = of_command(spec);
            for letter in spec.flags.chars().filter(|letter| *letter != ':') {
                assert!(help.contains(&format!(" -{letter}, -- ")), "{}: -{letter}", spec.name);
            }
        }
    }
}
