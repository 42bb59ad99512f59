//! The engine alone: qcow2 on leaves that answer at once, so that all the time is the engine's.
//!
//! `cargo bench -p drystone-benches --bench engine`

use std::hint::black_box;
use std::time::Duration;

use criterion::measurement::{Measurement, ValueFormatter, WallTime};
use criterion::{Criterion, criterion_group, criterion_main};
use drystone_benches::Random;
use drystone_benches::null::Null;
use drystone_core::buf::{Buf, BufList};
use drystone_core::engine::Op;
use drystone_core::format::qcow2::CreateOptions;
use drystone_core::graph::NodeId;
use drystone_core::intent::Fua;
use rustix::time::{ClockId, clock_gettime};

const CLUSTER: u64 = 65536;

/// Clusters of an image whose L2 tables fit into the processor's caches: 1 GiB.
const NEAR_CLUSTERS: u64 = 1 << 14;

/// Clusters of an image whose L2 tables do not, so that a lookup waits for memory: 16 GiB.
const FAR_CLUSTERS: u64 = 1 << 18;

fn cached(criterion: &mut Criterion<CpuTime>) {
    let mut null = Null::default();
    let options = CreateOptions::new(NEAR_CLUSTERS * CLUSTER);
    let disk = filled(&mut null, "base", &options);
    null.qcow2("second", &options, Some("base"));
    null.qcow2("third", &options, Some("second"));
    let top = null.qcow2("top", &options, Some("third"));
    let far = filled(&mut null, "far", &CreateOptions::new(FAR_CLUSTERS * CLUSTER));
    let write = Op::Write(Fua::No);
    for (name, node, op, clusters) in [
        ("cached read 4k", disk, Op::Read, NEAR_CLUSTERS),
        ("cached overwrite 4k", disk, write, NEAR_CLUSTERS),
        ("chain read 4k", top, Op::Read, NEAR_CLUSTERS),
        ("far read 4k", far, Op::Read, FAR_CLUSTERS),
    ] {
        let mut data = BufList::from(Buf::zeroed(4096));
        let mut random = Random::new(1);
        criterion.bench_function(name, |bencher| {
            bencher.iter(|| {
                let at = random.block(clusters * CLUSTER);
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

fn allocating(criterion: &mut Criterion<CpuTime>) {
    for (name, len) in [("allocating write 64k", CLUSTER), ("allocating write 4k", 4096)] {
        let mut data = BufList::from(Buf::zeroed(len as usize));
        criterion.bench_function(name, |bencher| {
            bencher.iter_custom(|iterations| {
                let mut left = iterations;
                let mut spent = Duration::ZERO;
                while left > 0 {
                    let clusters = left.min(FAR_CLUSTERS);
                    let mut null = Null::default();
                    let disk = null.qcow2("disk", &CreateOptions::new(FAR_CLUSTERS * CLUSTER), None);
                    let start = CpuTime.start();
                    for cluster in 0..clusters {
                        let at = cluster * CLUSTER;
                        data = null.request(disk, Op::Write(Fua::No), at, std::mem::take(&mut data));
                    }
                    spent += CpuTime.end(start);
                    left -= clusters;
                }
                spent
            });
        });
    }
}

/// Processor time of this thread: a busy machine adds less to it than to the time on the clock.
struct CpuTime;

impl Measurement for CpuTime {
    type Intermediate = Duration;
    type Value = Duration;

    fn start(&self) -> Duration {
        let now = clock_gettime(ClockId::ThreadCPUTime);
        Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
    }

    fn end(&self, start: Duration) -> Duration {
        self.start() - start
    }

    fn add(&self, a: &Duration, b: &Duration) -> Duration {
        *a + *b
    }

    fn zero(&self) -> Duration {
        Duration::ZERO
    }

    fn to_f64(&self, value: &Duration) -> f64 {
        value.as_nanos() as f64
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        WallTime.formatter()
    }
}

criterion_group! {
    name = engine;
    config = Criterion::default().with_measurement(CpuTime);
    targets = cached, allocating
}
criterion_main!(engine);
