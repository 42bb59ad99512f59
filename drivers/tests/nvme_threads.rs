//! One device, many threads: a queue pair each, and resets that concern them all.

mod world;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use drystone_core::buf::BufList;
use drystone_drivers::nvme::sim::{Sim, SimConfig, SimNamespace};
use drystone_drivers::nvme::{Device, Operation, Options, QueuePair, Request};
use world::pattern;

const THREADS: usize = 4;
const ROUNDS: u64 = 400;
const BLOCK: usize = 4096;

/// Blocks that belong to one thread.
const SHARE: u64 = 64;

#[test]
fn threads_share_a_device_that_is_reset_beneath_them() {
    let namespaces = vec![SimNamespace::new(512, THREADS as u64 * SHARE * BLOCK as u64)];
    let sim = Sim::threaded(SimConfig { namespaces, seed: Some(3), ..SimConfig::default() });
    let device = Device::open(sim.transport(), Options::default()).expect("a controller");
    let rounds = Arc::new(AtomicUsize::new(0));
    let threads: Vec<_> = (0..THREADS as u64)
        .map(|thread| {
            let (device, rounds) = (Arc::clone(&device), Arc::clone(&rounds));
            std::thread::spawn(move || write_and_read_back(&device, thread, &rounds))
        })
        .collect();
    let mut seen = 0;
    while !threads.iter().all(JoinHandle::is_finished) {
        std::thread::sleep(Duration::from_millis(20));
        // Only what gets on is reset: a command is sent again so many times and no more.
        let now = rounds.load(Ordering::Relaxed);
        if now >= seen + THREADS {
            seen = now;
            device.reset();
        }
    }
    let retries: u64 = threads.into_iter().map(|thread| thread.join().expect("no panic")).sum();
    assert!(device.resets().0 > 0, "it was reset");
    println!("{} resets, {retries} commands sent again", device.resets().0);
    drop(device);
    assert!(sim.controller().is_shut_down());
    assert_eq!((sim.mapped(), sim.violations()), (0, 0));
}

/// Writes the thread's blocks in turns, 8 in flight, and reads them back. Returns how many commands were sent again.
fn write_and_read_back(device: &Arc<Device>, thread: u64, rounds: &AtomicUsize) -> u64 {
    let namespace = device.namespace(1).expect("active");
    let mut pair = QueuePair::new(device).expect("there are enough");
    for round in 0..ROUNDS {
        rounds.fetch_add(1, Ordering::Relaxed);
        let blocks = (0..8).map(|n| thread * SHARE + (round * 8 + n) % SHARE);
        let bytes = |block: u64| pattern(round << 32 | block, BLOCK);
        for op in [Operation::Write { fua: false }, Operation::Read] {
            for block in blocks.clone() {
                let mut data = device.arena().buffer(BLOCK).expect("room");
                match op {
                    Operation::Read => data.fill(0),
                    _ => data.copy_from_slice(&bytes(block)),
                }
                let data: BufList = data.into();
                let (offset, len) = (block * BLOCK as u64, BLOCK as u64);
                pair.submit(&namespace, Request { tag: block, op, offset, len, data });
            }
            while !pair.is_idle() {
                pair.ring();
                let judge = |answer: drystone_drivers::nvme::Answer| {
                    answer.result.expect("a reset loses nothing");
                    assert!(*answer.data.into_single() == bytes(answer.tag)[..], "block {}", answer.tag);
                };
                if !pair.poll(judge) {
                    std::thread::yield_now();
                }
                pair.tick(judge);
            }
        }
    }
    pair.counters().retries
}
