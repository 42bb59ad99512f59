//! The scenarios on the simulator: clean runs, faults, crashes, determinism.
//!
//! Every check takes a [`Case`], an image and how to open it, and a seed; a failure names both. Start at [`clean`].

use std::fmt::Display;

use drystone_core::buf::BufList;
use drystone_core::engine::{Op, Reply, Request};
use drystone_core::graph::NodeId;
use drystone_core::graph::open::{NodeSpec, open};
use fastrand::Rng;

use crate::disk::Survival;
use crate::fault::{Effect, Fault, Faults, Storm};
use crate::model::{Model, Rules};
use crate::scenario::{Conduct, Ended, Failure, Mix, RunError, Runner, Step, one, play, read_all};
use crate::sim::{FIRST, Sim, Stopped};
use crate::sparse::Sparse;
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
}

impl Case {
    /// A case that nobody inspects from outside.
    pub fn new(name: impl Into<String>, setup: impl Fn(&mut World) -> Image + 'static) -> Self {
        Self { name: name.into(), setup: Box::new(setup), verify: Box::new(|_, _, _| Ok(())) }
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

/// The first engine of a simulation as a [`Runner`].
pub struct SimRunner(
    /// The simulation.
    pub Sim,
);

impl Runner for SimRunner {
    fn open(&mut self, spec: &NodeSpec) -> Result<NodeId, RunError> {
        let spec = spec.clone();
        Ok(self.0.run_job(|io| async move { open(&io, &spec).await })??)
    }

    fn len(&mut self, node: NodeId) -> u64 {
        self.0.engine(FIRST).len(node)
    }

    fn submit(&mut self, batch: Vec<Request>) {
        for request in batch {
            self.0.submit(FIRST, request);
        }
    }

    fn wait(&mut self) -> Result<Reply, Stopped> {
        let reply = self.0.wait_reply()?;
        let (_, reply) = reply.expect("a reply is waited for only while a request is in flight");
        Ok(reply)
    }

    fn close(&mut self, node: NodeId) -> Result<(), RunError> {
        Ok(self.0.run_job(move |io| async move { io.close(node).await })??)
    }
}

/// One run of a case: what is drawn from its seed.
struct Run<'a> {
    case: &'a Case,
    seed: u64,
    image: Image,
    plan: Vec<Step>,
    world: World,
}

impl<'a> Run<'a> {
    fn new(case: &'a Case, seed: u64) -> Self {
        let mut world = World::new();
        let image = (case.setup)(&mut world);
        let plan = image.mix.plan(image.content.len(), &mut Rng::with_seed(seed));
        Self { case, seed, image, plan, world }
    }

    fn model(&self) -> Model {
        Model::new(self.image.content.len(), self.image.content.clone(), self.image.rules)
    }

    fn sim(&self, world: World, faults: Faults, stop_after: Option<u64>) -> SimRunner {
        let mut sim = Sim::new(self.seed, world);
        sim.faults = faults;
        sim.stop_after = stop_after;
        SimRunner(sim)
    }

    fn conduct(&self, faults: bool) -> Conduct {
        Conduct { depth: self.image.mix.depth, overlap: self.image.mix.overlap, faults }
    }

    fn fail(&self, what: impl Display) -> String {
        format!("case {}, seed {}: {what}", self.case.name, self.seed)
    }
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

/// Runs a plan without faults, reads everything back, closes, and inspects.
///
/// # Errors
/// A report of the first thing that is wrong.
pub fn clean(case: &Case, seed: u64) -> Result<Clean, String> {
    let run = Run::new(case, seed);
    let mut runner = run.sim(run.world.clone(), Faults::default(), None);
    let (ended, content) = run_clean(&run, &mut runner).map_err(|error| run.fail(error))?;
    let intents = runner.0.answered();
    let world = runner.0.into_world();
    (case.verify)(&world, Stage::Closed, Some(&content)).map_err(|error| run.fail(error))?;
    Ok(Clean { ended, content, intents })
}

fn run_clean(run: &Run<'_>, runner: &mut dyn Runner) -> Result<(Ended, Sparse), Failure> {
    on(runner, &run.image, &run.plan)
}

/// Opens an image on any executor, runs a plan, reads everything back, and closes: the part of the suite that every
/// executor passes with the same answers.
///
/// # Errors
/// With the first thing that is wrong.
pub fn on(runner: &mut dyn Runner, image: &Image, plan: &[Step]) -> Result<(Ended, Sparse), Failure> {
    let mut model = Model::new(image.content.len(), image.content.clone(), image.rules);
    let node = runner.open(&image.spec).map_err(|error| broken("open", error))?;
    let conduct = Conduct { depth: image.mix.depth, overlap: image.mix.overlap, faults: false };
    let ended = play(runner, node, &mut model, plan, conduct)?;
    let content = read_all(runner, node).map_err(|error| broken("reading back", error))?;
    check(&content, "reading back", |offset, bytes| model.check_now(offset, bytes))?;
    runner.close(node).map_err(|error| broken("close", error))?;
    Ok((ended, content))
}

/// Runs the same seed twice, and wants the same trace.
///
/// # Errors
/// With the first line that differs.
pub fn deterministic(case: &Case, seed: u64) -> Result<Vec<String>, String> {
    let run = Run::new(case, seed);
    let trace = || {
        let mut runner = run.sim(run.world.clone(), storm_of(seed), None);
        runner.0.start_trace();
        let mut model = run.model();
        if let Ok(node) = runner.open(&run.image.spec) {
            let played = play(&mut runner, node, &mut model, &run.plan, run.conduct(true));
            played.map_err(|error| run.fail(error))?;
        }
        Ok::<_, String>(runner.0.trace().to_vec())
    };
    let (first, second) = (trace()?, trace()?);
    match first.iter().zip(&second).find(|(a, b)| a != b) {
        Some((a, b)) => Err(run.fail(format!("two runs differ:\n{a}\n{b}"))),
        None if first.len() != second.len() => Err(run.fail("two runs differ in length")),
        None => Ok(first),
    }
}

/// Faults of every kind that a request may meet, often enough that most runs meet some.
fn storm_of(seed: u64) -> Faults {
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

/// Runs a plan while intents fail at random; then cuts the power, and wants everything back that was flushed.
///
/// # Errors
/// A report of the first thing that is wrong.
pub fn faulty(case: &Case, seed: u64) -> Result<(), String> {
    with_faults(case, seed, storm_of(seed)).map(|_| ())
}

/// Runs a plan with these faults; returns whether they struck.
fn with_faults(case: &Case, seed: u64, faults: Faults) -> Result<bool, String> {
    let run = Run::new(case, seed);
    let mut runner = run.sim(run.world.clone(), faults, None);
    // A write that stops early may stop within a sector.
    let rules = Rules { crash_sector: None, ..run.image.rules };
    let mut model = Model::new(run.image.content.len(), run.image.content.clone(), rules);
    match runner.open(&run.image.spec) {
        Ok(node) => {
            let ended = play(&mut runner, node, &mut model, &run.plan, run.conduct(true));
            let ended = ended.map_err(|error| run.fail(error))?;
            let closed = runner.close(node);
            surfaced(&runner.0.faults, &ended, closed.is_err(), &run)?;
        }
        Err(_) if runner.0.faults.hurt() => {}
        Err(error) => return Err(run.fail(format!("open: {error}"))),
    }
    if runner.0.world.open_leaves() > 0 {
        return Err(run.fail("a leaf was left open"));
    }
    let struck = !runner.0.faults.struck.is_empty();
    let world = runner.0.after_crash(Survival::Seed(seed));
    recovered(&run, &model, world, 1).map_err(|error| run.fail(error))?;
    Ok(struck)
}

/// A failure that nobody made is a bug, and so is a failure that nobody heard of.
fn surfaced(faults: &Faults, ended: &Ended, closing: bool, run: &Run<'_>) -> Result<(), String> {
    let Ended::Finished(answers) = ended else { return Ok(()) };
    let failed = |slow: bool| {
        answers.iter().zip(&run.plan).any(|(answer, step)| {
            let beyond = step.offset.checked_add(step.len).is_none_or(|end| end > run.image.content.len());
            let may_fail = slow && matches!(step.op, Op::WriteZeroes(flags, _) if flags.no_fallback);
            answer.result.is_err() && !beyond && !may_fail
        })
    };
    match (faults.hurt(), failed(!faults.hurt())) {
        (false, true) => Err(run.fail("a request failed, and nothing had made it fail")),
        (true, false) if !closing => Err(run.fail(format!("nobody heard of {:?}", faults.struck))),
        _ => Ok(()),
    }
}

/// Lets the first intent fail, then the second, and so on until a run meets no fault.
///
/// # Errors
/// A report of the first thing that is wrong.
pub fn every_nth_fault(case: &Case, seed: u64, effect: Effect) -> Result<u64, String> {
    for skip in 0.. {
        let faults = Faults { rules: vec![Fault::nth(skip, effect)], ..Faults::default() };
        let struck =
            with_faults(case, seed, faults).map_err(|error| format!("fault {skip} ({effect:?}): {error}"))?;
        if !struck {
            return Ok(skip);
        }
    }
    unreachable!("a plan has an end")
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
}

/// Cuts the power after every intent, or every few, lets every subset of the cache survive, or some, and wants back
/// what was flushed, each time.
///
/// # Errors
/// A report of the first thing that is wrong.
pub fn crash_everywhere(case: &Case, seed: u64, how: Thoroughness) -> Result<u64, String> {
    let intents = clean(case, seed)?.intents;
    let mut tried = 0;
    let mut stop = seed % how.stride;
    while stop <= intents {
        tried += crash_at(case, seed, stop, how)?;
        stop += how.stride;
    }
    Ok(tried)
}

/// Cuts the power after `stop` intents.
///
/// # Errors
/// A report of the first thing that is wrong.
pub fn crash_at(case: &Case, seed: u64, stop: u64, how: Thoroughness) -> Result<u64, String> {
    let run = Run::new(case, seed);
    let mut runner = run.sim(run.world.clone(), Faults::default(), Some(stop));
    let mut model = run.model();
    let fail = |error: &dyn Display| run.fail(format!("power cut after {stop} intents: {error}"));
    match runner.open(&run.image.spec) {
        Ok(node) => {
            let ended = play(&mut runner, node, &mut model, &run.plan, run.conduct(false));
            if let Ended::Finished(_) = ended.map_err(|error| fail(&error))? {
                // The plan may end before the power does: the rest of the intents close the image.
                let _ = read_all(&mut runner, node).and_then(|_| runner.close(node));
            }
        }
        Err(RunError::Stopped(_)) => {}
        Err(RunError::Core(error)) => return Err(fail(&error)),
    }
    let sectors = u32::try_from(runner.0.unflushed_sectors()).unwrap_or(u32::MAX);
    let survivals: Vec<Survival> = if sectors <= how.subsets_max.min(16) {
        (0..1 << sectors).map(Survival::Mask).collect()
    } else {
        let drawn = (0..how.samples).map(|sample| Survival::Seed(seed ^ (stop << 20) ^ sample));
        drawn.chain([Survival::Nothing, Survival::Everything]).collect()
    };
    for survival in &survivals {
        let world = runner.0.after_crash(*survival);
        recovered(&run, &model, world, 0)
            .map_err(|error| fail(&format!("{survival:?} survives: {error}")))?;
    }
    Ok(survivals.len() as u64)
}

/// Opens what a crash left, and checks that it is what a crash may leave; then goes on working with it.
///
/// Now and then the power fails again on the way, `level` times at the most.
fn recovered(run: &Run<'_>, model: &Model, world: World, level: u32) -> Result<(), Failure> {
    let verify = |world: &World, stage, content: Option<&Sparse>| {
        (run.case.verify)(world, stage, content).map_err(|error| broken("inspection", error))
    };
    verify(&world, Stage::Crashed, None)?;
    let mut rng = Rng::with_seed(run.seed ^ u64::from(level));
    let again = level < 2 && rng.u8(..4) == 0;
    let stop_after = again.then(|| rng.u64(..8));
    let mut runner = run.sim(world, Faults::default(), stop_after);
    let read = runner.open(&run.image.spec).and_then(|node| Ok((node, read_all(&mut runner, node)?)));
    let (node, content) = match read {
        Ok(read) => read,
        Err(RunError::Stopped(_)) => {
            let world = runner.0.after_crash(Survival::Seed(rng.u64(..)));
            return recovered(run, model, world, level + 1);
        }
        Err(error) => return Err(broken("opening after the crash", error)),
    };
    check(&content, "after the crash", |offset, bytes| model.check_after_crash(offset, bytes))?;
    runner.0.stop_after = None;
    go_on(run, runner, node, content)
}

/// Works with an image that was recovered, as with any other.
fn go_on(run: &Run<'_>, mut runner: SimRunner, node: NodeId, content: Sparse) -> Result<(), Failure> {
    let mut model = Model::new(content.len(), content, run.image.rules);
    let mix = Mix { steps: 6, ..run.image.mix.clone() };
    let plan = mix.plan(model.size(), &mut Rng::with_seed(!run.seed));
    play(&mut runner, node, &mut model, &plan, run.conduct(false))?;
    let content = read_all(&mut runner, node).map_err(|error| broken("reading back", error))?;
    check(&content, "reading back after recovery", |offset, bytes| model.check_now(offset, bytes))?;
    let flush = Request { node, op: Op::Flush, offset: 0, len: 0, data: BufList::new(), tag: 0 };
    one(&mut runner, flush).map_err(|error| broken("flush after recovery", error))?;
    runner.close(node).map_err(|error| broken("close after recovery", error))?;
    let world = runner.0.into_world();
    let verified = (run.case.verify)(&world, Stage::Closed, Some(&content));
    verified.map_err(|error| broken("inspection after recovery", error))
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
