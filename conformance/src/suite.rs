//! The scenarios on the simulator: clean runs, faults, crashes, determinism.
//!
//! A [`Run`] is a [`Case`], an image and how to open it, with a seed; a failure names both. Start at [`Run`]; [`on`] is the part for other executors.

use std::fmt::Display;
use std::path::Path;

use drystone_core::buf::BufList;
use drystone_core::engine::Op;
use drystone_core::graph::open::NodeSpec;
use fastrand::Rng;

use crate::disk::Survival;
use crate::fault::{Effect, Fault, Faults, Kind, Storm};
use crate::model::{Model, Rules};
use crate::refusals::{Refusal, refusals};
use crate::runner::SimRunner;
use crate::scenario::{
    Ask, Conduct, Draw, Ended, Event, Failure, Mix, RunError, Runner, Step, one, play, read_all, replay,
};
use crate::sim::Sim;
use crate::sparse::Sparse;
use crate::wire::{Delivery, WireRunner};
use crate::world::World;

/// An image in a world, ready to be opened.
#[derive(Clone, Debug)]
pub struct Image {
    /// How to open it for writing.
    pub spec: NodeSpec,
    /// What its guest sees.
    pub content: Sparse,
    /// What may be found on it.
    pub rules: Rules,
    /// The mix of requests that suits it.
    pub mix: Mix,
}

/// When a world is inspected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// After a crash, before anybody opened the image again.
    Crashed,
    /// After a crash or failures, once the image was opened, used and closed again: space may still be leaked.
    Recovered,
    /// After the image was closed.
    Closed,
}

/// Puts the files of an image into a world.
pub type Setup = Box<dyn Fn(&mut World) -> Image>;

/// Inspects the files of an image; gets what its guest read last, where that is known.
pub type Verify = Box<dyn Fn(&World, Stage, Option<&Sparse>) -> Result<(), String>>;

/// A kind of image that the suite runs on.
pub struct Case {
    /// Its name, for reports.
    pub name: String,
    /// Makes it.
    pub setup: Setup,
    /// Checks it from outside.
    pub verify: Verify,
    /// Checks it in little time, where [`verify`](Self::verify) would take too long.
    pub verify_quickly: Verify,
}

impl Case {
    /// A case that nobody inspects from outside.
    pub fn new(name: impl Into<String>, setup: impl Fn(&mut World) -> Image + 'static) -> Self {
        let nobody = || Box::new(|_: &World, _, _: Option<&Sparse>| Ok(()));
        Self { name: name.into(), setup: Box::new(setup), verify: nobody(), verify_quickly: nobody() }
    }

    /// The same case with an inspection that takes little time.
    #[must_use]
    pub fn verified_quickly(
        mut self,
        verify: impl Fn(&World, Stage, Option<&Sparse>) -> Result<(), String> + 'static,
    ) -> Self {
        self.verify_quickly = Box::new(verify);
        self
    }

    /// The same case with an inspection.
    #[must_use]
    pub fn verified(
        mut self,
        verify: impl Fn(&World, Stage, Option<&Sparse>) -> Result<(), String> + 'static,
    ) -> Self {
        self.verify = Box::new(verify);
        self
    }
}

/// One run of a case: an image in a world, and a plan for it.
pub struct Run<'a> {
    case: &'a Case,
    seed: u64,
    image: Image,
    plan: Vec<Step>,
    world: World,
}

/// What a clean run ends with.
#[derive(Debug, PartialEq)]
pub struct Clean {
    /// How each step was answered.
    pub ended: Ended,
    /// What the guest read at the end.
    pub content: Sparse,
    /// Intents that it took.
    pub intents: u64,
}

/// How thoroughly crashes are explored at each point.
#[derive(Clone, Copy, Debug)]
pub struct Thoroughness {
    /// Every subset is tried of so many sectors at the most.
    pub subsets_max: u32,
    /// Beyond that, so many drawn ones.
    pub samples: u64,
    /// Crash points are this far apart.
    pub stride: u64,
    /// What is left is inspected from outside at every so many of these points, and quickly at the others.
    pub outside: u64,
}

impl<'a> Run<'a> {
    /// Returns a run whose plan is drawn from the seed that decides everything else too.
    pub fn new(case: &'a Case, seed: u64) -> Self {
        Self::drawn(case, seed, &mut Rng::with_seed(seed))
    }

    /// Returns a run whose plan is drawn from elsewhere.
    pub fn drawn(case: &'a Case, seed: u64, draw: &mut dyn Draw) -> Self {
        Self::in_world(case, seed, World::new(), draw)
    }

    fn in_world(case: &'a Case, seed: u64, mut world: World, draw: &mut dyn Draw) -> Self {
        let mut image = (case.setup)(&mut world);
        image.mix.vary(draw);
        let plan = image.mix.plan(image.content.len(), draw);
        Self { case, seed, image, plan, world }
    }

    /// Returns the run of a seed whose files, for executors other than the simulator, are in a folder of the host.
    pub fn in_folder(case: &'a Case, seed: u64, folder: &Path) -> Self {
        let mut world = World::new();
        world.folder = format!("{}/", folder.display());
        Self::in_world(case, seed, world, &mut Rng::with_seed(seed))
    }

    /// The same run, without requests in flight together that share bytes: every executor must give the same answers.
    ///
    /// Discards are left out under direct I/O: one that shares a block with a write may then be without effect.
    #[must_use]
    pub fn apart(mut self) -> Self {
        self.image.mix.overlap = false;
        if self.image.spec.mode.direct {
            self.plan.retain(|step| step.op != Op::Discard);
        }
        self.without_refusals()
    }

    /// The same run, with nothing in it that may be refused: whether zeros can be had without writing them hangs on what else is
    /// in their unit at that moment.
    #[must_use]
    pub fn without_refusals(mut self) -> Self {
        for step in &mut self.plan {
            if let Op::WriteZeroes(flags, _) = &mut step.op {
                flags.no_fallback = false;
            }
        }
        self
    }

    /// Returns a run of this very plan, with so many requests in flight at the most.
    pub fn planned(case: &'a Case, seed: u64, plan: Vec<Step>, depth: usize) -> Self {
        let mut world = World::new();
        let mut image = (case.setup)(&mut world);
        image.mix.depth = depth;
        Self { case, seed, image, plan, world }
    }

    /// Runs the plan without faults, reads everything back, closes, and inspects.
    ///
    /// # Errors
    /// A report of the first thing that is wrong.
    pub fn clean(&self) -> Result<Clean, String> {
        let mut runner = self.runner(self.world.clone(), Faults::default(), None);
        let (ended, content) = on(&mut runner, &self.image, &self.plan).map_err(|error| self.fail(error))?;
        let intents = runner.sim.answered();
        let world = runner.sim.into_world();
        (self.case.verify)(&world, Stage::Closed, Some(&content)).map_err(|error| self.fail(error))?;
        Ok(Clean { ended, content, intents })
    }

    /// The same through the NBD protocol, over a stream that delivers like this; also returns the bytes that went to
    /// the server, and to the client.
    ///
    /// # Errors
    /// A report of the first thing that is wrong.
    pub fn clean_over(&self, delivery: Delivery) -> Result<(Clean, [u64; 2]), String> {
        let fail = |error: &dyn Display| self.fail(format!("{delivery:?}: {error}"));
        let mut runner = WireRunner::new(Sim::new(self.seed, self.world.clone()), delivery);
        let (ended, content) = on(&mut runner, &self.image, &self.plan).map_err(|error| fail(&error))?;
        let (intents, moved) = (runner.answered(), runner.moved());
        let world = runner.into_world();
        (self.case.verify)(&world, Stage::Closed, Some(&content)).map_err(|error| fail(&error))?;
        Ok((Clean { ended, content, intents }, moved))
    }

    /// The same on files of the host, by an executor that knows only those.
    ///
    /// # Errors
    /// A report of the first thing that is wrong.
    pub fn clean_on_files(&self, runner: &mut dyn Runner) -> Result<(Ended, Sparse), String> {
        let mut world = self.world.clone();
        world.save().map_err(|error| self.fail(error))?;
        let (ended, content) = on(runner, &self.image, &self.plan).map_err(|error| self.fail(error))?;
        world.load().map_err(|error| self.fail(error))?;
        (self.case.verify)(&world, Stage::Closed, Some(&content)).map_err(|error| self.fail(error))?;
        Ok((ended, content))
    }

    /// Writes the files to the host.
    ///
    /// # Errors
    /// What the host says.
    pub fn save(&self) -> Result<(), String> {
        self.world.save().map_err(|error| self.fail(error))
    }

    /// Carries out the plan on files of the host that are there already. Requests may fail, where `faults` says so.
    ///
    /// # Errors
    /// A report of the first thing that is wrong.
    pub fn play_on_files(&self, runner: &mut dyn Runner, faults: bool) -> Result<(), String> {
        runner.open(&self.image.spec).map_err(|error| self.fail(error))?;
        let mut model = self.model(self.image.rules);
        play(runner, &mut model, &self.plan, self.conduct(faults)).map_err(|error| self.fail(error))?;
        match runner.close() {
            Err(error) if !faults => Err(self.fail(error)),
            _ => Ok(()),
        }
    }

    /// Wants back from files of the host what was flushed, after a process that had played the plan on them ended in
    /// whatever way, having told these events.
    ///
    /// # Errors
    /// A report of the first thing that is wrong.
    pub fn recovers_files(&self, events: &[Event]) -> Result<(), String> {
        let mut world = self.world.clone();
        world.load().map_err(|error| self.fail(error))?;
        // A process may end in the middle of a sector.
        let mut model = self.model(Rules { crash_sector: None, ..self.image.rules });
        replay(&mut model, &self.plan, events).map_err(|error| self.fail(error))?;
        let recovered = self.recover(&model, world, self.seed, (2, &self.case.verify));
        recovered.map_err(|error| self.fail(format!("after {} events: {error}", events.len())))
    }

    /// Leaves out requests outside the disk.
    #[must_use]
    pub fn within(mut self) -> Self {
        let size = self.image.content.len();
        self.plan.retain(|step| step.offset.checked_add(step.len).is_some_and(|end| end <= size));
        self
    }

    /// Asks the simulator for what cannot be, and returns what it says.
    ///
    /// # Errors
    /// A report of what works and must not, or the other way round.
    pub fn refusals(&self) -> Result<Vec<Refusal>, String> {
        let mut runner = self.runner(self.world.clone(), Faults::default(), None);
        refusals(&mut runner, &self.image.spec).map_err(|error| self.fail(error))
    }

    /// The same on files of the host.
    ///
    /// # Errors
    /// A report of what works and must not, or the other way round.
    pub fn refusals_on_files(&self, runner: &mut dyn Runner) -> Result<Vec<Refusal>, String> {
        self.world.save().map_err(|error| self.fail(error))?;
        refusals(runner, &self.image.spec).map_err(|error| self.fail(error))
    }

    /// Runs the plan twice with the same faults, and wants the same trace, which it returns.
    ///
    /// # Errors
    /// With the first line that differs.
    pub fn deterministic(&self) -> Result<Vec<String>, String> {
        let (first, second) = (self.trace()?, self.trace()?);
        match first.iter().zip(&second).find(|(a, b)| a != b) {
            Some((a, b)) => Err(self.fail(format!("two runs differ:\n{a}\n{b}"))),
            None if first.len() != second.len() => Err(self.fail("two runs differ in length")),
            None => Ok(first),
        }
    }

    fn trace(&self) -> Result<Vec<String>, String> {
        let mut runner = self.runner(self.world.clone(), storm(self.seed), None);
        runner.sim.start_trace();
        if let Ok(()) = runner.open(&self.image.spec) {
            let mut model = self.model(self.image.rules);
            let played = play(&mut runner, &mut model, &self.plan, self.conduct(true));
            played.map_err(|error| self.fail(error))?;
        }
        Ok(runner.sim.trace().to_vec())
    }

    /// Runs the plan while intents fail at random; then cuts the power, and wants everything back that was flushed.
    ///
    /// # Errors
    /// A report of the first thing that is wrong.
    pub fn faulty(&self) -> Result<(), String> {
        self.with_faults(storm(self.seed)).map(|_| ())
    }

    /// Lets the first intent fail, then the second, and so on until a run meets no fault; returns how many it met.
    ///
    /// # Errors
    /// A report of the first thing that is wrong.
    pub fn every_nth_fault(&self, effect: Effect) -> Result<u64, String> {
        let mut skip = 0;
        loop {
            let faults = Faults { rules: vec![Fault::nth(skip, effect)], ..Faults::default() };
            let struck = self.with_faults(faults);
            if !struck.map_err(|error| format!("{error} (fault {skip}: {effect:?})"))? {
                return Ok(skip);
            }
            skip += 1;
        }
    }

    /// Runs the plan with these faults; returns whether they struck.
    ///
    /// # Errors
    /// A report of the first thing that is wrong.
    pub fn with_faults(&self, faults: Faults) -> Result<bool, String> {
        let mut runner = self.runner(self.world.clone(), faults, None);
        // A write that stops early may stop within a sector.
        let mut model = self.model(Rules { crash_sector: None, ..self.image.rules });
        match runner.open(&self.image.spec) {
            Ok(()) => {
                if runner.sim.faults.hurt_only(Kind::Lock) {
                    return Err(self.fail("it opened without a lock"));
                }
                let ended = play(&mut runner, &mut model, &self.plan, self.conduct(true));
                let ended = ended.map_err(|error| self.fail(error))?;
                let closed = runner.close();
                self.surfaced(&runner.sim.faults, &ended, closed.is_err())?;
            }
            Err(_) if runner.sim.faults.hurt() => {}
            Err(error) => return Err(self.fail(format!("open: {error}"))),
        }
        if runner.sim.world.open_leaves() > 0 {
            return Err(self.fail("a leaf was left open"));
        }
        let struck = !runner.sim.faults.struck.is_empty();
        let world = runner.sim.after_crash(Survival::Seed(self.seed));
        self.recover(&model, world, self.seed, (1, &self.case.verify)).map_err(|error| self.fail(error))?;
        Ok(struck)
    }

    /// A failure that nobody made is a bug, and so is a failure that nobody heard of.
    fn surfaced(&self, faults: &Faults, ended: &Ended, closing: bool) -> Result<(), String> {
        let Ended::Finished(answers) = ended else { return Ok(()) };
        let size = self.image.content.len();
        let failed = |but_slow_zeros: bool| {
            answers.iter().zip(&self.plan).any(|(answer, step)| {
                let beyond = step.offset.checked_add(step.len).is_none_or(|end| end > size);
                let slow = matches!(step.op, Op::WriteZeroes(flags, _) if flags.no_fallback);
                answer.result.is_err() && !beyond && !(slow && but_slow_zeros)
            })
        };
        match faults.hurt() {
            false if failed(true) => Err(self.fail("a request failed, and nothing had made it fail")),
            true if !failed(false) && !closing && !self.unasked(faults) => {
                Err(self.fail(format!("nobody heard of {:?}", faults.struck)))
            }
            _ => Ok(()),
        }
    }

    /// Whether all that failed is what the image does of its own accord: discards, where it is one that does so, and easing
    /// a lock for one of two nodes above a file when the other closes.
    fn unasked(&self, faults: &Faults) -> bool {
        let discards = self.image.rules.discards_on_its_own && faults.hurt_only(Kind::Discard);
        discards || faults.hurt_only(Kind::Lock)
    }

    /// Cuts the power after every intent, or every few, lets every subset of the cache survive, or some, and wants
    /// back what was flushed, each time. Returns the number of crashes.
    ///
    /// # Errors
    /// A report of the first thing that is wrong.
    pub fn crash_everywhere(&self, how: Thoroughness) -> Result<u64, String> {
        let intents = self.clean()?.intents;
        let mut tried = 0;
        let mut stop = self.seed % how.stride;
        while stop <= intents {
            tried += self.crash_at(stop, how)?;
            stop += how.stride;
        }
        Ok(tried)
    }

    /// Cuts the power after `stop` intents. Returns the number of ways in which it was cut.
    ///
    /// # Errors
    /// A report of the first thing that is wrong.
    pub fn crash_at(&self, stop: u64, how: Thoroughness) -> Result<u64, String> {
        let mut runner = self.runner(self.world.clone(), Faults::default(), Some(stop));
        let mut model = self.model(self.image.rules);
        let fail = |error: &dyn Display| self.fail(format!("power cut after {stop} intents: {error}"));
        match runner.open(&self.image.spec) {
            Ok(()) => {
                let ended = play(&mut runner, &mut model, &self.plan, self.conduct(false));
                if let Ended::Finished(_) = ended.map_err(|error| fail(&error))? {
                    // The plan may end before the power does: the rest of the intents close the image.
                    let _ = read_all(&mut runner).and_then(|_| runner.close());
                }
            }
            Err(RunError::Stopped(_)) => {}
            Err(RunError::Core(error)) => return Err(fail(&error)),
        }
        let survivals = self.survivals(runner.sim.unflushed_sectors(), stop, how);
        let outside = (stop / how.stride).is_multiple_of(how.outside);
        let verify = if outside { &self.case.verify } else { &self.case.verify_quickly };
        for survival in &survivals {
            let world = runner.sim.after_crash(*survival);
            let recovered = self.recover(&model, world, stop, (0, verify));
            recovered.map_err(|error| fail(&format!("{survival:?} survives: {error}")))?;
        }
        Ok(survivals.len() as u64)
    }

    fn survivals(&self, sectors: usize, stop: u64, how: Thoroughness) -> Vec<Survival> {
        match u32::try_from(sectors) {
            Ok(sectors) if sectors <= how.subsets_max.min(16) => {
                (0..1 << sectors).map(Survival::Mask).collect()
            }
            _ => {
                let seeds = (0..how.samples).map(|sample| self.seed ^ (stop << 20) ^ (sample << 50));
                seeds.map(Survival::Seed).chain([Survival::Nothing, Survival::Everything]).collect()
            }
        }
    }

    /// Opens what a crash left, and checks that it is what a crash may leave; then goes on working with it.
    ///
    /// Now and then the power fails again on the way, twice at the most.
    fn recover(
        &self,
        model: &Model,
        world: World,
        salt: u64,
        (level, verify): (u32, &Verify),
    ) -> Result<(), Failure> {
        let inspected = verify(&world, Stage::Crashed, None);
        inspected.map_err(|error| broken("inspection after the crash", error))?;
        let mut rng = Rng::with_seed(self.seed ^ salt.rotate_left(32) ^ u64::from(level));
        let again = level < 2 && rng.u8(..4) == 0;
        let mut runner = self.runner(world, Faults::default(), again.then(|| rng.u64(..8)));
        let read = runner.open(&self.image.spec).and_then(|()| read_all(&mut runner));
        let content = match read {
            Ok(content) => content,
            Err(RunError::Stopped(_)) => {
                let world = runner.sim.after_crash(Survival::Seed(rng.u64(..)));
                return self.recover(model, world, salt, (level + 1, verify));
            }
            Err(error) => return Err(broken("opening after the crash", error)),
        };
        if content.len() != model.size() {
            let lengths = format!("{} bytes of {}", content.len(), model.size());
            return Err(broken("opening after the crash", lengths));
        }
        check(&content, "after the crash", |offset, bytes| model.check_after_crash(offset, bytes))?;
        runner.sim.stop_after = None;
        self.go_on(runner, content, verify)
    }

    /// Works with an image that was recovered, as with any other.
    fn go_on(&self, mut runner: SimRunner, content: Sparse, verify: &Verify) -> Result<(), Failure> {
        let mut model = Model::new(content.len(), content, self.image.rules);
        let mix = Mix { steps: 6, ..self.image.mix.clone() };
        let plan = mix.plan(model.size(), &mut Rng::with_seed(!self.seed));
        play(&mut runner, &mut model, &plan, self.conduct(false))?;
        let content = read_all(&mut runner).map_err(|error| broken("reading back", error))?;
        check(&content, "reading back after recovery", |offset, bytes| model.check_now(offset, bytes))?;
        let flush = Ask { op: Op::Flush, offset: 0, len: 0, data: BufList::new(), tag: 0 };
        one(&mut runner, flush).map_err(|error| broken("flush after recovery", error))?;
        runner.close().map_err(|error| broken("close after recovery", error))?;
        let world = runner.sim.into_world();
        let inspected = verify(&world, Stage::Recovered, Some(&content));
        inspected.map_err(|error| broken("inspection after recovery", error))
    }

    fn model(&self, rules: Rules) -> Model {
        Model::new(self.image.content.len(), self.image.content.clone(), rules)
    }

    fn runner(&self, world: World, faults: Faults, stop_after: Option<u64>) -> SimRunner {
        let mut sim = Sim::new(self.seed, world);
        sim.faults = faults;
        sim.stop_after = stop_after;
        SimRunner::new(sim)
    }

    fn conduct(&self, faults: bool) -> Conduct {
        Conduct { depth: self.image.mix.depth, overlap: self.image.mix.overlap, faults }
    }

    fn fail(&self, what: impl Display) -> String {
        let plan = match self.plan.len() {
            // Short ones are not drawn from the seed.
            0..=3 => format!(", plan {:?}", self.plan),
            _ => String::new(),
        };
        format!("case {}, seed {}{plan}: {what}", self.case.name, self.seed)
    }
}

/// Runs a check on every case and these seeds; `DRYSTONE_CASE` picks cases by a part of their names.
///
/// # Panics
/// With all that fails.
pub fn each<T>(cases: &[Case], seeds: std::ops::Range<u64>, check: impl Fn(Run<'_>) -> Result<T, String>) {
    let only = std::env::var("DRYSTONE_CASE").unwrap_or_default();
    let runs = cases.iter().filter(|case| case.name.contains(&only));
    let runs = runs.flat_map(|case| seeds.clone().map(move |seed| Run::new(case, seed)));
    let failures: Vec<String> = runs.filter_map(|run| check(run).err()).collect();
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

/// Opens an image on any executor, runs a plan, reads everything back, and closes: the part of the suite that every
/// executor passes with the same answers.
///
/// # Errors
/// With the first thing that is wrong.
pub fn on(runner: &mut dyn Runner, image: &Image, plan: &[Step]) -> Result<(Ended, Sparse), Failure> {
    let mut model = Model::new(image.content.len(), image.content.clone(), image.rules);
    runner.open(&image.spec).map_err(|error| broken("open", error))?;
    let conduct = Conduct { depth: image.mix.depth, overlap: image.mix.overlap, faults: false };
    let ended = play(runner, &mut model, plan, conduct)?;
    let content = read_all(runner).map_err(|error| broken("reading back", error))?;
    check(&content, "reading back", |offset, bytes| model.check_now(offset, bytes))?;
    runner.close().map_err(|error| broken("close", error))?;
    Ok((ended, content))
}

/// Faults of every kind that a request may meet, often enough that most runs meet some.
fn storm(seed: u64) -> Faults {
    use crate::fault::Kind::{Discard, Flush, Read, Write, WriteZeroes};
    use drystone_core::intent::Errno;
    let mut rng = Rng::with_seed(seed ^ 0x5747_4f52_4d53);
    let storm = Storm {
        per_mille: [5, 20, 100][rng.usize(..3)],
        kinds: vec![Read, Write, Flush, WriteZeroes, Discard],
        effects: vec![
            Effect::Fail(Errno::EIO),
            Effect::Fail(Errno::ENOSPC),
            Effect::Fail(Errno::ENOTSUP),
            Effect::Short,
            Effect::Short,
        ],
    };
    Faults { storm: Some(storm), ..Faults::default() }
}

/// Checks a whole disk in pieces.
fn check(
    content: &Sparse,
    when: &'static str,
    check: impl Fn(u64, &[u8]) -> Result<(), crate::model::Mismatch>,
) -> Result<(), Failure> {
    const CHUNK: u64 = 256 * 1024;
    let mut offset = 0;
    while offset < content.len() {
        let len = CHUNK.min(content.len() - offset);
        check(offset, &content.bytes(offset, len as usize))
            .map_err(|mismatch| Failure::Content { when, mismatch })?;
        offset += len;
    }
    Ok(())
}

fn broken(when: &'static str, error: impl Display) -> Failure {
    Failure::Broken { when, error: error.to_string() }
}
