//! Rebuild: a new refcount table with new blocks, from nothing but the references.
//!
//! ```text
//!   free clusters and the end of the file ◀─ blocks ◀─ table        then the header names the table: one sector
//! ```
//!
//! Order on disk: the blocks and the table, a barrier, the header, a barrier. Until the header is written, nothing that
//! the image uses has changed: the new structure lies where neither a reference nor the old structure is. Afterwards the
//! old structure is free, for the new one does not count it.

use std::collections::BTreeMap;

use super::source::Source;
use super::window::Counter;
use super::{Check, CheckReport, Plan, Repair};
use crate::buf::Buf;
use crate::error::Result;
use crate::format::qcow2::Qcow2Error;
use crate::format::qcow2::layout::{HostOffset, REFCOUNT_TABLE_LEN_MAX};

/// Where the new structure goes.
struct Blueprint {
    /// Cluster of each block, by its place in the table.
    blocks: BTreeMap<u64, u64>,
    /// First cluster of the table, and how many it has.
    table: (u64, u64),
}

impl Blueprint {
    /// Whether a cluster holds a part of the new structure.
    fn taken(&self) -> Vec<u64> {
        let mut taken: Vec<u64> = self.blocks.values().copied().collect();
        taken.extend(self.table.0..self.table.0 + self.table.1);
        taken.sort_unstable();
        taken
    }
}

/// Hands out free clusters: those of the first window that nothing refers to, then those beyond the end of the file.
struct FreeClusters {
    inside: std::vec::IntoIter<u64>,
    beyond: u64,
}

impl FreeClusters {
    fn next(&mut self) -> u64 {
        self.inside.next().unwrap_or_else(|| {
            self.beyond += 1;
            self.beyond - 1
        })
    }
}

impl<C: Counter> Check<'_, C> {
    /// Replaces the refcount table and its blocks, then looks at the image anew.
    pub(super) async fn rebuild(mut self) -> Result<CheckReport> {
        self.tell.line(|| "Rebuilding refcount structure".into());
        let old = self.old_structure();
        let blueprint = self.draw_up().await?;
        let freed = self.write_structure(&blueprint, &old).await?;
        let bits = self.plan.bits.bits();
        let (table_at, clusters) = (HostOffset(blueprint.table.0 << bits), blueprint.table.1 as u32);
        let Self { plan, mut tell, progress, .. } = self;
        let Source { io, file, .. } = plan.source;
        // The header is written between two barriers.
        plan.image
            .write_header(io, file, |header| {
                header.refcount_table_offset = table_at;
                header.refcount_table_clusters = clusters;
            })
            .await?;
        plan.image.reload(io, file).await?;
        // What was found before counts as repaired unless it is found again.
        let before = std::mem::take(&mut tell.report);
        let plan = Plan::of(io, file, plan.image, plan.table).await?;
        let mut after = Check::<C>::new(plan, Some(Repair::All), tell, progress);
        after.sweep().await?;
        if after.lost || after.differences.any() {
            return Err(after.plan.source.fail(Qcow2Error::RebuiltWrong));
        }
        for line in freed {
            after.tell.line(|| line);
        }
        let report = &mut after.tell.report;
        report.corruptions_fixed +=
            before.corruptions_fixed + before.corruptions.saturating_sub(report.corruptions);
        report.leaks_fixed += before.leaks.saturating_sub(report.leaks);
        after.repair_flags(Repair::All).await?;
        after.finish()
    }

    /// Clusters of the old table and of those blocks that were counted, as often as they were.
    fn old_structure(&self) -> Vec<u64> {
        let (bits, file_len) = (self.plan.bits, self.plan.source.len);
        let mut clusters = Vec::new();
        let table_end = self.plan.refcount_table_at.0 + self.plan.refcount_table.len() as u64 * 8;
        if !self.plan.refcount_table.is_empty() && table_end < file_len + bits.size() {
            clusters.extend(self.plan.refcount_table_at.0 >> bits.bits()..bits.count(table_end));
        }
        let blocks = self.plan.refcount_table.iter().filter(|raw| **raw != 0 && **raw & 0x1ff == 0);
        let blocks = blocks.filter(|raw| bits.offset_in(**raw) == 0).map(|raw| raw >> bits.bits());
        clusters.extend(blocks.filter(|cluster| *cluster < self.compared));
        clusters.sort_unstable();
        clusters
    }

    /// Decides where everything goes. Needs the references of all windows, those to the old structure among them.
    async fn draw_up(&mut self) -> Result<Blueprint> {
        let several = self.compared > C::WINDOW;
        let (per_block, per_cluster) = (self.per_block(), self.plan.bits.size() / 8);
        let beyond = self.compared.max(self.plan.clusters);
        // As many blocks, and as large a table, as it can become.
        let (mut blocks_max, mut table_len) = (beyond.div_ceil(per_block), 1);
        loop {
            let end = beyond + blocks_max + table_len;
            let (blocks, clusters) = (end.div_ceil(per_block), end.div_ceil(per_block).div_ceil(per_cluster));
            if (blocks, clusters) == (blocks_max, table_len) {
                break;
            }
            (blocks_max, table_len) = (blocks, clusters);
        }
        if table_len * self.plan.bits.size() > REFCOUNT_TABLE_LEN_MAX {
            return Err(self.plan.source.fail(Qcow2Error::ImageFull { clusters: beyond }));
        }
        let mut needed = Vec::new();
        let (mut free, mut table) = (Vec::new(), None);
        let mut next = Some(0);
        while let Some(number) = next {
            if several {
                self.recount(number).await?;
            }
            if number == 0 {
                (free, table) = self.free_clusters(blocks_max, table_len);
            }
            needed.extend(self.blocks_in_use());
            next = self.window_after(number);
        }
        let mut free = FreeClusters { inside: free.into_iter(), beyond };
        let first = table.unwrap_or_else(|| {
            free.beyond += table_len;
            beyond
        });
        needed.extend(first / per_block..=(first + table_len - 1) / per_block);
        let mut blocks = BTreeMap::new();
        while let Some(index) = needed.pop() {
            if blocks.contains_key(&index) {
                continue;
            }
            let cluster = free.next();
            blocks.insert(index, cluster);
            needed.push(cluster / per_block);
        }
        Ok(Blueprint { blocks, table: (first, table_len) })
    }

    /// Clusters of the first window that nothing refers to: up to `count` of them, and the first of a run of `run`
    /// others, all within the file.
    fn free_clusters(&self, count: u64, run: u64) -> (Vec<u64>, Option<u64>) {
        let end = self.found.clusters().end.min(self.plan.clusters);
        let (mut singles, mut first, mut table) = (Vec::new(), 0, None);
        for cluster in 0..end {
            if self.found.get(cluster) != 0 {
                first = cluster + 1;
            } else if table.is_none() && cluster + 1 - first == run {
                table = Some(first);
            }
        }
        let in_table = |cluster| table.is_some_and(|first| (first..first + run).contains(&cluster));
        singles.extend(
            (0..end)
                .filter(|cluster| self.found.get(*cluster) == 0 && !in_table(*cluster))
                .take(usize::try_from(count).unwrap_or(usize::MAX)),
        );
        (singles, table)
    }

    /// Places in the table of blocks that count some cluster of the window.
    fn blocks_in_use(&self) -> Vec<u64> {
        let clusters = self.found.part_of(&(0..self.compared));
        let per_block = self.per_block();
        let mut indexes = Vec::new();
        let mut cluster = clusters.start;
        while cluster < clusters.end {
            let end = ((cluster / per_block + 1) * per_block).min(clusters.end);
            if self.found.used(&(cluster..end)).0 > 0 {
                indexes.push(cluster / per_block);
            }
            cluster = end;
        }
        indexes
    }

    /// Writes the blocks and the table, and returns the lines that tell which clusters of the old structure are free.
    async fn write_structure(&mut self, blueprint: &Blueprint, old: &[u64]) -> Result<Vec<String>> {
        let (per_block, bits) = (self.per_block(), self.plan.bits);
        let taken = blueprint.taken();
        let mut freed = Vec::new();
        self.without_refcounts = true;
        let mut next = Some(0);
        while let Some(number) = next {
            self.recount(number).await?;
            for same in old.chunk_by(|a, b| a == b) {
                let (cluster, times) = (same[0], same.len() as u64);
                if let Some(reference) = self.found.try_get(cluster) {
                    let refcount = reference + times;
                    freed.push(format!(
                        "Repairing cluster {cluster} refcount={refcount} reference={reference}"
                    ));
                }
            }
            let covered = self.found.clusters();
            next = self.window_after(number);
            let indexes =
                covered.start / per_block..next.map_or(u64::MAX, |next| next * C::WINDOW / per_block);
            let mut blocks: Vec<(u64, Buf)> = Vec::new();
            for (index, cluster) in blueprint.blocks.range(indexes) {
                blocks.push((cluster << bits.bits(), self.new_block(*index, &taken)));
                if blocks.len() == 64 {
                    let some = std::mem::take(&mut blocks);
                    self.plan.source.write_all("qcow2.rebuild/refcount_blocks", some).await?;
                }
            }
            self.plan.source.write_all("qcow2.rebuild/refcount_blocks", blocks).await?;
        }
        let mut table = Buf::zeroed((blueprint.table.1 << bits.bits()) as usize);
        for (index, cluster) in &blueprint.blocks {
            let entry = cluster << bits.bits();
            table[*index as usize * 8..][..8].copy_from_slice(&entry.to_be_bytes());
        }
        let at = blueprint.table.0 << bits.bits();
        self.plan.source.write_all("qcow2.rebuild/refcount_table", vec![(at, table)]).await?;
        Ok(freed)
    }

    /// A block that counts the references of the window, and the new structure.
    fn new_block(&self, index: u64, taken: &[u64]) -> Buf {
        let (width, per_block) = (self.refcount_width(), self.per_block());
        let mut block = Buf::zeroed(self.plan.bits.size() as usize);
        let first = index * per_block;
        for nth in 0..per_block {
            let count = self.found.try_get(first + nth).unwrap_or(0);
            if count != 0 {
                width.set(&mut block, nth as usize, count);
            }
        }
        let start = taken.partition_point(|cluster| *cluster < first);
        for cluster in taken[start..].iter().take_while(|cluster| **cluster < first + per_block) {
            width.set(&mut block, (cluster - first) as usize, 1);
        }
        block
    }
}
