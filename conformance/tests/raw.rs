//! The suite on raw images.

use drystone_conformance::cases::{RawCase, WRITABLE, raw};
use drystone_conformance::fault::Effect;
use drystone_conformance::qemu::Recipe;
use drystone_conformance::scenario::SmallPlans;
use drystone_conformance::suite::{self, Run, Thoroughness};
use drystone_core::graph::open::NodeSpec;
use drystone_core::intent::Errno;

/// Runs a check on every case and these seeds.
fn each<T>(seeds: std::ops::Range<u64>, check: impl Fn(Run<'_>) -> Result<T, String>) {
    suite::each(&raw(), seeds, check);
}

#[test]
fn replies_and_bytes_are_those_of_a_flat_disk() {
    each(0..30, |run| run.clean());
}

#[test]
fn failures_reach_the_guest_and_lose_nothing_that_was_flushed() {
    each(0..40, |run| run.faulty());
}

#[test]
fn every_single_fault_is_survived() {
    for errno in [Errno::EIO, Errno::ENOSPC, Errno::ENOTSUP] {
        each(0..1, |run| run.every_nth_fault(Effect::Fail(errno)));
    }
    each(0..1, |run| run.every_nth_fault(Effect::Short));
}

#[test]
fn a_crash_at_any_intent_keeps_what_was_flushed() {
    let how = Thoroughness { subsets_max: 3, samples: 3, stride: 1, outside: 1 };
    each(0..2, |run| run.crash_everywhere(how));
}

/// Every plan of one or two requests, and some of three: every crash point, and every subset of what is not flushed.
#[test]
fn every_short_plan_survives_every_crash() {
    let how = Thoroughness { subsets_max: 6, samples: 8, stride: 1, outside: 1 };
    let cases = [RawCase::default(), RawCase::direct(512), RawCase::direct(4096)];
    for case in cases {
        let small = SmallPlans { places: vec![512, 8192], len: 1024 };
        let case = RawCase { file_len: 16384, ..case }.case("raw, short plans");
        let plans = small.of(1).chain(small.of(2)).chain(small.of(3).step_by(7));
        let mut crashes = 0;
        for (index, plan) in plans.enumerate() {
            let depth = 1 + index % 3;
            let run = Run::planned(&case, index as u64, plan, depth);
            crashes += run.crash_everywhere(how).unwrap_or_else(|report| panic!("{report}"));
        }
        assert!(crashes > 5000, "{crashes} crashes");
    }
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    each(0..3, |run| run.deterministic());
    let case = RawCase::default().case("raw");
    let other = Run::new(&case, 1).deterministic().expect("deterministic");
    assert_ne!(Run::new(&case, 2).deterministic().expect("deterministic"), other, "seeds matter");
}

/// The suite must notice when nothing is ever flushed.
#[test]
fn a_disk_that_is_never_flushed_is_caught() {
    let mut case = RawCase::default().case("raw without flushes");
    let setup = case.setup;
    case.setup = Box::new(move |world| {
        let mut image = setup(world);
        let drystone_core::graph::open::DriverSpec::Raw { file, .. } = &mut image.spec.driver else {
            unreachable!("a raw case")
        };
        file.mode.no_flush = true;
        image
    });
    let how = Thoroughness { subsets_max: 3, samples: 3, stride: 1, outside: 1 };
    let report = Run::new(&case, 1).crash_everywhere(how).expect_err("flushes are left out");
    assert!(report.contains("seed 1: power cut after"), "{report}");
    assert!(report.contains("a wrong byte at"), "{report}");
}

#[test]
fn qemu_reads_what_we_wrote_to_its_image() {
    let commands = ["qemu-img create -f raw disk.raw 1M", "qemu-io -f raw -c 'write -P 7 4k 100k' disk.raw"];
    let recipe = Recipe::new("raw of qemu-img", "raw", "disk.raw", &commands);
    let case = recipe.case(|_, path| NodeSpec::raw(NodeSpec::file(path, WRITABLE))).expect("QEMU makes it");
    for seed in 0..10 {
        Run::new(&case, seed).clean().expect("clean");
        Run::new(&case, seed).faulty().expect("faulty");
    }
}
