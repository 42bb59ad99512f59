//! Images of Hyper-V's formats that the suite runs on, made by QEMU's tools; those above a parent, which they do not know,
//! by ours.

use drystone_core::graph::open::{NodeSpec, open};
use drystone_core::graph::options::from_filename;

use crate::cases::{WRITABLE, case_of};
use crate::explore::operations::above;
use crate::explore::{TOP, straight};
use crate::qemu::Recipe;
use crate::sparse::Sparse;
use crate::suite::{Case, Image, Stage};
use crate::world::World;

/// Name, commands.
const VHDX: &[(&str, &[&str])] = &[
    ("vhdx, empty", &["qemu-img create -f vhdx -o block_size=1M top.vhdx 3M"]),
    (
        "vhdx, filled",
        &[
            "qemu-img create -f vhdx -o block_size=1M,block_state_zero=off top.vhdx 5M",
            "qemu-io -f vhdx -c 'write -P 17 10k 150k' -c 'write -P 18 3M 2M' -c 'write -P 19 2M 1k' top.vhdx",
        ],
    ),
    (
        "vhdx, fixed",
        &["qemu-img create -f vhdx -o block_size=1M,subformat=fixed,block_state_zero=off top.vhdx 3M"],
    ),
];

/// Name, commands.
const VPC: &[(&str, &[&str])] = &[
    ("vpc, empty", &["qemu-img create -f vpc -o force_size=on top.vhd 3M"]),
    (
        "vpc, filled",
        &[
            "qemu-img create -f vpc top.vhd 5M",
            "qemu-io -f vpc -c 'write -P 17 10k 150k' -c 'write -P 18 4M 1M' top.vhd",
        ],
    ),
    ("vpc, fixed", &["qemu-img create -f vpc -o subformat=fixed top.vhd 1M"]),
];

/// The images of VHD, made and opened as VHD.
///
/// # Errors
/// When QEMU's tools are not there, or fail.
pub fn vpc_cases() -> Result<Vec<Case>, String> {
    let made = VPC.iter().map(|(name, commands)| case_of(recipe(name, "vpc", "top.vhd", commands)));
    made.chain([Ok(above_a_parent("vpc, above a parent", "vpc"))]).collect()
}

/// The images of VHDX, made and opened as VHDX.
///
/// # Errors
/// When QEMU's tools are not there, or fail.
pub fn vhdx_cases() -> Result<Vec<Case>, String> {
    let made = VHDX.iter().map(|(name, commands)| case_of(recipe(name, "vhdx", "top.vhdx", commands)));
    made.chain([Ok(above_a_parent("vhdx, above a parent", "vhdx"))]).collect()
}

/// An image whose blocks and sectors are partly its parent's.
fn above_a_parent(name: &str, format: &'static str) -> Case {
    let made = above(format);
    let content = Sparse::from_bytes(&guest_view(made.clone(), TOP, format));
    let setup = move |world: &mut World| {
        for path in made.paths() {
            let file = made.disk(path).expect("a path of the world").view().clone();
            world.add_disk(&world.path(path), world.default_config.clone(), file);
        }
        let spec = from_filename(&world.path(TOP), Some(format), WRITABLE).expect("a path");
        let spec = NodeSpec { node_name: Some("disk0".into()), ..spec };
        let Recipe { rules, mix, .. } = recipe(TOP, format, TOP, &[]);
        Image { spec, content: content.clone(), rules, mix }
    };
    Case::new(name, setup).verified(move |world: &World, _: Stage, content: Option<&Sparse>| {
        let found = guest_view(world.clone(), &world.path(TOP), format);
        match content.is_none_or(|content| content.to_vec() == found) {
            true => Ok(()),
            false => Err("a reader of its own sees other bytes than the guest".into()),
        }
    })
}

/// What a guest reads of an image that somebody else opens.
fn guest_view(world: World, path: &str, format: &'static str) -> Vec<u8> {
    let spec = from_filename(path, Some(format), WRITABLE).expect("a path");
    let (read, _) = straight(world, |io| async move {
        let node = open(&io, &spec).await?;
        let data = io.read_bytes("suite/view", node, 0, io.len(node) as usize).await;
        io.close(node).await?;
        data
    });
    read.map(|data| data.to_vec()).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn recipe(name: &str, format: &str, top: &str, commands: &[&str]) -> Recipe {
    let mut recipe = Recipe::new(name, format, top, commands);
    recipe.mix.granule = 65536;
    recipe.mix.len_max = 256 << 10;
    // Each new block is 1 MiB or more, which a simulated disk moves by hand.
    recipe.mix.steps = 30;
    // Metadata that could not be written is kept, and the next flush writes it.
    recipe.rules.sticky_flush = false;
    recipe
}
