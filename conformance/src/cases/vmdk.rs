//! Ways to make VMDK images.

use super::case_of;
use crate::qemu::Recipe;
use crate::suite::Case;

/// Ways to make VMDK images: one file and several, flat and sparse ones, with a parent.
pub fn vmdk() -> Vec<Recipe> {
    let recipe = |&(name, commands): &(&str, &[&str])| {
        let mut recipe = Recipe::new(name, "vmdk", "top.vmdk", commands);
        recipe.mix.granule = 65536;
        recipe.mix.len_max = 256 << 10;
        recipe.mix.steps = 40;
        // Metadata that could not be written is kept, and the next flush writes it.
        recipe.rules.sticky_flush = false;
        recipe
    };
    VMDK.iter().map(recipe).collect()
}

/// The images of [`vmdk`], made and opened as VMDK.
///
/// # Errors
/// When QEMU's tools are not there, or fail.
pub fn vmdk_cases() -> Result<Vec<Case>, String> {
    vmdk().into_iter().map(case_of).collect()
}

const FILLED: &str =
    "qemu-io -f vmdk -c 'write -P 17 10k 150k' -c 'write -P 18 400k 90k' -c 'write -P 19 640k 64k' top.vmdk";

/// Name, commands.
const VMDK: &[(&str, &[&str])] = &[
    ("vmdk, filled", &["qemu-img create -f vmdk top.vmdk 1000001", FILLED]),
    (
        "vmdk, zeroed grains",
        &[
            "qemu-img create -f vmdk -o zeroed_grain=on top.vmdk 1M",
            "qemu-io -f vmdk -c 'write -z 0 512k' top.vmdk",
        ],
    ),
    (
        "vmdk above a parent",
        &[
            "qemu-img create -f vmdk base.vmdk 700k",
            "qemu-io -f vmdk -c 'write -P 5 0 600k' base.vmdk",
            "qemu-img create -f vmdk -b base.vmdk -F vmdk top.vmdk 1M",
            FILLED,
        ],
    ),
    (
        "vmdk, extents of several kinds",
        &[
            "qemu-img create -f vmdk -o subformat=twoGbMaxExtentSparse a.vmdk 512k",
            "qemu-img create -f vmdk -o subformat=monolithicFlat b.vmdk 128k",
            "qemu-img create -f vmdk -o subformat=twoGbMaxExtentSparse c.vmdk 300k",
            "sh -c 'grep -v ^RW a.vmdk > top.vmdk; grep -h ^RW a.vmdk b.vmdk c.vmdk >> top.vmdk'",
            FILLED,
        ],
    ),
];
