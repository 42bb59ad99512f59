//! QED and qcow images of which header and tables say anything. Looking at one, writing to it and closing it end in an answer,
//! in bounded steps and memory; what is in order before it is written to is in order afterwards. Start at [`qed`].

use arbitrary::Unstructured;
use drystone_conformance::cases::WRITABLE;
use drystone_conformance::explore::{TOP, image_in};
use drystone_conformance::scenario::Draw;
use drystone_conformance::sim::Sim;
use drystone_conformance::world::World;
use drystone_core::buf::Buf;
use drystone_core::format::{qcow, qed};
use drystone_core::graph::open::open;
use drystone_core::intent::Fua;
use drystone_core::job::ImageSpec;

use crate::used::{Usage, spec};

/// Bytes of memory that a run may take: a bounded cache, clusters of 64 MiB that are copied, and what the simulator keeps.
const MEMORY_MAX: usize = 512 << 20;

/// Intents that a run may take: a look at all of the largest table is many of them.
const INTENTS_MAX: u64 = 100_000;

/// Decides what a QED image says, all of it by `data`.
///
/// # Panics
/// With what is wrong.
pub fn qed(data: &[u8]) {
    let mut draw = Unstructured::new(data);
    let backing = draw.one_in(4).then(|| ("base".into(), draw.one_in(2)));
    let options =
        qed::CreateOptions { cluster_size: 4096, table_size: 1, backing, ..qed::CreateOptions::new(3 << 20) };
    one(&mut draw, &ImageSpec::Qed(options), "qed", 64, 4096);
}

/// Decides what a qcow image says, all of it by `data`.
///
/// # Panics
/// With what is wrong.
pub fn qcow(data: &[u8]) {
    let mut draw = Unstructured::new(data);
    let backing = draw.one_in(4).then(|| "base".into());
    let options = qcow::CreateOptions { size: 3 << 20, backing };
    one(&mut draw, &ImageSpec::Qcow(options), "qcow", 48, 48);
}

/// Makes an image, writes to it, and changes bytes of its header and of what lies from `tables` on.
fn one(draw: &mut Unstructured<'_>, image: &ImageSpec, format: &'static str, header: u64, tables: u64) {
    let mut world = World::new();
    world.add_file("base", &[9; 5000]);
    let mut sim = Sim::new(0, image_in(world, image));
    let filled = sim.run_job(async |io| {
        let node = open(&io, &spec(format, WRITABLE)).await?;
        let written = io.write("fuzz", node, 8192, Buf::from(vec![5; 20_000]), Fua::No).await.1;
        let packed = io.write_compressed("fuzz", node, 65536, Buf::from(vec![6; 8192])).await.1;
        io.close(node).await?;
        written.and(packed)
    });
    // Above a file that is no image, or that reads as one, it may not open.
    let _ = filled.expect("a few requests end");
    let mut world = sim.world.clone();
    let mut bytes = world.disk(TOP).expect("it was made").view().to_vec();
    for _ in 0..draw.below(4) {
        let at = match draw.below(3) {
            0 => draw.below(header / 4) * 4,
            _ => {
                tables
                    + draw.below((bytes.len() as u64).saturating_sub(tables + 8) / 8) * 8
                    + 4 * draw.below(2)
            }
        } as usize;
        if at + 4 <= bytes.len() {
            let number = number(draw);
            let number = if format == "qed" { number.to_le_bytes() } else { number.to_be_bytes() };
            bytes[at..at + 4].copy_from_slice(&number);
        }
    }
    if draw.one_in(4) {
        bytes.truncate(draw.below(bytes.len() as u64) as usize);
    }
    world.add_file(TOP, &bytes);
    let seed = draw.below(1 << 32);
    let usage = Usage { format, packs: true, intents_max: INTENTS_MAX, memory_max: MEMORY_MAX };
    let (before, after) = usage.of(world, seed);
    if before.as_ref().is_ok_and(|report| report.corruptions == 0) {
        let sound = after.as_ref().is_ok_and(|report| report.corruptions == 0);
        assert!(sound, "in order before it was written to; after: {after:?}");
    }
}

/// A number near a limit, or any.
fn number(draw: &mut Unstructured<'_>) -> u32 {
    const LIMITS: [u32; 12] = [0, 1, 2, 9, 16, 512, 4096, 8192, 1 << 16, 1 << 26, 0x7fff_ffff, 0xffff_ffff];
    match draw.below(3) {
        0 => draw.below(1 << 32) as u32,
        _ => LIMITS[draw.below(12) as usize].wrapping_add(draw.below(3) as u32).wrapping_sub(1),
    }
}
