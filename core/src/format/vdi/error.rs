//! What can be wrong with a VDI image, or with what is asked of one.

use crate::error::{FaultKind, FormatError};

/// An error of the VDI format. Texts that scripts know from `qemu-img` begin with its words.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the message beside each variant says what its fields are")]
pub enum VdiError {
    #[error("Image not in VDI format (signature {found:#010x} at byte 64, expected 0xbeda107f)")]
    NotVdi { found: u32 },
    #[error("the VDI header needs 512 bytes, the file has {len}")]
    HeaderTooShort { len: u64 },
    #[error("unsupported VDI image (version {}.{})", .found >> 16, .found & 0xffff)]
    Version { found: u32 },
    #[error("unsupported VDI image (unaligned {field} offset {found:#x})")]
    Unaligned { field: &'static str, found: u32 },
    #[error("unsupported VDI image (sector size {found} is not 512)")]
    SectorSize { found: u32 },
    #[error("unsupported VDI image (block size {found} is not 1048576)")]
    BlockSize { found: u32 },
    #[error("unsupported VDI image ({found} extra bytes before each block)")]
    BlockExtra { found: u32 },
    #[error("unsupported VDI image (too many blocks {found}, max is {max})")]
    TooManyBlocks { found: u32, max: u32 },
    #[error("unsupported VDI image (disk size {size}, image bitmap has room for {room})")]
    Size { size: u64, room: u64 },
    #[error("unsupported VDI image (non-NULL {which} UUID)")]
    Differencing { which: &'static str },
    #[error("the block map of {len} bytes at {at} does not fit in front of {end}, where the {what} is")]
    MapPlace { at: u64, len: u64, end: u64, what: &'static str },
    #[error(
        "the block map's entry of block {block} is {found}, where the image has {blocks} blocks; run `check`"
    )]
    Entry { block: u64, found: u32, blocks: u32 },
    #[error("all {blocks} blocks that the image has room for are in use or lost; convert it to a new one")]
    Full { blocks: u32 },
    #[error("all slices of the block map in memory hold changes that could not be written")]
    CacheExhausted,
    #[error("Unsupported VDI image size (size is {size:#x}, max supported is {max:#x})")]
    TooLarge { size: u64, max: u64 },
}

impl FormatError for VdiError {
    fn kind(&self) -> FaultKind {
        match self {
            Self::NotVdi { .. }
            | Self::HeaderTooShort { .. }
            | Self::MapPlace { .. }
            | Self::Entry { .. } => FaultKind::Corrupt,
            Self::Size { .. } => FaultKind::Corrupt,
            Self::Full { .. } | Self::TooLarge { .. } => FaultKind::Misuse,
            Self::CacheExhausted => FaultKind::Io,
            _ => FaultKind::Unsupported,
        }
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}
