//! How long one 4 KiB read takes at a time, from submission to completion, on a real controller.
//!
//! `cargo run --release -p drystone-drivers --example latency -- 0000:01:00.0 1` reads the namespace, and writes nothing;
//! first sleeping until interrupts come, then polling.
//! In a machine that counts instructions rather than time (`drivers/vm-test --count`) the smallest figure is the number of
//! instructions of the whole way.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use drystone_core::buf::BufList;
use drystone_drivers::nvme::{self, Completions, NvmeError, Operation, Options, QueuePair, Request};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

const READS: u64 = 5000;
const INTERRUPTED: u64 = 200;
const BLOCK: u64 = 4096;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(address), Some(namespace)) = (args.next(), args.next()) else {
        return Err("arguments: PCI address, namespace".into());
    };
    let (address, namespace) = (address.as_str(), namespace.parse()?);
    let slept = interrupts(address, namespace)?;
    println!(
        "{INTERRUPTED} reads woke by interrupts: {} us each",
        slept.as_micros() / u128::from(INTERRUPTED)
    );
    let empty = (0..1000).map(|_| Instant::now().elapsed()).min().unwrap_or_default();
    println!("two looks at the clock: {} ns", empty.as_nanos());
    for shadow_doorbells in [false, true] {
        let mut times = measure(address, namespace, shadow_doorbells)?;
        times.sort_unstable();
        println!(
            "4 KiB read, shadow doorbells {}: min {} ns, median {} ns, 99th percentile {} ns",
            if shadow_doorbells { "where offered" } else { "off" },
            times[0].as_nanos(),
            times[times.len() / 2].as_nanos(),
            times[times.len() * 99 / 100].as_nanos(),
        );
    }
    Ok(())
}

/// Reads while the thread sleeps until the queue pair's vector signals an eventfd. Returns the time of all.
fn interrupts(address: &str, namespace: u32) -> Result<Duration, Box<dyn std::error::Error>> {
    let device = nvme::open(address, Options { completions: Completions::Interrupt, ..Options::default() })?;
    let namespace = device.namespace(namespace)?;
    let mut pair = QueuePair::new(&device)?;
    let event = eventfd(0, EventfdFlags::CLOEXEC)?;
    if !pair.bind_interrupt(event.as_fd())? {
        return Err("the controller has no interrupt vector for a queue pair".into());
    }
    running(&mut pair);
    let start = Instant::now();
    for read in 0..INTERRUPTED {
        let data = device.arena().buffer(BLOCK as usize).expect("an empty arena has room").into();
        let request = Request { tag: read, op: Operation::Read, offset: read * BLOCK, len: BLOCK, data };
        pair.submit(&namespace, request);
        pair.ring();
        let mut result = None;
        while result.is_none() {
            let timeout = Timespec { tv_sec: 10, tv_nsec: 0 };
            if poll(&mut [PollFd::new(&event, PollFlags::IN)], Some(&timeout))? == 0 {
                return Err("no interrupt came within 10 seconds".into());
            }
            rustix::io::read(&event, &mut [0; 8])?;
            pair.poll(|answer| result = Some(answer.result));
        }
        result.expect("waited for")?;
    }
    Ok(start.elapsed())
}

/// Waits until the queues are made.
fn running(pair: &mut QueuePair) {
    while !pair.is_running() {
        pair.tick(|_| unreachable!("nothing was asked for"));
        pair.relax();
    }
}

fn measure(address: &str, namespace: u32, shadow_doorbells: bool) -> Result<Vec<Duration>, NvmeError> {
    let device = nvme::open(address, Options { shadow_doorbells, ..Options::default() })?;
    let namespace = device.namespace(namespace)?;
    let mut pair = QueuePair::new(&device)?;
    running(&mut pair);
    let mut data: BufList = device.arena().buffer(BLOCK as usize).expect("an empty arena has room").into();
    let blocks = namespace.len_bytes() / BLOCK;
    let mut times = Vec::with_capacity(READS as usize);
    for read in 0..READS {
        let offset = read.wrapping_mul(0x9e37_79b1) % blocks * BLOCK;
        let start = Instant::now();
        pair.submit(&namespace, Request { tag: read, op: Operation::Read, offset, len: BLOCK, data });
        pair.ring();
        let mut back = None;
        while !pair.poll(|answer| back = Some(answer)) {
            std::hint::spin_loop();
        }
        times.push(start.elapsed());
        let answer = back.expect("polled until there was one");
        answer.result.map_err(|error| NvmeError::Unusable(format!("a read at {offset} failed: {error}")))?;
        data = answer.data;
    }
    Ok(times)
}
