//! Commit and rebase on simulated disks: the power goes after every intent, or one intent fails, and guests see the same
//! disk all the same; nothing that is in use is counted as free.

use std::rc::Rc;

use drystone_conformance::cases::WRITABLE;
use drystone_conformance::disk::Survival;
use drystone_conformance::explore::operations::commit_top;
use drystone_conformance::fault::{Effect, Fault};
use drystone_conformance::qemu::Folder;
use drystone_conformance::sim::{Sim, Stopped};
use drystone_conformance::world::World;
use drystone_core::engine::Io;
use drystone_core::error::{Error, Result};
use drystone_core::format::qcow2::check::check;
use drystone_core::graph::open::{OpenMode, open};
use drystone_core::graph::options::from_filename;
use drystone_core::intent::Errno;
use drystone_core::job::{Count, Rebase, change_backing, rebase};

/// Guest's disk in bytes.
const LEN: usize = 1 << 20;

/// What is done to the image `top`.
#[derive(Clone, Copy, Debug)]
enum Job {
    /// Into `middle`; then it is emptied.
    Commit,
    /// Into `base`, through `middle`.
    CommitThrough,
    /// Onto `other`.
    Rebase,
    /// Onto nothing, compressed.
    Flatten,
}

/// Options of the images, which the jobs are tried on.
const SHAPES: &[&str] = &[
    "cluster_size=4k",
    "cluster_size=512",
    "cluster_size=16k,extended_l2=on",
    "cluster_size=4k,compat=0.10",
    "cluster_size=4k,refcount_bits=1",
];

fn world(shape: &str, snapshot: bool) -> (World, Vec<u8>) {
    let folder = Folder::new();
    let run = |line: &str| {
        let words: Vec<_> = line.split(' ').collect();
        folder.run(&words).unwrap_or_else(|report| panic!("{report}"));
    };
    let io = |image: &str, commands: &[&str]| {
        let mut words = vec!["qemu-io", "-f", "qcow2"];
        commands.iter().for_each(|command| words.extend(["-c", command]));
        words.push(image);
        folder.run(&words).unwrap_or_else(|report| panic!("{report}"));
    };
    run(&format!("qemu-img create -f qcow2 -o {shape} base 1M"));
    io("base", &["write -P 1 0 100k", "write -P 2 500k 60k"]);
    run(&format!("qemu-img create -f qcow2 -o {shape} -b base -F qcow2 middle 1M"));
    io("middle", &["write -P 3 50k 70k", "write -z 510k 16k"]);
    run(&format!("qemu-img create -f qcow2 -o {shape} -b middle -F qcow2 top 1M"));
    io("top", &["write -P 4 110k 20k", "write -P 5 700k 40k", "write -z 16k 16k", "write -P 6 1000k 3k"]);
    if snapshot {
        run("qemu-img snapshot -c s top");
        io("top", &["write -P 7 112k 3k"]);
    }
    run(&format!("qemu-img create -f qcow2 -o {shape} other 800k"));
    io("other", &["write -P 1 0 30k", "write -P 9 520k 20k", "write -P 8 750k 20k"]);
    let mut world = World::new();
    for (name, content) in folder.files().expect("the folder can be read") {
        world.add_file(&name, &content.to_vec());
    }
    let guest = folder.guest("top", "qcow2").unwrap_or_else(|report| panic!("{report}"));
    (world, guest.to_vec())
}

/// Opens, does the job, closes.
async fn work(io: Io, job: Job) -> Result<()> {
    let down = match job {
        Job::Commit => 1,
        Job::CommitThrough => 2,
        Job::Rebase | Job::Flatten => 0,
    };
    if down > 0 {
        return commit_top(&io, down).await;
    }
    let top = open(&io, &from_filename("top", Some("qcow2"), WRITABLE)?).await?;
    let done = match job {
        Job::Rebase => {
            let spec = from_filename("other", Some("qcow2"), OpenMode { writable: false, ..WRITABLE })?;
            match open(&io, &spec).await {
                Ok(other) => {
                    let plan =
                        Rebase { image: top, backing: Some(other), compress: false, count: Count::Disk };
                    let done = put_onto(&io, plan, Some(("other", Some("qcow2")))).await;
                    done.and(io.close(other).await)
                }
                Err(error) => Err(error),
            }
        }
        _ => {
            put_onto(&io, Rebase { image: top, backing: None, compress: true, count: Count::Disk }, None)
                .await
        }
    };
    done.and(io.close(top).await)
}

async fn put_onto(io: &Io, plan: Rebase, backing: Option<(&str, Option<&str>)>) -> Result<()> {
    let copied = rebase(io, &plan, Rc::new(|_, _| {}), &|| false).await;
    copied.map_err(|stopped| stopped.source)?;
    change_backing(io, plan.image, backing).await
}

/// What a guest sees of `top`, and what a check of every image finds, in a world that was left behind.
fn look(world: World) -> std::result::Result<Vec<u8>, String> {
    let mut sim = Sim::new(1, world);
    let seen = sim.run_job(|io| async move {
        for image in ["base", "middle", "top"] {
            let spec = from_filename(image, Some("qcow2"), OpenMode { writable: false, ..WRITABLE })?;
            let node = open(&io, &spec).await?;
            let mut said = Vec::new();
            let report = check(&io, node, &mut |line| said.push(line), &|_, _| {}).await?;
            io.close(node).await?;
            if report.corruptions + report.check_errors > 0 {
                return Err(Box::new(Error::Options(format!("{image}: {said:?}"))));
            }
        }
        let spec = from_filename("top", Some("qcow2"), OpenMode { writable: false, ..WRITABLE })?;
        let top = open(&io, &spec).await?;
        let bytes = io.read_bytes("test", top, 0, LEN).await?;
        io.close(top).await?;
        Ok::<_, Box<Error>>(bytes.to_vec())
    });
    seen.expect("the power stays on").map_err(|error| error.to_string())
}

fn every_crash(job: Job, shape: &str, snapshot: bool) {
    let (world, guest) = world(shape, snapshot);
    let about =
        |stop: u64, survival| format!("{job:?}, {shape}, snapshot {snapshot}, stop {stop}, {survival:?}");
    let mut whole = Sim::new(7, world.clone());
    whole
        .run_job(|io| work(io, job))
        .expect("the power stays on")
        .unwrap_or_else(|error| panic!("{job:?}, {shape}: {error}"));
    let intents = whole.answered();
    assert_eq!(look(whole.into_world()).as_deref(), Ok(&guest[..]), "{job:?}, {shape}: done");
    for stop in 1..intents {
        let mut sim = Sim::new(7, world.clone());
        sim.stop_after = Some(stop);
        let ended = sim.run_job(|io| work(io, job));
        assert!(matches!(ended, Err(Stopped)), "{}", about(stop, Survival::Nothing));
        for survival in
            [Survival::Nothing, Survival::Everything, Survival::Seed(stop), Survival::Seed(stop + 1000)]
        {
            let seen = look(sim.after_crash(survival));
            assert!(
                seen.as_deref() == Ok(&guest[..]),
                "{}: {:?}",
                about(stop, survival),
                difference(&seen, &guest)
            );
        }
    }
}

fn difference(seen: &std::result::Result<Vec<u8>, String>, guest: &[u8]) -> String {
    match seen {
        Err(report) => report.clone(),
        Ok(seen) => format!("differs from byte {:?} on", seen.iter().zip(guest).position(|(a, b)| a != b)),
    }
}

/// One intent fails; whatever the job then says, the disk is the same.
fn every_fault(job: Job, shape: &str) {
    let (world, guest) = world(shape, false);
    for errno in [Errno::EIO, Errno::ENOSPC] {
        for skip in 0.. {
            let mut sim = Sim::new(3, world.clone());
            sim.faults.rules.push(Fault::nth(skip, Effect::Fail(errno)));
            let _ = sim.run_job(|io| work(io, job)).expect("the power stays on");
            sim.run_until_idle().expect("the power stays on");
            let hurt = sim.faults.hurt();
            let seen = look(sim.into_world());
            assert!(
                seen.as_deref() == Ok(&guest[..]),
                "{job:?}, {shape}, {errno}, intent {skip}: {}",
                difference(&seen, &guest)
            );
            if !hurt {
                break;
            }
        }
    }
}

#[test]
fn a_crash_in_a_commit() {
    for shape in SHAPES {
        every_crash(Job::Commit, shape, false);
    }
}

#[test]
fn a_crash_in_a_commit_of_an_image_with_a_snapshot() {
    every_crash(Job::Commit, "cluster_size=4k", true);
}

#[test]
fn a_crash_in_a_commit_through_a_chain() {
    for shape in &SHAPES[..2] {
        every_crash(Job::CommitThrough, shape, false);
    }
}

#[test]
fn a_crash_in_a_rebase() {
    for shape in SHAPES {
        every_crash(Job::Rebase, shape, false);
    }
}

#[test]
fn a_crash_while_an_image_is_flattened() {
    for shape in SHAPES {
        every_crash(Job::Flatten, shape, false);
    }
}

#[test]
fn a_fault_anywhere() {
    for job in [Job::Commit, Job::CommitThrough, Job::Rebase, Job::Flatten] {
        for shape in &SHAPES[..3] {
            every_fault(job, shape);
        }
    }
}
