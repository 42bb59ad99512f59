//! The formats whose image is one node above a file, with what each needs to be recognised and opened: a row each.
//!
//! raw and qcow2 have [`DriverSpec`](crate::graph::open::DriverSpec)s of their own, for what only they can be told.

use std::rc::Rc;

use super::{qcow, qed, vdi, vmdk};
use crate::error::Result;
use crate::graph::driver::Driver;
use crate::graph::opening::Opening;

/// A format, and the options that it is opened with.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ImageFormat {
    /// The format before qcow2.
    Qcow,
    /// QEMU's enhanced disk format.
    Qed,
    /// VirtualBox's disk images.
    Vdi,
    /// VMware's disk images.
    Vmdk,
}

impl ImageFormat {
    /// QEMU's name of the format.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Qcow => "qcow",
            Self::Qed => "qed",
            Self::Vdi => "vdi",
            Self::Vmdk => "vmdk",
        }
    }

    /// Tells the format by a file's first bytes, up to 2048 of them.
    pub fn probe(head: &[u8]) -> Option<Self> {
        let probes: [(fn(&[u8]) -> bool, Self); 4] = [
            (qcow::probe, Self::Qcow),
            (qed::probe, Self::Qed),
            (vdi::probe, Self::Vdi),
            (vmdk::probe, Self::Vmdk),
        ];
        probes.into_iter().find(|(probe, _)| probe(head)).map(|(_, format)| format)
    }

    /// Whether an image can have a backing file.
    pub const fn has_backing(&self) -> bool {
        match self {
            Self::Vdi => false,
            Self::Qcow | Self::Qed | Self::Vmdk => true,
        }
    }

    /// Opens an image whose file is open.
    pub(crate) async fn open(&self, opening: &Opening<'_>) -> Result<Rc<dyn Driver>> {
        Ok(match self {
            Self::Qcow => Rc::new(qcow::open(opening).await?),
            Self::Qed => Rc::new(qed::open(opening).await?),
            Self::Vdi => Rc::new(vdi::open(opening.io, opening.file).await?),
            Self::Vmdk => Rc::new(vmdk::open(opening).await?),
        })
    }
}
