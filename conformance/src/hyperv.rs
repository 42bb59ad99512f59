//! Images of Hyper-V's formats that the suite runs on.

use crate::cases::case_of;
use crate::qemu::Recipe;
use crate::suite::Case;

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
    VPC.iter().map(|(name, commands)| case_of(recipe(name, "vpc", "top.vhd", commands))).collect()
}

/// The images of VHDX, made and opened as VHDX.
///
/// # Errors
/// When QEMU's tools are not there, or fail.
pub fn vhdx_cases() -> Result<Vec<Case>, String> {
    VHDX.iter().map(|(name, commands)| case_of(recipe(name, "vhdx", "top.vhdx", commands))).collect()
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
