//! The suite on raw images.

use drystone_conformance::cases::{RawCase, WRITABLE, raw};
use drystone_conformance::fault::Effect;
use drystone_conformance::qemu::Recipe;
use drystone_conformance::suite::{Run, Thoroughness};
use drystone_core::graph::open::NodeSpec;
use drystone_core::intent::Errno;

/// Runs a check on every raw case and these seeds, and reports all that fails.
fn each<T>(seeds: std::ops::Range<u64>, check: impl Fn(Run<'_>) -> Result<T, String>) {
    let cases = raw();
    let runs = cases.iter().flat_map(|case| seeds.clone().map(move |seed| Run::new(case, seed)));
    let failures: Vec<String> = runs.filter_map(|run| check(run).err()).collect();
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
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
    let how = Thoroughness { subsets_max: 3, samples: 3, stride: 1 };
    each(0..2, |run| run.crash_everywhere(how));
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
    let how = Thoroughness { subsets_max: 3, samples: 3, stride: 1 };
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
