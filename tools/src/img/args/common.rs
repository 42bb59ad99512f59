//! Options that several commands share.

use drystone_core::graph::open::ImageNames;

use crate::getopt::{Getopt, OptionSpec};
use crate::message::Failure;
use crate::object::{ObjectArg, ObjectDef, add_object, parse_object};
use crate::options::ImageName;

use super::{Action, Scan};

/// What every command takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Common {
    /// What carries out the engine's intents.
    pub executor: Executor,
    /// `--image-names`: what of the names that images hold is opened.
    pub image_names: ImageNames,
    /// Objects to make before any image is opened.
    pub objects: Vec<ObjectDef>,
}

/// What carries out the engine's intents. This is the one option that the reference does not have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Executor {
    /// tokio, the default.
    #[default]
    Tokio,
    /// monoio.
    Monoio,
    /// glommio.
    Glommio,
}

/// An image to open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Its name.
    pub name: ImageName,
    /// Its format; probed when `None`.
    pub format: Option<String>,
}

/// How output is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OutputFormat {
    /// For people.
    #[default]
    Human,
    /// For programs.
    Json,
}

/// How a host file is cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheMode {
    /// Past the host's page cache (`O_DIRECT`).
    pub direct: bool,
    /// Flushes are not passed on.
    pub no_flush: bool,
    /// Every write is made durable before it is answered.
    pub writethrough: bool,
}

impl CacheMode {
    /// `writeback`, the default nearly everywhere.
    pub const WRITEBACK: Self = Self { direct: false, no_flush: false, writethrough: false };
    /// `unsafe`, the default for the target of `convert`.
    pub const UNSAFE: Self = Self { no_flush: true, ..Self::WRITEBACK };

    /// Reads the name of a cache mode; `None` when there is no such mode.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "none" | "off" => Some(Self { direct: true, ..Self::WRITEBACK }),
            "directsync" => Some(Self { direct: true, writethrough: true, ..Self::WRITEBACK }),
            "writeback" => Some(Self::WRITEBACK),
            "unsafe" => Some(Self::UNSAFE),
            "writethrough" => Some(Self { writethrough: true, ..Self::WRITEBACK }),
            _ => None,
        }
    }
}

pub(super) const HELP: OptionSpec =
    OptionSpec { long: &["help"], short: "h", value: None, help: "print this help and exit" };
pub(super) const QUIET: OptionSpec =
    OptionSpec { long: &["quiet"], short: "q", value: None, help: "print errors only" };
pub(super) const PROGRESS: OptionSpec =
    OptionSpec { long: &["progress"], short: "p", value: None, help: "show how far the work is" };
pub(super) const FORMAT: OptionSpec = OptionSpec {
    long: &["format"],
    short: "f",
    value: Some("FMT"),
    help: "format of the image (default: probed)",
};
pub(super) const IMAGE_OPTS: OptionSpec = OptionSpec {
    long: &["image-opts"],
    short: "",
    value: None,
    help: "FILENAME is an option list such as driver=qcow2,file.filename=a.qcow2",
};
pub(super) const FORCE_SHARE: OptionSpec = OptionSpec {
    long: &["force-share"],
    short: "U",
    value: None,
    help: "open the image even while another process writes to it",
};
pub(super) const OUTPUT: OptionSpec = OptionSpec {
    long: &["output"],
    short: "",
    value: Some("human|json"),
    help: "form of the output (default: human)",
};
pub(super) const OBJECT: OptionSpec = OptionSpec {
    long: &["object"],
    short: "",
    value: Some("OBJDEF"),
    help: "define an object, such as a secret or tls-creds-x509; may be repeated",
};
pub(super) const EXECUTOR: OptionSpec = OptionSpec {
    long: &["executor"],
    short: "",
    value: Some("tokio|monoio|glommio"),
    help: "what does the I/O (default: tokio)",
};

pub(super) const IMAGE_NAMES: OptionSpec = OptionSpec {
    long: &["image-names"],
    short: "",
    value: Some("follow|plain|forbid"),
    help: "what to open of the file names that images hold: all, paths alone, or none (default: follow)",
};

/// One option for the command's own parser, or the end.
pub(super) enum Step {
    Option(&'static str, String),
    /// An option common to all commands ended the walk.
    Done(Action),
    End,
}

/// What the options of the commands about one image have in common.
#[derive(Default)]
pub(super) struct ImageOptions {
    /// `-f`.
    pub(super) format: Option<String>,
    image_opts: bool,
    /// `-U`.
    pub(super) force_share: bool,
    /// The argument of `--output`.
    output: Option<String>,
    /// The argument of `-t` or `-T`.
    cache: Option<String>,
    /// `-p`, unless `-q`.
    pub(super) progress: bool,
    /// `-q`.
    pub(super) quiet: bool,
}

impl ImageOptions {
    /// `-t`, of an image that is changed.
    pub(super) fn cache(&self) -> Result<CacheMode, Failure> {
        let Some(name) = &self.cache else { return Ok(CacheMode::WRITEBACK) };
        CacheMode::parse(name).ok_or_else(|| Failure::new(format!("Invalid cache option: {name}")))
    }

    /// `-T`, of an image that is read.
    pub(super) fn source_cache(&self) -> Result<CacheMode, Failure> {
        parse_source_cache(self.cache.as_deref())
    }

    /// `--output`, as it was written.
    pub(super) fn output_word(&self) -> Option<&str> {
        self.output.as_deref()
    }

    /// `--output`.
    pub(super) fn output(&self) -> Result<OutputFormat, Failure> {
        parse_output(self.output_word())
    }

    /// What FILENAME names.
    pub(super) fn source(&self, scan: &mut Scan, filename: &str) -> Result<Source, Failure> {
        scan.source(filename, self.format.as_deref(), self.image_opts)
    }
}

impl Scan {
    /// Reads the options of a command about one image. Those that only this command has go to `own`. The other answer is
    /// what an option asked for instead.
    pub(super) fn image_options(
        &mut self,
        getopt: &mut Getopt<'_>,
        mut own: impl FnMut(&'static str, String) -> Result<(), Failure>,
    ) -> Result<Result<ImageOptions, Action>, Failure> {
        let mut read = ImageOptions::default();
        loop {
            match self.step(getopt)? {
                Step::End => break,
                Step::Done(action) => return Ok(Err(action)),
                Step::Option(option, value) => match option {
                    "format" => read.format = Some(value),
                    "image-opts" => read.image_opts = true,
                    "force-share" => read.force_share = true,
                    "output" => read.output = Some(value),
                    "cache" => read.cache = Some(value),
                    "progress" => read.progress = true,
                    "quiet" => read.quiet = true,
                    _ => own(option, value)?,
                },
            }
        }
        read.progress &= !read.quiet;
        Ok(Ok(read))
    }

    /// The same, and the only operand.
    pub(super) fn one_image(
        &mut self,
        getopt: &mut Getopt<'_>,
        own: impl FnMut(&'static str, String) -> Result<(), Failure>,
    ) -> Result<Result<(ImageOptions, String), Action>, Failure> {
        let read = match self.image_options(getopt, own)? {
            Ok(read) => read,
            Err(action) => return Ok(Err(action)),
        };
        let filename = one_operand(&getopt.take_operands())?.to_owned();
        Ok(Ok((read, filename)))
    }

    /// The next option; those that all commands share are handled here.
    pub(super) fn step(&mut self, getopt: &mut Getopt<'_>) -> Result<Step, Failure> {
        while let Some(parsed) = getopt.next_option() {
            let (option, value) = parsed.recognized()?;
            match option {
                "help" => return Ok(Step::Done(Action::Print(std::mem::take(&mut self.help)))),
                "object" => match parse_object(&value).map_err(Failure::new)? {
                    ObjectArg::Help(text) => return Ok(Step::Done(Action::Print(text))),
                    ObjectArg::Define(object) => {
                        add_object(&mut self.common.objects, object).map_err(Failure::new)?;
                    }
                },
                "executor" => self.common.executor = parse_executor(&value)?,
                "image-names" => self.common.image_names = parse_image_names(&value)?,
                _ => return Ok(Step::Option(option, value)),
            }
        }
        Ok(Step::End)
    }

    /// Reads a FILENAME argument.
    pub(super) fn source(
        &mut self,
        text: &str,
        format: Option<&str>,
        image_opts: bool,
    ) -> Result<Source, Failure> {
        if !image_opts {
            let name = ImageName::from_filename(text)
                .map_err(|error| Failure::new(format!("Could not open '{text}': {error}")))?;
            self.warnings.extend(name.backing_warning());
            return Ok(Source { name, format: format.map(str::to_owned) });
        }
        if format.is_some() {
            return Err(Failure::new("--image-opts and --format are mutually exclusive"));
        }
        let (name, warnings) =
            ImageName::from_image_opts(text).map_err(|error| Failure::new(error.to_string()))?;
        self.warnings.extend(warnings);
        self.warnings.extend(name.backing_warning());
        Ok(Source { name, format: None })
    }
}

pub(crate) fn parse_executor(name: &str) -> Result<Executor, Failure> {
    match name {
        "tokio" => Ok(Executor::Tokio),
        "monoio" => Ok(Executor::Monoio),
        "glommio" => Ok(Executor::Glommio),
        _ => Err(Failure::usage(format!("--executor expects 'tokio', 'monoio' or 'glommio', not '{name}'"))),
    }
}

pub(crate) fn parse_image_names(name: &str) -> Result<ImageNames, Failure> {
    match name {
        "follow" => Ok(ImageNames::Follow),
        "plain" => Ok(ImageNames::Plain),
        "forbid" => Ok(ImageNames::Forbid),
        _ => {
            Err(Failure::usage(format!("--image-names expects 'follow', 'plain' or 'forbid', not '{name}'")))
        }
    }
}

/// Reads the argument of `--output`; the last one given counts.
pub(super) fn parse_output(name: Option<&str>) -> Result<OutputFormat, Failure> {
    match name {
        None | Some("human") => Ok(OutputFormat::Human),
        Some("json") => Ok(OutputFormat::Json),
        Some(_) => Err(Failure::new("--output must be used with human or json as argument.")),
    }
}

/// Reads the cache mode of a source.
pub(super) fn parse_source_cache(name: Option<&str>) -> Result<CacheMode, Failure> {
    let Some(name) = name else { return Ok(CacheMode::WRITEBACK) };
    CacheMode::parse(name).ok_or_else(|| Failure::new(format!("Invalid source cache option: {name}")))
}

/// Takes the only operand.
pub(super) fn one_operand(operands: &[String]) -> Result<&str, Failure> {
    match operands {
        [one] => Ok(one),
        _ => Err(Failure::usage("Expecting one image file name")),
    }
}
