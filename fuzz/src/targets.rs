//! What each target does with its bytes. All of them panic with a report of what is wrong, and are bounded by
//! [`Target::check`](crate::Target::check).

use std::sync::OnceLock;

use arbitrary::Unstructured;
use drystone_conformance::cases;
use drystone_conformance::explore::straight;
use drystone_conformance::fault::Effect;
use drystone_conformance::scenario::Draw;
use drystone_conformance::suite::{Case, Run, Thoroughness};
use drystone_conformance::trace::tell;
use drystone_conformance::world::World;
use drystone_core::error::Error;
use drystone_core::graph::open::{ImageNames, OpenMode, open};
use drystone_core::graph::options::from_filename;
use drystone_core::intent::Errno;

pub use crate::bitmaps::bitmaps;
pub use crate::chains::chains;
pub use crate::filters::{blkdebug, log_writes};
use crate::hostile::TOP;
pub use crate::layouts::{entries, header, luks, luks2, snapshot};
pub use crate::nbd::{nbd_client, nbd_server};
pub use crate::packed::packed;
pub use crate::parallels::parallels;
pub use crate::parsers::parsers;
pub use crate::requests::{crashes, requests};
pub use crate::texts::{json, options, size};
pub use crate::two_level::{qcow, qed};
pub use crate::vdi::vdi;
pub use crate::vhdx::vhdx;
pub use crate::vmdk::vmdk;
pub use crate::volumes::volumes;
pub use crate::vpc::vpc;
use crate::{damage, hostile};

/// Bytes of an image that [`probe`] reads at either end, where the disk is longer.
const PROBE_READ_MAX: u64 = 64 << 10;

/// Requests, faults and crashes on a raw image, all of it decided by `data`.
///
/// # Panics
/// With a report of what is wrong.
pub fn raw(data: &[u8]) {
    one(&cases::raw(), data);
}

/// The same on images of QEMU's tools.
///
/// # Panics
/// With a report of what is wrong.
pub fn suite(data: &[u8]) {
    thread_local! {
        static CASES: Vec<Case> = cases::qcow2_cases().expect("QEMU's tools make images (package qemu-utils)");
    }
    CASES.with(|cases| one(cases, data));
}

/// `data` as a qcow2 image.
///
/// # Panics
/// With a report of what is wrong.
pub fn qcow2(data: &[u8]) {
    let mut world = World::new();
    world.add_file(TOP, data);
    // What is done with it depends on all of it.
    let seed = drystone_conformance::explore::fingerprint(data);
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

/// `data` as an image whose format is to be found out, and that may open no other file. What is no known format is raw,
/// and reads as it is.
///
/// # Panics
/// With a report of what is wrong.
pub fn probe(data: &[u8]) {
    static FORBID: OnceLock<OpenMode> = OnceLock::new();
    let mode = *FORBID.get_or_init(|| OpenMode { names: ImageNames::Forbid, ..OpenMode::default() });
    let mut world = World::new();
    world.add_file(TOP, data);
    let (seen, _) = straight(world, |io| async move {
        let node = open(&io, &from_filename(TOP, None, mode)?).await?;
        let len = io.len(node);
        let is_raw = io.driver(node).is_some_and(|driver| driver.name() == "raw");
        let part = if is_raw { len } else { len.min(PROBE_READ_MAX) };
        let head = io.read_bytes("fuzz", node, 0, part as usize).await;
        let tail = io.read_bytes("fuzz", node, len - part, part as usize).await;
        io.close(node).await?;
        Ok::<_, Box<Error>>((is_raw, head?, tail?))
    });
    tell(|| match &seen {
        Ok((is_raw, head, _)) => format!("raw {is_raw}, {} bytes", head.len()),
        Err(error) => error.to_string(),
    });
    if let Ok((true, head, _)) = seen {
        assert!(*head == *data, "a raw image reads as other bytes than it holds");
    }
}

/// One run on one of these cases, all of it decided by `data`.
fn one(cases: &[Case], data: &[u8]) {
    let mut draw = Unstructured::new(data);
    let case = &cases[draw.below(cases.len() as u64) as usize];
    run_one(case, &mut draw);
}

/// Draws what is done with a case, and does it.
pub(crate) fn run_one(case: &Case, draw: &mut Unstructured<'_>) {
    let (what, seed) = (draw.below(8), draw.below(1 << 32));
    // One crash point an input: the fuzzer looks for the others itself.
    let stop = draw.below(200);
    let run = Run::drawn(case, seed, draw);
    let how = Thoroughness { subsets_max: 2, samples: 2, stride: 1, outside: 1 << 40 };
    let errno = [Errno::EIO, Errno::ENOSPC, Errno::ENOTSUP][draw.below(3) as usize];
    let result = match what {
        0..3 => run.clean().map(|_| ()),
        3 | 4 => run.faulty(),
        5 => run.crash_at(stop, how).map(|_| ()),
        6 => run.deterministic().map(|_| ()),
        _ => {
            let fault = drystone_conformance::fault::Fault::nth(stop, Effect::Fail(errno));
            let rules = vec![fault];
            run.with_faults(drystone_conformance::fault::Faults { rules, ..Default::default() }).map(|_| ())
        }
    };
    if let Err(report) = result {
        panic!("{report}");
    }
}
