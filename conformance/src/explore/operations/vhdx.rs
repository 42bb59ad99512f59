//! Operations on VHDX images: blocks of 1 MiB, a BAT and sector bitmaps that change through the log, and parents.

use drystone_core::buf::Buf;
use drystone_core::format::HostOffset;
use drystone_core::format::vhdx::layout::{
    BitmapEntry, EntryHeader, Guid, HEADER_LEN, HEADERS_AT, Header, MIB, PayloadEntry, SECTOR, current,
    encode_entry,
};
use drystone_core::format::vhdx::{CreateOptions, Parent, Vhdx};
use drystone_core::graph::Preallocate;
use drystone_core::graph::open::{OpenMode, open};
use drystone_core::graph::options::from_filename;
use drystone_core::intent::Fua;
use drystone_core::job::{ImageSpec, create};

use super::super::{image_in, straight};
use super::{KIB, Operation, TOP};
use crate::cases::WRITABLE;
use crate::sparse::Sparse;
use crate::world::World;

/// Where a new image of ours has its BAT, and its first block.
const BAT_AT: u64 = 2 * MIB;
const BLOCKS_AT: u64 = 4 * MIB;

/// The file below a differencing image.
const BASE: &str = "base";

fn options(size: u64) -> CreateOptions {
    CreateOptions { block_size: MIB, ..CreateOptions::new(size) }
}

fn image(size: u64) -> World {
    image_in(World::new(), &ImageSpec::Vhdx(options(size)))
}

/// All of them.
pub(super) fn operations() -> Vec<Operation> {
    let making = || ImageSpec::Vhdx(options(2 * MIB));
    vec![
        Operation::new("new blocks of a VHDX image", "vhdx", image(2 * MIB)).doing(|guest| async move {
            guest.write(700, KIB).await?;
            guest.flush().await?;
            guest.write(1500 * KIB, 512).await?;
            guest.flush().await
        }),
        Operation::making("create a VHDX image", "vhdx", World::new(), &[0; 2 << 20])
            .doing(move |guest| async move { create(&guest.io(), TOP, &making()).await }),
        overwrites(),
        replay(),
        Operation::new("a longer VHDX disk", "vhdx", image(MIB + 512))
            .after(|guest| async move { guest.write(MIB, 512).await })
            .patched(|world| {
                // What another writer left behind the end of the disk.
                change(world, |file| file.write(BLOCKS_AT + 512, &[0xee; 3000]));
            })
            .doing(|guest| async move {
                guest.resize(MIB + 4096, Preallocate::Off).await?;
                guest.flush().await
            }),
        Operation::new("parts of blocks above a VHDX parent", "vhdx", above()).unknown_to_qemu().doing(
            |guest| async move {
                guest.write(10 * KIB + 100, 700).await?;
                guest.flush().await?;
                guest.write(11 * KIB, 512).await?;
                guest.write(MIB - 512, 1024).await?;
                guest.flush().await
            },
        ),
        Operation::new("zeros above a VHDX parent", "vhdx", above())
            .unknown_to_qemu()
            .after(|guest| async move { guest.write(4 * KIB, 512).await })
            .doing(|guest| async move {
                guest.zero(0, MIB, true).await?;
                guest.flush().await?;
                guest.zero(MIB, MIB, true).await?;
                guest.flush().await
            }),
        Operation::new("zeros of a block that has no sectors yet above a VHDX parent", "vhdx", above())
            .unknown_to_qemu()
            .after(|guest| async move { guest.write(4 * KIB, 512).await })
            .patched(|world| change(world, forget_sectors))
            .doing(|guest| async move {
                guest.zero(0, MIB, true).await?;
                guest.flush().await
            }),
        Operation::new("an image above a VHDX parent is emptied", "vhdx", above())
            .unknown_to_qemu()
            .after(|guest| async move {
                // The parent's own bytes: nothing changes when they go.
                let (io, node) = (guest.io(), guest.node());
                let same = io.read_bytes("explore/same", node, 0, 4096).await?;
                io.write("explore/same", node, 0, same, Fua::No).await.1
            })
            .doing(|guest| async move {
                guest.empty(&parent_data()).await?;
                guest.write(0, 512).await?;
                guest.flush().await
            }),
    ]
}

/// The image knows that it was changed before it is.
fn overwrites() -> Operation {
    let operation = Operation::new("overwrites in a VHDX image", "vhdx", image(MIB))
        .after(|guest| async move { guest.write(0, 4 * KIB).await })
        .patched(|world| {
            // The simulator's GUIDs are all alike: the next one is to be another.
            change(world, |file| {
                let mut header = newest(file).expect("a header");
                header.data_write = Guid([7; 16]);
                for at in HEADERS_AT {
                    header.sequence += 1;
                    file.write(at, &header.encode());
                }
            });
        });
    let place = BLOCKS_AT;
    let file = operation.world.disk(TOP).expect("it is there").view().clone();
    let (data, state) = (file.bytes(place, 4096), newest(&file).expect("a header").data_write);
    operation
        .doing(|guest| async move {
            guest.write(512, 512).await?;
            guest.flush().await
        })
        .holding(move |world| {
            let file = world.disk(TOP).expect("it is there").view();
            let changed = file.bytes(place, 4096) != data;
            match newest(file) {
                Some(header) if !changed || header.data_write != state => Ok(()),
                Some(_) => Err("the data was changed, and the header does not say so".into()),
                None => Err("no header is valid".into()),
            }
        })
}

/// The log of an image has an entry that its BAT lacks.
fn replay() -> Operation {
    Operation::new("a VHDX log is replayed", "vhdx", image(2 * MIB))
        .after(|guest| async move {
            guest.write(0, 512).await?;
            guest.write(MIB, 512).await
        })
        .patched(|world| {
            change(world, |file| {
                let mut header = newest(file).expect("a header");
                header.log = Guid([9; 16]);
                header.sequence += 1;
                let bat = file.bytes(BAT_AT, SECTOR);
                let len = file.len();
                let entry = EntryHeader {
                    checksum: 0,
                    len: 0,
                    tail: 0,
                    sequence: 5,
                    descriptors: 0,
                    log: header.log,
                    flushed_len: len,
                    last_len: len,
                };
                file.write(MIB, &encode_entry(&entry, &[(HostOffset(BAT_AT), Buf::from(bat))]));
                file.write(BAT_AT + 8, &PayloadEntry::Zero.encode().to_le_bytes());
                for at in HEADERS_AT {
                    file.write(at, &header.encode());
                    header.sequence += 1;
                }
            });
        })
        .doing(|guest| async move { guest.flush().await })
}

/// The current header of a file.
fn newest(file: &Sparse) -> Option<Header> {
    let header = |at| Header::parse(at, &file.bytes(at, HEADER_LEN));
    current(header(HEADERS_AT[0]), header(HEADERS_AT[1])).ok().map(|(header, _)| header)
}

fn change(world: &mut World, change: impl FnOnce(&mut Sparse)) {
    let mut file = world.disk(TOP).expect("it is there").view().clone();
    change(&mut file);
    world.add_disk(TOP, world.default_config.clone(), file);
}

/// Clears the bits of the first block, as of a writer that took its space and then stored nothing.
fn forget_sectors(file: &mut Sparse) {
    // The BAT's entry behind those of a chunk, of 4096 blocks here, and the bits of one block.
    let entry = file.bytes(BAT_AT + 4096 * 8, 8);
    let entry = u64::from_le_bytes(entry.try_into().expect("eight bytes"));
    let Some(BitmapEntry::Present(at)) = BitmapEntry::parse(entry) else { panic!("a bitmap was made") };
    file.write(at.0, &[0; (MIB / 512 / 8) as usize]);
}

/// What the parent holds.
fn parent_data() -> Vec<u8> {
    (0..2 * MIB).map(|at| (at / 512 * 7 + at % 5 + 1) as u8).collect()
}

/// A differencing image above one with data, and behind its end what a crash of another writer left.
pub(super) fn above() -> World {
    assert_eq!(BitmapEntry::parse(0), Some(BitmapEntry::NotPresent), "a new image has no bitmaps");
    let (made, world) = straight(World::new(), |io| async move {
        create(&io, BASE, &ImageSpec::Vhdx(options(2 * MIB))).await?;
        let base = open(&io, &from_filename(BASE, Some("vhdx"), WRITABLE)?).await?;
        io.write("explore/base", base, 0, Buf::from(parent_data()), Fua::No).await.1?;
        io.close(base).await?;
        let base = open(&io, &from_filename(BASE, Some("vhdx"), OpenMode::default())?).await?;
        let driver = io.driver(base).expect("an image");
        let data_write = driver.as_any().downcast_ref::<Vhdx>().expect("a VHDX image").data_write();
        drop(driver);
        io.close(base).await?;
        let parent = Some(Parent { relative_path: BASE.into(), data_write });
        create(&io, TOP, &ImageSpec::Vhdx(CreateOptions { parent, ..options(2 * MIB) })).await
    });
    made.expect("the simulator makes an image above another");
    let mut world = world;
    change(&mut world, |file| {
        let end = file.len();
        file.write(end, &vec![0xee; 3 << 20]);
    });
    world
}
