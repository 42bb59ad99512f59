//! Rules of VHDX.

use super::{Promise, Rule, Stated, awaited, barrier};

pub(super) const RULES: &[Rule] = &[
    barrier(
        "vhdx.flush/before_entry",
        "a block is durable before a log entry leads to it",
        "parts of blocks above a VHDX parent",
    ),
    barrier(
        "vhdx.log/after_entry",
        "a log entry is durable before the headers name it",
        "new blocks of a VHDX image",
    ),
    barrier(
        "vhdx.flush",
        "changes are durable in their place before the log ends",
        "new blocks of a VHDX image",
    ),
    barrier("vhdx.create/after", "a created image is durable", "create a VHDX image"),
    barrier(
        "vhdx.replay/before_header",
        "what a log changes is durable before the headers name no log",
        "a VHDX log is replayed",
    ),
    awaited(
        "vhdx.log/entry",
        "a log entry is written before the headers name it",
        "new blocks of a VHDX image",
    ),
    awaited(
        "vhdx.flush/in_place",
        "changes are written to their place before the log ends",
        "new blocks of a VHDX image",
    ),
    awaited(
        "vhdx.create/metadata",
        "a new image's metadata is written before its name",
        "create a VHDX image",
    ),
    awaited(
        "vhdx.create/region_table",
        "a new image's regions are written before its name",
        "create a VHDX image",
    ),
    awaited("vhdx.create/header", "a new image's headers are written before its name", "create a VHDX image"),
    awaited(
        "vhdx.create/file_type",
        "a new image's name is written before the barrier",
        "create a VHDX image",
    ),
    awaited(
        "vhdx.replay/sector",
        "what a log changes is written before the headers name no log",
        "a VHDX log is replayed",
    ),
    awaited(
        "vhdx.resize/zeros",
        "what is behind the old end is zeros before the entry with the new size",
        "a longer VHDX disk",
    ),
    barrier(
        "vhdx.begin/after_header",
        "the headers tell durably of a change before it is made",
        "overwrites in a VHDX image",
    ),
    awaited(
        "vhdx.begin/header",
        "the headers that tell of a change are written before their barrier",
        "overwrites in a VHDX image",
    ),
    awaited(
        "vhdx.zero/partial",
        "the rest of a block is zeros before an entry shows it",
        "zeros of a block that has no sectors yet above a VHDX parent",
    ),
];

pub(super) const PROMISES: &[Promise] = &[
    (
        "vhdx.create/bat",
        "the BAT of a new image is there before its name; one that is not is zeros, which say that nothing is there",
    ),
    (
        "vhdx.create/before_file_type",
        "all of a new image is durable before its name; no operation that is explored shows it yet",
    ),
    (
        "vhdx.log/header",
        "the headers name a log before what it changes is written in its place; replay makes whole what a crash tears there, and \
         the sectors of one entry are in order one by one too: each of their entries is one write of the disk",
    ),
    ("vhdx.log/after_header", "as above"),
    (
        "vhdx.close/header",
        "a closed image has no log to replay; replaying one that is in its place already changes nothing",
    ),
    ("vhdx.close/after_header", "as above"),
    ("vhdx.replay/header", "a replayed image has no log to replay; replaying it again changes nothing"),
    ("vhdx.replay/after_header", "as above"),
    (
        "vhdx.resize/after",
        "a changed length is durable on return; the log entry with it was durable before, and is replayed",
    ),
    ("vhdx.zero/block", "zeros of a block that is in the file are a write to it, which a flush covers"),
];

pub(super) const STATED: &[Stated] = &[
    ("format/vhdx/create.rs", &[("vhdx.create/after", "create a VHDX image")]),
    ("format/vhdx/replay.rs", &[("vhdx.replay/before_header", "a VHDX log is replayed")]),
    ("format/vhdx/resize.rs", &[("vhdx.resize/zeros", "a longer VHDX disk")]),
    (
        "format/vhdx/session.rs",
        &[
            ("vhdx.log/after_entry", "new blocks of a VHDX image"),
            ("vhdx.log/entry", "new blocks of a VHDX image"),
        ],
    ),
];
