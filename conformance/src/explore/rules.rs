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
        "vhdx.flush/before_entry",
        "a block is durable before a log entry leads to it",
        "parts of blocks above a VHDX parent",
    ),
    barrier(
        "vhdx.flush/before_entry",
        "what a longer disk shows is durable before the entry with its size",
        "a longer VHDX disk",
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
    barrier(
        "vhdx.begin/after_header",
        "the headers tell of a change before it is made",
        "overwrites in a VHDX image",
    ),
    barrier(
        "vhdx.create/before_file_type",
        "all of a new image is durable before its name",
        "create a VHDX image",
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
        "vhdx.begin/header",
        "the headers tell of a change before it is made",
        "overwrites in a VHDX image",
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
        "vhdx.zero/partial",
        "the rest of a block is zeros before an entry shows it",
        "zeros above a VHDX parent",
    ),
    awaited(
        "vhdx.resize/zeros",
        "what is behind the old end is zeros before the entry with the new size",
        "a longer VHDX disk",
    ),
    barrier(
        "vpc.flush/before_bitmaps",
        "a sector is durable before a bitmap calls it there",
        "parts of blocks above a VHD parent",
    ),
    barrier(
        "vpc.flush/before_bat",
        "a block and its bitmap are durable before the BAT names it",
        "parts of blocks above a VHD parent",
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

/// Intents that no crash here can tell from their absence, with why they are there all the same. A row moves to [`RULES`]
/// with the first operation that needs it.
pub const PROMISES: &[(Label, &str)] = &[
    (
        "vhdx.create/bat",
        "the BAT of a new image is there before its name; one that is not is zeros, which say that nothing is there",
    ),
    (
        "vpc.flush/footer",
        "the footer stands behind the blocks for readers that look for it there; ours, as the reference, goes by the copy at the \
         start",
    ),
    ("vpc.create/footer", "as above"),
    ("vpc.cut/footer", "as above"),
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
