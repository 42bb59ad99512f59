//! A VMDK image of which header, descriptor and tables say anything. Looking at it, writing to it and closing it end in an
//! answer, in bounded steps and memory; what is in order before it is written to is in order afterwards. Start at
//! [`vmdk`].

use arbitrary::Unstructured;
use drystone_conformance::explore::image_in;
use drystone_conformance::scenario::Draw;
use drystone_conformance::world::World;
use drystone_core::format::vmdk::{CreateOptions, Subformat};
use drystone_core::job::ImageSpec;

use crate::used::Usage;

/// What is done with the image.
const USAGE: Usage = Usage {
    format: "vmdk",
    packs: true,
    // A bounded cache, grains of 16 MiB, and what the simulator keeps of them.
    memory_max: 256 << 20,
    intents_max: 50_000,
};

/// Places of numbers in the header. Source: the sheet of [`SparseHeader`](drystone_core::format::vmdk::layout::SparseHeader).
const FIELDS: [usize; 18] = [0, 4, 8, 12, 16, 20, 24, 28, 36, 44, 48, 52, 56, 60, 64, 72, 76, 513];

/// What is put into a descriptor's text.
const WORDS: [&[u8]; 14] = [
    b"\nRW 128 SPARSE \"top\"\n",
    b"\nRW 9 FLAT \"top\" 0\n",
    b"\nRDONLY 1 ZERO\n",
    b"\nRW 18446744073709551615 FLAT \"x\" 1\n",
    b"\ncreateType=\"twoGbMaxExtentSparse\"\n",
    b"\nCID=",
    b"\nCID=1\n",
    b"\nparentCID=0\n",
    b"\nparentFileNameHint=\"top\"\n",
    b"\nparentFileNameHint=\"json:{}\"\n",
    b"\0",
    b"\"",
    b"\xff\xfe",
    b"..",
];

/// Decides what the image says, all of it by `data`.
///
/// # Panics
/// With what is wrong.
pub fn vmdk(data: &[u8]) {
    let mut draw = Unstructured::new(data);
    let kinds = [Subformat::MonolithicSparse, Subformat::StreamOptimized, Subformat::TwoGbMaxExtentSparse];
    let subformat = kinds[draw.below(3) as usize];
    let options = CreateOptions { subformat, zeroed_grain: draw.one_in(3), ..CreateOptions::new(1 << 20) };
    let mut world = image_in(World::new(), &ImageSpec::Vmdk(options));
    let paths: Vec<String> = world.paths().map(str::to_owned).collect();
    for path in &paths {
        let mut bytes = world.disk(path).expect("it was made").view().to_vec();
        change(&mut bytes, &mut draw);
        world.add_file(path, &bytes);
    }
    let seed = draw.below(1 << 32);
    let (before, after) = USAGE.of(world, seed);
    if before.is_ok() {
        assert!(after.is_ok(), "in order before it was written to; after: {after:?}");
    }
}

fn change(bytes: &mut Vec<u8>, draw: &mut Unstructured<'_>) {
    let sparse = bytes.starts_with(b"KDMV");
    for _ in 0..draw.below(4) {
        let at = match (sparse, draw.below(3)) {
            (true, 0) => FIELDS[draw.below(FIELDS.len() as u64) as usize],
            // Directories and tables.
            (true, _) => 21 * 512 + 4 * draw.below(5 * 128 * 2) as usize,
            (false, _) => draw.below(bytes.len() as u64) as usize,
        };
        if at + 4 <= bytes.len() {
            bytes[at..at + 4].copy_from_slice(&number(draw).to_le_bytes());
        }
    }
    for _ in 0..draw.below(3) {
        let word = WORDS[draw.below(WORDS.len() as u64) as usize];
        let at = if sparse { 512 } else { 0 } + draw.below(400) as usize;
        if at + word.len() <= bytes.len() {
            bytes[at..at + word.len()].copy_from_slice(word);
        }
    }
    if draw.one_in(4) {
        bytes.truncate(draw.below(bytes.len() as u64) as usize);
    }
}

/// A number near a limit, or any.
fn number(draw: &mut Unstructured<'_>) -> u32 {
    const LIMITS: [u32; 10] = [0, 1, 8, 22, 128, 512, 1 << 16, 1 << 25, 0x7fff_ffff, 0xffff_ffff];
    match draw.below(3) {
        0 => draw.below(1 << 32) as u32,
        _ => LIMITS[draw.below(10) as usize].wrapping_add(draw.below(3) as u32).wrapping_sub(1),
    }
}
