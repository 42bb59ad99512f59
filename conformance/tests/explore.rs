//! Crashes at every moment of every operation, and rules of order that are broken on purpose.

use std::collections::BTreeSet;
use std::path::Path;

use drystone_conformance::explore::faults::{EFFECTS, strike_each};
use drystone_conformance::explore::operations::{all, short_plans};
use drystone_conformance::explore::rules::{PROMISES, RULES};
use drystone_conformance::explore::{Access, Explored, Thoroughness, explore};
use drystone_conformance::fault::Kind;

#[test]
fn no_crash_breaks_an_image() {
    for operation in &all() {
        let explored =
            explore(operation, &Thoroughness::quick(), 1).unwrap_or_else(|report| panic!("{report}"));
        assert!(explored.states > 0, "{}: nothing was explored", operation.name);
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
fn an_operation_whose_nth_intent_fails_says_so_and_can_be_done_again() {
    for operation in &all() {
        for effect in EFFECTS {
            let struck = strike_each(operation, effect, 1).unwrap_or_else(|report| panic!("{report}"));
            assert!(struck > 0, "{}: nothing was struck", operation.name);
        }
    }
}

#[test]
fn a_broken_rule_of_order_is_found() {
    let operations = all();
    let mut in_vain = Vec::new();
    for rule in RULES {
        let how = Thoroughness { recover_every: 0, ..Thoroughness::quick() };
        match rule.broken(&operations, &how, 6) {
            Ok(report) => println!("{}: {}", rule.label, report.lines().next().unwrap_or_default()),
            Err(explored) => {
                in_vain.push(format!("{} ({}): {} states", rule.label, rule.operation, explored.states))
            }
        }
    }
    assert!(in_vain.is_empty(), "nobody notices that these are broken:\n{}", in_vain.join("\n"));
}

/// Beginnings of labels of what a guest or a job does to a disk where it has its place already: a flush covers it.
const WORK: &[&str] =
    &["guest/", "filter/write", "convert/", "rebase/", "write_zeroes/data", "copy_on_read.write"];

#[test]
fn every_flush_and_every_change_of_metadata_has_a_rule() {
    let how = Thoroughness { samples: 1, recover_every: 0, recover_samples: 0, qemu_every: 0 };
    let changes = [Kind::Flush, Kind::Write, Kind::WriteZeroes, Kind::Discard];
    let mut without = BTreeSet::new();
    for operation in &all() {
        let explored = explore(operation, &how, 1).unwrap_or_else(|report| panic!("{report}"));
        for (kind, label) in explored.labels.into_iter().filter(|(kind, _)| changes.contains(kind)) {
            let work = kind != Kind::Flush && WORK.iter().any(|work| label.starts_with(work));
            let promised = PROMISES.iter().any(|(promise, _)| *promise == label);
            if !work && !promised && !RULES.iter().any(|rule| rule.label == label) {
                without.insert(format!("{kind:?} '{label}', in {}", operation.name));
            }
        }
    }
    assert!(without.is_empty(), "no rule says what these are for: {without:#?}");
}

/// Where core states an order, and the rules that prove it, by label and operation.
const STATED: &[(&str, &[(&str, &str)])] = &[
    (
        "format/vdi/create.rs",
        &[("vdi.create/before_header", "create a VDI image"), ("vdi.create/after", "create a VDI image")],
    ),
    (
        "format/qed/begin.rs",
        &[
            ("qed.begin/barrier", "new clusters of a QED image"),
            ("qed.begin/mark", "new clusters of a QED image"),
        ],
    ),
    (
        "format/qed/change.rs",
        &[
            ("qed.resize/before_header", "a longer QED image above a file"),
            ("qed.change_backing/before_header", "another backing file of a QED image"),
        ],
    ),
    (
        "format/qed/create.rs",
        &[("qed.create/before_header", "create a QED image"), ("qed.create/after", "create a QED image")],
    ),
    (
        "format/qcow/create.rs",
        &[("qcow.create/before_header", "create a qcow image"), ("qcow.create/after", "create a qcow image")],
    ),
    ("format/qcow/pack.rs", &[("qcow.compress/write", "new clusters of a qcow image")]),
    (
        "format/vmdk/begin.rs",
        &[
            ("vmdk.begin/cid_barrier", "overwrite of a VMDK grain"),
            ("vmdk.begin/barrier", "new grains of a VMDK image"),
            ("vmdk.begin/step", "a VMDK image whose writer went away"),
        ],
    ),
    ("format/vmdk/pack.rs", &[("vmdk.compress/write", "convert to a compressed VMDK image")]),
    (
        "format/vmdk/create.rs",
        &[("vmdk.create/before_header", "create a VMDK image"), ("vmdk.create/after", "create a VMDK image")],
    ),
    (
        "format/qcow2/flush.rs",
        &[
            ("qcow2.flush/before_refcount_table", "new refcount blocks"),
            ("qcow2.flush/before_l2_tables", "allocating write"),
            ("qcow2.flush/before_l1_table", "flushes while tables are made"),
            ("qcow2.flush/before_reclaim", "freed clusters used again"),
            ("qcow2.change_header/before", "a larger refcount table"),
            ("qcow2.change_header/after", "a snapshot is gone back to"),
        ],
    ),
    (
        "format/qcow2/generation/mod.rs",
        &[
            ("qcow2.generation/refcount_blocks", "wider refcounts"),
            ("qcow2.generation/tables", "a snapshot is taken"),
            ("qcow2.generation/l2_table", "a snapshot is taken"),
            ("qcow2.change_header/before", "a snapshot is taken"),
        ],
    ),
    (
        "format/qcow2/empty.rs",
        &[
            ("qcow2.empty/refcount_table", "commit"),
            ("qcow2.empty/refcount_blocks", "commit"),
            ("qcow2.empty/l1_table", "commit"),
            ("qcow2.change_header/before", "commit"),
        ],
    ),
    (
        "format/qcow2/resize.rs",
        &[
            ("qcow2.change_header/before", "a longer disk above a backing file"),
            ("qcow2.resize/data_file", "a longer disk with a data file"),
        ],
    ),
    (
        "format/qcow2/backing.rs",
        &[
            ("qcow2.barrier", "rebase"),
            ("qcow2.change_backing", "rebase, a long name"),
            ("qcow2.change_backing/step", "rebase, a long name"),
        ],
    ),
    (
        "format/qcow2/amend.rs",
        &[
            ("qcow2.flush/l2_tables", "an older version"),
            ("qcow2.generation/refcount_blocks", "wider refcounts"),
        ],
    ),
    ("format/qcow2/preallocate.rs", &[("qcow2.preallocate/zero", "a longer disk, preallocated")]),
    (
        "format/qcow2/create.rs",
        &[
            ("qcow2.create/barrier", "create"),
            ("qcow2.create/header", "create"),
            ("qcow2.create/refcount_table", "create"),
            ("qcow2.create/refcount_blocks", "create"),
            ("qcow2.create/l1_table", "create"),
        ],
    ),
    ("format/qcow2/compressed.rs", &[("qcow2.compress/write", "compressed write")]),
    ("format/qcow2/load.rs", &[("qcow2.own_table/write", "new L2 tables")]),
    (
        "format/qcow2/refcount.rs",
        &[
            ("qcow2.add_refcount_block/write", "new refcount blocks"),
            ("qcow2.grow_refcount_table/block", "a larger refcount table"),
            ("qcow2.grow_refcount_table/table", "a larger refcount table"),
        ],
    ),
    ("format/qcow2/open.rs", &[("qcow2.open/autoclear", "a feature that this writer does not know")]),
    ("format/qcow2/bitmaps/mod.rs", &[("qcow2.bitmaps/in_use", "dirty bitmaps")]),
    (
        "format/qcow2/bitmaps/store.rs",
        &[("qcow2.bitmaps/store", "dirty bitmaps"), ("qcow2.change_header/before", "dirty bitmaps")],
    ),
    (
        "format/qcow2/check/repair.rs",
        &[
            ("qcow2.repair/after_refcounts", "leaks are repaired"),
            ("qcow2.repair/refcount_blocks", "shared clusters are repaired"),
            ("qcow2.repair/after_flags", "errors are repaired"),
        ],
    ),
    (
        "format/qcow2/check/rebuild.rs",
        &[
            ("qcow2.rebuild/refcount_blocks", "lost refcounts are rebuilt"),
            ("qcow2.rebuild/refcount_table", "lost refcounts are rebuilt"),
            ("qcow2.change_header/before", "lost refcounts are rebuilt"),
        ],
    ),
    (
        "format/qcow2/check/snapshots.rs",
        &[("qcow2.repair/snapshot_table", "an incomplete snapshot table is repaired")],
    ),
    ("job/commit.rs", &[("qcow2.barrier", "commit"), ("raw.flush", "commit into a raw file")]),
    // Locks, not a crash: tools' tests show that an image in use is left alone.
    ("job/create.rs", &[]),
];

#[test]
fn every_order_that_core_states_has_a_rule() {
    let core = Path::new(env!("CARGO_MANIFEST_DIR")).join("../core/src");
    let mut stating = BTreeSet::new();
    files_stating(&core, &mut |path| {
        stating.insert(path.strip_prefix(&core).expect("it is below").display().to_string());
    });
    // Its table says the same in other words.
    stating.insert("format/qcow2/check/repair.rs".into());
    let listed: BTreeSet<String> = STATED.iter().map(|(file, _)| (*file).to_owned()).collect();
    assert_eq!(stating, listed, "files that state an order, and those that are listed here");
    for (file, rules) in STATED {
        for (label, operation) in *rules {
            let known = RULES.iter().any(|rule| rule.label == *label && rule.operation == *operation);
            assert!(known, "{file}: no rule '{label}' in '{operation}'");
        }
    }
}

fn files_stating(folder: &Path, found: &mut dyn FnMut(&Path)) {
    for entry in std::fs::read_dir(folder).expect("a folder of sources") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files_stating(&path, found);
        } else if std::fs::read_to_string(&path).expect("a source").contains("Order on disk") {
            found(&path);
        }
    }
}
