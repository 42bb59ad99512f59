//! The formats whose image is one node above a file, with what each needs to be recognised and opened: a row each.
//!
//! raw and qcow2 have [`DriverSpec`](crate::graph::open::DriverSpec)s of their own, for what only they can be told.

use std::rc::Rc;

use super::luks::LuksOptions;
use super::{luks, vdi};
use crate::error::Result;
use crate::graph::driver::Driver;
use crate::graph::open::NodeSpec;
use crate::graph::opening::Opening;

/// A format, and the options that it is opened with.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ImageFormat {
    /// Encrypted volumes of Linux.
    Luks(LuksOptions),
    /// VirtualBox's disk images.
    Vdi,
}

impl ImageFormat {
    /// QEMU's name of the format.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Luks(_) => "luks",
            Self::Vdi => "vdi",
        }
    }

    /// Tells the format by a file's first bytes, up to 2048 of them.
    pub fn probe(head: &[u8]) -> Option<Self> {
        let luks = || luks::probe(head).then(|| Self::Luks(LuksOptions::default()));
        vdi::probe(head).then_some(Self::Vdi).or_else(luks)
    }

    /// Whether an image can have a backing file.
    pub const fn has_backing(&self) -> bool {
        match self {
            Self::Luks(_) | Self::Vdi => false,
        }
    }

    /// What is given to it beside its file.
    pub(crate) fn children(&self) -> impl Iterator<Item = &NodeSpec> {
        let header = match self {
            Self::Luks(options) => options.header.as_deref(),
            Self::Vdi => None,
        };
        header.into_iter()
    }

    /// Opens an image whose file is open.
    pub(crate) async fn open(&self, opening: &Opening<'_>) -> Result<Rc<dyn Driver>> {
        Ok(match self {
            Self::Luks(options) => Rc::new(luks::open(opening, options).await?),
            Self::Vdi => Rc::new(vdi::open(opening.io, opening.file).await?),
        })
    }
}
