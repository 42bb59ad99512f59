//! Rules of VDI.

use super::{Promise, Rule, Stated, awaited, barrier};

pub(super) const RULES: &[Rule] = &[
    barrier(
        "vdi.flush/before_block_map",
        "a block and its count are durable before the map names it",
        "new blocks of a VDI image",
    ),
    barrier("vdi.flush", "what a flush covers is durable when it is answered", "new blocks of a VDI image"),
    barrier("vdi.create/before_header", "the map is durable before the header", "create a VDI image"),
    barrier("vdi.create/after", "a created image is durable", "create a VDI image"),
    awaited(
        "vdi.flush/header",
        "the count of blocks is written before the map names them",
        "new blocks of a VDI image",
    ),
    awaited(
        "vdi.flush/block_map",
        "the map is written before the flush that covers it",
        "new blocks of a VDI image",
    ),
    awaited("vdi.create/block_map", "a new image's map is written before its header", "create a VDI image"),
    awaited(
        "vdi.create/header",
        "a new image's header is written before the barrier that covers it",
        "create a VDI image",
    ),
];

pub(super) const PROMISES: &[Promise] = &[(
    "cow/zero",
    "the edges of a new block are zeros before the map names it; space behind the end of a file is zeros already, so that \
         only a block that a crash had lost would show other bytes",
)];

pub(super) const STATED: &[Stated] = &[(
    "format/vdi/create.rs",
    &[("vdi.create/before_header", "create a VDI image"), ("vdi.create/after", "create a VDI image")],
)];
