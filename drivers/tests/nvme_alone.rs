//! One request at a time: what nothing else in flight hides.

mod world;

use std::time::Duration;

use drystone_core::buf::Buf;
use drystone_drivers::nvme::sim::{Fault, SimConfig};
use drystone_drivers::nvme::{Operation, Options};
use world::{World, config, options, pattern};

const BLOCK: usize = 512;

/// The command after that has the same slot, and must not take the second answer for its own: its buffer would be given back
/// while the controller still writes to it.
#[test]
fn an_answer_that_comes_twice_is_nobody_elses() {
    for taken in [false, true] {
        let mut world = World::new(config(512));
        let bytes = pattern(1, 4 * BLOCK);
        world.write(0, Buf::from(&bytes[..])).expect("a healthy controller");
        let mut first = true;
        world.sim.controller().inject(move |queue, _| {
            let twice = queue > 0 && std::mem::take(&mut first);
            if twice { Fault::Twice } else { Fault::None }
        });
        for read in 0..4 {
            let mut data = world.buffer(BLOCK);
            data.fill(0xee);
            world.submit(read, Operation::Read, read * BLOCK as u64, BLOCK as u64, data);
            world.pair.ring();
            let mut back = None;
            for _ in 0..1_000_000 {
                let mut answers = Vec::new();
                match taken.then(|| world.pair.take(read)).flatten() {
                    Some(data) => back = Some(data),
                    None => world.round(&mut answers),
                }
                for answer in answers {
                    answer.result.expect("it was sent again");
                    back = Some(answer.data);
                }
                if back.is_some() {
                    break;
                }
            }
            let found = back.expect("it was answered").into_single().to_vec();
            assert!(found == bytes[read as usize * BLOCK..][..BLOCK], "read {read}, taken: {taken}");
        }
        assert_eq!(world.device.resets().0, 1, "what makes no sense has the controller reset");
    }
}

#[test]
fn what_waits_for_a_slot_goes_on_when_the_answer_before_it_was_taken() {
    let mut world = World::with(config(512), Options { queue_entries: 2, ..options() });
    world.write(0, Buf::from(pattern(1, 2 * BLOCK))).expect("a healthy controller");
    for tag in [1, 2] {
        let data = world.buffer(BLOCK);
        world.submit(tag, Operation::Read, 0, BLOCK as u64, data);
    }
    world.pair.ring();
    world.sim.step();
    assert!(world.pair.take(1).is_some());
    let answers = world.settle();
    assert_eq!(answers.iter().map(|answer| answer.tag).collect::<Vec<_>>(), [2]);
}

/// The places of completions are given back when somebody polls, and there are two.
#[test]
fn each_answer_may_be_taken_from_the_shortest_queue() {
    let simulated = SimConfig { queue_entries: 2, ..config(512) };
    let mut world = World::with(simulated, Options { queue_entries: 2, ..options() });
    world.write(0, Buf::from(pattern(1, BLOCK))).expect("a healthy controller");
    for tag in 0..1000 {
        let data = world.buffer(BLOCK);
        world.submit(tag, Operation::Read, 0, BLOCK as u64, data);
        world.pair.ring();
        let taken = (0..100).any(|_| {
            world.sim.step();
            world.pair.take(tag).is_some() || {
                world.pair.poll(|_| unreachable!("it is there to be taken"));
                false
            }
        });
        assert!(taken, "request {tag}");
    }
    world.end();
}

/// Nobody looks at the time while nothing is in flight.
#[test]
fn a_request_after_a_long_pause_is_given_its_time() {
    let mut world = World::new(config(512));
    world.write(0, Buf::from(pattern(1, BLOCK))).expect("a healthy controller");
    world.sim.advance(Duration::from_secs(3600));
    let data = world.buffer(BLOCK);
    world.submit(1, Operation::Read, 0, BLOCK as u64, data);
    world.pair.ring();
    world.pair.tick(|_| unreachable!("the controller has not begun"));
    assert_eq!(world.pair.counters().aborts, 0);
    assert_eq!(world.settle().len(), 1);
    assert_eq!((world.pair.counters().aborts, world.device.resets().0), (0, 0));
}
