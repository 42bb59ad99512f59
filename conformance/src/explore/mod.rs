//! Crash exploration: one run of an operation, and then every disk that a crash at any moment of it may leave.
//!
//! ```text
//!   Operation ─ one run on the simulator ─▶ Recording: for each moment, what is stable, what may survive, and what the
//!   guest may find ─▶ Crashes: every combination of sectors, or a sample ─▶ opened, checked, read, compared
//!                                                                       └▶ now and then repaired by going on: crashed again
//! ```
//!
//! Owns the crash model of `disk`, applied without running anything twice. Refuses to know any format: an [`Operation`]
//! brings its image and its work. Start at [`explore`]; the operations are listed in [`operations`], and the rules of
//! order that are broken on purpose in [`rules`].

pub mod cancel;
pub mod changed;
mod crashes;
pub mod faults;
mod guest;
mod operation;
pub mod operations;
pub mod rules;
mod straight;

use std::collections::{BTreeSet, HashSet};
use std::hash::BuildHasherDefault;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::Duration;

use drystone_core::buf::Buf;
use drystone_core::engine::Io;
use drystone_core::error::{Error, FaultKind};
use drystone_core::format::{CheckReport, check};
use drystone_core::graph::open::{NodeSpec, open};
use drystone_core::graph::{Access as DriverAccess, NodeId};
use drystone_core::intent::Label;
use fastrand::Rng;

pub use crashes::fingerprint;
pub use guest::{Do, Guest};
pub use operation::{Access, Operation, TOP, image_in, qcow2, qcow2_in, spec_of};
pub use straight::straight;

use crate::fault::Kind;
use crate::lie::Lies;
use crate::qemu::{Folder, with_leaks};
use crate::sim::Sim;
use crate::sparse::Sparse;
use crate::world::{Frozen, World};
use crashes::{Crashes, Outcome};
use guest::Allowed;
use operation::Body;

/// How much of what a crash may leave is looked at.
#[derive(Clone, Copy, Debug)]
pub struct Thoroughness {
    /// Where there are more outcomes of a moment than every subset of 12 sector writes, so many are drawn.
    pub samples: u64,
    /// One of so many different states is recovered, and the recovery crashed too; none, for 0.
    pub recover_every: u64,
    /// Outcomes drawn of each moment of a recovery.
    pub recover_samples: u64,
    /// One of so many different states is handed to QEMU's tools; none, for 0.
    pub qemu_every: u64,
}

impl Thoroughness {
    /// What a test has time for.
    pub fn quick() -> Self {
        Self { samples: 40, recover_every: 97, recover_samples: 3, qemu_every: 0 }
    }

    /// The whole of it: every subset of 12 sector writes, which are twice as many as are drawn of more.
    pub fn full() -> Self {
        Self { samples: 2048, recover_every: 211, recover_samples: 20, qemu_every: 0 }
    }
}

/// What was explored.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Explored {
    /// Moments at which the power was cut.
    pub moments: u64,
    /// Crashed disks that were built.
    pub states: u64,
    /// Those among them that differ, in bytes or in what the guest may find; each was opened, checked and read.
    pub different: u64,
    /// Recoveries that were run to their end.
    pub recoveries: u64,
    /// Crashed disks of recoveries.
    pub recovery_states: u64,
    /// Images that were opened, checked and read: the different states, also of recoveries.
    pub opened: u64,
    /// States that QEMU's tools looked at.
    pub by_qemu: u64,
    /// Verbs and labels of the intents.
    pub labels: BTreeSet<(Kind, Label)>,
    /// How long it had a core.
    pub time: Duration,
}

impl Explored {
    /// Adds what another run explored.
    pub fn add(&mut self, other: Self) {
        self.moments += other.moments;
        self.states += other.states;
        self.different += other.different;
        self.recoveries += other.recoveries;
        self.recovery_states += other.recovery_states;
        self.opened += other.opened;
        self.by_qemu += other.by_qemu;
        self.labels.extend(other.labels);
        self.time += other.time;
    }
}

/// Runs an operation once, with completions in the order of a seed, and looks at what crashes may leave of it.
///
/// # Errors
/// A report of the first state that is wrong, with what repeats it.
pub fn explore(operation: &Operation, how: &Thoroughness, seed: u64) -> Result<Explored, String> {
    explore_lying(operation, how, seed, Lies::default())
}

/// The same on an executor that lies about one rule of order.
///
/// # Errors
/// A report of the first state that is wrong.
pub fn explore_lying(
    operation: &Operation,
    how: &Thoroughness,
    seed: u64,
    lies: Lies,
) -> Result<Explored, String> {
    let begun = time_on_a_core();
    let name = operation.name;
    let fail = |report: String| {
        let repeat = format!("--operation '{name}' --seed {seed}");
        format!(
            "operation {name}, seed {seed}: {report}\n\
             repeat: cargo run --release -p drystone-conformance --bin explore -- {repeat}"
        )
    };
    let attempt = || {
        let recording = record(operation, seed, lies)?;
        let mut explorer = Explorer {
            operation,
            how,
            rng: Rng::with_seed(seed),
            seen: HashSet::default(),
            stood: 0,
            explored: Explored { labels: recording.labels.clone(), ..Explored::default() },
        };
        explorer.all(&recording)?;
        Ok(explorer.explored)
    };
    let explored: Result<Explored, String> =
        catch_unwind(AssertUnwindSafe(attempt)).unwrap_or_else(|panic| Err(crate::panicked(panic.as_ref())));
    explored.map(|explored| Explored { time: time_on_a_core() - begun, ..explored }).map_err(fail)
}

/// How long this thread had a core so far.
fn time_on_a_core() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    let seconds = u64::try_from(now.tv_sec).expect("time on a core is not negative");
    Duration::from_secs(seconds) + Duration::from_nanos(now.tv_nsec.unsigned_abs())
}

/// A moment of a run.
struct Point {
    frozen: Frozen,
    allowed: Rc<Allowed>,
    /// Lines of the trace until then.
    traced: usize,
}

struct Recording {
    points: Vec<Point>,
    trace: Vec<String>,
    labels: BTreeSet<(Kind, Label)>,
}

/// Runs an operation, and keeps what a crash would find after each step.
fn record(operation: &Operation, seed: u64, lies: Lies) -> Result<Recording, String> {
    let guest = Guest::new(operation, seed);
    let mut sim = Sim::new(seed, operation.world.clone());
    sim.lies = lies;
    let recording = record_on(&mut sim, &guest, operation.guest_spec(), &operation.body)?;
    let world = sim.into_world();
    if operation.access == Access::Read
        && recording
            .points
            .iter()
            .any(|point| !point.frozen.disks.iter().all(|disk| disk.unflushed.is_empty()))
    {
        return Err("an operation that reads writes".into());
    }
    // Without a crash all of it must be there; what the executor lied about has happened by now.
    let found = operation.look(world).map_err(|error| format!("at the end: {error}"))?;
    guest.allowed().check(&found).map_err(|error| format!("at the end: {error}"))?;
    Ok(recording)
}

fn record_on(sim: &mut Sim, guest: &Guest, spec: Option<NodeSpec>, body: &Body) -> Result<Recording, String> {
    sim.start_trace();
    let mut points: Vec<Point> = Vec::new();
    let mut last = None;
    let ended = sim.run_job_watched(
        {
            let (guest, body) = (guest.clone(), Rc::clone(body));
            |io: Io| async move { guest.run(&io, spec.as_ref(), &body).await }
        },
        |sim| {
            let now = (sim.moment(), guest.version());
            if last == Some(now) {
                return;
            }
            let allowed = match points.last() {
                Some(point) if last.is_some_and(|(_, version)| version == now.1) => Rc::clone(&point.allowed),
                _ => Rc::new(guest.allowed()),
            };
            last = Some(now);
            points.push(Point { frozen: sim.freeze(), allowed, traced: sim.trace().len() });
        },
    );
    ended.map_err(|error| format!("without a crash: {error}"))?;
    Ok(Recording { points, trace: sim.trace().to_vec(), labels: sim.labels().clone() })
}

/// What a guest finds on a disk that a crash left.
enum Found {
    Nothing(Box<Error>),
    Disk(Buf, Flaws),
}

/// What a check finds that is more than a leak.
struct Flaws {
    count: u64,
    /// References to clusters that could overwrite what others refer to, and whatever else is wrong. A flag that denies
    /// that a cluster is its own does no harm: the next write copies it.
    harm: u64,
    report: String,
}

impl Flaws {
    fn of(report: &CheckReport, findings: &[String]) -> Self {
        let count = report.corruptions + report.check_errors;
        let told = || format!("{report:?}\n{}", findings.join("\n"));
        let harm = findings.iter().map(|line| harm_of(line)).sum::<u64>() + report.check_errors;
        Self { count, harm, report: if count > 0 { told() } else { String::new() } }
    }

    /// Wants nothing to be wrong, or no more harm than there was before.
    fn at_most(&self, before: Option<u64>) -> Result<(), String> {
        let fine = before.map_or(self.count == 0, |before| self.harm <= before);
        if fine { Ok(()) } else { Err(self.report.clone()) }
    }
}

/// How many references a finding is about that could do harm.
fn harm_of(finding: &str) -> u64 {
    let number = |name: &str| {
        let word = finding.split_whitespace().find_map(|word| word.strip_prefix(name))?;
        word.parse::<u64>().ok()
    };
    match finding {
        line if line.starts_with("ERROR OFLAG_COPIED") => u64::from(number("refcount=") != Some(1)),
        line if line.starts_with("ERROR cluster") => number("reference=").unwrap_or(1),
        line => u64::from(line.starts_with("ERROR")),
    }
}

/// Opens an image for reading, checks it and reads all of it. Space that nothing points to is in order.
///
/// # Errors
/// What is wrong with it.
pub fn look(world: World, spec: NodeSpec) -> Result<Buf, String> {
    read_checked(world, spec, Checked::Yes, 0)
}

fn read_checked(world: World, spec: NodeSpec, checked: Checked, state_len: usize) -> Result<Buf, String> {
    match looked(world, spec, checked, state_len)? {
        Found::Disk(content, flaws) => flaws.at_most(None).map(|()| content),
        Found::Nothing(error) => Err(format!("it does not open: {error}")),
    }
}

/// Whether an image's refcounts are checked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Checked {
    Yes,
    /// A snapshot's view has no refcounts of its own.
    No,
}

/// Opens, checks and reads an image; behind its disk, the first bytes of a machine's state.
fn looked(world: World, spec: NodeSpec, checked: Checked, state_len: usize) -> Result<Found, String> {
    let (found, _) = straight(world, |io| async move {
        let node = match open(&io, &spec).await {
            Ok(node) => node,
            Err(error) => return Ok(Found::Nothing(error)),
        };
        let mut findings = Vec::new();
        let report = match checked {
            Checked::Yes => check(&io, node, &mut |line| findings.push(line), &|_, _| {}).await,
            Checked::No => Ok(CheckReport::default()),
        };
        let content = content(&io, node, state_len).await;
        let closed = io.close(node).await;
        let flaws = match report {
            Ok(report) => Flaws::of(&with_leaks(report, &findings), &findings),
            Err(error) if error.kind() == FaultKind::Unsupported => Flaws::of(&CheckReport::default(), &[]),
            Err(error) => return Err(format!("check: {error}")),
        };
        closed.map_err(|error| format!("closing: {error}"))?;
        content.map(|content| Found::Disk(content, flaws)).map_err(|error| format!("reading: {error}"))
    });
    found
}

/// Opens, checks and reads what is left of an image, and holds it against what may be; returns what a guest reads. An image
/// that was being made need not be there.
fn stands(operation: &Operation, world: &World, allowed: &Allowed) -> Result<Option<Buf>, String> {
    allowed.promised(world)?;
    let content = match looked(world.clone(), operation.spec(false), Checked::Yes, operation.state_len)? {
        Found::Nothing(_) if !allowed.opens => return Ok(None),
        Found::Nothing(error) => return Err(format!("it does not open: {error}")),
        Found::Disk(content, flaws) => flaws.at_most(allowed.flaws).map(|()| content)?,
    };
    allowed.check(&content)?;
    if operation.flaws.is_some() {
        let mended = operations::qcow2_repairs::mended(world.clone(), operation.format)?;
        allowed.check(&mended).map_err(|error| format!("once it is repaired: {error}"))?;
    }
    Ok(Some(content))
}

/// All of a disk, and behind it the first bytes of the machine's state that the image holds.
async fn content(io: &Io, node: NodeId, state_len: usize) -> Result<Buf, Box<Error>> {
    let disk = io.read_bytes("explore/read", node, 0, io.len(node) as usize).await?;
    if state_len == 0 {
        return Ok(disk);
    }
    let (state, read) = io.vmstate(node, DriverAccess::Read, 0, Buf::zeroed(state_len).into()).await;
    read?;
    Ok(Buf::from([&disk[..], &state.into_single()[..]].concat()))
}

struct Explorer<'a> {
    operation: &'a Operation,
    how: &'a Thoroughness,
    rng: Rng,
    /// States that were in order: what the disks hold, and what may be found.
    seen: HashSet<(u64, u64), BuildHasherDefault<rustc_hash::FxHasher>>,
    /// How many of them had an image that opens.
    stood: u64,
    explored: Explored,
}

impl Explorer<'_> {
    fn all(&mut self, recording: &Recording) -> Result<(), String> {
        for (number, point) in recording.points.iter().enumerate() {
            let crashes = Crashes::new(&point.frozen);
            self.explored.moments += 1;
            let mut rng = self.rng.fork();
            let samples = self.how.samples;
            let states = crashes.each(samples, &mut rng, |outcome| {
                let verdict = self.state(&crashes, outcome, &point.allowed);
                verdict.map_err(|report| {
                    let from = point.traced.saturating_sub(40);
                    let trace = recording.trace[from..point.traced].join("\n");
                    format!(
                        "power cut at moment {number} of {}: {report}\nwhat survived: {}\nthe last steps:\n{trace}",
                        recording.points.len(),
                        crashes.describe(outcome)
                    )
                })
            })?;
            self.explored.states += states;
        }
        Ok(())
    }

    /// Looks at one state, unless one like it was in order.
    fn state(&mut self, crashes: &Crashes, outcome: &Outcome, allowed: &Allowed) -> Result<(), String> {
        if !self.seen.insert((outcome.sum, allowed.sum)) {
            return Ok(());
        }
        self.explored.different += 1;
        self.explored.opened += 1;
        let operation = self.operation;
        let world = crashes.world(outcome);
        let Some(content) = stands(operation, &world, allowed)? else { return Ok(()) };
        operation.holds(&world)?;
        self.stood += 1;
        let stood = self.stood;
        let due = |every: u64| every > 0 && stood.is_multiple_of(every);
        if due(self.how.qemu_every) && operation.flaws.is_none() && operation.known_to_qemu {
            self.explored.by_qemu += 1;
            ask_qemu(&world, operation.format, &content[..content.len() - operation.state_len])?;
        }
        // The first ones too, so that there are some of every operation.
        let recovers = due(self.how.recover_every) || stood.is_power_of_two();
        if recovers && self.how.recover_every > 0 { self.recover(world, &content) } else { Ok(()) }
    }

    /// Goes on with what a crash left, as if nothing had happened, and crashes that too. A damaged image is repaired by what is
    /// explored itself.
    fn recover(&mut self, world: World, content: &[u8]) -> Result<(), String> {
        self.explored.recoveries += 1;
        let operation = self.operation;
        let guest = Guest::of(operation, Sparse::from_bytes(content), true, 0);
        let (spec, body) = match operation.flaws {
            None => {
                (Some(operation.spec(true)), self.two_writes((content.len() - operation.state_len) as u64))
            }
            Some(_) => (operation.guest_spec(), Rc::clone(&operation.body)),
        };
        let mut sim = Sim::new(self.rng.u64(..), world);
        let recording =
            record_on(&mut sim, &guest, spec, &body).map_err(|error| format!("going on: {error}"))?;
        for point in &recording.points {
            let crashes = Crashes::new(&point.frozen);
            let mut rng = self.rng.fork();
            let states = crashes.each(self.how.recover_samples, &mut rng, |outcome| {
                if !self.seen.insert((outcome.sum, point.allowed.sum)) {
                    return Ok(());
                }
                self.explored.opened += 1;
                let world = crashes.world(outcome);
                match stands(operation, &world, &point.allowed)? {
                    Some(_) => operation.holds(&world),
                    None => Ok(()),
                }
            });
            self.explored.recovery_states +=
                states.map_err(|report: String| format!("power cut while going on: {report}"))?;
        }
        let found = operation.look(sim.into_world())?;
        guest.allowed().check(&found).map_err(|error| format!("after going on: {error}"))
    }

    /// What shows that an image is of use: two writes somewhere, each made durable.
    fn two_writes(&mut self, size: u64) -> Body {
        let places = [self.rng.u64(..size.max(1)) & !511, self.rng.u64(..size.max(1)) & !511];
        Rc::new(move |guest: Guest| {
            Box::pin(async move {
                // What takes whole grains, and each once, is read and no more.
                if guest.io().driver(guest.node()).is_some_and(|driver| driver.only_compresses()) {
                    return Ok(());
                }
                for place in places {
                    guest.write(place, 512.min(size - place)).await?;
                    guest.flush().await?;
                }
                Ok(())
            })
        })
    }
}

/// QEMU's check finds no more than leaks, and its convert reads what our guest reads.
fn ask_qemu(world: &World, format: &str, content: &[u8]) -> Result<(), String> {
    let folder = Folder::of(world).map_err(|error| error.to_string())?;
    if format != "raw" {
        folder.check(TOP, format, true)?;
    }
    match folder.guest(TOP, format)?.to_vec() == content {
        true => Ok(()),
        false => Err("qemu-img reads other bytes than our guest".into()),
    }
}
