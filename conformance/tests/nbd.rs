//! The suite through the NBD protocol: on simulated streams, however they deliver and wherever they break, and on the
//! sockets of every executor. The answers and bytes are those of the same image without the protocol.

use drystone_conformance::cases::{RawCase, qcow2_cases, raw, raw_files, vmdk_cases};
use drystone_conformance::hyperv::vhdx_cases;
use drystone_conformance::over_nbd::NbdRunner;
use drystone_conformance::qemu::Folder;
use drystone_conformance::real::{Executor, Machine};
use drystone_conformance::scenario::{Runner, Step};
use drystone_conformance::suite::{Case, Clean, Run};
use drystone_conformance::wire::{Delivery, Towards};
use drystone_core::engine::Op;
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
