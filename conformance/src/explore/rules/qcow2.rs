//! Rules of qcow2, and of the jobs that work on its images.

use super::{Rule, Stated, awaited, barrier};

pub(super) const RULES: &[Rule] = &[
    barrier(
        "qcow2.flush/before_refcount_table",
        "a refcount block is durable before the table points to it",
        "new refcount blocks",
    ),
    barrier(
        "qcow2.flush/before_l2_tables",
        "refcounts and data are durable before an L2 entry points to a cluster",
        "allocating write",
    ),
    barrier(
        "qcow2.flush/before_l1_table",
        "an L2 table is counted and complete before an L1 entry points to it",
        "flushes while tables are made",
    ),
    barrier(
        "qcow2.flush/before_reclaim",
        "nothing on disk points to a cluster before it is given back",
        "freed clusters used again",
    ),
    barrier("qcow2.barrier", "what a flush covers is durable when it is answered", "allocating write"),
    barrier("qcow2.close", "a closed image is durable", "a feature that this writer does not know"),
    barrier(
        "qcow2.change_header/before",
        "what a new header points to is durable before it",
        "a larger refcount table",
    ),
    barrier(
        "qcow2.open/autoclear",
        "the cleared autoclear bits are durable before the first change",
        "a feature that this writer does not know",
    ),
    barrier("qcow2.bitmaps/in_use", "bitmaps are durably in use before the first change", "dirty bitmaps"),
    barrier("qcow2.create/barrier", "all other metadata is durable before the header", "create"),
    barrier("qcow2.create/header", "a created image is durable", "create"),
    barrier(
        "qcow2.change_header/after",
        "a changed header is durable on return",
        "a snapshot is gone back to",
    ),
    barrier(
        "qcow2.change_header/before",
        "a snapshot's tables are durable before the header names them",
        "a snapshot is taken",
    ),
    barrier(
        "qcow2.change_header/before",
        "a new bitmap directory is durable before the header names it",
        "dirty bitmaps",
    ),
    barrier(
        "qcow2.change_header/before",
        "a rebuilt refcount table is durable before the header names it",
        "lost refcounts are rebuilt",
    ),
    barrier(
        "qcow2.change_header/before",
        "what a longer disk shows is durable before the header says its length",
        "a longer disk above a backing file",
    ),
    barrier(
        "qcow2.change_header/before",
        "an empty image's metadata is durable before the header names it",
        "commit",
    ),
    barrier(
        "qcow2.change_header/data_file",
        "what a data file has beyond the old end is durably zeros before the header says the length",
        "a longer disk within a cluster of a data file",
    ),
    barrier(
        "qcow2.change_backing/step",
        "each step of a new header is durable before the next one",
        "rebase, a long name",
    ),
    barrier(
        "qcow2.barrier",
        "what makes up for another backing file is durable before the header names that",
        "rebase",
    ),
    barrier(
        "qcow2.barrier",
        "the base of a commit holds all of the data before the image is emptied",
        "commit",
    ),
    barrier(
        "qcow2.barrier",
        "nothing points to what a data file holds before an image that is emptied gives it up",
        "an image with a data file is emptied",
    ),
    barrier(
        "raw.flush",
        "the base of a commit holds all of the data before the image is emptied",
        "commit into a raw file",
    ),
    barrier(
        "qcow2.repair/after_l2_entries",
        "entries have lost their clusters before refcounts fall",
        "a misplaced entry of a snapshot is repaired",
    ),
    barrier(
        "qcow2.repair/after_refcounts",
        "refcounts are right before a COPIED flag says so",
        "leaks are repaired",
    ),
    barrier(
        "qcow2.downgrade/before_l2_tables",
        "a snapshot's zeros are durable and counted before an entry points to them",
        "an older version, with snapshots",
    ),
    barrier(
        "qcow2.change_header/before",
        "entries of snapshots that version 2 does not know are durably gone before the header says version 2",
        "an older version, with snapshots",
    ),
    barrier("qcow2.repair/after_flags", "what was repaired is durable on return", "errors are repaired"),
    awaited("write/data", "data is written before an entry points to its cluster", "allocating write"),
    awaited(
        "cow/write",
        "a copied cluster is written before an entry points to it",
        "copy-on-write above a backing file",
    ),
    awaited(
        "qcow2.compress/write",
        "compressed bytes are written before an entry points to them",
        "compressed write",
    ),
    awaited(
        "qcow2.own_table/write",
        "an L2 table is complete before an L1 entry points to it",
        "new L2 tables",
    ),
    awaited(
        "qcow2.add_refcount_block/write",
        "a new refcount block is written before what changes it",
        "new refcount blocks",
    ),
    awaited(
        "qcow2.grow_refcount_table/block",
        "the blocks that count a new refcount table are written before the header",
        "a larger refcount table",
    ),
    awaited(
        "qcow2.grow_refcount_table/table",
        "a new refcount table is written before the header points to it",
        "a larger refcount table",
    ),
    awaited("qcow2.change_header", "memory follows the header on the disk", "a larger refcount table"),
    awaited(
        "qcow2.flush/refcount_blocks",
        "refcounts are written before the barrier that covers them",
        "allocating write",
    ),
    awaited(
        "qcow2.flush/refcount_table",
        "the refcount table is written before the barrier that covers it",
        "new refcount blocks",
    ),
    awaited(
        "qcow2.flush/l2_tables",
        "L2 entries are written before the barrier that covers them",
        "allocating write",
    ),
    awaited(
        "qcow2.flush/l1_table",
        "L1 entries are written before the barrier that covers them",
        "new L2 tables",
    ),
    awaited(
        "qcow2.reclaim/discard",
        "a hole is punched before its cluster's refcount drops",
        "freed clusters used again",
    ),
    awaited(
        "qcow2.discard/data_file",
        "a range of a data file is given up before it can be written again",
        "data in a file of its own",
    ),
    awaited(
        "qcow2.empty/data_file",
        "what an empty image gives up of a data file has gone before it can be written again",
        "an image with a data file is emptied",
    ),
    awaited(
        "qcow2.zero/data_file",
        "zeros are in a data file that is read as it is before a flush covers them",
        "a data file that is read as it is",
    ),
    awaited(
        "qcow2.generation/refcount_blocks",
        "a generation's refcounts are written before the header names them",
        "wider refcounts",
    ),
    awaited(
        "qcow2.generation/tables",
        "a generation's tables are written before the header names them",
        "a snapshot is taken",
    ),
    awaited(
        "qcow2.generation/l2_table",
        "a generation's L2 tables are written before the header leads to them",
        "a snapshot is taken",
    ),
    awaited(
        "qcow2.empty/refcount_table",
        "an empty image's refcount table is written before the header names it",
        "commit",
    ),
    awaited(
        "qcow2.empty/refcount_blocks",
        "an empty image's refcounts are written before the header names them",
        "commit",
    ),
    awaited(
        "qcow2.empty/l1_table",
        "an empty image's L1 table is written before the header names it",
        "commit",
    ),
    awaited(
        "qcow2.change_backing",
        "each step of a new header is written before the next one",
        "rebase, a long name",
    ),
    awaited(
        "qcow2.bitmaps/store",
        "bitmaps are written before a directory calls them up to date",
        "dirty bitmaps",
    ),
    awaited(
        "qcow2.bitmaps/in_use",
        "that bitmaps are in use is written before the barrier that covers it",
        "dirty bitmaps",
    ),
    awaited(
        "qcow2.open/autoclear",
        "cleared autoclear bits are written before the barrier that covers them",
        "a feature that this writer does not know",
    ),
    awaited(
        "qcow2.create/refcount_table",
        "a new image's refcount table is written before its header",
        "create",
    ),
    awaited(
        "qcow2.create/refcount_blocks",
        "a new image's refcounts are written before its header",
        "create",
    ),
    awaited("qcow2.create/l1_table", "a new image's L1 table is written before its header", "create"),
    awaited(
        "qcow2.create/header",
        "a new image's header is written before the barrier that covers it",
        "create",
    ),
    awaited(
        "qcow2.resize/data_file",
        "what a data file has beyond the old end is zeroed before the header says the length",
        "a longer disk with a data file",
    ),
    awaited(
        "qcow2.preallocate/zero",
        "a preallocated cluster reads as zeros before an entry points to it",
        "a longer disk, preallocated",
    ),
    awaited(
        "qcow2.flush/l2_tables",
        "entries that version 2 does not know are gone before the header says version 2",
        "an older version",
    ),
    awaited(
        "qcow2.downgrade/zeros",
        "a snapshot's zeros are written before an entry points to them",
        "an older version, with snapshots",
    ),
    awaited(
        "qcow2.downgrade/l2_table",
        "a snapshot's entries are written before the header says version 2",
        "an older version, with snapshots",
    ),
    awaited(
        "qcow2.repair/l2_entries",
        "entries that lose their clusters are written before the barrier that covers them",
        "a misplaced entry of a snapshot is repaired",
    ),
    awaited(
        "qcow2.repair/refcount_blocks",
        "repaired refcounts are written before the barrier that covers them",
        "shared clusters are repaired",
    ),
    awaited(
        "qcow2.repair/l1_table",
        "repaired L1 entries are written before the barrier that covers them",
        "errors are repaired",
    ),
    awaited(
        "qcow2.repair/l2_tables",
        "repaired L2 entries are written before the barrier that covers them",
        "errors are repaired",
    ),
    awaited(
        "qcow2.repair/snapshot_table",
        "a repaired snapshot table is written before the header names it",
        "an incomplete snapshot table is repaired",
    ),
    awaited(
        "qcow2.rebuild/refcount_blocks",
        "rebuilt refcounts are written before the header leads to them",
        "lost refcounts are rebuilt",
    ),
    awaited(
        "qcow2.rebuild/refcount_table",
        "a rebuilt refcount table is written before the header names it",
        "lost refcounts are rebuilt",
    ),
];

pub(super) const STATED: &[Stated] = &[
    (
        "format/qcow2/flush.rs",
        &[
            ("qcow2.flush/before_refcount_table", "new refcount blocks"),
            ("qcow2.flush/before_l2_tables", "allocating write"),
            ("qcow2.flush/before_l1_table", "flushes while tables are made"),
            ("qcow2.flush/before_reclaim", "freed clusters used again"),
            ("qcow2.change_header/before", "a larger refcount table"),
            ("qcow2.change_header/after", "a snapshot is gone back to"),
        ],
    ),
    (
        "format/qcow2/generation/mod.rs",
        &[
            ("qcow2.generation/refcount_blocks", "wider refcounts"),
            ("qcow2.generation/tables", "a snapshot is taken"),
            ("qcow2.generation/l2_table", "a snapshot is taken"),
            ("qcow2.change_header/before", "a snapshot is taken"),
        ],
    ),
    (
        "format/qcow2/empty.rs",
        &[
            ("qcow2.empty/refcount_table", "commit"),
            ("qcow2.empty/refcount_blocks", "commit"),
            ("qcow2.empty/l1_table", "commit"),
            ("qcow2.change_header/before", "commit"),
        ],
    ),
    (
        "format/qcow2/resize.rs",
        &[
            ("qcow2.change_header/before", "a longer disk above a backing file"),
            ("qcow2.resize/data_file", "a longer disk with a data file"),
            ("qcow2.change_header/data_file", "a longer disk within a cluster of a data file"),
        ],
    ),
    (
        "format/qcow2/backing.rs",
        &[
            ("qcow2.barrier", "rebase"),
            ("qcow2.change_backing", "rebase, a long name"),
            ("qcow2.change_backing/step", "rebase, a long name"),
        ],
    ),
    (
        "format/qcow2/amend.rs",
        &[
            ("qcow2.flush/l2_tables", "an older version"),
            ("qcow2.generation/refcount_blocks", "wider refcounts"),
        ],
    ),
    (
        "format/qcow2/downgrade.rs",
        &[
            ("qcow2.downgrade/zeros", "an older version, with snapshots"),
            ("qcow2.downgrade/before_l2_tables", "an older version, with snapshots"),
            ("qcow2.downgrade/l2_table", "an older version, with snapshots"),
            ("qcow2.change_header/before", "an older version, with snapshots"),
        ],
    ),
    ("format/qcow2/preallocate.rs", &[("qcow2.preallocate/zero", "a longer disk, preallocated")]),
    (
        "format/qcow2/create.rs",
        &[
            ("qcow2.create/barrier", "create"),
            ("qcow2.create/header", "create"),
            ("qcow2.create/refcount_table", "create"),
            ("qcow2.create/refcount_blocks", "create"),
            ("qcow2.create/l1_table", "create"),
        ],
    ),
    ("format/qcow2/compressed.rs", &[("qcow2.compress/write", "compressed write")]),
    ("format/qcow2/load.rs", &[("qcow2.own_table/write", "new L2 tables")]),
    (
        "format/qcow2/refcount.rs",
        &[
            ("qcow2.add_refcount_block/write", "new refcount blocks"),
            ("qcow2.grow_refcount_table/block", "a larger refcount table"),
            ("qcow2.grow_refcount_table/table", "a larger refcount table"),
        ],
    ),
    ("format/qcow2/open.rs", &[("qcow2.open/autoclear", "a feature that this writer does not know")]),
    ("format/qcow2/bitmaps/mod.rs", &[("qcow2.bitmaps/in_use", "dirty bitmaps")]),
    (
        "format/qcow2/bitmaps/store.rs",
        &[("qcow2.bitmaps/store", "dirty bitmaps"), ("qcow2.change_header/before", "dirty bitmaps")],
    ),
    (
        "format/qcow2/check/repair.rs",
        &[
            ("qcow2.repair/after_l2_entries", "a misplaced entry of a snapshot is repaired"),
            ("qcow2.repair/after_refcounts", "leaks are repaired"),
            ("qcow2.repair/refcount_blocks", "shared clusters are repaired"),
            ("qcow2.repair/after_flags", "errors are repaired"),
        ],
    ),
    (
        "format/qcow2/check/rebuild.rs",
        &[
            ("qcow2.rebuild/refcount_blocks", "lost refcounts are rebuilt"),
            ("qcow2.rebuild/refcount_table", "lost refcounts are rebuilt"),
            ("qcow2.change_header/before", "lost refcounts are rebuilt"),
        ],
    ),
    (
        "format/qcow2/check/snapshots.rs",
        &[("qcow2.repair/snapshot_table", "an incomplete snapshot table is repaired")],
    ),
    ("job/commit.rs", &[("qcow2.barrier", "commit"), ("raw.flush", "commit into a raw file")]),
    // Locks, not a crash: tools' tests show that an image in use is left alone.
    ("job/create.rs", &[]),
];
