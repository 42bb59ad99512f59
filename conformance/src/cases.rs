//! Images that the suite runs on.

use drystone_core::graph::open::{DriverSpec, NodeSpec, OpenMode};
use drystone_core::intent::LeafKind;

use crate::disk::{DiscardEffect, DiskConfig};
use crate::model::Rules;
use crate::scenario::Mix;
use crate::sparse::Sparse;
use crate::suite::{Case, Image, Stage};
use crate::world::World;

/// Opened for writing, with everything else as it is by default.
pub const WRITABLE: OpenMode = OpenMode {
    writable: true,
    direct: false,
    no_flush: false,
    discard: true,
    aio: drystone_core::intent::Aio::Auto,
    force_share: false,
    locking: true,
};

/// A raw image: a window on a file or device.
#[derive(Clone, Debug)]
pub struct RawCase {
    /// What the file is like.
    pub config: DiskConfig,
    /// Whether it is opened for direct I/O, with the alignments of `config`.
    pub direct: bool,
    /// First byte of the window.
    pub offset: u64,
    /// Bytes of the window; to the end of the file, without.
    pub size: Option<u64>,
    /// Bytes of the file.
    pub file_len: u64,
}

impl Default for RawCase {
    fn default() -> Self {
        Self { config: DiskConfig::default(), direct: false, offset: 0, size: None, file_len: 256 * 1024 }
    }
}

impl RawCase {
    /// Direct I/O with this alignment.
    pub fn direct(align: u32) -> Self {
        let config = DiskConfig { request_align: align, memory_align: align, ..DiskConfig::default() };
        Self { config, direct: true, ..Self::default() }
    }

    /// The same with sectors of this size, which a crash does not tear.
    #[must_use]
    pub fn sectors(mut self, sector: u64) -> Self {
        self.config.sector = sector;
        self
    }

    /// A device that zeros and discards only whole sectors, and promises nothing about what it discards.
    pub fn device() -> Self {
        let direct = Self::direct(512);
        let config = DiskConfig {
            kind: LeafKind::HostDevice,
            zeroes_align: Some(512),
            discard: DiscardEffect::Anything,
            copies: false,
            ..direct.config
        };
        Self { config, ..direct }
    }

    /// A file system that can neither zero nor discard, and takes a few blocks at a time.
    pub fn plain(transfer_max: u32) -> Self {
        let direct = Self::direct(512);
        let config = DiskConfig {
            zeroes_align: None,
            discard: DiscardEffect::Unsupported,
            transfer_max,
            ..direct.config
        };
        Self { config, ..direct }
    }

    /// The same through a window.
    #[must_use]
    pub fn window(self, offset: u64, size: Option<u64>) -> Self {
        Self { offset, size, ..self }
    }

    /// The case for the suite.
    pub fn case(self, name: &str) -> Case {
        let len = self.size.unwrap_or(self.file_len - self.offset);
        let (start, end) = (self.offset, self.offset + len);
        let before = stones(self.file_len);
        let setup = move |world: &mut World| {
            let path = world.path("disk.raw");
            let file = Sparse::from_bytes(&stones(self.file_len));
            let content = Sparse::from_bytes(&file.bytes(start, len as usize));
            world.add_disk(&path, self.config.clone(), file);
            let mode = OpenMode { direct: self.direct, ..WRITABLE };
            let file = Box::new(NodeSpec::file(path, mode));
            let driver = DriverSpec::Raw { file, offset: self.offset, size: self.size };
            let spec = NodeSpec { node_name: Some("disk0".into()), mode, driver };
            let mix = Mix { granule: u64::from(self.config.request_align), ..Mix::default() };
            Image { spec, content, rules: self.rules(), mix }
        };
        Case::new(name, setup).verified(move |world: &World, stage, content: Option<&Sparse>| {
            let file = world.export(&world.path("disk.raw"));
            let (start, end) = (start as usize, end as usize);
            if file[..start] != before[..start] || file[end..] != before[end..] {
                return Err("bytes outside the window changed".into());
            }
            match (stage, content) {
                (Stage::Closed, Some(content)) if content.to_vec() != file[start..end] => {
                    Err("the file differs from what its guest reads".into())
                }
                _ => Ok(()),
            }
        })
    }

    fn rules(&self) -> Rules {
        let split = self.config.transfer_max > 0;
        let shifted = !self.offset.is_multiple_of(self.config.sector);
        let crash_sector = (!split && !shifted).then_some(self.config.sector);
        let discard_garbage = self.config.discard == DiscardEffect::Anything;
        Rules { discard_garbage, crash_sector, ..Rules::default() }
    }
}

/// Bytes that differ from place to place, with a hole in the middle.
pub fn stones(len: u64) -> Vec<u8> {
    let hole = len / 2..len / 2 + len / 8;
    let byte = |at: u64| {
        if hole.contains(&at) { 0 } else { (at / 512).wrapping_mul(37).wrapping_add(at % 11) as u8 }
    };
    (0..len).map(byte).collect()
}

/// Raw images of all kinds.
pub fn raw() -> Vec<Case> {
    vec![
        RawCase::default().case("raw, buffered"),
        RawCase::direct(512).case("raw, direct 512"),
        RawCase::direct(4096).case("raw, direct 4096"),
        RawCase::direct(4096).sectors(4096).case("raw, direct 4096, sectors of 4096"),
        RawCase::default().window(1000, Some(100_001)).case("raw window, buffered"),
        RawCase::direct(512).window(1024, Some(128 * 1024)).case("raw window, direct 512"),
        RawCase::direct(4096).window(1000, Some(100_001)).case("raw window off blocks, direct 4096"),
        RawCase::direct(4096).window(8192, None).case("raw window to the end, direct 4096"),
        RawCase::device().case("device"),
        RawCase::plain(0).case("raw without zeros and discards"),
        RawCase::plain(4096).case("raw, 4096 bytes a transfer"),
    ]
}
