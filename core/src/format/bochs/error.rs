//! What can be wrong with a Bochs image.

use crate::error::{FaultKind, FormatError};

/// An error of the Bochs format. Texts that scripts know from `qemu-img` begin with its words.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the message beside each variant says what its fields are")]
pub enum BochsError {
    #[error("Image not in Bochs format (the header needs 512 bytes, the file has {len})")]
    HeaderTooShort { len: u64 },
    #[error("Image not in Bochs format (found {found:?} at byte {at})")]
    NotBochs { at: u32, found: String },
    #[error("Image not in Bochs format (version {found:#x} at byte 64, expected 0x10000 or 0x20000)")]
    Version { found: u32 },
    #[error("Catalog size is too large ({found} entries at byte 72, at most {max})")]
    CatalogTooLarge { found: u32, max: u32 },
    #[error("Extent size must be at least 512 (found {found} at byte 80)")]
    ExtentTooSmall { found: u32 },
    #[error("Extent size {found} is not a power of two (at byte 80)")]
    ExtentNoPower { found: u32 },
    #[error("Extent size {found} is too large (at byte 80, at most {max})")]
    ExtentTooLarge { found: u32, max: u32 },
    #[error(
        "Catalog size is too small for this disk size ({entries} extents of {extent_len} bytes for {size})"
    )]
    CatalogTooSmall { entries: u32, extent_len: u32, size: u64 },
    #[error("the bitmap of {found} bytes at byte 76 has no bit for each sector of an extent of {extent_len}")]
    Bitmap { found: u32, extent_len: u32 },
    #[error("the catalog of {entries} entries at {at} does not fit in front of the end of the file at {len}")]
    CatalogOutside { entries: u32, at: u64, len: u64 },
    #[error("extent {index} is number {found} in the file, at {at}, behind its end at {len}")]
    ExtentOutside { index: u64, found: u32, at: u64, len: u64 },
}

impl FormatError for BochsError {
    fn kind(&self) -> FaultKind {
        match self {
            Self::Version { .. } | Self::CatalogTooLarge { .. } | Self::ExtentTooLarge { .. } => {
                FaultKind::Unsupported
            }
            _ => FaultKind::Corrupt,
        }
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}
