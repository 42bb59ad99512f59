//! The suite on images of the formats other than raw and qcow2, most of them made by QEMU's tools, which check them
//! afterwards where they have a check. One module a format.

use drystone_conformance::cases::{
    luks_cases, parallels_cases, read_only_cases, two_level_cases, vdi_cases, vmdk_cases,
};
use drystone_conformance::fault::Effect;
use drystone_conformance::hyperv::{vhdx_cases, vpc_cases};
use drystone_conformance::suite::{Thoroughness, each};
use drystone_core::intent::Errno;

/// The tests of a format: its cases, and how many intents lie between two crashes.
macro_rules! suite {
    ($format:ident, $cases:expr, $stride:literal) => {
        mod $format {
            use super::*;

            #[test]
            fn replies_and_bytes_are_those_of_a_flat_disk() {
                each(&made($cases), 0..2, |run| run.clean());
            }

            #[test]
            fn failures_reach_the_guest_and_lose_nothing_that_was_flushed() {
                each(&made($cases), 0..2, |run| run.faulty());
            }

            #[test]
            fn a_single_fault_is_survived_wherever_it_strikes() {
                each(&made($cases), 0..1, |run| run.every_nth_fault(Effect::Fail(Errno::EIO)));
            }

            #[test]
            fn a_crash_at_any_intent_keeps_what_was_flushed() {
                let how = Thoroughness { subsets_max: 1, samples: 2, stride: $stride, outside: 60 };
                each(&made($cases), 0..1, |run| run.crash_everywhere(how));
            }
        }
    };
}

suite!(luks, luks_cases(), 16);
suite!(parallels, parallels_cases(), 4);
suite!(read_only, read_only_cases(), 1);
suite!(two_level, two_level_cases(), 8);
suite!(vdi, vdi_cases(), 4);
suite!(vhdx, vhdx_cases(), 4);
suite!(vmdk, vmdk_cases(), 8);
suite!(vpc, vpc_cases(), 4);

fn made<T>(cases: Result<T, String>) -> T {
    cases.unwrap_or_else(|report| panic!("{report}"))
}
