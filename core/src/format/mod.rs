//! Image formats, one folder each, with the same file names in every folder. What several of them need is here.

mod cache;
mod check;
mod facts;
mod image;
mod loads;
pub mod luks;
pub mod qcow;
pub mod qcow2;
pub mod qed;
pub mod raw;
mod two_level;
pub mod vdi;
pub mod vhdx;
pub mod vmdk;
pub mod vpc;

pub use check::{CheckReport, check};
pub use facts::{Backing, ImageFacts, OutsideName};
pub use image::ImageFormat;

/// A byte of the file that holds the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostOffset(pub u64);

/// A byte of the disk that the guest sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuestOffset(pub u64);
