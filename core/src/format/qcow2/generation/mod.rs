//! A new generation of metadata, written beside the one in use and switched to by one write of the header.
//!
//! A snapshot changes the refcount of nearly every cluster, and with it the flag in nearly every entry that says whether
//! the refcount is one. No order of writes in place keeps the two together through a crash. So nothing in use is changed:
//!
//! ```text
//!   header ─▶ [ refcount table, blocks, L1, L2 tables, snapshot table ]     the generation in use
//!      ╎
//!      └────▶ [ blocks | refcount table | L1 | snapshot's L1 | snapshot table ] [ L2 tables that differ ]     the next one
//! ```
//!
//! Order on disk: all of the next generation, a barrier, the header's first sector, a barrier; then the old generation is
//! given up like any freed cluster (`reclaim`). A crash before the header is written leaves the image as it was, with
//! bytes beyond what is counted; a crash after it the image as it is to be, with the old generation leaked. In between
//! there is nothing, because a sector is written whole.
//!
//! Guest requests go on meanwhile, except that no mapping changes ([`Standstill`]). Memory is bounded: refcount blocks are
//! made a window at a time, and tables are read a few at once.
//!
//! `region` finds the place, `window` holds refcounts, `walk` goes through what L1 tables reach.

mod region;
mod walk;
mod window;

use std::ops::Range;

use super::flush::WRITES_MAX;
use super::layout::{HostOffset, L1Entry, RefcountTableEntry, RefcountWidth, Snapshot};
use super::open::{metadata_clusters, unprotected_clusters};
use super::refcount::{Freed, FreedRun, Refcounts};
use super::{L1Table, Qcow2, Qcow2Error};
use crate::buf::Buf;
use crate::engine::Io;
use crate::engine::claims::Claim;
use crate::engine::task::{GateGuard, join_all};
use crate::error::Result;
use crate::filter::DebugEvent;
use crate::graph::Node;
use crate::graph::driver::Role;
use crate::intent::Fua;
use region::Layout;
use walk::Step;
use window::Window;

/// Entries of a table in a page of the host, which is what a file keeps or does not keep.
const PAGE_ENTRIES: usize = 512;

/// What the next generation is to be.
pub(super) struct Change {
    /// Entries of an L1 table whose references count once more.
    pub(super) raise: Vec<u64>,
    /// Entries of an L1 table whose references count no longer.
    pub(super) lower: Vec<u64>,
    /// The active L1 table; its flags are made anew where references change.
    pub(super) l1: Vec<u64>,
    /// Length of the disk.
    pub(super) size: u64,
    /// The snapshot table, where it changes.
    pub(super) snapshots: Option<SnapshotTable>,
    /// Bits of a refcount.
    pub(super) width: RefcountWidth,
    /// Clusters that are given up afterwards, beyond the old generation's own.
    pub(super) retired: Vec<FreedRun>,
}

/// A snapshot table to be.
#[derive(Default)]
pub(super) struct SnapshotTable {
    /// The entries that stay, as they are in the file.
    pub(super) kept: Vec<u8>,
    /// How many they are.
    pub(super) kept_count: u32,
    /// A snapshot of the active L1 table, which comes last.
    pub(super) new: Option<Snapshot>,
}

impl SnapshotTable {
    fn len(&self) -> u64 {
        (self.kept.len() + self.new.as_ref().map_or(0, |new| new.encode().len())) as u64
    }

    fn count(&self) -> u32 {
        self.kept_count + u32::from(self.new.is_some())
    }
}

/// While it lives, no mapping changes, and no cluster is given back: allocating writes, zeros and discards wait for their
/// claims, and `reclaim` for its gate. Reads, overwrites in place and flushes go on.
pub(super) struct Standstill<'a> {
    _claims: Claim<'a>,
    _reclaims: GateGuard<'a>,
}

/// The next generation, once all of it is on disk.
struct Next {
    layout: Layout,
    /// Entries of the L1 table and of the refcount table.
    l1: Vec<u64>,
    table: Vec<u64>,
    /// L2 tables that were replaced, and how many references moved from each.
    replaced: Vec<HostOffset>,
    moved_each: u64,
    /// Clusters of our own metadata that nobody uses any more.
    forgotten: Vec<u64>,
    first_free: u64,
}

impl Qcow2 {
    /// Waits until mappings stand still and all metadata is durable.
    ///
    /// What was freed before is given back first: a cluster that the disk refers to again (it went back to a snapshot) would
    /// be counted twice, flagged as shared, and be counted once a moment later.
    pub(super) async fn stand_still<'a>(&'a self, io: &'a Io, node: &'a Node) -> Result<Standstill<'a>> {
        let tasks = &io.shared().tasks;
        self.commit(io).await?;
        self.reclaimed.wait(tasks, || (self.reclaiming.get() == 0).then_some(())).await;
        let still = Standstill {
            _claims: node.claims.take_all(tasks).await,
            _reclaims: self.reclaims.enter(tasks).await,
        };
        // What is on disk is what is in memory from here on; nobody is there to change either.
        self.flush_all(io).await?;
        Ok(still)
    }

    /// Writes the next generation and switches to it. Durable on return; on an error, the image is what it was.
    pub(super) async fn switch(&self, io: &Io, _still: &Standstill<'_>, mut change: Change) -> Result<()> {
        let retired = std::mem::take(&mut change.retired);
        let grows = change.l1.len() > self.l1.borrow().entries.len();
        if grows {
            io.event(DebugEvent::L1GrowAllocTable).await;
        }
        let next = match self.write_generation(io, &mut change).await {
            Ok(next) => next,
            Err(error) => {
                self.wrote_beyond(io);
                return Err(error);
            }
        };
        let old = self.old_generation(&next.layout);
        if grows {
            io.event(DebugEvent::L1GrowActivateTable).await;
        }
        if let Err(error) = self.point_to(io, &change, &next.layout).await {
            self.put_back(io).await;
            self.wrote_beyond(io);
            return Err(error);
        }
        let mut retired = [retired, old].concat();
        let bits = self.geometry.cluster_bits.bits();
        for table in &next.replaced {
            let run = FreedRun { first: table.0 >> bits, count: 1, why: Freed::Other };
            retired.extend((0..next.moved_each).map(|_| run));
        }
        self.adopt(&change, next);
        for run in retired {
            self.free_later(HostOffset(run.first << bits), run.count, run.why);
        }
        Ok(())
    }

    /// Bytes were written beyond the clusters in use: they no longer read as zeros.
    fn wrote_beyond(&self, io: &Io) {
        let mut refcounts = self.refcounts.borrow_mut();
        if refcounts.fresh_from != u64::MAX {
            let end = io.len(io.child(Role::File)).div_ceil(self.geometry.cluster_size);
            refcounts.fresh_from = refcounts.fresh_from.max(end);
        }
    }

    /// Writes everything but the header.
    async fn write_generation(&self, io: &Io, change: &mut Change) -> Result<Next> {
        let counts_references = !change.raise.is_empty() || !change.lower.is_empty();
        let layout = self.plan_generation(io, change, counts_references).await?;
        let shares = change.snapshots.as_ref().is_some_and(|table| table.new.is_some());
        let mut next = Next {
            l1: std::mem::take(&mut change.l1),
            table: vec![0; (layout.table_clusters * self.geometry.cluster_size / 8) as usize],
            replaced: Vec::new(),
            moved_each: 1 + u64::from(shares),
            forgotten: Vec::new(),
            first_free: u64::MAX,
            layout,
        };
        let file = io.child(Role::File);
        for indices in next.layout.windows(self.geometry.cluster_size) {
            let mut window = self.fill_window(io, indices, change.width).await?;
            let added = window.add_region(&next.layout, &next.replaced, next.moved_each);
            added.map_err(|fault| self.fail(fault))?;
            self.count_references(io, &change.raise, &mut window, Step::Raise).await?;
            self.count_references(io, &change.lower, &mut window, Step::Lower).await?;
            if counts_references {
                self.renew_flags(io, &mut window, &mut next).await?;
            }
            next.forgotten.extend(self.unused_metadata(&window));
            next.first_free = next.first_free.min(window.first_free());
            for (place, index) in window.indices().iter().map(|index| (next.layout.block_at(*index), *index))
            {
                next.table[index as usize] = RefcountTableEntry::of(self.offset_of(place)).encode();
            }
            for (place, bytes) in window.into_runs(&next.layout) {
                let at = self.offset_of(place).0;
                io.write("qcow2.generation/refcount_blocks", file, at, bytes, Fua::No).await.1?;
            }
        }
        next.forgotten.sort_unstable();
        self.write_tables(io, change, &next).await?;
        Ok(next)
    }

    /// Clusters of our own metadata that nobody uses any more, as far as the window tells.
    fn unused_metadata(&self, window: &Window) -> Vec<u64> {
        let refcounts = self.refcounts.borrow();
        refcounts.metadata.iter().copied().filter(|cluster| window.count(*cluster) == Some(0)).collect()
    }

    async fn write_tables(&self, io: &Io, change: &Change, next: &Next) -> Result<()> {
        let layout = &next.layout;
        let mut writes = self.pieces_of(layout.table(), &next.table);
        if layout.l1_clusters > 0 {
            writes.extend(self.pieces_of(layout.l1(), &next.l1));
        }
        if let Some(table) = &change.snapshots {
            if let Some(new) = &table.new {
                let shared = next.l1.iter().map(|raw| self.shared_l1(*raw)).collect::<Result<Vec<_>>>()?;
                writes.extend(self.pieces_of(layout.snapshot_l1(), &shared));
                let new = Snapshot { l1_offset: self.offset_of(layout.snapshot_l1()), ..new.clone() };
                let bytes = Buf::from([&table.kept[..], &new.encode()].concat());
                writes.push((self.offset_of(layout.snapshots()), bytes));
            } else if table.kept_count > 0 {
                writes.push((self.offset_of(layout.snapshots()), Buf::from(&table.kept[..])));
            }
        }
        if next.l1.len() > self.l1.borrow().entries.len() {
            io.event(DebugEvent::L1GrowWriteTable).await;
        }
        let file = io.child(Role::File);
        writes.retain(|(_, bytes)| !bytes.is_empty());
        while !writes.is_empty() {
            let some: Vec<_> = writes.drain(..writes.len().min(WRITES_MAX)).collect();
            let some = some
                .into_iter()
                .map(|(at, bytes)| io.write("qcow2.generation/tables", file, at.0, bytes, Fua::No));
            for (_, result) in join_all(some).await {
                result?;
            }
        }
        Ok(())
    }

    /// What has to be written of a table: beyond the end of the file, where all that was never written reads as zeros, pages
    /// that are not zeros, and the last one, so that the file has the whole table.
    fn pieces_of(&self, place: u64, entries: &[u64]) -> Vec<(HostOffset, Buf)> {
        let at = self.offset_of(place);
        if place < self.refcounts.borrow().fresh_from {
            return vec![(at, bytes_of(entries))];
        }
        let last = entries.len().saturating_sub(1) / PAGE_ENTRIES;
        let is_written =
            |page: usize, entries: &[u64]| page == last || entries.iter().any(|entry| *entry != 0);
        let mut pieces: Vec<Range<usize>> = Vec::new();
        for (page, some) in entries.chunks(PAGE_ENTRIES).enumerate() {
            let start = page * PAGE_ENTRIES;
            match pieces.last_mut() {
                _ if !is_written(page, some) => {}
                Some(piece) if piece.end == start => piece.end += some.len(),
                _ => pieces.push(start..start + some.len()),
            }
        }
        let piece =
            |piece: Range<usize>| (HostOffset(at.0 + piece.start as u64 * 8), bytes_of(&entries[piece]));
        pieces.into_iter().map(piece).collect()
    }

    /// An entry of the active L1 table as a snapshot has it: a snapshot's flags mean nothing.
    fn shared_l1(&self, raw: u64) -> Result<u64> {
        let entry = L1Entry::parse(raw, self.geometry.cluster_bits).map_err(|fault| self.fail(fault))?;
        Ok(match entry {
            L1Entry::Table { at, .. } => L1Entry::Table { at, copied: false }.encode(),
            L1Entry::Unallocated => 0,
        })
    }

    /// Has the header name the next generation.
    ///
    /// Order on disk: a barrier, the header, a barrier ([`change_header`](Self::change_header)). The snapshot table, like
    /// all else, is durable before the header points to it.
    async fn point_to(&self, io: &Io, change: &Change, layout: &Layout) -> Result<()> {
        let at = |place: u64| self.offset_of(place);
        self.change_header(io, |header| {
            header.refcount_table_offset = at(layout.table());
            header.refcount_table_clusters = layout.table_clusters as u32;
            header.refcount_width = change.width;
            header.size = change.size;
            if layout.l1_clusters > 0 {
                header.l1_offset = at(layout.l1());
                header.l1_entries = layout.l1_entries as u32;
            }
            if let Some(table) = &change.snapshots {
                header.snapshot_count = table.count();
                header.snapshots_offset =
                    if table.count() > 0 { at(layout.snapshots()) } else { HostOffset(0) };
            }
        })
        .await
    }

    /// Writes the header of memory after another one may have reached the disk. Where that fails too, nobody knows which
    /// one a reader will find, and nothing is given out any more that one of them uses.
    async fn put_back(&self, io: &Io) {
        if self.change_header(io, |_| {}).await.is_err() {
            self.refcounts.borrow_mut().adrift = true;
        }
    }

    /// What the generation in use takes, as far as the next one replaces it. No holes are punched there: the generation
    /// after the next one is likely to go there.
    fn old_generation(&self, layout: &Layout) -> Vec<FreedRun> {
        let (header, bits) = (self.header.borrow(), self.geometry.cluster_bits);
        let run = |at: HostOffset, len: u64| FreedRun {
            first: at.0 >> bits.bits(),
            count: bits.count(len),
            why: Freed::Other,
        };
        let refcounts = self.refcounts.borrow();
        let mut runs = vec![run(refcounts.table_at, refcounts.table.len() as u64 * 8)];
        for (index, raw) in refcounts.table.iter().enumerate() {
            let block =
                RefcountTableEntry::parse(*raw, index as u64, bits).ok().and_then(RefcountTableEntry::block);
            runs.extend(block.map(|at| run(at, bits.size())));
        }
        if layout.l1_clusters > 0 {
            runs.push(run(header.l1_offset, u64::from(header.l1_entries) * 8));
        }
        runs.retain(|run| run.count > 0);
        runs
    }

    /// Makes the next generation the one in memory: one step, after the header is durable.
    fn adopt(&self, change: &Change, next: Next) {
        let layout = &next.layout;
        let found = metadata_clusters(&self.header.borrow(), &next.l1, &next.table);
        let mut refcounts = self.refcounts.borrow_mut();
        match found {
            // The old generation keeps its places in memory until they are given back.
            Ok(clusters) => refcounts.metadata.extend(clusters),
            // Tables overlap in a damaged image alone: nothing more is written to it.
            Err(_) => refcounts.adrift = true,
        }
        self.protect_adopted(&mut refcounts, change, &next);
        (refcounts.table, refcounts.table_at) = (next.table, self.offset_of(layout.table()));
        refcounts.width = change.width;
        refcounts.cache.clear();
        refcounts.next_packed = 0;
        let counted = layout.blocks.last().map_or(0, |last| (last + 1) * refcounts.per_block());
        refcounts.first_free = next.first_free.min(counted);
        if refcounts.fresh_from != u64::MAX {
            refcounts.fresh_from = refcounts.fresh_from.max(layout.end());
        }
        for cluster in next.forgotten {
            self.forget_cluster(&mut refcounts, cluster);
        }
        let mut l1 = self.l1.borrow_mut();
        let at = if layout.l1_clusters > 0 { self.offset_of(layout.l1()) } else { l1.at };
        *l1 = L1Table { at, entries: next.l1, dirty: None, writing: None };
    }

    /// Protects the metadata of the next generation as that of the image was protected when it was opened.
    fn protect_adopted(&self, refcounts: &mut Refcounts, change: &Change, next: &Next) {
        let (header, bits) = (self.header.borrow(), self.geometry.cluster_bits);
        let mut protect = refcounts.protect;
        if let Some(table) = &change.snapshots {
            if protect.snapshot_table && table.count() > 0 {
                let at = next.layout.snapshots();
                refcounts.hold_metadata(true, at..at + bits.count(table.len()));
            }
            if protect.inactive_l1 && table.new.is_some() {
                let at = next.layout.snapshot_l1();
                refcounts.hold_metadata(true, at..at + bits.count(next.l1.len() as u64 * 8));
            }
            // A new snapshot has the L2 tables that are active.
            protect.active_l2 |= protect.inactive_l2 && table.new.is_some();
        }
        let open = unprotected_clusters(&header, &next.l1, &next.table, protect);
        refcounts.hold_metadata(false, open);
    }

    /// Punches holes where the generation before counted clusters and this one counts none. Mappings still stand, so that
    /// nobody was given one.
    pub(super) async fn punch_freed(&self, io: &Io, old_table: &[u64], _still: &Standstill<'_>) {
        let mut holes: Vec<Range<u64>> = Vec::new();
        for (index, raw) in old_table.iter().enumerate() {
            let Ok(freed) = self.freed_in_block(io, index as u64, *raw).await else { continue };
            for cluster in freed {
                match holes.last_mut() {
                    Some(hole) if hole.end == cluster => hole.end += 1,
                    _ => holes.push(cluster..cluster + 1),
                }
            }
            let more = index + 1 < old_table.len();
            if holes.len() > WRITES_MAX || !more {
                for some in holes.chunks(WRITES_MAX) {
                    join_all(some.iter().map(|hole| self.punch(io, hole))).await;
                }
                holes.clear();
            }
        }
    }

    /// Clusters that a block of the generation before counts, and its successor does not.
    async fn freed_in_block(&self, io: &Io, index: u64, raw: u64) -> Result<Vec<u64>> {
        let (bits, file) = (self.geometry.cluster_bits, io.child(Role::File));
        let (width, per_block, new) = {
            let refcounts = self.refcounts.borrow();
            (
                refcounts.width,
                refcounts.per_block(),
                refcounts.table.get(index as usize).copied().unwrap_or(0),
            )
        };
        let place = |raw| RefcountTableEntry::parse(raw, index, bits).map(RefcountTableEntry::block);
        let (Ok(Some(old)), Ok(Some(new))) = (place(raw), place(new)) else { return Ok(Vec::new()) };
        let read = |at: HostOffset| io.read_bytes("qcow2.generation/freed", file, at.0, bits.size() as usize);
        let (old, new) = (read(old).await?, read(new).await?);
        let freed = |cluster: &usize| width.get(&old, *cluster) != 0 && width.get(&new, *cluster) == 0;
        Ok((0..per_block as usize).filter(freed).map(|at| index * per_block + at as u64).collect())
    }

    fn offset_of(&self, cluster: u64) -> HostOffset {
        HostOffset(cluster << self.geometry.cluster_bits.bits())
    }
}

impl Change {
    /// The image as it is.
    pub(super) fn of(qcow2: &Qcow2) -> Self {
        Self {
            raise: Vec::new(),
            lower: Vec::new(),
            l1: qcow2.l1.borrow().entries.clone(),
            size: qcow2.header.borrow().size,
            snapshots: None,
            width: qcow2.refcounts.borrow().width,
            retired: Vec::new(),
        }
    }
}

fn bytes_of(entries: &[u64]) -> Buf {
    let bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.to_be_bytes()).collect();
    Buf::from(bytes)
}

/// What a fault says of a cluster that is used and not counted.
fn not_counted(at: HostOffset) -> Qcow2Error {
    Qcow2Error::NotCounted { at, what: "the metadata refers to" }
}
