//! Upkeep of whole images (snapshots, lengths, amended headers), interrupted at every intent.
//!
//! After a power cut, or a failure, an image is what it was before, or what it is to be; our check finds leaks at the
//! most, and the image can be written to. Start at [`Upkeep`].

use std::rc::Rc;

use drystone_core::engine::{Io, LocalFuture};
use drystone_core::error::{Error, Result as CoreResult};
use drystone_core::format::qcow2::{Qcow2, SnapshotChoice};
use drystone_core::graph::open::{DriverSpec, NodeSpec, open};
use drystone_core::graph::options::from_filename;
use drystone_core::graph::{NodeId, Role};
use drystone_core::intent::Fua;

use crate::cases::WRITABLE;
use crate::disk::Survival;
use crate::fault::{Effect, Fault, Faults};
use crate::qemu::{Folder, own_check, words};
use crate::sim::{Sim, Stopped};
use crate::world::World;

/// An operation on an open image.
pub type Operation = Rc<dyn Fn(Io, NodeId) -> LocalFuture<'static, CoreResult<()>>>;

/// An image that QEMU's tools made, as `top.qcow2`, and what is done to it.
pub struct Upkeep {
    world: World,
    operation: Operation,
    before: View,
    after: View,
}

/// What can be seen of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// What the guest reads.
    pub content: Vec<u8>,
    /// Id, name and content of each snapshot.
    pub snapshots: Vec<(String, String, Vec<u8>)>,
    /// What the header promises: version, bits of a refcount, features.
    pub header: (u32, u32, [u64; 3]),
}

impl Upkeep {
    /// Makes the image by these command lines, and sees what the operation makes of it when nothing goes wrong.
    ///
    /// # Errors
    /// What the tools or the operation say, or what is wrong with the image afterwards.
    pub fn new(commands: &[&str], operation: Operation) -> Result<Self, String> {
        let folder = Folder::new();
        for command in commands {
            let command = words(command);
            folder.run(&command.iter().map(String::as_str).collect::<Vec<_>>())?;
        }
        let mut world = World::new();
        for (name, file) in folder.files().map_err(|error| error.to_string())? {
            world.add_disk(&name, world.default_config.clone(), file);
        }
        let before = View::of(&world)?;
        let mut sim = Sim::new(0, world.clone());
        let done = run(&mut sim, &operation).map_err(|Stopped| "no power")?;
        done.map_err(|error| format!("the operation: {error}"))?;
        sim.run_until_idle().map_err(|Stopped| "no power")?;
        let done = sim.into_world();
        own_check(done.clone(), spec(), false)?;
        Folder::of(&done).map_err(|error| error.to_string())?.check("top.qcow2", "qcow2", false)?;
        let after = View::of(&done)?;
        Ok(Self { world, operation, before, after })
    }

    /// What was there before.
    pub fn before(&self) -> &View {
        &self.before
    }

    /// What is there afterwards.
    pub fn after(&self) -> &View {
        &self.after
    }

    /// Cuts the power after every intent. Returns the number of crashes.
    ///
    /// # Errors
    /// A report of the first image that is neither the one nor the other.
    pub fn crash_everywhere(&self, seed: u64) -> Result<u64, String> {
        let mut tried = 0;
        for stop in 0.. {
            let mut sim = Sim::new(seed, self.world.clone());
            sim.stop_after = Some(stop);
            let ended = run(&mut sim, &self.operation).is_ok();
            let seeds = (0..3).map(|sample| Survival::Seed(seed ^ (stop << 20) ^ (sample << 50)));
            for survival in seeds.chain([Survival::Nothing, Survival::Everything]) {
                let fail = |what: String| {
                    format!("seed {seed}, power cut after {stop} intents, {survival:?}: {what}")
                };
                self.is_either(&sim.after_crash(survival)).map_err(fail)?;
                tried += 1;
            }
            if ended {
                return Ok(tried);
            }
        }
        unreachable!("every operation ends")
    }

    /// Lets the first intent fail, then the second, and so on until no fault strikes; returns how many did.
    ///
    /// # Errors
    /// As [`crash_everywhere`](Self::crash_everywhere); also when an operation succeeds that must not have.
    pub fn every_nth_fault(&self, effect: Effect) -> Result<u64, String> {
        for skip in 0.. {
            let mut sim = Sim::new(skip, self.world.clone());
            sim.faults = Faults { rules: vec![Fault::nth(skip, effect)], ..Faults::default() };
            let fail = |what: String| format!("fault {skip}, {effect:?}: {what}");
            let done = run(&mut sim, &self.operation).map_err(|Stopped| fail("no power".into()))?;
            sim.run_until_idle().map_err(|Stopped| fail("no power".into()))?;
            if sim.faults.struck.is_empty() {
                return Ok(skip);
            }
            let world = sim.after_crash(Survival::Seed(skip));
            self.is_either(&world).map_err(fail)?;
            if done.is_ok() && View::of(&world)? != self.after {
                return Err(fail("it was called done, and is not".into()));
            }
        }
        unreachable!("every operation ends")
    }

    /// Wants one image or the other, which can be used.
    fn is_either(&self, world: &World) -> Result<(), String> {
        own_check(world.clone(), spec(), true)?;
        let view = View::of(world)?;
        if view != self.before && view != self.after {
            let shape = |view: &View| (view.content.len(), view.snapshots.len(), view.header);
            let shapes = [&view, &self.before, &self.after].map(shape);
            return Err(format!(
                "neither what it was nor what it is to be (found, before, after): {shapes:?}"
            ));
        }
        self.goes_on(world.clone(), &view)
    }

    /// Writes to the image, and wants all of it back.
    fn goes_on(&self, world: World, view: &View) -> Result<(), String> {
        const LEN: usize = 90_000;
        let mut sim = Sim::new(1, world);
        let written = sim.run_job(async |io| {
            let node = open(&io, &spec()).await?;
            let bytes = drystone_core::buf::Buf::from(vec![0x5a; LEN]);
            io.write("upkeep", node, 100_000, bytes, Fua::No).await.1?;
            io.close(node).await
        });
        written.map_err(|Stopped| "no power")?.map_err(|error| format!("writing afterwards: {error}"))?;
        sim.run_until_idle().map_err(|Stopped| "no power")?;
        let world = sim.into_world();
        own_check(world.clone(), spec(), true).map_err(|error| format!("after writing: {error}"))?;
        let mut expected = view.clone();
        expected.content[100_000..100_000 + LEN].fill(0x5a);
        match View::of(&world)? == expected {
            true => Ok(()),
            false => Err("writing afterwards changed what it should not".into()),
        }
    }
}

/// Opens the image, does it, and closes the image.
fn run(sim: &mut Sim, operation: &Operation) -> Result<CoreResult<()>, Stopped> {
    let operation = Rc::clone(operation);
    sim.run_job(async move |io| {
        let node = open(&io, &spec()).await?;
        let done = operation(io.clone(), node).await;
        let closed = io.close(node).await;
        done.and(closed)
    })
}

fn spec() -> NodeSpec {
    from_filename("top.qcow2", Some("qcow2"), WRITABLE).expect("a path")
}

impl View {
    /// Looks at `top.qcow2`.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn of(world: &World) -> Result<Self, String> {
        let seen = Sim::new(0, world.clone()).run_job(async |io| -> CoreResult<Self> {
            let mut spec = spec();
            spec.mode.writable = false;
            let node = open(&io, &spec).await?;
            let driver = io.driver(node).expect("a format");
            let qcow2: &Qcow2 = driver.as_any().downcast_ref().expect("qcow2");
            let file = io.edge(node, Role::File).expect("an image is in a file");
            let snapshots = qcow2.snapshots(&io, file).await?;
            let header = qcow2.header();
            let features = [header.incompatible, header.compatible, header.autoclear];
            let content = read(&io, node).await?;
            io.close(node).await?;
            let mut all = Vec::new();
            for snapshot in snapshots {
                let mut spec = spec.clone();
                let DriverSpec::Qcow2 { options, .. } = &mut spec.driver else {
                    unreachable!("asked for qcow2")
                };
                options.snapshot = Some(SnapshotChoice::Both { id: Some(snapshot.id.clone()), name: None });
                let node = open(&io, &spec).await?;
                let content = read(&io, node).await?;
                io.close(node).await?;
                all.push((snapshot.id, snapshot.name, content));
            }
            let header = (header.version, header.refcount_width.bits(), features);
            Ok(Self { content, snapshots: all, header })
        });
        let told = |error: Box<Error>| format!("reading it: {error}");
        seen.map_err(|Stopped| "no power")?.map_err(told)
    }
}

async fn read(io: &Io, node: NodeId) -> CoreResult<Vec<u8>> {
    let len = io.len(node) as usize;
    if len == 0 {
        return Ok(Vec::new());
    }
    Ok(io.read_bytes("upkeep", node, 0, len).await?.to_vec())
}
