//! `rebase [-f FMT | --image-opts] [-t CACHE] [-b BACKING [-F FMT] [-T CACHE]] [-u] [-c] [-U] [-p] [-q] FILENAME`

use crate::getopt::{Getopt, OptionSpec};
use crate::message::Failure;

use super::common::{
    EXECUTOR, FORCE_SHARE, FORMAT, HELP, IMAGE_NAMES, IMAGE_OPTS, ImageOptions, OBJECT, PROGRESS, QUIET,
    parse_source_cache,
};
use super::{Action, CacheMode, Command, CommandSpec, Common, ParsedCommand, Scan, Source};

/// Arguments of `rebase`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RebaseArgs {
    /// What every command takes.
    pub common: Common,
    /// The image.
    pub source: Source,
    /// `-t`: how the image is cached.
    pub cache: CacheMode,
    /// `-b`: the new backing file; none when empty or not given.
    pub backing: Option<String>,
    /// `-F`: its format.
    pub backing_format: Option<String>,
    /// `-T`: how backing files are cached.
    pub backing_cache: CacheMode,
    /// `-u`: only the header changes.
    pub header_only: bool,
    /// `-c`: write what is copied in compressed form.
    pub compress: bool,
    /// `-U`: open the new backing file although others write to it.
    pub force_share: bool,
    /// `-p`, unless `-q`.
    pub progress: bool,
}

pub(super) const SPEC: CommandSpec = CommandSpec {
    name: "rebase",
    about: "Give an image another backing file",
    operands: "FILENAME",
    options: &[
        HELP,
        QUIET,
        PROGRESS,
        FORMAT,
        IMAGE_OPTS,
        OptionSpec {
            long: &["cache"],
            short: "t",
            value: Some("CACHE"),
            help: "cache mode of FILENAME (default: writeback)",
        },
        OptionSpec {
            long: &["backing"],
            short: "b",
            value: Some("BACKING"),
            help: "the new backing file; empty for none",
        },
        OptionSpec { long: &["backing-format"], short: "F", value: Some("FMT"), help: "format of BACKING" },
        OptionSpec {
            long: &["backing-cache"],
            short: "T",
            value: Some("CACHE"),
            help: "cache mode of backing files (default: writeback)",
        },
        OptionSpec {
            long: &["backing-unsafe"],
            short: "u",
            value: None,
            help: "change the name in the header alone: open no backing file, copy nothing",
        },
        OptionSpec { long: &["compress"], short: "c", value: None, help: "write compressed clusters" },
        FORCE_SHARE,
        OBJECT,
        EXECUTOR,
        IMAGE_NAMES,
    ],
    parse,
};

fn parse(getopt: &mut Getopt<'_>, mut scan: Scan) -> ParsedCommand {
    let (mut backing, mut backing_format, mut backing_cache) = (None, None, None);
    let (mut header_only, mut compress) = (false, false);
    let own = |option: &str, value: String| {
        match option {
            "backing" => backing = Some(value),
            "backing-format" => backing_format = Some(value),
            "backing-cache" => backing_cache = Some(value),
            "backing-unsafe" => header_only = true,
            _ => compress = true,
        }
        Ok(())
    };
    let (image, filename) = match scan.one_image(getopt, own)? {
        Ok(image) => image,
        Err(action) => return Ok((action, scan.warnings)),
    };
    if backing.is_none() && !header_only {
        return Err(Failure::usage("Must specify backing file (-b) or use unsafe mode (-u)"));
    }
    let cache = image.cache()?;
    let backing_cache = parse_source_cache(backing_cache.as_deref())?;
    let source = image.source(&mut scan, &filename)?;
    let ImageOptions { force_share, progress, .. } = image;
    let args = RebaseArgs {
        common: scan.common,
        source,
        cache,
        backing,
        backing_format,
        backing_cache,
        header_only,
        compress,
        force_share,
        progress,
    };
    Ok((Action::Run(Box::new(Command::Rebase(args))), scan.warnings))
}
