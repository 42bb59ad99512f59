//! A Parallels image of which header and BAT say anything. Looking at it, writing to it, giving parts of it up and closing it end in
//! an answer, in bounded steps and memory; what is open for writing is in order when it is closed. Start at [`parallels`].

use arbitrary::Unstructured;
use drystone_conformance::cases::WRITABLE;
use drystone_conformance::explore::{TOP, image_in};
use drystone_conformance::meter::peak_of;
use drystone_conformance::scenario::Draw;
use drystone_conformance::sim::Sim;
use drystone_conformance::trace::tell;
use drystone_conformance::world::World;
use drystone_core::buf::Buf;
use drystone_core::error::Result;
use drystone_core::format::{CheckReport, parallels};
use drystone_core::graph::open::open;
use drystone_core::intent::Fua;
use drystone_core::job::ImageSpec;

use crate::used::{looked, spec};

/// Bytes of memory that a run may take: bounded caches, and what the simulator keeps of a few clusters.
const MEMORY_MAX: usize = 256 << 20;

/// Intents that a run may take: a copy of all of the largest cluster is 4096 of them.
const INTENTS_MAX: u64 = 50_000;

/// Places of 32-bit numbers in the header, and of the first BAT entries. Source: the sheet of
/// [`Header`](parallels::layout::Header).
const FIELDS: [usize; 20] = [0, 16, 28, 32, 36, 40, 44, 48, 52, 56, 60, 64, 68, 72, 76, 80, 84, 88, 92, 96];

/// Decides what the image says, all of it by `data`.
///
/// # Panics
/// With what is wrong.
pub fn parallels(data: &[u8]) {
    let mut draw = Unstructured::new(data);
    let options = parallels::CreateOptions { size: 64 << 10, cluster_size: 4096 };
    let mut world = image_in(World::new(), &ImageSpec::Parallels(options));
    let mut bytes = world.disk(TOP).expect("it was made").view().to_vec();
    let len = bytes.len() + 4096 * draw.below(8) as usize;
    bytes.resize(len, 5);
    if draw.one_in(3) {
        bytes[12..16].copy_from_slice(b"pace");
        bytes[4..8].copy_from_slice(b"outF");
        bytes[8..12].copy_from_slice(b"reeS");
    }
    for _ in 0..draw.below(8) {
        let at = FIELDS[draw.below(FIELDS.len() as u64) as usize];
        bytes[at..at + 4].copy_from_slice(&number(&mut draw).to_le_bytes());
    }
    if draw.one_in(4) {
        bytes.truncate(draw.below(bytes.len() as u64) as usize);
    }
    world.add_file(TOP, &bytes);
    let seed = draw.below(1 << 32);
    let ((written, after), peak) = peak_of(|| used(world, seed));
    tell(|| format!("{after:?}"));
    assert!(peak <= MEMORY_MAX, "{peak} bytes of memory to use the image, {MEMORY_MAX} allowed");
    if written {
        let fine = after.as_ref().is_ok_and(|report| report.corruptions + report.leaks == 0);
        assert!(fine, "it was written to and closed; then: {after:?}");
    }
}

/// A number near a limit, or any.
fn number(draw: &mut Unstructured<'_>) -> u32 {
    const LIMITS: [u32; 10] = [
        0,
        1,
        3,
        8,
        129,
        4096,
        0x1fff_ffff,
        0x746f_6e59,
        0x312e_3276,
        parallels::layout::CLUSTER_SECTORS_MAX,
    ];
    match draw.below(4) {
        0 => draw.below(1 << 32) as u32,
        1 => draw.below(40) as u32,
        _ => LIMITS[draw.below(LIMITS.len() as u64) as usize],
    }
}

/// Whether the image was written to and closed without an error, and what a check says then.
fn used(world: World, seed: u64) -> (bool, Result<CheckReport>) {
    let mut sim = Sim::new(seed, world);
    sim.stop_after = Some(INTENTS_MAX);
    let used = sim.run_job(async |io| {
        let _ = looked(&io, "parallels").await;
        let mut written = false;
        if let Ok(node) = open(&io, &spec("parallels", WRITABLE)).await {
            let len = io.len(node);
            written = len >= 512;
            for at in [0, len / 2, len.saturating_sub(512)] {
                if at + 512 <= len {
                    let data = Buf::from(vec![7; 512]);
                    written &= io.write("fuzz", node, at / 512 * 512, data, Fua::No).await.1.is_ok();
                }
            }
            let _ = io.discard("fuzz", node, 0, len.min(1 << 20)).await;
            written &= io.close(node).await.is_ok();
        }
        (written, looked(&io, "parallels").await)
    });
    assert_eq!(sim.world.open_leaves(), 0, "a leaf was left open");
    used.unwrap_or_else(|_| panic!("using an image takes more than {INTENTS_MAX} intents"))
}
