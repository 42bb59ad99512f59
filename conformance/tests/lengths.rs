//! Lengths, refcount widths and versions of qcow2 images, changed through power cuts and failures.

use std::rc::Rc;

use drystone_conformance::fault::Effect;
use drystone_conformance::upkeep::{Operation, Upkeep};
use drystone_core::format::qcow2::Amend;
use drystone_core::graph::Preallocate;
use drystone_core::intent::Errno;
use drystone_core::job::amend;

const FILLED: &str = "qemu-io -f qcow2 -c 'write -P 17 10k 150k' -c 'write -P 18 400k 90k' -c 'write -P 19 900k 50k' top.qcow2";
const SNAPSHOT: &str = "qemu-img snapshot -c first top.qcow2";
const CHANGED: &str = "qemu-io -f qcow2 -c 'write -P 20 100k 30k' -c 'write -P 21 950k 20k' top.qcow2";

fn resize(len: u64, how: Preallocate) -> Operation {
    Rc::new(move |io, node| Box::pin(async move { io.resize(node, len, how).await }))
}

fn amended(to: Amend) -> Operation {
    Rc::new(move |io, node| {
        let to = to.clone();
        Box::pin(async move { amend(&io, node, &to, Rc::new(|_, _| {})).await })
    })
}

fn interrupted(options: &str, more: &[&str], operation: &Operation, check: impl Fn(&Upkeep)) {
    let create = format!("qemu-img create -q -f qcow2 -o {options} top.qcow2 1000448");
    let commands: Vec<&str> = [&[create.as_str(), FILLED], more].concat();
    let run = || {
        let upkeep = Upkeep::new(&commands, Rc::clone(operation))?;
        check(&upkeep);
        upkeep.crash_everywhere(2)?;
        upkeep.every_nth_fault(Effect::Fail(Errno::EIO))?;
        upkeep.every_nth_fault(Effect::Fail(Errno::ENOSPC))
    };
    let run = run();
    run.map(drop).unwrap_or_else(|report| panic!("{options}, {more:?}: {report}"));
}

const OPTIONS: &[&str] = &[
    "cluster_size=64k",
    "cluster_size=4k,refcount_bits=64",
    "cluster_size=512",
    "extended_l2=on,cluster_size=16k",
];

#[test]
fn a_disk_grows_or_not() {
    for options in OPTIONS {
        for how in [Preallocate::Off, Preallocate::Metadata, Preallocate::Falloc] {
            interrupted(options, &[], &resize(1_400_832, how), |upkeep| {
                let (before, after) = (&upkeep.before().content, &upkeep.after().content);
                assert_eq!((after.len(), &after[..before.len()]), (1_400_832, &before[..]));
                assert!(after[before.len()..].iter().all(|byte| *byte == 0));
            });
        }
    }
}

#[test]
fn a_disk_shrinks_or_not() {
    for options in OPTIONS {
        for more in [&[][..], &[SNAPSHOT, CHANGED]] {
            interrupted(options, more, &resize(500_224, Preallocate::Off), |upkeep| {
                let (before, after) = (upkeep.before(), upkeep.after());
                assert_eq!(after.content, before.content[..500_224]);
                assert_eq!(after.snapshots, before.snapshots);
            });
        }
    }
}

/// What a disk had beyond its end before it shrank does not come back.
#[test]
fn what_is_new_is_zeros() {
    let both: Operation = Rc::new(|io, node| {
        Box::pin(async move {
            io.resize(node, 100_352, Preallocate::Off).await?;
            io.resize(node, 1_000_448, Preallocate::Off).await
        })
    });
    for options in OPTIONS {
        for more in [&[][..], &[SNAPSHOT]] {
            let create = format!("qemu-img create -q -f qcow2 -o {options} top.qcow2 1000448");
            let commands: Vec<&str> = [&[create.as_str(), FILLED], more].concat();
            let upkeep = Upkeep::new(&commands, Rc::clone(&both)).unwrap_or_else(|report| panic!("{report}"));
            let (before, after) = (upkeep.before(), upkeep.after());
            assert_eq!(after.content[..100_352], before.content[..100_352], "{options}");
            assert!(after.content[100_352..].iter().all(|byte| *byte == 0), "{options}, {more:?}");
            assert_eq!(after.snapshots, before.snapshots, "{options}");
        }
    }
}

#[test]
fn refcounts_have_the_one_width_or_the_other() {
    for (options, bits) in [
        ("cluster_size=64k", 64),
        ("cluster_size=4k", 2),
        ("cluster_size=512,refcount_bits=64", 8),
        ("cluster_size=512,refcount_bits=2", 64),
        ("extended_l2=on,cluster_size=16k", 32),
    ] {
        let to = Amend { refcount_bits: Some(bits), ..Amend::default() };
        interrupted(options, &[SNAPSHOT, CHANGED], &amended(to), |upkeep| {
            let (before, after) = (upkeep.before(), upkeep.after());
            assert_eq!((&before.content, &before.snapshots), (&after.content, &after.snapshots));
            assert_eq!(after.header.1, bits as u32);
        });
    }
}

#[test]
fn a_count_that_does_not_fit_changes_nothing() {
    let create = "qemu-img create -q -f qcow2 -o cluster_size=4k top.qcow2 1000448";
    let to = Amend { refcount_bits: Some(1), ..Amend::default() };
    let report = Upkeep::new(&[create, FILLED, SNAPSHOT], amended(to)).err().expect("two do not fit one bit");
    assert!(report.contains("Cannot decrease refcount entry width to 1 bits: Cluster at offset"), "{report}");
}

#[test]
fn versions_change_both_ways() {
    const ZEROS: &str = "qemu-io -f qcow2 -c 'write -z 0 100k' -c 'write -z -u 400k 50k' top.qcow2";
    let to = |version| amended(Amend { version: Some(version), ..Amend::default() });
    for (options, more, version) in [
        ("compat=0.10,cluster_size=4k", &[SNAPSHOT, CHANGED][..], 3),
        ("compat=0.10", &[], 3),
        ("cluster_size=4k", &[SNAPSHOT, CHANGED], 2),
        ("cluster_size=4k", &[ZEROS], 2),
    ] {
        let create = format!("qemu-img create -q -f qcow2 -o {options} top.qcow2 1000448");
        let commands: Vec<&str> = [&[create.as_str(), FILLED], more].concat();
        let upkeep =
            Upkeep::new(&commands, to(version)).unwrap_or_else(|report| panic!("{options}: {report}"));
        let (before, after) = (upkeep.before(), upkeep.after());
        assert_eq!((&before.content, &before.snapshots), (&after.content, &after.snapshots), "{options}");
        assert_eq!(after.header.0, version);
        upkeep.crash_everywhere(3).unwrap_or_else(|report| panic!("{options}, {more:?}: {report}"));
    }
}
