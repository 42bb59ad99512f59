//! A VDI image of which header and block map say anything. Looking at it, writing to it and closing it end in an answer,
//! in bounded steps and memory; what is in order before it is written to is in order afterwards. Start at `vdi`.

use arbitrary::Unstructured;
use drystone_conformance::explore::{TOP, image_in};
use drystone_conformance::scenario::Draw;
use drystone_conformance::world::World;
use drystone_core::format::{CheckReport, vdi};
use drystone_core::intent::Preallocation;
use drystone_core::job::ImageSpec;

use crate::used::Usage;

/// What is done with the image.
const USAGE: Usage = Usage {
    format: "vdi",
    packs: false,
    // A bit for each block that can be claimed, a bounded cache, and what the
    // simulator keeps of a few blocks of 1 MiB.
    memory_max: 256 << 20,
    // A read of all of the largest map is 2048 of them.
    intents_max: 50_000,
};

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
    let (before, after) = USAGE.of(world, seed);
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
