//! Faults at every step: the first intent of an operation fails, then the second, and so on until none is left to fail.
//!
//! After each: the error has come to the caller and says which file, nothing is in flight or open, what was flushed is
//! there and the rest is old or new, also after a crash, and the same operation works when it is done again. Start at
//! [`strike_each`].

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use drystone_core::error::Result as CoreResult;
use drystone_core::intent::Errno;
use fastrand::Rng;

use super::crashes::Crashes;
use super::operation::Guest;
use super::{Access, Checked, Found, Operation, TOP, looked};
use crate::fault::{Effect, Fault, Faults, Kind};
use crate::sim::{FIRST, Sim};
use crate::sparse::Sparse;
use crate::world::World;

/// How intents fail.
pub const EFFECTS: [Effect; 3] = [Effect::Fail(Errno::EIO), Effect::Fail(Errno::ENOSPC), Effect::Short];

/// Crashes that are drawn after each fault.
const CRASHES: u64 = 4;

/// Has each intent of an operation fail, one run each; returns the number of runs that met their fault.
///
/// # Errors
/// A report of the first thing that is wrong.
pub fn strike_each(operation: &Operation, effect: Effect, seed: u64) -> Result<u64, String> {
    let mut nth = 0;
    loop {
        let attempt = || strike(operation, nth, effect, seed);
        let struck = catch_unwind(AssertUnwindSafe(attempt))
            .unwrap_or_else(|panic| Err(crate::panicked(panic.as_ref())));
        let name = operation.name;
        match struck
            .map_err(|report| format!("operation {name}, seed {seed}, intent {nth}, {effect:?}: {report}"))?
        {
            true => nth += 1,
            false => return Ok(nth),
        }
    }
}

/// One run in which one intent fails; false, when there are no more so many.
fn strike(operation: &Operation, nth: u64, effect: Effect, seed: u64) -> Result<bool, String> {
    let guest = Guest::new(operation);
    let mut sim = Sim::new(seed, operation.world.clone());
    sim.faults = Faults { rules: vec![Fault::nth(nth, effect)], ..Faults::default() };
    sim.start_trace();
    let result = run(&mut sim, &guest, operation);
    let Some((kind, _)) = sim.faults.struck.first().copied() else { return Ok(false) };
    let fail = |report: String, sim: &Sim| format!("{report}\n{}", sim.trace().join("\n"));
    match &result {
        Ok(()) if sim.faults.hurt() && kind != Kind::Discard && !made_do(&sim, operation) => {
            return Err(fail(format!("nobody heard that a {kind:?} failed"), &sim));
        }
        Err(error) if !sim.faults.hurt() => {
            return Err(fail(format!("it was made up for, and yet: {error}"), &sim));
        }
        Err(error) => {
            let text = error.with_file();
            if !sim.world.paths().chain([TOP]).any(|path| text.contains(path)) {
                return Err(fail(format!("the error names no file: {text}"), &sim));
            }
        }
        Ok(()) => {}
    }
    if !sim.engine(FIRST).is_idle() || sim.world.open_leaves() > 0 {
        return Err(fail("something is left in flight or open".into(), &sim));
    }
    let crashes = Crashes::new(&sim.freeze());
    let crashed = crashes.each(CRASHES, &mut Rng::with_seed(seed), |outcome| {
        stands(operation, crashes.world(outcome), &guest).map(|_| ())
    });
    crashed.map_err(|report| fail(format!("after a crash: {report}"), &sim))?;
    let trace = sim.trace().join("\n");
    let world = sim.into_world();
    let content = stands(operation, world.clone(), &guest)
        .map_err(|report| format!("afterwards: {report}\n{trace}"))?;
    if operation.access == Access::Read && content.as_deref() != Some(&*operation.content.to_vec()) {
        return Err("an operation that reads has changed the image".into());
    }
    again(operation, world, content, seed).map_err(|report| format!("done again: {report}\n{trace}"))?;
    Ok(true)
}

fn run(sim: &mut Sim, guest: &Guest, operation: &Operation) -> CoreResult<()> {
    let (guest, body) = (guest.clone(), Rc::clone(&operation.body));
    let spec = operation.guest_spec();
    sim.run_job_watched(|io| async move { guest.run(&io, spec.as_ref(), &body).await }, |_| {})
}

/// Whether what failed is something that the operation makes do without.
fn made_do(sim: &Sim, operation: &Operation) -> bool {
    sim.faults.labels.iter().all(|label| operation.best_effort.contains(label))
}

/// Wants an image that is in order and shows what it may; one that was being made need not be there.
fn stands(operation: &Operation, world: World, guest: &Guest) -> Result<Option<Vec<u8>>, String> {
    let allowed = guest.allowed();
    match looked(world, operation.spec(false), Checked::Yes, operation.state_len)? {
        Found::Nothing(_) if !allowed.opens => Ok(None),
        Found::Nothing(error) => Err(format!("it does not open: {error}")),
        Found::Disk(content, flaws) => {
            flaws.at_most(allowed.flaws)?;
            allowed.check(&content).map(|()| Some(content.to_vec()))
        }
    }
}

/// Does the operation once more, without faults.
fn again(operation: &Operation, world: World, content: Option<Vec<u8>>, seed: u64) -> Result<(), String> {
    let guest = match content {
        Some(content) if operation.access != Access::Make => {
            Guest::of(operation, Sparse::from_bytes(&content), true)
        }
        _ => Guest::new(operation),
    };
    let mut sim = Sim::new(seed, world);
    run(&mut sim, &guest, operation).map_err(|error| error.to_string())?;
    stands(operation, sim.into_world(), &guest).map(|_| ())
}
