//! Refcounts of the next generation, as many blocks at once as memory is meant for.

use super::super::layout::{HostOffset, RefcountTableEntry, RefcountWidth};
use super::super::{Qcow2, Qcow2Error};
use super::not_counted;
use super::region::Layout;
use super::walk::Step;
use crate::buf::Buf;
use crate::engine::Io;
use crate::error::Result;
use crate::graph::driver::Role;

/// Some refcount blocks in memory.
pub(super) struct Window {
    width: RefcountWidth,
    cluster_bits: u32,
    per_block: u64,
    block_len: usize,
    /// Numbers of the blocks, in order.
    indices: Vec<u64>,
    bytes: Vec<u8>,
}

impl Window {
    pub(super) fn indices(&self) -> &[u64] {
        &self.indices
    }

    /// The block that counts a cluster, by its place among those here, and the cluster's number in it.
    #[inline]
    fn locate(&self, cluster: u64) -> Option<(usize, usize)> {
        let index = cluster / self.per_block;
        // Most windows hold neighbours.
        let near = index.checked_sub(self.indices[0])? as usize;
        let block = match self.indices.get(near) {
            Some(found) if *found == index => near,
            _ => self.indices.binary_search(&index).ok()?,
        };
        Some((block, (cluster % self.per_block) as usize))
    }

    /// The refcount of a cluster; `None` outside the window.
    #[inline]
    pub(super) fn count(&self, cluster: u64) -> Option<u64> {
        let (block, index) = self.locate(cluster)?;
        Some(self.width.get(&self.bytes[block * self.block_len..][..self.block_len], index))
    }

    fn set(&mut self, cluster: u64, count: u64) {
        if let Some((block, index)) = self.locate(cluster) {
            self.width.set(&mut self.bytes[block * self.block_len..][..self.block_len], index, count);
        }
    }

    /// Counts a cluster, which nobody used before, so many times; outside the window it does nothing.
    ///
    /// # Errors
    /// When it is counted already. A place for the generation is looked for in the same refcounts, which are read again for
    /// the window: between the two, somebody else may have written to the file.
    pub(super) fn use_fresh(&mut self, cluster: u64, count: u64) -> Result<(), Qcow2Error> {
        match self.count(cluster) {
            None | Some(0) => self.set(cluster, count),
            Some(_) => return Err(Qcow2Error::NoLongerFree { at: HostOffset(cluster << self.cluster_bits) }),
        }
        Ok(())
    }

    /// Counts one reference more or less; outside the window it does nothing.
    #[inline]
    pub(super) fn step(&mut self, cluster: u64, step: Step) -> Result<(), Qcow2Error> {
        let Some((block, index)) = self.locate(cluster) else { return Ok(()) };
        let block = &mut self.bytes[block * self.block_len..][..self.block_len];
        let count = self.width.get(block, index);
        let at = HostOffset(cluster << self.cluster_bits);
        if count == 0 {
            return Err(not_counted(at));
        }
        if step == Step::Raise && count == self.width.max() {
            return Err(Qcow2Error::RefcountFull { at, bits: self.width.bits() });
        }
        let count = if step == Step::Raise { count + 1 } else { count - 1 };
        self.width.set(block, index, count);
        Ok(())
    }

    /// Counts the clusters of the generation itself: its tables once, and the L2 tables as often as they are referred to.
    ///
    /// # Errors
    /// As for [`use_fresh`](Self::use_fresh).
    pub(super) fn add_region(
        &mut self,
        layout: &Layout,
        replaced: &[HostOffset],
        each: u64,
    ) -> Result<(), Qcow2Error> {
        layout.fixed().try_for_each(|cluster| self.use_fresh(cluster, 1))?;
        layout.l2_tables().take(replaced.len()).try_for_each(|cluster| self.use_fresh(cluster, each))
    }

    /// The first cluster that nobody uses.
    pub(super) fn first_free(&self) -> u64 {
        let numbers =
            self.indices.iter().flat_map(|index| index * self.per_block..(index + 1) * self.per_block);
        let mut free = numbers.filter(|cluster| self.count(*cluster) == Some(0));
        free.next().unwrap_or(u64::MAX)
    }

    /// The blocks by their places, neighbours together.
    pub(super) fn into_runs(self, layout: &Layout) -> Vec<(u64, Buf)> {
        let places: Vec<u64> = self.indices.iter().map(|index| layout.block_at(*index)).collect();
        let mut runs = Vec::new();
        let mut at = 0;
        for run in places.chunk_by(|a, b| a + 1 == *b) {
            let len = run.len() * self.block_len;
            runs.push((run[0], Buf::from(&self.bytes[at..at + len])));
            at += len;
        }
        runs
    }
}

impl Qcow2 {
    /// The blocks of these numbers, `width` bits a refcount, with what the generation in use counts.
    pub(super) async fn fill_window(
        &self,
        io: &Io,
        indices: Vec<u64>,
        width: RefcountWidth,
    ) -> Result<Window> {
        let bits = self.geometry.cluster_bits;
        let block_len = bits.size() as usize;
        let per_block = (8 * bits.size()) >> width.order();
        let bytes = vec![0; indices.len() * block_len];
        let mut window = Window { width, cluster_bits: bits.bits(), per_block, block_len, indices, bytes };
        let old = self.refcounts.borrow().width;
        let old_per_block = self.refcounts.borrow().per_block();
        let mut seen = None;
        for number in 0..window.indices.len() {
            let first = window.indices[number] * per_block;
            for old_index in first / old_per_block..=(first + per_block - 1) / old_per_block {
                if seen.as_ref().is_none_or(|(index, _)| *index != old_index) {
                    seen = Some((old_index, self.read_block(io, old_index).await?));
                }
                let Some((_, Some(block))) = &seen else { continue };
                if old == width {
                    window.bytes[number * block_len..][..block_len].copy_from_slice(block);
                    continue;
                }
                let start = first.max(old_index * old_per_block);
                let end = (first + per_block).min((old_index + 1) * old_per_block);
                for cluster in start..end {
                    let count = old.get(block, (cluster % old_per_block) as usize);
                    if count > width.max() {
                        let at = HostOffset(cluster << bits.bits());
                        let bits = width.bits();
                        return Err(self.fail(Qcow2Error::RefcountTooWide { at, count, bits }));
                    }
                    if count > 0 {
                        window.set(cluster, count);
                    }
                }
            }
        }
        Ok(window)
    }

    /// The refcount block of that number, as it is on disk.
    pub(in super::super) async fn read_block(&self, io: &Io, index: u64) -> Result<Option<Buf>> {
        let bits = self.geometry.cluster_bits;
        let Some(raw) = self.refcounts.borrow().table.get(index as usize).copied() else { return Ok(None) };
        let entry = RefcountTableEntry::parse(raw, index, bits).map_err(|fault| self.fail(fault))?;
        let Some(block) = entry.block() else { return Ok(None) };
        let len = bits.size() as usize;
        io.read_bytes("qcow2.generation/count", io.child(Role::File), block.0, len).await.map(Some)
    }
}
