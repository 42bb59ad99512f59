//! Crashes at every moment of every operation, and rules of order that are broken on purpose.

use std::collections::BTreeSet;
use std::path::Path;

use drystone_conformance::explore::operations::{all, short_plans};
use drystone_conformance::explore::rules::{promises, rules, stated};
use drystone_conformance::explore::{Access, Explored, Thoroughness, explore};
use drystone_conformance::fault::Kind;

#[test]
fn no_crash_breaks_an_image() {
    for operation in &all() {
        let explored =
            explore(operation, &Thoroughness::quick(), 1).unwrap_or_else(|report| panic!("{report}"));
        assert!(explored.states > 0, "{}: nothing was explored", operation.name);
        assert!(explored.recovery_states > 0, "{}: no recovery was crashed", operation.name);
    }
}

#[test]
fn no_crash_breaks_any_three_requests() {
    let mut explored = Explored::default();
    for (plan, operation) in short_plans() {
        let one = explore(&operation, &Thoroughness::quick(), 3);
        explored.add(one.unwrap_or_else(|report| panic!("{plan:?}: {report}")));
    }
    assert!(explored.moments > 2000 && explored.states > 5000, "{explored:?}");
}

#[test]
fn qemu_finds_the_same_states_in_order() {
    let how = Thoroughness { qemu_every: 150, ..Thoroughness::quick() };
    let mut explored = Explored::default();
    for operation in all().iter().filter(|operation| operation.access() != Access::Make) {
        explored.add(explore(operation, &how, 2).unwrap_or_else(|report| panic!("{report}")));
    }
    assert!(explored.by_qemu >= 10, "{} states", explored.by_qemu);
}

#[test]
fn a_broken_rule_of_order_is_found() {
    let operations = all();
    let mut in_vain = Vec::new();
    // Some of them, by what their labels begin with.
    let only = std::env::var("DRYSTONE_RULE").unwrap_or_default();
    for rule in rules().filter(|rule| rule.label.starts_with(&only)) {
        let how = Thoroughness { recover_every: 0, ..Thoroughness::quick() };
        // What looking does not tell, going on may.
        let going_on = || rule.broken(&operations, &Thoroughness::quick(), 6);
        match rule.broken(&operations, &how, 6).or_else(|_| going_on()) {
            Ok(report) => println!("{}: {}", rule.label, report.lines().next().unwrap_or_default()),
            Err(explored) => {
                in_vain.push(format!("{} ({}): {} states", rule.label, rule.operation, explored.states))
            }
        }
    }
    assert!(in_vain.is_empty(), "nobody notices that these are broken:\n{}", in_vain.join("\n"));
}

/// Beginnings of labels of what a guest or a job does to a disk where it has its place already: a flush covers it. Blocks are
/// what direct I/O writes around anything; which rule it stands for can be told where sectors are small.
const WORK: &[&str] = &[
    "guest/",
    "filter/write",
    "convert/",
    "rebase/",
    "write_zeroes/data",
    "copy_on_read.write",
    "write/blocks",
    "crypt.write/data",
    "qcow2.vmstate/write",
];

#[test]
fn every_flush_and_every_change_of_metadata_has_a_rule() {
    let how = Thoroughness { samples: 1, recover_every: 0, recover_samples: 0, qemu_every: 0 };
    let changes = [Kind::Flush, Kind::Write, Kind::WriteZeroes, Kind::Discard];
    let mut without = BTreeSet::new();
    for operation in &all() {
        let explored = explore(operation, &how, 1).unwrap_or_else(|report| panic!("{report}"));
        for (kind, label) in explored.labels.into_iter().filter(|(kind, _)| changes.contains(kind)) {
            let work = kind != Kind::Flush && WORK.iter().any(|work| label.starts_with(work));
            let promised = promises().any(|(promise, _)| *promise == label);
            if !work && !promised && !rules().any(|rule| rule.label == label) {
                without.insert(format!("{kind:?} '{label}', in {}", operation.name));
            }
        }
    }
    assert!(without.is_empty(), "no rule says what these are for: {without:#?}");
}

/// Labels of flushes that go to a node with a driver, whose own flush has another.
const PASSED_ON: &[&str] = &[
    "bench/flush",
    "blkdebug.flush",
    "blklogwrites.flush",
    // To a leaf: the log of a filter. What it is a log of has been flushed by then.
    "blklogwrites.log/flush",
    "blkverify.flush/raw",
    "blkverify.flush/test",
    "compress.flush",
    "convert/flush",
    "copy_on_read.flush",
    "crypt.flush",
    "null.flush",
    "preallocate.flush",
    "write/fua",
    "write_zeroes/fua",
];

/// Also those that no operation comes by.
#[test]
fn every_flush_in_the_source_has_a_rule() {
    const CALLS: &[&str] = &["flush(\"", "barrier(\"", "barrier_for(io, \""];
    let core = Path::new(env!("CARGO_MANIFEST_DIR")).join("../core/src");
    let mut found = BTreeSet::new();
    each_source(&core, &mut |_, text| {
        for call in CALLS {
            let labels = text.split(call).skip(1).filter_map(|rest| rest.split('"').next());
            found.extend(labels.map(str::to_owned));
        }
    });
    assert!(found.len() > 60, "only {} labels: they are given in another way", found.len());
    let known = |label: &str| {
        PASSED_ON.contains(&label)
            || rules().any(|rule| rule.label == label)
            || promises().any(|(promise, _)| *promise == label)
    };
    let without: Vec<_> = found.iter().filter(|label| !known(label)).collect();
    assert!(without.is_empty(), "no rule says what these are for: {without:#?}");
}

#[test]
fn every_order_that_core_states_has_a_rule() {
    let core = Path::new(env!("CARGO_MANIFEST_DIR")).join("../core/src");
    let mut stating = BTreeSet::new();
    each_source(&core, &mut |path, text| {
        if text.contains("Order on disk") {
            stating.insert(path.strip_prefix(&core).expect("it is below").display().to_string());
        }
    });
    // Its table says the same in other words.
    stating.insert("format/qcow2/check/repair.rs".into());
    let listed: BTreeSet<String> = stated().map(|(file, _)| (*file).to_owned()).collect();
    assert_eq!(stating, listed, "files that state an order, and those that are listed here");
    for (file, proofs) in stated() {
        for (label, operation) in *proofs {
            let known = rules().any(|rule| rule.label == *label && rule.operation == *operation);
            assert!(known, "{file}: no rule '{label}' in '{operation}'");
        }
    }
}

fn each_source(folder: &Path, see: &mut dyn FnMut(&Path, &str)) {
    for entry in std::fs::read_dir(folder).expect("a folder of sources") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            each_source(&path, see);
        } else {
            see(&path, &std::fs::read_to_string(&path).expect("a source"));
        }
    }
}
