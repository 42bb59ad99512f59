//! Command lines: `drystone-img [-T TRACE] COMMAND [OPTION]… FILENAME…`, into one struct a command.
//!
//! Messages follow qemu-img 10.0.2 as its project released it; Debian's build words some of them differently. Long
//! names are those of either build.

mod amend;
mod bench;
mod bitmap;
mod check;
mod commit;
mod common;
mod compare;
mod convert;
mod create;
mod dd;
mod help;
mod info;
mod map;
mod measure;
mod numbers;
mod rebase;
mod resize;
mod snapshot;

pub use amend::AmendArgs;
pub use bench::{Aio, BenchArgs, FlushEvery};
pub use bitmap::{BitmapArgs, BitmapStep};
pub use check::{CheckArgs, Repair};
pub use commit::CommitArgs;
pub use common::{CacheMode, Common, Executor, OutputFormat, Source};
pub(crate) use common::{parse_executor, parse_image_names};
pub use compare::CompareArgs;
pub(crate) use convert::parse_snapshot;
pub use convert::{ConvertArgs, ConvertTarget, SnapshotName};
pub use create::CreateArgs;
pub use dd::DdArgs;
pub(crate) use help::append_options;
pub use help::of_tool as tool_help;
pub use info::InfoArgs;
pub use map::{MapArgs, MapOutput};
pub use measure::{MeasureArgs, MeasureSubject};
pub use rebase::RebaseArgs;
pub use resize::{NewSize, ResizeArgs};
pub use snapshot::{SnapshotAction, SnapshotArgs};

use std::ffi::OsString;

use crate::docs;
use crate::getopt::{Getopt, OptionSpec, Order};
use crate::message::Failure;
use crate::trace::{Added, EVENTS, Tracing};

/// What a command line asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct Invocation {
    /// What to say on the error stream before anything else.
    pub warnings: Vec<String>,
    /// What to trace.
    pub tracing: Tracing,
    /// What to do.
    pub action: Action,
}

/// What to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Print [`tool_help`] and exit with 0.
    Help,
    /// Print this and exit with 0.
    Print(String),
    /// Run a command.
    Run(Box<Command>),
}

/// A command with its arguments.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "the structs say it")]
pub enum Command {
    Amend(AmendArgs),
    Bench(BenchArgs),
    Bitmap(BitmapArgs),
    Check(CheckArgs),
    Commit(CommitArgs),
    Compare(CompareArgs),
    Convert(ConvertArgs),
    Create(CreateArgs),
    Dd(DdArgs),
    Info(InfoArgs),
    Map(MapArgs),
    Measure(MeasureArgs),
    Rebase(RebaseArgs),
    Resize(ResizeArgs),
    Snapshot(SnapshotArgs),
}

/// What a command's own parser returns: the command, or a text to print.
type ParsedCommand = Result<(Action, Vec<String>), Failure>;

/// One command: its name, a line about it, its options, its operands, and its parser.
struct CommandSpec {
    name: &'static str,
    about: &'static str,
    operands: &'static str,
    options: &'static [OptionSpec],
    parse: fn(&mut Getopt<'_>, Scan) -> ParsedCommand,
}

/// In alphabetical order.
const COMMANDS: &[&CommandSpec] = &[
    &amend::SPEC,
    &bench::SPEC,
    &bitmap::SPEC,
    &check::SPEC,
    &commit::SPEC,
    &compare::SPEC,
    &convert::SPEC,
    &create::SPEC,
    &dd::SPEC,
    &info::SPEC,
    &map::SPEC,
    &measure::SPEC,
    &rebase::SPEC,
    &resize::SPEC,
    &snapshot::SPEC,
];

const GLOBAL_OPTIONS: &[OptionSpec] = &[
    common::HELP,
    OptionSpec { long: &["version"], short: "V", value: None, help: "print the version and exit" },
    OptionSpec {
        long: &["trace"],
        short: "T",
        value: Some("TRACE"),
        help: "trace events: [[enable=]PATTERN][,events=FILE][,file=FILE]",
    },
    docs::COMPLETIONS,
    docs::MAN,
];

/// What manual page and completions are made from.
fn docs() -> docs::Tool {
    let command = |spec: &&CommandSpec| docs::Command {
        name: spec.name,
        about: spec.about,
        operands: spec.operands,
        options: spec.options,
    };
    docs::Tool {
        summary: "disk image utility",
        subject: "Disk images",
        reference: "qemu-img",
        operands: "COMMAND [ARGUMENT]...",
        description: &[
            "Makes, examines, converts and changes disk images.",
            "Sizes are bytes, or end in k, M, G, T, P or E (powers of 1024), and may have a fraction: 1.5G. \
             Cache modes are none, writeback, writethrough, directsync and unsafe.",
        ],
        options: GLOBAL_OPTIONS,
        commands: COMMANDS.iter().map(command).collect(),
        lines: Vec::new(),
        exit: "0 when all went well, 1 when not. The command check ends with 2 when the image is corrupt, with 3 when it \
               only leaks, and with 63 when its format cannot be checked; compare ends with 1 when the images differ, and \
               with 2 or more when they could not be compared.",
    }
}

/// The base name of the tool as it was called, which starts every message.
#[must_use]
pub fn tool_name(argv: &[String]) -> &str {
    argv.first().and_then(|path| path.rsplit('/').next()).unwrap_or("drystone-img")
}

/// The words of a command line.
///
/// # Errors
/// When one of them is not UTF-8: with a part of it lost, it would name another file.
pub fn words(argv: impl Iterator<Item = OsString>) -> Result<Vec<String>, Failure> {
    let word = |(number, word): (usize, OsString)| {
        let refused = |word| format!("argument {number}, {word:?}, is not UTF-8; give the file another name");
        word.into_string().map_err(|word| Failure::new(refused(word)))
    };
    argv.enumerate().map(word).collect()
}

/// Reads a command line; `argv[0]` is the tool's path.
///
/// # Errors
/// What is wrong with it, in the words of the reference; exits and prefixes are for [`Failure::render`] and the caller.
pub fn parse(argv: &[String]) -> Result<Invocation, Failure> {
    let name = tool_name(argv);
    if argv.len() < 2 {
        return Err(Failure::usage("Not enough arguments"));
    }
    let mut tracing = Tracing::default();
    let invocation = |warnings, tracing, action| Ok(Invocation { warnings, tracing, action });
    let mut warnings = Vec::new();
    let mut getopt = Getopt::new(GLOBAL_OPTIONS, Order::OptionsFirst, argv.to_vec());
    while let Some(parsed) = getopt.next_option() {
        match parsed.recognized()? {
            ("help", _) => return invocation(warnings, tracing, Action::Help),
            ("version", _) => return invocation(warnings, tracing, Action::Print(help::version(name))),
            ("man", _) => return invocation(warnings, tracing, Action::Print(docs().man(name))),
            ("completions", shell) => {
                let script = docs().completions(name, &shell)?;
                return invocation(warnings, tracing, Action::Print(script));
            }
            (_, trace) => match tracing.add(&trace)? {
                Added::Help => {
                    return invocation(warnings, Tracing::default(), Action::Print(EVENTS.into()));
                }
                Added::Warnings(more) => warnings.extend(more),
            },
        }
    }
    let operands = getopt.take_operands();
    let Some(command) = operands.first() else {
        return invocation(warnings, tracing, Action::Print(String::new()));
    };
    let Some(spec) = COMMANDS.iter().find(|spec| spec.name == command) else {
        return Err(Failure::usage(format!("Command not found: {command}")).after(warnings));
    };
    let help = help::of_command(name, spec);
    let mut getopt = Getopt::new(spec.options, Order::Permute, operands);
    match (spec.parse)(&mut getopt, Scan { help, ..Scan::default() }) {
        Ok((action, more)) => invocation([warnings, more].concat(), tracing, action),
        Err(failure) => Err(failure.after(warnings)),
    }
}

/// What all commands collect while they walk their options.
#[derive(Default)]
struct Scan {
    /// The command's help, should it be asked for.
    help: String,
    common: Common,
    warnings: Vec<String>,
}
