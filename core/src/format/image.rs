//! The formats whose image is one node above a file, with what each needs to be recognised and opened: a row each.
//!
//! raw and qcow2 have [`DriverSpec`](crate::graph::open::DriverSpec)s of their own, for what only they can be told.

use std::rc::Rc;

use super::luks::LuksOptions;
use super::parallels::{self, ParallelsOptions};
use super::{bochs, cloop, dmg, luks, qcow, qed, vdi, vhdx, vmdk, vpc};
use crate::error::Result;
use crate::graph::driver::Driver;
use crate::graph::open::NodeSpec;
use crate::graph::opening::Opening;

/// A format, and the options that it is opened with.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ImageFormat {
    /// The growing images of Bochs, to be read.
    Bochs,
    /// Disks compressed by block, to be read.
    Cloop,
    /// macOS's disk images, to be read.
    Dmg,
    /// The expanding images of Parallels.
    Parallels(ParallelsOptions),
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
            Self::Bochs => "bochs",
            Self::Cloop => "cloop",
            Self::Dmg => "dmg",
            Self::Parallels(_) => "parallels",
            Self::Luks(_) => "luks",
            Self::Qcow => "qcow",
            Self::Qed => "qed",
            Self::Vdi => "vdi",
            Self::Vmdk => "vmdk",
            Self::Vhdx => "vhdx",
            Self::Vpc { .. } => "vpc",
        }
    }

    /// The format of that name, with its options as they are where nothing else is said.
    pub fn named(name: &str) -> Option<Self> {
        let all = [
            Self::Bochs,
            Self::Cloop,
            Self::Dmg,
            Self::Luks(LuksOptions::default()),
            Self::Parallels(ParallelsOptions::default()),
            Self::Qcow,
            Self::Qed,
            Self::Vdi,
            Self::Vhdx,
            Self::Vmdk,
            Self::Vpc { size: vpc::SizeRule::ByCreator },
        ];
        all.into_iter().find(|format| format.name() == name)
    }

    /// Tells the format by a file's first sector.
    pub fn probe(head: &[u8]) -> Option<Self> {
        /// Tells the format, and names it.
        type Probe = (fn(&[u8]) -> bool, fn() -> ImageFormat);
        const PROBES: [Probe; 10] = [
            (bochs::probe, || ImageFormat::Bochs),
            (cloop::probe, || ImageFormat::Cloop),
            (luks::probe, || ImageFormat::Luks(LuksOptions::default())),
            (parallels::probe, || ImageFormat::Parallels(ParallelsOptions::default())),
            (qcow::probe, || ImageFormat::Qcow),
            (qed::probe, || ImageFormat::Qed),
            (vdi::probe, || ImageFormat::Vdi),
            (vhdx::probe, || ImageFormat::Vhdx),
            (vmdk::probe, || ImageFormat::Vmdk),
            (vpc::probe, || ImageFormat::Vpc { size: vpc::SizeRule::ByCreator }),
        ];
        PROBES.iter().find(|(probe, _)| probe(head)).map(|(_, format)| format())
    }

    /// Tells the format by a file's name, where its first bytes tell none.
    pub fn probe_name(name: &str) -> Option<Self> {
        dmg::probe_name(name).then_some(Self::Dmg)
    }

    /// Whether an image can have a backing file.
    pub const fn has_backing(&self) -> bool {
        match self {
            Self::Bochs | Self::Cloop | Self::Dmg | Self::Luks(_) | Self::Parallels(_) | Self::Vdi => false,
            Self::Qcow | Self::Qed | Self::Vhdx | Self::Vmdk | Self::Vpc { .. } => true,
        }
    }

    /// For `check`: what is wrong with an image is no reason to repair it as it is opened.
    pub fn for_check(&mut self) {
        if let Self::Parallels(options) = self {
            options.for_check = true;
        }
    }

    /// What is given to it beside its file.
    pub(crate) fn children(&self) -> impl Iterator<Item = &NodeSpec> {
        let header = match self {
            Self::Luks(options) => options.header.as_deref(),
            _ => None,
        };
        header.into_iter()
    }

    /// Opens an image whose file is open.
    pub(crate) async fn open(&self, opening: &Opening<'_>) -> Result<Rc<dyn Driver>> {
        Ok(match self {
            Self::Bochs => Rc::new(bochs::open(opening).await?),
            Self::Cloop => Rc::new(cloop::open(opening).await?),
            Self::Dmg => Rc::new(dmg::open(opening).await?),
            Self::Parallels(options) => Rc::new(parallels::open(opening, options).await?),
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
