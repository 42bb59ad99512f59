//! A simulated controller, a device on it, and one queue pair.
#![allow(dead_code, reason = "not every test uses all of it")]

use std::sync::Arc;
use std::time::Duration;

use drystone_core::buf::{Buf, BufList};
use drystone_drivers::nvme::layout::Namespace;
use drystone_drivers::nvme::sim::{Sim, SimConfig, SimNamespace};
use drystone_drivers::nvme::{Answer, Device, Operation, Options, QueuePair, Request, RequestError};

/// Rounds after which something hangs: enough for several resets of virtual time.
const ROUNDS_MAX: u32 = 3_000_000;

/// Virtual time of a round.
const ROUND: Duration = Duration::from_micros(10);

pub struct World {
    pub sim: Sim,
    pub device: Arc<Device>,
    pub pair: QueuePair,
    pub namespace: Namespace,
}

/// Options for tests: timeouts that are short in virtual time.
pub fn options() -> Options {
    Options { timeout: Duration::from_millis(100), arena_len: 4 << 20, ..Options::default() }
}

/// A configuration with one namespace of 1 MiB.
pub fn config(block: u32) -> SimConfig {
    SimConfig { namespaces: vec![SimNamespace::new(block, 1 << 20)], ..SimConfig::default() }
}

impl World {
    pub fn new(config: SimConfig) -> Self {
        Self::with(config, options())
    }

    pub fn with(config: SimConfig, options: Options) -> Self {
        let sim = Sim::stepwise(config);
        let device = Device::open(sim.transport(), options).expect("a controller without faults");
        let pair = QueuePair::new(&device).expect("the first queue pair");
        let namespace = device.namespace(1).expect("the first namespace");
        Self { sim, device, pair, namespace }
    }

    /// A buffer that the device reaches.
    pub fn buffer(&self, len: usize) -> Buf {
        self.device.arena().buffer(len).expect("the arena is large enough for tests")
    }

    pub fn submit(&mut self, tag: u64, op: Operation, offset: u64, len: u64, data: impl Into<BufList>) {
        self.pair.submit(&self.namespace, Request { tag, op, offset, len, data: data.into() });
    }

    /// Lets everybody move once.
    pub fn round(&mut self, answers: &mut Vec<Answer>) {
        self.pair.ring();
        self.pair.poll(|answer| answers.push(answer));
        self.pair.tick(|answer| answers.push(answer));
        self.sim.step();
        self.sim.advance(ROUND);
    }

    /// Waits until everything is answered.
    pub fn settle(&mut self) -> Vec<Answer> {
        let mut answers = Vec::new();
        for _ in 0..ROUNDS_MAX {
            self.round(&mut answers);
            if self.pair.is_idle() {
                return answers;
            }
        }
        panic!("{} answers, and no more come", answers.len());
    }

    /// Does one request.
    pub fn request(
        &mut self,
        op: Operation,
        offset: u64,
        len: u64,
        data: impl Into<BufList>,
    ) -> (BufList, Result<(), RequestError>) {
        self.submit(7, op, offset, len, data);
        let mut answers = self.settle();
        let answer = answers.pop().expect("a request is answered");
        assert!(answers.is_empty() && answer.tag == 7, "one answer to one request");
        (answer.data, answer.result)
    }

    pub fn write(&mut self, offset: u64, data: impl Into<BufList>) -> Result<(), RequestError> {
        let data = data.into();
        let len = data.len_bytes() as u64;
        self.request(Operation::Write { fua: false }, offset, len, data).1
    }

    pub fn read(&mut self, offset: u64, data: impl Into<BufList>) -> (Vec<u8>, Result<(), RequestError>) {
        let data = data.into();
        let len = data.len_bytes() as u64;
        let (data, result) = self.request(Operation::Read, offset, len, data);
        (data.into_single().to_vec(), result)
    }

    /// What the first namespace holds.
    pub fn stored(&self) -> Vec<u8> {
        self.sim.controller().config().namespaces[0].bytes().to_vec()
    }

    /// Closes everything, and looks whether anything is left.
    pub fn end(self) {
        let Self { sim, device, pair, .. } = self;
        drop(pair);
        assert_eq!(sim.controller().queues(), 0, "queues are deleted");
        drop(device);
        assert!(sim.controller().is_shut_down(), "the controller was shut down");
        assert_eq!(sim.mapped(), 0, "nothing stays mapped");
        assert_eq!(sim.violations(), 0, "the controller was never sent astray");
    }
}

/// Bytes that differ from place to place.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    (0..len).map(|_| random.u8(..)).collect()
}
