//! Runs of the suite from arbitrary bytes and from seeds.
//!
//! Start at [`TARGETS`], which are shaped for cargo-fuzz, and [`Seeded`], which needs no fuzzer.

mod damage;
mod hostile;
pub mod meter;

use arbitrary::Unstructured;
use drystone_conformance::cases;
use drystone_conformance::fault::Effect;
use drystone_conformance::scenario::Draw;
use drystone_conformance::suite::{Case, Run, Thoroughness};
use drystone_conformance::world::World;
use drystone_core::intent::Errno;

/// What is done with a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// Replies and bytes without faults.
    Clean,
    /// Failures at random.
    Faulty,
    /// One failure, wherever.
    NthFault,
    /// Power cuts.
    Crash,
    /// The same trace twice.
    Deterministic,
}

impl Check {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Clean, Self::Faulty, Self::NthFault, Self::Crash, Self::Deterministic];

    /// The word for it on a command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Clean => "clean",
            Self::Faulty => "faulty",
            Self::NthFault => "nth-fault",
            Self::Crash => "crash",
            Self::Deterministic => "deterministic",
        }
    }

    /// Does it.
    ///
    /// # Errors
    /// A report of the first thing that is wrong.
    pub fn run(self, run: &Run<'_>, draw: &mut dyn Draw) -> Result<(), String> {
        match self {
            Self::Clean => run.clean().map(|_| ()),
            Self::Faulty => run.faulty(),
            Self::NthFault => {
                let errno = [Errno::EIO, Errno::ENOSPC, Errno::ENOTSUP][draw.below(3) as usize];
                run.every_nth_fault(Effect::Fail(errno)).map(|_| ())
            }
            Self::Crash => {
                let stride = 1 + draw.below(40);
                let how = Thoroughness { subsets_max: 5, samples: 4, stride, outside: 1 };
                run.crash_everywhere(how).map(|_| ())
            }
            Self::Deterministic => run.deterministic().map(|_| ()),
        }
    }
}

/// What a fuzzer runs: any bytes, and the program goes on or is wrong.
#[derive(Clone, Copy)]
pub struct Target {
    /// The word for it on a command line, and for cargo-fuzz.
    pub name: &'static str,
    /// Runs one input; panics with a report of what is wrong.
    pub run: fn(&[u8]),
    /// Makes an input that is worth running.
    input: fn(&mut fastrand::Rng) -> Vec<u8>,
}

/// All of them.
pub const TARGETS: [Target; 3] = [
    Target { name: "raw", run: raw, input: decisions },
    Target { name: "qcow2", run: qcow2, input: |rng| damage::scrambled(rng) },
    Target { name: "qcow2_fields", run: qcow2_fields, input: decisions },
];

fn decisions(rng: &mut fastrand::Rng) -> Vec<u8> {
    std::iter::repeat_with(|| rng.u8(..)).take(4096).collect()
}

impl Target {
    /// Makes the images that it begins with, which takes a moment the first time.
    ///
    /// # Panics
    /// When QEMU's tools are not there, or fail.
    pub fn prepare(&self) {
        if self.name.starts_with("qcow2") {
            damage::sound();
        }
    }

    /// Runs the input of a seed; a panic is a failure.
    ///
    /// # Errors
    /// What went wrong, and the arguments of `seeds` that repeat it.
    pub fn seeded(&self, seed: u64) -> Result<(), String> {
        let input = (self.input)(&mut fastrand::Rng::with_seed(seed));
        let result = std::panic::catch_unwind(|| (self.run)(&input));
        result.map_err(|panic| {
            let report = panicked(panic.as_ref());
            let repeat = format!("--target {} --seed {seed} --count 1", self.name);
            format!("{report}\nrepeat: cargo run --release -p drystone-fuzz --bin seeds -- {repeat}")
        })
    }
}

/// One run on a raw image, all of it decided by `data`.
///
/// # Panics
/// With a report of what is wrong.
pub fn raw(data: &[u8]) {
    one(&cases::raw(), data);
}

/// `data` as a qcow2 image.
///
/// # Panics
/// With a report of what is wrong.
pub fn qcow2(data: &[u8]) {
    let mut world = World::new();
    world.add_file(hostile::TOP, data);
    // What is done with it depends on all of it.
    let seed = data
        .iter()
        .fold(data.len() as u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    hostile::exercise(world, &mut fastrand::Rng::with_seed(seed));
}

/// A qcow2 image of QEMU's tools with some of its metadata changed, all of it decided by `data`.
///
/// # Panics
/// With a report of what is wrong.
pub fn qcow2_fields(data: &[u8]) {
    let mut draw = Unstructured::new(data);
    let world = damage::damaged(&mut draw);
    hostile::exercise(world, &mut draw);
}

/// One run on one of these cases, all of it decided by `data`.
///
/// # Panics
/// With a report of what is wrong.
pub fn one(cases: &[Case], data: &[u8]) {
    let mut draw = Unstructured::new(data);
    let case = &cases[draw.below(cases.len() as u64) as usize];
    // One crash point an input: the fuzzer looks for the others itself.
    let check = [Check::Clean, Check::Faulty, Check::Crash][draw.below(3) as usize];
    let seed = draw.below(1 << 32);
    let stop = draw.below(200);
    let run = Run::drawn(case, seed, &mut draw);
    let result = match check {
        Check::Crash => {
            let how = Thoroughness { subsets_max: 2, samples: 2, stride: 1, outside: 1 };
            run.crash_at(stop, how).map(|_| ())
        }
        check => check.run(&run, &mut draw),
    };
    if let Err(report) = result {
        panic!("{report}");
    }
}

/// A run that a seed decides: which case, which check, which plan.
pub struct Seeded<'a> {
    case: &'a Case,
    check: Check,
    seed: u64,
}

impl<'a> Seeded<'a> {
    /// Returns the run of a seed, among these cases and checks.
    pub fn new(cases: &[&'a Case], checks: &[Check], seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed.rotate_left(17));
        let case = cases[rng.usize(..cases.len())];
        let check = checks[rng.usize(..checks.len())];
        Self { case, check, seed }
    }

    /// Runs it; a panic is a failure like any other.
    ///
    /// # Errors
    /// What went wrong, and the arguments of `seeds` that repeat it.
    pub fn run(&self) -> Result<(), String> {
        let Self { case, check, seed } = self;
        let attempt = || check.run(&Run::new(case, *seed), &mut fastrand::Rng::with_seed(!seed));
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(attempt));
        let report = match result {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(report)) => report,
            Err(panic) => panicked(panic.as_ref()),
        };
        let repeat = format!("--seed {seed} --count 1 --case '{}' --check {}", case.name, check.name());
        Err(format!("{report}\nrepeat: cargo run --release -p drystone-fuzz --bin seeds -- {repeat}"))
    }
}

fn panicked(panic: &(dyn std::any::Any + Send)) -> String {
    let words = panic.downcast_ref::<String>().map(String::as_str);
    let words = words.or_else(|| panic.downcast_ref::<&str>().copied());
    format!("panic: {}", words.unwrap_or("without words"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_bytes_make_a_run() {
        raw(&[]);
        let mut rng = fastrand::Rng::with_seed(1);
        for len in 0..60 {
            let bytes: Vec<u8> = std::iter::repeat_with(|| rng.u8(..)).take(len * 20).collect();
            raw(&bytes);
        }
    }

    #[test]
    fn damaged_images_end_in_an_answer() {
        for target in TARGETS {
            for seed in 0..40 {
                target.seeded(seed).unwrap_or_else(|report| panic!("{report}"));
            }
        }
        qcow2(&[]);
        qcow2_fields(&[]);
    }

    #[test]
    fn a_seed_decides_everything() {
        let cases = cases::raw();
        let cases: Vec<&Case> = cases.iter().collect();
        let picked = |seed| {
            let run = Seeded::new(&cases, &Check::ALL, seed);
            (run.case.name.clone(), run.check)
        };
        assert_eq!(picked(7), picked(7));
        let all: std::collections::BTreeSet<_> = (0..500).map(|seed| format!("{:?}", picked(seed))).collect();
        assert_eq!(all.len(), cases.len() * Check::ALL.len());
        for seed in 0..10 {
            Seeded::new(&cases, &Check::ALL, seed).run().expect("nothing is wrong");
        }
    }

    #[test]
    fn a_failure_says_how_to_repeat_it() {
        let case = Case::new("broken", |_| panic!("no such image"));
        let report = Seeded::new(&[&case], &[Check::Clean], 5).run().expect_err("panics");
        assert!(report.starts_with("panic: no such image\n"), "{report}");
        assert!(report.ends_with("--seed 5 --count 1 --case 'broken' --check clean"), "{report}");
    }
}
