//! Where the next generation goes: one run of free clusters, the first that is long enough, or beyond all that is in use.
//!
//! Two generations of like size take turns in two places, so that the file does not grow with every snapshot.

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
///   start ─▶ blocks | refcount table | L1 | snapshot's L1 | snapshot table | L2 tables, as many as turn out to differ
/// ```
pub(super) struct Layout {
    pub(super) start: u64,
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

    pub(super) fn l2_tables(&self) -> u64 {
        self.snapshots() + self.snapshots_clusters
    }

    pub(super) fn end(&self) -> u64 {
        self.l2_tables() + self.l2_tables_max
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
        let own = self.start / self.per_block..=(self.end() - 1) / self.per_block;
        let (last, others): (Vec<u64>, Vec<u64>) = self.blocks.iter().partition(|index| own.contains(index));
        let mut windows: Vec<_> = others.chunks(at_once).map(<[u64]>::to_vec).collect();
        windows.push(last);
        windows
    }

    fn clusters(&self) -> u64 {
        self.end() - self.start
    }

    /// Adds the blocks that count the generation where it starts at `start`, until they count themselves too.
    fn settle(&mut self, start: u64, cluster_size: u64) -> Result<(), Qcow2Error> {
        self.start = start;
        loop {
            let own = start / self.per_block..=(self.end() - 1) / self.per_block;
            let known = self.blocks.len();
            let missing: Vec<u64> = own.filter(|index| self.blocks.binary_search(index).is_err()).collect();
            self.blocks.extend(missing);
            self.blocks.sort_unstable();
            let entries = self.blocks.last().map_or(0, |last| last + 1);
            let tables = (entries * 8).div_ceil(cluster_size).max(self.table_clusters);
            if tables * cluster_size > REFCOUNT_TABLE_MAX {
                return Err(Qcow2Error::ImageFull { clusters: start });
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
        let free = self.free_run(io, layout.clusters()).await?;
        let settled = layout.settle(free.fit.unwrap_or(free.end), cluster_size);
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

    /// Looks for `wanted` neighbouring clusters that are counted and free.
    async fn free_run(&self, io: &Io, wanted: u64) -> Result<Free> {
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
                if width.get(&bytes, in_block as usize) == 0 && !refcounts.metadata.contains(&cluster) {
                    run += 1;
                } else {
                    (run, end) = (0, end.max(cluster + 1));
                }
                if run == wanted {
                    return Ok(Free { fit: Some(cluster + 1 - wanted), end });
                }
            }
        }
        Ok(Free { fit: None, end })
    }
}
