//! The suite on every executor and backend: the answers, errors and bytes of a flat disk and of the simulator.

use drystone_conformance::cases::{
    luks_cases, parallels_cases, qcow2_cases, raw_files, read_only_cases, two_level_cases, vdi_cases,
    vmdk_cases,
};
use drystone_conformance::hyperv::{vhdx_cases, vpc_cases};
use drystone_conformance::qemu::Folder;
use drystone_conformance::real::{Executor, Machine, RealRunner};
use drystone_conformance::scenario::Ended;
use drystone_conformance::suite::{Case, Run};
use drystone_exec_linux::BackendKind;
use std::io::Write as _;

fn cases() -> Vec<Case> {
    let mut cases = raw_files();
    cases.extend(qcow2_cases().unwrap_or_else(|report| panic!("{report}")));
    cases.extend(luks_cases().unwrap_or_else(|report| panic!("{report}")));
    cases.extend(parallels_cases().unwrap_or_else(|report| panic!("{report}")));
    cases.extend(vdi_cases().unwrap_or_else(|report| panic!("{report}")));
    cases.extend(two_level_cases().unwrap_or_else(|report| panic!("{report}")));
    cases.extend(vmdk_cases().unwrap_or_else(|report| panic!("{report}")));
    cases.extend(vhdx_cases().unwrap_or_else(|report| panic!("{report}")));
    cases.extend(vpc_cases().unwrap_or_else(|report| panic!("{report}")));
    picked(cases)
}

/// Those that can be opened for writing, and those that cannot.
fn all_cases() -> Vec<Case> {
    let read_only = read_only_cases().unwrap_or_else(|report| panic!("{report}"));
    cases().into_iter().chain(picked(read_only)).collect()
}

fn picked(mut cases: Vec<Case>) -> Vec<Case> {
    let only = std::env::var("DRYSTONE_CASE").unwrap_or_default();
    cases.retain(|case| case.name.contains(&only));
    cases
}

/// Starts every executor on every backend that this kernel has.
fn machines() -> Vec<(String, Machine)> {
    let mut machines = Vec::new();
    for executor in Executor::ALL {
        for backend in [BackendKind::IoUring, BackendKind::Threads] {
            let name = format!("{executor:?} on {backend:?}");
            match Machine::start(executor, backend) {
                Ok(machine) => machines.push((name, machine)),
                Err(error) => {
                    let _ = writeln!(std::io::stderr(), "{name} is left out: {error}");
                }
            }
        }
    }
    assert!(machines.len() >= 2, "threads, at least, are everywhere");
    machines
}

/// For every case and seed, has every machine `find` what the simulator `expected`; reports all that differs.
fn each<T: PartialEq>(
    cases: Vec<Case>,
    seeds: std::ops::Range<u64>,
    expected: impl Fn(&Run<'_>) -> Result<T, String>,
    find: impl Fn(&Run<'_>, &mut RealRunner<'_>) -> Result<T, String>,
    difference: impl Fn(&T, &T) -> String,
) {
    let machines = machines();
    let mut failures = Vec::new();
    for case in &cases {
        for seed in seeds.clone() {
            let folder = Folder::new();
            let run = Run::in_folder(case, seed, folder.path()).apart();
            let expected = match expected(&run) {
                Ok(expected) => expected,
                Err(report) => {
                    failures.push(format!("simulator: {report}"));
                    continue;
                }
            };
            for (name, machine) in &machines {
                match find(&run, &mut RealRunner::new(machine)) {
                    Ok(found) if found == expected => {}
                    Ok(found) => {
                        let difference = difference(&expected, &found);
                        failures.push(format!("{name}: case {}, seed {seed}: {difference}", case.name));
                    }
                    Err(report) => failures.push(format!("{name}: {report}")),
                }
            }
        }
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn replies_and_bytes_are_those_of_a_flat_disk_and_of_the_simulator() {
    each(
        all_cases(),
        0..3,
        |run| run.clean().map(|clean| (clean.ended, clean.content)),
        |run, runner| run.clean_on_files(runner),
        |expected, found| match expected.0 == found.0 {
            true => "the simulator's guest reads other bytes".into(),
            false => format!("the simulator answers otherwise: {}", difference(&expected.0, &found.0)),
        },
    );
}

/// The first answer that differs.
fn difference(expected: &Ended, found: &Ended) -> String {
    let (Ended::Finished(expected), Ended::Finished(found)) = (expected, found) else {
        return format!("{expected:?}, {found:?}");
    };
    let both = expected.iter().zip(found).enumerate().find(|(_, (a, b))| a != b);
    let Some((step, (a, b))) = both else { return "more or fewer answers".into() };
    let at = a.read.iter().zip(&b.read).position(|(a, b)| a != b);
    format!("step {step}: {:?} there, {:?} here, bytes differ from {at:?} on", a.result, b.result)
}

/// Requests that share bytes may win in either order, so that the flat model alone can judge them.
#[test]
fn requests_that_meet_are_answered_as_on_a_flat_disk() {
    let (cases, machines) = (all_cases(), machines());
    let mut failures = Vec::new();
    for (number, case) in cases.iter().enumerate() {
        for (name, machine) in &machines {
            let folder = Folder::new();
            for seed in 100..102 {
                let run = Run::in_folder(case, seed + number as u64, folder.path());
                if let Err(report) = run.clean_on_files(&mut RealRunner::new(machine)) {
                    failures.push(format!("{name}: {report}"));
                }
            }
        }
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn what_is_refused_is_refused_in_the_same_words() {
    each(
        cases(),
        0..1,
        |run| run.refusals(),
        |run, runner| run.refusals_on_files(runner),
        |expected, found| {
            let differs = expected.iter().zip(found).find(|(a, b)| a != b);
            format!("the simulator says otherwise: {differs:?}")
        },
    );
}
