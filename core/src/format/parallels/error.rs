//! What can be wrong with a Parallels image, or with what is asked of one.

use crate::error::{FaultKind, FormatError};

/// An error of the Parallels format. Texts that scripts know from `qemu-img` begin with its words.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the message beside each variant says what its fields are")]
pub enum ParallelsError {
    #[error("Image not in Parallels format (the header needs 64 bytes, the file has {len})")]
    HeaderTooShort { len: u64 },
    #[error("Image not in Parallels format (no known magic at byte 0)")]
    NotParallels,
    #[error("Image not in Parallels format (version {found} at byte 16, expected 2)")]
    Version { found: u32 },
    #[error("Invalid image: Zero sectors per track (at byte 28)")]
    NoClusterSize,
    #[error("Invalid image: Too big cluster ({found} sectors at byte 28, at most {max})")]
    ClusterTooLarge { found: u32, max: u32 },
    #[error("Catalog too large ({found} entries at byte 32, at most {max})")]
    BatTooLarge { found: u32, max: u32 },
    #[error("the BAT of {entries} entries ends at {end}, behind the end of the file at {len}")]
    BatOutside { entries: u32, end: u64, len: u64 },
    #[error(
        "the disk of {sectors} sectors at byte 36 needs more than the BAT's {entries} clusters of {cluster_sectors} sectors"
    )]
    BatTooShort { entries: u32, cluster_sectors: u32, sectors: u64 },
    #[error(
        "BAT entry {cluster} leads to byte {host} of the file, which holds data from {start} to {end}; run `check -r all`"
    )]
    Entry { cluster: u64, host: u64, start: u64, end: u64 },
    #[error("the file holds {found} clusters, more than {max}: too many to keep account of")]
    TooManyClusters { found: u64, max: u64 },
    #[error("the image is full: no BAT entry can name a place behind byte {end}")]
    Full { end: u64 },
    #[error("all slices of the BAT in memory hold changes that could not be written")]
    CacheExhausted,
    #[error("Image size is too large for this cluster size")]
    SizeForCluster,
    #[error("Cluster size is too large")]
    CreateClusterTooLarge,
    #[error("the format extension at {at}: {problem}")]
    Extension { at: u64, problem: &'static str },
    #[error(
        "Wrong parallels Format Extension magic: {found:#x}, expected: 0xab234cef23dcea87 (at byte {at})"
    )]
    ExtensionMagic { at: u64, found: u64 },
    #[error("a dirty bitmap cannot be added: {problem}")]
    Bitmap { problem: &'static str },
    #[error(
        "the image has the feature {magic:#x}, which must be understood to write to it; open it for reading only"
    )]
    NecessaryFeature { magic: u64 },
}

impl FormatError for ParallelsError {
    fn kind(&self) -> FaultKind {
        match self {
            Self::SizeForCluster | Self::CreateClusterTooLarge | Self::Full { .. } | Self::Bitmap { .. } => {
                FaultKind::Misuse
            }
            Self::CacheExhausted => FaultKind::Io,
            Self::Version { .. }
            | Self::ClusterTooLarge { .. }
            | Self::BatTooLarge { .. }
            | Self::TooManyClusters { .. }
            | Self::NecessaryFeature { .. } => FaultKind::Unsupported,
            _ => FaultKind::Corrupt,
        }
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}
