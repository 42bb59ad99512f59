//! Requests on qcow2 images of every make that core itself knows, so that the same seed is the same run on every machine.

use std::rc::Rc;

use arbitrary::Unstructured;
use drystone_conformance::cases::{WRITABLE, stones};
use drystone_conformance::explore::{Do, Guest, Operation, Thoroughness, explore, look, qcow2_in};
use drystone_conformance::model::Rules;
use drystone_conformance::scenario::{Draw, Mix};
use drystone_conformance::sparse::Sparse;
use drystone_conformance::suite::{Case, Image, Stage};
use drystone_conformance::world::World;
use drystone_core::compute::Codec;
use drystone_core::error::Result;
use drystone_core::format::qcow2::CreateOptions;
use drystone_core::graph::open::{NodeSpec, OpenMode};
use drystone_core::graph::options::from_filename;

use crate::targets::run_one;

const TOP: &str = drystone_conformance::explore::TOP;

/// Bytes of a disk at the most.
const SIZE_MAX: u64 = 256 << 10;

/// Random requests on an empty image of any make, with completions in any order, faults and power cuts: a flat disk.
///
/// # Panics
/// With a report of what is wrong.
pub fn requests(data: &[u8]) {
    let mut draw = Unstructured::new(data);
    let (options, backing) = drawn(&mut draw, SIZE_MAX);
    let setup = move |world: &mut World| {
        *world = made(&options, backing);
        let mut content = Sparse::from_bytes(&backing.map_or_else(Vec::new, stones));
        content.set_len(options.size);
        let granule = options.cluster_size;
        let mix = Mix {
            steps: 40,
            granule,
            len_max: (4 * granule).min(64 << 10),
            compressed: true,
            ..Mix::default()
        };
        let rules = Rules { sticky_flush: false, discards_on_its_own: true, ..Rules::default() };
        Image { spec: spec(true), content, rules, mix }
    };
    let in_order = |world: &World, _: Stage, content: Option<&Sparse>| {
        let found = look(world.clone(), spec(false))?;
        match content.is_none_or(|content| content.to_vec() == *found) {
            true => Ok(()),
            false => Err("a reader of its own sees other bytes than the guest".into()),
        }
    };
    let case = Case::new("drawn", setup).verified(in_order).verified_quickly(in_order);
    run_one(&case, &mut draw);
}

/// A few requests on an image of any make, and power cuts at every moment of them.
///
/// # Panics
/// With a report of what is wrong.
pub fn crashes(data: &[u8]) {
    let mut draw = Unstructured::new(data);
    let (options, backing) = drawn(&mut draw, 64 << 10);
    let unit = options.cluster_size.min(16 << 10);
    let mut steps = || {
        let count = 1 + draw.below(6);
        Rc::new((0..count).map(|_| step(&mut draw, options.size, unit)).collect::<Vec<Step>>())
    };
    let (before, during) = (steps(), steps());
    let seed = draw.below(1 << 32);
    let operation = Operation::new("drawn", "qcow2", made(&options, backing))
        .after(move |guest| play(guest, Rc::clone(&before)))
        .doing(move |guest| play(guest, Rc::clone(&during)));
    let how = Thoroughness { samples: 4, recover_every: 60, recover_samples: 2, qemu_every: 0 };
    if let Err(report) = explore(&operation, &how, seed) {
        panic!("{report}");
    }
}

/// One request of a plan.
#[derive(Clone, Copy, Debug)]
enum Step {
    Write(u64, u64),
    WriteThrough(u64, u64),
    Compressed(u64, u64),
    Zero(u64, u64, bool),
    Discard(u64, u64),
    Flush,
    AtOnce([Do; 3]),
}

fn step(draw: &mut dyn Draw, size: u64, unit: u64) -> Step {
    let mut range = || {
        let offset = draw.below(size);
        let offset = if draw.one_in(3) { offset } else { offset - offset % unit.min(4096) };
        let len = 1 + draw.below(2 * unit);
        let len = if draw.one_in(3) { len } else { len.next_multiple_of(512) };
        (offset, len.min(size - offset))
    };
    let (at, len) = range();
    let (other, other_len) = range();
    match draw.below(12) {
        0..4 => Step::Write(at, len),
        4 => Step::WriteThrough(at, len),
        5 => Step::Compressed(at - at % unit, unit.min(size - (at - at % unit))),
        6 => Step::Zero(at, len, draw.one_in(2)),
        7 => Step::Discard(at, len),
        // Writes that share bytes may win in either order, so these do not.
        8 if at + len <= other || other + other_len <= at => {
            Step::AtOnce([Do::Write(at, len), Do::FlushOften, Do::Write(other, other_len)])
        }
        _ => Step::Flush,
    }
}

async fn play(guest: Guest, steps: Rc<Vec<Step>>) -> Result<()> {
    for step in steps.iter() {
        match *step {
            Step::Write(at, len) => guest.write(at, len).await?,
            Step::WriteThrough(at, len) => guest.write_through(at, len).await?,
            Step::Compressed(at, len) => guest.write_compressed(at, len).await?,
            Step::Zero(at, len, may_unmap) => guest.zero(at, len, may_unmap).await?,
            Step::Discard(at, len) => guest.discard(at, len).await?,
            Step::Flush => guest.flush().await?,
            Step::AtOnce(all) => guest.at_once(&all).await?,
        }
    }
    Ok(())
}

/// Draws an image, and the length of the file below it.
fn drawn(draw: &mut dyn Draw, size_max: u64) -> (CreateOptions, Option<u64>) {
    let size = 512 * (1 + draw.below(size_max / 512));
    let cluster_size = [512, 512, 4096, 4096, 16384, 65536][draw.below(6) as usize];
    let plain = CreateOptions { cluster_size, ..CreateOptions::new(size) };
    let backing = draw.one_in(3).then(|| 1 + draw.below(size + size / 4));
    let options = CreateOptions {
        version: if draw.one_in(6) { 2 } else { 3 },
        refcount_bits: [16, 16, 1, 4, 8, 32, 64][draw.below(7) as usize],
        extended_l2: draw.one_in(2) && cluster_size >= 16384,
        compression: if draw.one_in(3) { Codec::Zstd } else { Codec::Zlib },
        lazy_refcounts: draw.one_in(6),
        data_file: draw.one_in(6).then(|| "data".into()),
        backing: backing.map(|_| ("base".into(), Some("raw".into()))),
        ..plain.clone()
    };
    match options.check() {
        Ok(()) => (options, backing),
        Err(_) => (plain, None),
    }
}

fn made(options: &CreateOptions, backing: Option<u64>) -> World {
    let mut world = World::new();
    if let Some(len) = backing {
        world.add_file("base", &stones(len));
    }
    qcow2_in(world, options)
}

fn spec(writable: bool) -> NodeSpec {
    let mode = OpenMode { writable, ..WRITABLE };
    from_filename(TOP, Some("qcow2"), mode).expect("a path")
}
