//! The formats whose image is one node above a file, with what each needs to be recognised and opened: a row each.
//!
//! raw and qcow2 have [`DriverSpec`](crate::graph::open::DriverSpec)s of their own, for what only they can be told.

use std::rc::Rc;

use super::{vdi, vhdx, vpc};
use crate::error::Result;
use crate::graph::driver::Driver;
use crate::graph::opening::Opening;

/// A format, and the options that it is opened with.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ImageFormat {
    /// VirtualBox's disk images.
    Vdi,
    /// Hyper-V's disk images.
    Vhdx,
    /// Virtual PC's disk images.
    Vpc {
        /// Which of two sizes counts.
        size: vpc::SizeRule,
    },
}

impl ImageFormat {
    /// QEMU's name of the format.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Vdi => "vdi",
            Self::Vhdx => "vhdx",
            Self::Vpc { .. } => "vpc",
        }
    }

    /// Tells the format by a file's first bytes, up to 2048 of them.
    pub fn probe(head: &[u8]) -> Option<Self> {
        let vpc = Self::Vpc { size: vpc::SizeRule::ByCreator };
        let known = [(vdi::probe(head), Self::Vdi), (vhdx::probe(head), Self::Vhdx), (vpc::probe(head), vpc)];
        known.into_iter().find(|(is_it, _)| *is_it).map(|(_, format)| format)
    }

    /// Whether an image can have a backing file.
    pub const fn has_backing(&self) -> bool {
        match self {
            Self::Vdi => false,
            Self::Vhdx | Self::Vpc { .. } => true,
        }
    }

    /// Opens an image whose file is open.
    pub(crate) async fn open(&self, opening: &Opening<'_>) -> Result<Rc<dyn Driver>> {
        Ok(match self {
            Self::Vdi => Rc::new(vdi::open(opening.io, opening.file).await?),
            Self::Vhdx => Rc::new(vhdx::open(opening).await?),
            Self::Vpc { size } => vpc::open(opening, *size).await?,
        })
    }
}
