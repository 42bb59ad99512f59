//! Where ranges are that whoever holds the leaves may take from there.

use drystone_conformance::qemu::Folder;
use drystone_conformance::sim::{FIRST, Sim};
use drystone_conformance::world::World;
use drystone_core::engine::{Places, Stored};
use drystone_core::graph::open::{NodeSpec, OpenMode, open};
use drystone_core::graph::options::from_filename;

/// The files in the order in which they are opened.
const FILES: [&str; 2] = ["top.qcow2", "base.qcow2"];

/// An image with data of its own at 8 KiB, zeros at 32 KiB, and a backing file with 60 KiB of data.
fn world() -> World {
    let folder = Folder::new();
    let run = |line: &[&str]| folder.run(line).unwrap_or_else(|report| panic!("{report}"));
    let (create, io) = (["qemu-img", "create", "-q", "-f", "qcow2"], ["qemu-io", "-f", "qcow2"]);
    let small = ["-o", "cluster_size=4k"];
    run(&[&create[..], &small, &["base.qcow2", "64k"]].concat());
    run(&[&io[..], &["-c", "write -P 2 0 60k", "base.qcow2"]].concat());
    run(&[&create[..], &small, &["-b", "base.qcow2", "-F", "qcow2", "top.qcow2"]].concat());
    run(&[&io[..], &["-c", "write -P 1 8k 8k", "-c", "write -z 32k 4k", "top.qcow2"]].concat());
    let mut world = World::new();
    for name in FILES {
        world.add_file(name, &std::fs::read(folder.path().join(name)).expect("it was just made"));
    }
    world
}

/// Opens an image, reads it if there is something to load, and asks for the places of ranges.
fn places(spec: NodeSpec, load: bool, ranges: &[(u64, u64)]) -> Vec<Option<Places>> {
    let mut sim = Sim::new(1, world());
    let node = sim.run_job(async move |io| open(&io, &spec).await).expect("power").expect("opens");
    if load {
        let read = sim.run_job(async move |io| io.read_bytes("test", node, 0, 64 << 10).await);
        read.expect("power").expect("reads");
    }
    ranges.iter().map(|(offset, len)| sim.engine(FIRST).places(node, *offset, *len)).collect()
}

fn top(mode: OpenMode) -> NodeSpec {
    from_filename("top.qcow2", Some("qcow2"), mode).expect("a path")
}

#[test]
fn places_hold_what_a_guest_reads() {
    let ranges = [(8 << 10, 8 << 10), (4 << 10, 8 << 10), (9000, 100), (0, 32 << 10)];
    let files = FILES.map(|name| world().export(name));
    for ((offset, len), found) in ranges.into_iter().zip(places(top(OpenMode::default()), true, &ranges)) {
        let found = found.unwrap_or_else(|| panic!("{offset}+{len}: it is stored as it reads"));
        let expected: Vec<u8> =
            (offset..offset + len).map(|at| if (8 << 10..16 << 10).contains(&at) { 1 } else { 2 }).collect();
        let bytes = |place: &Stored| {
            let range = place.offset as usize..(place.offset + place.len) as usize;
            files[place.leaf.0 as usize][range].to_vec()
        };
        let stored: Vec<u8> = found.iter().flat_map(bytes).collect();
        assert!(stored == expected, "{offset}+{len}: {found:?}");
    }
}

#[test]
fn there_is_none_for_what_may_move_or_is_not_stored() {
    let ranges = [(32 << 10, 4 << 10), (28 << 10, 8 << 10), (60 << 10, 4 << 10), (u64::MAX - 1, 4)];
    assert!(
        places(top(OpenMode::default()), true, &ranges).iter().all(Option::is_none),
        "zeros, or no range"
    );
    assert_eq!(places(top(OpenMode::default()), false, &[(8 << 10, 4096)]), [None], "not in memory");
    let writable = OpenMode { writable: true, ..OpenMode::default() };
    assert_eq!(places(top(writable), true, &[(8 << 10, 4096)]), [None], "a write may move it");
    // A window of a file does not move what it shows.
    let raw = NodeSpec::raw(NodeSpec::file("top.qcow2", writable));
    let found = places(raw, false, &[(512, 4096)]).remove(0).expect("a window");
    assert_eq!((found.len(), found[0].offset, found[0].len), (1, 512, 4096));
}
