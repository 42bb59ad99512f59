//! `check [-f FMT | --image-opts] [-r leaks|all] [-T CACHE] [-U] [--output human|json] FILENAME`

use crate::getopt::{Getopt, OptionSpec};
use crate::message::Failure;

use super::common::{
    EXECUTOR, FORCE_SHARE, FORMAT, HELP, IMAGE_NAMES, IMAGE_OPTS, ImageOptions, OBJECT, OUTPUT, QUIET,
};
use super::{Action, CacheMode, Command, CommandSpec, Common, OutputFormat, ParsedCommand, Scan, Source};

/// Arguments of `check`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckArgs {
    /// What every command takes.
    pub common: Common,
    /// The image.
    pub source: Source,
    /// `-r`: what to repair.
    pub repair: Option<Repair>,
    /// `-T`: how the image is cached.
    pub cache: CacheMode,
    /// `-U`: open the image although others write to it.
    pub force_share: bool,
    /// `-q`.
    pub quiet: bool,
    /// `--output`.
    pub output: OutputFormat,
}

/// What a check repairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    /// Clusters that are counted but not used.
    Leaks,
    /// Leaks and errors.
    All,
}

pub(super) const SPEC: CommandSpec = CommandSpec {
    name: "check",
    about: "Check an image for errors, and repair them",
    operands: "FILENAME",
    options: &[
        HELP,
        QUIET,
        FORMAT,
        IMAGE_OPTS,
        OptionSpec { long: &["repair"], short: "r", value: Some("leaks|all"), help: "repair what is found" },
        OptionSpec {
            long: &["cache"],
            short: "T",
            value: Some("CACHE"),
            help: "cache mode (default: writeback)",
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
    let mut repair = None;
    let own = |_: &str, value: String| {
        repair = Some(parse_repair(&value)?);
        Ok(())
    };
    let (image, filename) = match scan.one_image(getopt, own)? {
        Ok(image) => image,
        Err(action) => return Ok((action, scan.warnings)),
    };
    let cache = image.source_cache()?;
    let output = image.output()?;
    let source = image.source(&mut scan, &filename)?;
    let ImageOptions { force_share, quiet, .. } = image;
    let args = CheckArgs { common: scan.common, source, repair, cache, force_share, quiet, output };
    Ok((Action::Run(Box::new(Command::Check(args))), scan.warnings))
}

fn parse_repair(name: &str) -> Result<Repair, Failure> {
    match name {
        "leaks" => Ok(Repair::Leaks),
        "all" => Ok(Repair::All),
        _ => Err(Failure::usage(format!("Unknown option value for -r (expecting 'leaks' or 'all'): {name}"))),
    }
}
