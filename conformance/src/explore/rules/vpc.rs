//! Rules of VHD.

use super::{Promise, Rule, Stated, awaited, barrier};

pub(super) const RULES: &[Rule] = &[
    barrier(
        "vpc.flush/before_bitmaps",
        "a sector is durable before a bitmap calls it there",
        "parts of blocks above a VHD parent",
    ),
    barrier(
        "vpc.flush/before_bat",
        "a block and its bitmap are durable before the BAT names it",
        "new blocks of a VHD image",
    ),
    barrier("vpc.flush", "what a flush covers is durable when it is answered", "new blocks of a VHD image"),
    barrier(
        "vpc.create/before_copy",
        "all of a new image is durable before its first footer",
        "create a VHD image",
    ),
    barrier("vpc.create/after", "a created image is durable", "create a VHD image"),
    awaited(
        "vpc.flush/bitmap",
        "a block's bitmap is written before the BAT names it",
        "parts of blocks above a VHD parent",
    ),
    awaited(
        "vpc.flush/bat",
        "the BAT is written before the flush that covers it",
        "new blocks of a VHD image",
    ),
    awaited("vpc.create/bat", "a new image's BAT is written before its first footer", "create a VHD image"),
    awaited(
        "vpc.create/header",
        "a new image's header is written before its first footer",
        "create a VHD image",
    ),
    awaited(
        "vpc.create/copy",
        "a new image's first footer is written before the barrier",
        "create a VHD image",
    ),
    awaited(
        "vpc.create/fixed_footer",
        "a new fixed image's footer is written before the barrier",
        "create a fixed VHD image",
    ),
];

pub(super) const PROMISES: &[Promise] = &[
    (
        "vpc.flush/footer",
        "the footer stands behind the blocks for readers that look for it there; ours, as the reference, goes by the copy at the \
         start",
    ),
    ("vpc.create/footer", "as above"),
    ("vpc.cut/footer", "as above"),
];

pub(super) const STATED: &[Stated] = &[(
    "format/vpc/create.rs",
    &[("vpc.create/before_copy", "create a VHD image"), ("vpc.create/after", "create a VHD image")],
)];
