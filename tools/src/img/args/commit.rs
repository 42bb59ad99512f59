//! `commit [-f FMT | --image-opts] [-t CACHE] [-b BASE] [-d] [-r RATE] [-p] [-q] FILENAME`

use crate::getopt::{Getopt, OptionSpec};

use super::common::{EXECUTOR, FORMAT, HELP, IMAGE_NAMES, IMAGE_OPTS, ImageOptions, OBJECT, PROGRESS, QUIET};
use super::{Action, CacheMode, Command, CommandSpec, Common, ParsedCommand, Scan, Source, numbers};

/// Arguments of `commit`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitArgs {
    /// What every command takes.
    pub common: Common,
    /// The image.
    pub source: Source,
    /// `-t`: how the images are cached.
    pub cache: CacheMode,
    /// `-b`: the image of the backing chain that gets the data; the next one when `None`.
    pub base: Option<String>,
    /// `-d`, or `-b`: the image is not emptied.
    pub drop: bool,
    /// `-r`: bytes a second at most; 0 is no limit.
    pub rate_limit: u64,
    /// `-p`, unless `-q`.
    pub progress: bool,
    /// `-q`.
    pub quiet: bool,
}

pub(super) const SPEC: CommandSpec = CommandSpec {
    name: "commit",
    about: "Put an image's data into its backing file",
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
            help: "cache mode of the images (default: writeback)",
        },
        OptionSpec { long: &["drop"], short: "d", value: None, help: "leave FILENAME as it is" },
        OptionSpec {
            long: &["base"],
            short: "b",
            value: Some("BASE"),
            help: "image of the backing chain to commit to (default: the next one); implies -d",
        },
        OptionSpec { long: &["rate"], short: "r", value: Some("RATE"), help: "bytes a second at most" },
        OBJECT,
        EXECUTOR,
        IMAGE_NAMES,
    ],
    parse,
};

fn parse(getopt: &mut Getopt<'_>, mut scan: Scan) -> ParsedCommand {
    let (mut base, mut drop, mut rate_limit) = (None, false, 0);
    let own = |option: &str, value: String| {
        match option {
            "base" => base = Some(value),
            "drop" => drop = true,
            _ => rate_limit = numbers::size("rate limit", &value)?,
        }
        Ok(())
    };
    let (image, filename) = match scan.one_image(getopt, own)? {
        Ok(image) => image,
        Err(action) => return Ok((action, scan.warnings)),
    };
    let cache = image.cache()?;
    let source = image.source(&mut scan, &filename)?;
    let ImageOptions { progress, quiet, .. } = image;
    drop |= base.is_some();
    let args = CommitArgs { common: scan.common, source, cache, base, drop, rate_limit, progress, quiet };
    Ok((Action::Run(Box::new(Command::Commit(args))), scan.warnings))
}
