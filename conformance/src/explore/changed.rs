//! Files that change under an operation: a read gives other bytes than were there, somebody cuts the file off or writes over
//! it, before the first intent of an operation that this can befall, then before the second, and so on.
//!
//! What such a file then says is anybody's guess, and the image is lost more often than not. The operation ends all the
//! same, in a bounded number of intents, with an error that says which file, or as if nothing had happened; nothing is in
//! flight or open; and whoever looks at what is left gets an answer. Start at [`change_each`].

use std::rc::Rc;

use drystone_core::error::Error;
use drystone_core::format::check;
use drystone_core::graph::open::{NodeSpec, open};

use super::faults::{Blow, count_each, names_file};
use super::{Guest, Operation};
use crate::fault::Effect;
use crate::sim::{FIRST, Sim};
use crate::world::World;

/// How files change. Bytes that are other ones at the second read than at the first are the first: whichever read of an
/// operation it befalls, others of the same place see what is there.
pub const CHANGES: [Blow; 4] = [
    Blow::once(Effect::Mutated),
    Blow::lasting(Effect::Mutated),
    Blow::once(Effect::Shrunk),
    Blow::once(Effect::Replaced),
];

/// Intents that an operation, or a look at what it left, may take: the longest operation takes a few hundred.
const INTENTS_MAX: u64 = 20_000;

/// Bytes that are read of what is left, which may claim any length.
const READ_MAX: u64 = 1 << 20;

/// Has the files of an operation change before each of its intents, one run each; returns the number of runs that met it.
///
/// # Errors
/// A report of the first thing that is wrong.
pub fn change_each(operation: &Operation, change: Blow, seed: u64) -> Result<u64, String> {
    count_each(|nth| {
        let changed = changed(operation, nth, change, seed);
        changed.map_err(|report| {
            format!("operation {}, seed {seed}, intent {nth}, {change:?}: {report}", operation.name)
        })
    })
}

/// One run in which the file changes once, or from one intent on; false, when there are no more so many.
fn changed(operation: &Operation, nth: u64, change: Blow, seed: u64) -> Result<bool, String> {
    let guest = Guest::new(operation, seed);
    // What the bytes become is another thing each time.
    let mut sim = Sim::new(seed.wrapping_add(nth << 32), operation.world.clone());
    sim.faults = change.from(nth);
    sim.stop_after = Some(INTENTS_MAX);
    sim.start_trace();
    let fail = |report: String, sim: &Sim| format!("{report}\n{}", tail(sim.trace()));
    let (body, spec) = (Rc::clone(&operation.body), operation.guest_spec());
    let ended = sim.run_job(|io| async move { guest.run(&io, spec.as_ref(), &body).await });
    let ended = ended.and_then(|result| sim.run_until_idle().map(|()| result));
    let Ok(result) = ended else {
        return Err(fail(format!("it takes more than {INTENTS_MAX} intents"), &sim));
    };
    if sim.faults.struck.is_empty() {
        return Ok(false);
    }
    if let Err(error) = &result {
        names_file(error, &sim).map_err(|report| fail(report, &sim))?;
    }
    if !sim.engine(FIRST).is_idle() || sim.world.open_leaves() > 0 {
        return Err(fail("something is left in flight or open".into(), &sim));
    }
    let trace = tail(sim.trace());
    is_answered(sim.into_world(), operation.spec(false), seed)
        .map_err(|report| format!("looking at what is left: {report}\n{trace}"))?;
    Ok(true)
}

/// The end of a trace that may be long.
fn tail(trace: &[String]) -> String {
    trace[trace.len().saturating_sub(200)..].join("\n")
}

/// Opens, checks and reads what is left, whatever comes of it.
fn is_answered(world: World, spec: NodeSpec, seed: u64) -> Result<(), String> {
    let mut sim = Sim::new(seed, world);
    sim.stop_after = Some(INTENTS_MAX);
    let looked = sim.run_job(|io| async move {
        let node = open(&io, &spec).await?;
        let checked = check(&io, node, &mut |_| {}, &|_, _| {}).await;
        let len = io.len(node).min(READ_MAX) as usize;
        let read = io.read_bytes("explore/read", node, 0, len).await;
        io.close(node).await?;
        checked?;
        read.map(drop)
    });
    let _: Result<(), Box<Error>> =
        looked.map_err(|_| format!("it takes more than {INTENTS_MAX} intents"))?;
    match sim.world.open_leaves() {
        0 => Ok(()),
        _ => Err("a leaf was left open".into()),
    }
}
