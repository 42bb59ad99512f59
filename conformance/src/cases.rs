//! Images that the suite runs on.

mod luks;
mod read_only;
mod two_level;
mod vmdk;

use drystone_core::graph::open::{DriverSpec, NodeSpec, OpenMode};
use drystone_core::graph::options::from_filename;
use drystone_core::intent::LeafKind;

use crate::disk::{DiscardEffect, DiskConfig};
use crate::model::Rules;
use crate::qemu::Recipe;
use crate::scenario::Mix;
use crate::sparse::Sparse;
use crate::suite::{Case, Image, Stage};
use crate::world::World;
pub use luks::luks_cases;
pub use read_only::read_only_cases;
pub use two_level::{two_level, two_level_cases};
pub use vmdk::{vmdk, vmdk_cases};

/// Opened for writing, with everything else as it is by default.
pub const WRITABLE: OpenMode = OpenMode {
    writable: true,
    direct: false,
    no_flush: false,
    write_through: false,
    discard: true,
    aio: drystone_core::intent::Aio::Auto,
    force_share: false,
    locking: true,
    names: drystone_core::graph::open::ImageNames::Follow,
    takes: drystone_core::intent::Permissions::RESIZE,
    denies: drystone_core::intent::Permissions::NONE,
    commits_down: 0,
    detect_zeroes: drystone_core::graph::DetectZeroes::Off,
};

/// Bytes of a block of direct I/O at the most.
const BLOCK_MAX: usize = 4096;

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
        let blocks = if self.direct { BLOCK_MAX } else { 0 };
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
            // Direct I/O writes whole blocks, so that the last one may be filled up with zeros.
            let (kept, added) = file[end..].split_at((before.len() - end).min(file.len() - end));
            let filled = added.len() <= blocks && added.iter().all(|byte| *byte == 0);
            if file[..start] != before[..start] || kept != &before[end..] || !filled {
                return Err("bytes outside the window changed".into());
            }
            match (stage, content) {
                (Stage::Closed | Stage::Recovered, Some(content)) if content.to_vec() != file[start..end] => {
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

/// Raw images that are the same on the simulator and on files of any host.
pub fn raw_files() -> Vec<Case> {
    vec![
        RawCase::default().case("raw, buffered"),
        RawCase::direct(512).case("raw, direct"),
        RawCase { file_len: 200_001, ..RawCase::default() }.case("raw, odd length"),
        RawCase { file_len: 200_001, ..RawCase::direct(512) }.case("raw, odd length, direct"),
        RawCase::default().window(1000, Some(100_001)).case("raw window, buffered"),
        RawCase::direct(4096).window(1000, Some(100_001)).case("raw window off blocks, direct"),
        RawCase::direct(512).window(8192, None).case("raw window to the end, direct"),
    ]
}

/// Ways to make qcow2 images, for [`Recipe::case`]: cluster sizes, backing chains, subclusters, compressed and
/// shared clusters, refcount widths, external data.
pub fn qcow2() -> Vec<Recipe> {
    let recipe = |&(name, granule, commands): &(&str, u64, &[&str])| {
        let mut recipe = Recipe::new(name, "qcow2", "top.qcow2", commands);
        recipe.mix.granule = granule;
        recipe.mix.compressed = true;
        // Metadata that could not be written is kept, and the next flush writes it.
        recipe.rules.sticky_flush = false;
        recipe.rules.discards_on_its_own = true;
        recipe.mix.len_max = (4 * granule).max(16 * 1024);
        // Refcounts that are written lazily are wrong after a crash, until the image is opened again.
        recipe.check_crashed = !commands.iter().any(|command| command.contains("lazy_refcounts=on"));
        recipe
    };
    QCOW2.iter().map(recipe).collect()
}

/// Ways to make VDI images.
pub fn vdi() -> Vec<Recipe> {
    let recipe = |&(name, commands): &(&str, &[&str])| {
        let mut recipe = Recipe::new(name, "vdi", "top.vdi", commands);
        recipe.mix.granule = 65536;
        recipe.mix.len_max = 256 << 10;
        // Each new block is 1 MiB, which a simulated disk moves by hand.
        recipe.mix.steps = 30;
        // Metadata that could not be written is kept, and the next flush writes it.
        recipe.rules.sticky_flush = false;
        recipe
    };
    VDI.iter().map(recipe).collect()
}

/// Name, commands.
const VDI: &[(&str, &[&str])] = &[
    ("vdi, empty", &["qemu-img create -f vdi top.vdi 3M"]),
    (
        "vdi, filled",
        &[
            "qemu-img create -f vdi top.vdi 5M",
            "qemu-io -f vdi -c 'write -P 17 10k 150k' -c 'write -P 18 3M 2M' -c 'write -P 19 2M 1k' top.vdi",
        ],
    ),
    ("vdi, static", &["qemu-img create -f vdi -o static=on top.vdi 3M"]),
];

/// Ways to make Parallels images: large and small clusters, some that are no power of two, and the older magic.
pub fn parallels() -> Vec<Recipe> {
    let recipe = |&(name, granule, commands): &(&str, u64, &[&str])| {
        let mut recipe = Recipe::new(name, "parallels", "top.par", commands);
        recipe.mix.granule = granule;
        recipe.mix.len_max = (4 * granule).clamp(16 << 10, 256 << 10);
        // Metadata that could not be written is kept, and the next flush writes it.
        recipe.rules.sticky_flush = false;
        recipe.rules.discards_on_its_own = true;
        recipe
    };
    PARALLELS.iter().map(recipe).collect()
}

/// Name, bytes of the unit that requests prefer, commands.
const PARALLELS: &[(&str, u64, &[&str])] = &[
    ("parallels, empty", 4096, &["qemu-img create -f parallels -o cluster_size=4k top.par 1M"]),
    (
        "parallels, filled",
        65536,
        &[
            "qemu-img create -f parallels -o cluster_size=64k top.par 1000k",
            "qemu-io -f parallels -c 'write -P 17 10k 150k' -c 'write -P 18 400k 90k' -c 'discard 128k 64k' top.par",
        ],
    ),
    (
        "parallels, clusters of 6 sectors",
        3072,
        &[
            "qemu-img create -f parallels -o cluster_size=3k top.par 700k",
            "qemu-io -f parallels -c 'write -P 17 10k 150k' -c 'write -P 18 400k 90k' top.par",
        ],
    ),
    // The magic of the older format, whose BAT counts sectors; the reference makes none, but reads and writes them.
    (
        "parallels, BAT of sectors",
        4096,
        &[
            "qemu-img create -f parallels -o cluster_size=4k top.par 512k",
            "sh -c 'printf WithoutFreeSpace | dd of=top.par conv=notrunc status=none'",
            "qemu-io -f parallels -c 'write -P 17 10k 50k' top.par",
        ],
    ),
];

/// The images of [`parallels`], made and opened as Parallels.
///
/// # Errors
/// When QEMU's tools are not there, or fail.
pub fn parallels_cases() -> Result<Vec<Case>, String> {
    parallels().into_iter().map(case_of).collect()
}

/// The images of [`qcow2`], made and opened as qcow2.
///
/// # Errors
/// When QEMU's tools are not there, or fail.
pub fn qcow2_cases() -> Result<Vec<Case>, String> {
    qcow2().into_iter().map(case_of).collect()
}

/// The images of [`vdi`], made and opened as VDI.
///
/// # Errors
/// When QEMU's tools are not there, or fail.
pub fn vdi_cases() -> Result<Vec<Case>, String> {
    vdi().into_iter().map(case_of).collect()
}

/// The image of a recipe, made and opened in its format.
///
/// # Errors
/// When QEMU's tools are not there, or fail.
pub fn case_of(recipe: Recipe) -> Result<Case, String> {
    let format = recipe.format.clone();
    let spec = move |_: &World, path: &str| {
        let spec = from_filename(path, Some(&format), WRITABLE).expect("a path");
        NodeSpec { node_name: Some("disk0".into()), ..spec }
    };
    let name = recipe.name.clone();
    recipe.case(spec).map_err(|report| format!("{name}: {report}"))
}

const FILLED: &str =
    "qemu-io -f qcow2 -c 'write -P 17 10k 150k' -c 'write -P 18 400k 90k' -c 'write -z 440k 20k' top.qcow2";

/// Name, bytes of the unit that requests prefer, commands.
const QCOW2: &[(&str, u64, &[&str])] = &[
    ("qcow2, empty", 65536, &["qemu-img create -f qcow2 top.qcow2 1M"]),
    ("qcow2, filled", 65536, &["qemu-img create -f qcow2 top.qcow2 1000001", FILLED]),
    ("qcow2, clusters of 512", 512, &["qemu-img create -f qcow2 -o cluster_size=512 top.qcow2 1M", FILLED]),
    (
        "qcow2, clusters of 4096, refcounts of 1 bit",
        4096,
        &["qemu-img create -f qcow2 -o cluster_size=4k,refcount_bits=1 top.qcow2 1M", FILLED],
    ),
    (
        "qcow2, refcounts of 64 bits",
        4096,
        &["qemu-img create -f qcow2 -o cluster_size=4k,refcount_bits=64 top.qcow2 1M", FILLED],
    ),
    (
        "qcow2, version 2",
        4096,
        &[
            "qemu-img create -f qcow2 -o compat=0.10,cluster_size=4k top.qcow2 1M",
            "qemu-io -f qcow2 -c 'write -P 17 10k 150k' top.qcow2",
        ],
    ),
    (
        "qcow2, lazy refcounts",
        4096,
        &["qemu-img create -f qcow2 -o lazy_refcounts=on,cluster_size=4k top.qcow2 1M", FILLED],
    ),
    (
        "qcow2, subclusters",
        16384,
        &["qemu-img create -f qcow2 -o extended_l2=on,cluster_size=16k top.qcow2 1M", FILLED],
    ),
    (
        "qcow2, preallocated",
        4096,
        &["qemu-img create -f qcow2 -o preallocation=metadata,cluster_size=4k top.qcow2 1M", FILLED],
    ),
    (
        "qcow2, external data",
        4096,
        &["qemu-img create -f qcow2 -o data_file=data.raw,cluster_size=4k top.qcow2 1M", FILLED],
    ),
    (
        "qcow2, raw external data",
        4096,
        &[
            "qemu-img create -f qcow2 -o data_file=data.raw,data_file_raw=on,cluster_size=4k top.qcow2 1M",
            FILLED,
        ],
    ),
    (
        "qcow2, compressed",
        4096,
        &[
            "qemu-img create -f raw flat.raw 1M",
            "qemu-io -f raw -c 'write -P 17 10k 300k' -c 'write -P 18 500k 90k' flat.raw",
            "qemu-img convert -c -f raw -O qcow2 -o cluster_size=4k flat.raw top.qcow2",
            "rm flat.raw",
        ],
    ),
    (
        "qcow2, compressed by zstd",
        65536,
        &[
            "qemu-img create -f raw flat.raw 1M",
            "qemu-io -f raw -c 'write -P 17 10k 300k' -c 'write -P 18 500k 90k' flat.raw",
            "qemu-img convert -c -f raw -O qcow2 -o compression_type=zstd flat.raw top.qcow2",
            "rm flat.raw",
        ],
    ),
    (
        "qcow2, shared with a snapshot",
        4096,
        &[
            "qemu-img create -f qcow2 -o cluster_size=4k top.qcow2 1M",
            FILLED,
            "qemu-img snapshot -c before top.qcow2",
            "qemu-io -f qcow2 -c 'write -P 19 100k 30k' top.qcow2",
        ],
    ),
    (
        "qcow2, on a shorter raw file",
        4096,
        &[
            "qemu-img create -f raw base.raw 300001",
            "qemu-io -f raw -c 'write -P 16 0 300000' base.raw",
            "qemu-img create -f qcow2 -o cluster_size=4k -b base.raw -F raw top.qcow2 1M",
            "qemu-io -f qcow2 -c 'write -P 17 10k 15k' -c 'write -z 100k 20k' top.qcow2",
        ],
    ),
    (
        "qcow2, third of a chain",
        16384,
        &[
            "qemu-img create -f qcow2 -o cluster_size=64k base.qcow2 2M",
            "qemu-io -f qcow2 -c 'write -P 15 0 700k' base.qcow2",
            "qemu-img create -f qcow2 -o cluster_size=512 -b base.qcow2 -F qcow2 middle.qcow2 600k",
            "qemu-io -f qcow2 -c 'write -P 16 100k 100k' -c 'write -z 150k 10k' middle.qcow2",
            "qemu-img create -f qcow2 -o extended_l2=on,cluster_size=16k -b middle.qcow2 -F qcow2 top.qcow2 1M",
            "qemu-io -f qcow2 -c 'write -P 17 120k 7k' -c 'discard 180k 5k' top.qcow2",
        ],
    ),
];
