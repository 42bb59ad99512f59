//! `amend [-f FMT | --image-opts] [-t CACHE] [--force] [-p] -o OPTIONS FILENAME`

use crate::getopt::{Getopt, OptionSpec};
use crate::message::Failure;
use crate::options::asks_for_help;

use super::common::{EXECUTOR, FORMAT, HELP, IMAGE_NAMES, IMAGE_OPTS, ImageOptions, OBJECT, PROGRESS, QUIET};
use super::create::append_options;
use super::{Action, CacheMode, Command, CommandSpec, Common, ParsedCommand, Scan, Source};

/// Arguments of `amend`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AmendArgs {
    /// What every command takes.
    pub common: Common,
    /// The image; missing only when the options of a named format are asked for.
    pub source: Option<Source>,
    /// `-f`, for the help of a format.
    pub format: Option<String>,
    /// `-o`: options of the format, all occurrences joined by commas.
    pub options: String,
    /// `-t`: how the image is cached.
    pub cache: CacheMode,
    /// `-p`, and not `-q`: show how far it is.
    pub progress: bool,
    /// `--force`: some unsafe changes of encrypted images are allowed. Nothing else is unsafe.
    pub force: bool,
    /// `-q`.
    pub quiet: bool,
}

impl AmendArgs {
    /// Whether `-o help` asks for the list of options.
    #[must_use]
    pub fn asks_for_help(&self) -> bool {
        asks_for_help(&self.options)
    }
}

pub(super) const SPEC: CommandSpec = CommandSpec {
    name: "amend",
    about: "Change options of an image that exists",
    operands: "FILENAME",
    options: &[
        HELP,
        QUIET,
        PROGRESS,
        FORMAT,
        IMAGE_OPTS,
        OptionSpec {
            long: &["options"],
            short: "o",
            value: Some("OPTIONS"),
            help: "what to change, such as compat=1.1,refcount_bits=64; help lists the options",
        },
        OptionSpec {
            long: &["cache"],
            short: "t",
            value: Some("CACHE"),
            help: "cache mode (default: writeback)",
        },
        OptionSpec {
            long: &["force"],
            short: "",
            value: None,
            help: "allow unsafe changes of encrypted images; all others are safe",
        },
        OBJECT,
        EXECUTOR,
        IMAGE_NAMES,
    ],
    parse,
};

fn parse(getopt: &mut Getopt<'_>, mut scan: Scan) -> ParsedCommand {
    let (mut options, mut force) = (None, false);
    let own = |option: &str, value: String| {
        match option {
            "options" => append_options(&mut options, &value)?,
            _ => force = true,
        }
        Ok(())
    };
    let image = match scan.image_options(getopt, own)? {
        Ok(image) => image,
        Err(action) => return Ok((action, scan.warnings)),
    };
    let Some(options) = options else { return Err(Failure::usage("Must specify options (-o)")) };
    let operands = getopt.take_operands();
    let about_format = image.format.is_some() && asks_for_help(&options);
    let source = match &operands[..] {
        _ if about_format => None,
        [filename] => Some(image.source(&mut scan, filename)?),
        _ => return Err(Failure::new("Expecting one image file name")),
    };
    let cache = image.cache()?;
    let ImageOptions { format, progress, quiet, .. } = image;
    let args = AmendArgs { common: scan.common, source, format, options, cache, progress, force, quiet };
    Ok((Action::Run(Box::new(Command::Amend(args))), scan.warnings))
}
