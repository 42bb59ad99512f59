//! Rules of QED and qcow.

use super::{Promise, Rule, Stated, awaited, barrier};

pub(super) const RULES: &[Rule] = &[
    barrier(
        "qed.flush/before_tables",
        "a cluster, and a new table of zeros, is durable before an entry names it",
        "new clusters of a QED image",
    ),
    barrier("qed.flush", "what a flush covers is durable when it is answered", "new clusters of a QED image"),
    awaited(
        "qed.flush/l2_tables",
        "L2 tables are written before the flush that covers them",
        "new clusters of a QED image",
    ),
    awaited(
        "qed.flush/l1_table",
        "the L1 table is written before the flush that covers it",
        "new clusters of a QED image",
    ),
    barrier(
        "qed.begin/barrier",
        "the mark for a check is durable before anything is allocated",
        "new clusters of a QED image",
    ),
    awaited(
        "qed.begin/mark",
        "the mark for a check is written before its barrier",
        "new clusters of a QED image",
    ),
    barrier(
        "qed.resize/before_header",
        "what a longer disk shows is durable before the header says its length",
        "a longer QED image above a file",
    ),
    barrier("qed.resize/after", "a longer disk is durable on return", "a longer QED image above a file"),
    awaited(
        "qed.resize/header",
        "a longer disk's header is written before its barrier",
        "a longer QED image above a file",
    ),
    barrier(
        "qed.change_backing/before_header",
        "a backing file's name is durable before the header names its place",
        "another backing file of a QED image",
    ),
    awaited(
        "qed.change_backing/name",
        "a backing file's name is written before the header names its place",
        "another backing file of a QED image",
    ),
    barrier("qed.create/after", "a created image is durable", "create a QED image"),
    awaited("qed.create/header", "a new header is written before its barrier", "create a QED image"),
    barrier(
        "qcow.flush/before_tables",
        "a cluster, and a new table of zeros, is durable before an entry names it",
        "new clusters of a qcow image",
    ),
    barrier(
        "qcow.flush",
        "what a flush covers is durable when it is answered",
        "new clusters of a qcow image",
    ),
    awaited(
        "qcow.flush/l2_tables",
        "L2 tables are written before the flush that covers them",
        "new clusters of a qcow image",
    ),
    awaited(
        "qcow.flush/l1_table",
        "the L1 table is written before the flush that covers it",
        "new clusters of a qcow image",
    ),
    awaited(
        "qcow.compress/write",
        "a compressed cluster is written before the barrier in front of its table",
        "new clusters of a qcow image",
    ),
    barrier("qcow.create/after", "a created image is durable", "create a qcow image"),
    awaited("qcow.create/header", "a new header is written before its barrier", "create a qcow image"),
    awaited(
        "qed.new_table",
        "a new L2 table is zeros before the L1 table names it",
        "new clusters of a QED image where new space holds anything",
    ),
    barrier(
        "qed.create/before_header",
        "all else is durable before the header",
        "create a QED image where new space holds anything",
    ),
    awaited(
        "qed.create/l1_table",
        "a new L1 table is zeros before the header",
        "create a QED image where new space holds anything",
    ),
    awaited(
        "qcow.new_table",
        "a new L2 table is zeros before the L1 table names it",
        "new clusters of a qcow image where new space holds anything",
    ),
    barrier(
        "qcow.create/before_header",
        "all else is durable before the header",
        "create a qcow image where new space holds anything",
    ),
    awaited(
        "qcow.create/l1_table",
        "a new L1 table is zeros before the header",
        "create a qcow image where new space holds anything",
    ),
];

pub(super) const PROMISES: &[Promise] = &[
    (
        "qed.close",
        "the mark for a check has gone when the image is closed; one that stays costs the next writer a look at the tables",
    ),
    ("qed.close/mark", "as for `qed.close`"),
    (
        "qed.change_backing/before",
        "what the image holds is durable before the header names another backing file; until now nothing that was written \
         before depends on it",
    ),
    (
        "qed.change_backing/after",
        "another backing file is named durably on return; both names lead to one file here",
    ),
    ("qed.change_backing/header", "as for `qed.change_backing/after`"),
    (
        "qed.repair",
        "entries that name no place in the file are cleared durably; one that comes back is found and cleared again",
    ),
];

pub(super) const STATED: &[Stated] = &[
    (
        "format/qed/begin.rs",
        &[
            ("qed.begin/barrier", "new clusters of a QED image"),
            ("qed.begin/mark", "new clusters of a QED image"),
        ],
    ),
    (
        "format/qed/change.rs",
        &[
            ("qed.resize/before_header", "a longer QED image above a file"),
            ("qed.change_backing/before_header", "another backing file of a QED image"),
        ],
    ),
    ("format/qed/create.rs", &[("qed.create/after", "create a QED image")]),
    ("format/qcow/create.rs", &[("qcow.create/after", "create a qcow image")]),
    ("format/qcow/pack.rs", &[("qcow.compress/write", "new clusters of a qcow image")]),
];
