//! Metadata that turns out broken while a qcow2 image is written to: the image is marked, and stays as it is.

use drystone_conformance::cases::WRITABLE;
use drystone_conformance::disk::Survival;
use drystone_conformance::qemu::Folder;
use drystone_conformance::sim::Sim;
use drystone_conformance::world::World;
use drystone_core::buf::Buf;
use drystone_core::engine::{Event, Io};
use drystone_core::graph::open::{NodeSpec, OpenMode, open};
use drystone_core::graph::options::from_filename;
use drystone_core::intent::{Fua, ZeroFlags};

const TOP: &str = "disk.qcow2";
const COPIED: u64 = 1 << 63;
const PLACE: u64 = 0x00ff_ffff_ffff_fe00;

fn word(bytes: &[u8], at: u64) -> u64 {
    u64::from_be_bytes(bytes[at as usize..][..8].try_into().expect("eight bytes"))
}

/// An image, and where its tables are: L1, L2, refcount table, refcount block.
fn image() -> (Vec<u8>, [u64; 4]) {
    let folder = Folder::new();
    let run = |line: &[&str]| folder.run(line).unwrap_or_else(|report| panic!("{report}"));
    run(&["qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", TOP, "4M"]);
    run(&["qemu-io", "-f", "qcow2", "-c", "write -P 1 0 64k", TOP]);
    let bytes = std::fs::read(folder.path().join(TOP)).expect("it was just made");
    let (l1, table) = (word(&bytes, 40), word(&bytes, 48));
    let places = [l1, word(&bytes, l1) & PLACE, table, word(&bytes, table)];
    (bytes, places)
}

/// What is done to the cluster whose entry is broken.
#[derive(Clone, Copy, Debug, PartialEq)]
enum First {
    Write,
    Discard,
    Zero,
}

/// Writes to the first cluster and then to another one, and returns what was told and left.
fn written(bytes: &[u8], spec: &NodeSpec, at: u64) -> (Vec<Event>, World) {
    changed(bytes, spec, (First::Write, at))
}

/// Changes the first cluster, writes to another one, and returns what was told and left.
fn changed(bytes: &[u8], spec: &NodeSpec, (first, at): (First, u64)) -> (Vec<Event>, World) {
    let mut world = World::new();
    world.add_file(TOP, bytes);
    let mut sim = Sim::new(1, world);
    let spec = spec.clone();
    let node = sim.run_job(async move |io| open(&io, &spec).await).expect("power").expect("opens");
    let first = sim
        .run_job(async move |io| {
            let write = async |at: u64| io.write("test", node, at, Buf::zeroed(4096), Fua::No).await.1;
            let flags = ZeroFlags { may_unmap: true, no_fallback: false };
            let first = match first {
                First::Write => write(at).await,
                First::Discard => io.discard("test", node, at, 4096).await,
                First::Zero => io.write_zeroes("test", node, at, 4096, flags).await,
            };
            (first, write(8192).await, io.read_bytes("test", node, 16384, 512).await)
        })
        .expect("power");
    assert!(first.0.is_err(), "the first change must fail");
    sim.run_until_idle().expect("power");
    // The mark is durable before the image is closed.
    let left = sim.after_crash(Survival::Nothing);
    assert_eq!(left.export(TOP)[79] & 2, 2, "{:?}", first.0);
    assert!(first.1.is_err(), "nothing is written to a corrupt image");
    assert_eq!(first.2.expect("it can still be read")[0], 1);
    sim.run_job(async move |io| io.close(node).await).expect("power").expect("closes");
    let engine = sim.engine(drystone_conformance::sim::FIRST);
    let events = std::iter::from_fn(|| engine.next_event()).collect();
    (events, sim.into_world())
}

#[test]
fn data_that_lies_on_metadata_is_not_written() {
    let (bytes, [l1, l2, table, block]) = image();
    let spec = from_filename(TOP, Some("qcow2"), WRITABLE).expect("legal");
    let what = [
        (l1, "active L1 table"),
        (l2, "active L2 table"),
        (table, "refcount table"),
        (block, "refcount block"),
    ];
    // An entry that does not say COPIED is not written through, but freed.
    let ways = [(First::Write, COPIED), (First::Discard, COPIED), (First::Discard, 0), (First::Zero, COPIED)];
    for ((at, holds), (first, copied)) in what.iter().flat_map(|what| ways.map(|way| (*what, way))) {
        let mut damaged = bytes.clone();
        damaged[l2 as usize..][..8].copy_from_slice(&(copied | at).to_be_bytes());
        let (events, world) = changed(&damaged, &spec, (first, 0));
        let message = format!("Preventing invalid write on metadata (overlaps with {holds})");
        let node = TOP.to_owned();
        let event = Event::ImageCorrupted { node, message, offset: Some(at), fatal: true };
        assert_eq!(events, [event]);
        // Nothing but the bit has changed.
        let mut expected = damaged;
        expected[79] |= 2;
        let left = world.export(TOP);
        assert_eq!(left[112..expected.len()], expected[112..], "{holds} {first:?}");
        let again = Sim::new(2, world).run_job(async move |io| {
            let writable = open(&io, &from_filename(TOP, Some("qcow2"), WRITABLE)?).await;
            let readable = open(&io, &from_filename(TOP, Some("qcow2"), OpenMode::default())?).await?;
            io.close(readable).await?;
            writable
        });
        let refused = again.expect("power").expect_err("a corrupt image is not opened for writing");
        assert!(refused.to_string().contains("Image is corrupt; cannot be opened read/write"), "{refused}");
    }
}

/// `overlap-check`: each switch protects what it names, and nothing else.
#[test]
fn each_switch_of_the_overlap_check_protects_what_it_names() {
    let (bytes, [l1, l2, table, block]) = image();
    let with = |options: String| {
        let name = format!(r#"json:{{"driver":"qcow2","file.filename":"{TOP}",{options}}}"#);
        from_filename(&name, None, WRITABLE).expect("legal")
    };
    for (at, switch) in
        [(l1, "active-l1"), (l2, "active-l2"), (table, "refcount-table"), (block, "refcount-block")]
    {
        let mut damaged = bytes.clone();
        damaged[l2 as usize..][..8].copy_from_slice(&(COPIED | at).to_be_bytes());
        let on = with(format!(r#""overlap-check.template":"none","overlap-check.{switch}":true"#));
        assert_eq!(written(&damaged, &on, 0).0.len(), 1, "{switch} protects");
        let off = with(format!(r#""overlap-check.template":"all","overlap-check.{switch}":false"#));
        for spec in [off, with(r#""overlap-check":"none""#.to_owned())] {
            let mut world = World::new();
            world.add_file(TOP, &damaged);
            let mut sim = Sim::new(1, world);
            let node = sim.run_job(async move |io| open(&io, &spec).await).expect("power").expect("opens");
            let mut data = Buf::zeroed(4096);
            data.fill(0x77);
            let done = sim.run_job(async move |io| io.write("test", node, 0, data, Fua::No).await.1);
            done.expect("power").unwrap_or_else(|error| panic!("{switch} is off: {error}"));
            let left = sim.after_crash(Survival::Everything).export(TOP);
            assert!(left[at as usize..][..4096].iter().all(|byte| *byte == 0x77), "{switch} is off");
        }
    }
}

/// A table that is made while the image is open is protected, or not, as one that was there before.
#[test]
fn the_overlap_check_covers_what_is_added_as_it_covers_the_rest() {
    const SECOND_TABLE: u64 = 2 << 20;
    let (bytes, [l1, l2, ..]) = image();
    // Opens the image, has it make a second L2 table, and writes what the first entry of the first one names.
    let run = |bytes: &[u8], options: &str| {
        let name = format!(r#"json:{{"driver":"qcow2","file.filename":"{TOP}"{options}}}"#);
        let spec = from_filename(&name, None, WRITABLE).expect("legal");
        let mut world = World::new();
        world.add_file(TOP, bytes);
        let mut sim = Sim::new(1, world);
        let node = sim.run_job(async move |io| open(&io, &spec).await).expect("power").expect("opens");
        let write = move |at| {
            async move |io: Io| {
                let data = Buf::from(vec![0x77; 4096]);
                io.write("test", node, at, data, Fua::No).await.1.and(io.flush("test", node).await)
            }
        };
        sim.run_job(write(SECOND_TABLE)).expect("power").expect("a new table");
        let second = word(&sim.after_crash(Survival::Everything).export(TOP), l1 + 8) & PLACE;
        (sim.run_job(write(0)).expect("power"), second)
    };
    let (_, second) = run(&bytes, "");
    let mut damaged = bytes.clone();
    damaged[l2 as usize..][..8].copy_from_slice(&(COPIED | second).to_be_bytes());
    for (options, protected) in [
        ("", true),
        (r#","overlap-check":"none""#, false),
        (r#","overlap-check.template":"all","overlap-check.active-l2":false"#, false),
        (r#","overlap-check.template":"none","overlap-check.active-l2":true"#, true),
    ] {
        let (written, at) = run(&damaged, options);
        assert_eq!(at, second, "the table comes to the same place");
        assert_eq!(written.is_err(), protected, "{options}: {written:?}");
    }
}

#[test]
fn entries_between_clusters_mark_the_image() {
    let (bytes, [l1, l2, table, block]) = image();
    let spec = from_filename(TOP, Some("qcow2"), WRITABLE).expect("legal");
    let cases = [
        (
            l2,
            COPIED | 0x5200,
            0,
            format!("Cluster allocation offset 0x5200 unaligned (L2 offset: {l2:#x}, L2 index: 0)"),
        ),
        (l1 + 8, COPIED | 0x5200, 2 << 20, "L2 table offset 0x5200 unaligned (L1 index: 0x1)".to_owned()),
        (
            table,
            block | 0x200,
            1 << 20,
            format!("Refblock offset {:#x} unaligned (reftable index: 0)", block | 0x200),
        ),
        (block, 0, 1 << 20, "Preventing invalid write on metadata (overlaps with qcow2_header)".to_owned()),
    ];
    for (at, raw, write_at, expected) in cases {
        let mut damaged = bytes.clone();
        damaged[at as usize..][..8].copy_from_slice(&raw.to_be_bytes());
        let (events, _) = written(&damaged, &spec, write_at);
        let [Event::ImageCorrupted { message, fatal: true, .. }] = &events[..] else { panic!("{events:?}") };
        assert_eq!(*message, expected);
    }
}

#[test]
fn an_image_that_is_only_read_is_told_of_and_not_marked() {
    let (mut bytes, [_, l2, ..]) = image();
    bytes[l2 as usize..][..8].copy_from_slice(&(COPIED | 0x5200).to_be_bytes());
    let mut world = World::new();
    world.add_file(TOP, &bytes);
    let mut sim = Sim::new(1, world);
    let read = sim.run_job(async |io| {
        let node = open(&io, &from_filename(TOP, Some("qcow2"), OpenMode::default())?).await?;
        let read = io.read_bytes("test", node, 0, 512).await;
        io.close(node).await?;
        read
    });
    assert!(read.expect("power").is_err());
    sim.run_until_idle().expect("power");
    let event = sim.engine(drystone_conformance::sim::FIRST).next_event();
    assert!(matches!(event, Some(Event::ImageCorrupted { fatal: false, .. })), "{event:?}");
    assert_eq!(sim.into_world().export(TOP), bytes);
}
