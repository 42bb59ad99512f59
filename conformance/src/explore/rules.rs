//! The rules of order that formats declare, each broken on purpose.
//!
//! Every row is a sentence at the head of `flush.rs`, or at the function that enforces it, and names the line of core
//! that does: its label. The executor answers that intent without having done it (`lie`), which is what leaving the line
//! out of core would be. Exploring the operation must then find a broken image. Start at [`RULES`].

use drystone_core::intent::Label;

use super::{Explored, Operation, Thoroughness, explore_lying};
use crate::lie::{Lie, Lies};

/// A rule of order.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// The line that enforces it, by the label of its intent.
    pub label: Label,
    /// How it is broken.
    pub lie: Lie,
    /// The rule.
    pub rule: &'static str,
    /// An operation that a crash breaks without it, by its name.
    pub operation: &'static str,
}

const fn barrier(label: Label, rule: &'static str, operation: &'static str) -> Rule {
    Rule { label, lie: Lie::Skipped, rule, operation }
}

const fn awaited(label: Label, rule: &'static str, operation: &'static str) -> Rule {
    Rule { label, lie: Lie::Late, rule, operation }
}

/// All of them.
pub const RULES: &[Rule] = &[
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
        "raw.flush",
        "the base of a commit holds all of the data before the image is emptied",
        "commit into a raw file",
    ),
    barrier("raw.flush", "what a flush of a raw image covers is durable when it is answered", "writes"),
    barrier(
        "qcow2.repair/after_refcounts",
        "refcounts are right before a COPIED flag says so",
        "leaks are repaired",
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
    barrier(
        "vmdk.flush/before_grain_tables",
        "a grain is durable before a table points to it",
        "new grains of a VMDK image",
    ),
    awaited(
        "vmdk.compress/write",
        "a compressed grain is written before the barrier that covers it",
        "convert to a compressed VMDK image",
    ),
    barrier(
        "vmdk.flush/before_redundant_tables",
        "a grain table is durable before its copy says the same",
        "new grains of a VMDK image",
    ),
    barrier("vmdk.flush", "what a flush covers is durable when it is answered", "new grains of a VMDK image"),
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
    barrier(
        "vmdk.begin/cid_barrier",
        "another content ID is durable before anything changes",
        "overwrite of a VMDK grain",
    ),
    awaited(
        "vmdk.begin/cid",
        "another content ID is written before its barrier",
        "overwrite of a VMDK grain",
    ),
    barrier(
        "vmdk.begin/barrier",
        "the mark of a writer is durable before a table differs from its copy",
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
    barrier("vmdk.create/before_header", "all else is durable before the header", "create a VMDK image"),
    barrier("vmdk.create/after", "a created image is durable", "create a VMDK image"),
    awaited(
        "vmdk.create/directory",
        "grain directories are written before the header",
        "create a VMDK image",
    ),
    awaited("vmdk.create/descriptor", "the descriptor is written before the header", "create a VMDK image"),
    awaited("vmdk.create/header", "a new header is written before its barrier", "create a VMDK image"),
    barrier(
        "qed.flush/before_l2_tables",
        "a cluster is durable before an L2 table names it",
        "new clusters of a QED image",
    ),
    barrier(
        "qed.flush/before_l1_table",
        "an L2 table is durable before the L1 table names it",
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
    barrier("qed.create/before_header", "all else is durable before the header", "create a QED image"),
    barrier("qed.create/after", "a created image is durable", "create a QED image"),
    awaited("qed.create/header", "a new header is written before its barrier", "create a QED image"),
    barrier(
        "qcow.flush/before_l2_tables",
        "a cluster is durable before an L2 table names it",
        "new clusters of a qcow image",
    ),
    barrier(
        "qcow.flush/before_l1_table",
        "an L2 table is durable before the L1 table names it",
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
    barrier("qcow.create/before_header", "all else is durable before the header", "create a qcow image"),
    barrier("qcow.create/after", "a created image is durable", "create a qcow image"),
    awaited("qcow.create/header", "a new header is written before its barrier", "create a qcow image"),
];

/// Intents that no crash here can tell from their absence, with why they are there all the same. A row moves to [`RULES`]
/// with the first operation that needs it.
pub const PROMISES: &[(Label, &str)] = &[
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
    ("qed.new_table", "a new L2 table is zeros; space behind the end of a file is zeros already"),
    ("qcow.new_table", "as for `qed.new_table`"),
    ("qed.create/l1_table", "a new L1 table is zeros; a new file is zeros already, and only a device is not"),
    ("qcow.create/l1_table", "as for `qed.create/l1_table`"),
    (
        "vmdk.close",
        "the mark of a writer has gone when the image is closed; one that stays costs the next writer a comparison",
    ),
    (
        "cow/zero",
        "the edges of a new block are zeros before the map names it; space behind the end of a file is zeros already, so that \
         only a block that a crash had lost would show other bytes",
    ),
    (
        "qcow2.change_header/data_file",
        "what a data file holds is durable before a header that shows it; until now, all that a new header shows of a \
         data file is pointed to by L2 entries, which are written after a barrier of their own",
    ),
    (
        "qcow2.repair/after_l2_entries",
        "entries that lose their cluster are durable before refcounts change; those name clusters that were not counted \
         for them before either, so that the refcounts are the same",
    ),
];

impl Rule {
    /// Explores the rule's operation while the executor breaks the rule, with one order of completions after the other;
    /// returns the report of the first state that is broken.
    ///
    /// # Errors
    /// When no crash shows that the rule is broken: what was explored in vain.
    ///
    /// # Panics
    /// When there is no such operation.
    pub fn broken(
        &self,
        operations: &[Operation],
        how: &Thoroughness,
        seeds: u64,
    ) -> Result<String, Explored> {
        let operation = operations.iter().find(|operation| operation.name == self.operation);
        let operation = operation.unwrap_or_else(|| panic!("no operation '{}'", self.operation));
        let mut explored = Explored::default();
        for seed in 0..seeds {
            match explore_lying(operation, how, seed, Lies::about_label(self.label, self.lie)) {
                Ok(more) => explored.add(more),
                Err(report) => return Ok(report),
            }
        }
        Err(explored)
    }
}
