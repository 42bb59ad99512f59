//! The suite through the NBD protocol: on simulated streams, however they deliver and wherever they break, and on the
//! sockets of every executor. The answers and bytes are those of the same image without the protocol.

use std::ops::Range;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use drystone_conformance::cases::{RawCase, WRITABLE, qcow2_cases, raw, raw_files, vmdk_cases};
use drystone_conformance::hyperv::vhdx_cases;
use drystone_conformance::over_nbd::{NbdRunner, Proxy, Served, at, raw_on};
use drystone_conformance::qemu::Folder;
use drystone_conformance::real::{Executor, Machine, RealRunner};
use drystone_conformance::scenario::{Ask, Runner, Step};
use drystone_conformance::suite::{Case, Clean, Run};
use drystone_conformance::wire::{Delivery, Towards};
use drystone_core::buf::{Buf, BufList};
use drystone_core::engine::Op;
use drystone_core::graph::open::NodeSpec;
use drystone_core::graph::options::from_filename;
use drystone_core::intent::{Fua, ZeroFlags};
use drystone_core::protocol::nbd::Mode;
use drystone_exec_linux::BackendKind;

const MODES: [Mode; 3] = [Mode::Simple, Mode::Structured, Mode::Extended];

fn formats() -> Vec<Case> {
    let mut cases = qcow2_cases().unwrap_or_else(|report| panic!("{report}"));
    cases.extend(vhdx_cases().unwrap_or_else(|report| panic!("{report}")));
    cases.extend(vmdk_cases().unwrap_or_else(|report| panic!("{report}")));
    cases
}

/// What both runs must have in common: not how many intents it took.
fn same(case: &Case, seed: u64, (alone, over): (&Clean, &Clean)) {
    assert!(alone.ended == over.ended, "case {}, seed {seed}: other answers", case.name);
    assert!(alone.content == over.content, "case {}, seed {seed}: other bytes", case.name);
}

#[test]
fn every_byte_may_come_by_itself() {
    let mut cases = raw();
    cases.extend(formats());
    for (number, case) in cases.iter().enumerate() {
        let seed = number as u64;
        let run = Run::new(case, seed).apart();
        let alone = run.clean().unwrap_or_else(|report| panic!("{report}"));
        let delivery = Delivery { mode: MODES[number % 3], piece: 1, cut: None };
        let (over, moved) = run.clean_over(delivery).unwrap_or_else(|report| panic!("{report}"));
        same(case, seed, (&alone, &over));
        // Zeros may go as holes.
        assert!(moved[1] > 10_000, "case {}: {moved:?} bytes are too few for all that is there", case.name);
    }
}

/// A little of everything on a small disk.
fn small() -> (Case, Vec<Step>) {
    let case = RawCase { file_len: 700, ..RawCase::default() }.case("raw, small");
    let flags = ZeroFlags { may_unmap: true, no_fallback: false };
    let step = |op, offset, len| {
        let buffers = if matches!(op, Op::Read | Op::Write(_)) { vec![(len, 0)] } else { Vec::new() };
        Step { op, offset, len, buffers, with_next: true }
    };
    let plan = vec![
        step(Op::Write(Fua::No), 100, 50),
        step(Op::Read, 300, 60),
        step(Op::WriteZeroes(flags, Fua::No), 400, 30),
        step(Op::Discard, 500, 20),
        step(Op::Flush, 0, 0),
        step(Op::Write(Fua::Yes), 600, 10),
        step(Op::Read, 0, 90),
    ];
    (case, plan)
}

#[test]
fn a_stream_that_breaks_after_any_byte_loses_nothing() {
    let (case, plan) = small();
    let run = Run::planned(&case, 1, plan, 16);
    let alone = run.clean().unwrap_or_else(|report| panic!("{report}"));
    for mode in MODES {
        let whole = Delivery { mode, piece: 64, cut: None };
        let (_, moved) = run.clean_over(whole).unwrap_or_else(|report| panic!("{report}"));
        assert!(moved.iter().all(|bytes| *bytes > 300), "{mode:?}: a session is longer than {moved:?}");
        for (towards, bytes) in [(Towards::Server, moved[0]), (Towards::Client, moved[1])] {
            for after in 0..=bytes {
                let delivery = Delivery { cut: Some((towards, after)), ..whole };
                let (over, _) = run.clean_over(delivery).unwrap_or_else(|report| panic!("{report}"));
                same(&case, after, (&alone, &over));
            }
        }
    }
}

/// Servers and clients are on different executors, and on both backends.
#[test]
fn every_executor_serves_and_is_served() {
    let machines: Vec<(String, Machine)> = Executor::ALL
        .into_iter()
        .flat_map(|executor| [BackendKind::IoUring, BackendKind::Threads].map(|backend| (executor, backend)))
        .filter_map(|(executor, backend)| {
            Some((format!("{executor:?} on {backend:?}"), Machine::start(executor, backend).ok()?))
        })
        .collect();
    assert!(machines.len() >= 2, "threads, at least, are everywhere");
    let mut cases = raw_files();
    cases.extend(formats());
    let mut failures = Vec::new();
    for (number, case) in cases.iter().enumerate() {
        let folder = Folder::new();
        let run = Run::in_folder(case, 7, folder.path()).apart();
        let alone = run.clean().unwrap_or_else(|report| panic!("{report}"));
        // Each case on three of the pairs, and each pair with many cases.
        for turn in 0..3 {
            let (server, client) =
                ((number + 2 * turn) % machines.len(), (number + 3 * turn + 1) % machines.len());
            let ((server_name, server), (client_name, client)) = (&machines[server], &machines[client]);
            let mut runner = NbdRunner::new(server, client, folder.path().join("socket"), 1 + number % 3);
            let name = format!("{server_name} serves {client_name}: case {}", case.name);
            match run.clean_on_files(&mut runner as &mut dyn Runner) {
                Ok(found) if found == (alone.ended.clone(), alone.content.clone()) => {}
                Ok(_) => failures.push(format!("{name}: other answers or bytes")),
                Err(report) => failures.push(format!("{name}: {report}")),
            }
        }
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

/// A folder with a qcow2 image, of which metadata is written when somebody flushes.
struct Shelf(Folder);

/// Bytes of its clusters, and how many of them are written.
const CLUSTER: u64 = 4096;
const CLUSTERS: u64 = 32;

impl Shelf {
    fn new() -> Self {
        let folder = Folder::new();
        let create = "qemu-img create -q -f qcow2 -o cluster_size=4k top.qcow2 1M";
        folder.run(&create.split(' ').collect::<Vec<_>>()).expect("QEMU makes it");
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn image(&self) -> NodeSpec {
        let path = self.path("top.qcow2");
        from_filename(path.to_str().expect("a plain name"), Some("qcow2"), WRITABLE).expect("a path")
    }

    /// Whether all of the clusters are in the file as it is, while a server has it open.
    fn holds_all(&self) -> bool {
        std::fs::copy(self.path("top.qcow2"), self.path("copy.qcow2")).expect("the folder is ours");
        let shown = self.0.guest("copy.qcow2", "qcow2").expect("QEMU reads it").to_vec();
        shown[..(CLUSTER * CLUSTERS) as usize].iter().all(|byte| *byte == 7)
    }
}

fn write_all(runner: &mut RealRunner<'_>) {
    write(runner, 0..CLUSTERS);
}

fn write(runner: &mut RealRunner<'_>, clusters: Range<u64>) {
    let write = |cluster| Ask {
        op: Op::Write(Fua::No),
        offset: cluster * CLUSTER,
        len: 0,
        data: Buf::from(vec![7; CLUSTER as usize]).into(),
        tag: cluster,
    };
    runner.submit(clusters.clone().map(write).collect());
    clusters.for_each(|_| runner.wait().expect("the server is there").result.expect("it writes"));
}

fn flush(runner: &mut RealRunner<'_>) {
    runner.submit(vec![Ask { op: Op::Flush, offset: 0, len: 0, data: BufList::new(), tag: 0 }]);
    runner.wait().expect("the server is there").result.expect("it flushes");
}

fn machine(executor: Executor) -> Machine {
    Machine::start(executor, BackendKind::Auto).expect("every kernel has threads")
}

/// What a server promises with `CAN_MULTI_CONN`: a flush through one connection is about what was answered through any.
#[test]
fn a_flush_covers_what_came_through_another_connection() {
    let shelf = Shelf::new();
    let (server, one, other) =
        (machine(Executor::Tokio), machine(Executor::Monoio), machine(Executor::Glommio));
    let served = Served::begin(&server, &shelf.image(), &shelf.path("socket"), None).expect("it opens");
    let spec = raw_on(at(&served.path));
    let (mut writer, mut flusher) = (RealRunner::new(&one), RealRunner::new(&other));
    writer.open(&spec).expect("it is served");
    flusher.open(&spec).expect("it is served to many");
    write_all(&mut writer);
    // Who has written nothing sends no flush.
    write(&mut flusher, CLUSTERS..CLUSTERS + 1);
    assert!(!shelf.holds_all(), "nobody has flushed");
    flush(&mut flusher);
    assert!(shelf.holds_all(), "a flush is about the other connection's writes");
    writer.close().expect("it closes");
    flusher.close().expect("it closes");
    served.close().expect("it closes");
}

/// A client flushes through any of its connections, and so has several only where the server makes that promise.
#[test]
fn several_connections_need_a_server_whose_flushes_cover_them_all() {
    const WANTED: usize = 4;
    let mut took = Duration::ZERO;
    for shared in [true, false] {
        let shelf = Shelf::new();
        let (server, client) = (machine(Executor::Tokio), machine(Executor::Tokio));
        let served = Served::promising(&server, &shelf.image(), &shelf.path("server"), (shared, None));
        let served = served.expect("it opens");
        let proxy = Proxy::start(&shelf.path("proxy"), &served.path);
        let mut location = at(&proxy.path);
        location.connections = WANTED;
        let mut runner = RealRunner::new(&client);
        let begun = Instant::now();
        runner.open(&raw_on(location)).expect("it is served");
        // They come about beside the first: until they have, or for far longer than that took.
        let come = || proxy.connections() == WANTED as u64;
        while !come() && (shared || begun.elapsed() < Duration::from_millis(100) + 10 * took) {
            assert!(begun.elapsed() < Duration::from_secs(20), "they do not come");
            std::thread::sleep(Duration::from_millis(1));
        }
        took = begun.elapsed();
        assert_eq!(come(), shared, "{} connections", proxy.connections());
        write_all(&mut runner);
        assert!(!shelf.holds_all(), "nobody has flushed");
        flush(&mut runner);
        assert!(shelf.holds_all(), "a flush is about all connections' writes");
        runner.close().expect("it closes");
        served.close().expect("it closes");
    }
}
