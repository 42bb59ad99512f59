//! Drystone's own subjects: one task a request in flight, on each executor.

use std::hint::black_box;
use std::io;
use std::pin::Pin;

use drystone_core::buf::{Buf, BufList};
use drystone_core::error::Result;
use drystone_core::format::qcow2::{CreateOptions, Qcow2Options, create};
use drystone_core::graph::open::{ChildSpec, DriverSpec, NodeSpec, OpenMode, open};
use drystone_core::intent::{Location, Preallocation};
use drystone_exec_tokio::{BackendKind, Client, Config, Image};

use crate::{BLOCK, CLUSTER, DEPTH, Random};

type Task = Pin<Box<dyn Future<Output = ()>>>;

/// The executors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Executor {
    /// tokio, one thread.
    Tokio,
    /// monoio.
    Monoio,
    /// glommio.
    Glommio,
}

/// What is done with an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// Reads blocks in no order.
    Reads(u64),
    /// Makes the image, of so many clusters, and writes all of them in order.
    Writes(u64),
    /// Makes an image of so many clusters of 4 KiB, and writes them in no order.
    Fragments(u64),
    /// Writes every second one of so many clusters of an image that is there.
    EverySecond(u64),
    /// Makes an image of 1 TiB with subclusters, and writes so many blocks of it, evenly spread.
    Extents(u64),
}

/// Puts the load on an image at `path`.
///
/// # Errors
/// The kernel's, or the image's.
pub fn run(executor: Executor, load: Load, path: &str) -> io::Result<()> {
    let config = Config { backend: BackendKind::IoUring, ..Config::default() };
    let done = match executor {
        Executor::Tokio => drystone_exec_tokio::run(config, async |client| {
            let spawn = |task| -> Task {
                let task = tokio::task::spawn_local(task);
                Box::pin(async { task.await.expect("no task panics") })
            };
            work(&client, load, path, spawn).await
        }),
        Executor::Monoio => drystone_exec_monoio::run(config, async |client| {
            let spawn = |task| -> Task { Box::pin(monoio::spawn(task)) };
            work(&client, load, path, spawn).await
        }),
        Executor::Glommio => drystone_exec_glommio::run(config, async |client| {
            let spawn = |task| -> Task { Box::pin(glommio::spawn_local(task)) };
            work(&client, load, path, spawn).await
        }),
    };
    done?.map_err(|error| io::Error::other(error.to_string()))
}

async fn work(client: &Client, load: Load, path: &str, spawn: impl Fn(Task) -> Task) -> Result<()> {
    match load {
        Load::Reads(_) | Load::EverySecond(_) => {}
        Load::Writes(clusters) => make(client, path, CreateOptions::new(clusters * CLUSTER as u64)).await?,
        Load::Fragments(clusters) => {
            let size = clusters * BLOCK as u64;
            make(client, path, CreateOptions { cluster_size: BLOCK as u64, ..CreateOptions::new(size) })
                .await?;
        }
        Load::Extents(_) => {
            make(client, path, CreateOptions { extended_l2: true, ..CreateOptions::new(1 << 40) }).await?;
        }
    }
    // As `qemu-img bench -t unsafe`: what is measured is the path of a request, not the disk below.
    let mode = OpenMode { writable: !matches!(load, Load::Reads(_)), no_flush: true, ..OpenMode::default() };
    let disk = client.open(&qcow2(path, mode)).await?;
    let tasks: Vec<_> = (0..DEPTH as u64).map(|n| spawn(Box::pin(requests(disk.clone(), load, n)))).collect();
    for task in tasks {
        task.await;
    }
    disk.close().await
}

fn qcow2(path: &str, mode: OpenMode) -> NodeSpec {
    let driver = DriverSpec::Qcow2 {
        file: Box::new(NodeSpec::file(path, mode)),
        backing: ChildSpec::None,
        data_file: ChildSpec::None,
        options: Qcow2Options::default(),
    };
    NodeSpec { node_name: None, mode, driver }
}

async fn make(client: &Client, path: &str, options: CreateOptions) -> Result<()> {
    let path = path.to_owned();
    client
        .run(async move |io| {
            io.create_leaf(&Location::Path(path.clone()), 0, Preallocation::Off).await?;
            let mode = OpenMode { writable: true, ..OpenMode::default() };
            let file = open(&io, &NodeSpec::file(path, mode)).await?;
            create(&io, file, &options).await?;
            io.close(file).await
        })
        .await
}

/// Task `n` of all: every [`DEPTH`]th request.
async fn requests(disk: Image, load: Load, n: u64) {
    let (mut random, len) = (Random::new(n + 1), disk.len());
    let (count, size) = match load {
        Load::Reads(count) => (count, BLOCK),
        Load::Writes(clusters) => (clusters, CLUSTER),
        Load::Fragments(count) | Load::Extents(count) => (count, BLOCK),
        Load::EverySecond(clusters) => (clusters / 2, CLUSTER),
    };
    let mut data = BufList::from(Buf::from(vec![0x5a; size]));
    for request in (n..count).step_by(DEPTH) {
        let (back, result) = match load {
            Load::Reads(_) => disk.read(random.block(len), data).await,
            Load::Writes(_) => disk.write(request * size as u64, data).await,
            // An odd factor visits every cluster once when their number is a power of two.
            Load::EverySecond(_) => disk.write(request * 2 * size as u64, data).await,
            Load::Extents(_) => disk.write(request * (len / count / size as u64 * size as u64), data).await,
            Load::Fragments(_) => disk.write(request * 0x9e37_79b1 % count * size as u64, data).await,
        };
        result.expect("a file on this host reads and writes");
        data = black_box(back);
    }
}
