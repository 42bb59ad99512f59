//! `info [-f FMT | --image-opts] [--backing-chain] [-U] [--output human|json] FILENAME`

use crate::getopt::{Getopt, OptionSpec};

use super::common::{
    EXECUTOR, FORCE_SHARE, FORMAT, HELP, IMAGE_NAMES, IMAGE_OPTS, ImageOptions, OBJECT, OUTPUT,
};
use super::{Action, Command, CommandSpec, Common, OutputFormat, ParsedCommand, Scan, Source};

/// Arguments of `info`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InfoArgs {
    /// What every command takes.
    pub common: Common,
    /// The image.
    pub source: Source,
    /// `--backing-chain`: show the backing files too.
    pub backing_chain: bool,
    /// `--inspect`: list the names of other files, and open none of them.
    pub inspect: bool,
    /// `-U`: open the image although others write to it.
    pub force_share: bool,
    /// `--output`.
    pub output: OutputFormat,
}

pub(super) const SPEC: CommandSpec = CommandSpec {
    name: "info",
    about: "Show what an image is",
    operands: "FILENAME",
    options: &[
        HELP,
        FORMAT,
        IMAGE_OPTS,
        OptionSpec { long: &["backing-chain"], short: "b", value: None, help: "show the backing files too" },
        OptionSpec {
            long: &["inspect"],
            short: "",
            value: None,
            help: "list the names of other files that the image holds, and open none of them",
        },
        FORCE_SHARE,
        OUTPUT,
        OBJECT,
        EXECUTOR,
        IMAGE_NAMES,
    ],
    parse,
};

fn parse(getopt: &mut Getopt<'_>, mut scan: Scan) -> ParsedCommand {
    let (mut backing_chain, mut inspect) = (false, false);
    let own = |option: &str, _| {
        match option {
            "inspect" => inspect = true,
            _ => backing_chain = true,
        }
        Ok(())
    };
    let (image, filename) = match scan.one_image(getopt, own)? {
        Ok(image) => image,
        Err(action) => return Ok((action, scan.warnings)),
    };
    let output = image.output()?;
    let source = image.source(&mut scan, &filename)?;
    let ImageOptions { force_share, .. } = image;
    let args = InfoArgs { common: scan.common, source, backing_chain, inspect, force_share, output };
    Ok((Action::Run(Box::new(Command::Info(args))), scan.warnings))
}
