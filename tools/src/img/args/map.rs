//! `map [-f FMT | --image-opts] [--start-offset N] [--max-length N] [-U] [--output human|json] FILENAME`

use crate::getopt::{Getopt, OptionSpec};

use super::common::{EXECUTOR, FORCE_SHARE, FORMAT, HELP, IMAGE_NAMES, IMAGE_OPTS, ImageOptions, OBJECT};
use crate::img::picture::PictureFormat;

use super::{Action, Command, CommandSpec, Common, OutputFormat, ParsedCommand, Scan, Source, numbers};

/// Arguments of `map`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapArgs {
    /// What every command takes.
    pub common: Common,
    /// The image.
    pub source: Source,
    /// `--start-offset`: the first guest byte of interest.
    pub start_offset: u64,
    /// `--max-length`: how many bytes are of interest; to the end when `None`.
    pub max_length: Option<u64>,
    /// `-U`: open the image although others write to it.
    pub force_share: bool,
    /// `--output`.
    pub output: MapOutput,
}

/// What `map` writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapOutput {
    /// What the reference writes.
    Text(OutputFormat),
    /// A picture.
    Picture(PictureFormat),
}

pub(super) const SPEC: CommandSpec = CommandSpec {
    name: "map",
    about: "Show where an image's data lies",
    operands: "FILENAME",
    options: &[
        HELP,
        FORMAT,
        IMAGE_OPTS,
        OptionSpec {
            long: &["start-offset"],
            short: "s",
            value: Some("OFFSET"),
            help: "start here (default: 0)",
        },
        OptionSpec {
            long: &["max-length"],
            short: "l",
            value: Some("LENGTH"),
            help: "stop after so many bytes",
        },
        FORCE_SHARE,
        OptionSpec {
            long: &["output"],
            short: "",
            value: Some("human|json|svg|html"),
            help: "form of the output: text, or a picture of which layer holds what (default: human)",
        },
        OBJECT,
        EXECUTOR,
        IMAGE_NAMES,
    ],
    parse,
};

fn parse(getopt: &mut Getopt<'_>, mut scan: Scan) -> ParsedCommand {
    let (mut start_offset, mut max_length) = (0, None);
    let own = |option: &str, value: String| {
        match option {
            "start-offset" => start_offset = numbers::size("start offset", &value)?,
            _ => max_length = Some(numbers::size("max length", &value)?),
        }
        Ok(())
    };
    let (image, filename) = match scan.one_image(getopt, own)? {
        Ok(image) => image,
        Err(action) => return Ok((action, scan.warnings)),
    };
    let output = match image.output_word() {
        Some("svg") => MapOutput::Picture(PictureFormat::Svg),
        Some("html") => MapOutput::Picture(PictureFormat::Html),
        _ => MapOutput::Text(image.output()?),
    };
    let source = image.source(&mut scan, &filename)?;
    let ImageOptions { force_share, .. } = image;
    let args = MapArgs { common: scan.common, source, start_offset, max_length, force_share, output };
    Ok((Action::Run(Box::new(Command::Map(args))), scan.warnings))
}
