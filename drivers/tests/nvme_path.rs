//! What the way of a request costs besides instructions: no allocation, no copy, no system call.

#[path = "../../core/tests/counting/mod.rs"]
mod counting;
mod world;

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use counting::allocations;
use drystone_core::buf::BufList;
use drystone_drivers::nvme::sim::{SimConfig, SimNamespace};
use drystone_drivers::nvme::{Operation, Request};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};
use world::World;

/// A namespace whose data the controller does not touch: it allocates nothing then either.
fn world() -> World {
    let namespaces = vec![SimNamespace::nothing(4096, 1 << 30)];
    World::new(SimConfig { namespaces, ..SimConfig::default() })
}

/// Reads and writes of one and two pages, 32 in flight.
fn transfers(world: &mut World, buffers: &mut Vec<BufList>, count: u64) {
    let (mut left, mut in_flight) = (count, 0);
    while left > 0 || in_flight > 0 {
        while left > 0
            && let Some(data) = buffers.pop()
        {
            let op = if left.is_multiple_of(2) { Operation::Read } else { Operation::Write { fua: false } };
            let (offset, len) = (left % 1000 * 8192, data.len_bytes() as u64);
            world.pair.submit(&world.namespace, Request { tag: left, op, offset, len, data });
            left -= 1;
            in_flight += 1;
        }
        world.pair.ring();
        world.sim.step();
        world.pair.poll(|answer| {
            answer.result.expect("a controller without faults");
            buffers.push(answer.data);
            in_flight -= 1;
        });
        world.pair.tick(|_| unreachable!("the queue pair is running"));
    }
}

/// A world where all that happens once has happened, and buffers.
fn warm() -> (World, Vec<BufList>) {
    let mut world = world();
    let mut buffers: Vec<BufList> =
        (0..32).map(|n| world.buffer(if n % 2 == 0 { 4096 } else { 8192 }).into()).collect();
    world.read(0, drystone_core::buf::Buf::zeroed(4096)).1.expect("reads");
    transfers(&mut world, &mut buffers, 2000);
    (world, buffers)
}

#[test]
fn transfers_allocate_and_copy_nothing_and_share_doorbells() {
    let (mut world, mut buffers) = warm();
    let (before, counters) = (allocations(), world.pair.counters());
    transfers(&mut world, &mut buffers, 32 * 100);
    assert_eq!(allocations() - before, 0, "allocations");
    let after = world.pair.counters();
    assert_eq!(after.copied, counters.copied, "copied bytes");
    assert_eq!((after.commands - counters.commands, after.doorbells - counters.doorbells), (3200, 100));
    drop(buffers);
    world.end();
}

const CHILD: &str = "DRYSTONE_NO_SYSTEM_CALLS";

/// A process of its own, which the kernel kills at the first system call of the thread that transfers.
#[test]
fn transfers_make_no_system_call() {
    if std::env::var_os(CHILD).is_some() {
        return without_system_calls();
    }
    let program = std::env::current_exe().expect("this test runs");
    let arguments = ["--exact", "transfers_make_no_system_call", "--nocapture"];
    let child = Command::new(program).args(arguments).env(CHILD, "1").output().expect("starts");
    assert!(child.status.success(), "{}: {}", child.status, String::from_utf8_lossy(&child.stdout));
}

fn without_system_calls() {
    static DONE: AtomicBool = AtomicBool::new(false);
    let work = || {
        let (mut world, mut buffers) = warm();
        let arch = std::env::consts::ARCH.try_into().expect("an architecture with filters");
        let none = Default::default();
        let filter = SeccompFilter::new(none, SeccompAction::KillProcess, SeccompAction::Allow, arch);
        let program: BpfProgram = filter.expect("legal").try_into().expect("short");
        apply_filter(&program).expect("any thread may give up rights");
        transfers(&mut world, &mut buffers, 100_000);
        DONE.store(true, Ordering::Release);
        // Ending a thread takes system calls.
        loop {
            std::hint::spin_loop();
        }
    };
    std::thread::spawn(work);
    while !DONE.load(Ordering::Acquire) {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    std::process::exit(0);
}
