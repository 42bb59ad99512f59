//! Images of QEMU's tools with something in their metadata changed.
//!
//! Knows where the fields of a qcow2 image are, from the specification alone: core's own parsers are what is being
//! tested. Start at [`damaged`].

use std::sync::OnceLock;

use drystone_conformance::cases::qcow2_cases;
use drystone_conformance::qemu::Recipe;
use drystone_conformance::scenario::Draw;
use drystone_conformance::sparse::Sparse;
use drystone_conformance::world::World;
use drystone_core::graph::open::{NodeSpec, OpenMode};

use crate::hostile::TOP;

/// Offset and width of the fields of a header, with those that name places and counts of tables.
/// Source: \[qcow2\] "Header".
const HEADER: [(u64, usize); 22] = [
    (0, 4),
    (4, 4),
    (8, 8),
    (16, 4),
    (20, 4),
    (24, 8),
    (32, 4),
    (36, 4),
    (40, 8),
    (48, 8),
    (56, 4),
    (60, 4),
    (64, 8),
    (72, 8),
    (80, 8),
    (88, 8),
    (96, 4),
    (100, 4),
    (104, 1),
    (105, 1),
    (112, 4),
    (116, 4),
];

const CLUSTER_BITS: u64 = 20;
const L1: u64 = 40;
const REFCOUNT_TABLE: u64 = 48;
const SNAPSHOTS: u64 = 64;

/// The header extension that names the bitmap directory.
const BITMAPS: [u8; 4] = [0x23, 0x85, 0x28, 0x75];

/// Bits of an entry that are its place in the file.
const PLACE: u64 = 0x00ff_ffff_ffff_fe00;

/// Images that are in order, of every kind that the suite has, and two with several snapshots and bitmaps.
///
/// # Panics
/// When QEMU's tools are not there, or fail.
pub fn sound() -> &'static [World] {
    static WORLDS: OnceLock<Vec<World>> = OnceLock::new();
    WORLDS.get_or_init(|| {
        let cases = qcow2_cases().expect("QEMU's tools make images (package qemu-utils)");
        let more = more().into_iter().map(|recipe| {
            let as_file = |_: &World, path: &str| NodeSpec::raw(NodeSpec::file(path, OpenMode::default()));
            recipe.case(as_file).expect("QEMU's tools make images")
        });
        let worlds = cases.into_iter().chain(more).map(|case| {
            let mut world = World::new();
            (case.setup)(&mut world);
            world
        });
        worlds.collect()
    })
}

fn more() -> [Recipe; 2] {
    let snapshots = [
        "qemu-img create -f qcow2 -o cluster_size=512 top.qcow2 200k",
        "qemu-io -f qcow2 -c 'write -P 1 0 90k' top.qcow2",
        "qemu-img snapshot -c one top.qcow2",
        "qemu-io -f qcow2 -c 'write -P 2 20k 90k' top.qcow2",
        "qemu-img snapshot -c two top.qcow2",
        "qemu-io -f qcow2 -c 'write -P 3 50k 9k' -c 'write -c -P 4 150k 512' top.qcow2",
    ];
    let bitmaps = [
        "qemu-img create -f qcow2 -o cluster_size=4k top.qcow2 1M",
        "qemu-img bitmap --add -g 4k top.qcow2 first",
        "qemu-io -f qcow2 -c 'write -P 1 0 90k' top.qcow2",
        "qemu-img bitmap --add top.qcow2 second",
    ];
    [
        Recipe::new("two snapshots", "qcow2", TOP, &snapshots),
        Recipe::new("two bitmaps", "qcow2", TOP, &bitmaps),
    ]
}

/// One of the [`sound`] images with some of its metadata changed.
pub fn damaged(draw: &mut dyn Draw) -> World {
    let worlds = sound();
    let mut world = worlds[draw.below(worlds.len() as u64) as usize].clone();
    let mut file = world.disk(TOP).expect("every world has one").view().clone();
    for _ in 0..=draw.below(6) {
        change(&mut file, draw);
    }
    world.add_disk(TOP, world.default_config.clone(), file);
    world
}

/// The bytes of one of the [`sound`] images, and then of anything: what a fuzzer begins with.
pub fn scrambled(draw: &mut dyn Draw) -> Vec<u8> {
    let worlds = sound();
    let world = &worlds[draw.below(worlds.len() as u64) as usize];
    let mut bytes = world.export(TOP);
    bytes.truncate(1 << 20);
    let len = bytes.len() as u64;
    for _ in 0..1 + draw.below(16) {
        // Half of them in the header, where most is decided.
        let end = if draw.one_in(2) { 160 } else { len };
        bytes[draw.below(end.min(len)) as usize] = draw.below(256) as u8;
    }
    if draw.one_in(4) {
        bytes.truncate(draw.below(len) as usize);
    }
    bytes
}

fn number(file: &Sparse, at: u64, width: usize) -> u64 {
    file.bytes(at, width).iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// Changes one field, table entry, byte, or the length.
fn change(file: &mut Sparse, draw: &mut dyn Draw) {
    let cluster = 1 << number(file, CLUSTER_BITS, 4).min(21);
    let l1 = number(file, L1, 8);
    let refcount_table = number(file, REFCOUNT_TABLE, 8);
    let entry =
        |draw: &mut dyn Draw, table: u64, of: u64| table.saturating_add(8 * draw.below((of / 8).max(1)));
    let (at, width) = match draw.below(14) {
        0..3 => HEADER[draw.below(HEADER.len() as u64) as usize],
        3 => (entry(draw, l1, 128), 8),
        4 | 5 => {
            let slot = entry(draw, l1, 128);
            let l2 = number(file, slot & PLACE, 8) & PLACE;
            (entry(draw, l2, cluster.min(512)), 8)
        }
        6 => (entry(draw, refcount_table, 64), 8),
        7 => {
            let block = number(file, refcount_table & PLACE, 8) & PLACE;
            (entry(draw, block, cluster.min(512)), 8)
        }
        8 => {
            let table = number(file, SNAPSHOTS, 8);
            (table.saturating_add(draw.below(120)), [1, 2, 4, 8][draw.below(4) as usize])
        }
        9 => (104 + 4 * draw.below(100), 4),
        10 => (draw.below(file.len().max(1)), 1),
        11 | 12 => bitmap_field(file, draw),
        _ => {
            let end = draw.below(file.len() + 1);
            return file.set_len(if draw.one_in(2) { end - end % 512 } else { end });
        }
    };
    // Tables may lie anywhere by now.
    let at = at.min(file.len());
    let old = number(file, at, width);
    let new = value(file, old, cluster, draw);
    file.write(at, &new.to_be_bytes()[8 - width..]);
}

/// A field of the bitmap directory, or an entry of the first bitmap's table; in an image without, a byte of the header.
/// Source: \[qcow2\] "Bitmaps extension".
fn bitmap_field(file: &Sparse, draw: &mut dyn Draw) -> (u64, usize) {
    let header = file.bytes(0, 4096);
    let Some(at) = header.windows(4).position(|word| word == BITMAPS) else { return (draw.below(160), 1) };
    let directory = number(file, at as u64 + 24, 8);
    match draw.below(3) {
        0 => (at as u64 + 8 + 8 * draw.below(3), 8),
        1 => {
            let (field, width) =
                [(0, 8), (8, 4), (12, 4), (16, 1), (17, 1), (18, 2), (20, 4)][draw.below(7) as usize];
            (directory.saturating_add(field), width)
        }
        _ => (number(file, directory, 8).saturating_add(8 * draw.below(64)), 8),
    }
}

/// A number that is likely to hurt.
fn value(file: &Sparse, old: u64, cluster: u64, draw: &mut dyn Draw) -> u64 {
    let tables = [number(file, L1, 8), number(file, REFCOUNT_TABLE, 8), number(file, SNAPSHOTS, 8)];
    let flags = [0, 1 << 63, 1 << 62, 3 << 62, 1][draw.below(5) as usize];
    match draw.below(14) {
        0 => flags,
        1 => u64::MAX >> draw.below(64),
        2 => 1 << draw.below(64),
        3 => old ^ 1 << draw.below(64),
        4 => old.wrapping_add(1),
        5 => old.wrapping_sub(1),
        6 => old.wrapping_add(cluster),
        7 => old.wrapping_sub(cluster),
        8 => file.len() | flags,
        9 => file.len().next_multiple_of(cluster) | flags,
        10 => tables[draw.below(3) as usize] | flags,
        11 => (cluster * draw.below(64)) | flags,
        12 => draw.below(70_000),
        _ => draw.below(u64::MAX),
    }
}
