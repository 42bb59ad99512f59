//! What can be wrong with a VHD image, or with what is asked of one.

use crate::error::{FaultKind, FormatError};

/// An error of the VHD format. Texts that scripts know from `qemu-img` begin with its words.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the message beside each variant says what its fields are")]
pub enum VpcError {
    #[error(
        "invalid VPC image (no footer 'conectix' at byte 0, and none of a fixed disk in the last 512 bytes)"
    )]
    NotVpc,
    #[error(
        "Incorrect header checksum (the {structure} at byte {at} has {found:#010x}, expected {expected:#010x})"
    )]
    Checksum { structure: &'static str, at: u64, found: u32, expected: u32 },
    #[error("the {structure} at byte {at} needs {len} bytes, the file has {file_len}")]
    TooShort { structure: &'static str, at: u64, len: u64, file_len: u64 },
    #[error("the footer at byte {at} says disk type {found}, expected {expected}")]
    DiskType { at: u64, found: u32, expected: &'static str },
    #[error("Invalid header magic (no 'cxsparse' at byte {at})")]
    HeaderMagic { at: u64 },
    #[error("Invalid block size {found} (a power of two of at least 512 bytes is expected)")]
    BlockSize { found: u32 },
    #[error("Max Table Entries too large ({found}), at most {max}")]
    Entries { found: u32, max: u32 },
    #[error("Page table too small ({entries} blocks of {block_len} bytes, for a disk of {size})")]
    TableTooSmall { entries: u32, block_len: u64, size: u64 },
    #[error("the {what} at byte {at}, {len} bytes, does not lie in the file, which has {file_len}")]
    Outside { what: &'static str, at: u64, len: u64, file_len: u64 },
    #[error("BAT entry {block}: sector {found:#x}, expected {expected}")]
    BatEntry { block: u64, found: u32, expected: &'static str },
    #[error("two BAT entries name the block at byte {at}, or parts of it")]
    Overlap { at: u64 },
    #[error("a disk of {size} bytes is larger than {max}")]
    DiskTooLarge { size: u64, max: u64 },
    #[error("The image size is too large for file format 'vpc'")]
    TooLarge { size: u64 },
    #[error("the file is full: a BAT entry reaches {max} bytes")]
    Full { max: u64 },
    #[error("all slices of BAT and bitmaps in memory hold changes that could not be written")]
    CacheExhausted,
    #[error("the image names no file of its parent")]
    NoParentName,
    #[error("the parent's UUID is {found:032x}, expected {expected:032x}")]
    OtherParent { found: u128, expected: u128 },
}

impl FormatError for VpcError {
    fn kind(&self) -> FaultKind {
        match self {
            Self::DiskType { .. } | Self::DiskTooLarge { .. } => FaultKind::Unsupported,
            Self::TooLarge { .. } | Self::Full { .. } | Self::OtherParent { .. } => FaultKind::Misuse,
            Self::CacheExhausted => FaultKind::Io,
            _ => FaultKind::Corrupt,
        }
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}
