//! Where the next generation goes: two runs of free clusters, one for L2 tables and one for all else, the first that are
//! long enough, or beyond all that is in use.
//!
//! Generations of like size take turns in the places of those before them, so that the file does not grow with every
//! snapshot. L2 tables stay apart because some outlive their generation, and would leave holes that are too short.

use std::ops::Range;

use super::super::layout::{HostOffset, L1Entry, RefcountTableEntry};
use super::super::refcount::REFCOUNT_TABLE_MAX;
use super::super::{Qcow2, Qcow2Error};
use super::Change;
use crate::engine::Io;
use crate::error::Result;
use crate::graph::driver::Role;

/// Bytes of refcount blocks that are made in memory at once.
const WINDOW_LEN: u64 = 32 << 20;

/// The places of a generation, in clusters of the file.
///
/// ```text
///   start    ─▶ blocks | refcount table | L1 | snapshot's L1 | snapshot table
///   l2_start ─▶ L2 tables, as many as turn out to differ
/// ```
pub(super) struct Layout {
    pub(super) start: u64,
    l2_start: u64,
    /// Numbers of the refcount blocks, in order.
    pub(super) blocks: Vec<u64>,
    pub(super) table_clusters: u64,
    pub(super) l1_entries: u64,
    /// 0 where the L1 table stays where it is.
    pub(super) l1_clusters: u64,
    snapshot_l1_clusters: u64,
    snapshots_clusters: u64,
    l2_tables_max: u64,
    /// Clusters that a refcount block counts.
    per_block: u64,
}

impl Layout {
    pub(super) fn table(&self) -> u64 {
        self.start + self.blocks.len() as u64
    }

    pub(super) fn l1(&self) -> u64 {
        self.table() + self.table_clusters
    }

    pub(super) fn snapshot_l1(&self) -> u64 {
        self.l1() + self.l1_clusters
    }

    pub(super) fn snapshots(&self) -> u64 {
        self.snapshot_l1() + self.snapshot_l1_clusters
    }

    /// Where all but the L2 tables is.
    pub(super) fn fixed(&self) -> Range<u64> {
        self.start..self.snapshots() + self.snapshots_clusters
    }

    /// Where the L2 tables are that differ.
    pub(super) fn l2_tables(&self) -> Range<u64> {
        self.l2_start..self.l2_start + self.l2_tables_max
    }

    pub(super) fn end(&self) -> u64 {
        self.fixed().end.max(self.l2_tables().end)
    }

    /// The place of block number `index`, which is one of [`blocks`](Self::blocks).
    pub(super) fn block_at(&self, index: u64) -> u64 {
        let number = self.blocks.binary_search(&index).expect("one of the blocks");
        self.start + number as u64
    }

    /// The blocks in portions of bounded size; those that count the generation itself come last, once it is known how
    /// many L2 tables differ.
    pub(super) fn windows(&self, cluster_size: u64) -> Vec<Vec<u64>> {
        let at_once = (WINDOW_LEN / cluster_size).max(1) as usize;
        if self.blocks.len() <= at_once {
            return vec![self.blocks.clone()];
        }
        let own = self.own_blocks();
        let (last, others): (Vec<u64>, Vec<u64>) =
            self.blocks.iter().partition(|index| own.binary_search(index).is_ok());
        let mut windows: Vec<_> = others.chunks(at_once).map(<[u64]>::to_vec).collect();
        windows.push(last);
        windows
    }

    /// Numbers of the blocks that count the generation itself, in order.
    fn own_blocks(&self) -> Vec<u64> {
        let parts = [self.fixed(), self.l2_tables()];
        let parts = parts.into_iter().filter(|part| !part.is_empty());
        let mut own: Vec<u64> =
            parts.flat_map(|part| part.start / self.per_block..=(part.end - 1) / self.per_block).collect();
        own.sort_unstable();
        own.dedup();
        own
    }

    /// Puts the generation to its places, `end` where nothing fits, and adds blocks until they count it all.
    fn settle(
        &mut self,
        (fixed, l2_tables): (Option<u64>, Option<u64>),
        end: u64,
        cluster_size: u64,
    ) -> Result<(), Qcow2Error> {
        loop {
            self.start = fixed.unwrap_or(end);
            let behind = if fixed.is_none() { self.fixed().end } else { end };
            self.l2_start = l2_tables.unwrap_or(behind);
            let known = self.blocks.len();
            self.blocks.extend(self.own_blocks());
            self.blocks.sort_unstable();
            self.blocks.dedup();
            let entries = self.blocks.last().map_or(0, |last| last + 1);
            let tables = (entries * 8).div_ceil(cluster_size).max(self.table_clusters);
            if tables * cluster_size > REFCOUNT_TABLE_MAX {
                return Err(Qcow2Error::ImageFull { clusters: self.end() });
            }
            if (known, self.table_clusters) == (self.blocks.len(), tables) {
                return Ok(());
            }
            self.table_clusters = tables;
        }
    }
}

/// What the refcounts in use say of free space.
struct Free {
    /// The first run that is long enough.
    fit: Option<u64>,
    /// Nothing is in use from here on.
    end: u64,
}

impl Qcow2 {
    /// Finds a place for the next generation.
    pub(super) async fn plan_generation(
        &self,
        io: &Io,
        change: &Change,
        counts_references: bool,
    ) -> Result<Layout> {
        let cluster_size = self.geometry.cluster_size;
        let clusters_of = |len: u64| len.div_ceil(cluster_size);
        let per_block = (8 * cluster_size) >> change.width.order();
        let l1_len = change.l1.len() as u64 * 8;
        let snapshots = change.snapshots.as_ref();
        let (l1_entries, same_width, table_clusters) = {
            let refcounts = self.refcounts.borrow();
            let clusters = clusters_of(refcounts.table.len() as u64 * 8);
            (self.l1.borrow().entries.len(), refcounts.width == change.width, clusters)
        };
        let moves_l1 = counts_references || l1_entries != change.l1.len();
        let mut layout = Layout {
            start: 0,
            l2_start: 0,
            blocks: self.covered(per_block, cluster_size)?,
            // One that was made with room to grow keeps it.
            table_clusters: if same_width { table_clusters } else { 1 },
            l1_entries: change.l1.len() as u64,
            l1_clusters: if moves_l1 { clusters_of(l1_len) } else { 0 },
            snapshot_l1_clusters: match snapshots.and_then(|table| table.new.as_ref()) {
                Some(_) => clusters_of(l1_len),
                None => 0,
            },
            snapshots_clusters: snapshots.map_or(0, |table| clusters_of(table.len())),
            l2_tables_max: if counts_references { self.table_count(&change.l1)? } else { 0 },
            per_block,
        };
        let entries = layout.blocks.last().map_or(0, |last| last + 1);
        layout.table_clusters = layout.table_clusters.max(clusters_of(entries * 8));
        // L2 tables beyond all that is counted take blocks of their own.
        let fixed_len = layout.fixed().end + layout.l2_tables_max / per_block + 4;
        let fixed = self.free_run(io, fixed_len, 0..0).await?;
        let taken = fixed.fit.map_or(0..0, |start| start..start + fixed_len);
        let l2_tables = match layout.l2_tables_max {
            0 => Free { fit: Some(0), end: fixed.end },
            tables => self.free_run(io, tables, taken.clone()).await?,
        };
        // All else may have gone to the free clusters that come last.
        let end = fixed.end.max(l2_tables.end).max(taken.end);
        let mut settled = layout.settle((fixed.fit, l2_tables.fit), end, cluster_size);
        if fixed.fit.is_some() && layout.fixed().end - layout.fixed().start > fixed_len {
            settled = layout.settle((None, l2_tables.fit), end, cluster_size);
        }
        settled.map_err(|fault| self.fail(fault))?;
        let last = self.geometry.cluster_bits.bits();
        match layout.end() < 1 << (56 - last) {
            true => Ok(layout),
            false => Err(self.fail(Qcow2Error::ImageFull { clusters: layout.end() })),
        }
    }

    /// Numbers of the blocks, `per_block` clusters each, that count what is counted.
    fn covered(&self, per_block: u64, cluster_size: u64) -> Result<Vec<u64>> {
        let refcounts = self.refcounts.borrow();
        let old = refcounts.per_block();
        let mut blocks = Vec::new();
        for (index, raw) in (0u64..).zip(&refcounts.table) {
            let entry = RefcountTableEntry::parse(*raw, index, self.geometry.cluster_bits);
            if entry.map_err(|fault| self.fail(fault))?.block().is_none() {
                continue;
            }
            let last = ((index + 1) * old - 1) / per_block;
            let first = (index * old / per_block).max(blocks.last().map_or(0, |last| last + 1));
            if (last + 1) * 8 > REFCOUNT_TABLE_MAX.max(cluster_size) {
                return Err(self.fail(Qcow2Error::ImageFull { clusters: index * old }));
            }
            blocks.extend(first..=last);
        }
        Ok(blocks)
    }

    /// How many L2 tables an L1 table names, each once.
    fn table_count(&self, l1: &[u64]) -> Result<u64> {
        let bits = self.geometry.cluster_bits;
        let mut tables = Vec::new();
        for raw in l1 {
            if let L1Entry::Table { at, .. } = L1Entry::parse(*raw, bits).map_err(|fault| self.fail(fault))? {
                tables.push(at.0);
            }
        }
        tables.sort_unstable();
        match tables.windows(2).find(|pair| pair[0] == pair[1]) {
            None => Ok(tables.len() as u64),
            // Each walk would take as long as there are entries, for a few bytes of file.
            Some(pair) => {
                let l1 = self.header.borrow().l1_offset;
                Err(self.fail(Qcow2Error::L2TableShared { l1, at: HostOffset(pair[0]) }))
            }
        }
    }

    /// Looks for `wanted` neighbouring clusters that are counted and free, and not those that are `taken`.
    async fn free_run(&self, io: &Io, wanted: u64, taken: Range<u64>) -> Result<Free> {
        let file = io.child(Role::File);
        let bits = self.geometry.cluster_bits;
        let (width, per_block, entries) = {
            let refcounts = self.refcounts.borrow();
            (refcounts.width, refcounts.per_block(), refcounts.table.len() as u64)
        };
        let file_len = io.len(file);
        let (mut run, mut end) = (0, file_len.div_ceil(bits.size()));
        for index in 0..entries {
            let raw = self.refcounts.borrow().table[index as usize];
            let entry = RefcountTableEntry::parse(raw, index, bits).map_err(|fault| self.fail(fault))?;
            let Some(block) = entry.block() else {
                run = 0;
                continue;
            };
            // As many blocks as the file has room for, and no more, are read.
            if block.0 >= file_len {
                let table = "a refcount block";
                return Err(self.fail(Qcow2Error::BeyondEnd { table, at: block, file_len }));
            }
            let bytes = io.read_bytes("qcow2.generation/search", file, block.0, bits.size() as usize).await?;
            let refcounts = self.refcounts.borrow();
            for in_block in 0..per_block {
                let cluster = index * per_block + in_block;
                let counted =
                    width.get(&bytes, in_block as usize) != 0 || refcounts.metadata.contains(&cluster);
                run = if counted || taken.contains(&cluster) { 0 } else { run + 1 };
                if counted {
                    end = end.max(cluster + 1);
                }
                if run == wanted {
                    return Ok(Free { fit: Some(cluster + 1 - wanted), end });
                }
            }
        }
        // A damaged image may name tables beyond the end of its file.
        let mut beyond: Vec<u64> =
            self.refcounts.borrow().metadata.iter().copied().filter(|cluster| *cluster >= end).collect();
        beyond.sort_unstable();
        // Twice as much room holds the blocks too that count the region itself.
        for cluster in beyond {
            if cluster < end + 2 * wanted + 64 {
                end = cluster + 1;
            }
        }
        Ok(Free { fit: None, end })
    }
}
