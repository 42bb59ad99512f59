//! `bench [-c COUNT] [-d DEPTH] [-s SIZE] [-S STEP] [-o OFFSET] [-w [--flush-interval N]] FILENAME`

use crate::getopt::{Getopt, OptionSpec};
use crate::message::Failure;

use super::common::{
    EXECUTOR, FORCE_SHARE, FORMAT, HELP, IMAGE_NAMES, IMAGE_OPTS, OBJECT, QUIET, Step, one_operand,
};
use super::{Action, CacheMode, Command, CommandSpec, Common, ParsedCommand, Scan, Source, numbers};

/// Arguments of `bench`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BenchArgs {
    /// What every command takes.
    pub common: Common,
    /// The image.
    pub source: Source,
    /// `-c`: how many requests are sent.
    pub count: u32,
    /// `-d`: how many are in flight at a time.
    pub depth: u32,
    /// `-s`: bytes a request.
    pub buffer_size: u32,
    /// `-S`: bytes from the start of one request to the next; the buffer size unless given.
    pub step: u32,
    /// `-o`: where the first request starts.
    pub offset: u64,
    /// `-w`: write instead of read.
    pub write: bool,
    /// `--pattern`: the byte that is written.
    pub pattern: u8,
    /// `--flush-interval`.
    pub flush: Option<FlushEvery>,
    /// `-t`: how the image is cached.
    pub cache: CacheMode,
    /// `-i`.
    pub aio: Option<Aio>,
    /// `-n`: use the kernel's own asynchronous I/O.
    pub native: bool,
    /// `-U`: open the image although others write to it.
    pub force_share: bool,
    /// `-q`.
    pub quiet: bool,
}

/// Flushes among the writes of a benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlushEvery {
    /// After so many requests.
    pub requests: u32,
    /// Whether requests wait for the flush to end (not with `--no-drain`).
    pub drain: bool,
}

/// How the host does asynchronous I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aio {
    /// A pool of threads.
    Threads,
    /// Linux AIO.
    Native,
    /// io_uring.
    IoUring,
}

const INT_MAX: u64 = i32::MAX as u64;

pub(super) const SPEC: CommandSpec = CommandSpec {
    name: "bench",
    about: "Run a simple benchmark on an image",
    operands: "FILENAME",
    options: &[
        HELP,
        QUIET,
        FORMAT,
        IMAGE_OPTS,
        OptionSpec {
            long: &["cache"],
            short: "t",
            value: Some("CACHE"),
            help: "cache mode (default: writeback)",
        },
        OptionSpec {
            long: &["count"],
            short: "c",
            value: Some("COUNT"),
            help: "requests in all (default: 75000)",
        },
        OptionSpec {
            long: &["depth"],
            short: "d",
            value: Some("DEPTH"),
            help: "requests in flight (default: 64)",
        },
        OptionSpec {
            long: &["buffer-size"],
            short: "s",
            value: Some("SIZE"),
            help: "bytes a request (default: 4096)",
        },
        OptionSpec {
            long: &["step-size"],
            short: "S",
            value: Some("STEP"),
            help: "bytes from request to request (default: SIZE)",
        },
        OptionSpec { long: &["offset"], short: "o", value: Some("OFFSET"), help: "start here (default: 0)" },
        OptionSpec { long: &["aio"], short: "i", value: Some("AIO"), help: "threads, native or io_uring" },
        OptionSpec { long: &["native"], short: "n", value: None, help: "use the kernel's asynchronous I/O" },
        OptionSpec { long: &["write"], short: "w", value: None, help: "write instead of read" },
        OptionSpec { long: &["pattern"], short: "", value: Some("BYTE"), help: "byte to write (default: 0)" },
        OptionSpec {
            long: &["flush-interval"],
            short: "",
            value: Some("COUNT"),
            help: "flush after so many writes",
        },
        OptionSpec {
            long: &["no-drain"],
            short: "",
            value: None,
            help: "do not wait for writes in flight before a flush",
        },
        FORCE_SHARE,
        OBJECT,
        EXECUTOR,
        IMAGE_NAMES,
    ],
    parse,
};

/// The options as they are read.
struct Raw {
    format: Option<String>,
    image_opts: bool,
    no_drain: bool,
    flush_interval: u32,
    step: u32,
}

fn parse(getopt: &mut Getopt<'_>, mut scan: Scan) -> ParsedCommand {
    let mut raw = Raw { format: None, image_opts: false, no_drain: false, flush_interval: 0, step: 0 };
    let mut args = defaults();
    loop {
        match scan.step(getopt)? {
            Step::End => break,
            Step::Done(action) => return Ok((action, scan.warnings)),
            Step::Option(option, value) => set(&mut args, &mut raw, option, value)?,
        }
    }
    let operands = getopt.take_operands();
    let filename = one_operand(&operands)?;
    if !args.write && raw.flush_interval > 0 {
        return Err(Failure::new("--flush-interval is only available in write tests"));
    }
    if raw.flush_interval > 0 && raw.flush_interval < args.depth {
        return Err(Failure::new("Flush interval can't be smaller than depth"));
    }
    args.source = scan.source(filename, raw.format.as_deref(), raw.image_opts)?;
    args.step = if raw.step == 0 { args.buffer_size } else { raw.step };
    if raw.flush_interval > 0 {
        args.flush = Some(FlushEvery { requests: raw.flush_interval, drain: !raw.no_drain });
    }
    args.common = scan.common;
    Ok((Action::Run(Box::new(Command::Bench(args))), scan.warnings))
}

fn defaults() -> BenchArgs {
    BenchArgs {
        common: Common::default(),
        source: Source { name: crate::options::ImageName::File(String::new()), format: None },
        count: 75_000,
        depth: 64,
        buffer_size: 4096,
        step: 0,
        offset: 0,
        write: false,
        pattern: 0,
        flush: None,
        cache: CacheMode::WRITEBACK,
        aio: None,
        native: false,
        force_share: false,
        quiet: false,
    }
}

fn set(args: &mut BenchArgs, raw: &mut Raw, option: &str, value: String) -> Result<(), Failure> {
    match option {
        "format" => raw.format = Some(value),
        "image-opts" => raw.image_opts = true,
        "cache" => args.cache = CacheMode::parse(&value).ok_or_else(|| Failure::new("Invalid cache mode"))?,
        "count" => args.count = number(&value, 1, INT_MAX, "Invalid request count specified")?,
        "depth" => args.depth = number(&value, 1, INT_MAX, "Invalid queue depth specified")?,
        "buffer-size" => args.buffer_size = to_u32(numbers::size_within("buffer size", &value, 1, INT_MAX)?),
        "step-size" => raw.step = to_u32(numbers::size_within("step_size", &value, 1, INT_MAX)?),
        "offset" => args.offset = numbers::size("offset", &value)?,
        "aio" => args.aio = Some(parse_aio(&value)?),
        "native" => args.native = true,
        "write" => args.write = true,
        "pattern" => {
            let byte = number(&value, 0, 255, "Invalid pattern byte specified")?;
            args.pattern = u8::try_from(byte).expect("the number is at most 255");
        }
        "flush-interval" => {
            raw.flush_interval = number(&value, 0, INT_MAX, "Invalid flush interval specified")?
        }
        "no-drain" => raw.no_drain = true,
        "force-share" => args.force_share = true,
        _ => args.quiet = true,
    }
    Ok(())
}

fn number(text: &str, min: u64, max: u64, message: &str) -> Result<u32, Failure> {
    numbers::number_within(text, min, max, message).map(to_u32)
}

fn to_u32(number: u64) -> u32 {
    u32::try_from(number).expect("the number is at most INT_MAX")
}

fn parse_aio(name: &str) -> Result<Aio, Failure> {
    match name {
        "threads" => Ok(Aio::Threads),
        "native" => Ok(Aio::Native),
        "io_uring" => Ok(Aio::IoUring),
        _ => Err(Failure::new(format!("Invalid aio option: {name}"))),
    }
}
