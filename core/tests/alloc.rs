//! What a request may cost, counted: heap allocations, coroutines, intents.
//!
//! The allocator counts for the thread that asks, so that tests beside each other do not count each other.

mod counting;
mod null;

use counting::allocations;
use drystone_core::buf::{Buf, BufList};
use drystone_core::engine::Op;
use drystone_core::format::qcow2::CreateOptions;
use drystone_core::intent::Fua;
use null::Null;

const CLUSTER: u64 = 65536;

/// Clusters that one 4 KiB slice of an L2 table maps; crossing into the next slice loads it.
const SLICE_CLUSTERS: u64 = 512;

#[test]
fn a_cached_read_allocates_nothing_and_starts_no_coroutine() {
    let mut null = Null::default();
    let disk = null.qcow2("disk", &CreateOptions::new(1 << 30), None);
    let data = null.request(disk, Op::Write(Fua::No), 0, Buf::zeroed(16 * CLUSTER as usize).into());
    let mut page = data.into_single().split_to(4096).into();
    let cost = counted(&mut null, |null| {
        for n in 0..1000 {
            page = null.request(disk, Op::Read, n % 256 * 4096, std::mem::take(&mut page));
        }
    });
    assert_eq!(cost, Cost { allocations: 0, coroutines: 0 });
}

#[test]
fn a_cached_overwrite_allocates_nothing_and_starts_no_coroutine() {
    let mut null = Null::default();
    let disk = null.qcow2("disk", &CreateOptions::new(1 << 30), None);
    let data = null.request(disk, Op::Write(Fua::No), 0, Buf::zeroed(16 * CLUSTER as usize).into());
    let mut page = data.into_single().split_to(4096).into();
    let cost = counted(&mut null, |null| {
        for n in 0..1000 {
            let op = Op::Write(Fua::No);
            page = null.request(disk, op, n % 256 * 4096, std::mem::take(&mut page));
        }
    });
    assert_eq!(cost, Cost { allocations: 0, coroutines: 0 });
}

#[test]
fn a_read_through_three_backing_files_allocates_nothing_and_starts_no_coroutine() {
    let mut null = Null::default();
    let options = CreateOptions::new(1 << 30);
    let base = null.qcow2("base", &options, None);
    let data = null.request(base, Op::Write(Fua::No), 0, Buf::zeroed(16 * CLUSTER as usize).into());
    null.qcow2("second", &options, Some("base"));
    null.qcow2("third", &options, Some("second"));
    let top = null.qcow2("top", &options, Some("third"));
    let mut page = data.into_single().split_to(4096).into();
    let cost = counted(&mut null, |null| {
        for n in 0..1000 {
            page = null.request(top, Op::Read, n % 256 * 4096, std::mem::take(&mut page));
        }
    });
    assert_eq!(cost, Cost { allocations: 0, coroutines: 0 });
}

#[test]
fn an_allocating_write_of_whole_clusters_allocates_nothing_once_metadata_is_cached() {
    allocating(CLUSTER);
}

#[test]
fn an_allocating_write_into_fresh_clusters_allocates_nothing_once_metadata_is_cached() {
    allocating(4096);
}

/// Writes `len` bytes to each cluster of one slice; the first few warm up what is reused.
fn allocating(len: u64) {
    let mut null = Null::default();
    let disk = null.qcow2("disk", &CreateOptions::new(1 << 30), None);
    let mut data = BufList::from(Buf::zeroed(len as usize));
    let mut write = |null: &mut Null, cluster| {
        data = null.request(disk, Op::Write(Fua::No), cluster * CLUSTER, std::mem::take(&mut data));
    };
    for cluster in 0..16 {
        write(&mut null, cluster);
    }
    let cost = counted(&mut null, |null| {
        for cluster in 16..SLICE_CLUSTERS {
            write(null, cluster);
        }
    });
    assert_eq!(cost.allocations, 0);
}

#[derive(Debug, PartialEq, Eq)]
struct Cost {
    allocations: u64,
    coroutines: u64,
}

fn counted(null: &mut Null, work: impl FnOnce(&mut Null)) -> Cost {
    let before = (allocations(), null.engine().coroutines());
    work(null);
    Cost { allocations: allocations() - before.0, coroutines: null.engine().coroutines() - before.1 }
}
