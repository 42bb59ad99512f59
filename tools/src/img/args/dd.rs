//! `dd [-f FMT | --image-opts] [-O FMT] [-U] [bs=N] [count=N] [skip=N] if=INPUT of=OUTPUT`

use crate::getopt::{Getopt, OptionSpec};
use crate::message::Failure;

use super::common::{EXECUTOR, FORCE_SHARE, FORMAT, HELP, IMAGE_NAMES, IMAGE_OPTS, OBJECT, Step};
use super::numbers;
use super::{Action, Command, CommandSpec, Common, ParsedCommand, Scan, Source};

/// Arguments of `dd`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DdArgs {
    /// What every command takes.
    pub common: Common,
    /// `if=`: the image to read.
    pub source: Source,
    /// `if=` as it was written, for messages.
    pub input: String,
    /// `of=`: the image to make.
    pub output: String,
    /// `-O`: its format.
    pub output_format: String,
    /// `bs=`: bytes of a block.
    pub block_size: u64,
    /// `count=`: blocks to copy; all of them when `None`.
    pub count: Option<u64>,
    /// `skip=`: blocks of the input that are passed over.
    pub skip: u64,
    /// `-U`: open the input although others write to it.
    pub force_share: bool,
}

pub(super) const SPEC: CommandSpec = CommandSpec {
    name: "dd",
    about: "Copy blocks of an image to a new one",
    operands: "[bs=SIZE] [count=BLOCKS] [skip=BLOCKS] if=INPUT of=OUTPUT",
    options: &[
        HELP,
        FORMAT,
        IMAGE_OPTS,
        OptionSpec {
            long: &["output-format"],
            short: "O",
            value: Some("FMT"),
            help: "format of OUTPUT (default: raw)",
        },
        FORCE_SHARE,
        OBJECT,
        EXECUTOR,
        IMAGE_NAMES,
    ],
    parse,
};

/// Bytes of a block unless `bs=` says otherwise.
const BLOCK_SIZE: u64 = 512;

/// The operands as they are read.
struct Operands {
    input: Option<String>,
    output: Option<String>,
    block_size: u64,
    count: Option<u64>,
    skip: u64,
}

fn parse(getopt: &mut Getopt<'_>, mut scan: Scan) -> ParsedCommand {
    let (mut format, mut output_format) = (None, String::from("raw"));
    let (mut image_opts, mut force_share) = (false, false);
    loop {
        match scan.step(getopt)? {
            Step::End => break,
            Step::Done(action) => return Ok((action, scan.warnings)),
            Step::Option(option, value) => match option {
                "format" => format = Some(value),
                "output-format" => output_format = value,
                "image-opts" => image_opts = true,
                _ => force_share = true,
            },
        }
    }
    let read = operands(&getopt.take_operands())?;
    let (Some(input), Some(output)) = (read.input, read.output) else {
        return Err(Failure::new("Must specify both input and output files"));
    };
    let source = scan.source(&input, format.as_deref(), image_opts)?;
    let args = DdArgs {
        common: scan.common,
        source,
        input,
        output,
        output_format,
        block_size: read.block_size,
        count: read.count,
        skip: read.skip,
        force_share,
    };
    Ok((Action::Run(Box::new(Command::Dd(args))), scan.warnings))
}

fn operands(operands: &[String]) -> Result<Operands, Failure> {
    let mut read = Operands { input: None, output: None, block_size: BLOCK_SIZE, count: None, skip: 0 };
    for operand in operands {
        let (name, value) = operand.split_once('=').unwrap_or((operand, ""));
        match name {
            "if" if operand.contains('=') => read.input = Some(value.to_owned()),
            "of" if operand.contains('=') => read.output = Some(value.to_owned()),
            "bs" if operand.contains('=') => {
                read.block_size = numbers::size_within("bs", value, 1, i32::MAX as u64)?;
            }
            "count" if operand.contains('=') => read.count = Some(numbers::size("count", value)?),
            "skip" if operand.contains('=') => read.skip = numbers::size("skip", value)?,
            _ => return Err(Failure::new(format!("unrecognized operand {name}"))),
        }
    }
    Ok(read)
}
