//! qcow2 images of more than one file, or with more in them than a disk; and images that come into being.

use drystone_core::engine::Io;
use drystone_core::error::{Error, Result};
use drystone_core::format::qcow2::CreateOptions;
use drystone_core::format::qcow2::check::check;
use drystone_core::graph::NodeId;
use drystone_core::graph::open::OpenMode;
use drystone_core::graph::options::from_filename;
use drystone_core::job::{ImageSpec, create};

use super::super::{look, qcow2_in};
use super::qcow2::{on, small};
use super::{KIB, Operation, TOP, by_qemu};
use crate::cases::{WRITABLE, stones};
use crate::world::World;

/// All of them.
pub(super) fn operations() -> Vec<Operation> {
    let mut world = World::new();
    world.add_file("base", &stones(40 * KIB));
    let backing = Some(("base".into(), Some("raw".into())));
    let version_2 = CreateOptions { version: 2, backing: backing.clone(), ..small(64 * KIB) };
    let above = CreateOptions { cluster_size: 4 * KIB, backing, ..CreateOptions::new(64 * KIB) };
    let apart = CreateOptions { data_file: Some("data".into()), ..small(32 * KIB) };
    let (bitmaps, unknown) = (bitmaps(), unknown_feature());
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
        // A unit of which the rest shows what is below is not zero as a whole.
        Operation::new("zeros of parts above a backing file", "qcow2", qcow2_in(world.clone(), &above))
            .doing(|guest| async move {
                guest.zero(5 * KIB, KIB, false).await?;
                guest.zero(45 * KIB, KIB, true).await?;
                guest.zero(38 * KIB + 512, 4 * KIB, false).await?;
                guest.flush().await
            }),
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
        // Who reads the data file as it is finds what a flush has covered.
        on("a data file that is read as it is", &CreateOptions { data_file_raw: true, ..apart.clone() })
            .after(|guest| async move { guest.write(0, 4 * KIB).await })
            .doing(|guest| async move {
                guest.zero(KIB, KIB, true).await?;
                guest.flush().await?;
                guest.promise(|world| {
                    match world.export("data")[1 << 10..2 << 10].iter().all(|byte| *byte == 0) {
                        true => Ok(()),
                        false => Err("the data file as it is lacks zeros that were flushed".into()),
                    }
                });
                guest.write(3 * KIB, 700).await?;
                guest.discard(2 * KIB, 512).await?;
                guest.flush().await
            }),
        emptied("an image with a data file is emptied", &apart),
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
    ]
}

/// An image that is emptied, above a file of the same bytes.
fn emptied(name: &'static str, options: &CreateOptions) -> Operation {
    let mut world = World::new();
    world.add_file("base", &stones(options.size));
    let above = CreateOptions { backing: Some(("base".into(), Some("raw".into()))), ..options.clone() };
    let operation = Operation::new(name, "qcow2", qcow2_in(world, &above))
        .after(|guest| async move { guest.write(KIB, 3 * KIB).await })
        .patched(|world| {
            let spec = from_filename(TOP, Some("qcow2"), OpenMode { writable: false, ..WRITABLE });
            let shown = look(world.clone(), spec.expect("a path")).expect("it was just made");
            world.add_file("base", &shown);
        });
    let below = operation.bytes_of("base");
    operation.doing(move |guest| {
        let below = below.clone();
        async move {
            guest.empty(&below).await?;
            guest.write(2 * KIB, 700).await?;
            guest.flush().await
        }
    })
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
