//! Persistent dirty bitmaps and power cuts: a bitmap that says it is consistent misses nothing that changed.

use drystone_conformance::cases::WRITABLE;
use drystone_conformance::disk::Survival;
use drystone_conformance::qemu::Folder;
use drystone_conformance::sim::Sim;
use drystone_conformance::world::World;
use drystone_core::buf::Buf;
use drystone_core::format::qcow2::check::check;
use drystone_core::format::qcow2::{DirtyBitmap, Qcow2};
use drystone_core::graph::Role;
use drystone_core::graph::open::{OpenMode, open};
use drystone_core::graph::options::from_filename;
use drystone_core::intent::{Fua, ZeroFlags};

const TOP: &str = "disk.qcow2";
const SIZE: usize = 1 << 20;

fn image() -> World {
    let folder = Folder::new();
    let run = |line: &[&str]| folder.run(line).unwrap_or_else(|report| panic!("{report}"));
    run(&["qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", TOP, "1M"]);
    run(&["qemu-io", "-f", "qcow2", "-c", "write -P 1 0 128k", TOP]);
    run(&["qemu-img", "bitmap", "--add", "-g", "4k", TOP, "one"]);
    run(&["qemu-img", "bitmap", "--add", "-g", "64k", TOP, "two"]);
    run(&["qemu-io", "-f", "qcow2", "-c", "write -P 2 64k 8k", TOP]);
    let mut world = World::new();
    world.add_file(TOP, &std::fs::read(folder.path().join(TOP)).expect("it was just made"));
    world
}

/// A guest's work: data in place and fresh, zeros, a discard, a flush in between, and the end.
async fn work(io: drystone_core::engine::Io) -> drystone_core::error::Result<()> {
    let node = open(&io, &from_filename(TOP, Some("qcow2"), WRITABLE)?).await?;
    let write = async |at: u64, byte: u8| {
        let mut data = Buf::zeroed(4096);
        data.fill(byte);
        io.write("test", node, at, data, Fua::No).await.1
    };
    write(8192, 3).await?;
    write(600 << 10, 4).await?;
    io.flush("test", node).await?;
    io.write_zeroes("test", node, 32 << 10, 8192, ZeroFlags::default()).await?;
    io.discard("test", node, 96 << 10, 4096).await?;
    write(900 << 10, 5).await?;
    io.close(node).await
}

/// What a reader finds: the guest's disk, and the bitmaps.
fn look(world: &World) -> (Vec<u8>, Vec<DirtyBitmap>) {
    let found = Sim::new(5, world.clone()).run_job(async |io| {
        let node = open(&io, &from_filename(TOP, Some("qcow2"), OpenMode::default())?).await?;
        let bytes = io.read_bytes("test", node, 0, SIZE).await?;
        let driver = io.driver(node).expect("a format");
        let qcow2 = driver.as_any().downcast_ref::<Qcow2>().expect("qcow2");
        let bitmaps = qcow2.load_bitmaps(&io, io.edge(node, Role::File).expect("a file")).await?;
        let report = check(&io, node, &mut |_| {}, &|_, _| {}).await?;
        assert_eq!((report.corruptions, report.check_errors), (0, 0));
        io.close(node).await?;
        Ok::<_, Box<drystone_core::error::Error>>((bytes.to_vec(), bitmaps))
    });
    found.expect("power").expect("can be read")
}

fn is_dirty(bitmap: &DirtyBitmap, offset: u64) -> bool {
    bitmap.ranges().any(|(start, len)| (start..start + len).contains(&offset))
}

#[test]
fn a_bitmap_that_is_consistent_misses_no_change() {
    let before = image();
    let (content, bitmaps) = look(&before);
    assert!(bitmaps.iter().all(|bitmap| is_dirty(bitmap, 64 << 10) && !is_dirty(bitmap, 8192) || bitmap.about.name == "two"));
    let mut sim = Sim::new(1, before.clone());
    sim.run_job(work).expect("power").expect("works");
    let intents = sim.answered();
    let (mut used, mut unused, mut done) = (0, 0, 0);
    for stop in 0..=intents {
        let mut sim = Sim::new(stop, before.clone());
        sim.stop_after = Some(stop);
        let _ = sim.run_job(work);
        for survival in [Survival::Nothing, Survival::Everything, Survival::Seed(stop), Survival::Seed(!stop)]
        {
            let (now, bitmaps) = look(&sim.after_crash(survival));
            assert_eq!(bitmaps.len(), 2, "cut after {stop}, {survival:?}: a bitmap is lost");
            for bitmap in &bitmaps {
                if bitmap.about.in_use {
                    used += 1;
                    continue;
                }
                assert!(is_dirty(bitmap, 64 << 10), "what was dirty before");
                let changed =
                    (0..SIZE).step_by(4096).filter(|at| now[*at..*at + 4096] != content[*at..*at + 4096]);
                for at in changed {
                    let name = &bitmap.about.name;
                    assert!(
                        is_dirty(bitmap, at as u64),
                        "cut after {stop}, {survival:?}: '{name}' misses {at:#x}"
                    );
                }
                match is_dirty(bitmap, 900 << 10) {
                    true => done += 1,
                    false => unused += 1,
                }
            }
        }
    }
    assert!(used > 20 && unused > 2 && done > 0, "in use {used}, not yet {unused}, stored {done}");
}

#[test]
fn a_session_stores_what_it_changed_and_leaks_nothing() {
    let mut sim = Sim::new(1, image());
    sim.run_job(work).expect("power").expect("works");
    sim.run_until_idle().expect("power");
    let world = sim.into_world();
    let folder = Folder::of(&world).expect("the host takes it");
    folder.check(TOP, "qcow2", false).expect("nothing leaks");
    let (_, bitmaps) = look(&world);
    for bitmap in &bitmaps {
        assert!(!bitmap.about.in_use && bitmap.about.auto);
        for at in [8u64 << 10, 32 << 10, 64 << 10, 96 << 10, 600 << 10, 900 << 10] {
            assert!(is_dirty(bitmap, at), "{}: {at:#x}", bitmap.about.name);
        }
        assert!(!is_dirty(bitmap, 200 << 10));
    }
}
