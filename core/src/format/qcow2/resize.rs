//! Resize: a longer or shorter disk. Preallocation of what is new is `preallocate`'s.
//!
//! Order on disk, longer: an L1 table with room (`generation`); zeros wherever something would show that is not the new
//! disk's, the end of the last cluster, a backing file, entries that a crash left beyond the end; a barrier; the header
//! with the new length. A crash before that leaves the disk at its old length. Where only entries of the table in use have
//! to become zeros, they come first, and one header names the longer table and the new length.
//!
//! Order on disk, shorter: the header with the new length, durable; then the entries beyond the end go, like those of any
//! discarded cluster; then the file ends where its last cluster in use does. A crash leaves entries beyond the end, which
//! count as used and are dropped when the disk grows again.

use std::cell::Cell;

use super::generation::Change;
use super::layout::{ExtendedL2Entry, GuestOffset, L1_LEN_MAX, L1Entry, L2Entry};
use super::lookup::be_u64;
use super::refcount::Freed;
use super::{Qcow2, Qcow2Error};
use crate::engine::Io;
use crate::error::{Error, Result};
use crate::filter::DebugEvent;
use crate::graph::driver::{Access, Mapping, Preallocate, Ready, Role};
use crate::intent::{Preallocation, ZeroFlags};

/// Has the node show more than its header says, until dropped.
pub(super) struct Shown<'a>(pub(super) &'a Cell<Option<u64>>);

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        self.0.set(None);
    }
}

impl Qcow2 {
    /// Changes the length of the disk; one change at a time.
    pub(super) async fn change_len(&self, io: &Io, len: u64, how: Preallocate) -> Result<()> {
        let _one_at_a_time = self.resizes.enter(&io.shared().tasks).await;
        if io.flags(io.node()).read_only {
            return Err(Box::new(Error::ReadOnly { node: self.name.clone() }));
        }
        let old = self.check_resize(len, how)?;
        if len < old { self.shrink(io, len).await } else { self.grow(io, old, len, how).await }
    }

    /// Whether the length may change; returns what it is.
    fn check_resize(&self, len: u64, how: Preallocate) -> Result<u64> {
        let header = self.header.borrow();
        let refuse = |text: &str| Err(self.fail(Qcow2Error::Option(text.into())));
        if !len.is_multiple_of(512) {
            return refuse("The new size must be a multiple of 512");
        }
        if header.snapshot_count > 0 && header.version < 3 {
            return refuse("Can't resize a v2 image which has snapshots");
        }
        self.check_bitmaps_for(len).map_err(|fault| self.fail(fault))?;
        if len < header.size && how != Preallocate::Off {
            return refuse("Preallocation can't be used for shrinking an image");
        }
        if len > i64::MAX as u64 || header.l1_entries_for(len) > L1_LEN_MAX / 8 {
            return refuse("Failed to grow the L1 table: File too large");
        }
        Ok(header.size)
    }

    async fn grow(&self, io: &Io, old: u64, len: u64, how: Preallocate) -> Result<()> {
        if len == old {
            return Ok(());
        }
        let needed = self.header.borrow().l1_entries_for(len) as usize;
        let reached = self.l1_reach();
        if needed > self.l1.borrow().entries.len() {
            let shows_beyond = io.try_child(Role::Backing).is_some_and(|backing| io.len(backing) > reached);
            if how == Preallocate::Off && self.geometry.data == Role::File && !shows_beyond {
                return self.grow_at_once(io, (old, reached), len, needed).await;
            }
            self.grow_l1(io, needed, old).await?;
        }
        let how = match how {
            // A raw data file is read by those who know no entries: each says that the data is there.
            Preallocate::Off if self.data_file_is_raw() => Preallocate::Metadata,
            how => how,
        };
        if self.geometry.data == Role::DataFile {
            let file = io.child(Role::DataFile);
            let there = io.len(file);
            if there > old {
                let (len, flags) = (there.min(len) - old, ZeroFlags::default());
                io.write_zeroes("qcow2.resize/data_file", file, old, len, flags).await?;
            }
            if there < len {
                io.set_len(file, len, how.of_file()).await?;
            }
        }
        self.shown_len.set(Some(len));
        let shown = Shown(&self.shown_len);
        self.clear_new_part(io, old, len).await?;
        self.preallocate(io, old, len, how).await?;
        // All that the longer disk shows is durable before it is longer.
        self.commit(io).await?;
        self.change_header(io, |header| header.size = len).await?;
        self.resize_bitmaps(len);
        drop(shown);
        Ok(())
    }

    /// Grows the disk together with its L1 table, where nothing shows beyond what the table has now.
    ///
    /// Zeros as far as the table reaches are durable, because all is once mappings [stand still](Self::stand_still), before
    /// the header names the longer table and the new length.
    async fn grow_at_once(
        &self,
        io: &Io,
        (old, reached): (u64, u64),
        len: u64,
        entries: usize,
    ) -> Result<()> {
        self.shown_len.set(Some(reached));
        let shown = Shown(&self.shown_len);
        self.clear_new_part(io, old, reached).await?;
        self.grow_l1(io, entries, len).await?;
        self.resize_bitmaps(len);
        drop(shown);
        Ok(())
    }

    /// Bytes of a disk that the L1 table has entries for.
    fn l1_reach(&self) -> u64 {
        let span = self.geometry.cluster_size << self.geometry.l2_bits;
        span * self.l1.borrow().entries.len() as u64
    }

    /// Makes the L1 table longer, and the disk `len` bytes long.
    pub(super) async fn grow_l1(&self, io: &Io, entries: usize, len: u64) -> Result<()> {
        let node = io.shared().graph.node(io.node());
        let still = self.stand_still(io, &node).await?;
        let mut change = Change::of(self);
        change.l1.resize(entries, 0);
        change.size = len;
        self.switch(io, &still, change).await
    }

    /// Makes `[old, len)` read as zeros wherever it does not.
    async fn clear_new_part(&self, io: &Io, old: u64, len: u64) -> Result<()> {
        let backing = io.try_child(Role::Backing);
        let backing_len = backing.map_or(0, |backing| io.len(backing));
        let flags = ZeroFlags { may_unmap: true, ..ZeroFlags::default() };
        let mut at = old;
        while at < len {
            let extent = self.extent(GuestOffset(at), len - at, Access::Read)?;
            let end = at + extent.len;
            let shows_until = match extent.mapping {
                Mapping::Miss(miss) => {
                    self.load_missing(io, miss).await?;
                    continue;
                }
                Mapping::Zero { .. } => at,
                Mapping::Backing { .. } => end.min(backing_len).max(at),
                _ => end,
            };
            if shows_until > at {
                io.write_zeroes("qcow2.resize/zero", io.node(), at, shows_until - at, flags).await?;
            }
            at = end;
        }
        Ok(())
    }

    async fn shrink(&self, io: &Io, len: u64) -> Result<()> {
        self.flush_all(io).await?;
        // From here on the disk ends there: nobody is lost to whom the rest was promised.
        self.change_header(io, |header| header.size = len).await?;
        self.resize_bitmaps(len);
        let bits = self.geometry.cluster_bits;
        let end = len.next_multiple_of(bits.size());
        {
            // Requests that began before may still be giving space to what lies beyond.
            let node = io.shared().graph.node(io.node());
            let _claim = node.claims.take(&io.shared().tasks, end, u64::MAX).await;
            let span = bits.size() << self.geometry.l2_bits;
            let tables_from = end.div_ceil(span);
            self.drop_entries(io, end, tables_from * span).await?;
            self.drop_tables(io, tables_from as usize).await?;
        }
        if self.geometry.data == Role::DataFile {
            io.set_len(io.child(Role::DataFile), len, Preallocation::Off).await?;
        }
        self.cut_file(io).await
    }

    /// Empties the entries of one L2 table from `from` on, up to `to`, where the table ends.
    async fn drop_entries(&self, io: &Io, from: u64, to: u64) -> Result<()> {
        let nothing = ExtendedL2Entry { entry: L2Entry::Unallocated, allocated: 0, zero: 0 };
        let index = self.l1_index(GuestOffset(from));
        if from == to || self.l1_entry_or_none(index)? == L1Entry::Unallocated {
            return Ok(());
        }
        let mut at = from;
        while at < to {
            let place = match self.own_entry(GuestOffset(at))? {
                Ready::Yes(place) => place,
                Ready::Miss(miss) => {
                    self.load_missing(io, miss).await?;
                    continue;
                }
            };
            let count = ((to - at) / self.geometry.cluster_size).min(self.entries_left(&place));
            for n in 0..count {
                let place = self.nth(&place, n);
                let old = self.read_entry(&place, GuestOffset(at + n * self.geometry.cluster_size))?;
                if old != nothing {
                    self.write_entry(&place, nothing);
                    self.free_reference(old.entry, Freed::Request);
                }
            }
            at += count * self.geometry.cluster_size;
            if self.owes_a_commit() {
                self.commit(io).await?;
            }
        }
        Ok(())
    }

    /// Gives up the L2 tables from entry `first` of the L1 table on, with all that they refer to.
    async fn drop_tables(&self, io: &Io, first: usize) -> Result<()> {
        let entries = self.l1.borrow().entries.len();
        if first >= entries {
            return Ok(());
        }
        io.event(DebugEvent::L1ShrinkWriteTable).await;
        // What is on disk is all there is to know: nobody changes these tables any more.
        self.commit(io).await?;
        io.event(DebugEvent::L1ShrinkFreeL2Clusters).await;
        let (file, bits) = (io.child(Role::File), self.geometry.cluster_bits);
        for index in first..entries {
            let L1Entry::Table { at, .. } = self.l1_entry(index)? else { continue };
            let bytes = io.read_bytes("qcow2.resize/l2_table", file, at.0, bits.size() as usize).await?;
            for (number, entry) in (0u64..).zip(bytes.chunks_exact(self.geometry.l2_entry_len)) {
                let parsed = L2Entry::parse(be_u64(entry, 0), &self.geometry.rules);
                let guest = GuestOffset(
                    ((index as u64) << (bits.bits() + self.geometry.l2_bits)) + (number << bits.bits()),
                );
                self.free_reference(
                    parsed.map_err(|fault| self.fail(fault.in_l2_slice(at, guest)))?,
                    Freed::Request,
                );
            }
            self.l1.borrow_mut().set(index, L1Entry::Unallocated.encode());
            self.free_later(at, 1, Freed::Request);
            if self.owes_a_commit() {
                self.commit(io).await?;
            }
        }
        Ok(())
    }

    fn l1_entry_or_none(&self, index: usize) -> Result<L1Entry> {
        match index < self.l1.borrow().entries.len() {
            true => self.l1_entry(index),
            false => Ok(L1Entry::Unallocated),
        }
    }

    /// Takes off the file what lies behind its last cluster in use, once what was freed is given back.
    async fn cut_file(&self, io: &Io) -> Result<()> {
        let node = io.shared().graph.node(io.node());
        // Nobody takes a cluster that is about to be cut off, and the refcounts that say so are durable.
        let _still = self.stand_still(io, &node).await?;
        let file = io.child(Role::File);
        let end = self.counted_end(io).await? * self.geometry.cluster_size;
        if end < io.len(file) && io.leaf_info(file).is_some_and(|info| info.grows_as_zeroes) {
            io.set_len(file, end, Preallocation::Off).await?;
        }
        Ok(())
    }

    /// The number of the first cluster from which on none is counted.
    async fn counted_end(&self, io: &Io) -> Result<u64> {
        let (per_block, width, blocks) = {
            let refcounts = self.refcounts.borrow();
            (refcounts.per_block(), refcounts.width, refcounts.table.len() as u64)
        };
        for index in (0..blocks).rev() {
            let Some(block) = self.read_block(io, index).await? else { continue };
            let last = (0..per_block).rev().find(|cluster| width.get(&block, *cluster as usize) != 0);
            if let Some(last) = last {
                return Ok(index * per_block + last + 1);
            }
        }
        Ok(0)
    }
}
