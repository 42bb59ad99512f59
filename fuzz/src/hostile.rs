//! Bytes as a qcow2 image: looked at, and then worked with, in bounded steps and memory.
//!
//! Whatever the bytes say, opening in many ways, checking, mapping, reading, writing and upkeep (snapshots, lengths, options)
//! end in an answer. Where `check` finds nothing wrong, the image must behave as a flat disk, and `check` must find nothing wrong
//! afterwards. Start at [`exercise`].

use std::rc::Rc;
use std::time::Duration;

use drystone_conformance::meter::peak_of;
use drystone_conformance::model::Rules;
use drystone_conformance::runner::SimRunner;
use drystone_conformance::scenario::{Ask, Draw, Mix, Runner, Step, read_all};
use drystone_conformance::sim::{Sim, Stopped};
use drystone_conformance::sparse::Sparse;
use drystone_conformance::suite::{Image, on};
use drystone_conformance::world::World;
use drystone_core::buf::{Buf, BufList};
use drystone_core::engine::{Io, Op};
use drystone_core::error::Result;
use drystone_core::format::qcow2::check::{CheckReport, check};
use drystone_core::format::qcow2::{Amend, NewSnapshot, Protect, Qcow2Options, SnapshotChoice};
use drystone_core::graph::open::{DriverSpec, NodeSpec, OpenMode, open};
use drystone_core::graph::options::from_filename;
use drystone_core::graph::{NodeId, Preallocate};
use drystone_core::intent::Fua;
use drystone_core::job::{amend, apply_snapshot, create_snapshot, delete_snapshot};

/// The image that is opened, by its path in the world.
pub const TOP: &str = "top.qcow2";

/// Intents that one phase may take. A check reads every table of every snapshot, of which there may be many.
const INTENTS_MAX: u64 = 200_000;

/// Bytes of memory that looking at an image may take: two windows of 128 MiB of counters, which `check` hardly touches
/// where the image is small, and tables as large as the format lets an image claim them to be.
const LOOKING_MAX: usize = 384 << 20;

/// Bytes of memory that a run may take: many requests at once, each with clusters as large as the image says, and what
/// the simulator keeps of them.
const MEMORY_MAX: usize = 512 << 20;

/// Extents of the map that are looked at.
const EXTENTS_MAX: usize = 2048;

/// Bytes read of an image at the most, a piece of each extent.
const READ_MAX: u64 = 4 << 20;

/// Disks up to this length are compared with a flat model, where they are in order.
const MODEL_MAX: u64 = 4 << 20;

/// Place of the incompatible features, and the last byte's bit of an external data file. Source: \[qcow2\] "Header".
const INCOMPATIBLE: u64 = 72;
const DATA_FILE: u8 = 1 << 2;

/// Opens, checks, maps, reads and writes the image [`TOP`] of a world.
///
/// # Panics
/// With what is wrong.
pub fn exercise(world: World, draw: &mut dyn Draw) {
    let seed = draw.below(1 << 32);
    let mut runner = SimRunner::new(Sim::new(seed, world));
    let (before, looking) = peak_of(|| looked(&mut runner));
    assert!(looking <= LOOKING_MAX, "{looking} bytes of memory to look at the image, {LOOKING_MAX} allowed");
    let Some(before) = before else { return };
    let ((), peak) = peak_of(|| go_on(&mut runner, before, draw));
    assert!(peak <= MEMORY_MAX, "{peak} bytes of memory to write to the image, {MEMORY_MAX} allowed");
    let ((), peak) = peak_of(|| keep_up(&mut runner));
    assert!(peak <= MEMORY_MAX, "{peak} bytes of memory to keep the image up, {MEMORY_MAX} allowed");
    let ((), peak) = peak_of(|| otherwise(&mut runner, draw));
    assert!(peak <= MEMORY_MAX, "{peak} bytes of memory to open the image otherwise, {MEMORY_MAX} allowed");
}

/// Opens the image with options that are seldom given, and reads and writes a little, whatever comes of it.
fn otherwise(runner: &mut SimRunner, draw: &mut dyn Draw) {
    let writable = draw.one_in(2);
    let name = ["1", "2", "fuzz", "none"][draw.below(4) as usize];
    let options = Qcow2Options {
        snapshot: draw.one_in(2).then(|| SnapshotChoice::IdOrName(name.into())),
        l2_cache_entry_len: [None, Some(512), Some(4096), Some(1000)][draw.below(4) as usize],
        cache_clean_interval: draw.one_in(4).then_some(Duration::from_secs(1)),
        lazy_refcounts: draw.one_in(4),
        metadata_only: draw.one_in(4),
        for_check: draw.one_in(4),
        discard_no_unref: draw.one_in(4),
        protect: [Protect::NONE, Protect::CONSTANT, Protect::CACHED, Protect::ALL][draw.below(4) as usize],
        ..Qcow2Options::default()
    };
    let at = draw.below(1 << 20);
    let mut spec = spec(writable);
    let DriverSpec::Qcow2 { options: plain, .. } = &mut spec.driver else {
        unreachable!("a name with a format is an image of it")
    };
    *plain = options;
    budget(runner);
    if runner.open(&spec).is_ok() {
        let len = runner.size().min(5000);
        let at = at.min(runner.size() - len);
        let data = || BufList::from(Buf::zeroed(len as usize));
        let asks = [
            (Op::Read, data()),
            (Op::Write(Fua::No), data()),
            (Op::Discard, BufList::new()),
            (Op::Write(Fua::Yes), data()),
        ];
        for ((op, data), tag) in asks.into_iter().zip(0..) {
            runner.submit(vec![Ask { op, offset: at, len, data, tag }]);
            in_time(runner.wait(), "a request");
        }
        let _ = runner.close();
    }
    assert!(!runner.sim.is_stopped(), "opening the image otherwise takes more than {INTENTS_MAX} intents");
    assert_eq!(runner.sim.world.open_leaves(), 0, "a leaf was left open");
}

/// Takes a snapshot, changes lengths and refcounts, goes back and deletes a snapshot, whatever comes of each. An image that
/// is in order before it is so afterwards.
fn keep_up(runner: &mut SimRunner) {
    let Some(before) = looked(runner) else { return };
    budget(runner);
    let kept = runner.sim.run_job(async |io| {
        let Ok(node) = open(&io, &spec(true)).await else { return };
        let size = io.len(node);
        let new = NewSnapshot { name: "fuzz".into(), ..NewSnapshot::default() };
        let any = SnapshotChoice::Both { id: None, name: None };
        let _ = create_snapshot(&io, node, &new).await;
        let longer = size.saturating_add(100_000) / 512 * 512;
        let _ = io.resize(node, longer, Preallocate::Metadata).await;
        let _ = apply_snapshot(&io, node, &any).await;
        let _ = amend(&io, node, &Amend { refcount_bits: Some(32), ..Amend::default() }, Rc::new(|_, _| {}))
            .await;
        let _ = io.resize(node, size / 1024 * 512, Preallocate::Off).await;
        let _ = delete_snapshot(&io, node, &any).await;
        let _ = io.close(node).await;
    });
    in_time(kept, "keeping the image up");
    assert_eq!(runner.sim.world.open_leaves(), 0, "a leaf was left open");
    let sound = |report: &CheckReport| report.corruptions == 0 && report.check_errors == 0;
    if before.as_ref().is_ok_and(sound) {
        let after = looked(runner).expect("what was open before opens again").expect("it was checked before");
        assert!(sound(&after), "in order before it was kept up: {before:?}; after: {after:?}");
    }
}

fn go_on(runner: &mut SimRunner, before: Result<CheckReport>, draw: &mut dyn Draw) {
    // The check may have been wrong, or unable: then nothing is promised but an end.
    let sound = before.as_ref().is_ok_and(|report| report.corruptions == 0 && report.check_errors == 0);
    // Nothing counts the references to an external data file.
    let apart =
        runner.sim.world.disk(TOP).is_some_and(|disk| disk.view().bytes(INCOMPATIBLE, 8)[7] & DATA_FILE != 0);
    let content = (sound && !apart).then(|| whole(runner)).flatten();
    let Some(content) = content else { return work(runner, draw) };
    let mix = mix(draw);
    let plan = mix.plan(content.len(), draw);
    let rules = Rules { discards_on_its_own: true, ..Rules::default() };
    let image = Image { spec: spec(true), content, rules, mix };
    budget(runner);
    if let Err(failure) = on(runner, &image, &plan) {
        // What may not be written may still be read: the dirty and corrupt bits, an unknown feature, a full table.
        let refused = failure.to_string().starts_with("open: ");
        assert!(refused, "in order by `check`, and yet: {failure}");
        return;
    }
    let after = looked(runner).expect("what was open before opens again").expect("it was checked before");
    let fine = after.corruptions == 0 && after.check_errors == 0;
    assert!(fine, "in order before it was written to: {before:?}; after: {after:?}");
}

fn spec(writable: bool) -> NodeSpec {
    let mode = OpenMode { writable, ..OpenMode::default() };
    from_filename(TOP, Some("qcow2"), mode).expect("a path")
}

fn mix(draw: &mut dyn Draw) -> Mix {
    let granule = [512, 4096, 65536][draw.below(3) as usize];
    Mix { steps: 24, granule, len_max: 4 * granule, compressed: true, ..Mix::default() }
}

/// Gives the next phase its steps.
fn budget(runner: &mut SimRunner) {
    runner.sim.stop_after = Some(runner.sim.answered() + INTENTS_MAX);
}

fn in_time<T>(ended: std::result::Result<T, Stopped>, what: &str) -> T {
    ended.unwrap_or_else(|Stopped| panic!("{what} takes more than {INTENTS_MAX} intents"))
}

/// Opens the image for reading, checks it, and reads some of what the map says there is. `None` when it does not open.
fn looked(runner: &mut SimRunner) -> Option<Result<CheckReport>> {
    budget(runner);
    let looked = runner.sim.run_job(async |io| {
        let node = open(&io, &spec(false)).await?;
        let report = check(&io, node, &mut |_| {}, &|_, _| {}).await;
        // What cannot be read says so, and the rest is read all the same.
        let _ = map(&io, node).await;
        io.close(node).await.map(|()| report)
    });
    let looked = in_time(looked, "looking at the image");
    assert_eq!(runner.sim.world.open_leaves(), 0, "a leaf was left open");
    match looked {
        Ok(report) => Some(report),
        Err(error) => {
            assert!(!error.to_string().is_empty(), "an error has words");
            None
        }
    }
}

async fn map(io: &Io, node: NodeId) -> Result<()> {
    let size = io.len(node);
    let (mut offset, mut left) = (0, READ_MAX);
    for _ in 0..EXTENTS_MAX {
        if offset >= size {
            break;
        }
        let Ok(status) = io.status(node, offset, size - offset, None).await else {
            // Damaged here; perhaps not further on.
            offset += 65536;
            continue;
        };
        assert!(status.len > 0 && status.len <= size - offset, "an extent of {} at {offset}", status.len);
        let piece = status.len.min(1 << 16).min(left);
        if status.data && piece > 0 {
            let _ = io.read_bytes("fuzz", node, offset, piece as usize).await;
            left -= piece;
        }
        offset += status.len;
    }
    if size > 0 {
        let _ = io.read_bytes("fuzz", node, size - size.min(512), size.min(512) as usize).await;
    }
    Ok(())
}

/// All that the guest sees, where it can be read and is not too much.
fn whole(runner: &mut SimRunner) -> Option<Sparse> {
    budget(runner);
    runner.open(&spec(false)).ok()?;
    let content = if runner.size() <= MODEL_MAX { read_all(runner).ok() } else { None };
    runner.close().ok()?;
    content.filter(|content| !content.is_empty())
}

/// Opens the image for writing and sends requests at random, whatever comes of them.
fn work(runner: &mut SimRunner, draw: &mut dyn Draw) {
    budget(runner);
    if runner.open(&spec(true)).is_ok() {
        let size = runner.size();
        let plan = mix(draw).plan(size.min(MODEL_MAX), draw);
        for batch in plan.chunks(6) {
            runner.submit(batch.iter().enumerate().map(|(tag, step)| ask(tag, step)).collect());
            for _ in batch {
                in_time(runner.wait(), "a request");
            }
        }
        let _ = runner.close();
    }
    assert!(!runner.sim.is_stopped(), "working with the image takes more than {INTENTS_MAX} intents");
    assert_eq!(runner.sim.world.open_leaves(), 0, "a leaf was left open");
}

fn ask(tag: usize, step: &Step) -> Ask {
    let lengths = step.buffers.iter().map(|(len, _)| Buf::zeroed(*len as usize));
    let mut data: BufList = lengths.collect();
    if !matches!(step.op, Op::Read) {
        for window in data.windows_mut() {
            window.fill(tag as u8 + 1);
        }
    }
    Ask { op: step.op, offset: step.offset, len: step.len, data, tag: tag as u64 }
}
