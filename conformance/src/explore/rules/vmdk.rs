//! Rules of VMDK.

use super::{Promise, Rule, Stated, awaited, barrier};

pub(super) const RULES: &[Rule] = &[
    barrier(
        "vmdk.flush/before_grain_tables",
        "a grain is durable before a table points to it, and the mark of a writer before a table differs from its copy",
        "new grains of a VMDK image",
    ),
    barrier(
        "vmdk.flush/before_redundant_tables",
        "a grain table is durable before its copy changes",
        "new grains of a VMDK image",
    ),
    awaited(
        "vmdk.compress/write",
        "a compressed grain is written before the barrier that covers it",
        "convert to a compressed VMDK image",
    ),
    barrier("vmdk.flush", "what a flush covers is durable when it is answered", "overwrite of a VMDK grain"),
    barrier(
        "vmdk.flush",
        "copies are durable before the mark of a writer goes",
        "new grains of a VMDK image",
    ),
    awaited(
        "vmdk.flush/grain_table",
        "grain tables are written before the flush that covers them",
        "new grains of a VMDK image",
    ),
    awaited(
        "vmdk.flush/redundant_table",
        "copies are written before the mark of a writer goes",
        "new grains of a VMDK image",
    ),
    awaited(
        "vmdk.begin/mark",
        "the mark of a writer is written before its barrier",
        "new grains of a VMDK image",
    ),
    awaited(
        "vmdk.begin/step",
        "copies that a writer left behind are in step before the mark goes",
        "a VMDK image whose writer went away",
    ),
    barrier("vmdk.create/after", "a created image is durable", "create a VMDK image"),
    awaited("vmdk.create/descriptor", "the descriptor is written before the header", "create a VMDK image"),
    awaited("vmdk.create/header", "a new header is written before its barrier", "create a VMDK image"),
    barrier(
        "vmdk.begin/cid_barrier",
        "another content ID is durable before anything changes",
        "new grains of a VMDK image",
    ),
    awaited(
        "vmdk.begin/cid",
        "another content ID is written before its barrier",
        "new grains of a VMDK image",
    ),
    barrier("vmdk.create/before_header", "all else is durable before the header", "create a VMDK image"),
    awaited(
        "vmdk.create/directory",
        "grain directories are written before the header",
        "create a VMDK image",
    ),
];

pub(super) const PROMISES: &[Promise] = &[(
    "vmdk.close",
    "the mark of a writer has gone when the image is closed; one that stays costs the next writer a comparison",
)];

pub(super) const STATED: &[Stated] = &[
    (
        "format/vmdk/begin.rs",
        &[
            ("vmdk.begin/cid_barrier", "new grains of a VMDK image"),
            ("vmdk.begin/mark", "new grains of a VMDK image"),
            ("vmdk.begin/step", "a VMDK image whose writer went away"),
        ],
    ),
    (
        "format/vmdk/flush.rs",
        &[
            ("vmdk.flush/before_grain_tables", "new grains of a VMDK image"),
            ("vmdk.flush/before_redundant_tables", "new grains of a VMDK image"),
            ("vmdk.flush", "new grains of a VMDK image"),
        ],
    ),
    ("format/vmdk/pack.rs", &[("vmdk.compress/write", "convert to a compressed VMDK image")]),
    ("format/vmdk/create.rs", &[("vmdk.create/after", "create a VMDK image")]),
];
