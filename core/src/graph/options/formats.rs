//! What formats there are, and the options of each.

use super::values::Options;
use super::{OpenMode, refused};
use crate::error::Result;
use crate::format::ImageFormat;
use crate::format::luks::LuksOptions;
use crate::format::parallels::{ParallelsOptions, PreallocMode};
use crate::format::qcow2::Qcow2Options;
use crate::format::vpc::SizeRule;
use crate::graph::open::{ChildSpec, DriverSpec, NodeSpec};

/// A format, with its options as they are where nothing else is said.
#[derive(Clone, Debug)]
pub(in crate::graph) enum Format {
    /// Bytes that are no image.
    Raw,
    Qcow2,
    Image(ImageFormat),
}

impl Format {
    /// The format of that name.
    pub(super) fn named(name: &str) -> Option<Self> {
        match name {
            "raw" => Some(Self::Raw),
            "qcow2" => Some(Self::Qcow2),
            name => ImageFormat::named(name).map(Self::Image),
        }
    }

    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Image(format) => format.name(),
        }
    }

    /// Reads what the format has beside its file. `usual` is what a qcow2 image is opened with unless the options say
    /// otherwise.
    pub(super) fn read(
        self,
        options: &mut Options,
        file: Box<NodeSpec>,
        below: OpenMode,
        depth: usize,
        usual: Qcow2Options,
    ) -> Result<DriverSpec> {
        let mut format = match self {
            Self::Raw => return raw(options, file),
            Self::Qcow2 => {
                let data_file = super::data_file_child(options, below, depth)?;
                let backing = super::backing_child(options, below)?;
                let options = super::qcow2_options(options, usual)?;
                return Ok(DriverSpec::Qcow2 { file, backing, data_file, options });
            }
            Self::Image(format) => format,
        };
        match &mut format {
            ImageFormat::Parallels(has) => parallels(options, has)?,
            ImageFormat::Luks(has) => *has = luks(options, below, depth)?,
            ImageFormat::Vpc { size } => *size = vpc_size(options)?,
            _ => {}
        }
        let backing = match format.has_backing() {
            true => super::backing_child(options, below)?,
            false => ChildSpec::None,
        };
        Ok(DriverSpec::Image { format, file, backing, metadata_only: false })
    }
}

fn raw(options: &mut Options, file: Box<NodeSpec>) -> Result<DriverSpec> {
    let size = options.size("size")?;
    let offset = options.size("offset")?.unwrap_or(0);
    if size.is_some_and(|size| !size.is_multiple_of(512)) {
        return Err(refused("Specified size is not multiple of 512".into()));
    }
    Ok(DriverSpec::Raw { file, offset, size })
}

/// Which of the two sizes in a VHD image counts.
fn vpc_size(options: &mut Options) -> Result<SizeRule> {
    match options.text("force_size_calc").as_deref() {
        None => Ok(SizeRule::ByCreator),
        Some("chs") => Ok(SizeRule::Chs),
        Some("current_size") => Ok(SizeRule::CurrentSize),
        Some(other) => Err(refused(format!("Invalid size calculation mode: '{other}'"))),
    }
}

fn parallels(options: &mut Options, read: &mut ParallelsOptions) -> Result<()> {
    let modes = [("falloc", PreallocMode::Falloc), ("truncate", PreallocMode::Truncate)];
    read.prealloc_mode = options.one_of("prealloc-mode", &modes)?.unwrap_or(read.prealloc_mode);
    read.prealloc_size = options.size("prealloc-size")?.unwrap_or(read.prealloc_size);
    Ok(())
}

fn luks(options: &mut Options, below: OpenMode, depth: usize) -> Result<LuksOptions> {
    let key_secret = options.text("key-secret");
    let has_header = options.has("header") || options.has_below("header");
    let header = match has_header {
        true => Some(Box::new(super::child(options, "header", None, below, depth)?)),
        false => None,
    };
    Ok(LuksOptions { key_secret, header })
}
