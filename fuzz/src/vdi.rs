//! A VDI image of which header and block map say anything. Looking at it, writing to it and closing it end in an answer,
//! in bounded steps and memory; what is in order before it is written to is in order afterwards. Start at `vdi`.

use arbitrary::Unstructured;
use drystone_conformance::cases::WRITABLE;
use drystone_conformance::explore::{TOP, image_in};
use drystone_conformance::meter::peak_of;
use drystone_conformance::scenario::Draw;
use drystone_conformance::sim::Sim;
use drystone_conformance::trace::tell;
use drystone_conformance::world::World;
use drystone_core::buf::Buf;
use drystone_core::engine::Io;
use drystone_core::error::Result;
use drystone_core::format::{CheckReport, check, vdi};
use drystone_core::graph::open::{NodeSpec, OpenMode, open};
use drystone_core::graph::options::from_filename;
use drystone_core::intent::{Fua, Preallocation};
use drystone_core::job::ImageSpec;

/// Bytes of memory that a run may take: a bit for each block that can be claimed, a bounded cache, and what the
/// simulator keeps of a few blocks of 1 MiB.
const MEMORY_MAX: usize = 256 << 20;

/// Intents that a run may take: a read of all of the largest map is 2048 of them.
const INTENTS_MAX: u64 = 50_000;

/// Places of 32-bit numbers in the header. Source: the sheet of [`Header`](vdi::layout::Header).
const FIELDS: [usize; 12] = [64, 68, 76, 340, 344, 360, 368, 372, 376, 380, 384, 388];

/// Decides what the image says, all of it by `data`.
///
/// # Panics
/// With what is wrong.
pub fn vdi(data: &[u8]) {
    let mut draw = Unstructured::new(data);
    let world = damaged(&mut draw);
    let seed = draw.below(1 << 32);
    let ((before, after), peak) = peak_of(|| used(world, seed));
    tell(|| format!("{before:?} {after:?}"));
    assert!(peak <= MEMORY_MAX, "{peak} bytes of memory to use the image, {MEMORY_MAX} allowed");
    if before.as_ref().is_ok_and(|report| *report == CheckReport::default()) {
        assert!(
            after.as_ref().is_ok_and(|report| *report == CheckReport::default()),
            "in order before it was written to; after: {after:?}"
        );
    }
}

/// An image with some of its header and block map changed.
pub fn damaged(draw: &mut dyn Draw) -> World {
    let options =
        vdi::CreateOptions { size: 3 << 20, fixed: draw.one_in(3), preallocation: Preallocation::Off };
    let mut world = image_in(World::new(), &ImageSpec::Vdi(options));
    let mut bytes = world.disk(TOP).expect("it was made").view().to_vec();
    for _ in 0..draw.below(4) {
        let at = FIELDS[draw.below(FIELDS.len() as u64) as usize];
        bytes[at..at + 4].copy_from_slice(&number(draw).to_le_bytes());
    }
    for _ in 0..draw.below(4) {
        let at = 512 + 4 * draw.below(4) as usize;
        bytes[at..at + 4].copy_from_slice(&number(draw).to_le_bytes());
    }
    if draw.one_in(4) {
        bytes.truncate(draw.below(bytes.len() as u64) as usize);
    }
    world.add_file(TOP, &bytes);
    world
}

/// A number near a limit, or any.
fn number(draw: &mut dyn Draw) -> u32 {
    const LIMITS: [u32; 8] = [0, 3, 512, 1024, 1 << 20, 0x1fff_ff80, 0xffff_fffe, 0x7fff_ffff];
    match draw.below(3) {
        0 => draw.below(1 << 32) as u32,
        _ => LIMITS[draw.below(8) as usize].wrapping_add(draw.below(3) as u32).wrapping_sub(1),
    }
}

/// What a check says before and after.
fn used(world: World, seed: u64) -> (Result<CheckReport>, Result<CheckReport>) {
    let mut sim = Sim::new(seed, world);
    sim.stop_after = Some(INTENTS_MAX);
    let used = sim.run_job(async |io| {
        let before = looked(&io).await;
        if let Ok(node) = open(&io, &spec(WRITABLE)).await {
            let len = io.len(node);
            for at in [0, len / 2, len.saturating_sub(512)] {
                if at < len {
                    let _ = io.write("fuzz", node, at / 512 * 512, Buf::from(vec![7; 512]), Fua::No).await;
                }
            }
            let _ = io.close(node).await;
        }
        (before, looked(&io).await)
    });
    assert_eq!(sim.world.open_leaves(), 0, "a leaf was left open");
    used.unwrap_or_else(|_| panic!("using an image takes more than {INTENTS_MAX} intents"))
}

fn spec(mode: OpenMode) -> NodeSpec {
    from_filename(TOP, Some("vdi"), mode).expect("a path")
}

/// Checks the image, and reads a little at both ends.
async fn looked(io: &Io) -> Result<CheckReport> {
    let node = open(io, &spec(OpenMode::default())).await?;
    let report = check(io, node, &mut |line| tell(|| line), &|_, _| {}).await;
    let len = io.len(node);
    for at in [0, len.saturating_sub(4096)] {
        let _ = io.read_bytes("fuzz", node, at, (len - at).min(4096) as usize).await;
    }
    io.close(node).await?;
    report
}
