//! Operations on VMDK images: grains of 64 KiB, their tables and the copies of those, and the content ID.

use drystone_core::engine::Io;
use drystone_core::error::Result;
use drystone_core::format::vmdk::{CreateOptions, Subformat};
use drystone_core::graph::open::{NodeSpec, OpenMode, open};
use drystone_core::graph::options::from_filename;
use drystone_core::job::{ImageSpec, create};

use super::super::image_in;
use super::jobs::copy;
use super::{KIB, Operation, TOP};
use crate::cases::{WRITABLE, stones};
use crate::world::World;

/// Bytes of a grain.
const GRAIN: u64 = 64 * KIB;

fn options(subformat: Subformat) -> CreateOptions {
    CreateOptions { subformat, ..CreateOptions::new(4 * GRAIN) }
}

fn on(name: &'static str, options: CreateOptions) -> Operation {
    Operation::new(name, "vmdk", image_in(World::new(), &ImageSpec::Vmdk(options)))
}

fn making(name: &'static str, subformat: Subformat) -> Operation {
    let disk = vec![0; 4 * GRAIN as usize];
    Operation::making(name, "vmdk", World::new(), &disk).doing(move |guest| async move {
        create(&guest.io(), TOP, &ImageSpec::Vmdk(options(subformat))).await
    })
}

/// All of them.
pub(super) fn operations() -> Vec<Operation> {
    let zeroed = CreateOptions { zeroed_grain: true, ..options(Subformat::MonolithicSparse) };
    vec![
        told(on("new grains of a VMDK image", options(Subformat::MonolithicSparse))).doing(
            |guest| async move {
                guest.write(700, KIB).await?;
                guest.flush().await?;
                guest.write(150 * KIB, 512).await?;
                guest.flush().await
            },
        ),
        told(
            on("overwrite of a VMDK grain", options(Subformat::MonolithicSparse))
                .after(|guest| async move { guest.write(0, GRAIN).await }),
        )
        .doing(|guest| async move {
            guest.write(KIB, KIB).await?;
            guest.flush().await
        }),
        told(on("zeroed grains of a VMDK image", zeroed)).doing(|guest| async move {
            guest.zero(0, 2 * GRAIN, true).await?;
            guest.flush().await?;
            guest.write(512, 512).await?;
            guest.flush().await
        }),
        Operation::making("convert to a compressed VMDK image", "vmdk", source(), &stones(4 * GRAIN))
            .doing(|guest| async move { converted(&guest.io()).await }),
        told(stale()).doing(|guest| async move {
            guest.write(3 * GRAIN, 512).await?;
            guest.flush().await
        }),
        on("grains of a VMDK extent", options(Subformat::TwoGbMaxExtentSparse)).doing(|guest| async move {
            guest.write(700, KIB).await?;
            guest.flush().await?;
            guest.write(GRAIN, 512).await
        }),
        making("create a VMDK image", Subformat::MonolithicSparse),
        making("create a VMDK image of several files", Subformat::TwoGbMaxExtentSparse),
        making("create a flat VMDK image", Subformat::TwoGbMaxExtentFlat),
    ]
}

/// A world with a file to copy.
fn source() -> World {
    let mut world = World::new();
    world.add_file("source", &stones(4 * GRAIN));
    world
}

/// Copies it into a new image of compressed grains.
async fn converted(io: &Io) -> Result<()> {
    create(io, TOP, &ImageSpec::Vmdk(options(Subformat::StreamOptimized))).await?;
    let source = open(io, &NodeSpec::raw(NodeSpec::file("source", OpenMode::default()))).await?;
    let copied = match open(io, &from_filename(TOP, Some("vmdk"), WRITABLE)?).await {
        Ok(target) => {
            let copied = copy(io, source, target, true).await;
            let closed = io.close(target).await;
            copied.and(closed)
        }
        Err(error) => Err(error),
    };
    let closed = io.close(source).await;
    copied.and(closed)
}

/// An image whose last writer went away between a grain table and its copy.
fn stale() -> Operation {
    let operation = on("a VMDK image whose writer went away", options(Subformat::MonolithicSparse));
    operation.after(|guest| async move { guest.write(0, GRAIN).await }).patched(|world| {
        let mut bytes = world.disk(TOP).expect("it was made").view().to_vec();
        let copy = Tables::of(&bytes).copy;
        bytes[copy..copy + 4].fill(0);
        bytes[MARK] = 1;
        world.add_file(TOP, &bytes);
    })
}

/// The header's byte that says that somebody writes. Source: the sheet of `SparseHeader`.
const MARK: usize = 72;

/// Where the first grain table and its copy are.
struct Tables {
    table: usize,
    copy: usize,
}

impl Tables {
    fn of(bytes: &[u8]) -> Self {
        let word =
            |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes")) as usize * 512;
        Self { table: word(word(56)), copy: word(word(48)) }
    }
}

/// Adds what must hold whenever the power goes: what differs from before has another content ID, tables that differ from
/// their copies are marked, and no copy is newer than its table.
fn told(operation: Operation) -> Operation {
    // One that no writer of the simulator takes, whose entropy is always the same.
    const CID: &[u8] = b"CID=11111111";
    let operation = operation.patched(|world| {
        let mut bytes = world.disk(TOP).expect("it was made").view().to_vec();
        let at = bytes.windows(4).position(|four| four == &CID[..4]).expect("a descriptor has one");
        bytes[at..at + CID.len()].copy_from_slice(CID);
        world.add_file(TOP, &bytes);
    });
    let before = operation.bytes_of(TOP);
    operation.holding(move |world| {
        let bytes = world.disk(TOP).ok_or("no image")?.view().to_vec();
        let Tables { table, copy } = Tables::of(&before);
        // One grain table of two KiB; of that, four grains.
        let (tables, copies) = (&bytes[table..table + 16], &bytes[copy..copy + 16]);
        let grains = |bytes: &[u8]| bytes[before.len().min(bytes.len())..].to_vec();
        let old_grains = bytes.get(GRAIN as usize..before.len()).unwrap_or_default();
        let changed = tables != &before[table..table + 16]
            || old_grains != &before[GRAIN as usize..]
            || grains(&bytes).iter().any(|byte| *byte != 0);
        let descriptor = 512..512 + 128;
        if changed && bytes[descriptor.clone()] == before[descriptor] {
            return Err("data changed, and the content ID is the old one".into());
        }
        if tables != copies && bytes[MARK] == 0 {
            return Err("a grain table differs from its copy, and nothing says so".into());
        }
        // An entry is nothing at first, then perhaps zeros, and then a grain for good.
        let ages = |bytes: &[u8]| {
            let entries =
                bytes.chunks_exact(4).map(|four| u32::from_le_bytes(four.try_into().expect("four bytes")));
            entries.map(|entry| entry.min(2)).collect::<Vec<_>>()
        };
        if ages(copies).iter().zip(ages(tables)).any(|(copy, table)| *copy > table) {
            return Err("the copy of a grain table is newer than the table".into());
        }
        Ok(())
    })
}
