//! The operations that are explored. One more is one more entry: an image, and what is done with it.

use drystone_core::engine::Io;
use drystone_core::error::{Error, Result};
use drystone_core::format::qcow2::CreateOptions;
use drystone_core::format::qcow2::check::check;
use drystone_core::format::vdi::CreateOptions as CreateVdi;
use drystone_core::graph::open::{NodeSpec, OpenMode, open};
use drystone_core::graph::options::from_filename;
use drystone_core::graph::{NodeId, Preallocate};
use drystone_core::intent::Preallocation;
use drystone_core::job::{Convert, Count, ImageSpec, convert, create};
use std::rc::Rc;

use super::jobs::jobs;
use super::operation::{Do, Guest, Operation, TOP, image_in, qcow2, qcow2_in};
use super::repairs::repairs;
use super::two_level::two_level;
use super::upkeep::{upkeep, view};
use super::vmdk::vmdk;
use crate::cases::{WRITABLE, stones};
use crate::qemu::Folder;
use crate::world::World;

const KIB: u64 = 1 << 10;

/// Clusters of 512 bytes: an L2 table maps 32 KiB of the disk, and a refcount block counts 128 KiB of the file.
fn small(size: u64) -> CreateOptions {
    CreateOptions { cluster_size: 512, ..CreateOptions::new(size) }
}

/// A refcount block counts 32 KiB of the file.
fn wide_refcounts(size: u64) -> CreateOptions {
    CreateOptions { refcount_bits: 64, ..small(size) }
}

fn on(name: &'static str, options: &CreateOptions) -> Operation {
    Operation::new(name, "qcow2", qcow2(options))
}

/// All of them.
///
/// # Panics
/// When an image cannot be made.
pub fn all() -> Vec<Operation> {
    [data(), tables(), clusters(), files(), raw(), vdi(), vmdk(), two_level(), upkeep(), repairs(), jobs()]
        .into_iter()
        .flatten()
        .collect()
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

/// Writes of all kinds.
fn data() -> Vec<Operation> {
    let four = CreateOptions { cluster_size: 4 * KIB, ..CreateOptions::new(64 * KIB) };
    let subclusters =
        CreateOptions { cluster_size: 16 * KIB, extended_l2: true, ..CreateOptions::new(128 * KIB) };
    let lazy = CreateOptions { lazy_refcounts: true, ..small(64 * KIB) };
    let write_and_flush = |guest: Guest| async move {
        guest.write(KIB, 3 * KIB).await?;
        guest.flush().await?;
        guest.write(40 * KIB, KIB).await?;
        guest.write(700, 100).await?;
        guest.flush().await
    };
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
        on("discard", &small(64 * KIB)).after(filled).doing(|guest| async move {
            guest.discard(1024, 2048).await?;
            guest.flush().await?;
            guest.discard(6 * KIB, KIB).await?;
            guest.flush().await
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

/// More than one file.
fn files() -> Vec<Operation> {
    let mut world = World::new();
    world.add_file("base", &stones(40 * KIB));
    let backing = Some(("base".into(), Some("raw".into())));
    let version_2 = CreateOptions { version: 2, backing: backing.clone(), ..small(64 * KIB) };
    let above = CreateOptions { cluster_size: 4 * KIB, backing, ..CreateOptions::new(64 * KIB) };
    let apart = CreateOptions { data_file: Some("data".into()), ..small(32 * KIB) };
    let (bitmaps, unknown) = (bitmaps(), unknown_feature());
    let source = stones(48 * KIB);
    let mut converting = World::new();
    converting.add_file("source", &source);
    vec![
        Operation::new("copy-on-write above a backing file", "qcow2", qcow2_in(world.clone(), &above)).doing(
            |guest| async move {
                guest.write(5 * KIB, KIB).await?;
                guest.flush().await?;
                guest.zero(8 * KIB, 4 * KIB, true).await?;
                guest.discard(12 * KIB, 4 * KIB).await?;
                guest.write(39 * KIB, 2 * KIB).await?;
                guest.flush().await
            },
        ),
        // What is below must not come back from under what is given up.
        Operation::new(
            "discard above a backing file, version 2",
            "qcow2",
            qcow2_in(world.clone(), &version_2),
        )
        .doing(|guest| async move {
            guest.write(0, 2 * KIB).await?;
            guest.flush().await?;
            guest.discard(512, KIB).await?;
            guest.flush().await
        }),
        // What the data file held before must never show, and its flushes count as much as the image's own.
        on("data in a file of its own", &apart)
            .patched(|world| world.add_file("data", &[0xee; 32 << 10]))
            .doing(|guest| async move {
                guest.write(0, 1536).await?;
                guest.flush().await?;
                guest.discard(512, 512).await?;
                guest.write(700, 100).await?;
                guest.write(8 * KIB, 700).await?;
                guest.flush().await
            }),
        Operation::new("dirty bitmaps", "qcow2", bitmaps.clone())
            .holding(stale_bitmaps(bitmaps.export(TOP)))
            .doing(|guest| async move { guest.write(0, KIB).await }),
        Operation::new("a feature that this writer does not know", "qcow2", unknown.clone())
            .holding(stale_feature(unknown.export(TOP)))
            .doing(|guest| async move { guest.write(0, KIB).await }),
        on("check", &small(64 * KIB))
            .after(|guest| async move { guest.write(0, 12 * KIB).await })
            .reading()
            .doing(|guest| async move { checked(&guest.io(), guest.node()).await }),
        Operation::making("create", "qcow2", World::new(), &[0; 64 << 10])
            .doing(|guest| async move { create(&guest.io(), TOP, &ImageSpec::Qcow2(small(64 * KIB))).await }),
        Operation::making("convert", "qcow2", converting.clone(), &source)
            .doing(|guest| async move { converted(&guest.io(), false).await }),
        Operation::making("convert, compressed", "qcow2", converting, &source)
            .doing(|guest| async move { converted(&guest.io(), true).await }),
    ]
}

/// Files that are disks as they are.
fn raw() -> Vec<Operation> {
    let world = || {
        let mut world = World::new();
        world.add_file(TOP, &stones(32 * KIB));
        world
    };
    vec![
        Operation::new("writes", "raw", world()).doing(|guest| async move {
            guest.at_once(&[Do::Write(0, 1024), Do::Write(4096, 2000)]).await?;
            guest.flush().await?;
            guest.zero(8 * KIB, 2 * KIB, true).await?;
            guest.write_through(512, 512).await
        }),
        Operation::new("resize", "raw", world()).doing(|guest| async move {
            guest.write(0, 512).await?;
            guest.resize(40 * KIB, Preallocate::Off).await?;
            guest.flush().await
        }),
    ]
}

/// Images of another format: blocks of 1 MiB, and a map of them.
fn vdi() -> Vec<Operation> {
    let spec =
        || ImageSpec::Vdi(CreateVdi { size: 2 << 20, fixed: false, preallocation: Preallocation::Off });
    vec![
        Operation::new("new blocks of a VDI image", "vdi", image_in(World::new(), &spec())).doing(
            |guest| async move {
                guest.write(700, KIB).await?;
                guest.flush().await?;
                guest.write(1500 * KIB, 512).await?;
                guest.flush().await
            },
        ),
        Operation::making("create a VDI image", "vdi", World::new(), &[0; 2 << 20])
            .doing(move |guest| async move { create(&guest.io(), TOP, &spec()).await }),
    ]
}

/// Checks an image; what cannot be checked is an error.
async fn checked(io: &Io, node: NodeId) -> Result<()> {
    let mut findings = Vec::new();
    let report = check(io, node, &mut |line| findings.push(line), &|_, _| {}).await?;
    match report.check_errors {
        0 => Ok(()),
        _ => Err(Box::new(Error::Options(format!("{}: {}", io.title(node), findings.join("; "))))),
    }
}

/// Copies `source` into a new image.
async fn converted(io: &Io, compress: bool) -> Result<()> {
    let options = CreateOptions { cluster_size: 4 * KIB, ..CreateOptions::new(48 * KIB) };
    create(io, TOP, &ImageSpec::Qcow2(options)).await?;
    let source = open(io, &NodeSpec::raw(NodeSpec::file("source", OpenMode::default()))).await?;
    let copied = match open(io, &from_filename(TOP, Some("qcow2"), WRITABLE)?).await {
        Ok(target) => {
            let copied = copy(io, source, target, compress).await;
            let closed = io.close(target).await;
            copied.and(closed)
        }
        Err(error) => Err(error),
    };
    let closed = io.close(source).await;
    copied.and(closed)
}

/// Copies one open image into another.
pub(super) async fn copy(io: &Io, source: NodeId, target: NodeId, compress: bool) -> Result<()> {
    let plan = Convert {
        above: None,
        sources: vec![source],
        target,
        compress,
        sparse: 4 * KIB,
        workers: 4,
        out_of_order: true,
        target_is_zero: true,
        target_has_backing: false,
        backing_len: 0,
        copy_range: false,
        salvage: false,
        rate: 0,
        count: Count::Disk,
    };
    convert(io, &plan, Rc::new(|_, _| {}), &|| false).await.map_err(|stopped| stopped.source)
}

/// An image of QEMU's with a snapshot that shares clusters and tables with the disk.
fn snapshot() -> World {
    by_qemu(&[
        "qemu-img create -f qcow2 -o cluster_size=512 top 64k",
        "qemu-io -f qcow2 -c 'write -P 17 0 12k' -c 'write -P 18 33k 3k' top",
        "qemu-img snapshot -c before top",
    ])
}

/// An image of QEMU's with a bitmap, whose autoclear bit says that the bitmap is up to date.
pub(super) fn bitmaps() -> World {
    by_qemu(&[
        "qemu-img create -f qcow2 -o cluster_size=4k top 64k",
        "qemu-io -f qcow2 -c 'write -P 17 0 12k' top",
        "qemu-img bitmap --add -g 4k top dirty",
    ])
}

/// A bitmap that is called up to date while it lacks a change loses data in the next incremental backup.
fn stale_bitmaps(before: Vec<u8>) -> impl Fn(&World) -> std::result::Result<(), String> {
    let disk = |file: &[u8]| file.get(5 * 4096..6 * 4096).unwrap_or_default().to_vec();
    let before = disk(&before);
    move |world| {
        let file = world.export(TOP);
        match disk(&file) == before || first_bit(&file) != Some(false) {
            true => Ok(()),
            false => Err("a bitmap is called up to date, and lacks a change".into()),
        }
    }
}

/// The first bit of the only bitmap; none where the bitmap is not called up to date.
/// Source: [qcow2] "Bitmaps extension", "Bitmap directory".
fn first_bit(file: &[u8]) -> Option<bool> {
    const BITMAPS: u32 = 0x2385_2875;
    let word = |at: usize| u32::from_be_bytes(file[at..at + 4].try_into().expect("four bytes"));
    let long = |at: usize| u64::from_be_bytes(file[at..at + 8].try_into().expect("eight bytes"));
    let mut at = word(100) as usize;
    while word(at) != BITMAPS {
        if word(at) == 0 {
            return None;
        }
        at += 8 + (word(at + 4) as usize).next_multiple_of(8);
    }
    let directory = long(at + 24) as usize;
    if file[AUTOCLEAR] & 1 == 0 || word(directory + 12) & 1 == 1 {
        return None;
    }
    let entry = long(long(directory) as usize);
    match entry & 0x00ff_ffff_ffff_fe00 {
        0 => Some(entry & 1 == 1),
        bits => Some(file[bits as usize] & 1 == 1),
    }
}

/// An image with a feature of its own, which says that all of it is up to date.
fn unknown_feature() -> World {
    let mut world = by_qemu(&[
        "qemu-img create -f qcow2 -o cluster_size=4k top 64k",
        "qemu-io -f qcow2 -c 'write -P 17 0 12k' top",
    ]);
    let mut file = world.export(TOP);
    file[AUTOCLEAR] |= 0x80;
    world.add_file(TOP, &file);
    world
}

fn stale_feature(before: Vec<u8>) -> impl Fn(&World) -> std::result::Result<(), String> {
    let rest = |file: &[u8]| file.get(4 * KIB as usize..).unwrap_or_default().to_vec();
    let before = rest(&before);
    move |world| {
        let file = world.export(TOP);
        match file[AUTOCLEAR] & 0x80 == 0 || rest(&file) == before {
            true => Ok(()),
            false => Err("a feature is called up to date, and the image has changed".into()),
        }
    }
}

/// The last byte of the autoclear bits. Source: [qcow2] "Header".
const AUTOCLEAR: usize = 95;

/// What command lines of QEMU's tools make.
///
/// # Panics
/// When they fail.
pub(super) fn by_qemu(commands: &[&str]) -> World {
    let folder = Folder::new();
    for command in commands {
        let words = crate::qemu::words(command);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        folder.run(&words).unwrap_or_else(|report| panic!("{report}"));
    }
    let mut world = World::new();
    for (name, content) in folder.files().expect("they were just made") {
        world.add_disk(&name, world.default_config.clone(), content);
    }
    world
}

/// Lengthens the file by bytes that nothing points to, as clusters leave them that were freed: they must never show.
pub(super) fn leave_stale_space(world: &mut World) {
    let disk = world.disk(TOP).expect("it was made");
    let (mut file, config) = (disk.view().clone(), disk.config.clone());
    file.write(file.len().next_multiple_of(512), &[0xee; 64 << 10]);
    world.add_disk(TOP, config, file);
}

/// Has every entry of the refcount table in use, and nearly every cluster that they count, so that the next few
/// clusters need a larger table. The clusters are leaked ones; the file is mostly a hole.
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
    for entry in 0..ENTRIES {
        let block = if entry == 0 { first } else { entry * PER_BLOCK * CLUSTER };
        let used = if entry == ENTRIES - 1 { PER_BLOCK - FREE } else { PER_BLOCK };
        let counts: Vec<u8> =
            (0..PER_BLOCK).flat_map(|index| u64::from(index < used).to_be_bytes()).collect();
        file.write(table + entry * 8, &block.to_be_bytes());
        file.write(block, &counts);
    }
    file.set_len((ENTRIES * PER_BLOCK - FREE) * CLUSTER);
    world.add_disk(TOP, config, file);
}
