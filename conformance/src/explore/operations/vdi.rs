//! VDI images: blocks of 1 MiB, and a map of them.

use drystone_core::format::vdi::CreateOptions;
use drystone_core::intent::Preallocation;
use drystone_core::job::{ImageSpec, create};

use super::super::image_in;
use super::{KIB, Operation, TOP};
use crate::world::World;

/// All of them.
pub(super) fn operations() -> Vec<Operation> {
    let spec =
        || ImageSpec::Vdi(CreateOptions { size: 2 << 20, fixed: false, preallocation: Preallocation::Off });
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
