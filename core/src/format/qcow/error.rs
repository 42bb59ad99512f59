//! What can be wrong with a qcow image, or with what is asked of one.

use crate::error::{FaultKind, FormatError};
use crate::format::two_level::TableFault;

/// An error of the qcow format. Texts that scripts know from `qemu-img` begin with its words.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the message beside each variant says what its fields are")]
pub enum QcowError {
    #[error("Image not in qcow format (signature {found:#010x} at byte 0, expected 0x514649fb)")]
    NotQcow { found: u32 },
    #[error("the qcow header needs 48 bytes, the file has {len}")]
    HeaderTooShort { len: u64 },
    #[error("qcow (v1) does not support qcow version {found}")]
    Version { found: u32 },
    #[error("Image size is too small (must be at least 2 bytes); header field size is {found}")]
    TooSmall { found: u64 },
    #[error("Image too large: {size} bytes need {entries} entries in the L1 table, at most {max}")]
    TooLarge { size: u64, entries: u64, max: u64 },
    #[error("Cluster size must be between 512 and 64k; header field cluster_bits is {found}")]
    ClusterBits { found: u8 },
    #[error("L2 table size must be between 512 and 64k; header field l2_bits is {found}")]
    TableBits { found: u8 },
    #[error("invalid encryption method in qcow header: {found}")]
    Crypt { found: u32 },
    #[error("the image is encrypted with AES, which is not supported for qcow images")]
    Encrypted,
    #[error("Backing file name too long: {len} bytes, at most {max}")]
    BackingLen { len: u64, max: u64 },
    #[error(
        "the name of the backing file at {at} of {len} bytes does not lie in the {file_len} bytes of the file"
    )]
    BackingPlace { at: u64, len: u64, file_len: u64 },
    #[error("the name of the backing file is no UTF-8")]
    BackingName,
    #[error(
        "the L1 table at {at} of {len} bytes does not lie behind the header in the {file_len} bytes of the file"
    )]
    TablePlace { at: u64, len: u64, file_len: u64 },
    #[error(
        "L1 entry {index} names an L2 table at {at}, of which not all lies in the {end} bytes of the file"
    )]
    Table { index: u64, at: u64, end: u64 },
    #[error(
        "L2 entry of cluster {cluster}: a cluster at {at}, which is in the metadata or behind the end at {end}"
    )]
    Cluster { cluster: u64, at: u64, end: u64 },
    #[error("cluster {cluster}, compressed at {at} in {len} bytes: {problem}")]
    Compressed { cluster: u64, at: u64, len: u64, problem: String },
    #[error("an entry has no room for {len} compressed bytes at {at}")]
    PackedPlace { at: u64, len: u64 },
    #[error("Image size is too small, cannot be zero length")]
    NoSize,
}

impl From<TableFault> for QcowError {
    fn from(TableFault { index, at, end }: TableFault) -> Self {
        Self::Table { index, at, end }
    }
}

impl FormatError for QcowError {
    fn kind(&self) -> FaultKind {
        match self {
            Self::Version { .. } | Self::Encrypted => FaultKind::Unsupported,
            Self::NoSize | Self::TooLarge { .. } | Self::PackedPlace { .. } => FaultKind::Misuse,
            _ => FaultKind::Corrupt,
        }
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}
