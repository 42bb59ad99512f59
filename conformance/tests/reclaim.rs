//! What giving clusters back costs: holes for neighbours at once, and one write of the refcounts that drop.

use drystone_conformance::cases::WRITABLE;
use drystone_conformance::qemu::Folder;
use drystone_conformance::runner::SimRunner;
use drystone_conformance::scenario::{Ask, Runner};
use drystone_conformance::sim::Sim;
use drystone_conformance::world::World;
use drystone_core::buf::BufList;
use drystone_core::engine::Op;
use drystone_core::graph::open::NodeSpec;
use drystone_core::graph::options::from_filename;

const CLUSTER: u64 = 4096;
const CLUSTERS: u64 = 2048;

#[test]
fn neighbours_are_given_back_together() {
    let (trace, world) = discarded("one", &[(0, CLUSTERS)]);
    // Tables lie between the data, and end a run each.
    let holes = trace.iter().filter(|line| line.contains(" discard ")).count();
    assert!((1..=16).contains(&holes), "{holes} discards for {CLUSTERS} clusters");
    in_order(&world);
}

#[test]
fn clusters_here_and_there_cost_a_hole_each_and_one_write() {
    let every_other: Vec<_> = (0..CLUSTERS / 2).step_by(2).map(|cluster| (cluster, 1)).collect();
    let (trace, world) = discarded("many", &every_other);
    let holes = trace.iter().filter(|line| line.contains(" discard ")).count();
    assert_eq!(holes, every_other.len());
    let last_hole = trace.iter().rposition(|line| line.contains(" discard ")).expect("there are some");
    let writes = trace[last_hole..].iter().filter(|line| line.contains(" write ")).count();
    assert!((1..=3).contains(&writes), "{writes} writes after the last hole");
    in_order(&world);
}

/// Has a guest discard runs of clusters of an image that QEMU filled, and closes it.
fn discarded(name: &str, runs: &[(u64, u64)]) -> (Vec<String>, World) {
    let folder = Folder::new();
    let size = (CLUSTER * CLUSTERS).to_string();
    let write = format!("write -P 7 0 {size}");
    folder
        .run(&["qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", "disk.qcow2", &size])
        .and_then(|_| folder.run(&["qemu-io", "-f", "qcow2", "-c", &write, "disk.qcow2"]))
        .unwrap_or_else(|report| panic!("{name}: {report}"));
    let mut world = World::new();
    let bytes = std::fs::read(folder.path().join("disk.qcow2")).expect("it was just made");
    world.add_file("disk.qcow2", &bytes);
    let mut runner = SimRunner::new(Sim::new(1, world));
    runner.sim.start_trace();
    let spec: NodeSpec = from_filename("disk.qcow2", Some("qcow2"), WRITABLE).expect("legal");
    runner.open(&spec).expect("opens");
    let asks = runs.iter().zip(0..).map(|((first, count), tag)| Ask {
        op: Op::Discard,
        offset: first * CLUSTER,
        len: count * CLUSTER,
        data: BufList::new(),
        tag,
    });
    runner.submit(asks.collect());
    for _ in runs {
        runner.wait().expect("runs").result.expect("discards");
    }
    runner.close().expect("closes");
    let trace = runner.sim.trace().to_vec();
    (trace, runner.sim.into_world())
}

fn in_order(world: &World) {
    let folder = Folder::of(world).expect("the host takes it");
    folder.check("disk.qcow2", "qcow2", false).expect("nothing leaks");
}
