//! Parallels images: clusters that are taken and given up, bitmaps, and an image that nobody closed.

use drystone_core::engine::Io;
use drystone_core::error::Result;
use drystone_core::format::parallels::{CreateOptions, DirtyBitmap, Parallels};
use drystone_core::graph::Role;
use drystone_core::graph::open::{OpenMode, open};
use drystone_core::graph::options::from_filename;
use drystone_core::job::{ImageSpec, create};

use super::super::image_in;
use super::super::straight::straight;
use super::{Guest, KIB, Operation, TOP};
use crate::world::World;

const CLUSTER: u64 = 4 * KIB;

/// Where the header says whether somebody writes to the image, and that somebody does.
const IN_USE: u64 = 44;
const OPEN: [u8; 4] = 0x746f_6e59u32.to_le_bytes();
/// Where the BAT is.
const BAT: u64 = 64;

/// All of them.
pub(super) fn operations() -> Vec<Operation> {
    vec![
        Operation::making("create a Parallels image", "parallels", World::new(), &[0; 64 << 10])
            .doing(|guest| async move { create(&guest.io(), TOP, &spec()).await }),
        on("new clusters of a Parallels image").doing(|guest| async move {
            guest.write(700, KIB).await?;
            guest.flush().await?;
            guest.write(20 * KIB, 6 * KIB).await?;
            guest.write(0, KIB).await?;
            guest.flush().await
        }),
        on("clusters of a Parallels image are given up and used again")
            .after(|guest| async move { guest.write(0, 4 * CLUSTER).await })
            .making_do_without("parallels.reclaim/discard")
            .doing(|guest| async move {
                guest.discard(0, 2 * CLUSTER).await?;
                guest.flush().await?;
                guest.write(8 * CLUSTER, CLUSTER).await?;
                guest.zero(3 * CLUSTER, CLUSTER, true).await?;
                guest.flush().await?;
                guest.write(6 * CLUSTER, 2 * CLUSTER).await?;
                guest.flush().await
            }),
        with_bitmap(),
        on("a Parallels image that nobody closed")
            .after(|guest| async move { guest.write(0, 3 * CLUSTER).await })
            .patched(|world| {
                let disk = world.disk(TOP).expect("it was made");
                let (mut image, config) = (disk.view().clone(), disk.config.clone());
                image.write(IN_USE, &OPEN);
                // The third cluster of the disk is the second one too, and what it was leaks.
                let second = image.bytes(BAT + 4, 4);
                image.write(BAT + 8, &second);
                world.add_disk(TOP, config, image);
            })
            .damaged()
            .doing(|guest| async move {
                guest.is_mended();
                guest.write(CLUSTER, KIB).await?;
                guest.flush().await
            }),
    ]
}

fn spec() -> ImageSpec {
    ImageSpec::Parallels(CreateOptions { size: 64 * KIB, cluster_size: CLUSTER })
}

fn on(name: &'static str) -> Operation {
    Operation::new(name, "parallels", image_in(World::new(), &spec())).making_do_without("set_len")
}

/// A bitmap that is called up to date has each change.
fn with_bitmap() -> Operation {
    let name = "writes to a Parallels image with a bitmap";
    let with_bitmap = on(name).after(|guest| async move {
        guest.write(5 * CLUSTER, KIB).await?;
        added(&guest).await
    });
    let before = with_bitmap.world.export(TOP);
    let bytes = move |file: &[u8]| file.get(4096..2 * 4096).unwrap_or_default().to_vec();
    let before = bytes(&before);
    with_bitmap
        .holding(move |world| {
            let changed = bytes(&world.export(TOP)) != before;
            let (bitmaps, _) = straight(world.clone(), |io| async move { bitmaps(&io).await });
            let bitmaps = bitmaps.map_err(|error| format!("the bitmaps do not load: {error}"))?;
            let lacks = |bitmap: &DirtyBitmap| bitmap.ranges().all(|(at, _)| at != 5 * CLUSTER);
            match changed && bitmaps.iter().any(lacks) {
                true => Err("a bitmap is called up to date, and lacks a change".into()),
                false => Ok(()),
            }
        })
        .doing(|guest| async move {
            guest.write(5 * CLUSTER, KIB).await?;
            guest.flush().await?;
            guest.write(9 * CLUSTER, KIB).await
        })
}

async fn added(guest: &Guest) -> Result<()> {
    let driver = guest.io().driver(guest.node()).expect("a format is a driver");
    let image = driver.as_any().downcast_ref::<Parallels>().expect("it was opened as one");
    image.add_bitmap([7; 16], 512)
}

async fn bitmaps(io: &Io) -> Result<Vec<DirtyBitmap>> {
    let node = open(io, &from_filename(TOP, Some("parallels"), OpenMode::default())?).await?;
    let driver = io.driver(node).expect("a format is a driver");
    let image = driver.as_any().downcast_ref::<Parallels>().expect("it was opened as one");
    let bitmaps = image.load_bitmaps(io, io.edge(node, Role::File).expect("an image has a file")).await;
    io.close(node).await?;
    bitmaps
}
