//! Flush: writes changed metadata in an order that a crash cannot break.
//!
//! Each level may be on disk only when all levels above it are durable; a barrier (a flush of the leaves) stands
//! between two levels that both have something to write:
//!
//! | level | what                                    | because                                                     |
//! |-------|-----------------------------------------|-------------------------------------------------------------|
//! | 0     | guest data, new L2 tables, refcounts     | nothing on disk points to what they are about               |
//! | 1     | refcount table                          | a block that is pointed to counts itself                    |
//! | 2     | L2 entries                              | a cluster that is pointed to is counted, and holds its data |
//! | 3     | L1 entries                              | a table that is pointed to is counted, and complete         |
//! | 4     | refcounts of freed clusters, holes      | what is freed is no longer pointed to                       |
//!
//! The changes of one commit are copied at one instant, so that an L2 entry never leaves before the refcount that it
//! needs; what changes meanwhile waits for the next commit. Level 4 goes on beside later requests (`reclaim`).

use super::layout::{Header, HostOffset};
use super::refcount::{Freed, FreedRun};
use super::{Lock, Qcow2, Qcow2Error};
use crate::buf::Buf;
use crate::engine::Io;
use crate::engine::task::join_all;
use crate::error::Result;
use crate::filter::DebugEvent;
use crate::graph::NodeId;
use crate::graph::driver::Role;
use crate::intent::{Fua, Label};

/// Writes of one level in flight at once.
pub(super) const WRITES_MAX: usize = 64;

/// Copies of all changed metadata, by level.
struct Batch {
    refcounts: Vec<(HostOffset, Buf)>,
    refcount_table: Vec<(HostOffset, Buf)>,
    l2: Vec<(HostOffset, Buf)>,
    l1: Vec<(HostOffset, Buf)>,
    freed: Vec<FreedRun>,
}

impl Qcow2 {
    /// Whether any metadata differs from what is on disk.
    pub(super) fn holds_changes(&self) -> bool {
        let refcounts = self.refcounts.borrow();
        refcounts.cache.dirty() > 0
            || refcounts.table_dirty.is_some()
            || !refcounts.freed.is_empty()
            || self.l2.borrow().dirty() > 0
            || self.l1.borrow().dirty.is_some()
    }

    /// Makes everything durable that completed before.
    pub(super) async fn flush_all(&self, io: &Io) -> Result<()> {
        self.commit(io).await?;
        let covered = self.written.get();
        io.event(DebugEvent::FlushToDisk).await;
        self.barrier(io).await?;
        self.durable.set(self.durable.get().max(covered));
        Ok(())
    }

    /// Flushes the leaves that hold the image.
    pub(super) async fn barrier(&self, io: &Io) -> Result<()> {
        self.barrier_for(io, "qcow2.barrier").await
    }

    /// Flushes the leaves that hold the image; the label says what for. Each has its own, so that a trace, and the
    /// simulator when it drops one, can tell them apart.
    pub(super) async fn barrier_for(&self, io: &Io, label: Label) -> Result<()> {
        if let Some(data) = io.try_child(Role::DataFile) {
            io.flush(label, data).await?;
        }
        io.flush(label, io.child(Role::File)).await
    }

    /// Writes all changed metadata, level by level. The last level written is not durable yet.
    pub(super) async fn commit(&self, io: &Io) -> Result<()> {
        let _one_at_a_time = self.commits.enter(&io.shared().tasks).await;
        if self.refcounts.borrow().adrift {
            return Err(self.fail(Qcow2Error::HeaderAdrift));
        }
        if !self.holds_changes() {
            return Ok(());
        }
        if self.locked.get() == Some(Lock::Corrupt) {
            return Err(self.fail(Qcow2Error::BecameCorrupt));
        }
        self.committing.set(true);
        let batch = self.take_batch();
        let freed = batch.freed.clone();
        let result = self.write_batch(io, batch).await;
        self.written.set(self.written.get() + 1);
        self.committing.set(false);
        self.end_batch(result.is_ok());
        match result {
            Ok(()) if !freed.is_empty() => self.start_reclaim(io, freed),
            Ok(()) => {}
            Err(_) => self.refcounts.borrow_mut().freed.extend(freed),
        }
        result
    }

    fn take_batch(&self) -> Batch {
        let mut refcounts = self.refcounts.borrow_mut();
        let mut l1 = self.l1.borrow_mut();
        refcounts.table_writing = refcounts.table_dirty.take();
        let refcount_table =
            entries(refcounts.table_at, &refcounts.table, refcounts.table_writing).into_iter().collect();
        l1.writing = l1.dirty.take();
        Batch {
            refcounts: refcounts.cache.take_dirty(),
            refcount_table,
            l2: self.l2.borrow_mut().take_dirty(),
            l1: entries(l1.at, &l1.entries, l1.writing).into_iter().collect(),
            freed: std::mem::take(&mut refcounts.freed),
        }
    }

    fn end_batch(&self, landed: bool) {
        let mut refcounts = self.refcounts.borrow_mut();
        let (mut l1, mut l2) = (self.l1.borrow_mut(), self.l2.borrow_mut());
        let (table, entries) = (refcounts.table_writing.take(), l1.writing.take());
        if landed {
            refcounts.cache.written();
            l2.written();
        } else {
            refcounts.cache.failed();
            l2.failed();
            refcounts.table_dirty = union(refcounts.table_dirty, table);
            l1.dirty = union(l1.dirty, entries);
        }
    }

    async fn write_batch(&self, io: &Io, batch: Batch) -> Result<()> {
        if !batch.refcounts.is_empty() {
            io.event(DebugEvent::RefblockUpdatePart).await;
        }
        self.write_level(io, "qcow2.flush/refcount_blocks", batch.refcounts).await?;
        if !batch.refcount_table.is_empty() {
            // A block is durable before the table points to it.
            self.barrier_for(io, "qcow2.flush/before_refcount_table").await?;
            io.event(DebugEvent::RefblockAllocHookup).await;
            self.write_level(io, "qcow2.flush/refcount_table", batch.refcount_table).await?;
        }
        if !batch.l2.is_empty() {
            // Refcounts and guest data are durable before an L2 entry points to a cluster.
            self.barrier_for(io, "qcow2.flush/before_l2_tables").await?;
            io.event(DebugEvent::L2Update).await;
            self.write_level(io, "qcow2.flush/l2_tables", batch.l2).await?;
        }
        if !batch.l1.is_empty() {
            // An L2 table is counted and complete before an L1 entry points to it.
            self.barrier_for(io, "qcow2.flush/before_l1_table").await?;
            io.event(DebugEvent::L1Update).await;
            self.write_level(io, "qcow2.flush/l1_table", batch.l1).await?;
        }
        if !batch.freed.is_empty() {
            // Nothing on disk points to a cluster any more before it is given back.
            self.barrier_for(io, "qcow2.flush/before_reclaim").await?;
        }
        Ok(())
    }

    async fn write_level(&self, io: &Io, label: Label, writes: Vec<(HostOffset, Buf)>) -> Result<()> {
        let file = io.child(Role::File);
        let mut writes = merged(writes).into_iter().peekable();
        while writes.peek().is_some() {
            let some: Vec<_> = writes.by_ref().take(WRITES_MAX).collect();
            let landed =
                join_all(some.into_iter().map(|(at, bytes)| io.write(label, file, at.0, bytes, Fua::No)));
            for (_, result) in landed.await {
                result?;
            }
        }
        Ok(())
    }

    /// Changes the header, one change at a time.
    ///
    /// Order on disk: a barrier, the header, a barrier. What the new header points to is durable before it, and the change
    /// is durable on return. Memory follows the disk: a header that could not be written is not the image's.
    pub(super) async fn change_header(&self, io: &Io, change: impl FnOnce(&mut Header)) -> Result<()> {
        if let Some(data) = io.try_child(Role::DataFile) {
            io.flush("qcow2.change_header/data_file", data).await?;
        }
        self.write_header(io, io.child(Role::File), change).await
    }

    /// Changes the header of an image that need not be a node yet. Only what is in `file` is durable before it.
    pub(super) async fn write_header(
        &self,
        io: &Io,
        file: NodeId,
        change: impl FnOnce(&mut Header),
    ) -> Result<()> {
        let _one_at_a_time = self.headers.enter(&io.shared().tasks).await;
        let mut header = self.header();
        change(&mut header);
        let bytes = header.encode().map_err(|fault| self.fail(fault))?;
        io.flush("qcow2.change_header/before", file).await?;
        io.write("qcow2.change_header", file, 0, Buf::from(bytes), Fua::No).await.1?;
        io.flush("qcow2.change_header/after", file).await?;
        *self.header.borrow_mut() = header;
        Ok(())
    }

    /// Writes everything out, gives back what is freed, and leaves a clean image.
    pub(super) async fn close_image(&self, io: &Io) -> Result<()> {
        let stored = self.store_bitmaps(io).await;
        loop {
            let spare = self.refcounts.borrow_mut().take_spare();
            for cluster in spare {
                let at = HostOffset(cluster << self.geometry.cluster_bits.bits());
                self.free_later(at, 1, Freed::Other);
            }
            let committed = self.commit(io).await;
            let tasks = &io.shared().tasks;
            // Even after a failure: what gives clusters back uses the file, which is about to close.
            self.reclaimed.wait(tasks, || (self.reclaiming.get() == 0).then_some(())).await;
            committed?;
            if !self.holds_changes() {
                self.barrier_for(io, "qcow2.close").await?;
                return stored.and(self.reclaim_error.take().map_or(Ok(()), Err));
            }
        }
    }
}

/// The changed entries of a table and their place.
fn entries(table: HostOffset, entries: &[u64], range: Option<(usize, usize)>) -> Option<(HostOffset, Buf)> {
    let (first, end) = range?;
    let bytes: Vec<u8> = entries[first..end].iter().flat_map(|entry| entry.to_be_bytes()).collect();
    Some((HostOffset(table.0 + 8 * first as u64), Buf::from(bytes)))
}

fn union(a: Option<(usize, usize)>, b: Option<(usize, usize)>) -> Option<(usize, usize)> {
    match (a, b) {
        (Some(a), Some(b)) => Some((a.0.min(b.0), a.1.max(b.1))),
        (a, b) => a.or(b),
    }
}

/// Neighbouring slices become one write.
pub(super) fn merged(writes: Vec<(HostOffset, Buf)>) -> Vec<(HostOffset, crate::buf::BufList)> {
    let mut runs: Vec<(HostOffset, crate::buf::BufList)> = Vec::new();
    for (at, bytes) in writes {
        match runs.last_mut() {
            Some((start, run)) if start.0 + run.len_bytes() as u64 == at.0 => run.push(bytes),
            _ => runs.push((at, bytes.into())),
        }
    }
    runs
}
