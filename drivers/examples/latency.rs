//! How long one 4 KiB read takes at a time, from submission to completion, on a real controller.
//!
//! `cargo run --release -p drystone-drivers --example latency -- 0000:01:00.0 1` reads the namespace, and writes nothing;
//! first sleeping until interrupts come, then polling. With `--limits` it takes all queue pairs that there are, and reads
//! through each while the controller is reset. With the name of a file alone, such as `/dev/nvme0n1`, it reads that
//! through the kernel's io_uring, polled where the kernel has queues for that: the same loop, to compare with.
//! In a machine that counts instructions rather than time (`conformance/vm/run --count`) the smallest figure is the number of
//! instructions of the whole way. Without arguments, the controller is simulated: for
//! `valgrind --tool=callgrind --toggle-collect='*one_read*'`.

use std::io::IoSliceMut;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use drystone_core::buf::{Buf, BufList};
use drystone_drivers::nvme::layout::Namespace;
use drystone_drivers::nvme::sim::{Sim, SimConfig, SimNamespace};
use drystone_drivers::nvme::{
    self, Completions, NvmeError, Operation, Options, QueuePair, Request, RequestError,
};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{Mode, OFlags, SeekFrom, open, seek};
use rustix::io::{ReadWriteFlags, preadv2};

const READS: u64 = 5000;
const INTERRUPTED: u64 = 200;
const BLOCK: u64 = 4096;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => simulated(),
        [file] => kernel(file),
        [address, namespace] => ours(address, namespace.parse()?),
        [address, namespace, "--limits"] => limits(address, namespace.parse()?),
        _ => Err("arguments: PCI address and namespace, or a file".into()),
    }
}

fn ours(address: &str, namespace: u32) -> Result<(), Box<dyn std::error::Error>> {
    let slept = interrupts(address, namespace)?;
    println!(
        "{INTERRUPTED} reads woke by interrupts: {} us each",
        slept.as_micros() / u128::from(INTERRUPTED)
    );
    let empty = (0..1000).map(|_| Instant::now().elapsed()).min().unwrap_or_default();
    println!("two looks at the clock: {} ns", empty.as_nanos());
    for shadow_doorbells in [false, true] {
        let mut times = measure::<false>(address, namespace, shadow_doorbells)?;
        times.sort_unstable();
        let (least, looks) = times[0];
        println!(
            "4 KiB read, shadow doorbells {}: min {} ns with {looks} looks in vain, median {} ns, 99th percentile {} ns",
            if shadow_doorbells { "where offered" } else { "off" },
            least.as_nanos(),
            times[times.len() / 2].0.as_nanos(),
            times[times.len() * 99 / 100].0.as_nanos(),
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

/// Reads from a controller that works when somebody waits for it.
fn simulated() -> Result<(), Box<dyn std::error::Error>> {
    let namespaces = vec![SimNamespace::new(4096, 64 << 20)];
    let sim = Sim::stepwise(SimConfig { namespaces, ..SimConfig::default() });
    sim.register("latency");
    println!("{} reads", measure::<true>("sim:latency", 1, false)?.len());
    Ok(())
}

/// The time of each read, and how often the queue pair was looked at before it was there.
fn measure<const SIMULATED: bool>(
    address: &str,
    namespace: u32,
    shadow_doorbells: bool,
) -> Result<Vec<(Duration, u32)>, NvmeError> {
    let device = nvme::open(address, Options { shadow_doorbells, ..Options::default() })?;
    let namespace = device.namespace(namespace)?;
    let mut pair = QueuePair::new(&device)?;
    running(&mut pair);
    let mut data: BufList = device.arena().buffer(BLOCK as usize).expect("an empty arena has room").into();
    let blocks = namespace.len_bytes() / BLOCK;
    let mut times = Vec::with_capacity(READS as usize);
    for read in 0..READS {
        let offset = read.wrapping_mul(0x9e37_79b1) % blocks * BLOCK;
        let request = Request { tag: read, op: Operation::Read, offset, len: BLOCK, data };
        let (back, result, time) = one_read::<SIMULATED>(&mut pair, &namespace, request);
        result.map_err(|error| NvmeError::Unusable(format!("a read at {offset} failed: {error}")))?;
        data = back;
        times.push(time);
    }
    Ok(times)
}

/// A function that a profiler finds by its name.
#[inline(never)]
fn one_read<const SIMULATED: bool>(
    pair: &mut QueuePair,
    namespace: &Namespace,
    request: Request,
) -> (BufList, Result<(), RequestError>, (Duration, u32)) {
    let (start, tag) = (Instant::now(), request.tag);
    pair.submit(namespace, request);
    pair.ring();
    let mut looks = 0;
    loop {
        if let Some(data) = pair.take(tag) {
            return (data, Ok(()), (start.elapsed(), looks));
        }
        let mut answered = None;
        pair.poll(|answer| answered = Some(answer));
        if let Some(answer) = answered {
            return (answer.data, answer.result, (start.elapsed(), looks));
        }
        // Only who simulates one has work to do then; an emulator takes long for what lets the least time pass.
        if SIMULATED {
            pair.relax();
        }
        looks += 1;
    }
}

/// Reads through the kernel, which sleeps until an interrupt comes, or polls.
fn kernel(file: &str) -> Result<(), Box<dyn std::error::Error>> {
    let fd = open(file, OFlags::RDONLY | OFlags::DIRECT | OFlags::CLOEXEC, Mode::empty())?;
    let blocks = seek(&fd, SeekFrom::End(0))? / BLOCK;
    let mut data = Buf::zeroed(BLOCK as usize);
    let mut measure = |flags: ReadWriteFlags| -> Result<u128, Box<dyn std::error::Error>> {
        let mut times = Vec::with_capacity(READS as usize);
        for read in 0..READS {
            let offset = read.wrapping_mul(0x9e37_79b1) % blocks * BLOCK;
            let start = Instant::now();
            preadv2(&fd, &mut [IoSliceMut::new(&mut data)], offset, flags)?;
            times.push(start.elapsed());
        }
        times.sort_unstable();
        Ok(times[times.len() / 2].as_nanos())
    };
    println!("4 KiB read by the kernel, with interrupts: median {} ns", measure(ReadWriteFlags::empty())?);
    println!("4 KiB read by the kernel, polled: half of them within {} ns", measure(ReadWriteFlags::HIPRI)?);
    Ok(())
}

/// Takes all queue pairs that the controller grants, and reads through each, before and after a reset.
fn limits(address: &str, namespace: u32) -> Result<(), Box<dyn std::error::Error>> {
    let device = nvme::open(address, Options::default())?;
    let namespace = device.namespace(namespace)?;
    let mut pairs = Vec::new();
    let refused = loop {
        match QueuePair::new(&device) {
            Ok(pair) => pairs.push(pair),
            Err(error) => break error,
        }
    };
    let granted = device.queues_granted();
    if pairs.len() != usize::from(granted) || !matches!(refused, NvmeError::NoQueue { .. }) {
        return Err(format!("{} of {granted} queue pairs, then: {refused}", pairs.len()).into());
    }
    for round in 0..4 {
        let mut answers = 0;
        for (index, pair) in pairs.iter_mut().enumerate() {
            let data = device.arena().buffer(BLOCK as usize).expect("an empty arena has room").into();
            pair.submit(&namespace, Request { tag: 0, op: Operation::Read, offset: 0, len: BLOCK, data });
            // The controller knows of one request, in whatever state that is, and the others lie in their queues unseen. Not all
            // of them rung: QEMU's controller fetches requests while it waits for others in a reset, and then frees their queues.
            if index == round % usize::from(granted) {
                pair.ring();
            }
        }
        device.reset();
        let until = Instant::now() + Duration::from_secs(60);
        while answers < pairs.len() {
            let mut done = |answer: nvme::Answer| {
                answer.result.expect("a reset loses nothing");
                answers += 1;
            };
            for pair in &mut pairs {
                pair.poll(&mut done);
                pair.tick(&mut done);
            }
            if Instant::now() > until {
                return Err(format!("round {round}: {answers} of {granted} answers").into());
            }
        }
    }
    let (resets, trouble) = device.resets();
    println!("{granted} queue pairs, {resets} resets, the last one because: {trouble:?}");
    Ok(())
}
