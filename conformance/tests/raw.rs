//! The suite on raw images.

use drystone_conformance::cases::{RawCase, raw};
use drystone_conformance::fault::Effect;
use drystone_conformance::suite::{
    Thoroughness, clean, crash_everywhere, deterministic, every_nth_fault, faulty,
};
use drystone_core::intent::Errno;

/// Runs a check on every raw case and these seeds, and reports all that fails.
fn each<T>(
    seeds: std::ops::Range<u64>,
    check: impl Fn(&drystone_conformance::suite::Case, u64) -> Result<T, String>,
) {
    let cases = raw();
    let runs = cases.iter().flat_map(|case| seeds.clone().map(move |seed| (case, seed)));
    let failures: Vec<String> = runs.filter_map(|(case, seed)| check(case, seed).err()).collect();
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn replies_and_bytes_are_those_of_a_flat_disk() {
    each(0..20, clean);
}

#[test]
fn failures_reach_the_guest_and_lose_nothing_that_was_flushed() {
    each(0..40, faulty);
}

#[test]
fn every_single_fault_is_survived() {
    for errno in [Errno::EIO, Errno::ENOSPC, Errno::ENOTSUP] {
        each(0..1, |case, seed| every_nth_fault(case, seed, Effect::Fail(errno)));
    }
    each(0..1, |case, seed| every_nth_fault(case, seed, Effect::Short));
}

#[test]
fn a_crash_at_any_intent_keeps_what_was_flushed() {
    let how = Thoroughness { subsets_max: 3, samples: 3, stride: 1 };
    each(0..1, |case, seed| crash_everywhere(case, seed, how));
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    each(0..3, deterministic);
    let case = RawCase::default().case("raw");
    let other = deterministic(&case, 1).expect("deterministic");
    assert_ne!(deterministic(&case, 2).expect("deterministic"), other, "seeds matter");
}
