//! Image formats, one folder each, with the same file names in every folder. What several of them need is here.

mod bits;
pub mod bochs;
mod cache;
mod check;
mod chunks;
pub mod cloop;
pub mod dmg;
mod facts;
mod image;
mod lengthening;
mod loads;
pub mod luks;
pub mod parallels;
pub mod qcow;
pub mod qcow2;
pub mod qed;
pub mod raw;
mod sector_bits;
mod two_level;
pub mod vdi;
pub mod vhdx;
pub mod vmdk;
pub mod vpc;

pub use check::{CheckReport, check, repair};
pub use facts::{Backing, ImageFacts, OutsideName};
pub use image::ImageFormat;

use crate::error::{Error, Result};
use crate::graph::opening::Opening;

/// A byte of the file that holds the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostOffset(pub u64);

/// A byte of the disk that the guest sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuestOffset(pub u64);

/// Refuses to open an image of a format that is only read for anything else, in the words of the reference.
fn read_only(opening: &Opening<'_>) -> Result<()> {
    match opening.writable() {
        true => Err(Box::new(Error::Options("Image is read-only".into()))),
        false => Ok(()),
    }
}
