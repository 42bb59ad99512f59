//! What `compare` shows.

use crate::message::Failure;

/// How two images compare.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// They have the same content; bytes that only the longer one has are zeroes.
    Identical,
    /// In strict mode: their sizes differ.
    SizesDiffer,
    /// The first byte that differs.
    ContentDiffers {
        /// Its offset.
        offset: u64,
    },
    /// In strict mode: the start of the first stretch that is not allocated alike.
    ///
    /// In the reference, a stretch that ends its image differs from one that does not (10.0.2: a file of 1 MiB
    /// without data against one with data at 128 KiB differ at 0).
    StatusDiffers {
        /// Its offset.
        offset: u64,
    },
}

/// What is said, on the output, when the sizes differ outside strict mode: after what both images have was found to be
/// the same, and before the rest of the longer one is looked at.
pub const SIZE_WARNING: &str = "Warning: Image size mismatch!\n";

/// Why a comparison did not come to an end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CompareError {
    /// What is allocated could not be found out.
    Status {
        /// The image.
        filename: String,
        /// Why.
        error: String,
    },
    /// A read failed.
    Read {
        /// Where.
        offset: u64,
        /// The image.
        filename: String,
        /// The host's text for the errno, and below it what is known besides.
        error: String,
    },
}

impl Comparison {
    /// What is said on the output.
    #[must_use]
    pub fn text(&self) -> String {
        match self {
            Self::Identical => "Images are identical.\n".into(),
            Self::SizesDiffer => "Strict mode: Image size mismatch!\n".into(),
            Self::ContentDiffers { offset } => format!("Content mismatch at offset {offset}!\n"),
            Self::StatusDiffers { offset } => {
                format!("Strict mode: Offset {offset} block status mismatch!\n")
            }
        }
    }

    /// The exit code.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        u8::from(*self != Self::Identical)
    }
}

impl CompareError {
    /// The failure of the command.
    #[must_use]
    pub fn into_failure(self) -> Failure {
        match self {
            Self::Status { filename, error } => {
                Failure::new(format!("Sector allocation test failed for {filename}\n{error}")).with_code(3)
            }
            Self::Read { offset, filename, error } => {
                Failure::new(format!("Error while reading offset {offset} of {filename}: {error}"))
                    .with_code(4)
            }
        }
    }
}
