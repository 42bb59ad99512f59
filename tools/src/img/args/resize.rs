//! `resize [-f FMT | --image-opts] [--preallocation PREALLOC] [--shrink] FILENAME [+-]SIZE`

use drystone_core::graph::Preallocate;

use crate::getopt::{Getopt, OptionSpec};
use crate::message::Failure;
use crate::size::{SIZE_HINT, SizeError, parse_size};

use super::common::{EXECUTOR, FORMAT, HELP, IMAGE_NAMES, IMAGE_OPTS, OBJECT, QUIET, Step};
use super::{Action, Command, CommandSpec, Common, ParsedCommand, Scan, Source};

/// Arguments of `resize`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResizeArgs {
    /// What every command takes.
    pub common: Common,
    /// The image.
    pub source: Source,
    /// How long it is to be.
    pub size: NewSize,
    /// `--preallocation`: what is reserved for the new part.
    pub preallocation: Preallocate,
    /// `--shrink`: the image may become shorter.
    pub shrink: bool,
    /// `-q`.
    pub quiet: bool,
}

/// A length, or a difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewSize {
    /// So many bytes.
    Exactly(u64),
    /// So many bytes more.
    More(u64),
    /// So many bytes less.
    Less(u64),
}

impl NewSize {
    /// The length of an image that has `now` bytes; `None` where that is no length. The reference counts with 64 bits, as
    /// signed numbers that wrap around.
    #[must_use]
    pub fn from(self, now: u64) -> Option<u64> {
        let new = match self {
            Self::Exactly(bytes) => bytes,
            Self::More(bytes) => now.wrapping_add(bytes),
            Self::Less(bytes) => now.wrapping_sub(bytes),
        };
        Some(new).filter(|new| (1..=i64::MAX as u64).contains(new))
    }
}

pub(super) const SPEC: CommandSpec = CommandSpec {
    name: "resize",
    about: "Make an image longer or shorter",
    operands: "FILENAME [+-]SIZE",
    options: &[
        HELP,
        QUIET,
        FORMAT,
        IMAGE_OPTS,
        OptionSpec { long: &["shrink"], short: "", value: None, help: "allow the image to become shorter" },
        OptionSpec {
            long: &["preallocation"],
            short: "",
            value: Some("off|metadata|falloc|full"),
            help: "what to reserve for the new part (default: off)",
        },
        OBJECT,
        EXECUTOR,
        IMAGE_NAMES,
    ],
    parse,
};

fn parse(getopt: &mut Getopt<'_>, mut scan: Scan) -> ParsedCommand {
    // A difference looks like an option.
    getopt.take_numbers();
    let (mut format, mut image_opts, mut preallocation) = (None, false, Preallocate::Off);
    let (mut shrink, mut quiet) = (false, false);
    loop {
        match scan.step(getopt)? {
            Step::End => break,
            Step::Done(action) => return Ok((action, scan.warnings)),
            Step::Option(option, value) => match option {
                "format" => format = Some(value),
                "image-opts" => image_opts = true,
                "preallocation" => preallocation = parse_preallocation(&value)?,
                "shrink" => shrink = true,
                _ => quiet = true,
            },
        }
    }
    let operands = getopt.take_operands();
    let (filename, size) = match &operands[..] {
        [filename, size] => (filename, parse_new_size(size)?),
        [] | [_] => return Err(Failure::usage("Not enough arguments")),
        _ => return Err(Failure::usage("Expecting image file name and size")),
    };
    let source = scan.source(filename, format.as_deref(), image_opts)?;
    let args = ResizeArgs { common: scan.common, source, size, preallocation, shrink, quiet };
    Ok((Action::Run(Box::new(Command::Resize(args))), scan.warnings))
}

fn parse_preallocation(name: &str) -> Result<Preallocate, Failure> {
    match name {
        "off" => Ok(Preallocate::Off),
        "metadata" => Ok(Preallocate::Metadata),
        "falloc" => Ok(Preallocate::Falloc),
        "full" => Ok(Preallocate::Full),
        _ => Err(Failure::new(format!("Invalid preallocation mode '{name}'"))),
    }
}

fn parse_new_size(text: &str) -> Result<NewSize, Failure> {
    let (kind, digits): (fn(u64) -> NewSize, &str) = match text.strip_prefix('+') {
        Some(digits) => (NewSize::More, digits),
        None => match text.strip_prefix('-') {
            Some(digits) => (NewSize::Less, digits),
            None => (NewSize::Exactly, text),
        },
    };
    parse_size(digits).map(kind).map_err(|error| {
        Failure::new(match error {
            SizeError::Malformed => {
                format!("Parameter 'size' expects a non-negative number below 2^64\n{SIZE_HINT}")
            }
            SizeError::OutOfRange => format!("Value '{digits}' is out of range for parameter 'size'"),
        })
    })
}
