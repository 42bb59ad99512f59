//! `convert [OPTION]… SOURCE… TARGET`

use crate::getopt::{Getopt, OptionSpec};
use crate::message::{Failure, Message};
use crate::options::{ImageName, Pair, asks_for_help, parse_list};

use super::common::{
    EXECUTOR, FORCE_SHARE, HELP, IMAGE_NAMES, OBJECT, PROGRESS, QUIET, Step, parse_source_cache,
};
use super::create::append_options;
use super::{Action, CacheMode, Command, CommandSpec, Common, ParsedCommand, Scan, Source, numbers};

/// Arguments of `convert`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConvertArgs {
    /// What every command takes.
    pub common: Common,
    /// The images to copy, one after the other; empty only when [`asks_for_help`](Self::asks_for_help).
    pub sources: Vec<Source>,
    /// The image to write; missing only when [`asks_for_help`](Self::asks_for_help).
    pub target: Option<ConvertTarget>,
    /// `-O`: the target's format; `raw` unless given, `None` when it is for `--target-image-opts` to say.
    pub target_format: Option<String>,
    /// `-o`: options of the new image, all occurrences joined by commas.
    pub options: Option<String>,
    /// `-B`: the target's backing file.
    pub backing: Option<String>,
    /// `-F`: the backing file's format.
    pub backing_format: Option<String>,
    /// `-l`: the internal snapshot to copy instead of the current state.
    pub snapshot: Option<SnapshotName>,
    /// `-c`: write compressed clusters.
    pub compress: bool,
    /// `-n`: the target exists already.
    pub no_create: bool,
    /// `--target-is-zero`: the target, which exists, reads as zeroes.
    pub target_is_zero: bool,
    /// `-S`: runs of zeroes of at least so many bytes become holes; 0 writes everything out.
    pub sparse_size: u64,
    /// `-m`: requests in flight.
    pub parallel: u8,
    /// `-W`: requests may be written out of order.
    pub out_of_order: bool,
    /// `-C`: let the host copy ranges.
    pub copy_range: bool,
    /// `--salvage`: what cannot be read becomes zeroes.
    pub salvage: bool,
    /// `--bitmaps`: copy persistent bitmaps.
    pub bitmaps: bool,
    /// `--skip-broken-bitmaps`: leave out those that are inconsistent.
    pub skip_broken_bitmaps: bool,
    /// `-r`: bytes a second at most; 0 is no limit.
    pub rate_limit: u64,
    /// `-T`: how sources are cached.
    pub source_cache: CacheMode,
    /// `-t`: how the target is cached.
    pub target_cache: CacheMode,
    /// `-U`: open the sources although others write to them.
    pub force_share: bool,
    /// `-p`, unless `-q`.
    pub progress: bool,
    /// `-q`.
    pub quiet: bool,
}

/// Where `convert` writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConvertTarget {
    /// A file name.
    File(String),
    /// Options of a node, with `--target-image-opts`.
    Options(ImageName),
}

/// How `-l` names a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SnapshotName {
    /// By its id, or else by its name.
    IdOrName(String),
    /// By what is given of both.
    Both {
        /// `snapshot.id`.
        id: Option<String>,
        /// `snapshot.name`.
        name: Option<String>,
    },
}

impl ConvertArgs {
    /// Whether `-o help` asks for the list of options.
    #[must_use]
    pub fn asks_for_help(&self) -> bool {
        self.options.as_deref().is_some_and(asks_for_help)
    }
}

/// The largest argument of `-S`.
const SPARSE_SIZE_MAX: u64 = 16 << 20;
/// The largest argument of `-m`.
const PARALLEL_MAX: u64 = 16;

pub(super) const SPEC: CommandSpec = CommandSpec {
    name: "convert",
    about: "Copy images to a new one of another format",
    operands: "SOURCE... TARGET",
    options: OPTIONS,
    parse,
};

const OPTIONS: &[OptionSpec] = &[
    HELP,
    QUIET,
    PROGRESS,
    value(&["source-format"], "f", "FMT", "format of the sources (default: probed)"),
    flag(
        &["image-opts", "source-image-opts"],
        "",
        "the sources are option lists such as driver=qcow2,file.filename=a",
    ),
    value(
        &["snapshot", "source-snapshot"],
        "l",
        "SNAPSHOT",
        "internal snapshot to copy: ID, NAME, or snapshot.id=ID,snapshot.name=NAME",
    ),
    value(&["source-cache"], "T", "CACHE", "cache mode of the sources (default: writeback)"),
    value(&["output-format", "target-format"], "O", "FMT", "format of the target (default: raw)"),
    flag(&["target-image-opts"], "", "the target is an option list; needs -n"),
    value(
        &["options", "target-options", "target-format-options"],
        "o",
        "OPTIONS",
        "options of the target's format; help lists them",
    ),
    value(&["output-cache", "target-cache"], "t", "CACHE", "cache mode of the target (default: unsafe)"),
    value(&["backing"], "B", "BACKING", "file to put the target on top of"),
    value(&["backing-format"], "F", "FMT", "format of BACKING"),
    flag(&["compress"], "c", "write compressed clusters"),
    flag(&["no-create"], "n", "write to an image that exists"),
    flag(&["target-is-zero"], "", "the target reads as zeroes already; needs -n"),
    value(
        &["sparse-size"],
        "S",
        "SIZE",
        "make holes of runs of zeroes from this size up (default: 4k, 0: never)",
    ),
    flag(&["bitmaps"], "", "copy persistent bitmaps"),
    flag(&["skip-broken-bitmaps"], "", "leave out bitmaps that are inconsistent; needs --bitmaps"),
    flag(&["salvage"], "", "go on after read errors, writing zeroes"),
    value(&["rate"], "r", "RATE", "bytes a second at most"),
    value(&["parallel"], "m", "COUNT", "requests in flight, 1 to 16 (default: 8)"),
    flag(&["oob-writes"], "W", "write out of order"),
    flag(&["copy-range-offloading"], "C", "let the host copy ranges"),
    FORCE_SHARE,
    OBJECT,
    EXECUTOR,
    IMAGE_NAMES,
];

const fn value(
    long: &'static [&'static str],
    short: &'static str,
    value: &'static str,
    help: &'static str,
) -> OptionSpec {
    OptionSpec { long, short, value: Some(value), help }
}

const fn flag(long: &'static [&'static str], short: &'static str, help: &'static str) -> OptionSpec {
    OptionSpec { long, short, value: None, help }
}

/// The options as they are read.
#[derive(Default)]
struct Raw {
    source_format: Option<String>,
    image_opts: bool,
    target_image_opts: bool,
    source_cache: Option<String>,
    target_cache: Option<String>,
    sparse_size: Option<u64>,
    parallel: Option<u8>,
}

fn parse(getopt: &mut Getopt<'_>, mut scan: Scan) -> ParsedCommand {
    let mut raw = Raw::default();
    let mut args = defaults();
    loop {
        match scan.step(getopt)? {
            Step::End => break,
            Step::Done(action) => return Ok((action, scan.warnings)),
            Step::Option(option, value) => set(&mut args, &mut raw, &mut scan.warnings, option, value)?,
        }
    }
    if args.target_format.is_none() && !raw.target_image_opts {
        args.target_format = Some("raw".into());
    }
    check_combinations(&args, &raw)?;
    args.progress &= !args.quiet;
    args.sparse_size = raw.sparse_size.unwrap_or(4096);
    args.parallel = raw.parallel.unwrap_or(8);
    args.common = std::mem::take(&mut scan.common);

    let mut operands = getopt.take_operands();
    let target = if operands.len() > 1 { operands.pop() } else { None };
    match target {
        None if args.asks_for_help() => {}
        None => return Err(Failure::new("Must specify image file name")),
        Some(target) if args.asks_for_help() => args.target = Some(ConvertTarget::File(target)),
        Some(target) => open_names(&mut args, &raw, &mut scan, &operands, target)?,
    }
    Ok((Action::Run(Box::new(Command::Convert(args))), scan.warnings))
}

fn open_names(
    args: &mut ConvertArgs,
    raw: &Raw,
    scan: &mut Scan,
    sources: &[String],
    target: String,
) -> Result<(), Failure> {
    args.source_cache = parse_source_cache(raw.source_cache.as_deref())?;
    for source in sources {
        args.sources.push(scan.source(source, raw.source_format.as_deref(), raw.image_opts)?);
    }
    if let Some(name) = &raw.target_cache {
        let cache = CacheMode::parse(name);
        args.target_cache = cache.ok_or_else(|| Failure::new(format!("Invalid cache option: {name}")))?;
    }
    args.target = Some(if raw.target_image_opts {
        ConvertTarget::Options(scan.source(&target, args.target_format.as_deref(), true)?.name)
    } else {
        ConvertTarget::File(target)
    });
    Ok(())
}

fn defaults() -> ConvertArgs {
    ConvertArgs {
        common: Common::default(),
        sources: Vec::new(),
        target: None,
        target_format: None,
        options: None,
        backing: None,
        backing_format: None,
        snapshot: None,
        compress: false,
        no_create: false,
        target_is_zero: false,
        sparse_size: 0,
        parallel: 0,
        out_of_order: false,
        copy_range: false,
        salvage: false,
        bitmaps: false,
        skip_broken_bitmaps: false,
        rate_limit: 0,
        source_cache: CacheMode::WRITEBACK,
        target_cache: CacheMode::UNSAFE,
        force_share: false,
        progress: false,
        quiet: false,
    }
}

fn set(
    args: &mut ConvertArgs,
    raw: &mut Raw,
    warnings: &mut Vec<String>,
    option: &str,
    value: String,
) -> Result<(), Failure> {
    match option {
        "source-format" => raw.source_format = Some(value),
        "image-opts" => raw.image_opts = true,
        "snapshot" => args.snapshot = Some(parse_snapshot(&value, warnings)?),
        "source-cache" => raw.source_cache = Some(value),
        "output-format" => args.target_format = Some(value),
        "target-image-opts" => raw.target_image_opts = true,
        "options" => append_options(&mut args.options, &value)?,
        "output-cache" => raw.target_cache = Some(value),
        "backing" => args.backing = Some(value),
        "backing-format" => args.backing_format = Some(value),
        "compress" => args.compress = true,
        "no-create" => args.no_create = true,
        "target-is-zero" => args.target_is_zero = true,
        "sparse-size" => raw.sparse_size = Some(parse_sparse_size(&value)?),
        "bitmaps" => args.bitmaps = true,
        "skip-broken-bitmaps" => args.skip_broken_bitmaps = true,
        "salvage" => args.salvage = true,
        "rate" => args.rate_limit = numbers::size("rate limit", &value)?,
        "parallel" => raw.parallel = Some(parse_parallel(&value)?),
        "oob-writes" => args.out_of_order = true,
        "copy-range-offloading" => args.copy_range = true,
        "force-share" => args.force_share = true,
        "progress" => args.progress = true,
        _ => args.quiet = true,
    }
    Ok(())
}

fn check_combinations(args: &ConvertArgs, raw: &Raw) -> Result<(), Failure> {
    let wrong = [
        (args.skip_broken_bitmaps && !args.bitmaps, "Use of --skip-broken-bitmaps requires --bitmaps"),
        (args.compress && args.copy_range, "Cannot enable copy offloading when -c is used"),
        (raw.sparse_size.is_some() && args.copy_range, "Cannot enable copy offloading when -S is used"),
        (args.copy_range && args.salvage, "Cannot use copy offloading in salvaging mode"),
        (raw.target_image_opts && !args.no_create, "--target-image-opts requires use of -n flag"),
        (args.no_create && args.options.is_some(), "-o has no effect when skipping image creation"),
        (args.target_is_zero && !args.no_create, "--target-is-zero requires use of -n flag"),
    ];
    match wrong.into_iter().find(|(is_wrong, _)| *is_wrong) {
        Some((_, message)) => Err(Failure::new(message)),
        None => Ok(()),
    }
}

fn parse_sparse_size(text: &str) -> Result<u64, Failure> {
    let what = "buffer size for sparse output";
    let size = numbers::size(what, text)?;
    if size.is_multiple_of(512) && size <= SPARSE_SIZE_MAX {
        return Ok(size);
    }
    Err(Failure::new(format!(
        "Invalid {what} specified. Valid sizes are multiples of 512 up to {SPARSE_SIZE_MAX}. \
         Select 0 to disable sparse detection (fully allocates output)."
    )))
}

fn parse_parallel(text: &str) -> Result<u8, Failure> {
    let message = "Invalid number of coroutines. Allowed number of coroutines is between 1 and 16";
    let number = numbers::number_within(text, 1, PARALLEL_MAX, message)?;
    Ok(u8::try_from(number).expect("the number is at most 16"))
}

/// Reads the argument of `-l`.
pub(crate) fn parse_snapshot(text: &str, warnings: &mut Vec<String>) -> Result<SnapshotName, Failure> {
    if !text.starts_with("snapshot.") {
        return Ok(SnapshotName::IdOrName(text.to_owned()));
    }
    let (mut id, mut name) = (None, None);
    for pair in parse_list(text, None) {
        warnings.extend(pair.switch_warning());
        let Pair { key, value, .. } = pair;
        match key.as_str() {
            "snapshot.id" => id = Some(value),
            "snapshot.name" => name = Some(value),
            _ => {
                let mut failure = Failure::new(format!("Invalid parameter '{key}'"));
                failure.messages.push(Message::Error(format!("Failed in parsing snapshot param '{text}'")));
                return Err(failure.after(std::mem::take(warnings)));
            }
        }
    }
    Ok(SnapshotName::Both { id, name })
}
