//! Requests of one task, each awaited before the next, on a polled device that fails.

use drystone_core::buf::{Buf, BufList};
use drystone_core::graph::open::OpenMode;
use drystone_core::graph::options::from_filename;
use drystone_drivers::nvme::layout::Status;
use drystone_drivers::nvme::sim::{Fault, Sim, SimConfig, SimNamespace};
use drystone_exec_linux::{Client, Config, Image, run};

const BLOCK: usize = 512;
const LEN: usize = 1 << 20;

async fn disk(client: &Client, name: &str) -> Image {
    let mode = OpenMode { writable: true, ..OpenMode::default() };
    let spec = from_filename(&format!("nvme://sim:{name}/1"), Some("raw"), mode).expect("a legal name");
    client.open(&spec).await.expect("the controller is there")
}

/// The read after the one that is answered twice has the same place in the queue pair.
#[test]
fn an_answer_that_comes_twice_is_nobody_elses() {
    let namespaces = vec![SimNamespace::new(4096, 16 << 20)];
    let sim = Sim::stepwise(SimConfig { namespaces, ..SimConfig::default() });
    sim.register("alone_twice");
    let work = async |client: Client| {
        let disk = disk(&client, "alone_twice").await;
        for n in 0..64u8 {
            let mut data = client.buffer(4096);
            data.fill(n + 1);
            disk.write(u64::from(n) * 4096, data).await.1.expect("a healthy controller");
        }
        let mut first = true;
        sim.controller().inject(move |queue, _| {
            let twice = queue > 0 && std::mem::take(&mut first);
            if twice { Fault::Twice } else { Fault::None }
        });
        for n in 0..64u8 {
            let mut data = client.buffer(4096);
            data.fill(0xee);
            let (data, result) = disk.read(u64::from(n) * 4096, data).await;
            result.expect("what makes no sense has the controller reset, and loses nothing");
            assert!(data.into_single().iter().all(|byte| *byte == n + 1), "read {n}");
        }
        disk.close().await.expect("all is written");
    };
    run(Config::default(), work).expect("the kernel has it all");
}

/// Nonsense, failures and resets beneath reads and writes of all lengths, in memory that the device reaches and that it does not.
#[test]
fn what_succeeds_is_what_was_written() {
    for seed in 0..40 {
        let queue_entries = if seed % 3 == 0 { 2 } else { 64 };
        let namespaces = vec![SimNamespace::new(BLOCK as u32, LEN as u64)];
        let sim = Sim::stepwise(SimConfig { namespaces, queue_entries, ..SimConfig::default() });
        let name = format!("alone_faults_{seed}");
        sim.register(&name);
        let work = async |client: Client| faulty(&client, &sim, &name, seed).await;
        run(Config::default(), work).expect("the kernel has it all");
    }
}

async fn faulty(client: &Client, sim: &Sim, name: &str, seed: u64) {
    let disk = disk(client, name).await;
    let (mut random, mut faults) = (fastrand::Rng::with_seed(seed), fastrand::Rng::with_seed(!seed));
    sim.controller().inject(move |queue, _| match faults.u32(..if queue == 0 { 1 } else { 60 }) {
        1 => Fault::WrongCid(0xffff),
        2 => Fault::WrongQueue(9),
        3 => Fault::WrongHead(0xffff),
        4 => Fault::Status(Status::INTERNAL),
        5 => Fault::Fatal,
        6 => Fault::Twice,
        _ => Fault::None,
    });
    let mut written = vec![0; LEN];
    for n in 0..400 {
        let len = BLOCK * random.usize(1..=20);
        let at = random.usize(..=(LEN - len) / BLOCK) * BLOCK;
        let mut data = if random.bool() { client.buffer(len) } else { Buf::zeroed(len) };
        if random.bool() {
            data.fill(n as u8);
            let mut data: BufList = data.into();
            // What failed may be there or not, so it is written until it is.
            for attempt in 0.. {
                let (back, result) = disk.write(at as u64, data).await;
                data = back;
                if result.is_ok() {
                    break;
                }
                assert!(attempt < 20, "seed {seed}, request {n}: {result:?}");
            }
            written[at..][..len].fill(n as u8);
        } else {
            data.fill(0xee);
            let (data, result) = disk.read(at as u64, data).await;
            assert_eq!(data.len_bytes(), len, "seed {seed}, request {n}");
            let same = || data.into_single()[..] == written[at..][..len];
            assert!(result.is_err() || same(), "seed {seed}, request {n}");
        }
    }
    disk.close().await.expect("what is written is written");
}
