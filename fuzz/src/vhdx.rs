//! A VHDX image of which any structure says anything, under checksums that are right. Looking at it, writing to it and closing
//! it end in an answer, in bounded steps and memory; what is in order before it is written to is in order afterwards. Start at
//! [`vhdx`].

use arbitrary::Unstructured;
use drystone_conformance::explore::{TOP, image_in};
use drystone_conformance::scenario::Draw;
use drystone_conformance::sparse::Sparse;
use drystone_conformance::world::World;
use drystone_core::buf::Buf;
use drystone_core::format::vhdx::CreateOptions;
use drystone_core::format::vhdx::layout::{HEADERS_AT, MIB, REGION_TABLE_LEN, REGION_TABLES_AT, checksum};
use drystone_core::format::{CheckReport, HostOffset, vhdx};
use drystone_core::job::ImageSpec;

use crate::used::Usage;

/// What is done with the image.
const USAGE: Usage = Usage {
    format: "vhdx",
    packs: false,
    // A bounded cache, a log, and what the simulator keeps of a few blocks.
    memory_max: 256 << 20,
    intents_max: 50_000,
};

/// Where a new image of ours has what.
const LOG_AT: u64 = MIB;
const BAT_AT: u64 = 2 * MIB;
const METADATA_AT: u64 = 3 * MIB;

/// Decides what the image says, all of it by `data`.
///
/// # Panics
/// With what is wrong.
pub fn vhdx(data: &[u8]) {
    let mut draw = Unstructured::new(data);
    let options = CreateOptions {
        block_size: MIB,
        fixed: draw.one_in(3),
        block_state_zero: draw.one_in(2),
        ..CreateOptions::new(3 * MIB)
    };
    let mut world = image_in(World::new(), &ImageSpec::Vhdx(options));
    let mut file = world.disk(TOP).expect("it was made").view().clone();
    for _ in 0..draw.below(4) {
        damage(&mut file, &mut draw);
    }
    if draw.one_in(4) {
        log(&mut file, &mut draw);
    }
    for (at, len) in
        HEADERS_AT.map(|at| (at, 4096)).into_iter().chain(REGION_TABLES_AT.map(|at| (at, REGION_TABLE_LEN)))
    {
        if !draw.one_in(8) {
            let sum = checksum(&file.bytes(at, len));
            file.write(at + 4, &sum.to_le_bytes());
        }
    }
    if draw.one_in(8) {
        let len = draw.below(file.len());
        file.set_len(len);
    }
    world.add_disk(TOP, world.default_config.clone(), file);
    let seed = draw.below(1 << 32);
    let (before, after) = USAGE.of(world, seed);
    if before.as_ref().is_ok_and(|report| *report == CheckReport::default()) {
        assert!(
            after.as_ref().is_ok_and(|report| *report == CheckReport::default()),
            "in order before it was written to; after: {after:?}"
        );
    }
}

/// Writes a number near a limit where some structure has one.
fn damage(file: &mut Sparse, draw: &mut Unstructured<'_>) {
    let at = match draw.below(6) {
        0 => HEADERS_AT[draw.below(2) as usize] + [8, 16, 32, 48, 64, 66, 68, 72][draw.below(8) as usize],
        1 => REGION_TABLES_AT[draw.below(2) as usize] + 8 + 4 * draw.below(20),
        2 => METADATA_AT + 8 + 4 * draw.below(50),
        3 => METADATA_AT + (64 << 10) + 4 * draw.below(12),
        _ => BAT_AT + 8 * draw.below(5),
    };
    let number = number(draw);
    match draw.below(2) {
        0 => file.write(at, &(number as u32).to_le_bytes()),
        _ => file.write(at, &number.to_le_bytes()),
    }
}

fn number(draw: &mut Unstructured<'_>) -> u64 {
    const LIMITS: [u64; 10] = [0, 6, 7, 512, 1 << 20, 4 << 20 | 6, 5 << 20 | 7, 1 << 40, 1 << 62, u64::MAX];
    match draw.below(3) {
        0 => draw.below(u64::MAX),
        _ => LIMITS[draw.below(10) as usize].wrapping_add(draw.below(3)).wrapping_sub(1),
    }
}

/// Has the headers name a log of one entry or two, with numbers of any kind in them.
fn log(file: &mut Sparse, draw: &mut Unstructured<'_>) {
    let guid = vhdx::layout::Guid([5; 16]);
    for at in HEADERS_AT {
        file.write(at + 48, &guid.0);
    }
    let mut place = 0;
    for sequence in 1..=1 + draw.below(2) {
        let header = vhdx::layout::EntryHeader {
            checksum: 0,
            len: 0,
            tail: if draw.one_in(4) { 4096 * draw.below(8) } else { 0 },
            sequence,
            descriptors: 0,
            log: guid,
            flushed_len: if draw.one_in(4) { number(draw) } else { 4 * MIB },
            last_len: if draw.one_in(4) { number(draw) } else { 4 * MIB },
        };
        let target = if draw.one_in(4) { 4096 * draw.below(1 << 50) } else { BAT_AT };
        let sectors = vec![(HostOffset(target), Buf::from(file.bytes(BAT_AT, 4096)))];
        let mut bytes = vhdx::layout::encode_entry(&header, &sectors);
        if draw.one_in(3) {
            // A range of zeros, of any length.
            bytes[64..68].copy_from_slice(b"zero");
            bytes[72..80].copy_from_slice(&(number(draw) & !4095).to_le_bytes());
        }
        if draw.one_in(4) {
            let at = 8 + 4 * draw.below(24) as usize;
            bytes[at..at + 4].copy_from_slice(&(number(draw) as u32).to_le_bytes());
        }
        let sum = checksum(&bytes);
        bytes[4..8].copy_from_slice(&sum.to_le_bytes());
        file.write(LOG_AT + place, &bytes);
        place += bytes.len() as u64;
    }
}
