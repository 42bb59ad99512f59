//! What Drystone costs: `cargo bench -p drystone-benches` for the engine alone, and the program `ratios` for
//! executors and whole tools beside their peers. What was measured is in `RESULTS.md`.
//!
//! Every subject of `ratios` is a process of its own, so that processor time and memory are the kernel's account of it,
//! and the same for everyone; subjects take turns, and medians are compared.

#[path = "../../core/tests/null/mod.rs"]
pub mod null;

pub mod bare;
pub mod codec;
pub mod edits;
pub mod executor;
pub mod formats;
pub mod measure;
pub mod nbd;
#[cfg(feature = "peers")]
pub mod peers;
pub mod tools;

/// Requests in flight, as many as `qemu-img bench` has.
pub const DEPTH: usize = 64;

/// Bytes of a random read.
pub const BLOCK: usize = 4096;

/// Bytes of a sequential write, and of a cluster.
pub const CLUSTER: usize = 65536;

/// Offsets in no order, the same in every run.
pub struct Random(u64);

impl Random {
    /// Starts a sequence.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }

    /// The offset of a block within `len` bytes.
    pub fn block(&mut self, len: u64) -> u64 {
        self.below(len / BLOCK as u64) * BLOCK as u64
    }
}
