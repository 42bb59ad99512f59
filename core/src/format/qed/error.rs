//! What can be wrong with a QED image, or with what is asked of one.

use crate::error::{FaultKind, FormatError};
use crate::format::two_level::TableFault;

/// An error of the QED format. Texts that scripts know from `qemu-img` begin with its words.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the message beside each variant says what its fields are")]
pub enum QedError {
    #[error("Image not in QED format (signature {found:#010x} at byte 0, expected 0x00444551)")]
    NotQed { found: u32 },
    #[error("the QED header needs 64 bytes, the file has {len}")]
    HeaderTooShort { len: u64 },
    #[error("QED cluster size is invalid: {found}, expected a power of two from 4096 to 67108864")]
    ClusterSize { found: u32 },
    #[error("QED table size is invalid: {found} clusters, expected a power of two from 1 to 16")]
    TableSize { found: u32 },
    #[error("QED image size is invalid: {found} bytes, expected whole sectors up to {max}")]
    Size { found: u64, max: u64 },
    #[error(
        "QED table offset is invalid: the L1 table at {at} of {len} bytes, behind a header of {header_len}, in a file of \
             {file_len}"
    )]
    TablePlace { at: u64, len: u64, header_len: u64, file_len: u64 },
    #[error("Unsupported QED features: {found:x}")]
    Features { found: u64 },
    #[error("the name of the backing file at {at} of {len} bytes does not lie in the header of {header_len}")]
    BackingPlace { at: u32, len: u32, header_len: u64 },
    #[error("the name of the backing file is no UTF-8")]
    BackingName,
    #[error("the name of the backing file has {len} bytes, the header has room for {max}")]
    BackingLen { len: u64, max: u64 },
    #[error(
        "L1 entry {index} names an L2 table at {at}, which no table can be at in a file of {end} bytes; run `check`"
    )]
    Table { index: u64, at: u64, end: u64 },
    #[error(
        "L2 entry of cluster {cluster}: {found:#x}, which no cluster can be at in a file of {end} bytes; run `check`"
    )]
    Cluster { cluster: u64, found: u64, end: u64 },
    #[error(
        "the image was not closed in order, and {corruptions} errors are in it that no repair takes away"
    )]
    Broken { corruptions: u64 },
    #[error("Shrinking images is currently not supported")]
    Shrinks,
    #[error("QED cluster size must be within range [4096, 67108864] and power of 2")]
    CreateClusterSize,
    #[error("QED table size must be within range [1, 16] and power of 2")]
    CreateTableSize,
    #[error("QED image size must be a non-zero multiple of cluster size and less than {max} bytes")]
    CreateSize { max: u64 },
}

impl From<TableFault> for QedError {
    fn from(TableFault { index, at, end }: TableFault) -> Self {
        Self::Table { index, at, end }
    }
}

impl FormatError for QedError {
    fn kind(&self) -> FaultKind {
        match self {
            Self::Features { .. } | Self::Shrinks => FaultKind::Unsupported,
            Self::CreateClusterSize
            | Self::CreateTableSize
            | Self::CreateSize { .. }
            | Self::BackingLen { .. } => FaultKind::Misuse,
            _ => FaultKind::Corrupt,
        }
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}
