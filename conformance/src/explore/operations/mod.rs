//! The operations that are explored: a file a format, and one for the jobs that work on several images.
//!
//! One more operation is one more entry in a file: an image, and what is done with it. One more format is one more file, and
//! its name in [`all`].

mod jobs;
mod luks;
mod parallels;
mod qcow2;
mod qcow2_files;
pub(super) mod qcow2_repairs;
mod qcow2_upkeep;
mod raw;
mod two_level;
mod vdi;
mod vhdx;
mod vmdk;
mod vpc;

use super::{Guest, Operation, TOP};
use crate::qemu::Folder;
use crate::world::World;

pub use jobs::commit_top;
pub use qcow2::{Short, short_plans};

const KIB: u64 = 1 << 10;

/// All of them.
///
/// # Panics
/// When an image cannot be made.
pub fn all() -> Vec<Operation> {
    let formats = [
        luks::operations,
        parallels::operations,
        qcow2::operations,
        qcow2_files::operations,
        qcow2_upkeep::operations,
        qcow2_repairs::operations,
        raw::operations,
        two_level::operations,
        vdi::operations,
        vhdx::operations,
        vmdk::operations,
        vpc::operations,
        jobs::operations,
    ];
    formats.iter().flat_map(|operations| operations()).collect()
}

/// An image of ours of that format, `vhdx` or `vpc`, above a parent with data.
pub fn above(format: &str) -> World {
    if format == "vhdx" { vhdx::above() } else { vpc::above() }
}

/// A world in which a file that gets longer holds anything there, until it is written to.
fn growing_as_garbage() -> World {
    let mut world = World::new();
    world.default_config.grows_as_zeroes = false;
    world
}

/// What command lines of QEMU's tools make.
///
/// # Panics
/// When they fail.
fn by_qemu(commands: &[&str]) -> World {
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
