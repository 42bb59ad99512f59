//! Refcounts: which host clusters are in use, taking them, and giving them back.
//! Source: \[qcow2\] "Host cluster management".
//!
//! A cluster is taken by setting its refcount in memory; the commit writes refcounts before anything that points to
//! what they count. A cluster is given back in the opposite order, so that no refcount is ever lower on disk than
//! the number of references there:
//!
//! ```text
//!   the last reference is removed in memory ─▶ a commit makes that durable ─▶ no request that looked the cluster up
//!   is still in flight ─▶ the host may punch a hole ─▶ the refcount drops, in memory ─▶ the cluster can be taken
//! ```

use rustc_hash::FxHashSet;

use super::layout::{ClusterBits, HostOffset, RefcountTableEntry, RefcountWidth};
use super::open::Protect;
use super::{Missing, Qcow2, Qcow2Error};
use crate::buf::Buf;
use crate::engine::Io;
use crate::error::Result;
use crate::filter::DebugEvent;
use crate::format::cache::SliceCache;
use crate::graph::driver::{Ready, Role};
use crate::intent::Fua;

/// Bytes of a refcount table at the most. Source: QEMU's limit, beyond which it refuses the image.
pub(super) const REFCOUNT_TABLE_MAX: u64 = 8 << 20;

/// Freed clusters that wait for a commit, at the most; more of them cause one.
const FREED_MAX: usize = 4096;

/// The refcounts of an image.
pub(super) struct Refcounts {
    pub(super) width: RefcountWidth,
    /// Place of the refcount table.
    pub(super) table_at: HostOffset,
    /// Its entries as they are in the file.
    pub(super) table: Vec<u64>,
    /// Changed entries: the range that the next commit writes.
    pub(super) table_dirty: Option<(usize, usize)>,
    pub(super) table_writing: Option<(usize, usize)>,
    /// Slices of refcount blocks.
    pub(super) cache: SliceCache,
    pub(super) cluster_bits: ClusterBits,
    /// Where the next compressed cluster goes, unless it is the start of a cluster.
    pub(super) next_packed: u64,
    /// Host clusters that hold metadata: nobody is given them, whatever their refcount says.
    pub(super) metadata: FxHashSet<u64>,
    /// Those of them that may be given to data all the same, because `protect` does not say otherwise.
    pub(super) unprotected: FxHashSet<u64>,
    /// What of the metadata is protected from data (`overlap-check`).
    pub(super) protect: Protect,
    /// No cluster below this number is free.
    pub(super) first_free: u64,
    /// From this cluster on, the file was never written, and reads as zeros.
    pub(super) fresh_from: u64,
    /// Clusters that were taken and given back unused; their refcounts still say 1.
    spare: Vec<u64>,
    /// Clusters whose last reference is gone in memory, until a commit makes that durable.
    pub(super) freed: Vec<FreedRun>,
    /// Nobody knows which header the file has: what is free there cannot be known either.
    pub(super) adrift: bool,
}

/// Neighbouring clusters that lost one reference each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FreedRun {
    pub(super) first: u64,
    pub(super) count: u64,
    pub(super) why: Freed,
}

/// Why clusters are freed, which decides whether the host hears of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Freed {
    /// A guest's discard, or its zeros that may unmap.
    Request,
    /// A snapshot that was deleted or gone back to.
    Snapshot,
    /// Anything else: copy-on-write, a table that moved.
    Other,
}

/// Clusters that were taken, and that nothing points to yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Taken {
    pub(super) at: HostOffset,
    pub(super) count: u64,
    /// Whether they are known to read as zeros.
    pub(super) zeroed: bool,
}

impl Refcounts {
    pub(super) fn new(
        width: RefcountWidth,
        cluster_bits: ClusterBits,
        table_at: HostOffset,
        table: Vec<u64>,
        cache: SliceCache,
    ) -> Self {
        Self {
            width,
            table_at,
            table,
            table_dirty: None,
            table_writing: None,
            cache,
            cluster_bits,
            next_packed: 0,
            metadata: FxHashSet::default(),
            unprotected: FxHashSet::default(),
            protect: Protect::default(),
            first_free: 0,
            fresh_from: u64::MAX,
            spare: Vec::new(),
            freed: Vec::new(),
            adrift: false,
        }
    }

    /// Forgets all but the width: the table is another one.
    pub(super) fn replace(&mut self, table_at: HostOffset, table: Vec<u64>) {
        self.cache.clear();
        (self.table_at, self.table, self.table_dirty) = (table_at, table, None);
        (self.first_free, self.next_packed) = (0, 0);
        self.metadata.clear();
        self.unprotected.clear();
    }

    /// Has clusters beyond `file_len` count as zeroed, on a leaf that grows with zeros.
    pub(super) fn fresh_beyond(&mut self, file_len: u64) {
        self.fresh_from = file_len.div_ceil(self.cluster_bits.size());
    }

    /// The file was cut off, and grows with zeros from there on, if it ever does.
    pub(super) fn cut_at(&mut self, file_len: u64) {
        if self.fresh_from != u64::MAX {
            self.fresh_beyond(file_len);
        }
    }

    /// Takes an empty image's table for the image's: only its metadata is counted, and none of it is open to data yet.
    pub(super) fn start_over(&mut self, table_at: HostOffset, table: Vec<u64>, metadata: FxHashSet<u64>) {
        let used_to = metadata.iter().max().map_or(0, |last| last + 1);
        let _ = self.taken(used_to, 0);
        (self.table_at, self.table, self.table_dirty) = (table_at, table, None);
        self.cache.clear();
        self.metadata = metadata;
        self.unprotected.clear();
        (self.next_packed, self.first_free) = (0, 0);
        self.spare.clear();
        self.freed.clear();
    }

    /// Clusters that one refcount block counts.
    pub(super) fn per_block(&self) -> u64 {
        (8 * self.cluster_bits.size()) >> self.width.order()
    }

    /// Place of the block that counts `cluster`.
    fn block_of(&self, cluster: u64) -> Result<Option<HostOffset>, Qcow2Error> {
        let index = cluster / self.per_block();
        let Some(raw) = usize::try_from(index).ok().and_then(|index| self.table.get(index)) else {
            return Ok(None);
        };
        Ok(RefcountTableEntry::parse(*raw, index, self.cluster_bits)?.block())
    }

    /// Place of the slice that counts `cluster`, and the cluster's number within it.
    fn slice_of(&self, block: HostOffset, cluster: u64) -> (HostOffset, u64) {
        let per_slice = self.per_slice();
        let in_block = cluster % self.per_block();
        let slice = in_block / per_slice;
        (HostOffset(block.0 + slice * self.cache.slice_len() as u64), in_block % per_slice)
    }

    /// Clusters that one slice counts.
    pub(super) fn per_slice(&self) -> u64 {
        (8 * self.cache.slice_len() as u64) >> self.width.order()
    }

    /// The refcount of a cluster; one that no block counts has none.
    pub(super) fn count(&self, cluster: u64) -> Result<Ready<u64>, Qcow2Error> {
        let Some(block) = self.block_of(cluster)? else { return Ok(Ready::Yes(0)) };
        let (slice, index) = self.slice_of(block, cluster);
        match self.cache.find(slice) {
            Some(slot) => Ok(Ready::Yes(self.width.get(self.cache.bytes(slot), index as usize))),
            None => Ok(Ready::Miss(Missing::RefcountSlice.at(slice.0))),
        }
    }

    /// Sets the refcount of a cluster whose slice is in memory.
    pub(super) fn set(&mut self, cluster: u64, count: u64) -> Result<Ready<()>, Qcow2Error> {
        let Some(block) = self.block_of(cluster)? else {
            return Ok(Ready::Miss(Missing::RefcountBlock.at(cluster)));
        };
        let (slice, index) = self.slice_of(block, cluster);
        let Some(slot) = self.cache.find(slice) else {
            return Ok(Ready::Miss(Missing::RefcountSlice.at(slice.0)));
        };
        self.width.set(self.cache.bytes_mut(slot), index as usize, count);
        if count == 0 {
            self.first_free = self.first_free.min(cluster);
        }
        Ok(Ready::Yes(()))
    }

    /// Takes up to `wanted` neighbouring free clusters: the first that there are.
    pub(super) fn take(&mut self, wanted: u64) -> Result<Ready<Taken>, Qcow2Error> {
        if self.adrift {
            return Err(Qcow2Error::HeaderAdrift);
        }
        if let Some(cluster) = self.spare.pop() {
            return Ok(Ready::Yes(Taken { at: self.offset_of(cluster), count: 1, zeroed: false }));
        }
        loop {
            let cluster = self.first_free;
            self.check_end(cluster)?;
            let Some(block) = self.block_of(cluster)? else {
                return Ok(Ready::Miss(Missing::RefcountBlock.at(cluster)));
            };
            let (slice, index) = self.slice_of(block, cluster);
            let Some(slot) = self.cache.find(slice) else {
                return Ok(Ready::Miss(Missing::RefcountSlice.at(slice.0)));
            };
            let per_slice = self.per_slice();
            let bytes = self.cache.bytes(slot);
            let used =
                (index..per_slice).take_while(|i| self.width.get(bytes, *i as usize) != 0).count() as u64;
            let free = (index + used..per_slice)
                .take(usize::try_from(wanted).unwrap_or(usize::MAX))
                .take_while(|i| self.width.get(bytes, *i as usize) == 0)
                .count() as u64;
            // Checked before the search moves on: a corrupt image keeps failing until it is checked.
            self.check_taken(cluster + used, free)?;
            self.first_free = cluster + used + free;
            if free == 0 {
                continue;
            }
            let bytes = self.cache.bytes_mut(slot);
            for i in index + used..index + used + free {
                self.width.set(bytes, i as usize, 1);
            }
            return Ok(Ready::Yes(self.taken(cluster + used, free)));
        }
    }

    /// A cluster that holds metadata and yet counts as free is the sign of a corrupt image.
    fn check_taken(&self, first: u64, count: u64) -> Result<(), Qcow2Error> {
        match (first..first + count).find(|cluster| self.is_protected(*cluster)) {
            None => Ok(()),
            Some(cluster) => Err(Qcow2Error::MetadataIsFree { at: self.offset_of(cluster) }),
        }
    }

    /// Takes note of clusters that hold metadata from here on, protected from data or not.
    pub(super) fn hold_metadata(&mut self, protected: bool, clusters: impl IntoIterator<Item = u64>) {
        for cluster in clusters {
            self.metadata.insert(cluster);
            match protected {
                true => self.unprotected.remove(&cluster),
                false => self.unprotected.insert(cluster),
            };
        }
    }

    /// Whether a cluster holds metadata that no data is written over.
    pub(super) fn is_protected(&self, cluster: u64) -> bool {
        self.metadata.contains(&cluster) && !self.unprotected.contains(&cluster)
    }

    fn taken(&mut self, first: u64, count: u64) -> Taken {
        let zeroed = first >= self.fresh_from;
        if self.fresh_from != u64::MAX {
            self.fresh_from = self.fresh_from.max(first + count);
        }
        Taken { at: self.offset_of(first), count, zeroed }
    }

    /// Host offsets have 56 bits. Source: \[qcow2\] "L2 table entry".
    fn check_end(&self, cluster: u64) -> Result<(), Qcow2Error> {
        match cluster < 1 << (56 - self.cluster_bits.bits()) {
            true => Ok(()),
            false => Err(Qcow2Error::ImageFull { clusters: cluster }),
        }
    }

    /// Puts clusters that were taken and not used aside, to be taken next.
    pub(super) fn give_back(&mut self, at: HostOffset, count: u64) {
        let first = at.0 >> self.cluster_bits.bits();
        self.spare.extend(first..first + count);
    }

    /// The clusters that were given back, to lower their refcounts after all.
    pub(super) fn take_spare(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.spare)
    }

    fn offset_of(&self, cluster: u64) -> HostOffset {
        HostOffset(cluster << self.cluster_bits.bits())
    }

    fn set_table(&mut self, index: usize, block: HostOffset) {
        self.table[index] = RefcountTableEntry::of(block).encode();
        self.hold_metadata(self.protect.refcount_block, [block.0 >> self.cluster_bits.bits()]);
        let (first, end) = self.table_dirty.unwrap_or((index, index + 1));
        self.table_dirty = Some((first.min(index), end.max(index + 1)));
    }
}

impl Qcow2 {
    /// Takes one cluster, loading what it takes to know a free one.
    pub(super) async fn reserve_cluster(&self, io: &Io) -> Result<Taken> {
        loop {
            let taken = self.refcounts.borrow_mut().take(1);
            match taken.map_err(|fault| self.fail(fault))? {
                Ready::Yes(taken) => {
                    io.event(DebugEvent::ClusterAlloc).await;
                    return Ok(taken);
                }
                Ready::Miss(miss) => Box::pin(self.load_missing(io, miss)).await?,
            }
        }
    }

    /// Takes note that clusters lost a reference, in memory; the next commit begins to give them back.
    pub(super) fn free_later(&self, at: HostOffset, count: u64, why: Freed) {
        let first = at.0 >> self.geometry.cluster_bits.bits();
        let mut refcounts = self.refcounts.borrow_mut();
        if let Some(last) = refcounts.freed.last_mut()
            && last.why == why
            && last.first + last.count == first
        {
            last.count += count;
            return;
        }
        refcounts.freed.push(FreedRun { first, count, why });
    }

    /// Whether so many clusters wait to be given back that a commit is due.
    pub(super) fn owes_a_commit(&self) -> bool {
        self.refcounts.borrow().freed.len() >= FREED_MAX
    }

    /// Adds the refcount block that counts `cluster`. The block counts itself: it is put on that very cluster, the
    /// first free one, which no other block counts.
    ///
    /// Order on disk: the block, then the entry of the refcount table that points to it, then what it counts: the
    /// commit's. A crash between leaves a block that nothing points to and nothing counts.
    pub(super) async fn add_refcount_block(&self, io: &Io, cluster: u64) -> Result<()> {
        let _one_at_a_time = self.blocks.enter(&io.shared().tasks).await;
        let (index, exists, len) = {
            let refcounts = self.refcounts.borrow();
            let block = refcounts.block_of(cluster).map_err(|fault| self.fail(fault))?;
            let index = (cluster / refcounts.per_block()) as usize;
            (index, block.is_some(), refcounts.table.len())
        };
        if exists {
            return Ok(());
        }
        // A damaged image may leave the cluster of its own header uncounted.
        let free = self.refcounts.borrow().check_taken(cluster, 1);
        free.map_err(|fault| self.fail(fault))?;
        if index >= len {
            return self.grow_refcount_table(io, cluster).await;
        }
        self.install_block(io, cluster, index).await
    }

    /// Puts an empty block on `cluster` as entry `index` of the table, its own slice in memory.
    async fn install_block(&self, io: &Io, cluster: u64, index: usize) -> Result<()> {
        let at = HostOffset(cluster << self.geometry.cluster_bits.bits());
        let (width, in_block) = {
            let refcounts = self.refcounts.borrow();
            (refcounts.width, cluster % refcounts.per_block())
        };
        let mut block = Buf::zeroed(self.geometry.cluster_size as usize);
        width.set(&mut block, in_block as usize, 1);
        io.event(DebugEvent::RefblockAllocWrite).await;
        io.write("qcow2.add_refcount_block/write", io.child(Role::File), at.0, block, Fua::No).await.1?;
        let mut refcounts = self.refcounts.borrow_mut();
        refcounts.set_table(index, at);
        let _ = refcounts.taken(cluster, 1);
        refcounts.first_free = refcounts.first_free.max(cluster + 1);
        Ok(())
    }

    /// Moves the refcount table to a larger place beyond all that is counted, with the blocks that count that place.
    ///
    /// Order on disk: the new blocks and the new table, a barrier, the header that points to the table, a barrier.
    /// The old table is given up after the next commit. A crash before the header is written leaves the old table in
    /// use, and after it the new one, which holds all that the old one did.
    async fn grow_refcount_table(&self, io: &Io, cluster: u64) -> Result<()> {
        let plan = self.plan_growth(cluster)?;
        let free = self.refcounts.borrow().check_taken(cluster, plan.block_count + plan.table_clusters);
        free.map_err(|fault| self.fail(fault))?;
        let file = io.child(Role::File);
        let bits = self.geometry.cluster_bits.bits();
        let old = {
            let refcounts = self.refcounts.borrow();
            (refcounts.table_at, (refcounts.table.len() as u64 * 8) >> bits)
        };
        io.event(DebugEvent::RefblockAllocWriteBlocks).await;
        for (number, block) in plan.blocks.into_iter().enumerate() {
            let at = (cluster + number as u64) << bits;
            io.write("qcow2.grow_refcount_table/block", file, at, block, Fua::No).await.1?;
        }
        let mut table = self.refcounts.borrow().table.clone();
        table.resize(plan.entries, 0);
        for number in 0..plan.block_count {
            let block = HostOffset((cluster + number) << bits);
            table[plan.first_index + number as usize] = RefcountTableEntry::of(block).encode();
        }
        let table_at = HostOffset((cluster + plan.block_count) << bits);
        let bytes: Vec<u8> = table.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        io.event(DebugEvent::RefblockAllocWriteTable).await;
        io.write("qcow2.grow_refcount_table/table", file, table_at.0, Buf::from(bytes), Fua::No).await.1?;
        io.event(DebugEvent::RefblockAllocSwitchTable).await;
        self.change_header(io, |header| {
            header.refcount_table_offset = table_at;
            header.refcount_table_clusters = plan.table_clusters as u32;
        })
        .await?;
        {
            let mut refcounts = self.refcounts.borrow_mut();
            let all = plan.block_count + plan.table_clusters;
            (refcounts.table, refcounts.table_at, refcounts.table_dirty) = (table, table_at, None);
            let _ = refcounts.taken(cluster, all);
            let Protect { refcount_block, refcount_table, .. } = refcounts.protect;
            let blocks_end = cluster + plan.block_count;
            refcounts.hold_metadata(refcount_block, cluster..blocks_end);
            refcounts.hold_metadata(refcount_table, blocks_end..cluster + all);
            refcounts.first_free = refcounts.first_free.max(cluster + all);
        }
        self.free_later(old.0, old.1, Freed::Other);
        Ok(())
    }

    /// How large the next refcount table is, and what the blocks say that count it and themselves.
    fn plan_growth(&self, cluster: u64) -> Result<Growth> {
        let refcounts = self.refcounts.borrow();
        let per_block = refcounts.per_block();
        let first_index = (cluster / per_block) as usize;
        let per_cluster = self.geometry.cluster_size / 8;
        let wanted = (first_index as u64 + 1).max(refcounts.table.len() as u64 * 3 / 2);
        let mut table_clusters = wanted.div_ceil(per_cluster);
        let (block_count, first) = loop {
            // Blocks and table follow each other from `cluster` on, and the blocks count all of it.
            let first = cluster % per_block;
            let mut block_count = 1;
            while block_count * per_block < first + block_count + table_clusters {
                block_count += 1;
            }
            if first_index as u64 + block_count <= table_clusters * per_cluster {
                break (block_count, first);
            }
            table_clusters += 1;
        };
        if table_clusters * self.geometry.cluster_size > REFCOUNT_TABLE_MAX {
            return Err(self.fail(Qcow2Error::ImageFull { clusters: cluster }));
        }
        let mut blocks: Vec<_> =
            (0..block_count).map(|_| Buf::zeroed(self.geometry.cluster_size as usize)).collect();
        for used in first..first + block_count + table_clusters {
            let block = &mut blocks[(used / per_block) as usize];
            refcounts.width.set(block, (used % per_block) as usize, 1);
        }
        let entries = (table_clusters * per_cluster) as usize;
        Ok(Growth { first_index, entries, block_count, table_clusters, blocks })
    }
}

/// A larger refcount table, as planned.
struct Growth {
    first_index: usize,
    entries: usize,
    block_count: u64,
    table_clusters: u64,
    blocks: Vec<Buf>,
}
