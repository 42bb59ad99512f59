//! Rules of Parallels images.

use super::{Promise, Rule, Stated, awaited, barrier};

pub(super) const RULES: &[Rule] = &[
    barrier(
        "parallels.flush/before_bat",
        "a cluster is durable before the BAT names it",
        "new clusters of a Parallels image",
    ),
    barrier(
        "parallels.flush",
        "what a flush covers is durable when it is answered",
        "new clusters of a Parallels image",
    ),
    awaited(
        "parallels.flush/bat",
        "the BAT is written before the flush that covers it",
        "new clusters of a Parallels image",
    ),
    awaited(
        "parallels.reclaim/discard",
        "a hole is punched before its cluster is somebody else's",
        "clusters of a Parallels image are given up and used again",
    ),
    barrier(
        "parallels.repair/before_bat",
        "a copy is durable before the BAT names it",
        "a Parallels image that nobody closed",
    ),
    awaited(
        "parallels.repair/copy",
        "a copy is written before the BAT names it",
        "a Parallels image that nobody closed",
    ),
    awaited(
        "parallels.repair/bat",
        "a repaired BAT is written before the image is written to",
        "a Parallels image that nobody closed",
    ),
    barrier("parallels.create/after", "a created image is durable", "create a Parallels image"),
    awaited(
        "parallels.create/header",
        "a new image's header is written before the barrier that covers it",
        "create a Parallels image",
    ),
    barrier(
        "parallels.mark/before_changes",
        "an image says durably that somebody writes to it before the first change",
        "writes to a Parallels image with a bitmap",
    ),
    awaited(
        "parallels.mark/header",
        "the mark is written before the barrier that covers it",
        "writes to a Parallels image with a bitmap",
    ),
    barrier(
        "parallels.close/before_header",
        "bitmaps are durable before the header calls them up to date",
        "writes to a Parallels image with a bitmap",
    ),
    awaited(
        "parallels.close/extension",
        "the extension is written before the header calls it up to date",
        "writes to a Parallels image with a bitmap",
    ),
    awaited(
        "parallels.close/bitmap",
        "bits are written before the header calls them up to date",
        "writes to a Parallels image with a bitmap",
    ),
];

pub(super) const PROMISES: &[Promise] = &[
    (
        "parallels.create/before_header",
        "the BAT is durable before the header; a header without it is refused, as is a file without a header",
    ),
    (
        "parallels.close/header",
        "the mark is taken back when all is in order; one that stays has the next opening look through the image",
    ),
    ("parallels.close", "so that the next opening need not look; one that does finds nothing"),
    (
        "parallels.repair/before_header",
        "a repair is durable before the mark is taken back; the image is marked again before it is written to, and a repair that \
         was lost is done again",
    ),
    ("parallels.repair/header", "as parallels.close/header"),
    ("parallels.repair/after", "as parallels.close"),
];

pub(super) const STATED: &[Stated] = &[
    ("format/parallels/create.rs", &[("parallels.create/after", "create a Parallels image")]),
    ("format/parallels/flush.rs", &[("parallels.flush/before_bat", "new clusters of a Parallels image")]),
    ("format/parallels/check.rs", &[("parallels.repair/before_bat", "a Parallels image that nobody closed")]),
];
