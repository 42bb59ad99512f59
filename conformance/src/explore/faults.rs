//! Faults at every step: the first intent of an operation fails, then the second, and so on until none is left to fail.
//!
//! After each: the error has come to the caller and says which file, nothing is in flight or open, what was flushed is
//! there and the rest is old or new, also after a crash, and the same operation works when it is done again. What only
//! comes late is no failure at all. Start at [`strike_each`].

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use drystone_core::buf::Buf;
use drystone_core::error::{Error, Result as CoreResult};
use drystone_core::intent::Errno;
use fastrand::Rng;

use super::crashes::Crashes;
use super::guest::Allowed;
use super::operation::Body;
use super::{Access, Guest, Operation, TOP, stands};
use crate::fault::{Effect, Fault, Faults, Kind};
use crate::sim::{FIRST, Sim};
use crate::sparse::Sparse;
use crate::world::{Frozen, World};

/// What strikes an operation, and whether it strikes all that follows too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blow {
    /// How.
    pub effect: Effect,
    /// Whether every later intent that it can befall is struck as well.
    pub lasting: bool,
}

impl Blow {
    pub(super) const fn once(effect: Effect) -> Self {
        Self { effect, lasting: false }
    }

    pub(super) const fn lasting(effect: Effect) -> Self {
        Self { effect, lasting: true }
    }

    pub(super) fn from(self, nth: u64) -> Faults {
        let rule = match self.lasting {
            true => Fault::from_nth_on(nth, self.effect),
            false => Fault::nth(nth, self.effect),
        };
        Faults { rules: vec![rule], ..Faults::default() }
    }
}

/// How intents fail.
pub const BLOWS: [Blow; 9] = [
    Blow::once(Effect::Fail(Errno::EIO)),
    Blow::lasting(Effect::Fail(Errno::EIO)),
    Blow::once(Effect::Fail(Errno::ENOSPC)),
    Blow::once(Effect::Fail(Errno::EAGAIN)),
    Blow::once(Effect::Short),
    Blow::once(Effect::Nothing),
    Blow::once(Effect::Refused),
    Blow::once(Effect::Late),
    Blow::once(Effect::AnsweredLate),
];

/// Crashes that are drawn once the operation has ended.
const CRASHES: u64 = 4;

/// Moments after the blow of which a crash is looked at, and crashes that are drawn of each.
const MOMENTS: usize = 2;
const CRASHES_OF_MOMENT: u64 = 2;

/// Has each intent of an operation fail, one run each; returns the number of runs that met their fault.
///
/// # Errors
/// A report of the first thing that is wrong.
pub fn strike_each(operation: &Operation, blow: Blow, seed: u64) -> Result<u64, String> {
    count_each(|nth| {
        let struck = strike(operation, nth, blow, seed);
        struck.map_err(|report| {
            format!("operation {}, seed {seed}, intent {nth}, {blow:?}: {report}", operation.name)
        })
    })
}

/// Runs an attempt with 0, 1, … until it says that there are no more so many; returns how many there were.
pub(super) fn count_each(attempt: impl Fn(u64) -> Result<bool, String>) -> Result<u64, String> {
    let mut nth = 0;
    loop {
        let met = catch_unwind(AssertUnwindSafe(|| attempt(nth)))
            .unwrap_or_else(|panic| Err(format!("number {nth}: {}", crate::panicked(panic.as_ref()))));
        match met? {
            true => nth += 1,
            false => return Ok(nth),
        }
    }
}

/// One run in which one intent fails; false, when there are no more so many.
fn strike(operation: &Operation, nth: u64, blow: Blow, seed: u64) -> Result<bool, String> {
    let guest = Guest::new(operation, seed);
    let mut sim = Sim::new(seed, operation.world.clone());
    sim.faults = blow.from(nth);
    sim.start_trace();
    let mut moments = Moments::new(seed);
    let result = run(&mut sim, &guest, operation, &operation.body, |sim| {
        if !sim.faults.struck.is_empty() {
            moments.look(sim, &guest);
        }
    });
    let Some((kind, _)) = sim.faults.struck.first().copied() else { return Ok(false) };
    let fail = |report: String, sim: &Sim| format!("{report}\n{}", sim.trace().join("\n"));
    match &result {
        Ok(()) if !made_do(&sim, operation) => {
            return Err(fail(format!("nobody heard that a {kind:?} failed"), &sim));
        }
        Err(error) if !sim.faults.hurt() => {
            return Err(fail(format!("it was made up for, and yet: {error}"), &sim));
        }
        Err(error) => names_file(error, &sim).map_err(|report| fail(report, &sim))?,
        Ok(()) => {}
    }
    if !sim.engine(FIRST).is_idle() || sim.world.open_leaves() > 0 {
        return Err(fail("something is left in flight or open".into(), &sim));
    }
    moments.stand(operation).map_err(|report| fail(report, &sim))?;
    let (frozen, allowed) = (sim.freeze(), guest.allowed());
    let crashed = crash(operation, &frozen, &allowed, CRASHES, seed);
    crashed.map_err(|report| fail(report, &sim))?;
    let trace = sim.trace().join("\n");
    let world = sim.into_world();
    let content =
        stands(operation, &world, &allowed).map_err(|report| format!("afterwards: {report}\n{trace}"))?;
    if operation.access == Access::Read && content.as_deref() != Some(&*operation.content.to_vec()) {
        return Err("an operation that reads has changed the image".into());
    }
    again(operation, world, content, seed).map_err(|report| format!("done again: {report}\n{trace}"))?;
    Ok(true)
}

/// Runs an operation, or what is made of it, and whatever it leaves behind, to the end.
pub(super) fn run(
    sim: &mut Sim,
    guest: &Guest,
    operation: &Operation,
    body: &Body,
    look: impl FnMut(&Sim),
) -> CoreResult<()> {
    let (guest, body) = (guest.clone(), Rc::clone(body));
    let spec = operation.guest_spec();
    sim.run_job_watched(|io| async move { guest.run(&io, spec.as_ref(), &body).await }, look)
}

/// Whether all that failed is what core makes up for, advice, or something that the operation makes do without.
fn made_do(sim: &Sim, operation: &Operation) -> bool {
    let mut struck = sim.faults.struck.iter().zip(&sim.faults.labels);
    struck.all(|(blow, label)| {
        !Faults::hurts(blow) || blow.0 == Kind::Discard || operation.best_effort.contains(label)
    })
}

/// Wants an error to say which file it is about.
pub(super) fn names_file(error: &Error, sim: &Sim) -> Result<(), String> {
    let text = error.with_file();
    // What a damaged header says of its backing file names that; a request that it leaves no room for, the node.
    let spoiled =
        text.starts_with("Could not open backing file: ") || matches!(error, Error::OutOfRange { .. });
    match spoiled || sim.world.paths().chain([TOP]).any(|path| text.contains(path)) {
        true => Ok(()),
        false => Err(format!("the error names no file: {text}")),
    }
}

/// A few moments of a run, to be crashed.
pub(super) struct Moments {
    rng: Rng,
    seed: u64,
    kept: Vec<(Frozen, Allowed)>,
}

impl Moments {
    pub(super) fn new(seed: u64) -> Self {
        Self { rng: Rng::with_seed(seed), seed, kept: Vec::new() }
    }

    /// Keeps this moment, now and then.
    pub(super) fn look(&mut self, sim: &Sim, guest: &Guest) {
        if self.kept.len() < MOMENTS && self.rng.u8(..4) == 0 {
            self.kept.push((sim.freeze(), guest.allowed()));
        }
    }

    /// Wants whatever a crash leaves of them to be in order.
    pub(super) fn stand(self, operation: &Operation) -> Result<(), String> {
        self.kept.iter().try_for_each(|(frozen, allowed)| {
            crash(operation, frozen, allowed, CRASHES_OF_MOMENT, self.seed)
                .map_err(|report| format!("meanwhile: {report}"))
        })
    }
}

/// Wants what a crash leaves of a moment to be in order.
pub(super) fn crash(
    operation: &Operation,
    frozen: &Frozen,
    allowed: &Allowed,
    samples: u64,
    seed: u64,
) -> Result<(), String> {
    let crashes = Crashes::new(frozen);
    let crashed = crashes.each(samples, &mut Rng::with_seed(seed), |outcome| {
        stands(operation, &crashes.world(outcome), allowed)
            .map_err(|report| {
                format!("after a crash: {report}\nwhat survived: {}", crashes.describe(outcome))
            })
            .map(drop)
    });
    crashed.map(drop)
}

/// Does the operation once more, without faults.
pub(super) fn again(
    operation: &Operation,
    world: World,
    content: Option<Buf>,
    seed: u64,
) -> Result<(), String> {
    let guest = match content {
        Some(content) if operation.access != Access::Make => {
            Guest::of(operation, Sparse::from_bytes(&content), true, seed)
        }
        _ => Guest::new(operation, seed),
    };
    let mut sim = Sim::new(seed, world);
    sim.start_trace();
    let done = run(&mut sim, &guest, operation, &operation.body, |_| {});
    let trace = sim.trace().join("\n");
    done.map_err(|error| format!("{error}\n{trace}"))?;
    let stands = stands(operation, &sim.into_world(), &guest.allowed());
    stands.map(drop).map_err(|report| format!("{report}\n{trace}"))
}
