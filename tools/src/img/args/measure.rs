//! `measure [-O FMT] [-o OPTIONS] [-l SNAPSHOT] [-U] [--output human|json] (--size SIZE | FILENAME)`

use crate::getopt::{Getopt, OptionSpec};
use crate::message::Failure;

use super::common::{
    EXECUTOR, FORCE_SHARE, FORMAT, HELP, IMAGE_NAMES, IMAGE_OPTS, OBJECT, OUTPUT, Step, parse_output,
};
use super::convert::parse_snapshot;
use super::create::append_options;
use super::numbers;
use super::{Action, Command, CommandSpec, Common, OutputFormat, ParsedCommand, Scan, SnapshotName, Source};

/// Arguments of `measure`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeasureArgs {
    /// What every command takes.
    pub common: Common,
    /// What to measure.
    pub subject: MeasureSubject,
    /// `-O`: the format of the image that would be made.
    pub target_format: String,
    /// `-o`: its options, all occurrences joined by commas.
    pub options: Option<String>,
    /// `-l`: the internal snapshot to measure instead of the current state.
    pub snapshot: Option<SnapshotName>,
    /// `-U`: open the image although others write to it.
    pub force_share: bool,
    /// `--output`.
    pub output: OutputFormat,
}

/// What `measure` measures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MeasureSubject {
    /// An empty disk of so many bytes.
    Size(u64),
    /// An image to convert.
    Image(Source),
}

pub(super) const SPEC: CommandSpec = CommandSpec {
    name: "measure",
    about: "Tell how large a new image becomes",
    operands: "(--size SIZE | FILENAME)",
    options: &[
        HELP,
        FORMAT,
        IMAGE_OPTS,
        OptionSpec {
            long: &["target-format"],
            short: "O",
            value: Some("FMT"),
            help: "format of the new image: raw, qcow2 or luks (default: raw)",
        },
        OptionSpec {
            long: &["options"],
            short: "o",
            value: Some("OPTIONS"),
            help: "options of the new image's format",
        },
        OptionSpec {
            long: &["snapshot"],
            short: "l",
            value: Some("SNAPSHOT"),
            help: "internal snapshot to measure: ID, NAME, or snapshot.id=ID,snapshot.name=NAME",
        },
        OptionSpec {
            long: &["size"],
            short: "",
            value: Some("SIZE"),
            help: "measure an empty disk of this size",
        },
        FORCE_SHARE,
        OUTPUT,
        OBJECT,
        EXECUTOR,
        IMAGE_NAMES,
    ],
    parse,
};

/// The options as they are read.
#[derive(Default)]
struct Raw {
    format: Option<String>,
    image_opts: bool,
    force_share: bool,
    output: Option<String>,
    target_format: Option<String>,
    options: Option<String>,
    snapshot: Option<SnapshotName>,
    size: Option<u64>,
}

fn parse(getopt: &mut Getopt<'_>, mut scan: Scan) -> ParsedCommand {
    let mut raw = Raw::default();
    loop {
        match scan.step(getopt)? {
            Step::End => break,
            Step::Done(action) => return Ok((action, scan.warnings)),
            Step::Option(option, value) => match option {
                "format" => raw.format = Some(value),
                "image-opts" => raw.image_opts = true,
                "force-share" => raw.force_share = true,
                "output" => raw.output = Some(value),
                "target-format" => raw.target_format = Some(value),
                "options" => append_options(&mut raw.options, &value)?,
                "snapshot" => raw.snapshot = Some(parse_snapshot(&value, &mut scan.warnings)?),
                _ => raw.size = Some(numbers::size("image size", &value)?),
            },
        }
    }
    let output = parse_output(raw.output.as_deref())?;
    let operands = getopt.take_operands();
    if operands.len() > 1 {
        return Err(Failure::new("At most one filename argument is allowed."));
    }
    let subject = match (operands.first(), raw.size) {
        (None, _) if raw.image_opts || raw.format.is_some() || raw.snapshot.is_some() => {
            return Err(Failure::new("--image-opts, -f, and -l require a filename argument."));
        }
        (None, None) => return Err(Failure::new("Either --size N or one filename must be specified.")),
        (Some(_), Some(_)) => return Err(Failure::new("--size N cannot be used together with a filename.")),
        (None, Some(size)) => MeasureSubject::Size(size),
        (Some(name), None) => {
            MeasureSubject::Image(scan.source(name, raw.format.as_deref(), raw.image_opts)?)
        }
    };
    let args = MeasureArgs {
        common: scan.common,
        subject,
        target_format: raw.target_format.unwrap_or_else(|| "raw".into()),
        options: raw.options,
        snapshot: raw.snapshot,
        force_share: raw.force_share,
        output,
    };
    Ok((Action::Run(Box::new(Command::Measure(args))), scan.warnings))
}
