//! A VHD image of which footer, header, BAT and bitmaps say anything, under checksums that are right. Looking at it, writing to
//! it and closing it end in an answer, in bounded steps and memory; what can be read all through before can be afterwards.
//! Start at [`vpc`].

use arbitrary::Unstructured;
use drystone_conformance::explore::{TOP, image_in};
use drystone_conformance::scenario::Draw;
use drystone_conformance::sparse::Sparse;
use drystone_conformance::world::World;
use drystone_core::format::vpc::CreateOptions;
use drystone_core::format::vpc::layout::checksum;
use drystone_core::job::ImageSpec;

use crate::used::Usage;

/// What is done with the image.
const USAGE: Usage = Usage {
    format: "vpc",
    packs: false,
    // Bounded caches, and what the simulator keeps of a few blocks of 2 MiB.
    memory_max: 256 << 20,
    intents_max: 50_000,
};

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
    let (before, after) = USAGE.of(world, seed);
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
