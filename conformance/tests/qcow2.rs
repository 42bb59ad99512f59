//! The suite on qcow2 images that QEMU's tools made, and that they check afterwards.

use drystone_conformance::cases::{case_of, qcow2, qcow2_cases};
use drystone_conformance::fault::Effect;
use drystone_conformance::scenario::Step;
use drystone_conformance::suite::{self, Run, Thoroughness};
use drystone_core::engine::Op;
use drystone_core::intent::{Errno, Fua};

/// Runs a check on every case and these seeds.
fn each<T>(seeds: std::ops::Range<u64>, check: impl Fn(Run<'_>) -> Result<T, String>) {
    suite::each(&qcow2_cases().unwrap_or_else(|report| panic!("{report}")), seeds, check);
}

#[test]
fn replies_and_bytes_are_those_of_a_flat_disk() {
    each(0..6, |run| run.clean());
}

#[test]
fn failures_reach_the_guest_and_lose_nothing_that_was_flushed() {
    each(0..8, |run| run.faulty());
}

#[test]
fn a_single_fault_is_survived_wherever_it_strikes() {
    each(0..1, |run| run.every_nth_fault(Effect::Fail(Errno::EIO)));
}

/// A table was pointed to beyond the end of the file, when the first write of data after it had been made failed.
#[test]
fn a_table_without_data_is_part_of_the_file() {
    let recipe = qcow2().into_iter().find(|recipe| recipe.name == "qcow2, empty").expect("a recipe");
    let case = case_of(recipe).unwrap_or_else(|report| panic!("{report}"));
    let step = |op, len: u64| {
        let buffers = if len > 0 { vec![(len, 0)] } else { Vec::new() };
        Step { op, offset: 0, len, buffers, with_next: false }
    };
    let plan = vec![step(Op::Write(Fua::No), 4096), step(Op::Flush, 0)];
    let run = Run::planned(&case, 1, plan, 1);
    run.every_nth_fault(Effect::Fail(Errno::EFBIG)).unwrap_or_else(|report| panic!("{report}"));
}

#[test]
fn a_crash_at_any_intent_keeps_what_was_flushed() {
    // qemu-img, a process each time, sees a part of what is left; our own check and a guest see all of it.
    let how = Thoroughness { subsets_max: 2, samples: 2, stride: 1, outside: 18 };
    each(0..1, |run| run.crash_everywhere(how));
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    each(0..1, |run| run.deterministic());
}
