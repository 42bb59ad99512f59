//! The suite on VHDX images that QEMU's tools made, and that they check afterwards.

use drystone_conformance::fault::Effect;
use drystone_conformance::hyperv::vhdx_cases;
use drystone_conformance::suite::{Run, Thoroughness};
use drystone_core::intent::Errno;

/// Runs a check on every case and these seeds, and reports all that fails.
fn each<T>(seeds: std::ops::Range<u64>, check: impl Fn(Run<'_>) -> Result<T, String>) {
    let cases = vhdx_cases().unwrap_or_else(|report| panic!("{report}"));
    let runs = cases.iter().flat_map(|case| seeds.clone().map(move |seed| Run::new(case, seed)));
    let failures: Vec<String> = runs.filter_map(|run| check(run).err()).collect();
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn replies_and_bytes_are_those_of_a_flat_disk() {
    each(0..2, |run| run.clean());
}

#[test]
fn failures_reach_the_guest_and_lose_nothing_that_was_flushed() {
    each(0..2, |run| run.faulty());
}

#[test]
fn a_single_fault_is_survived_wherever_it_strikes() {
    each(0..1, |run| run.every_nth_fault(Effect::Fail(Errno::EIO)));
}

#[test]
fn a_crash_at_any_intent_keeps_what_was_flushed() {
    let how = Thoroughness { subsets_max: 1, samples: 2, stride: 4, outside: 60 };
    each(0..1, |run| run.crash_everywhere(how));
}
