//! Ways to make QED and qcow images.

use super::case_of;
use crate::qemu::Recipe;
use crate::suite::Case;

/// Ways to make QED and qcow images: small and large clusters, compressed ones, and backing files.
pub fn two_level() -> Vec<Recipe> {
    let recipe = |&(name, format, granule, commands): &(&str, &str, u64, &[&str])| {
        let mut recipe = Recipe::new(name, format, "top", commands);
        recipe.mix.granule = granule;
        recipe.mix.len_max = (4 * granule).max(16 * 1024);
        recipe.mix.steps = 40;
        recipe.mix.compressed = format == "qcow";
        // Metadata that could not be written is kept, and the next flush writes it.
        recipe.rules.sticky_flush = false;
        recipe
    };
    TWO_LEVEL.iter().map(recipe).collect()
}

/// The images of [`two_level`], made and opened in their formats.
///
/// # Errors
/// When QEMU's tools are not there, or fail.
pub fn two_level_cases() -> Result<Vec<Case>, String> {
    two_level().into_iter().map(case_of).collect()
}

/// Name, format, bytes of the unit that requests prefer, commands.
const TWO_LEVEL: &[(&str, &str, u64, &[&str])] = &[
    (
        "qed, filled",
        "qed",
        65536,
        &[
            "qemu-img create -f qed top 1000001",
            "qemu-io -f qed -c 'write -P 17 10k 150k' -c 'write -P 18 400k 90k' -c 'write -z 448k 64k' top",
        ],
    ),
    (
        "qed, clusters of 4096",
        "qed",
        4096,
        &[
            "qemu-img create -f qed -o cluster_size=4k,table_size=2 top 3M",
            "qemu-io -f qed -c 'write -P 17 10k 150k' -c 'write -P 18 2060k 90k' -c 'write -P 19 2999k 9k' top",
        ],
    ),
    (
        "qed above a file",
        "qed",
        4096,
        &[
            "qemu-img create -f raw base 300k",
            "qemu-io -f raw -c 'write -P 5 0 300k' base",
            "qemu-img create -f qed -o cluster_size=4k -b base -F raw top 1M",
            "qemu-io -f qed -c 'write -P 17 10k 150k' -c 'write -z 200k 20k' top",
        ],
    ),
    (
        "qcow, filled",
        "qcow",
        4096,
        &[
            "qemu-img create -f qcow top 1000001",
            "qemu-io -f qcow -c 'write -P 17 10k 150k' -c 'write -c -P 18 400k 4k' -c 'write -c -P 19 404k 4k' top",
        ],
    ),
    (
        "qcow above a file",
        "qcow",
        512,
        &[
            "qemu-img create -f qcow base 300k",
            "qemu-io -f qcow -c 'write -P 5 0 300k' base",
            "qemu-img create -f qcow -b base -F qcow top 1M",
            "qemu-io -f qcow -c 'write -P 17 10k 150k' top",
        ],
    ),
];
