//! Dirty bitmaps: directories and tables as an image may claim to have them.
//!
//! A few bytes can claim any number of bitmaps, each of half a gigabyte of ones. Whatever they claim, opening the image,
//! writing to it and closing it end in an answer, and take memory in proportion to the file. Start at [`bitmaps`].

use arbitrary::Unstructured;
use drystone_conformance::cases::WRITABLE;
use drystone_conformance::explore::{TOP, fingerprint, qcow2};
use drystone_conformance::meter::peak_of;
use drystone_conformance::scenario::Draw;
use drystone_conformance::sim::Sim;
use drystone_conformance::sparse::Sparse;
use drystone_conformance::trace::tell;
use drystone_conformance::world::World;
use drystone_core::buf::Buf;
use drystone_core::engine::Io;
use drystone_core::error::Result;
use drystone_core::format::qcow2::bitmap_directory::{Entry, Extension, encode, parse};
use drystone_core::format::qcow2::check::{CheckReport, check};
use drystone_core::format::qcow2::layout::{
    Autoclear, Extension as HeaderExtension, Header, HostOffset, extension_kind,
};
use drystone_core::format::qcow2::{Bitmap, CreateOptions, Qcow2};
use drystone_core::graph::Role;
use drystone_core::graph::open::{OpenMode, open};
use drystone_core::graph::options::from_filename;
use drystone_core::intent::Fua;

/// Bytes of memory that using an image may take, beside some for each byte of the file. What the simulator keeps of the
/// file and of its changes is part of it.
const MEMORY_BASE: usize = 64 << 20;
const MEMORY_PER_BYTE: usize = 24;

/// Intents that using an image may take.
const INTENTS_MAX: u64 = 200_000;

/// Bits 9 to 55 of an entry of a bitmap table: its place.
const PLACE: u64 = 0x00ff_ffff_ffff_fe00;

/// `data` as a bitmap directory and a header extension; then, deciding all of it, as an image with bitmaps.
///
/// # Panics
/// When what was parsed does not survive encoding, or with what is wrong with the image.
pub fn bitmaps(data: &[u8]) {
    inverse(data);
    let mut draw = Unstructured::new(data);
    let claims = Claims::drawn(&mut draw);
    let world = claims.world(&mut draw);
    let seed = draw.below(1 << 32);
    within_bounds(world, seed);
}

fn inverse(data: &[u8]) {
    if let Ok(extension) = Extension::parse(data) {
        assert_eq!(Extension::parse(&extension.encode()), Ok(extension), "a header extension");
    }
    let count = u32::from(data.first().copied().unwrap_or(0) % 8);
    let parsed = parse(data, count);
    tell(|| format!("{count} entries: {parsed:?}"));
    if let Ok(entries) = parsed {
        assert_eq!(parse(&encode(&entries), count), Ok(entries), "a directory does not survive encoding");
    }
}

/// What an image claims.
pub struct Claims {
    /// Bytes of a cluster.
    pub cluster_size: u64,
    /// Length of the disk.
    pub size: u64,
    /// Bitmaps in the directory.
    pub count: u64,
    /// Bytes that a bit stands for.
    pub granularity: u64,
    /// Bitmap tables in the file, which bitmaps share when they are more.
    pub tables: u64,
    /// Whether entries of tables are ones; else they are zeros, ones and clusters, as it comes.
    pub ones: bool,
}

impl Claims {
    fn drawn(draw: &mut dyn Draw) -> Self {
        let cluster_size = 512 << draw.below(8);
        // As much disk as a small L1 table can be for.
        let size = (cluster_size * cluster_size / 8) << draw.below(6);
        Self {
            cluster_size,
            size,
            count: [1, 2, 5, 300][draw.below(4) as usize],
            granularity: 512 << draw.below(8),
            tables: 1 + draw.below(3),
            ones: draw.one_in(2),
        }
    }

    /// An image that claims this, in order but for what `draw` changes.
    ///
    /// # Panics
    /// When there can be no such image.
    pub fn world(&self, draw: &mut dyn Draw) -> World {
        let options = CreateOptions { cluster_size: self.cluster_size, ..CreateOptions::new(self.size) };
        let mut world = qcow2(&options);
        let mut file = world.disk(TOP).expect("it was made").view().clone();
        let cluster = self.cluster_size;
        let bits = self.size.div_ceil(self.granularity);
        let table_len = bits.div_ceil(8).div_ceil(cluster);
        let mut end = file.len().next_multiple_of(cluster);
        let first = end;
        let mut take = |len: u64| {
            let at = end;
            end = (end + len).next_multiple_of(cluster);
            at
        };
        let bits_at = take(cluster);
        let tables: Vec<u64> = (0..self.tables).map(|_| take(table_len * 8)).collect();
        for table in &tables {
            for index in 0..table_len {
                let entry = match (self.ones, draw.below(4)) {
                    (true, _) | (_, 0) => 1,
                    (_, 1) => bits_at,
                    _ => 0,
                };
                file.write(table + index * 8, &entry.to_be_bytes());
            }
        }
        let entry = |number: u64| Entry {
            table_at: tables[(number % self.tables) as usize],
            table_len: table_len as u32,
            bitmap: Bitmap {
                name: number.to_string(),
                granularity: self.granularity,
                in_use: false,
                auto: !number.is_multiple_of(3),
            },
        };
        let mut directory = encode(&(0..self.count).map(entry).collect::<Vec<_>>());
        let directory_at = take(directory.len() as u64);
        for _ in 0..draw.below(3) {
            scratch(&mut directory, draw);
        }
        file.write(bits_at, &vec![0x5a; cluster as usize]);
        file.write(directory_at, &directory);
        file.set_len(end);
        let extension = Extension { count: self.count as u32, len: directory.len() as u64, at: directory_at };
        name(&mut file, extension, draw);
        count(&mut file, first..end, cluster);
        world.add_disk(TOP, world.default_config.clone(), file);
        world
    }
}

/// Changes a byte, or a number.
fn scratch(bytes: &mut [u8], draw: &mut dyn Draw) {
    let at = draw.below(bytes.len() as u64) as usize;
    bytes[at] = draw.below(256) as u8;
}

/// Has the header name a directory.
fn name(file: &mut Sparse, extension: Extension, draw: &mut dyn Draw) {
    let mut header = header(file);
    let mut data = extension.encode();
    if draw.one_in(4) {
        scratch(&mut data, draw);
    }
    header.extensions.push(HeaderExtension { kind: extension_kind::BITMAPS, data });
    header.autoclear |= Autoclear::BITMAPS;
    file.write(0, &header.encode().expect("the first cluster has room"));
}

fn header(file: &Sparse) -> Header {
    let first = 1 << file.bytes(20, 4)[3];
    Header::parse(&file.bytes(0, first)).expect("core made it")
}

/// Counts clusters once, as far as the first refcount block reaches.
fn count(file: &mut Sparse, range: std::ops::Range<u64>, cluster: u64) {
    let HostOffset(table) = header(file).refcount_table_offset;
    let block = u64::from_be_bytes(file.bytes(table, 8).try_into().expect("eight bytes")) & PLACE;
    for number in range.start / cluster..(range.end / cluster).min(cluster / 2) {
        file.write(block + 2 * number, &1_u16.to_be_bytes());
    }
}

/// Opens an image for writing, writes, closes, opens it again.
///
/// # Panics
/// When that takes more memory than the file can justify, or leaves an image worse than it was.
pub fn within_bounds(world: World, seed: u64) {
    let ((before, after, len), peak) = peak_of(|| used(world, seed));
    let max = MEMORY_BASE + MEMORY_PER_BYTE * len;
    assert!(peak <= max, "{peak} bytes of memory for a file of {len}, {max} allowed");
    let sound = |report: &CheckReport| report.corruptions == 0 && report.check_errors == 0;
    if let Ok(before) = before.as_ref()
        && sound(before)
    {
        assert!(
            after.as_ref().is_ok_and(sound),
            "in order before it was written to: {before:?}; after: {after:?}"
        );
    }
}

/// What a check says before and after, and how long the file is then: what was written may make it longer.
fn used(world: World, seed: u64) -> (Result<CheckReport>, Result<CheckReport>, usize) {
    let mut sim = Sim::new(seed, world);
    sim.stop_after = Some(INTENTS_MAX);
    let used = sim.run_job(async |io| {
        let before = looked(&io).await;
        let opened = open(&io, &from_filename(TOP, Some("qcow2"), WRITABLE).expect("a path")).await;
        if let Ok(node) = opened {
            let len = io.len(node);
            for at in [0, len / 2, len - 512] {
                let _ = io.write("fuzz", node, at, Buf::from(vec![7; 512]), Fua::No).await;
            }
            let _ = io.close(node).await;
        }
        (before, looked(&io).await)
    });
    assert_eq!(sim.world.open_leaves(), 0, "a leaf was left open");
    let (before, after) =
        used.unwrap_or_else(|_| panic!("using an image takes more than {INTENTS_MAX} intents"));
    let len = sim.world.disk(TOP).expect("every world has one").view().len();
    (before, after, len as usize)
}

/// Lists the bitmaps, loads them, counts what is dirty, and checks the image.
async fn looked(io: &Io) -> Result<CheckReport> {
    let node = open(io, &from_filename(TOP, Some("qcow2"), OpenMode::default()).expect("a path")).await?;
    let driver = io.driver(node).expect("a format");
    let image: &Qcow2 = driver.as_any().downcast_ref().expect("qcow2");
    let file = io.edge(node, Role::File).expect("an image is in a file");
    let loaded = image.load_bitmaps(io, file).await;
    tell(|| match &loaded {
        Ok(all) => {
            let dirty = |sum: u64, (offset, len): (u64, u64)| {
                sum.rotate_left(7) ^ fingerprint(&offset.to_be_bytes()) ^ len
            };
            format!("{} bitmaps, {:x}", all.len(), all.iter().flat_map(|one| one.ranges()).fold(0, dirty))
        }
        Err(error) => error.to_string(),
    });
    drop(loaded);
    let report = check(io, node, &mut |_| {}, &|_, _| {}).await;
    io.close(node).await?;
    report
}
