//! The engine alone: qcow2 on leaves that answer at once, so that all the time is the engine's.
//!
//! `cargo bench -p drystone-benches --bench engine`

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use drystone_benches::null::Null;
use drystone_core::buf::{Buf, BufList};
use drystone_core::engine::Op;
use drystone_core::format::qcow2::CreateOptions;
use drystone_core::graph::NodeId;
use drystone_core::intent::Fua;

const CLUSTER: u64 = 65536;

/// Clusters of the image that is read and overwritten: as many L2 slices as a disk of 16 GiB has.
const CACHED_CLUSTERS: u64 = 1 << 18;

fn cached(criterion: &mut Criterion) {
    let mut null = Null::default();
    let options = CreateOptions::new(CACHED_CLUSTERS * CLUSTER);
    let disk = filled(&mut null, "base", &options);
    null.qcow2("second", &options, Some("base"));
    null.qcow2("third", &options, Some("second"));
    let top = null.qcow2("top", &options, Some("third"));
    for (name, node, op) in [
        ("cached read 4k", disk, Op::Read),
        ("cached overwrite 4k", disk, Op::Write(Fua::No)),
        ("cached read 4k, three backing files down", top, Op::Read),
    ] {
        let mut data = BufList::from(Buf::zeroed(4096));
        let mut random = Random(1);
        criterion.bench_function(name, |bencher| {
            bencher.iter(|| {
                let at = random.below(CACHED_CLUSTERS * CLUSTER / 4096) * 4096;
                data = black_box(null.request(node, op, at, std::mem::take(&mut data)));
            });
        });
    }
}

/// An image whose every cluster is allocated, with its metadata in memory.
fn filled(null: &mut Null, name: &str, options: &CreateOptions) -> NodeId {
    let disk = null.qcow2(name, options, None);
    let mut data = BufList::from(Buf::zeroed(CLUSTER as usize));
    for cluster in 0..options.size / CLUSTER {
        data = null.request(disk, Op::Write(Fua::No), cluster * CLUSTER, data);
    }
    disk
}

fn allocating(criterion: &mut Criterion) {
    for (name, len) in [("allocating write 64k", CLUSTER), ("allocating write 4k", 4096)] {
        let mut data = BufList::from(Buf::zeroed(len as usize));
        criterion.bench_function(name, |bencher| {
            bencher.iter_custom(|iterations| {
                let mut left = iterations;
                let mut spent = Duration::ZERO;
                while left > 0 {
                    let clusters = left.min(CACHED_CLUSTERS);
                    let mut null = Null::default();
                    let disk = null.qcow2("disk", &CreateOptions::new(CACHED_CLUSTERS * CLUSTER), None);
                    let start = Instant::now();
                    for cluster in 0..clusters {
                        let at = cluster * CLUSTER;
                        data = null.request(disk, Op::Write(Fua::No), at, std::mem::take(&mut data));
                    }
                    spent += start.elapsed();
                    left -= clusters;
                }
                spent
            });
        });
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

criterion_group!(engine, cached, allocating);
criterion_main!(engine);
