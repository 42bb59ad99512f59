//! Requests of one task, each awaited before the next, while the engine works for nobody: clusters that were discarded are given
//! back beside them.

use drystone_core::buf::BufList;
use drystone_core::engine::Io;
use drystone_core::error::Result;
use drystone_core::format::qcow2::{CreateOptions, create};
use drystone_core::graph::open::{NodeSpec, OpenMode, open};
use drystone_core::graph::options::from_filename;
use drystone_drivers::nvme::sim::{Sim, SimConfig, SimNamespace};
use drystone_exec_linux::{BackendKind, Client, Config, run};

const CLUSTER: u64 = 4096;
const CLUSTERS: u64 = 600;

fn spec(name: &str, format: &str) -> NodeSpec {
    let mode = OpenMode { writable: true, discard: true, ..OpenMode::default() };
    from_filename(name, Some(format), mode).expect("a legal name")
}

/// Writes clusters, discards every second, and reads, while what was discarded goes.
async fn work(client: &Client, name: &str) -> Result<()> {
    let raw = spec(name, "raw");
    let options = CreateOptions { cluster_size: CLUSTER, ..CreateOptions::new(CLUSTERS * CLUSTER) };
    let make = async move |io: Io| {
        let file = open(&io, &raw).await?;
        create(&io, file, &options).await?;
        io.close(file).await
    };
    client.run(make).await?;
    let disk = client.open(&spec(name, "qcow2")).await?;
    let mut data: BufList = client.buffer(CLUSTER as usize).into();
    for round in 0..4u8 {
        for cluster in 0..CLUSTERS {
            data.windows_mut()
                .iter_mut()
                .for_each(|window| window.fill(round.wrapping_add(cluster as u8) | 1));
            let (back, result) = disk.write(cluster * CLUSTER, data).await;
            result?;
            data = back;
        }
        disk.flush().await?;
        for cluster in (1..CLUSTERS).step_by(2) {
            disk.discard(cluster * CLUSTER, CLUSTER).await?;
        }
        disk.flush().await?;
        for cluster in 0..CLUSTERS {
            let (back, result) = disk.read(cluster * CLUSTER, data).await;
            result?;
            data = back;
            let expected = if cluster % 2 == 1 { 0 } else { round.wrapping_add(cluster as u8) | 1 };
            let same = data.windows().iter().all(|window| window.iter().all(|byte| *byte == expected));
            assert!(same, "round {round}, cluster {cluster}");
        }
    }
    disk.close().await
}

#[test]
fn on_a_polled_device_that_answers_when_it_likes() {
    let namespaces = vec![SimNamespace::new(4096, 16 << 20)];
    let sim = Sim::threaded(SimConfig { namespaces, ..SimConfig::default() });
    sim.register("alone_threaded");
    let work = async |client: Client| work(&client, "nvme://sim:alone_threaded/1").await;
    run(Config::default(), work).expect("the kernel has it all").expect("a controller without faults");
}

#[test]
fn on_a_polled_device_that_answers_when_it_is_looked_at() {
    let namespaces = vec![SimNamespace::new(4096, 16 << 20)];
    let sim = Sim::stepwise(SimConfig { namespaces, ..SimConfig::default() });
    sim.register("alone_stepwise");
    let work = async |client: Client| work(&client, "nvme://sim:alone_stepwise/1").await;
    run(Config::default(), work).expect("the kernel has it all").expect("a controller without faults");
}

/// More is begun for nobody than the ring has room for.
#[test]
fn on_a_file_through_a_small_ring() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = folder.path().join("disk");
    std::fs::write(&path, b"").expect("there is room");
    for backend in [BackendKind::Auto, BackendKind::Threads] {
        let config = Config { backend, ring_entries: 4, ..Config::default() };
        let work = async |client: Client| work(&client, path.to_str().expect("UTF-8")).await;
        run(config, work).expect("the kernel has it all").expect("a file on this host");
    }
}
