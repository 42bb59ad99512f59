//! Snapshots through power cuts, failures, and beside a busy guest.

use std::rc::Rc;

use drystone_conformance::cases::WRITABLE;
use drystone_conformance::explore::look;
use drystone_conformance::fault::{Effect, Fault, Kind};
use drystone_conformance::qemu::Folder;
use drystone_conformance::sim::{FIRST, Sim};
use drystone_conformance::upkeep::{Operation, Upkeep, View};
use drystone_conformance::world::World;
use drystone_core::buf::{Buf, BufList};
use drystone_core::engine::{Op, Request};
use drystone_core::error::Error;
use drystone_core::format::qcow2::{NewSnapshot, SnapshotChoice};
use drystone_core::graph::open::open;
use drystone_core::graph::options::from_filename;
use drystone_core::graph::{Access, NodeId, Preallocate};
use drystone_core::intent::{Errno, Fua};
use drystone_core::job::{apply_snapshot, create_snapshot, delete_snapshot};

const FILLED: &str =
    "qemu-io -f qcow2 -c 'write -P 17 10k 150k' -c 'write -P 18 400k 90k' -c 'write -z 440k 20k' top.qcow2";
const CHANGED: &str = "qemu-io -f qcow2 -c 'write -P 19 100k 30k' -c 'write -P 20 700k 30k' top.qcow2";
const PACKED: &str = "qemu-io -f qcow2 -c 'write -c -P 6 512k 64k' -c 'write -c -P 7 576k 64k' top.qcow2";

/// Options of images, small enough that a power cut after every intent takes seconds.
const OPTIONS: &[&str] = &[
    "cluster_size=64k",
    "cluster_size=4k,refcount_bits=8",
    "cluster_size=512,refcount_bits=64",
    "compat=0.10,cluster_size=4k",
    "extended_l2=on,cluster_size=16k,refcount_bits=8",
    "cluster_size=4k,refcount_bits=2",
];

fn images(more: &[&str]) -> Vec<(String, Vec<String>)> {
    // The reference changes no length of a version 2 image with snapshots.
    let resizes = more.iter().any(|line| line.contains(" resize "));
    let commands = |options: &&str| {
        let size = "1000448";
        let mut commands = vec![format!("qemu-img create -q -f qcow2 -o {options} top.qcow2 {size}")];
        commands.push(if options.contains("compat=0.10") {
            FILLED.replace("write -z", "write -P 3")
        } else {
            FILLED.into()
        });
        if !options.contains("refcount_bits=2") && !options.contains("=4k") {
            commands.push(PACKED.into());
        }
        commands.extend(more.iter().map(|line| (*line).to_owned()));
        ((*options).to_owned(), commands)
    };
    let options = OPTIONS.iter().filter(|options| !resizes || !options.contains("compat=0.10"));
    options.map(commands).collect()
}

fn each(more: &[&str], operation: &Operation, check: impl Fn(&Upkeep) -> Result<(), String>) {
    let failures: Vec<String> = images(more)
        .into_iter()
        .filter_map(|(options, commands)| {
            let commands: Vec<_> = commands.iter().map(String::as_str).collect();
            let upkeep = Upkeep::new(&commands, Rc::clone(operation));
            let report = upkeep.and_then(|upkeep| check(&upkeep)).err()?;
            Some(format!("{options}: {report}"))
        })
        .collect();
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

fn create() -> Operation {
    Rc::new(|io, node| {
        Box::pin(async move {
            let new = NewSnapshot { name: "new".into(), seconds: 1, ..NewSnapshot::default() };
            create_snapshot(&io, node, &new).await.map(drop)
        })
    })
}

fn apply(id: &'static str) -> Operation {
    Rc::new(move |io, node| {
        Box::pin(async move { apply_snapshot(&io, node, &SnapshotChoice::IdOrName(id.into())).await })
    })
}

fn delete(id: &'static str) -> Operation {
    Rc::new(move |io, node| {
        Box::pin(async move { delete_snapshot(&io, node, &SnapshotChoice::IdOrName(id.into())).await })
    })
}

fn interrupted(upkeep: &Upkeep) -> Result<(), String> {
    upkeep.crash_everywhere(1)?;
    upkeep.every_nth_fault(Effect::Fail(Errno::EIO))?;
    upkeep.every_nth_fault(Effect::Fail(Errno::ENOSPC))?;
    Ok(())
}

#[test]
fn a_snapshot_is_taken_or_not() {
    each(&[], &create(), |upkeep| {
        let (before, after) = (upkeep.before(), upkeep.after());
        assert_eq!(before.content, after.content);
        assert_eq!(after.snapshots, [("1".to_owned(), "new".to_owned(), before.content.clone())]);
        interrupted(upkeep)
    });
}

#[test]
fn a_second_snapshot_leaves_the_first_alone() {
    each(&["qemu-img snapshot -c first top.qcow2", CHANGED], &create(), |upkeep| {
        let (before, after) = (upkeep.before(), upkeep.after());
        assert_eq!(before.snapshots[..], after.snapshots[..1]);
        assert_eq!(after.snapshots[1].2, before.content);
        interrupted(upkeep)
    });
}

#[test]
fn a_disk_goes_back_or_not() {
    let longer = "qemu-img resize -q top.qcow2 1500672";
    for more in [
        &["qemu-img snapshot -c first top.qcow2", CHANGED][..],
        &["qemu-img snapshot -c first top.qcow2", CHANGED, longer],
    ] {
        each(more, &apply("first"), |upkeep| {
            let (before, after) = (upkeep.before(), upkeep.after());
            assert_eq!(before.snapshots, after.snapshots);
            assert_eq!(after.content, after.snapshots[0].2);
            interrupted(upkeep)
        });
    }
}

#[test]
fn a_snapshot_is_deleted_or_not() {
    let two = [
        "qemu-img snapshot -c first top.qcow2",
        CHANGED,
        "qemu-img snapshot -c second top.qcow2",
        FILLED_AGAIN,
    ];
    for (more, id, left) in [(&two[..2], "first", 0), (&two[..], "first", 1), (&two[..], "second", 1)] {
        each(more, &delete(id), |upkeep| {
            let (before, after) = (upkeep.before(), upkeep.after());
            assert_eq!(before.content, after.content);
            let kept: Vec<_> = before.snapshots.iter().filter(|(_, name, _)| name != id).cloned().collect();
            assert_eq!((after.snapshots.len(), &after.snapshots), (left, &kept));
            interrupted(upkeep)
        });
    }
}

const FILLED_AGAIN: &str = "qemu-io -f qcow2 -c 'write -P 30 0 64k' -c 'write -P 31 450k 100k' top.qcow2";

/// A cluster that was freed, and that the disk refers to again, was flagged as shared when the last snapshot went.
#[test]
fn operations_follow_each_other() {
    let all: Operation = Rc::new(|io, node| {
        Box::pin(async move {
            let new = NewSnapshot { name: "new".into(), ..NewSnapshot::default() };
            let first = SnapshotChoice::IdOrName("first".into());
            apply_snapshot(&io, node, &first).await?;
            create_snapshot(&io, node, &new).await?;
            delete_snapshot(&io, node, &first).await?;
            delete_snapshot(&io, node, &SnapshotChoice::IdOrName("new".into())).await
        })
    });
    each(&["qemu-img snapshot -c first top.qcow2", CHANGED], &all, |upkeep| {
        assert_eq!(upkeep.after().snapshots, []);
        Ok(())
    });
}

#[test]
fn a_reference_that_does_not_fit_changes_nothing() {
    let commands = ["qemu-img create -q -f qcow2 -o refcount_bits=1,cluster_size=4k top.qcow2 1M", FILLED];
    let report = Upkeep::new(&commands, create()).err().expect("refcounts of one bit share nothing");
    assert!(report.contains("has as many references as fit 1 bits"), "{report}");
}

/// What a change that failed wrote beyond the clusters in use is neither part of a longer table, of which pages of zeros are
/// not written where nothing was, nor of a new cluster.
#[test]
fn what_a_failed_snapshot_wrote_shows_nowhere() {
    const KIB: usize = 1 << 10;
    // Ten L2 tables, which the snapshot would copy, reach beyond the first page of the longer L1 table.
    const DATA: usize = 320 * KIB;
    const ONE: usize = 325 * KIB;
    const LONGER: u64 = 40 << 20;
    let folder = Folder::new();
    let create = "qemu-img create -q -f qcow2 -o cluster_size=512 top.qcow2 336k";
    folder.run(&create.split(' ').collect::<Vec<_>>()).expect("QEMU makes it");
    folder.run(&["qemu-io", "-f", "qcow2", "-c", "write -P 17 0 320k", "top.qcow2"]).expect("QEMU fills it");
    let image = std::fs::read(folder.path().join("top.qcow2")).expect("it was just made");
    let mut struck = 0;
    for (skip, grows) in (0..).flat_map(|skip| [(skip, true), (skip, false)]) {
        let mut world = World::new();
        world.add_file("top.qcow2", &image);
        let mut sim = Sim::new(skip, world);
        let once = Fault { skip, times: Some(1), ..Fault::all(Kind::Write, Effect::Fail(Errno::EIO)) };
        sim.faults.rules.push(once);
        let spec = from_filename("top.qcow2", Some("qcow2"), WRITABLE).expect("legal");
        let opens = spec.clone();
        let done = sim.run_job(async move |io| {
            let node = open(&io, &opens).await?;
            let new = NewSnapshot { name: "new".into(), ..NewSnapshot::default() };
            let failed = create_snapshot(&io, node, &new).await.is_err();
            if !failed {
                // All of its writes have had their turn.
                return Ok(false);
            }
            if grows {
                io.resize(node, LONGER, Preallocate::Off).await?;
            } else {
                io.write("test/write", node, ONE as u64, Buf::from(vec![18]), Fua::No).await.1?;
            }
            io.close(node).await.map(|()| true)
        });
        let when = format!("write {skip} failed, grows: {grows}");
        if !done.expect("power").unwrap_or_else(|error| panic!("{when}: {error}")) {
            break;
        }
        sim.run_until_idle().expect("power");
        let content = look(sim.into_world(), spec).unwrap_or_else(|report| panic!("{when}: {report}"));
        assert!(content[..DATA].iter().all(|byte| *byte == 17), "{when}");
        let written: Vec<usize> = (DATA..content.len()).filter(|at| content[*at] != 0).collect();
        assert_eq!(written, if grows { vec![] } else { vec![ONE] }, "{when}: other bytes show");
        struck += 1;
    }
    assert!(struck > 10, "only {struck} snapshots failed");
}

/// What was written before a snapshot was asked for is in it, and what is written after it was taken is not; what was
/// on its way meanwhile may be either. In-place writes, which wait for nobody, are what would break this.
#[test]
fn a_busy_guest_and_a_snapshot_keep_apart() {
    const CLUSTER: u64 = 4096;
    const CLUSTERS: u64 = 64;
    let folder = Folder::new();
    let commands = "qemu-img create -q -f qcow2 -o cluster_size=4k top.qcow2 512k";
    folder.run(&commands.split(' ').collect::<Vec<_>>()).expect("QEMU makes it");
    let image = std::fs::read(folder.path().join("top.qcow2")).expect("it was just made");
    for seed in 0..40 {
        let mut world = World::new();
        world.add_file("top.qcow2", &image);
        let mut sim = Sim::new(seed, world);
        let spec = from_filename("top.qcow2", Some("qcow2"), WRITABLE).expect("legal");
        let node = sim.run_job(async move |io| open(&io, &spec).await).expect("power").expect("opens");
        write_all(&mut sim, node, 1, CLUSTERS);
        sim.run_until_idle().expect("power");
        // Some are overwritten in place, some new, while the snapshot is taken.
        write_all(&mut sim, node, 2, CLUSTERS * 2);
        let new = NewSnapshot { name: "busy".into(), ..NewSnapshot::default() };
        let taken = sim.run_job(async move |io| create_snapshot(&io, node, &new).await).expect("power");
        taken.expect("a snapshot");
        write_all(&mut sim, node, 3, CLUSTERS * 2);
        sim.run_until_idle().expect("power");
        sim.run_job(async move |io| io.close(node).await).expect("power").expect("closes");
        sim.run_until_idle().expect("power");
        let world = sim.into_world();
        Folder::of(&world).expect("room").check("top.qcow2", "qcow2", false).expect("in order");
        let view = View::of(&world).expect("readable");
        let old = &view.snapshots[0].2;
        for cluster in 0..2 * CLUSTERS {
            let at = (cluster * CLUSTER) as usize;
            let least = u8::from(cluster < CLUSTERS);
            let bytes = &old[at..at + CLUSTER as usize];
            assert!(bytes.iter().all(|byte| [least, 2].contains(byte)), "seed {seed}, cluster {cluster}");
        }
        assert!(view.content.iter().all(|byte| *byte == 3), "seed {seed}");
    }
}

/// Submits a write of `value` to each cluster.
fn write_all(sim: &mut Sim, node: NodeId, value: u8, clusters: u64) {
    for cluster in 0..clusters {
        let data = Buf::from(vec![value; 4096]).into();
        let request =
            Request { node, op: Op::Write(Fua::No), offset: cluster * 4096, len: 4096, data, tag: cluster };
        sim.submit(FIRST, request);
    }
}

/// While a machine's state is written behind the disk, the image is longer than the disk, which a guest must not notice.
#[test]
fn a_guest_does_not_reach_a_state_that_is_being_written() {
    const SIZE: u64 = 512 << 10;
    let folder = Folder::new();
    let commands = "qemu-img create -q -f qcow2 -o cluster_size=4k top.qcow2 512k";
    folder.run(&commands.split(' ').collect::<Vec<_>>()).expect("QEMU makes it");
    let image = std::fs::read(folder.path().join("top.qcow2")).expect("it was just made");
    let mut world = World::new();
    world.add_file("top.qcow2", &image);
    let mut sim = Sim::new(1, world);
    let spec = from_filename("top.qcow2", Some("qcow2"), WRITABLE).expect("legal");
    let node = sim.run_job(async move |io| open(&io, &spec).await).expect("power").expect("opens");
    let state = vec![7; 64 << 10];
    let data = Buf::from(state.clone()).into();
    let saving = sim.engine(FIRST).run(90, async move |io| io.vmstate(node, Access::Write, 0, data).await.1);
    let (mut tag, mut refused) = (100, 0);
    while sim.step() {
        for op in [Op::Read, Op::Write(Fua::No), Op::Discard] {
            // The state begins where the next L2 table does, at 2 MiB; nothing between is the disk either.
            for offset in [SIZE, 2 << 20] {
                let data = if op == Op::Discard { BufList::new() } else { Buf::zeroed(512).into() };
                let request = Request { node, op, offset, len: 512, data, tag };
                sim.submit(FIRST, request);
                tag += 1;
            }
        }
        assert_eq!(sim.engine(FIRST).len(node), SIZE);
        while let Some((_, reply)) = sim.next_reply() {
            if reply.tag != 90 {
                let error = reply.result.expect_err("it lies behind the disk");
                assert!(matches!(*error, Error::OutOfRange { .. }), "{error}");
                refused += 1;
            }
        }
    }
    saving.take().expect("it ended").expect("it is written");
    assert!(refused > 20, "{refused} requests");
    let (read, result) = sim
        .run_job(async move |io| io.vmstate(node, Access::Read, 0, Buf::zeroed(64 << 10).into()).await)
        .expect("power");
    result.expect("it is read");
    assert_eq!(*read.into_single(), state[..]);
}
