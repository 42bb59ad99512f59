//! The NVMe driver: 4 KiB reads from the bare queue pair, through raw and through qcow2, on each executor.
//!
//! `cargo bench -p drystone-benches --bench nvme` needs no hardware: the controller is simulated, on the same thread, and the
//! time that it takes is measured and left out. `DRYSTONE_BENCH_NVME=0000:01:00.0/1` names a namespace to run on; **it is
//! overwritten**.

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

/// Requests in flight.
const DEPTHS: [usize; 3] = [1, 32, 128];

/// Reads from one opening of an image to its closing, so many that what comes before the first one does not count.
const READS: u64 = 20_000;

/// Bytes of the simulated namespace; the image in it is a little smaller.
const LEN: u64 = 64 << 20;
const IMAGE_LEN: u64 = 48 << 20;

type Task = Pin<Box<dyn Future<Output = ()>>>;

/// What the benches run on.
struct Target {
    sim: Option<Sim>,
    device: String,
    namespace: u32,
}

impl Target {
    fn new() -> Self {
        if let Ok(named) = std::env::var("DRYSTONE_BENCH_NVME") {
            let (device, namespace) = named.rsplit_once('/').expect("DRYSTONE_BENCH_NVME=0000:01:00.0/1");
            let namespace = namespace.parse().expect("a number of a namespace");
            return Self { sim: None, device: device.into(), namespace };
        }
        let namespaces = vec![SimNamespace::new(4096, LEN)];
        let sim = Sim::stepwise(SimConfig { namespaces, ..SimConfig::default() });
        sim.register("bench");
        sim.spent();
        Self { sim: Some(sim), device: "sim:bench".into(), namespace: 1 }
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

    /// Time that the controller has taken on this thread.
    fn spent(&self) -> Duration {
        self.sim.as_ref().map_or(Duration::ZERO, Sim::spent)
    }

    /// Measures what is not the controller's.
    fn without_controller<T>(&self, work: impl FnOnce() -> T) -> Duration {
        let (start, spent) = (Instant::now(), self.spent());
        black_box(work());
        start.elapsed().saturating_sub(self.spent() - spent)
    }
}

fn queue_pair(criterion: &mut Criterion) {
    let target = Target::new();
    let (device, namespace) = target.open();
    let mut pair = QueuePair::new(&device).expect("a queue pair");
    while !pair.is_running() {
        pair.tick(|_| unreachable!("nothing was asked for"));
        pair.relax();
    }
    for depth in DEPTHS {
        criterion.bench_function(&format!("queue pair, depth {depth}"), |bencher| {
            let mut buffers: Vec<BufList> =
                (0..depth).map(|_| device.arena().buffer(BLOCK).expect("room").into()).collect();
            bencher.iter_custom(|count| {
                target.without_controller(|| reads(&mut pair, &namespace, &mut buffers, count))
            });
        });
    }
    if target.sim.is_none() {
        return;
    }
    for depth in DEPTHS {
        criterion.bench_function(&format!("the simulated controller, depth {depth}"), |bencher| {
            let mut buffers: Vec<BufList> =
                (0..depth).map(|_| device.arena().buffer(BLOCK).expect("room").into()).collect();
            bencher.iter_custom(|count| {
                let before = target.spent();
                reads(&mut pair, &namespace, &mut buffers, count);
                target.spent() - before
            });
        });
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
    let target = Target::new();
    for format in ["raw", "qcow2"] {
        prepare(&target, format);
        for executor in ["no runtime", "tokio", "monoio", "glommio"] {
            for depth in DEPTHS {
                criterion.bench_function(&format!("{format}, {executor}, depth {depth}"), |bencher| {
                    bencher.iter_custom(|count| {
                        run(executor, async |client: &Client, spawn: Option<&dyn Fn(Task) -> Task>| {
                            measure(&target, client, format, spawn, depth).await
                        })
                        .expect("the kernel has it all")
                        .expect("the namespace reads")
                        .mul_f64(count as f64 / READS as f64)
                    });
                });
            }
        }
    }
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

/// Time for [`READS`] reads, `depth` of them in flight; opening and closing left out.
async fn measure(
    target: &Target,
    client: &Client,
    format: &str,
    spawn: Option<&dyn Fn(Task) -> Task>,
    depth: usize,
) -> Result<Duration> {
    let disk = client.open(&target.spec(format)).await?;
    // Metadata is in memory from here on.
    for at in (0..IMAGE_LEN).step_by(1 << 20) {
        disk.read(at, client.buffer(BLOCK)).await.1?;
    }
    let (start, spent) = (Instant::now(), target.spent());
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
    let took = start.elapsed().saturating_sub(target.spent() - spent);
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
    targets = queue_pair, images
}
criterion_main!(nvme);
