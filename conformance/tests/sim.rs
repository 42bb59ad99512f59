//! The simulator itself: what it allows, what it refuses, and that one seed gives one run.

use std::time::Duration;

use drystone_conformance::cases::{RawCase, WRITABLE, stones};
use drystone_conformance::disk::{DiscardEffect, DiskConfig, Survival};
use drystone_conformance::fault::{Effect, Fault, Kind};
use drystone_conformance::sim::{FIRST, Sim, Stopped};
use drystone_conformance::sparse::Sparse;
use drystone_conformance::suite::Run;
use drystone_conformance::world::World;
use drystone_core::buf::{Buf, BufList};
use drystone_core::compute::{Codec, Compute};
use drystone_core::engine::{Op, Request};
use drystone_core::error::{Error, Result};
use drystone_core::graph::NodeId;
use drystone_core::graph::open::{NodeSpec, OpenMode, open};
use drystone_core::intent::{Errno, Fua, Location, Preallocation, ZeroFlags};

fn raw(path: &str, mode: OpenMode) -> NodeSpec {
    NodeSpec::raw(NodeSpec::file(path, mode))
}

fn opened(sim: &mut Sim, spec: NodeSpec) -> Result<NodeId> {
    sim.run_job(|io| async move { open(&io, &spec).await }).expect("the power is on")
}

fn write(node: NodeId, offset: u64, bytes: Vec<u8>, fua: Fua, tag: u64) -> Request {
    Request { node, op: Op::Write(fua), offset, len: 0, data: Buf::from(bytes).into(), tag }
}

#[test]
fn sleep_is_virtual_and_work_is_done() {
    let mut sim = Sim::new(1, World::new());
    let plain = vec![7; 100_000];
    let packed = sim.run_job(|io| async move {
        io.sleep(Duration::from_secs(3600)).await;
        let work = Compute::Compress { codec: Codec::Zlib, plain: Buf::from(plain), limit: 100_000 };
        io.compute("test", work).await.output
    });
    assert!((1..1000).contains(&packed.expect("the power is on").len()));
    assert!(sim.now() >= Duration::from_secs(3600));
}

#[test]
fn replies_come_in_every_order() {
    let mut orders = std::collections::BTreeSet::new();
    for seed in 0..60 {
        let mut world = World::new();
        world.add_file("disk", &[0; 4096]);
        let mut sim = Sim::new(seed, world);
        let node = opened(&mut sim, raw("disk", WRITABLE)).expect("opens");
        for tag in 0..3 {
            sim.submit(FIRST, write(node, tag * 512, vec![1; 512], Fua::No, tag));
        }
        sim.run_until_idle().expect("the power is on");
        let replies = std::iter::from_fn(|| sim.next_reply());
        orders.insert(replies.map(|(_, reply)| reply.tag).collect::<Vec<_>>());
    }
    assert_eq!(orders.len(), 6, "{orders:?}");
}

#[test]
fn a_crash_keeps_fua_writes_and_tears_the_rest() {
    let mut contents = std::collections::BTreeSet::new();
    for seed in 0..40 {
        let mut world = World::new();
        world.add_file("disk", &[0; 4096]);
        let mut sim = Sim::new(seed, world);
        let node = opened(&mut sim, raw("disk", WRITABLE)).expect("opens");
        sim.submit(FIRST, write(node, 0, vec![1; 512], Fua::Yes, 1));
        sim.submit(FIRST, write(node, 512, vec![2; 1024], Fua::No, 2));
        sim.run_until_idle().expect("the power is on");
        let after = sim.after_crash(Survival::Seed(seed)).export("disk");
        assert_eq!(after[..512], [1; 512]);
        contents.insert(after);
    }
    assert_eq!(contents.len(), 4, "each of two sectors is kept or lost");
}

#[test]
fn when_the_power_is_off_nothing_goes_on() {
    let mut world = World::new();
    world.add_file("disk", &[0; 4096]);
    let mut sim = Sim::new(1, world);
    let node = opened(&mut sim, raw("disk", WRITABLE)).expect("opens");
    sim.stop_after = Some(sim.answered() + 1);
    for tag in 0..2 {
        sim.submit(FIRST, write(node, 0, vec![1; 512], Fua::No, tag));
    }
    assert!(sim.wait_reply().expect("the first is answered").is_some());
    assert_eq!(sim.wait_reply().map(|_| ()), Err(Stopped));
    assert_eq!(sim.run_job(|io| async move { io.len(node) }), Ok(4096), "what needs no intent still works");
    assert_eq!(sim.run_job(move |io| async move { io.close(node).await.is_ok() }), Err(Stopped));
}

#[test]
fn faults_strike_the_file_and_the_verb_that_they_name() {
    let mut world = World::new();
    world.add_file("a", &[0; 4096]);
    world.add_file("b", &[0; 4096]);
    let mut sim = Sim::new(1, world);
    let (a, b) = (opened(&mut sim, raw("a", WRITABLE)), opened(&mut sim, raw("b", WRITABLE)));
    let (a, b) = (a.expect("opens"), b.expect("opens"));
    let mut fault = Fault::all(Kind::Write, Effect::Fail(Errno::ENOSPC));
    fault.path = Some("b".into());
    fault.skip = 1;
    sim.faults.rules.push(fault);
    let mut results = Vec::new();
    for (tag, node) in [a, b, b, a, b].into_iter().enumerate() {
        sim.submit(FIRST, write(node, 0, vec![1; 512], Fua::No, tag as u64));
        let (_, reply) = sim.wait_reply().expect("the power is on").expect("a reply");
        results.push(reply.result.map_err(|error| error.errno()));
    }
    let full = Err(Errno::ENOSPC);
    assert_eq!(results, [Ok(()), Ok(()), full, Ok(()), full]);
    assert_eq!(sim.faults.struck.len(), 2);
}

#[test]
fn disks_run_full_and_devices_do_not_grow() {
    let mut world = World::new();
    let config = DiskConfig { capacity: 8192, ..DiskConfig::default() };
    world.add_disk("small", config, Sparse::new(1 << 40));
    let mut sim = Sim::new(1, world);
    let node = opened(&mut sim, raw("small", WRITABLE)).expect("opens");
    let mut results = Vec::new();
    for (tag, offset) in [0, 1 << 30, 1 << 39, 100].into_iter().enumerate() {
        sim.submit(FIRST, write(node, offset, vec![1; 512], Fua::No, tag as u64));
        let (_, reply) = sim.wait_reply().expect("the power is on").expect("a reply");
        results.push(reply.result.map_err(|error| error.errno()));
    }
    assert_eq!(results, [Ok(()), Ok(()), Err(Errno::ENOSPC), Ok(())]);
    let grown = sim.run_job(move |io| async move { io.set_len(node, 4096, Preallocation::Off).await });
    grown.expect("the power is on").expect("files change their length");
    assert_eq!(sim.into_world().export("small").len(), 4096);
}

#[test]
fn files_are_created_refused_and_missing() {
    let mut world = World::new();
    let config = DiskConfig { read_only: true, ..DiskConfig::default() };
    world.add_disk("fixed", config, Sparse::new(512));
    let mut sim = Sim::new(1, world);
    let missing = opened(&mut sim, raw("new", WRITABLE)).expect_err("not there yet");
    assert!(matches!(*missing, Error::Open { errno: Errno::ENOENT, .. }));
    let refused = opened(&mut sim, raw("fixed", WRITABLE)).expect_err("read-only");
    assert!(matches!(*refused, Error::Open { errno: Errno::EACCES, .. }));
    let created = sim.run_job(|io| async move {
        io.create_leaf(&Location::Path("new".into()), 1000, Preallocation::Full).await
    });
    created.expect("the power is on").expect("creates");
    let node = opened(&mut sim, raw("new", WRITABLE)).expect("opens");
    assert_eq!(sim.engine(FIRST).len(node), 1000);
    assert_eq!(sim.world.open_leaves(), 1);
}

#[test]
fn status_tells_holes_from_data() {
    let mut world = World::new();
    world.add_file("disk", &stones(64 * 1024));
    let mut sim = Sim::new(1, world);
    let node = opened(&mut sim, raw("disk", WRITABLE)).expect("opens");
    let holes = sim.run_job(move |io| async move {
        let (mut at, mut holes) = (0, Vec::new());
        while at < 64 * 1024 {
            let status = io.status(node, at, 64 * 1024 - at, None).await.expect("nothing fails");
            if status.zero {
                holes.push(at..at + status.len);
            }
            at += status.len;
        }
        holes
    });
    let holes = holes.expect("the power is on");
    assert_eq!(holes.first().map(|hole| hole.start), Some(32 * 1024));
    assert_eq!(holes.last().map(|hole| hole.end), Some(40 * 1024));
}

#[test]
fn garbage_is_what_a_device_leaves_of_a_discard() {
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..20 {
        let mut world = World::new();
        let config = DiskConfig { discard: DiscardEffect::Anything, ..DiskConfig::default() };
        world.add_disk("disk", config, Sparse::from_bytes(&[1; 4096]));
        let mut sim = Sim::new(seed, world);
        let node = opened(&mut sim, raw("disk", WRITABLE)).expect("opens");
        sim.submit(
            FIRST,
            Request { node, op: Op::Discard, offset: 0, len: 4096, data: BufList::new(), tag: 1 },
        );
        sim.run_until_idle().expect("the power is on");
        seen.insert(sim.into_world().export("disk")[0]);
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), [0, 1, 0xa5]);
}

/// Two engines are two processes: they share files, and the order of everything comes from the one seed.
#[test]
fn engines_share_a_world() {
    let run = |seed| {
        let mut world = World::new();
        world.add_file("disk", &[0; 8192]);
        let mut sim = Sim::new(seed, world);
        sim.start_trace();
        let other = sim.add_engine();
        let first = opened(&mut sim, raw("disk", WRITABLE)).expect("opens");
        let second = sim.run_job_on(other, |io| async move { open(&io, &raw("disk", WRITABLE)).await });
        let second = second.expect("the power is on").expect("raw files are shared");
        for tag in 0..8 {
            sim.submit(FIRST, write(first, tag * 512, vec![1; 512], Fua::No, tag));
            sim.submit(other, write(second, 4096 + tag * 512, vec![2; 512], Fua::No, tag));
        }
        let zeroes = Op::WriteZeroes(ZeroFlags::default(), Fua::No);
        sim.submit(
            FIRST,
            Request { node: first, op: zeroes, offset: 0, len: 512, data: BufList::new(), tag: 9 },
        );
        sim.run_until_idle().expect("the power is on");
        let trace = sim.trace().to_vec();
        (sim.into_world().export("disk"), trace)
    };
    let (bytes, trace) = run(3);
    assert_eq!(bytes[512..4096], [1; 3584]);
    assert_eq!(bytes[4096..], [2; 4096]);
    assert_eq!(run(3), (bytes, trace.clone()));
    assert_ne!(run(4).1, trace);
}

#[test]
#[should_panic(expected = "contract: offset 100 is no multiple of 512")]
fn misaligned_direct_io_is_a_bug() {
    // A leaf that says it needs no alignment, and does.
    let mut world = World::new();
    world.add_file("disk", &[0; 4096]);
    let mut sim = Sim::new(1, world);
    let node = opened(&mut sim, raw("disk", OpenMode { direct: true, ..WRITABLE }));
    let node = node.expect("opens");
    sim.world.disk_mut("disk").expect("added").config.request_align = 1;
    let second = opened(&mut sim, raw("disk", OpenMode { direct: true, ..WRITABLE })).expect("opens");
    sim.world.disk_mut("disk").expect("added").config.request_align = 512;
    sim.submit(FIRST, write(node, 100, vec![1; 10], Fua::No, 1));
    sim.run_until_idle().expect("the first knows the alignment");
    sim.submit(FIRST, write(second, 100, vec![1; 10], Fua::No, 2));
    let _ = sim.run_until_idle();
}

/// Without overlap, replies and bytes do not depend on the order of completions: other executors must agree.
#[test]
fn plans_without_overlap_have_one_result() {
    let case = RawCase::direct(512).case("raw");
    let setup = case.setup;
    let case = drystone_conformance::suite::Case::new("raw", move |world| {
        let mut image = setup(world);
        image.mix.overlap = false;
        image
    });
    for plan in 0..10 {
        let results = (0..5).map(|seed| {
            let run = Run::drawn(&case, seed, &mut fastrand::Rng::with_seed(plan));
            let clean = run.clean().expect("clean");
            (clean.ended, clean.content)
        });
        let results: Vec<_> = results.collect();
        assert!(results.windows(2).all(|pair| pair[0] == pair[1]), "plan {plan}");
    }
}
