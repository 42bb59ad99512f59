//! What a guest does with one qcow2 image: writes of all kinds, tables that grow, clusters that are freed.

use drystone_core::error::Result;
use drystone_core::format::qcow2::CreateOptions;

use super::super::{Do, qcow2};
use super::qcow2_upkeep::view;
use super::{Guest, KIB, Operation, TOP, by_qemu};
use crate::disk::DiscardEffect;
use crate::world::World;

/// All of them.
pub(super) fn operations() -> Vec<Operation> {
    [data(), large_sectors(), tables(), clusters()].into_iter().flatten().collect()
}

/// Clusters of 512 bytes: an L2 table maps 32 KiB of the disk, and a refcount block counts 128 KiB of the file.
pub(super) fn small(size: u64) -> CreateOptions {
    CreateOptions { cluster_size: 512, ..CreateOptions::new(size) }
}

/// A refcount block counts 32 KiB of the file.
fn wide_refcounts(size: u64) -> CreateOptions {
    CreateOptions { refcount_bits: 64, ..small(size) }
}

pub(super) fn on(name: &'static str, options: &CreateOptions) -> Operation {
    Operation::new(name, "qcow2", qcow2(options))
}

/// A guest's request in a [`short_plans`] plan.
#[derive(Clone, Copy, Debug)]
pub enum Short {
    /// A write of a cluster and a half.
    Write,
    /// A write that shares a cluster with the first one.
    Overlap,
    /// A compressed write of the first cluster.
    Compress,
    /// Zeros, and the space is given up.
    Zero,
    /// A discard.
    Discard,
    /// A flush.
    Flush,
}

/// Every plan of three requests to one place, on an image with something in it: what a crash between any two of their
/// intents leaves must be in order whatever they are.
pub fn short_plans() -> impl Iterator<Item = ([Short; 3], Operation)> {
    const ALL: [Short; 6] =
        [Short::Write, Short::Overlap, Short::Compress, Short::Zero, Short::Discard, Short::Flush];
    let number = 0..ALL.len().pow(3);
    let image = qcow2(&small(16 * KIB));
    number.map(move |number| {
        let plan = [0, 1, 2].map(|place| ALL[number / ALL.len().pow(place) % ALL.len()]);
        let operation = Operation::new("a short plan", "qcow2", image.clone())
            .after(|guest| async move { guest.write(512, 1024).await })
            .doing(move |guest| async move {
                for request in plan {
                    match request {
                        Short::Write => guest.write(0, 768).await?,
                        Short::Overlap => guest.write(700, 400).await?,
                        Short::Compress => guest.write_compressed(0, 512).await?,
                        Short::Zero => guest.zero(0, 1024, true).await?,
                        Short::Discard => guest.discard(512, 512).await?,
                        Short::Flush => guest.flush().await?,
                    }
                }
                Ok(())
            });
        (plan, operation)
    })
}

async fn write_and_flush(guest: Guest) -> Result<()> {
    guest.write(KIB, 3 * KIB).await?;
    guest.flush().await?;
    guest.write(40 * KIB, KIB).await?;
    guest.write(700, 100).await?;
    guest.flush().await
}

/// Writes of all kinds.
fn data() -> Vec<Operation> {
    let four = CreateOptions { cluster_size: 4 * KIB, ..CreateOptions::new(64 * KIB) };
    let subclusters =
        CreateOptions { cluster_size: 16 * KIB, extended_l2: true, ..CreateOptions::new(128 * KIB) };
    let lazy = CreateOptions { lazy_refcounts: true, ..small(64 * KIB) };
    vec![
        on("allocating write", &small(64 * KIB)).doing(write_and_flush),
        on("allocating write, clusters of 4 KiB", &four).doing(write_and_flush),
        on("allocating write, lazy refcounts", &lazy).doing(write_and_flush),
        on("allocating writes at once", &small(64 * KIB)).doing(|guest| async move {
            guest
                .at_once(&[
                    Do::Write(0, 1024),
                    Do::Write(2048, 512),
                    Do::Write(33 * KIB, 600),
                    Do::Write(60 * KIB, 512),
                ])
                .await?;
            guest.flush().await?;
            guest.at_once(&[Do::Write(512, 1024), Do::Write(34 * KIB, 512)]).await
        }),
        on("any requests", &small(64 * KIB)).doing(|guest| async move { guest.anything(12, 3000).await }),
        on("durable writes", &small(64 * KIB)).doing(|guest| async move {
            guest.write_through(0, 512).await?;
            guest.write_through(0, 512).await?;
            guest.write_through(512, 512).await
        }),
        on("overwrite", &four).after(|guest| async move { guest.write(0, 16 * KIB).await }).doing(
            |guest| async move {
                guest.write(512, 1024).await?;
                guest.flush().await?;
                guest.write(1024, 2048).await
            },
        ),
        on("copy-on-write with subclusters", &subclusters)
            .after(|guest| async move { guest.write(0, 20 * KIB).await })
            .doing(|guest| async move {
                guest.write(34 * KIB, 700).await?;
                guest.flush().await?;
                guest.zero(512, 1024, false).await?;
                guest.write(100, 600).await?;
                guest.flush().await
            }),
    ]
}

/// The same where the host keeps or loses 4096 bytes as one, and takes no fewer.
fn large_sectors() -> Vec<Operation> {
    let four = CreateOptions { cluster_size: 4 * KIB, ..CreateOptions::new(64 * KIB) };
    vec![
        on("allocating write, sectors of 4 KiB", &small(64 * KIB)).on_large_sectors().doing(write_and_flush),
        on("allocating write, clusters and sectors of 4 KiB", &four)
            .on_large_sectors()
            .doing(write_and_flush),
        on("writes at once, sectors of 4 KiB", &small(64 * KIB)).on_large_sectors().doing(
            |guest| async move {
                guest.at_once(&[Do::Write(0, 1024), Do::Write(2048, 512), Do::Write(33 * KIB, 600)]).await?;
                guest.flush().await?;
                guest.at_once(&[Do::Write(512, 1024), Do::Write(34 * KIB, 512)]).await
            },
        ),
        on("overwrite, sectors of 4 KiB", &four)
            .after(|guest| async move { guest.write(0, 16 * KIB).await })
            .on_large_sectors()
            .doing(|guest| async move {
                guest.write(512, 1024).await?;
                guest.flush().await?;
                guest.write(1024, 6 * KIB).await
            }),
        on("any requests, sectors of 4 KiB", &small(64 * KIB))
            .on_large_sectors()
            .doing(|guest| async move { guest.anything(12, 3000).await }),
    ]
}

/// Tables that grow, move or are copied.
fn tables() -> Vec<Operation> {
    let below_snapshot = Operation::new("writes below a snapshot", "qcow2", snapshot());
    let before = view(&below_snapshot, "before");
    vec![
        on("new L2 tables", &small(128 * KIB)).doing(|guest| async move {
            for table in 0..4 {
                guest.write(table * 32 * KIB, 512).await?;
            }
            guest.flush().await
        }),
        on("new L2 tables where other things were", &small(128 * KIB)).patched(leave_stale_space).doing(
            |guest| async move {
                guest.write(700, 100).await?;
                guest.write(64 * KIB, 512).await?;
                guest.flush().await
            },
        ),
        // A commit finds tables whose entries are still to come.
        on("flushes while tables are made", &small(128 * KIB)).patched(leave_stale_space).doing(
            |guest| async move {
                guest.write(0, 512).await?;
                guest.at_once(&[Do::Write(33 * KIB, KIB), Do::FlushOften, Do::Write(65 * KIB, KIB)]).await?;
                guest.at_once(&[Do::FlushOften, Do::Write(100 * KIB, KIB), Do::Write(KIB, KIB)]).await
            },
        ),
        on("new refcount blocks", &wide_refcounts(64 * KIB)).doing(|guest| async move {
            for piece in 0..5 {
                guest.write(piece * 9 * KIB, 8 * KIB).await?;
                guest.flush().await?;
            }
            Ok(())
        }),
        on("a larger refcount table", &wide_refcounts(64 * KIB)).patched(fill_refcount_table).doing(
            |guest| async move {
                guest.write(0, 6 * KIB).await?;
                guest.flush().await?;
                guest.write(32 * KIB, 2 * KIB).await?;
                guest.flush().await
            },
        ),
        below_snapshot.with_view(before).doing(|guest| async move {
            guest.write(0, 1536).await?;
            guest.flush().await?;
            guest.discard(4 * KIB, KIB).await?;
            guest.write(34 * KIB, 512).await?;
            guest.flush().await
        }),
    ]
}

/// Clusters that become zero, compressed or free.
fn clusters() -> Vec<Operation> {
    let filled = |guest: Guest| async move { guest.write(0, 12 * KIB).await };
    vec![
        on("zeros", &small(64 * KIB)).after(filled).doing(|guest| async move {
            guest.zero(1024, 2048, false).await?;
            guest.zero(4 * KIB, 2 * KIB, true).await?;
            guest.flush().await?;
            guest.zero(700, 100, true).await?;
            guest.write(1024, 512).await?;
            guest.flush().await
        }),
        // What is not stored becomes zero as a whole unit, what is gets zeros as data.
        on("zeros of parts", &CreateOptions { cluster_size: 4 * KIB, ..CreateOptions::new(64 * KIB) })
            .after(filled)
            .doing(|guest| async move {
                guest.zero(21 * KIB, KIB, false).await?;
                guest.zero(11 * KIB, 7 * KIB, true).await?;
                guest.flush().await?;
                guest.zero(700, 300, true).await?;
                guest.write(21 * KIB, 512).await?;
                guest.flush().await
            }),
        on("discard", &small(64 * KIB)).after(filled).doing(|guest| async move {
            guest.discard(1024, 2048).await?;
            guest.flush().await?;
            guest.discard(6 * KIB, KIB).await?;
            guest.flush().await
        }),
        // What the host leaves of what is given up must not show where a cluster is used again.
        on("discard where the host keeps anything", &small(64 * KIB))
            .after(filled)
            .patched(|world| {
                world.disk_mut(TOP).expect("it was made").config.discard = DiscardEffect::Anything;
            })
            .doing(|guest| async move {
                guest.discard(0, 2 * KIB).await?;
                guest.flush().await?;
                guest.write(20 * KIB + 100, 300).await?;
                guest.zero(4 * KIB, KIB, true).await?;
                guest.flush().await?;
                guest.write(40 * KIB + 700, 700).await
            }),
        on("freed clusters used again", &small(64 * KIB)).after(filled).doing(|guest| async move {
            guest.discard(0, 2 * KIB).await?;
            guest.flush().await?;
            guest.write(20 * KIB, 2 * KIB).await?;
            guest.discard(4 * KIB, KIB).await?;
            guest.flush().await?;
            guest.write(40 * KIB, 2 * KIB).await?;
            guest.flush().await
        }),
        on("compressed write", &CreateOptions { cluster_size: 4 * KIB, ..CreateOptions::new(64 * KIB) })
            .after(|guest| async move { guest.write(0, 6 * KIB).await })
            .doing(|guest| async move {
                guest.write_compressed(0, 4 * KIB).await?;
                guest.write_compressed(16 * KIB, 8 * KIB).await?;
                guest.flush().await?;
                guest.write(17 * KIB, 512).await?;
                guest.write_compressed(20 * KIB, 4 * KIB).await?;
                guest.flush().await
            }),
    ]
}

/// An image of QEMU's with a snapshot that shares clusters and tables with the disk.
fn snapshot() -> World {
    by_qemu(&[
        "qemu-img create -f qcow2 -o cluster_size=512 top 64k",
        "qemu-io -f qcow2 -c 'write -P 17 0 12k' -c 'write -P 18 33k 3k' top",
        "qemu-img snapshot -c before top",
    ])
}

/// Lengthens the file by bytes that nothing points to, as clusters leave them that were freed: they must never show.
pub(super) fn leave_stale_space(world: &mut World) {
    let disk = world.disk(TOP).expect("it was made");
    let (mut file, config) = (disk.view().clone(), disk.config.clone());
    file.write(file.len().next_multiple_of(512), &[0xee; 64 << 10]);
    world.add_disk(TOP, config, file);
}

/// Has every entry of the refcount table in use, and nearly every cluster that they count, so that the next few
/// clusters need a larger table. They are a snapshot's, of zeros: a check of leaks would take longer than all else.
fn fill_refcount_table(world: &mut World) {
    const CLUSTER: u64 = 512;
    /// Clusters that a block counts, with 64 bits each, and entries of a table of one cluster.
    const PER_BLOCK: u64 = 64;
    const ENTRIES: u64 = 64;
    const FREE: u64 = 8;
    let disk = world.disk(TOP).expect("it was made");
    let (mut file, config) = (disk.view().clone(), disk.config.clone());
    let number = |at: u64| u64::from_be_bytes(file.bytes(at, 8).try_into().expect("eight bytes"));
    let table = number(48);
    let first = number(table);
    // Behind what there is: the other blocks, the snapshot table, its L1 table, its L2 tables, and what those name.
    let blocks = file.len().div_ceil(CLUSTER);
    let snapshots = blocks + ENTRIES - 1;
    let (l1, tables, end) = (snapshots + 1, snapshots + 2, ENTRIES * PER_BLOCK - FREE);
    let first_data = tables + (end - tables).div_ceil(CLUSTER / 8 + 1);
    for entry in 0..ENTRIES {
        let block = if entry == 0 { first } else { (blocks + entry - 1) * CLUSTER };
        let used = if entry == ENTRIES - 1 { PER_BLOCK - FREE } else { PER_BLOCK };
        let counts: Vec<u8> =
            (0..PER_BLOCK).flat_map(|index| u64::from(index < used).to_be_bytes()).collect();
        file.write(table + entry * 8, &block.to_be_bytes());
        file.write(block, &counts);
    }
    file.write(60, &1_u32.to_be_bytes());
    file.write(64, &(snapshots * CLUSTER).to_be_bytes());
    file.write(snapshots * CLUSTER, &snapshot_of_zeros(l1 * CLUSTER, (first_data - tables) as u32));
    let places = |clusters: std::ops::Range<u64>, flag: u64| -> Vec<u8> {
        clusters.flat_map(|cluster| ((cluster * CLUSTER) | flag).to_be_bytes()).collect()
    };
    file.write(l1 * CLUSTER, &places(tables..first_data, 0));
    file.write(tables * CLUSTER, &places(first_data..end, ZERO));
    file.set_len(end * CLUSTER);
    world.add_disk(TOP, config, file);
}

/// Bit of an L2 entry: it reads as zeros, whatever it names.
const ZERO: u64 = 1;

/// The entry of a snapshot with an L1 table of so many entries. Source: [qcow2] "Snapshots".
fn snapshot_of_zeros(l1: u64, entries: u32) -> Vec<u8> {
    const EXTRA_LEN: usize = 16;
    let mut entry = vec![0; 40 + EXTRA_LEN];
    entry[..8].copy_from_slice(&l1.to_be_bytes());
    entry[8..12].copy_from_slice(&entries.to_be_bytes());
    // One byte of each, the id and the name.
    (entry[13], entry[15], entry[39]) = (1, 1, EXTRA_LEN as u8);
    entry[48..56].copy_from_slice(&(u64::from(entries) * 32 * KIB).to_be_bytes());
    entry.extend(*b"1s");
    entry.resize(entry.len().next_multiple_of(8), 0);
    entry
}
