//! A controller made of memory: registers, doorbells and queues as the specification has them, and faults on demand.
//!
//! ```text
//!   driver ── registers (a page of atomics) ──▶ SimController::step: doorbells ─▶ commands ─▶ namespaces
//!      └───── DMA memory, by device addresses ◀──────────── completions, data ◀──┘
//! ```
//!
//! Stepwise it is deterministic: it moves when it is told to, or while somebody [pauses](crate::nvme::Transport::pause), and
//! its time is virtual. On a thread of its own it polls, as hardware does. What it is told to reach outside of what is
//! mapped it counts, and answers with an error, as behind an IOMMU.

mod admin;
mod bus;
mod controller;
mod namespace;

pub use bus::{Sim, SimTransport};
pub use controller::{Fault, Faults, SimController};
pub use namespace::{SimNamespace, Storage};

use super::layout::SglSupport;

/// What the controller says of itself.
#[derive(Clone, Debug)]
pub struct SimConfig {
    /// Its namespaces; the first one has number 1.
    pub namespaces: Vec<SimNamespace>,
    /// CAP.MQES as a number of entries.
    pub queue_entries: u16,
    /// I/O queue pairs that it grants.
    pub queue_pairs: u16,
    /// MDTS: log2 of the largest transfer in pages, 0 for none.
    pub mdts: u8,
    /// CAP.DSTRD.
    pub doorbell_stride: u8,
    /// CAP.TO, in 500 ms.
    pub timeout: u8,
    /// Whether it takes Doorbell Buffer Config.
    pub shadow_doorbells: bool,
    /// Whether there is a volatile write cache.
    pub write_cache: bool,
    /// Whether that is on.
    pub write_cache_on: bool,
    /// Whether it offers weighted round robin.
    pub weighted_round_robin: bool,
    /// ONCS.
    pub optional_commands: u16,
    /// What SGLs it takes.
    pub sgl: SglSupport,
    /// Steps from CC.EN to CSTS.RDY.
    pub ready_after: u32,
    /// Chooses which command comes next, where that is not the oldest.
    pub seed: Option<u64>,
    /// Keeps every command for a test to look at.
    pub log: bool,
    /// Interrupt vectors.
    pub vectors: u16,
}

impl Default for SimConfig {
    fn default() -> Self {
        Self {
            namespaces: vec![SimNamespace::new(512, 16 << 20)],
            queue_entries: 1024,
            queue_pairs: 8,
            mdts: 5,
            doorbell_stride: 0,
            timeout: 1,
            shadow_doorbells: false,
            write_cache: true,
            write_cache_on: true,
            weighted_round_robin: false,
            // Compare, Dataset Management, Write Zeroes.
            optional_commands: 0b1101,
            sgl: SglSupport::None,
            ready_after: 3,
            seed: None,
            log: false,
            vectors: 9,
        }
    }
}
