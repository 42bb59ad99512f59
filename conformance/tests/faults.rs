//! Every intent of every operation fails, every await is given up at, and files change while they are open.

use drystone_conformance::explore::cancel::{CANCELS, cancel_each};
use drystone_conformance::explore::changed::{CHANGES, change_each};
use drystone_conformance::explore::faults::{BLOWS, strike_each};
use drystone_conformance::explore::operations::all;
use drystone_conformance::explore::{Access, Operation};
use drystone_conformance::fault::Effect;
use drystone_conformance::meter::{Meter, peak_of};

#[global_allocator]
static METER: Meter = Meter;

/// Bytes of memory that an operation may take whose files change under it, and a look at what it left: a check counts in two
/// windows of 128 MiB, which it hardly touches.
const MEMORY_MAX: usize = 320 << 20;

#[test]
fn an_operation_whose_nth_intent_fails_says_so_and_can_be_done_again() {
    each(&BLOWS, |operation, blow| {
        let struck = strike_each(operation, *blow, 1)?;
        let writes = operation.access() != Access::Read;
        if struck > 0 || (blow.effect == Effect::Nothing && !writes) {
            Ok(())
        } else {
            Err(format!("{}: nothing was struck by {blow:?}", operation.name))
        }
    });
}

#[test]
fn files_that_change_under_an_operation_leave_it_an_end() {
    each(&CHANGES, |operation, change| {
        let (changed, peak) = peak_of(|| change_each(operation, *change, 1));
        changed?;
        let fits = peak <= MEMORY_MAX;
        if fits { Ok(()) } else { Err(format!("{}, {change:?}: {peak} bytes of memory", operation.name)) }
    });
}

#[test]
fn an_operation_can_be_given_up_at_every_await() {
    each(&CANCELS, |operation, how| {
        let given_up = cancel_each(operation, *how, 1)?;
        if given_up > 0 { Ok(()) } else { Err(format!("{}: {how:?} gave nothing up", operation.name)) }
    });
}

/// Does something to every operation in each of some ways; to some of them, by what is in their names.
fn each<W>(ways: &[W], attempt: impl Fn(&Operation, &W) -> Result<(), String>) {
    let only = std::env::var("DRYSTONE_CASE").unwrap_or_default();
    let operations = all();
    let attempts = operations.iter().filter(|operation| operation.name.contains(&only));
    let attempts = attempts.flat_map(|operation| ways.iter().map(move |way| (operation, way)));
    let failures: Vec<String> =
        attempts.filter_map(|(operation, way)| attempt(operation, way).err()).collect();
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n\n"));
}
