//! Files that are disks as they are.

use drystone_core::graph::Preallocate;

use super::super::Do;
use super::{KIB, Operation, TOP};
use crate::cases::stones;
use crate::world::World;

/// All of them.
pub(super) fn operations() -> Vec<Operation> {
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
        Operation::new("any requests to a raw file", "raw", world())
            .doing(|guest| async move { guest.anything(16, 3000).await }),
        Operation::new("any requests to a raw file, sectors of 4 KiB", "raw", world())
            .on_large_sectors()
            .doing(|guest| async move { guest.anything(16, 6000).await }),
    ]
}
