//! The NVMe driver: 4 KiB reads from the bare queue pair, through raw and through qcow2, on each executor.
//!
//! `cargo bench -p drystone-benches --bench nvme` needs no hardware: the controller is simulated, on the same thread, and the
//! time that it takes is measured and left out. Cycles and instructions of a read follow where the machine counts them.
//! `DRYSTONE_BENCH_NVME=0000:01:00.0/1` names a namespace to run on; **it is overwritten**.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::hint::black_box;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use drystone_benches::{BLOCK, Random};
use drystone_core::buf::BufList;
use drystone_core::error::Result;
use drystone_core::format::qcow2::{CreateOptions, create};
use drystone_core::graph::open::{NodeSpec, OpenMode, open};
use drystone_core::graph::options::from_filename;
use drystone_drivers::nvme::layout::Namespace;
use drystone_drivers::nvme::sim::{Sim, SimConfig, SimNamespace};
use drystone_drivers::nvme::{self, Device, Operation, Options, QueuePair, Request};
use drystone_exec_linux::{Client, Config, Image};
use perf_event::Builder;
use perf_event::events::Hardware;

/// Requests in flight.
const DEPTHS: [usize; 3] = [1, 32, 128];

const FORMATS: [&str; 2] = ["raw", "qcow2"];
const EXECUTORS: [&str; 4] = ["no runtime", "tokio", "monoio", "glommio"];

/// Reads from one opening of an image to its closing, so many that what comes before the first one does not count.
const READS: u64 = 20_000;

/// Bytes of the simulated namespace; the image in it is a little smaller.
const LEN: u64 = 64 << 20;
const IMAGE_LEN: u64 = 48 << 20;

type Task = Pin<Box<dyn Future<Output = ()>>>;

/// Something that grows while this thread works.
type Meter = Box<dyn FnMut() -> u64 + Send>;

/// What is measured.
#[derive(Clone, Copy, Debug)]
enum Unit {
    Nanoseconds,
    Cycles,
    Instructions,
}

impl Unit {
    /// # Errors
    /// The kernel's, where the machine does not count that, or not for everybody.
    fn meter(self) -> io::Result<Meter> {
        let event = match self {
            Self::Nanoseconds => {
                let start = Instant::now();
                return Ok(Box::new(move || start.elapsed().as_nanos() as u64));
            }
            Self::Cycles => Hardware::CPU_CYCLES,
            Self::Instructions => Hardware::INSTRUCTIONS,
        };
        // Outside the kernel: no read goes there, but looks at the counter do.
        let mut counter = Builder::new(event).exclude_kernel(true).exclude_hv(true).enabled(true).build()?;
        Ok(Box::new(move || counter.read().expect("a counter that is open")))
    }

    /// What a look at a meter adds to it. The clock's is left in, as it is in all figures that there are.
    fn look(self) -> io::Result<u64> {
        if matches!(self, Self::Nanoseconds) {
            return Ok(0);
        }
        let mut meter = self.meter()?;
        let look = |_| {
            let start = meter();
            meter() - start
        };
        Ok((0..1000).map(look).min().unwrap_or(0))
    }
}

/// What the benches run on.
struct Target {
    sim: Option<Sim>,
    device: String,
    namespace: u32,
    meter: RefCell<Meter>,
}

impl Target {
    /// # Errors
    /// Those of [`Unit::meter`].
    fn new(unit: Unit) -> io::Result<Self> {
        let meter = RefCell::new(unit.meter()?);
        if let Ok(named) = std::env::var("DRYSTONE_BENCH_NVME") {
            let (device, namespace) = named.rsplit_once('/').expect("DRYSTONE_BENCH_NVME=0000:01:00.0/1");
            let namespace = namespace.parse().expect("a number of a namespace");
            return Ok(Self { sim: None, device: device.into(), namespace, meter });
        }
        let namespaces = vec![SimNamespace::new(4096, LEN)];
        let sim = Sim::stepwise(SimConfig { namespaces, ..SimConfig::default() });
        sim.register("bench");
        sim.count(unit.meter()?, unit.look()?);
        Ok(Self { sim: Some(sim), device: "sim:bench".into(), namespace: 1, meter })
    }

    fn open(&self) -> (Arc<Device>, Namespace) {
        let device = nvme::open(&self.device, Options::default()).expect("a controller that can be used");
        let namespace = device.namespace(self.namespace).expect("an active namespace");
        (device, namespace)
    }

    fn spec(&self, format: &str) -> NodeSpec {
        let mode = OpenMode { writable: true, ..OpenMode::default() };
        let name = format!("nvme://{}/{}", self.device, self.namespace);
        from_filename(&name, Some(format), mode).expect("a legal name")
    }

    /// What the controller has taken on this thread.
    fn spent(&self) -> u64 {
        self.sim.as_ref().map_or(0, Sim::spent)
    }

    /// What this thread has taken so far, and not the controller.
    fn used(&self) -> u64 {
        let all = self.meter.borrow_mut()();
        all.saturating_sub(self.spent())
    }
}

/// A queue pair that takes requests, with its device and a namespace.
struct Pair {
    device: Arc<Device>,
    namespace: Namespace,
    pair: QueuePair,
}

impl Pair {
    fn new(target: &Target) -> Self {
        let (device, namespace) = target.open();
        let mut pair = QueuePair::new(&device).expect("a queue pair");
        while !pair.is_running() {
            pair.tick(|_| unreachable!("nothing was asked for"));
            pair.relax();
        }
        Self { device, namespace, pair }
    }

    fn buffers(&self, depth: usize) -> Vec<BufList> {
        (0..depth).map(|_| self.device.arena().buffer(BLOCK).expect("room").into()).collect()
    }

    /// What `count` reads take.
    fn measure(&mut self, target: &Target, buffers: &mut Vec<BufList>, count: u64) -> u64 {
        let start = target.used();
        reads(&mut self.pair, &self.namespace, buffers, count);
        target.used().saturating_sub(start)
    }
}

fn queue_pair(criterion: &mut Criterion) {
    let target = Target::new(Unit::Nanoseconds).expect("there is a clock");
    let mut pair = Pair::new(&target);
    for depth in DEPTHS {
        let mut buffers = pair.buffers(depth);
        criterion.bench_function(&format!("queue pair, depth {depth}"), |bencher| {
            bencher.iter_custom(|count| Duration::from_nanos(pair.measure(&target, &mut buffers, count)));
        });
    }
    if target.sim.is_none() {
        return;
    }
    for depth in DEPTHS {
        let mut buffers = pair.buffers(depth);
        criterion.bench_function(&format!("the simulated controller, depth {depth}"), |bencher| {
            bencher.iter_custom(|count| {
                let before = target.spent();
                reads(&mut pair.pair, &pair.namespace, &mut buffers, count);
                Duration::from_nanos(target.spent() - before)
            });
        });
    }
}

/// Cycles and instructions of a read, where the machine counts them for this process; else the kernel's word for that.
fn counts(_: &mut Criterion) {
    for unit in [Unit::Cycles, Unit::Instructions] {
        let target = match Target::new(unit) {
            Ok(target) => target,
            Err(error) => {
                println!("{unit:?}: not counted here: {error}");
                continue;
            }
        };
        let say = |what: &str, depth: usize, used: u64| {
            println!("{unit:?} of a read, {what}, depth {depth}: {:.0}", used as f64 / READS as f64);
        };
        let mut pair = Pair::new(&target);
        for depth in DEPTHS {
            let mut buffers = pair.buffers(depth);
            say("queue pair", depth, pair.measure(&target, &mut buffers, READS));
        }
        drop(pair);
        for format in FORMATS {
            prepare(&target, format);
            for (executor, depth) in each() {
                say(&format!("{format}, {executor}"), depth, image_reads(&target, format, executor, depth));
            }
        }
    }
}

/// Reads `count` blocks in no order, with all buffers in flight.
fn reads(pair: &mut QueuePair, namespace: &Namespace, buffers: &mut Vec<BufList>, count: u64) {
    let mut random = Random::new(1);
    let len = namespace.len_bytes().min(1 << 40);
    let (mut left, mut in_flight) = (count, 0);
    while left > 0 || in_flight > 0 {
        while left > 0
            && let Some(data) = buffers.pop()
        {
            let (offset, len) = (random.block(len), BLOCK as u64);
            pair.submit(namespace, Request { tag: 0, op: Operation::Read, offset, len, data });
            left -= 1;
            in_flight += 1;
        }
        pair.ring();
        while !pair.poll(|answer| {
            answer.result.expect("a controller without faults");
            buffers.push(answer.data);
            in_flight -= 1;
        }) {
            pair.relax();
        }
    }
}

fn images(criterion: &mut Criterion) {
    let target = Target::new(Unit::Nanoseconds).expect("there is a clock");
    for format in FORMATS {
        prepare(&target, format);
        for (executor, depth) in each() {
            criterion.bench_function(&format!("{format}, {executor}, depth {depth}"), |bencher| {
                bencher.iter_custom(|count| {
                    let took = Duration::from_nanos(image_reads(&target, format, executor, depth));
                    took.mul_f64(count as f64 / READS as f64)
                });
            });
        }
    }
}

fn each() -> impl Iterator<Item = (&'static str, usize)> {
    EXECUTORS.into_iter().flat_map(|executor| DEPTHS.map(|depth| (executor, depth)))
}

/// What [`READS`] reads of an image take.
fn image_reads(target: &Target, format: &str, executor: &str, depth: usize) -> u64 {
    run(executor, async |client: &Client, spawn: Option<&dyn Fn(Task) -> Task>| {
        measure(target, client, format, spawn, depth).await
    })
    .expect("the kernel has it all")
    .expect("the namespace reads")
}

/// Fills an image, so that every cluster of it is allocated.
fn prepare(target: &Target, format: &str) {
    let (raw, spec, is_raw) = (target.spec("raw"), target.spec(format), format == "raw");
    let filled = drystone_exec_linux::run(Config::default(), async |client| {
        if !is_raw {
            let make = async move |io: drystone_core::engine::Io| {
                let file = open(&io, &raw).await?;
                create(&io, file, &CreateOptions::new(IMAGE_LEN)).await?;
                io.close(file).await
            };
            client.run(make).await?;
        }
        let disk = client.open(&spec).await?;
        for at in (0..IMAGE_LEN).step_by(1 << 20) {
            let mut data = client.buffer(1 << 20);
            data.fill(7);
            disk.write(at, data).await.1?;
        }
        disk.close().await
    });
    filled.expect("the kernel has it all").expect("the namespace is large enough");
}

/// Runs work on an executor, with its way to spawn tasks, where it has one.
fn run<T>(
    executor: &str,
    work: impl AsyncFnOnce(&Client, Option<&dyn Fn(Task) -> Task>) -> Result<T>,
) -> io::Result<Result<T>> {
    match executor {
        "tokio" => drystone_exec_tokio::run(Config::default(), async |client| {
            let spawn = |task| -> Task {
                let task = tokio::task::spawn_local(task);
                Box::pin(async { task.await.expect("no task panics") })
            };
            work(&client, Some(&spawn)).await
        }),
        "monoio" => drystone_exec_monoio::run(Config::default(), async |client| {
            let spawn = |task| -> Task { Box::pin(monoio::spawn(task)) };
            work(&client, Some(&spawn)).await
        }),
        "glommio" => drystone_exec_glommio::run(Config::default(), async |client| {
            let spawn = |task| -> Task { Box::pin(glommio::spawn_local(task)) };
            work(&client, Some(&spawn)).await
        }),
        _ => drystone_exec_linux::run(Config::default(), async |client| work(&client, None).await),
    }
}

/// What [`READS`] reads take, `depth` of them in flight; opening and closing left out.
async fn measure(
    target: &Target,
    client: &Client,
    format: &str,
    spawn: Option<&dyn Fn(Task) -> Task>,
    depth: usize,
) -> Result<u64> {
    let disk = client.open(&target.spec(format)).await?;
    // Metadata is in memory from here on.
    for at in (0..IMAGE_LEN).step_by(1 << 20) {
        disk.read(at, client.buffer(BLOCK)).await.1?;
    }
    let start = target.used();
    match spawn {
        None => read_window(&disk, depth, READS).await,
        Some(spawn) => {
            let depth = depth as u64;
            let share = |task: u64| READS / depth + u64::from(task < READS % depth);
            let task = |task| read_some(disk.clone(), client.buffer(BLOCK).into(), share(task), task);
            let tasks: Vec<Task> = (0..depth).map(|n| spawn(Box::pin(task(n)))).collect();
            for task in tasks {
                task.await;
            }
        }
    }
    let took = target.used().saturating_sub(start);
    disk.close().await?;
    Ok(took)
}

/// One request at a time.
async fn read_some(disk: Image, mut data: BufList, count: u64, seed: u64) {
    let mut random = Random::new(seed + 1);
    for _ in 0..count {
        let (back, result) = disk.read(random.block(IMAGE_LEN), data).await;
        result.expect("a controller without faults");
        data = black_box(back);
    }
}

/// As many requests at a time as there are, and the oldest awaited first: what a thread without tasks does.
async fn read_window(disk: &Image, depth: usize, count: u64) {
    let mut random = Random::new(1);
    let mut window = VecDeque::with_capacity(depth);
    for _ in 0..depth {
        window.push_back(disk.read(random.block(IMAGE_LEN), disk.client().buffer(BLOCK)));
    }
    for _ in 0..count {
        let (data, result) = window.pop_front().expect("as many as at the start").await;
        result.expect("a controller without faults");
        window.push_back(disk.read(random.block(IMAGE_LEN), black_box(data)));
    }
    for read in window {
        read.await.1.expect("a controller without faults");
    }
}

criterion_group! {
    name = nvme;
    config = Criterion::default().sample_size(20).measurement_time(Duration::from_secs(2));
    targets = queue_pair, images, counts
}
criterion_main!(nvme);
