//! The plainest executor: every intent is done and answered at once. Makes images, and looks at what a crash left.

use std::future::Future;

use drystone_core::engine::Io;
use drystone_core::intent::Intent;
use fastrand::Rng;

use crate::sim::new_engine;
use crate::trace;
use crate::world::{Moment, World};

/// Runs a coroutine on a world to its end, and returns the world with what it wrote.
///
/// # Panics
/// When the coroutine waits for what nobody brings, or leaves something in flight.
pub fn straight<T: 'static, F: Future<Output = T> + 'static>(
    mut world: World,
    coroutine: impl FnOnce(Io) -> F,
) -> (T, World) {
    let engine = new_engine();
    let mut rng = Rng::with_seed(0);
    let job = engine.run(0, coroutine);
    let mut now = 0;
    while let Some(Intent { token, label, action }) = engine.next_intent() {
        now += 1;
        trace::count_intent();
        trace::tell(|| format!("{now:>9} > {label}: {}", trace::action(&action)));
        let (outcome, consequence) = world.carry_out(action, Moment { rng: &mut rng, fault: None });
        world.settle(consequence, now, now, &mut rng);
        engine.complete(token, outcome);
    }
    let value = job.take().expect("nothing is in flight, so the coroutine has ended");
    assert_eq!(world.open_leaves(), 0, "a leaf was left open");
    world.shut_down();
    (value, world)
}
