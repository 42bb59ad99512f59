//! Processes that write to real images and are killed, or meet a full disk: what they had flushed is there, and QEMU
//! finds no errors.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use drystone_conformance::cases::{RawCase, case_of, qcow2};
use drystone_conformance::qemu::Folder;
use drystone_conformance::real::{Executor, Machine, RealRunner};
use drystone_conformance::scenario::{Ask, Event, RunError, Runner};
use drystone_conformance::sim::Stopped;
use drystone_conformance::suite::{Case, Run};
use drystone_core::engine::Reply;
use drystone_core::graph::open::NodeSpec;
use drystone_exec_linux::BackendKind;

/// Where the child finds its case, seed, folder and limit, between line feeds.
const ORDERS: &str = "DRYSTONE_KILLED";

/// What the child's lines begin with, so that they differ from those of the test harness.
const MARK: &str = "event";

const CASES: [&str; 7] = [
    RAW,
    "qcow2, empty",
    "qcow2, clusters of 512",
    "qcow2, subclusters",
    "qcow2, compressed",
    "qcow2, shared with a snapshot",
    "qcow2, third of a chain",
];

const RAW: &str = "raw";

/// The limit of a child that has room for all it writes.
const UNLIMITED: &str = "unlimited";

fn case(name: &str) -> Case {
    if name == RAW {
        return RawCase::default().case(RAW);
    }
    let recipe = qcow2().into_iter().find(|recipe| recipe.name == name).expect("a case of the suite");
    case_of(recipe).unwrap_or_else(|report| panic!("{report}"))
}

fn run<'a>(case: &'a Case, seed: u64, folder: &Path) -> Run<'a> {
    Run::in_folder(case, seed, folder).within().without_refusals()
}

/// Tells what it does before and after it does it.
struct Telling<'a>(RealRunner<'a>);

fn tell(event: Event) {
    let line = match event {
        Event::Begun(tag) => format!("{MARK} begun {tag}\n"),
        Event::Ended(tag, worked) => format!("{MARK} ended {tag} {worked}\n"),
    };
    std::io::stderr().write_all(line.as_bytes()).expect("the parent listens");
}

fn told(line: &str) -> Option<Event> {
    match *line.split(' ').collect::<Vec<_>>() {
        [MARK, "begun", tag] => Some(Event::Begun(tag.parse().ok()?)),
        [MARK, "ended", tag, worked] => Some(Event::Ended(tag.parse().ok()?, worked.parse().ok()?)),
        _ => None,
    }
}

impl Runner for Telling<'_> {
    fn open(&mut self, spec: &NodeSpec) -> Result<(), RunError> {
        self.0.open(spec)
    }

    fn size(&mut self) -> u64 {
        self.0.size()
    }

    fn submit(&mut self, batch: Vec<Ask>) {
        batch.iter().for_each(|ask| tell(Event::Begun(ask.tag)));
        self.0.submit(batch);
    }

    fn wait(&mut self) -> Result<Reply, Stopped> {
        let reply = self.0.wait()?;
        tell(Event::Ended(reply.tag, reply.result.is_ok()));
        Ok(reply)
    }

    fn close(&mut self) -> Result<(), RunError> {
        self.0.close()
    }
}

#[test]
#[ignore = "the other tests run it, in a process of its own"]
fn child() {
    let orders = std::env::var(ORDERS).expect("only the other tests run this one");
    let orders: Vec<&str> = orders.split('\n').collect();
    let [name, seed, folder, limit] = orders[..] else { panic!("{orders:?}") };
    let seed: u64 = seed.parse().expect("a number");
    let (case, folder) = (case(name), Path::new(folder));
    let executor = Executor::ALL[seed as usize % 3];
    let machine = Machine::start(executor, BackendKind::IoUring)
        .or_else(|_| Machine::start(Executor::Tokio, BackendKind::Threads))
        .expect("threads are everywhere");
    if limit != UNLIMITED {
        let pid = std::process::id().to_string();
        let status = Command::new("prlimit").args(["--pid", &pid, &format!("--fsize={limit}")]).status();
        assert!(status.expect("prlimit is installed (util-linux)").success(), "the limit is set");
    }
    let mut runner = Telling(RealRunner::new(&machine));
    run(&case, seed, folder).play_on_files(&mut runner, limit != UNLIMITED).expect("a play");
}

/// Runs the child, kills it after so many events, and returns the events.
fn events(orders: &str, kill_after: usize) -> Vec<Event> {
    let this = std::env::current_exe().expect("this program");
    let mut command = Command::new("sh");
    // A write beyond the limit sends SIGXFSZ, which would end the child, unless it is ignored.
    command.args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\""]).arg(this);
    command.args(["--exact", "child", "--ignored", "--nocapture"]).env(ORDERS, orders);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("sh and prlimit");
    let mut events = Vec::new();
    let mut said = String::new();
    for line in BufReader::new(child.stderr.take().expect("piped")).lines() {
        let line = line.expect("the child says UTF-8");
        match told(&line) {
            Some(event) => events.push(event),
            None => said.push_str(&(line + "\n")),
        }
        if events.len() == kill_after {
            // Those that come after this one are as true.
            child.kill().expect("SIGKILL reaches it");
        }
    }
    let status = child.wait().expect("it ended");
    let killed = events.len() >= kill_after;
    assert!(killed || status.success(), "the child failed:\n{said}");
    assert!(!events.is_empty(), "the child did nothing:\n{said}");
    events
}

fn each(seeds: std::ops::Range<u64>, limited: bool) {
    let mut failures = Vec::new();
    let (mut flushes, mut errors) = (0, 0);
    for name in CASES {
        let case = case(name);
        for seed in seeds.clone() {
            let folder = Folder::new();
            let run = run(&case, seed, folder.path());
            run.save().expect("the host takes it");
            let longest = folder.files().expect("reads").iter().map(|(_, file)| file.len()).max();
            let room = fastrand::Rng::with_seed(seed).u64(..96 << 10);
            let limit = (longest.expect("a file") + room).to_string();
            let limit = if limited { &limit } else { UNLIMITED };
            // A plan has some sixty steps, and so twice as many events.
            let kill_after = fastrand::Rng::with_seed(!seed).usize(1..110) + if limited { 60 } else { 0 };
            let orders = format!("{name}\n{seed}\n{}\n{limit}", folder.path().display());
            let events = events(&orders, kill_after);
            flushes += usize::from(events.iter().any(|event| matches!(event, Event::Ended(_, true))));
            errors += events.iter().filter(|event| matches!(event, Event::Ended(_, false))).count();
            if let Err(report) = run.recovers_files(&events) {
                failures.push(report);
            }
        }
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
    assert!(flushes > 3, "only {flushes} children got anything done");
    assert_eq!(errors > 0, limited, "{errors} requests failed");
}

#[test]
fn what_a_killed_process_had_flushed_is_there() {
    each(0..4, false);
}

#[test]
fn a_full_disk_loses_nothing_that_was_flushed() {
    each(10..13, true);
}
