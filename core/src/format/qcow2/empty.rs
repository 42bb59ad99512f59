//! Empty: an image that holds nothing, so that all of it reads as its backing file does.
//!
//! Where nothing but the active tables holds clusters, these are replaced as a whole, whatever their size. Twice, because
//! the place where an empty image has its metadata is taken by the old one:
//!
//! ```text
//!   header | old metadata and data …                      | end of the file
//!   header | old …            | table, blocks, L1 (empty) |      first switch: the header points to the end
//!   header | table, blocks, L1 (empty) | nothing …        |      second switch: and back to the front
//!   header | table, blocks, L1 (empty) |                         the file is cut off
//! ```
//!
//! Otherwise (snapshots, bitmaps, a data file, version 2, a host that is no file) the clusters are given back one by one.

use std::ops::RangeInclusive;

use rustc_hash::FxHashSet;

use super::layout::{Crypt, GuestOffset, HostOffset, RefcountTableEntry};
use super::open::unprotected_clusters;
use super::refcount::REFCOUNT_TABLE_MAX;
use super::{Qcow2, Qcow2Error};
use crate::buf::Buf;
use crate::engine::Io;
use crate::error::Result;
use crate::filter::DebugEvent;
use crate::graph::driver::Role;
use crate::intent::{Fua, LeafKind, Preallocation};

/// Metadata of an empty image, from cluster `first` on: refcount table, refcount blocks, L1 table.
struct Layout {
    first: u64,
    table_clusters: u64,
    /// Number of the block that counts the header, and of those that count this metadata.
    blocks: Vec<u64>,
    l1_clusters: u64,
}

impl Layout {
    /// Lays the metadata out from `first` on, where a block counts `per_block` clusters of `cluster_size` bytes.
    fn at(first: u64, l1_clusters: u64, per_block: u64, cluster_size: u64) -> Self {
        let mut layout = Self { first, table_clusters: 1, blocks: vec![0], l1_clusters };
        loop {
            let counting = layout.counting(per_block);
            let last = *counting.end();
            let blocks: Vec<u64> = if *counting.start() == 0 {
                counting.collect()
            } else {
                std::iter::once(0).chain(counting).collect()
            };
            let table_clusters = ((last + 1) * 8).div_ceil(cluster_size);
            if (blocks.len(), table_clusters) == (layout.blocks.len(), layout.table_clusters) {
                return Self { blocks, ..layout };
            }
            (layout.blocks, layout.table_clusters) = (blocks, table_clusters);
        }
    }

    /// Numbers of the blocks that count the metadata as it is laid out.
    fn counting(&self, per_block: u64) -> RangeInclusive<u64> {
        self.first / per_block..=(self.end() - 1) / per_block
    }

    fn end(&self) -> u64 {
        self.first + self.table_clusters + self.blocks.len() as u64 + self.l1_clusters
    }

    fn blocks_at(&self) -> u64 {
        self.first + self.table_clusters
    }

    fn l1_at(&self) -> u64 {
        self.blocks_at() + self.blocks.len() as u64
    }
}

impl Qcow2 {
    /// Makes the image hold nothing. Nobody else uses it meanwhile.
    pub(super) async fn empty_image(&self, io: &Io) -> Result<()> {
        self.settle_changes(io).await?;
        io.event(DebugEvent::EmptyImagePrepare).await;
        let Some(first) = self.room_for_switch(io).await? else { return self.free_everything(io).await };
        let far = self.layout_at(first);
        if far.table_clusters * self.geometry.cluster_size > REFCOUNT_TABLE_MAX {
            return self.free_everything(io).await;
        }
        self.switch_to(io, &far).await?;
        let near = self.layout_at(1);
        if near.end() > far.first {
            // The image held less than its empty metadata takes; that stays where it is.
            return Ok(());
        }
        self.switch_to(io, &near).await?;
        // The metadata at the front is in use, durably, before what it replaced is cut off. Where the file cannot be cut
        // off, what is left of it is space that nobody refers to.
        let file = io.child(Role::File);
        let end = near.end() * self.geometry.cluster_size;
        if io.set_len(file, end, Preallocation::Off).await.is_ok() {
            self.refcounts.borrow_mut().cut_at(end);
        }
        Ok(())
    }

    /// Writes out all that memory holds, and waits until all that was freed is given back.
    async fn settle_changes(&self, io: &Io) -> Result<()> {
        loop {
            self.flush_all(io).await?;
            self.reclaimed.wait(&io.shared().tasks, || (self.reclaiming.get() == 0).then_some(())).await;
            if !self.holds_changes() {
                return Ok(());
            }
        }
    }

    /// The first cluster behind all that is counted or in the file; `None` where tables cannot be replaced as a whole.
    async fn room_for_switch(&self, io: &Io) -> Result<Option<u64>> {
        let header = self.header();
        let file = io.child(Role::File);
        // A node that only fails requests is as good as its file.
        let mut leaf = file;
        while io.driver_name(leaf) == "blkdebug" {
            leaf = io.edge(leaf, Role::File).expect("a filter has a file");
        }
        let is_file = io.leaf_info(leaf).is_some_and(|info| info.kind == LeafKind::File);
        let only_active = header.version >= 3
            && header.snapshot_count == 0
            && header.crypt == Crypt::None
            && self.geometry.data == Role::File
            && !self.has_bitmaps();
        if !is_file || !only_active {
            return Ok(None);
        }
        let bits = self.geometry.cluster_bits;
        // Beyond the end of the file there may be clusters that are counted and were never written.
        let last = {
            let refcounts = self.refcounts.borrow();
            let index = refcounts.table.iter().rposition(|raw| *raw != 0).unwrap_or(0);
            let entry = RefcountTableEntry::parse(refcounts.table[index], index as u64, bits);
            let block = entry.map_err(|fault| self.fail(fault))?.block();
            block.map(|block| {
                (block, index as u64 * refcounts.per_block(), refcounts.width, refcounts.per_block())
            })
        };
        let mut first = io.len(file).div_ceil(bits.size());
        if let Some((block, start, width, per_block)) = last {
            let bytes = io.read_bytes("qcow2.empty/last_block", file, block.0, bits.size() as usize).await?;
            let counted = (0..per_block).rev().find(|i| width.get(&bytes, *i as usize) != 0);
            first = first.max(counted.map_or(0, |i| start + i + 1));
        }
        Ok(Some(first))
    }

    fn layout_at(&self, first: u64) -> Layout {
        let cluster_size = self.geometry.cluster_size;
        let l1_clusters = (self.l1.borrow().entries.len() as u64 * 8).div_ceil(cluster_size);
        Layout::at(first, l1_clusters.max(1), self.refcounts.borrow().per_block(), cluster_size)
    }

    /// Makes empty metadata the image's.
    ///
    /// Order on disk: the metadata, where nothing that is in use lies, a barrier, the header that points to it, a barrier.
    /// A crash before the header is written leaves what the image was, and after it an empty image. Either way nothing
    /// is counted that is not used.
    async fn switch_to(&self, io: &Io, layout: &Layout) -> Result<()> {
        let bits = self.geometry.cluster_bits.bits();
        io.event(DebugEvent::L1Update).await;
        let table = self.write_metadata(io, layout).await?;
        let table_at = HostOffset(layout.first << bits);
        let l1_at = HostOffset(layout.l1_at() << bits);
        io.event(DebugEvent::ReftableUpdate).await;
        let switched = self
            .change_header(io, |header| {
                header.refcount_table_offset = table_at;
                header.refcount_table_clusters = layout.table_clusters as u32;
                header.l1_offset = l1_at;
            })
            .await;
        let clusters = layout.first..layout.end();
        if let Err(error) = switched {
            // The header on disk may be either: what both of them need stays as it is.
            self.refcounts.borrow_mut().metadata.extend(clusters);
            return Err(error);
        }
        let mut l1 = self.l1.borrow_mut();
        (l1.at, l1.dirty) = (l1_at, None);
        l1.entries.fill(0);
        self.l2.borrow_mut().clear();
        let metadata: FxHashSet<u64> = std::iter::once(0).chain(clusters).collect();
        let mut refcounts = self.refcounts.borrow_mut();
        refcounts.start_over(table_at, table, metadata);
        let open = unprotected_clusters(&self.header.borrow(), &[], &refcounts.table, refcounts.protect);
        refcounts.hold_metadata(false, open);
        Ok(())
    }

    /// Writes the metadata of an empty image, and returns its refcount table.
    async fn write_metadata(&self, io: &Io, layout: &Layout) -> Result<Vec<u64>> {
        let (cluster_size, file) = (self.geometry.cluster_size, io.child(Role::File));
        let bits = self.geometry.cluster_bits.bits();
        let (width, per_block) = {
            let refcounts = self.refcounts.borrow();
            (refcounts.width, refcounts.per_block())
        };
        let mut table = vec![0; (layout.table_clusters * cluster_size / 8) as usize];
        let mut blocks = Buf::zeroed(layout.blocks.len() * cluster_size as usize);
        for (place, number) in layout.blocks.iter().enumerate() {
            let at = HostOffset((layout.blocks_at() + place as u64) << bits);
            table[*number as usize] = RefcountTableEntry::of(at).encode();
            let block = &mut blocks[place * cluster_size as usize..][..cluster_size as usize];
            let counted = std::iter::once(0).chain(layout.first..layout.end());
            for cluster in counted.filter(|cluster| cluster / per_block == *number) {
                width.set(block, (cluster % per_block) as usize, 1);
            }
        }
        let bytes: Vec<u8> = table.iter().flat_map(|entry: &u64| entry.to_be_bytes()).collect();
        let l1 = Buf::zeroed((layout.l1_clusters * cluster_size) as usize);
        for (label, at, bytes) in [
            ("qcow2.empty/refcount_table", layout.first, Buf::from(bytes)),
            ("qcow2.empty/refcount_blocks", layout.blocks_at(), blocks),
            ("qcow2.empty/l1_table", layout.l1_at(), l1),
        ] {
            io.write(label, file, at << bits, bytes, Fua::No).await.1?;
        }
        Ok(table)
    }

    /// Gives all clusters of the active image back, one by one; the tables stay.
    async fn free_everything(&self, io: &Io) -> Result<()> {
        let size = self.header().size;
        if self.geometry.data == Role::DataFile && self.data_file_is_raw() {
            return Err(self.fail(Qcow2Error::RawDataFileHoldsAll));
        }
        self.forget_range(io, GuestOffset(0), size).await?;
        if self.geometry.data == Role::DataFile && self.discards.request {
            // Nothing on disk points to the data any more before it goes.
            self.flush_all(io).await?;
            io.discard("qcow2.empty/data_file", io.child(Role::DataFile), 0, size).await?;
        }
        self.settle_changes(io).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_counts_itself_and_the_header() {
        for (first, l1, per_block, cluster, blocks, end) in [
            (1, 1, 32768, 65536, vec![0], 4),
            // The last cluster that block 0 counts holds the table.
            (32767, 1, 32768, 65536, vec![0, 1], 32767 + 4),
            (100_000, 1, 32768, 65536, vec![0, 3], 100_000 + 4),
            // 8193 entries do not fit 128 clusters of 64.
            (2_097_152, 3, 256, 512, vec![0, 8192], 2_097_152 + 129 + 2 + 3),
            (1, 600, 256, 512, vec![0, 1, 2], 1 + 1 + 3 + 600),
        ] {
            let layout = Layout::at(first, l1, per_block, cluster);
            assert_eq!((layout.blocks.clone(), layout.end()), (blocks, end), "{first}");
        }
    }
}
