//! The simulated executor: virtual time, and one seed for everything that is left to chance.
//!
//! ```text
//!   engines ─▶ intents ─▶ [ begun, due at t1 ] ─ carried out ─▶ [ done, due at t2 ] ─ delivered ─▶ engines
//!                              World decides what                   what is durable is decided here
//! ```
//!
//! An intent takes effect and is answered at two moments, so that intents overlap in every way that a real executor
//! allows. The same seed, engines and calls give the same run. Start at [`Sim`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::Future;
use std::time::Duration;

use drystone_core::crypto::Secret;
use drystone_core::engine::{Engine, Io, Reply, Request};
use drystone_core::intent::{Action, Intent, Label, Outcome, Token};
use fastrand::Rng;

use crate::disk::{Change, Survival};
use crate::fault::{Effect, Faults, Kind};
use crate::lie::{Lie, Lies};
use crate::trace;
use crate::world::{Consequence, Frozen, Moment, World};

/// The tag of jobs that the simulator starts itself.
const JOB_TAG: u64 = u64::MAX;

/// Virtual nanoseconds that a round trip takes at the least.
const DELAY_MIN: u64 = 100;

/// Steps that an intent is held back for which comes late, where others go on for so long.
const HELD_STEPS: u64 = 400;

/// Names an engine of a simulation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EngineId(usize);

/// The first engine, which every simulation has.
pub const FIRST: EngineId = EngineId(0);

/// The power is off: what was waited for will not come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the simulated machine has stopped")]
pub struct Stopped;

/// Engines on simulated disks.
pub struct Sim {
    /// Disks, leaves and locks.
    pub world: World,
    /// What fails.
    pub faults: Faults,
    /// What is answered without having been done.
    pub lies: Lies,
    /// Stop after this many intents were answered.
    pub stop_after: Option<u64>,
    engines: Vec<Engine>,
    replies: VecDeque<(EngineId, Reply)>,
    events: BTreeMap<(u64, u64), Event>,
    /// What comes late, and in how many steps at the latest.
    held: Option<(u64, Event)>,
    now: u64,
    number: u64,
    answered: u64,
    /// Longest ordinary delay; drawn per run, so that some are nearly in order and some are not at all.
    delay_max: u64,
    rng: Rng,
    trace: Option<Vec<String>>,
    labels: BTreeSet<(Kind, Label)>,
}

struct Event {
    engine: EngineId,
    token: Token,
    label: Label,
    number: u64,
    /// How many intents were answered when this one came.
    submitted: u64,
    state: State,
}

enum State {
    Begun(Action),
    Done(Outcome, Consequence),
}

/// The passphrases of the images that tests make, by their ids.
pub const SECRETS: [(&str, &str); 3] = [("key", "stones"), ("new", "mortar"), ("newer", "cement")];

/// An engine that knows the passphrases of the images that tests make.
pub(crate) fn new_engine() -> Engine {
    let engine = Engine::new();
    for (id, passphrase) in SECRETS {
        engine.add_secret(id, Secret::new(passphrase.into()));
    }
    engine
}

impl Sim {
    /// Returns one engine in a world.
    pub fn new(seed: u64, world: World) -> Self {
        let mut rng = Rng::with_seed(seed);
        let delay_max = DELAY_MIN * [2, 10, 100, 1000][rng.usize(..4)];
        Self {
            world,
            faults: Faults::default(),
            lies: Lies::default(),
            stop_after: None,
            engines: vec![new_engine()],
            replies: VecDeque::new(),
            events: BTreeMap::new(),
            held: None,
            now: 0,
            number: 0,
            answered: 0,
            delay_max,
            rng,
            trace: None,
            labels: BTreeSet::new(),
        }
    }

    /// Adds an engine, another process as far as locks go.
    pub fn add_engine(&mut self) -> EngineId {
        self.engines.push(new_engine());
        EngineId(self.engines.len() - 1)
    }

    /// An engine.
    pub fn engine(&self, id: EngineId) -> &Engine {
        &self.engines[id.0]
    }

    /// Writes down every intent, outcome and reply from here on.
    pub fn start_trace(&mut self) {
        self.trace.get_or_insert_default();
    }

    /// Verbs and labels of the intents that came so far.
    pub fn labels(&self) -> &BTreeSet<(Kind, Label)> {
        &self.labels
    }

    /// What was written down.
    pub fn trace(&self) -> &[String] {
        self.trace.as_deref().unwrap_or_default()
    }

    /// Intents that were answered.
    pub fn answered(&self) -> u64 {
        self.answered
    }

    /// Virtual time since the start.
    pub fn now(&self) -> Duration {
        Duration::from_nanos(self.now)
    }

    /// Tells whether the power is off.
    pub fn is_stopped(&self) -> bool {
        self.stop_after.is_some_and(|stop| self.answered >= stop)
    }

    /// Hands a request to an engine.
    pub fn submit(&mut self, id: EngineId, request: Request) {
        self.engines[id.0].submit(request);
        self.gather();
    }

    /// The next reply that has come.
    pub fn next_reply(&mut self) -> Option<(EngineId, Reply)> {
        self.replies.pop_front()
    }

    /// Lets time pass until the next reply; `None` when nothing is in flight.
    ///
    /// # Errors
    /// When the power goes off first.
    ///
    /// # Panics
    /// When requests wait for what nobody brings.
    pub fn wait_reply(&mut self) -> Result<Option<(EngineId, Reply)>, Stopped> {
        loop {
            if let Some(reply) = self.next_reply() {
                return Ok(Some(reply));
            }
            if self.is_stopped() {
                return Err(Stopped);
            }
            if !self.step() {
                self.assert_idle();
                return Ok(self.next_reply());
            }
        }
    }

    /// Lets time pass until nothing is in flight.
    ///
    /// # Errors
    /// When the power goes off first.
    ///
    /// # Panics
    /// When requests wait for what nobody brings.
    pub fn run_until_idle(&mut self) -> Result<(), Stopped> {
        while self.step() {}
        if self.is_stopped() {
            return Err(Stopped);
        }
        self.assert_idle();
        Ok(())
    }

    /// Runs a coroutine of the first engine to its end.
    ///
    /// # Errors
    /// When the power goes off first.
    pub fn run_job<T: 'static, F: Future<Output = T> + 'static>(
        &mut self,
        coroutine: impl FnOnce(Io) -> F,
    ) -> Result<T, Stopped> {
        self.run_job_on(FIRST, coroutine)
    }

    /// Runs a coroutine of an engine to its end; what else is in flight goes on meanwhile.
    ///
    /// # Errors
    /// When the power goes off first.
    ///
    /// # Panics
    /// When the coroutine waits for what nobody brings.
    pub fn run_job_on<T: 'static, F: Future<Output = T> + 'static>(
        &mut self,
        id: EngineId,
        coroutine: impl FnOnce(Io) -> F,
    ) -> Result<T, Stopped> {
        let job = self.engines[id.0].run(JOB_TAG, coroutine);
        self.gather();
        loop {
            if let Some(value) = job.take() {
                return Ok(value);
            }
            if self.is_stopped() {
                return Err(Stopped);
            }
            assert!(self.step(), "a coroutine waits for what nobody brings\n{}", self.trace().join("\n"));
        }
    }

    /// Runs a coroutine of the first engine, and whatever it leaves behind, to the end; `look` sees the simulation after
    /// every step.
    ///
    /// # Panics
    /// When the coroutine waits for what nobody brings.
    pub fn run_job_watched<T: 'static, F: Future<Output = T> + 'static>(
        &mut self,
        coroutine: impl FnOnce(Io) -> F,
        mut look: impl FnMut(&Self),
    ) -> T {
        let job = self.engines[FIRST.0].run(JOB_TAG, coroutine);
        self.gather();
        look(self);
        while self.step() {
            look(self);
        }
        job.take().unwrap_or_else(|| {
            panic!("a coroutine waits for what nobody brings\n{}", self.trace().join("\n"))
        })
    }

    /// Does the next thing that is due. Returns false when nothing is, or the power is off.
    pub fn step(&mut self) -> bool {
        self.gather();
        if self.is_stopped() {
            return false;
        }
        self.release();
        let Some(((due, _), event)) = self.events.pop_first() else { return false };
        self.now = due;
        for (disk, change) in self.lies.due() {
            self.world.begin_late(disk, change);
        }
        match event.state {
            State::Begun(action) if self.lies.about(event.label, &action) == Some(Lie::Skipped) => {
                let state = State::Done(Outcome::Done(Ok(())), Consequence::Nothing);
                self.events.insert((due, event.number), Event { state, ..event });
            }
            State::Begun(action) if self.lies.about(event.label, &action) == Some(Lie::Late) => {
                self.lies.postpone(self.world.change_of(&action));
                let state = State::Done(Lies::answer(action), Consequence::Nothing);
                self.events.insert((due, event.number), Event { state, ..event });
            }
            State::Begun(action) => {
                let struck =
                    self.faults.strike((&action, event.label), self.world.path_of(&action), &mut self.rng);
                if struck == Some(Effect::Late) {
                    self.held = Some((HELD_STEPS, Event { state: State::Begun(action), ..event }));
                    return true;
                }
                let moment = Moment { rng: &mut self.rng, fault: struck };
                let (outcome, consequence) = self.world.carry_out(action, moment);
                let due = if self.rng.bool() { due } else { due + self.delay() };
                let state = State::Done(outcome, consequence);
                if struck == Some(Effect::AnsweredLate) {
                    self.held = Some((HELD_STEPS, Event { state, ..event }));
                    return true;
                }
                self.events.insert((due, event.number), Event { state, ..event });
            }
            State::Done(outcome, consequence) => {
                self.answered += 1;
                self.world.settle(consequence, event.submitted, self.answered, &mut self.rng);
                let now = self.now;
                self.note(|| format!("{now:>9} < {:<4} {}", event.number, trace::outcome(&outcome)));
                self.engines[event.engine.0].complete(event.token, outcome);
                self.gather();
            }
        }
        true
    }

    /// Lets go of what is held back, once it has been overtaken by all that there is, or for long enough.
    fn release(&mut self) {
        let Some((left, event)) = self.held.take() else { return };
        if left == 0 || self.events.is_empty() {
            self.events.insert((self.now, event.number), event);
        } else {
            self.held = Some((left - 1, event));
        }
    }

    /// What is to come.
    fn coming(&self) -> impl Iterator<Item = &Event> {
        self.events.values().chain(self.held.iter().map(|(_, event)| event))
    }

    /// Returns what is left on the disks if the power goes now.
    pub fn after_crash(&self, survival: Survival) -> World {
        let mut world = self.world.clone();
        world.crash(self.changes_in_flight(), survival);
        world
    }

    /// Returns what the disks hold if the power goes now, with everything that is still to be decided.
    pub fn freeze(&self) -> Frozen {
        self.world.freeze(self.changes_in_flight())
    }

    /// A number that differs whenever a crash would find something else.
    pub fn moment(&self) -> u64 {
        let begun = self.coming().filter(|event| matches!(event.state, State::Begun(_)));
        let newest = begun.map(|event| event.number + 1).fold(0, |sum, number| sum * 31 + number);
        self.world.moment().wrapping_mul(1_000_003).wrapping_add(newest)
    }

    /// Number of sectors that a crash would decide about.
    pub fn unflushed_sectors(&self) -> usize {
        self.world.unflushed_sectors(&self.changes_in_flight())
    }

    /// What intents that have not taken effect may still do.
    fn changes_in_flight(&self) -> Vec<(usize, Change)> {
        let begun = self.coming().filter_map(|event| match &event.state {
            State::Begun(action) => self.world.change_of(action),
            State::Done(..) => None,
        });
        begun.chain(self.lies.postponed().cloned()).collect()
    }

    /// Ends the simulation, and returns the world with what reads see as what is stored.
    ///
    /// # Panics
    /// When something is in flight.
    pub fn into_world(mut self) -> World {
        self.assert_idle();
        for (disk, change) in self.lies.all() {
            self.world.begin_late(disk, change);
        }
        self.world.shut_down();
        self.world
    }

    fn assert_idle(&self) {
        let idle = self.engines.iter().all(Engine::is_idle);
        assert!(idle, "a request waits for what nobody brings\n{}", self.trace().join("\n"));
    }

    /// Takes what the engines put out.
    fn gather(&mut self) {
        for index in 0..self.engines.len() {
            let engine = EngineId(index);
            while let Some(Intent { token, label, action }) = self.engines[index].next_intent() {
                let number = self.number;
                self.number += 1;
                self.labels.insert((Kind::of(&action), label));
                trace::count_intent();
                let now = self.now;
                self.note(|| format!("{now:>9} > {number:<4} {index} {label}: {}", trace::action(&action)));
                let due = match &action {
                    Action::Sleep { duration } => {
                        self.now.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX))
                    }
                    _ => self.now + self.delay(),
                };
                let event = Event {
                    engine,
                    token,
                    label,
                    number,
                    submitted: self.answered,
                    state: State::Begun(action),
                };
                self.events.insert((due, number), event);
            }
            while let Some(reply) = self.engines[index].next_reply() {
                if reply.tag == JOB_TAG {
                    continue;
                }
                let now = self.now;
                self.note(|| format!("{now:>9} = {index} {}", trace::reply(&reply)));
                self.replies.push_back((engine, reply));
            }
        }
    }

    fn note(&mut self, line: impl FnOnce() -> String) {
        if self.trace.is_some() || trace::is_witnessed() {
            let line = line();
            trace::tell(|| line.clone());
            self.trace.iter_mut().for_each(|trace| trace.push(line.clone()));
        }
    }

    fn delay(&mut self) -> u64 {
        let delay = self.rng.u64(DELAY_MIN..=self.delay_max);
        // Now and then something takes very long.
        if self.rng.u8(..32) == 0 { delay * 50 } else { delay }
    }
}
