//! `compare [-f FMT] [-F FMT] [--image-opts] [-s] [-T CACHE] [-U] FILENAME1 FILENAME2`

use crate::getopt::{Getopt, OptionSpec};
use crate::message::Failure;

use super::common::{
    EXECUTOR, FORCE_SHARE, HELP, IMAGE_NAMES, IMAGE_OPTS, OBJECT, PROGRESS, QUIET, Step, parse_source_cache,
};
use super::{Action, CacheMode, Command, CommandSpec, Common, ParsedCommand, Scan, Source};

/// Arguments of `compare`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompareArgs {
    /// What every command takes.
    pub common: Common,
    /// The first image.
    pub first: Source,
    /// The second image.
    pub second: Source,
    /// `-s`: sizes and allocation must be the same too.
    pub strict: bool,
    /// `-T`: how the images are cached.
    pub cache: CacheMode,
    /// `-U`: open the images although others write to them.
    pub force_share: bool,
    /// `-p`, unless `-q`.
    pub progress: bool,
    /// `-q`.
    pub quiet: bool,
}

/// The exit code when an image cannot be opened, or its arguments are wrong.
const CANNOT_OPEN: u8 = 2;

pub(super) const SPEC: CommandSpec = CommandSpec {
    name: "compare",
    about: "Tell whether two images have the same content",
    operands: "FILENAME1 FILENAME2",
    options: &[
        HELP,
        QUIET,
        PROGRESS,
        OptionSpec {
            long: &["a-format", "left-format"],
            short: "f",
            value: Some("FMT"),
            help: "format of FILENAME1 (default: probed)",
        },
        OptionSpec {
            long: &["b-format", "right-format"],
            short: "F",
            value: Some("FMT"),
            help: "format of FILENAME2 (default: probed)",
        },
        IMAGE_OPTS,
        OptionSpec {
            long: &["strict"],
            short: "s",
            value: None,
            help: "sizes and allocation must be the same too",
        },
        OptionSpec {
            long: &["cache"],
            short: "T",
            value: Some("CACHE"),
            help: "cache mode (default: writeback)",
        },
        FORCE_SHARE,
        OBJECT,
        EXECUTOR,
        IMAGE_NAMES,
    ],
    parse,
};

fn parse(getopt: &mut Getopt<'_>, mut scan: Scan) -> ParsedCommand {
    let (mut first_format, mut second_format, mut cache) = (None, None, None);
    let (mut image_opts, mut force_share, mut quiet, mut progress, mut strict) =
        (false, false, false, false, false);
    // An object that cannot be made counts as what cannot be opened.
    let cannot_make = |failure: Failure| match failure.try_help {
        true => failure,
        false => failure.with_code(CANNOT_OPEN),
    };
    loop {
        match scan.step(getopt).map_err(cannot_make)? {
            Step::End => break,
            Step::Done(action) => return Ok((action, scan.warnings)),
            Step::Option(option, value) => match option {
                "a-format" => first_format = Some(value),
                "b-format" => second_format = Some(value),
                "image-opts" => image_opts = true,
                "strict" => strict = true,
                "cache" => cache = Some(value),
                "force-share" => force_share = true,
                "progress" => progress = true,
                _ => quiet = true,
            },
        }
    }
    let operands = getopt.take_operands();
    let [first, second] = operands.as_slice() else {
        return Err(Failure::usage("Expecting two image file names"));
    };
    let cannot_open = |failure: Failure| failure.with_code(CANNOT_OPEN);
    let cache = parse_source_cache(cache.as_deref()).map_err(cannot_open)?;
    let first = scan.source(first, first_format.as_deref(), image_opts).map_err(cannot_open)?;
    let second = scan.source(second, second_format.as_deref(), image_opts).map_err(cannot_open)?;
    let progress = progress && !quiet;
    let args =
        CompareArgs { common: scan.common, first, second, strict, cache, force_share, progress, quiet };
    Ok((Action::Run(Box::new(Command::Compare(args))), scan.warnings))
}
