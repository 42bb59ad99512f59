//! `create [-f FMT] [-o OPTIONS] [-b BACKING [-F FMT]] [-u] FILENAME [SIZE]`

use crate::getopt::{Getopt, OptionSpec};
use crate::message::Failure;
use crate::options::{asks_for_help, is_valid_list};

use super::common::{EXECUTOR, HELP, IMAGE_NAMES, OBJECT, QUIET, Step};
use super::{Action, Command, CommandSpec, Common, ParsedCommand, Scan, numbers};

/// Arguments of `create`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateArgs {
    /// What every command takes.
    pub common: Common,
    /// `-f`: the new image's format.
    pub format: String,
    /// `-o`: options of the format, all occurrences joined by commas.
    pub options: Option<String>,
    /// `-b`: the backing file.
    pub backing: Option<String>,
    /// `-F`: the backing file's format.
    pub backing_format: Option<String>,
    /// `-u`: the backing file is not opened.
    pub backing_unsafe: bool,
    /// `-q`.
    pub quiet: bool,
    /// The image to make; missing only when [`asks_for_help`](Self::asks_for_help).
    pub filename: String,
    /// Its virtual size in bytes; the backing file's when `None`.
    pub size: Option<u64>,
}

impl CreateArgs {
    /// Whether `-o help` asks for the list of options.
    #[must_use]
    pub fn asks_for_help(&self) -> bool {
        self.options.as_deref().is_some_and(asks_for_help)
    }
}

pub(super) const SPEC: CommandSpec = CommandSpec {
    name: "create",
    about: "Make a new image",
    operands: "FILENAME [SIZE]",
    options: &[
        HELP,
        QUIET,
        OptionSpec {
            long: &["format"],
            short: "f",
            value: Some("FMT"),
            help: "format of the new image (default: raw)",
        },
        OptionSpec {
            long: &["options"],
            short: "o",
            value: Some("OPTIONS"),
            help: "options of the format, such as cluster_size=64k,lazy_refcounts=on; help lists them",
        },
        OptionSpec {
            long: &["backing"],
            short: "b",
            value: Some("BACKING"),
            help: "file to put the image on top of",
        },
        OptionSpec { long: &["backing-format"], short: "F", value: Some("FMT"), help: "format of BACKING" },
        OptionSpec {
            long: &["backing-unsafe"],
            short: "u",
            value: None,
            help: "do not open BACKING; SIZE is needed then",
        },
        OBJECT,
        EXECUTOR,
        IMAGE_NAMES,
    ],
    parse,
};

fn parse(getopt: &mut Getopt<'_>, mut scan: Scan) -> ParsedCommand {
    let mut args = CreateArgs {
        common: Common::default(),
        format: "raw".into(),
        options: None,
        backing: None,
        backing_format: None,
        backing_unsafe: false,
        quiet: false,
        filename: String::new(),
        size: None,
    };
    loop {
        match scan.step(getopt)? {
            Step::End => break,
            Step::Done(action) => return Ok((action, scan.warnings)),
            Step::Option(option, value) => match option {
                "format" => args.format = value,
                "options" => append_options(&mut args.options, &value)?,
                "backing" => args.backing = Some(value),
                "backing-format" => args.backing_format = Some(value),
                "backing-unsafe" => args.backing_unsafe = true,
                _ => args.quiet = true,
            },
        }
    }
    args.common = scan.common;
    let operands = getopt.take_operands();
    if let Some(filename) = operands.first() {
        args.filename.clone_from(filename);
    } else if !args.asks_for_help() {
        return Err(Failure::usage("Expecting image file name"));
    }
    if !args.asks_for_help() {
        if let Some(size) = operands.get(1) {
            args.size = Some(numbers::size("image size", size)?);
        }
        if let Some(extra) = operands.get(2) {
            return Err(Failure::usage(format!("Unexpected argument: {extra}")));
        }
    }
    Ok((Action::Run(Box::new(Command::Create(args))), scan.warnings))
}

/// Adds another `-o` to those before it.
pub(super) fn append_options(options: &mut Option<String>, more: &str) -> Result<(), Failure> {
    if !is_valid_list(more) {
        return Err(Failure::new(format!("Invalid option list: {more}")));
    }
    match options {
        Some(list) => *list = format!("{list},{more}"),
        None => *options = Some(more.to_owned()),
    }
    Ok(())
}
