//! Operations that are given up: at the first await, then at the second, and so on; or with the engine, after the first
//! intent, then after the second.
//!
//! Giving up is no crash: what was in flight goes on. The guest goes on too, and the image closes as always, or is left as it
//! is where the operation had opened it. Either way nothing panics, all memory is given back, whatever a crash leaves is in
//! order, and the operation works when it is done again. Start at [`cancel_each`].

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

use drystone_core::error::{Error, Result as CoreResult};

use super::faults::{Moments, again, count_each, crash, run};
use super::operation::Body;
use super::{Access, Guest, Operation, TOP, stands};
use crate::meter;
use crate::sim::{FIRST, Sim};

/// How an operation is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cancel {
    /// Its coroutine is dropped at one of its awaits, and the engine goes on.
    Dropped,
    /// The engine is dropped between two outcomes.
    EngineGone,
}

/// All of them.
pub const CANCELS: [Cancel; 2] = [Cancel::Dropped, Cancel::EngineGone];

/// Crashes that are drawn each time.
const CRASHES: u64 = 3;

/// Gives an operation up at each of its awaits, or after each of its intents, one run each; returns the number of runs.
///
/// # Errors
/// A report of the first thing that is wrong.
pub fn cancel_each(operation: &Operation, how: Cancel, seed: u64) -> Result<u64, String> {
    let attempt = |nth: u64| match how {
        Cancel::Dropped => dropped(operation, nth, seed),
        Cancel::EngineGone => engine_gone(operation, nth, seed),
    };
    // What is made once and kept is made here.
    attempt(u64::MAX)?;
    count_each(|nth| {
        let before = meter::live();
        let fail = |report: String| {
            format!("operation {}, seed {seed}, given up after {nth}, {how:?}: {report}", operation.name)
        };
        let met = attempt(nth).map_err(fail)?;
        match meter::live().wrapping_sub(before) {
            0 => Ok(met),
            lost => Err(fail(format!("{lost} bytes of memory are lost"))),
        }
    })
}

/// One run in which the operation's coroutine is dropped at an await; false, when there are no more so many.
fn dropped(operation: &Operation, nth: u64, seed: u64) -> Result<bool, String> {
    let guest = Guest::new(operation, seed);
    let mut sim = Sim::new(seed, operation.world.clone());
    sim.start_trace();
    let given_up = GivenUp::default();
    let body = giving_up(operation, nth, &given_up);
    let mut moments = Moments::new(seed);
    let result = run(&mut sim, &guest, operation, &body, |sim| {
        if given_up.borrow().is_some() {
            moments.look(sim, &guest);
        }
    });
    let fail = |report: String, sim: &Sim| format!("{report}\n{}", sim.trace().join("\n"));
    match given_up.take() {
        None => {
            result.map_err(|error| fail(format!("it was not given up, and yet: {error}"), &sim))?;
            return Ok(false);
        }
        Some(Err(error)) => return Err(fail(format!("going on: {error}"), &sim)),
        Some(Ok(())) => {}
    }
    if let Some(error) = guest.close_error() {
        return Err(fail(format!("the image does not close: {error}"), &sim));
    }
    // What it opened itself stays open.
    let closes = matches!(operation.access, Access::Read | Access::Write);
    if !sim.engine(FIRST).is_idle() || (closes && sim.world.is_open(TOP)) {
        return Err(fail("something is left in flight or open".into(), &sim));
    }
    moments.stand(operation).map_err(|report| fail(report, &sim))?;
    let allowed = guest.allowed();
    crash(operation, &sim.freeze(), &allowed, CRASHES, seed).map_err(|report| fail(report, &sim))?;
    let trace = sim.trace().join("\n");
    let world = sim.into_world();
    let content =
        stands(operation, &world, &allowed).map_err(|report| format!("afterwards: {report}\n{trace}"))?;
    again(operation, world, content, seed).map_err(|report| format!("done again: {report}\n{trace}"))?;
    Ok(true)
}

/// Once the operation was given up: what came of going on.
type GivenUp = Rc<RefCell<Option<CoreResult<()>>>>;

/// What an operation does until its n-th await, at which it is dropped; then the guest does something else.
fn giving_up(operation: &Operation, nth: u64, given_up: &GivenUp) -> Body {
    let (body, writes) = (Rc::clone(&operation.body), operation.access == Access::Write);
    let given_up = Rc::clone(given_up);
    Rc::new(move |guest| {
        let (work, given_up) = (body(guest.clone()), Rc::clone(&given_up));
        Box::pin(async move {
            let Some(result) = until(work, nth).await else {
                *given_up.borrow_mut() = Some(Ok(()));
                if writes && guest.is_settled() {
                    *given_up.borrow_mut() = Some(guest.anything(3, 2000).await);
                }
                return Err(Box::new(Error::Options("given up".into())));
            };
            result
        })
    })
}

/// Polls a coroutine until it has waited so many times and waits once more, and then drops it.
async fn until(coroutine: impl Future<Output = CoreResult<()>>, mut awaits: u64) -> Option<CoreResult<()>> {
    let mut coroutine = pin!(coroutine);
    poll_fn(|cx| match coroutine.as_mut().poll(cx) {
        Poll::Ready(result) => Poll::Ready(Some(result)),
        Poll::Pending if awaits == 0 => Poll::Ready(None),
        Poll::Pending => {
            awaits -= 1;
            Poll::Pending
        }
    })
    .await
}

/// One run in which the engine is dropped after so many outcomes; false, when there are no more so many.
fn engine_gone(operation: &Operation, nth: u64, seed: u64) -> Result<bool, String> {
    let guest = Guest::new(operation, seed);
    let mut sim = Sim::new(seed, operation.world.clone());
    sim.stop_after = Some(nth);
    sim.start_trace();
    let (body, spec, running) = (Rc::clone(&operation.body), operation.guest_spec(), guest.clone());
    let ended = sim.run_job(|io| async move { running.run(&io, spec.as_ref(), &body).await });
    if let Ok(result) = ended {
        result.map_err(|error| format!("it was not given up, and yet: {error}"))?;
        return Ok(false);
    }
    let (frozen, allowed) = (sim.freeze(), guest.allowed());
    let trace = sim.trace().join("\n");
    let left = sim.after_crash(crate::disk::Survival::Everything);
    drop(sim);
    drop(guest);
    let fail = |report: String| format!("{report}\n{trace}");
    crash(operation, &frozen, &allowed, CRASHES, seed).map_err(fail)?;
    let content = stands(operation, &left, &allowed).map_err(fail)?;
    again(operation, left, content, seed).map_err(|report| format!("done again: {report}\n{trace}"))?;
    Ok(true)
}
