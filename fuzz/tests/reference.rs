//! The same damaged images for the reference and for us: both take an image or neither does, a check comes to the same end,
//! and a guest reads the same bytes. What differs is listed with its reason, or fails.
//!
//! `DRYSTONE_SEEDS=2000` looks at so many images of each format; `DRYSTONE_FIRST_SEED` is where to begin.

use std::fmt;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use drystone_conformance::panicked;
use drystone_conformance::qemu::Folder;
use drystone_conformance::sim::Sim;
use drystone_conformance::world::World;
use drystone_core::engine::Io;
use drystone_core::error::{FaultKind, Result};
use drystone_core::format::check;
use drystone_core::format::qcow2::Qcow2;
use drystone_core::graph::open::{ChildSpec, DriverSpec, NodeSpec, OpenMode, open};
use drystone_core::graph::options::from_filename;
use drystone_core::graph::{NodeId, Role};
use drystone_fuzz::damage;
use fastrand::Rng;

/// Images of each format where nobody says how many.
const SEEDS: u64 = 150;

/// What the reference may take for one command; a few images keep it busy for ever.
const PATIENCE: Duration = Duration::from_secs(10);

/// Intents that we may take for the same.
const INTENTS_MAX: u64 = 200_000;

/// Disks up to this length are compared byte by byte.
const COMPARED_MAX: u64 = 8 << 20;

/// What an image is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Question {
    /// Does it open for its metadata?
    Info,
    /// What does a check find?
    Check,
    /// What does a guest read?
    Bytes,
}

/// What comes of it.
#[derive(PartialEq, Eq)]
enum Answer {
    /// It opens; a check, by its exit code; or the bytes.
    Opens,
    Found(Finding),
    Bytes(Vec<u8>),
    /// With the words.
    Refused(String),
    /// A crash, or no end in time.
    None(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Finding {
    Nothing,
    Errors,
    Leaks,
    Unsupported,
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Opens => f.write_str("it opens"),
            Self::Found(finding) => write!(f, "{finding:?}"),
            Self::Bytes(bytes) => write!(f, "{} bytes", bytes.len()),
            Self::Refused(why) => write!(f, "refused: {why}"),
            Self::None(why) => write!(f, "no answer: {why}"),
        }
    }
}

impl Answer {
    fn agrees(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Refused(_), Self::Refused(_)) => true,
            _ => self == other,
        }
    }

    fn says(&self, words: &str) -> bool {
        matches!(self, Self::Refused(why) | Self::None(why) if why.contains(words))
    }
}

/// A difference that is in order, and why.
struct Listed {
    why: &'static str,
    fits: fn(Question, ours: &Answer, theirs: &Answer) -> bool,
}

/// All of them.
const LISTED: &[Listed] = &[
    Listed {
        why: "the reference crashes, or does not come to an end",
        fits: |_, ours, theirs| matches!(theirs, Answer::None(_)) && !matches!(ours, Answer::None(_)),
    },
    Listed {
        why: "qcow2: the L1 table is cut off, and the reference takes the disk for one of zeros",
        fits: |_, ours, _| ours.says("Active L1 table at") && ours.says("lies beyond the end of the file"),
    },
    Listed {
        why: "qcow2: a snapshot table lies at a cluster also where there are no snapshots",
        fits: |_, ours, _| ours.says("Snapshot table offset invalid"),
    },
    Listed {
        why: "qcow2: a snapshot table that cannot be read cannot be listed; the reference leaves entries out",
        fits: |question, ours, _| question == Question::Info && ours.says("the snapshot table at"),
    },
    Listed {
        why: "qcow2: the refcount table is cut off or nowhere, and the reference only reads anyway",
        fits: |_, ours, _| {
            let lost = ours.says("lies beyond the end of the file") || ours.says("offset invalid");
            lost && ours.says("Reference count table")
        },
    },
    Listed {
        why: "qcow2: the reference takes what is cut off of the header for zeros",
        fits: |_, ours, _| ours.says("qcow2 header too short"),
    },
    Listed {
        why: "qcow2: a backing file's name has a place in the first cluster also where it has no bytes",
        fits: |_, ours, _| ours.says("Invalid backing file offset: 0 bytes"),
    },
    Listed {
        why: "qcow2: the reference wants a data file's clusters where the guest has them; we believe an entry that says otherwise",
        fits: |question, ours, theirs| {
            let read = question == Question::Bytes && matches!(ours, Answer::Bytes(_));
            read && theirs.says("does not match guest cluster offset")
        },
    },
    Listed {
        why: "qcow2: for one damaged bitmap the reference refuses the image; we list and check the rest",
        fits: |question, ours, theirs| {
            let opens = question != Question::Bytes && !matches!(ours, Answer::Refused(_) | Answer::None(_));
            opens && (theirs.says("Bitmap '") || theirs.says("bitmap_table"))
        },
    },
    Listed {
        why: "qcow2: a raw data file is said to be there, and no data file is: the check finds it, the reference refuses",
        fits: |question, ours, theirs| {
            let found = question == Question::Check && *ours == Answer::Found(Finding::Errors);
            found && theirs.says("data-file-raw requires a data file")
        },
    },
    Listed {
        why: "VDI: the reference does not look at the bytes in front of each block, and takes them for the block's",
        fits: |_, ours, _| ours.says("extra bytes before each block"),
    },
    Listed {
        why: "VDI: the reference reads zeros, or other blocks, where the map names no block of the image",
        fits: |question, ours, _| question == Question::Bytes && ours.says("the block map's entry of block"),
    },
    Listed {
        why: "VDI: the reference takes a block map that overlaps the first block",
        fits: |_, ours, _| ours.says("does not fit in front of"),
    },
    Listed {
        why: "VDI: the reference takes what is cut off of the header for zeros",
        fits: |_, ours, _| ours.says("the VDI header needs 512 bytes"),
    },
];

#[test]
fn qcow2_images_are_taken_as_the_reference_takes_them() {
    damage::sound();
    compare("qcow2", "top.qcow2", &|rng| damage::damaged(rng));
}

#[test]
fn vdi_images_are_taken_as_the_reference_takes_them() {
    compare("vdi", drystone_conformance::explore::TOP, &|rng| drystone_fuzz::vdi::damaged(rng));
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text}")))
}

fn compare(format: &str, top: &str, damaged: &dyn Fn(&mut Rng) -> World) {
    let first = number("DRYSTONE_FIRST_SEED").unwrap_or(0);
    let seeds = number("DRYSTONE_SEEDS").unwrap_or(SEEDS);
    let mut listed = vec![0u64; LISTED.len()];
    let (mut same, mut differences) = ([0u64; 2], Vec::new());
    for seed in first..first + seeds {
        let world = damaged(&mut Rng::with_seed(seed));
        let folder = Folder::of(&world).expect("the host has room");
        for question in [Question::Info, Question::Check, Question::Bytes] {
            let theirs = ask_theirs(&folder, question, format, top);
            let Some(theirs) = theirs else { continue };
            let ours = ask_ours(&world, question, format, top);
            if ours.agrees(&theirs) {
                same[usize::from(matches!(ours, Answer::Refused(_)))] += 1;
                continue;
            }
            match LISTED.iter().position(|listed| (listed.fits)(question, &ours, &theirs)) {
                Some(known) => listed[known] += 1,
                None => differences
                    .push(format!("seed {seed}, {question:?}\n  ours:   {ours:?}\n  theirs: {theirs:?}")),
            }
        }
    }
    println!("{format}: the same {} times, refused by both {} times", same[0], same[1]);
    for (listed, times) in LISTED.iter().zip(listed) {
        println!("{times:>6} {}", listed.why);
    }
    assert!(same[0] > seeds / 2 && same[1] > 0, "neither is too sound, nor too broken: {same:?}");
    assert!(differences.is_empty(), "{} differences:\n{}", differences.len(), differences.join("\n"));
}

/// What the reference says; nothing, where it is not asked.
fn ask_theirs(folder: &Folder, question: Question, format: &str, top: &str) -> Option<Answer> {
    let answer = match question {
        Question::Info => match run(folder, &["info", "-f", format, top]) {
            Ok(0) => Answer::Opens,
            Ok(_) => Answer::Refused(said(folder)),
            Err(why) => Answer::None(why),
        },
        Question::Check => match run(folder, &["check", "-f", format, top]) {
            Ok(0) => Answer::Found(Finding::Nothing),
            Ok(2) => Answer::Found(Finding::Errors),
            Ok(3) => Answer::Found(Finding::Leaks),
            Ok(63) => Answer::Found(Finding::Unsupported),
            Ok(_) => Answer::Refused(said(folder)),
            Err(why) => Answer::None(why),
        },
        Question::Bytes => {
            let measured = run(folder, &["info", "-f", format, "--output=json", top]);
            let size = said(folder);
            let size = size.split("\"virtual-size\": ").nth(1).and_then(|rest| rest.split(',').next());
            let size = size.and_then(|size| size.parse::<u64>().ok()).unwrap_or(u64::MAX);
            if measured != Ok(0) || size > COMPARED_MAX {
                return None;
            }
            match run(folder, &["convert", "-f", format, "-O", "raw", top, ".flat"]) {
                Ok(0) => Answer::Bytes(std::fs::read(folder.path().join(".flat")).expect("it was made")),
                Ok(_) => Answer::Refused(said(folder)),
                Err(why) => Answer::None(why),
            }
        }
    };
    Some(answer)
}

/// Runs `qemu-img`, and returns its exit code; what it says goes to a file.
fn run(folder: &Folder, words: &[&str]) -> std::result::Result<i32, String> {
    let said = File::create(folder.path().join(".said")).expect("the folder can be written to");
    let both = said.try_clone().expect("a file can be shared");
    let mut child = Command::new("qemu-img")
        .args(words)
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .stdout(said)
        .stderr(both)
        .spawn()
        .expect("QEMU's tools are there (package qemu-utils)");
    let begun = Instant::now();
    loop {
        match child.try_wait().expect("it was just started") {
            Some(status) => return status.code().ok_or_else(|| format!("{status}: {}", self::said(folder))),
            None if begun.elapsed() > PATIENCE => {
                child.kill().expect("it runs");
                child.wait().expect("it ends");
                return Err(format!("more than {} s", PATIENCE.as_secs()));
            }
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    }
}

/// The end of what it said.
fn said(folder: &Folder) -> String {
    let bytes = std::fs::read(folder.path().join(".said")).expect("it was made");
    let text = String::from_utf8_lossy(&bytes).into_owned();
    text.chars().skip(text.chars().count().saturating_sub(2000)).collect()
}

/// What we say.
fn ask_ours(world: &World, question: Question, format: &str, top: &str) -> Answer {
    let mut spec = from_filename(top, Some(format), OpenMode::default()).expect("a path");
    if let DriverSpec::Qcow2 { backing, options, .. } = &mut spec.driver {
        options.for_check = question == Question::Check;
        if question == Question::Info {
            options.metadata_only = true;
            *backing = ChildSpec::None;
        }
    }
    let world = world.clone();
    let answered = catch_unwind(AssertUnwindSafe(|| {
        let mut sim = Sim::new(0, world);
        sim.stop_after = Some(INTENTS_MAX);
        sim.run_job(async move |io| answer(&io, &spec, question).await)
    }));
    match answered {
        Err(panic) => Answer::None(panicked(panic.as_ref())),
        Ok(Err(_)) => Answer::None(format!("more than {INTENTS_MAX} intents")),
        Ok(Ok(Err(error))) => Answer::Refused(error.to_string()),
        Ok(Ok(Ok(answer))) => answer,
    }
}

async fn answer(io: &Io, spec: &NodeSpec, question: Question) -> Result<Answer> {
    let node = open(io, spec).await?;
    let answer = match question {
        Question::Info => listed(io, node).await.map(|()| Answer::Opens),
        Question::Check => match check(io, node, &mut |_| {}, &|_, _| {}).await {
            Ok(report) if report.check_errors > 0 => {
                Ok(Answer::Refused(format!("{} check errors", report.check_errors)))
            }
            Ok(report) if report.corruptions > 0 => Ok(Answer::Found(Finding::Errors)),
            Ok(report) if report.leaks > 0 => Ok(Answer::Found(Finding::Leaks)),
            Ok(_) => Ok(Answer::Found(Finding::Nothing)),
            Err(error) if error.kind() == FaultKind::Unsupported => Ok(Answer::Found(Finding::Unsupported)),
            Err(error) => Err(error),
        },
        Question::Bytes => {
            let read = io.read_bytes("reference", node, 0, io.len(node) as usize).await;
            read.map(|bytes| Answer::Bytes(bytes.to_vec()))
        }
    };
    io.close(node).await?;
    answer
}

/// Lists what `info` lists besides the header.
async fn listed(io: &Io, node: NodeId) -> Result<()> {
    let (driver, file) = (io.driver(node).expect("a format"), io.edge(node, Role::File));
    if let (Some(qcow2), Some(file)) = (driver.as_any().downcast_ref::<Qcow2>(), file) {
        qcow2.snapshots(io, file).await?;
        qcow2.bitmaps(io, file).await?;
    }
    Ok(())
}
