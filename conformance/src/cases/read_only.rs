//! Images of the formats that are only read, made by a script that knows nothing of core.

use drystone_core::graph::open::{NodeSpec, OpenMode};
use drystone_core::graph::options::from_filename;

use super::WRITABLE;
use crate::qemu::Recipe;
use crate::suite::Case;
use crate::world::World;

/// Makes an image of the format that it is told.
const MAKER: &str = include_str!("read_only.py");

/// Images of bochs, cloop and dmg, which hold what `qemu-img` reads.
///
/// # Errors
/// When Python or QEMU's tools are not there, or fail.
pub fn read_only_cases() -> Result<Vec<Case>, String> {
    ["bochs", "cloop", "dmg"].into_iter().map(case).collect()
}

fn case(format: &'static str) -> Result<Case, String> {
    let top = format!("top.{format}");
    let mut recipe = Recipe::new(format, format, &top, &[]);
    recipe.commands = vec![["/usr/bin/python3", "-c", MAKER, format, &top].map(str::to_owned).to_vec()];
    recipe.mix.reads_only = true;
    recipe.mix.len_max = 100 << 10;
    let spec = move |_: &World, path: &str| {
        let mode = OpenMode { writable: false, ..WRITABLE };
        let spec = from_filename(path, Some(format), mode).expect("a path");
        NodeSpec { node_name: Some("disk0".into()), ..spec }
    };
    recipe.case(spec).map_err(|report| format!("{format}: {report}"))
}
