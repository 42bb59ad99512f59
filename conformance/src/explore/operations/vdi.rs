//! VDI images: blocks of 1 MiB, and a map of them.

use drystone_core::format::vdi::CreateOptions;
use drystone_core::intent::Preallocation;
use drystone_core::job::{ImageSpec, create};

use super::super::image_in;
use super::{KIB, Operation, TOP};
use crate::world::World;

/// All of them.
pub(super) fn operations() -> Vec<Operation> {
    let of = |size| ImageSpec::Vdi(CreateOptions { size, fixed: false, preallocation: Preallocation::Off });
    let spec = move || of(2 << 20);
    // The second block is hardly more than what is written to.
    let short = image_in(World::new(), &of((1 << 20) + 32 * KIB));
    vec![
        Operation::new("new blocks of a VDI image", "vdi", image_in(World::new(), &spec())).doing(
            |guest| async move {
                guest.write(700, KIB).await?;
                guest.flush().await?;
                guest.write(1500 * KIB, 512).await?;
                guest.flush().await
            },
        ),
        Operation::new("any requests to a VDI image", "vdi", short.clone())
            .doing(|guest| async move { guest.anything(14, 3000).await }),
        Operation::new("any requests to a VDI image, sectors of 4 KiB", "vdi", short)
            .on_large_sectors()
            .doing(|guest| async move { guest.anything(14, 6000).await }),
        Operation::making("create a VDI image", "vdi", World::new(), &[0; 2 << 20])
            .doing(move |guest| async move { create(&guest.io(), TOP, &spec()).await }),
    ]
}
