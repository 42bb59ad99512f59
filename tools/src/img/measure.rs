//! What `measure` decides before it looks at an image, and what it shows.

use drystone_core::format::qcow2::Shape;
use serde_json::{Map, Value};

use super::args::{MeasureArgs, OutputFormat};
use super::create::{CreateOptions, Known, create_options};
use super::luks::LuksChoice;
use crate::message::{Failure, Message};
use crate::object::ObjectDef;
use crate::options::json::to_pages;

/// Bytes of an L1 table at the most.
const L1_LEN_MAX: u64 = 32 << 20;

/// The image that is not made, only measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MeasureTarget {
    /// Raw bytes: as long as the disk, whatever it holds.
    Raw,
    /// A qcow2 image.
    Qcow2 {
        /// What decides how much metadata it has.
        shape: Shape,
        /// Whether it can hold bitmaps.
        bitmaps: bool,
        /// Whether space for the whole disk is taken ahead.
        whole: bool,
        /// Whether it has a backing file. All of an image counts then: nobody knows what the file would spare.
        backed: bool,
        /// Bytes of the header of its encryption.
        luks: u64,
    },
    /// An encrypted volume: a header of so many bytes, and the whole disk.
    Luks(u64),
}

impl MeasureTarget {
    /// Reads the format and the options of the image.
    ///
    /// # Errors
    /// What is wrong with them, in the words of the reference.
    pub fn new(args: &MeasureArgs, known: Known<'_>) -> Result<Self, Failure> {
        let format = args.target_format.as_str();
        create_options(format, None, known).map_err(Failure::new)?;
        if !matches!(format, "raw" | "qcow2" | "luks") {
            return Err(Failure::new(format!("Block driver '{format}' does not support size measurement")));
        }
        let mut options = create_options(format, Some("file"), known).map_err(Failure::new)?;
        if let Some(list) = &args.options {
            options.apply(list).map_err(|error| {
                let mut failure = Failure::new(error.to_string());
                let hint = format!("Invalid options for file format '{format}'");
                failure.messages.push(Message::Error(hint));
                failure
            })?;
        }
        let objects = &args.common.objects;
        match format {
            "raw" => Ok(Self::Raw),
            "luks" => luks_header_len(&options, "", objects).map(Self::Luks),
            _ => qcow2(&options, objects),
        }
    }

    /// Whether what the disk holds makes a difference.
    #[must_use]
    pub fn needs_content(&self) -> bool {
        matches!(self, Self::Qcow2 { whole: false, backed: false, .. })
    }

    /// Bytes of a cluster; 1 where there are none.
    #[must_use]
    pub fn cluster_size(&self) -> u64 {
        match self {
            Self::Raw | Self::Luks(_) => 1,
            Self::Qcow2 { shape, .. } => shape.cluster_size,
        }
    }

    /// Sums up. `size` is the disk's length; `data` are the bytes of whole clusters that an image fills, when that
    /// [is needed](Self::needs_content), and `None` for an empty disk.
    ///
    /// # Errors
    /// When the format does not go so far.
    pub fn sum(&self, size: u64, data: Option<u64>) -> Result<Measured, Failure> {
        let Self::Qcow2 { shape, whole, backed, luks, .. } = *self else {
            let len = match self {
                Self::Luks(header) => header + size,
                _ => size.next_multiple_of(512),
            };
            return Ok(Measured { required: len, fully_allocated: len, bitmaps: None });
        };
        let all = size.next_multiple_of(shape.cluster_size);
        let l2_tables = (all / shape.cluster_size).div_ceil(shape.cluster_size / shape.l2_entry_len());
        if l2_tables * 8 > L1_LEN_MAX {
            return Err(Failure::new("The image size is too large (try using a larger cluster size)"));
        }
        let fully_allocated = shape.file_len(size) + luks.next_multiple_of(shape.cluster_size);
        let data = match data {
            _ if whole => all,
            Some(_) if backed => all,
            data => data.unwrap_or(0),
        };
        Ok(Measured { required: fully_allocated - all + data, fully_allocated, bitmaps: None })
    }
}

fn luks_header_len(options: &CreateOptions, prefix: &str, objects: &[ObjectDef]) -> Result<u64, Failure> {
    LuksChoice::parse(options, prefix).map_err(Failure::new)?.header_len(objects)
}

fn qcow2(options: &CreateOptions, objects: &[ObjectDef]) -> Result<MeasureTarget, Failure> {
    let refuse = |text: &str| Err(Failure::new(text));
    let number = |name: &str| options.number(name).unwrap_or(0);
    let switch = |name: &str| options.switch(name) == Some(true);
    // Any other encryption has no header of its own.
    let luks = match options.text("encrypt.format") {
        Some("luks") => luks_header_len(options, "encrypt.", objects)?,
        _ => 0,
    };
    let version = match options.text("compat") {
        None | Some("1.1" | "v3") => 3,
        Some("0.10" | "v2") => 2,
        Some(other) => return Err(Failure::new(format!("Invalid compatibility level: '{other}'"))),
    };
    let (cluster_size, extended_l2) = (number("cluster_size"), switch("extended_l2"));
    if !cluster_size.is_power_of_two() || !(512..=2 << 20).contains(&cluster_size) {
        return refuse("Cluster size must be a power of two between 512 and 2048k");
    }
    if extended_l2 && cluster_size < 16384 {
        return refuse("Extended L2 entries are only supported with cluster sizes of at least 16384 bytes");
    }
    let preallocated = match options.text("preallocation").unwrap_or("off") {
        "off" | "metadata" => false,
        "falloc" | "full" => true,
        other => return Err(Failure::new(format!("invalid parameter value: {other}"))),
    };
    let refcount_bits = number("refcount_bits");
    if !refcount_bits.is_power_of_two() || refcount_bits > 64 {
        return refuse("Refcount width must be a power of two and may not exceed 64 bits");
    }
    if version < 3 && refcount_bits != 16 {
        return refuse(
            "Different refcount widths than 16 bits require compatibility level 1.1 or above (use compat=1.1 or greater)",
        );
    }
    Ok(MeasureTarget::Qcow2 {
        shape: Shape { cluster_size, refcount_bits, extended_l2 },
        bitmaps: version >= 3,
        whole: preallocated,
        backed: options.text("backing_file").is_some(),
        luks,
    })
}

/// What a measurement found, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measured {
    /// The image with the data that there is.
    pub required: u64,
    /// The image with all of its disk allocated.
    pub fully_allocated: u64,
    /// What the bitmaps take beyond that; `None` when either image can have none.
    pub bitmaps: Option<u64>,
}

impl Measured {
    /// The sizes in the form asked for.
    #[must_use]
    pub fn render(&self, format: OutputFormat) -> String {
        match format {
            OutputFormat::Human => {
                let bitmaps = self.bitmaps.map_or(String::new(), |len| format!("bitmaps size: {len}\n"));
                format!(
                    "required size: {}\nfully allocated size: {}\n{bitmaps}",
                    self.required, self.fully_allocated
                )
            }
            OutputFormat::Json => {
                let mut map = Map::new();
                map.insert("required".into(), self.required.into());
                map.insert("fully-allocated".into(), self.fully_allocated.into());
                if let Some(len) = self.bitmaps {
                    map.insert("bitmaps".into(), len.into());
                }
                to_pages(&Value::Object(map)) + "\n"
            }
        }
    }
}
