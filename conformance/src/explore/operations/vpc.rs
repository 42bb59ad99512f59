//! Operations on VHD images: blocks of 2 MiB with a bitmap each, a BAT, footers, and parents.

use drystone_core::buf::Buf;
use drystone_core::format::vpc::{CreateOptions, Parent, uuid_of};
use drystone_core::graph::open::{OpenMode, open};
use drystone_core::graph::options::from_filename;
use drystone_core::intent::Fua;
use drystone_core::job::{ImageSpec, create};

use super::super::{image_in, straight};
use super::{KIB, Operation, TOP};
use crate::cases::WRITABLE;
use crate::world::World;

const BLOCK: u64 = 2 << 20;

/// The file below a differencing image.
const BASE: &str = "base";

fn options(size: u64) -> CreateOptions {
    CreateOptions { force_size: true, ..CreateOptions::new(size) }
}

/// All of them.
pub(super) fn operations() -> Vec<Operation> {
    let making = || ImageSpec::Vpc(options(64 * KIB));
    let fixed = || ImageSpec::Vpc(CreateOptions { fixed: true, ..options(64 * KIB) });
    let image = || image_in(World::new(), &ImageSpec::Vpc(options(BLOCK + 4 * KIB)));
    vec![
        Operation::new("new blocks of a VHD image", "vpc", image()).doing(|guest| async move {
            guest.write(700, KIB).await?;
            guest.flush().await?;
            guest.write(BLOCK + KIB, 512).await?;
            guest.flush().await
        }),
        Operation::making("create a VHD image", "vpc", World::new(), &[0; 64 << 10])
            .doing(move |guest| async move { create(&guest.io(), TOP, &making()).await }),
        Operation::making("create a fixed VHD image", "vpc", World::new(), &[0; 64 << 10])
            .doing(move |guest| async move { create(&guest.io(), TOP, &fixed()).await }),
        Operation::new("writes to a fixed VHD image", "vpc", image_in(World::new(), &fixed())).doing(
            |guest| async move {
                guest.write(700, KIB).await?;
                guest.flush().await
            },
        ),
        Operation::new("parts of blocks above a VHD parent", "vpc", above()).unknown_to_qemu().doing(
            |guest| async move {
                guest.write(10 * KIB + 100, 700).await?;
                guest.flush().await?;
                guest.write(11 * KIB, 512).await?;
                guest.flush().await?;
                guest.zero(BLOCK - KIB, 2 * KIB, true).await?;
                guest.flush().await
            },
        ),
        Operation::new("an image above a VHD parent is emptied", "vpc", above())
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

/// What the parent holds.
fn parent_data() -> Vec<u8> {
    (0..BLOCK + 4 * KIB).map(|at| (at / 512 * 7 + at % 5 + 1) as u8).collect()
}

/// A differencing image above one with data, and behind its end what a crash left.
pub(super) fn above() -> World {
    let (made, mut world) = straight(World::new(), |io| async move {
        create(&io, BASE, &ImageSpec::Vpc(options(BLOCK + 4 * KIB))).await?;
        let base = open(&io, &from_filename(BASE, Some("vpc"), WRITABLE)?).await?;
        io.write("explore/base", base, 0, Buf::from(parent_data()), Fua::No).await.1?;
        io.close(base).await?;
        let base = open(&io, &from_filename(BASE, Some("vpc"), OpenMode::default())?).await?;
        let uuid = io.driver(base).and_then(|driver| uuid_of(driver.as_ref())).expect("a VHD image");
        io.close(base).await?;
        let parent = Some(Parent { relative_path: BASE.into(), uuid });
        create(&io, TOP, &ImageSpec::Vpc(CreateOptions { parent, ..options(BLOCK + 4 * KIB) })).await
    });
    made.expect("the simulator makes an image above another");
    let mut file = world.disk(TOP).expect("it was made").view().clone();
    let end = file.len();
    file.write(end, &vec![0xee; 5 << 20]);
    world.add_disk(TOP, world.default_config.clone(), file);
    world
}
