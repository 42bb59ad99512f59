//! Fuzz targets: for cargo-fuzz, and for a seeded runner that needs no fuzzer.
//!
//! ```text
//!   seed ─▶ Target::input ─▶ bytes ─▶ Target::run ─▶ nothing, or a panic with a report
//!                              ▲                       │
//!             regressions/ ────┘      minimise ◀───────┘
//! ```
//!
//! Every run is bounded in intents and in memory, which is asserted. Start at [`TARGETS`]; what each does is in
//! [`targets`].

pub mod bitmaps;
mod chains;
pub mod damage;
mod filters;
mod hostile;
mod layouts;
pub mod minimise;
mod nbd;
mod packed;
mod parallels;
mod parsers;
mod requests;
pub mod targets;
mod texts;
mod two_level;
mod used;
pub mod vdi;
mod vhdx;
mod vmdk;
mod volumes;
mod vpc;

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use drystone_conformance::explore::fingerprint;
use drystone_conformance::{meter, panicked, trace};
use fastrand::Rng;

/// Something that takes any bytes, and panics with a report when something is wrong.
#[derive(Clone, Copy)]
pub struct Target {
    /// The word for it on a command line, and for cargo-fuzz.
    pub name: &'static str,
    /// Runs one input; panics with a report of what is wrong.
    pub run: fn(&[u8]),
    /// Makes an input that is worth running.
    input: fn(&mut Rng) -> Vec<u8>,
    /// Intents that a run may take.
    intents_max: u64,
    /// Bytes of memory that a run may take.
    memory_max: usize,
    /// Whether it begins with images of QEMU's tools.
    needs_qemu: bool,
}

const MIB: usize = 1 << 20;

/// One that works on bytes alone.
const PARSER: Target = Target {
    name: "",
    run: |_| {},
    input: decisions,
    intents_max: 0,
    memory_max: 16 * MIB,
    needs_qemu: false,
};

/// One that simulates.
const SIMULATION: Target = Target { intents_max: 5_000_000, memory_max: 512 * MIB, ..PARSER };

/// All of them.
pub const TARGETS: [Target; 31] = [
    Target { name: "raw", run: targets::raw, ..SIMULATION },
    Target {
        name: "qcow2",
        run: targets::qcow2,
        input: |rng| damage::scrambled(rng),
        needs_qemu: true,
        ..SIMULATION
    },
    Target { name: "qcow2_fields", run: targets::qcow2_fields, needs_qemu: true, ..SIMULATION },
    Target { name: "probe", run: targets::probe, input: layouts::scrambled_image, ..SIMULATION },
    Target { name: "suite", run: targets::suite, needs_qemu: true, ..SIMULATION },
    Target { name: "requests", run: targets::requests, ..SIMULATION },
    Target { name: "crashes", run: targets::crashes, ..SIMULATION },
    Target { name: "header", run: targets::header, input: layouts::scrambled_image, ..PARSER },
    Target { name: "entries", run: targets::entries, ..PARSER },
    Target { name: "snapshot", run: targets::snapshot, input: layouts::snapshot_entry, ..PARSER },
    Target { name: "bitmaps", run: targets::bitmaps, ..SIMULATION },
    Target { name: "parallels", run: targets::parallels, ..SIMULATION },
    Target { name: "packed", run: targets::packed, ..SIMULATION },
    Target { name: "vdi", run: targets::vdi, ..SIMULATION },
    Target { name: "qed", run: targets::qed, ..SIMULATION },
    Target { name: "qcow", run: targets::qcow, ..SIMULATION },
    Target { name: "vmdk", run: targets::vmdk, ..SIMULATION },
    Target { name: "vhdx", run: targets::vhdx, ..SIMULATION },
    Target { name: "volumes", run: targets::volumes, ..SIMULATION },
    Target { name: "vpc", run: targets::vpc, ..SIMULATION },
    Target { name: "chains", run: targets::chains, ..SIMULATION },
    Target { name: "parsers", run: targets::parsers, ..PARSER },
    Target { name: "nbd_client", run: targets::nbd_client, memory_max: 64 * MIB, ..PARSER },
    // Two requests of the greatest length, and what they are answered with.
    Target { name: "nbd_server", run: targets::nbd_server, memory_max: 256 * MIB, ..PARSER },
    Target { name: "luks", run: targets::luks, input: layouts::luks_header, ..PARSER },
    Target { name: "luks2", run: targets::luks2, input: layouts::luks2_metadata, ..PARSER },
    Target { name: "blkdebug", run: targets::blkdebug, input: filters::config_text, ..PARSER },
    Target { name: "log_writes", run: targets::log_writes, input: filters::log, ..PARSER },
    Target { name: "options", run: targets::options, input: texts::option_string, ..PARSER },
    Target { name: "json", run: targets::json, input: texts::json_text, ..PARSER },
    Target { name: "size", run: targets::size, input: texts::size_text, ..PARSER },
];

fn decisions(rng: &mut Rng) -> Vec<u8> {
    std::iter::repeat_with(|| rng.u8(..)).take(2048).collect()
}

impl Target {
    /// The target of a name.
    pub fn named(name: &str) -> Option<Self> {
        TARGETS.into_iter().find(|target| target.name == name)
    }

    /// Makes the images that it begins with, which takes a moment the first time.
    ///
    /// # Panics
    /// When QEMU's tools are not there, or fail.
    pub fn prepare(&self) {
        if self.needs_qemu {
            damage::sound();
        }
    }

    /// The input of a seed.
    pub fn input(&self, seed: u64) -> Vec<u8> {
        (self.input)(&mut Rng::with_seed(seed))
    }

    /// Runs an input within its bounds of intents and memory.
    ///
    /// # Errors
    /// The report of what is wrong.
    pub fn check(&self, input: &[u8]) -> Result<(), String> {
        let before = trace::intents();
        let (result, memory) = meter::peak_of(|| catch_unwind(AssertUnwindSafe(|| (self.run)(input))));
        let intents = trace::intents() - before;
        if let Err(panic) = result {
            return Err(panicked(panic.as_ref()));
        }
        if intents > self.intents_max {
            return Err(format!("{intents} intents, {} allowed", self.intents_max));
        }
        if memory > self.memory_max {
            return Err(format!("{memory} bytes of memory, {} allowed", self.memory_max));
        }
        Ok(())
    }

    /// Runs an input while `see` gets each line of the trace.
    ///
    /// # Errors
    /// The report of what is wrong.
    pub fn replay(&self, input: &[u8], see: impl FnMut(&str) + 'static) -> Result<(), String> {
        trace::witness(see, || self.check(input))
    }

    /// A number for the trace of an input: the same on every machine.
    ///
    /// # Errors
    /// The report of what is wrong.
    pub fn trace_hash(&self, input: &[u8]) -> Result<u64, String> {
        let hash = Rc::new(Cell::new(0_u64));
        let sum = Rc::clone(&hash);
        self.replay(input, move |line| sum.set(sum.get().rotate_left(5) ^ fingerprint(line.as_bytes())))?;
        Ok(hash.get())
    }
}
