//! A VHD image of which footer, header, BAT and bitmaps say anything, under checksums that are right. Looking at it, writing to
//! it and closing it end in an answer, in bounded steps and memory; what can be read all through before can be afterwards.
//! Start at [`vpc`].

use arbitrary::Unstructured;
use drystone_conformance::cases::WRITABLE;
use drystone_conformance::explore::{TOP, image_in};
use drystone_conformance::scenario::Draw;
use drystone_conformance::sim::Sim;
use drystone_conformance::sparse::Sparse;
use drystone_conformance::trace::tell;
use drystone_conformance::world::World;
use drystone_core::buf::Buf;
use drystone_core::engine::Io;
use drystone_core::error::Result;
use drystone_core::format::vpc::CreateOptions;
use drystone_core::format::vpc::layout::checksum;
use drystone_core::graph::open::{NodeSpec, OpenMode, open};
use drystone_core::graph::options::from_filename;
use drystone_core::intent::Fua;
use drystone_core::job::ImageSpec;

use crate::meter::peak_of;

/// Bytes of memory that a run may take: bounded caches, and what the simulator keeps of a few blocks of 2 MiB.
const MEMORY_MAX: usize = 256 << 20;

/// Intents that a run may take.
const INTENTS_MAX: u64 = 50_000;

/// Bytes that are read at each place.
const LOOK: u64 = 4096;

/// Places of numbers in the footer, and in the dynamic header.
const FOOTER: [u64; 7] = [12, 16, 28, 48, 52, 56, 60];
const HEADER: [u64; 7] = [0, 16, 20, 24, 28, 32, 40];

/// Decides what the image says, all of it by `data`.
///
/// # Panics
/// With what is wrong.
pub fn vpc(data: &[u8]) {
    let mut draw = Unstructured::new(data);
    let options = CreateOptions { fixed: draw.one_in(4), force_size: true, ..CreateOptions::new(5 << 20) };
    let mut world = image_in(World::new(), &ImageSpec::Vpc(options));
    let mut file = world.disk(TOP).expect("it was made").view().clone();
    for _ in 0..draw.below(4) {
        damage(&mut file, &mut draw);
    }
    for (at, len, sum_at) in [(0, 512, 64), (512, 1024, 36), (file.len() - 512, 512, 64)] {
        if !draw.one_in(8) {
            let sum = checksum(&file.bytes(at, len), sum_at);
            file.write(at + sum_at as u64, &sum.to_be_bytes());
        }
    }
    if draw.one_in(4) {
        let len = draw.below(file.len());
        file.set_len(len);
    }
    world.add_disk(TOP, world.default_config.clone(), file);
    let seed = draw.below(1 << 32);
    let ((before, after), peak) = peak_of(|| used(world, seed));
    tell(|| format!("{before:?} {after:?}"));
    assert!(peak <= MEMORY_MAX, "{peak} bytes of memory to use the image, {MEMORY_MAX} allowed");
    assert!(before.is_err() || after.is_ok(), "in order before it was written to; after: {after:?}");
}

/// Writes a number near a limit where some structure has one.
fn damage(file: &mut Sparse, draw: &mut Unstructured<'_>) {
    let end = file.len() - 512;
    let at = match draw.below(4) {
        0 => FOOTER[draw.below(7) as usize],
        1 => end + FOOTER[draw.below(7) as usize],
        2 => 512 + HEADER[draw.below(7) as usize],
        _ => 1536 + 4 * draw.below(3),
    };
    const LIMITS: [u32; 8] = [0, 1, 4, 512, 2 << 20, 0x1fff_ffff, 0xff00_0000, u32::MAX];
    let number = match draw.below(3) {
        0 => draw.below(1 << 32) as u32,
        _ => LIMITS[draw.below(8) as usize].wrapping_add(draw.below(3) as u32).wrapping_sub(1),
    };
    file.write(at, &number.to_be_bytes());
}

/// Whether the image can be read, before and after.
fn used(world: World, seed: u64) -> (Result<()>, Result<()>) {
    let mut sim = Sim::new(seed, world);
    sim.stop_after = Some(INTENTS_MAX);
    let used = sim.run_job(async |io| {
        let before = looked(&io).await;
        if let Ok(node) = open(&io, &spec(WRITABLE)).await {
            for at in places(io.len(node)) {
                let _ = io.write("fuzz", node, at, Buf::from(vec![7; 512]), Fua::No).await;
            }
            let _ = io.close(node).await;
        }
        (before, looked(&io).await)
    });
    assert_eq!(sim.world.open_leaves(), 0, "a leaf was left open");
    used.unwrap_or_else(|_| panic!("using an image takes more than {INTENTS_MAX} intents"))
}

fn spec(mode: OpenMode) -> NodeSpec {
    from_filename(TOP, Some("vpc"), mode).expect("a path")
}

/// Sectors at the start, in the middle and at the end.
fn places(len: u64) -> impl Iterator<Item = u64> {
    [0, len / 2, len.saturating_sub(512)].into_iter().filter(move |at| *at < len).map(|at| at / 512 * 512)
}

/// Reads a little at each place.
async fn looked(io: &Io) -> Result<()> {
    let node = open(io, &spec(OpenMode::default())).await?;
    let len = io.len(node);
    let mut result = Ok(());
    for at in places(len) {
        let read = io.read_bytes("fuzz", node, at, (len - at).min(LOOK) as usize).await;
        result = result.and(read.map(drop));
    }
    io.close(node).await?;
    result
}
