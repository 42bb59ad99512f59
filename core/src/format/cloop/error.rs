//! What can be wrong with a cloop image.

use crate::error::{FaultKind, FormatError};

/// An error of the cloop format. Texts that scripts know from `qemu-img` begin with its words.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the message beside each variant says what its fields are")]
pub enum CloopError {
    #[error("the cloop header needs 136 bytes, the file has {len}")]
    HeaderTooShort { len: u64 },
    #[error("no cloop image: the script at byte 0 does not begin as it must")]
    NotCloop,
    #[error("block_size cannot be zero (at byte 128)")]
    NoBlockSize,
    #[error("block_size {found} must be a multiple of 512 (at byte 128)")]
    BlockSize { found: u32 },
    #[error("block_size {found} must be {max_mib} MB or less (at byte 128)")]
    BlockTooLarge { found: u32, max_mib: u32 },
    #[error("the table of {blocks} offsets at byte 136 ends at {end}, behind the end of the file at {len}")]
    Table { blocks: u32, end: u64, len: u64 },
    #[error(
        "offsets not monotonically increasing at index {index}, image file is corrupt ({found}, after {before})"
    )]
    NotIncreasing { index: u64, found: u64, before: u64 },
    #[error(
        "invalid compressed block size at index {index}, image file is corrupt ({found} bytes, at most {max})"
    )]
    BlockLen { index: u64, found: u64, max: u64 },
    #[error("block {index} at {at} ends behind the end of the file at {len}")]
    BlockOutside { index: u64, at: u64, len: u64 },
    #[error("block {index} of {len} bytes at {at} does not unpack to {plain_len} bytes")]
    Damaged { index: u64, at: u64, len: u64, plain_len: u32 },
}

impl FormatError for CloopError {
    fn kind(&self) -> FaultKind {
        match self {
            Self::BlockTooLarge { .. } => FaultKind::Unsupported,
            _ => FaultKind::Corrupt,
        }
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}
