//! `bitmap (--merge SOURCE | --add | --remove | --clear | --enable | --disable)… [-b FILE [-F FMT]] [-g SIZE]
//! [-f FMT | --image-opts] FILENAME BITMAP`

use crate::getopt::{Getopt, OptionSpec};
use crate::message::Failure;

use super::common::{EXECUTOR, FORMAT, HELP, IMAGE_NAMES, IMAGE_OPTS, OBJECT, Step};
use super::numbers::size;
use super::{Action, Command, CommandSpec, Common, ParsedCommand, Scan, Source};

/// Arguments of `bitmap`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BitmapArgs {
    /// What every command takes.
    pub common: Common,
    /// The image.
    pub source: Source,
    /// The bitmap's name.
    pub name: String,
    /// What is done, in this order.
    pub steps: Vec<BitmapStep>,
    /// `-g`: bytes of the disk that one bit stands for.
    pub granularity: Option<u64>,
    /// `-b`: where the bitmaps are that are merged; the image itself, without.
    pub merge_from: Option<Source>,
}

/// One thing that is done to a bitmap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BitmapStep {
    /// Make it, empty.
    Add,
    /// Remove it.
    Remove,
    /// Clear its bits.
    Clear,
    /// Have it count what is written.
    Enable,
    /// Have it stop counting.
    Disable,
    /// Set what is set in the bitmap of this name.
    Merge(String),
}

impl BitmapStep {
    /// The reference's word for it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Remove => "remove",
            Self::Clear => "clear",
            Self::Enable => "enable",
            Self::Disable => "disable",
            Self::Merge(_) => "merge",
        }
    }
}

const fn step(long: &'static [&'static str], help: &'static str) -> OptionSpec {
    OptionSpec { long, short: "", value: None, help }
}

pub(super) const SPEC: CommandSpec = CommandSpec {
    name: "bitmap",
    about: "Change the persistent dirty bitmaps of an image",
    operands: "FILENAME BITMAP",
    options: &[
        HELP,
        FORMAT,
        IMAGE_OPTS,
        step(&["add"], "make BITMAP, which counts what is written from then on"),
        OptionSpec {
            long: &["granularity"],
            short: "g",
            value: Some("SIZE"),
            help: "bytes that one bit of a new bitmap stands for",
        },
        step(&["remove"], "remove BITMAP"),
        step(&["clear"], "clear all bits of BITMAP"),
        step(&["enable"], "have BITMAP count what is written"),
        step(&["disable"], "have BITMAP stop counting"),
        OptionSpec {
            long: &["merge"],
            short: "",
            value: Some("SOURCE"),
            help: "set in BITMAP what is set in SOURCE; may be repeated",
        },
        OptionSpec {
            long: &["source-file"],
            short: "b",
            value: Some("FILE"),
            help: "image that has SOURCE (default: FILENAME)",
        },
        OptionSpec {
            long: &["source-format"],
            short: "F",
            value: Some("FMT"),
            help: "format of that image (default: probed)",
        },
        OBJECT,
        EXECUTOR,
        IMAGE_NAMES,
    ],
    parse,
};

fn parse(getopt: &mut Getopt<'_>, mut scan: Scan) -> ParsedCommand {
    let (mut format, mut image_opts, mut granularity) = (None, false, None);
    let (mut from, mut from_format, mut steps) = (None, None, Vec::new());
    loop {
        match scan.step(getopt)? {
            Step::End => break,
            Step::Done(action) => return Ok((action, scan.warnings)),
            Step::Option(option, value) => match option {
                "format" => format = Some(value),
                "image-opts" => image_opts = true,
                // The reference takes 0 for none given.
                "granularity" => granularity = Some(size("granularity", &value)?).filter(|size| *size > 0),
                "source-file" => from = Some(value),
                "source-format" => from_format = Some(value),
                "add" => steps.push(BitmapStep::Add),
                "remove" => steps.push(BitmapStep::Remove),
                "clear" => steps.push(BitmapStep::Clear),
                "enable" => steps.push(BitmapStep::Enable),
                "disable" => steps.push(BitmapStep::Disable),
                _ => steps.push(BitmapStep::Merge(value)),
            },
        }
    }
    let operands = getopt.take_operands();
    let [image, name] = operands.as_slice() else {
        return Err(Failure::new("Expecting filename and bitmap name"));
    };
    let merges = steps.iter().any(|step| matches!(step, BitmapStep::Merge(_)));
    let wrong = match () {
        () if steps.is_empty() => {
            Some("Need at least one of --add, --remove, --clear, --enable, --disable, or --merge")
        }
        () if granularity.is_some() && !steps.contains(&BitmapStep::Add) => {
            Some("granularity only supported with --add")
        }
        () if from_format.is_some() && from.is_none() => Some("-F only supported with -b"),
        () if from.is_some() && !merges => Some("Merge bitmap source file only supported with --merge"),
        () => None,
    };
    if let Some(text) = wrong {
        return Err(Failure::new(text));
    }
    let source = scan.source(image, format.as_deref(), image_opts)?;
    let merge_from = match from {
        Some(from) => Some(scan.source(&from, from_format.as_deref(), false)?),
        None => None,
    };
    let args = BitmapArgs { common: scan.common, source, name: name.clone(), steps, granularity, merge_from };
    Ok((Action::Run(Box::new(Command::Bitmap(args))), scan.warnings))
}
