//! The formats whose image is one node above a file, with what each needs to be recognised and opened: a row each.
//!
//! raw and qcow2 have [`DriverSpec`](crate::graph::open::DriverSpec)s of their own, for what only they can be told.

use std::rc::Rc;

use super::luks::LuksOptions;
use super::{luks, qcow, qed, vdi, vhdx, vmdk, vpc};
use crate::error::Result;
use crate::graph::driver::Driver;
use crate::graph::opening::Opening;

/// A format, and the options that it is opened with.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ImageFormat {
    /// Encrypted volumes of Linux.
    Luks(LuksOptions),
    /// The format before qcow2.
    Qcow,
    /// QEMU's enhanced disk format.
    Qed,
    /// VirtualBox's disk images.
    Vdi,
    /// VMware's disk images.
    Vmdk,
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
            Self::Luks(_) => "luks",
            Self::Qcow => "qcow",
            Self::Qed => "qed",
            Self::Vdi => "vdi",
            Self::Vmdk => "vmdk",
            Self::Vhdx => "vhdx",
            Self::Vpc { .. } => "vpc",
        }
    }

    /// Tells the format by a file's first bytes, up to 2048 of them.
    pub fn probe(head: &[u8]) -> Option<Self> {
        /// Tells the format, and names it.
        type Probe = (fn(&[u8]) -> bool, fn() -> ImageFormat);
        const PROBES: [Probe; 7] = [
            (luks::probe, || ImageFormat::Luks(LuksOptions::default())),
            (qcow::probe, || ImageFormat::Qcow),
            (qed::probe, || ImageFormat::Qed),
            (vdi::probe, || ImageFormat::Vdi),
            (vhdx::probe, || ImageFormat::Vhdx),
            (vmdk::probe, || ImageFormat::Vmdk),
            (vpc::probe, || ImageFormat::Vpc { size: vpc::SizeRule::ByCreator }),
        ];
        PROBES.iter().find(|(probe, _)| probe(head)).map(|(_, format)| format())
    }

    /// Whether an image can have a backing file.
    pub const fn has_backing(&self) -> bool {
        match self {
            Self::Luks(_) | Self::Vdi => false,
            Self::Qcow | Self::Qed | Self::Vhdx | Self::Vmdk | Self::Vpc { .. } => true,
        }
    }

    /// Opens an image whose file is open.
    pub(crate) async fn open(&self, opening: &Opening<'_>) -> Result<Rc<dyn Driver>> {
        Ok(match self {
            Self::Luks(options) => Rc::new(luks::open(opening, options).await?),
            Self::Qcow => Rc::new(qcow::open(opening).await?),
            Self::Qed => Rc::new(qed::open(opening).await?),
            Self::Vdi => Rc::new(vdi::open(opening.io, opening.file).await?),
            Self::Vmdk => Rc::new(vmdk::open(opening).await?),
            Self::Vhdx => Rc::new(vhdx::open(opening).await?),
            Self::Vpc { size } => vpc::open(opening, *size).await?,
        })
    }
}
