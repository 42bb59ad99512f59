//! How long one 4 KiB read takes at a time through a raw and a qcow2 image on an NVMe namespace, from the call to its answer.
//!
//! `cargo run --release -p drystone-exec-linux --example image_latency -- 0000:01:00.0 1`. **The namespace is overwritten.** Without
//! arguments, the controller is simulated: for `valgrind --tool=callgrind --toggle-collect='*poll_read*'`, which counts
//! the instructions of a function that is there for that. In a machine whose clock counts them (`conformance/vm/run --count`), the smallest figure is that number.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use drystone_core::buf::BufList;
use drystone_core::engine::Io;
use drystone_core::error::Result;
use drystone_core::format::qcow2::{CreateOptions, create};
use drystone_core::graph::open::{NodeSpec, OpenMode, open};
use drystone_core::graph::options::from_filename;
use drystone_drivers::nvme::sim::{Sim, SimConfig, SimNamespace};
use drystone_exec_linux::{Client, Config, Image, Transfer, run};

const READS: u64 = 5000;
const BLOCK: u64 = 4096;
const LEN: u64 = 16 << 20;

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (_sim, name) = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [address, namespace] => (None, format!("nvme://{address}/{namespace}")),
        [] => {
            let namespaces = vec![SimNamespace::new(4096, 64 << 20)];
            let sim = Sim::stepwise(SimConfig { namespaces, ..SimConfig::default() });
            sim.register("latency");
            (Some(sim), "nvme://sim:latency/1".into())
        }
        _ => return Err("arguments: PCI address and namespace, or none".into()),
    };
    let empty = (0..1000).map(|_| Instant::now().elapsed()).min().unwrap_or_default();
    println!("two looks at the clock: {} ns", empty.as_nanos());
    for format in ["raw", "qcow2"] {
        let profiled = args.is_empty();
        let work = async |client| match profiled {
            true => measure::<true>(&client, &name, format).await,
            false => measure::<false>(&client, &name, format).await,
        };
        let mut times = run(Config::default(), work)??;
        times.sort_unstable();
        let (least, median) = (times[0].as_nanos(), times[times.len() / 2].as_nanos());
        println!("4 KiB read through {format}: min {least} ns, median {median} ns");
    }
    Ok(())
}

/// The time of each read.
async fn measure<const PROFILED: bool>(client: &Client, name: &str, format: &str) -> Result<Vec<Duration>> {
    let mode = OpenMode { writable: true, ..OpenMode::default() };
    let spec = |format| from_filename(name, Some(format), mode).expect("a legal name");
    if format == "qcow2" {
        let raw = spec("raw");
        client.run(async move |io| make(&io, &raw).await).await?;
    }
    let disk = client.open(&spec(format)).await?;
    let mut data: BufList = client.buffer(BLOCK as usize).into();
    for at in (0..LEN).step_by(BLOCK as usize) {
        let (back, result) = disk.write(at, data).await;
        result?;
        data = back;
    }
    let mut times = Vec::with_capacity(READS as usize);
    for read in 0..READS {
        let offset = read.wrapping_mul(0x9e37_79b1) % (LEN / BLOCK) * BLOCK;
        let start = Instant::now();
        let (back, result) = match PROFILED {
            true => one_read(&disk, offset, data).await,
            false => disk.read(offset, data).await,
        };
        times.push(start.elapsed());
        result?;
        data = back;
    }
    disk.close().await?;
    Ok(times)
}

async fn make(io: &Io, raw: &NodeSpec) -> Result<()> {
    let file = open(io, raw).await?;
    create(io, file, &CreateOptions::new(LEN)).await?;
    io.close(file).await
}

async fn one_read(disk: &Image, offset: u64, data: BufList) -> (BufList, Result<()>) {
    let mut read = pin!(disk.read(offset, data));
    poll_fn(|cx| poll_read(read.as_mut(), cx)).await
}

/// A function that a profiler finds by its name.
#[inline(never)]
fn poll_read(read: Pin<&mut Transfer<'_>>, cx: &mut Context<'_>) -> Poll<(BufList, Result<()>)> {
    read.poll(cx)
}
