//! Crashes at every moment of every operation, and rules of order that are broken on purpose.

use drystone_conformance::explore::faults::{EFFECTS, strike_each};
use drystone_conformance::explore::operations::{all, short_plans};
use drystone_conformance::explore::rules::{PROMISES, RULES};
use drystone_conformance::explore::{Explored, Thoroughness, explore};
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
    for operation in all().iter().filter(|operation| !operation.makes()) {
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

#[test]
fn every_flush_has_a_rule() {
    let how = Thoroughness { samples: 1, recover_every: 0, recover_samples: 0, qemu_every: 0 };
    for operation in all().iter().filter(|operation| operation.format == "qcow2") {
        let explored = explore(operation, &how, 1).unwrap_or_else(|report| panic!("{report}"));
        for (kind, label) in explored.labels {
            let promised = PROMISES.iter().any(|(promise, _)| *promise == label);
            let known = promised || RULES.iter().any(|rule| rule.label == label);
            assert!(kind != Kind::Flush || known, "{}: no rule says what '{label}' is for", operation.name);
        }
    }
}
