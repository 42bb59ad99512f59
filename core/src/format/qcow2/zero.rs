//! Zeros and discards: entries that say "zero" or nothing, and the clusters that this frees.
//!
//! Only entries change here. A cluster that loses its reference keeps its content until the change is durable
//! (`refcount`), so that a crash shows the old content or zeros, never another cluster's.

use super::Qcow2;
use super::layout::{Autoclear, ExtendedL2Entry, GuestOffset, L1Entry, L2Entry, SUBCLUSTERS};
use super::refcount::Freed;
use super::write::subcluster_mask;
use crate::engine::Io;
use crate::error::Result;
use crate::graph::driver::{Ready, Role};
use crate::intent::ZeroFlags;

/// What becomes of an entry.
enum Change {
    /// Nothing: it says what it should already.
    None,
    /// It is replaced, and the old one's clusters are freed unless the new one keeps them.
    To(ExtendedL2Entry),
    /// The format has no way to say it.
    Impossible,
}

impl Qcow2 {
    /// Makes whole subclusters read as zeros. `Ok(false)`: zeros have to be written as data.
    pub(super) async fn zero_range(
        &self,
        io: &Io,
        offset: GuestOffset,
        len: u64,
        flags: ZeroFlags,
    ) -> Result<bool> {
        let has_backing = io.try_child(Role::Backing).is_some();
        if self.writes_version.get() < 3 {
            // The reference calls nothing in version 2 fast.
            if has_backing || flags.no_fallback {
                return Ok(false);
            }
            self.discard_range(io, offset, len).await?;
            return Ok(true);
        }
        if self.data_file_is_raw() {
            let data = io.child(Role::DataFile);
            io.write_zeroes("qcow2.zero/data_file", data, offset.0, len, flags).await?;
        }
        self.change_entries(io, offset, len, false, |entry, from, to| self.zeroed(entry, from, to, flags))
            .await
    }

    /// Gives up the content of whole clusters. Version 2 cannot say "zero", so that what an image above a backing file gives
    /// up would show what is below, which the guest may have overwritten long ago: there the content stays.
    pub(super) async fn discard_range(&self, io: &Io, offset: GuestOffset, len: u64) -> Result<()> {
        let has_backing = io.try_child(Role::Backing).is_some();
        if self.geometry.version < 3 && has_backing {
            return Ok(());
        }
        if self.geometry.data == Role::DataFile && self.discards.request {
            io.discard("qcow2.discard/data_file", io.child(Role::DataFile), offset.0, len).await?;
        }
        if self.data_file_is_raw() {
            // What the data file says is what the guest sees: the entries stay.
            return Ok(());
        }
        let change = |entry, _, _| self.discarded(entry, has_backing);
        self.change_entries(io, offset, len, !has_backing, change).await.map(|_| ())
    }

    /// Makes a range hold nothing, so that what lies below shows through.
    pub(super) async fn forget_range(&self, io: &Io, offset: GuestOffset, len: u64) -> Result<()> {
        let nothing = ExtendedL2Entry { entry: L2Entry::Unallocated, allocated: 0, zero: 0 };
        let change = |old, _, _| if old == nothing { Change::None } else { Change::To(nothing) };
        self.change_entries(io, offset, len, true, change).await.map(|_| ())
    }

    /// Empties entries that say zero; nothing else would show in their place.
    pub(super) async fn forget_zeros(&self, io: &Io, offset: GuestOffset, len: u64) -> Result<()> {
        let change = |old: ExtendedL2Entry, _, _| match old.entry {
            L2Entry::Zero { .. } => Change::To(plain(L2Entry::Unallocated)),
            _ => Change::None,
        };
        self.change_entries(io, offset, len, true, change).await.map(drop)
    }

    pub(super) fn data_file_is_raw(&self) -> bool {
        self.header.borrow().autoclear & Autoclear::RAW_DATA_FILE != 0
    }

    /// Goes through the entries of a range, a slice at a time; each slice is changed in one step.
    async fn change_entries(
        &self,
        io: &Io,
        offset: GuestOffset,
        len: u64,
        skip_missing_tables: bool,
        change: impl Fn(ExtendedL2Entry, u64, u64) -> Change,
    ) -> Result<bool> {
        let end = offset.0 + len;
        let mut at = offset.0;
        while at < end {
            if skip_missing_tables && self.l1_entry(self.l1_index(GuestOffset(at)))? == L1Entry::Unallocated {
                let span = self.geometry.cluster_size << self.geometry.l2_bits;
                at = (at - at % span + span).min(end);
                continue;
            }
            match self.change_slice(GuestOffset(at), end, &change)? {
                Ready::Yes(Some(next)) => at = next,
                Ready::Yes(None) => return Ok(false),
                Ready::Miss(miss) => self.load_missing(io, miss).await?,
            }
            if self.owes_a_commit() {
                self.commit(io).await?;
            }
        }
        Ok(true)
    }

    /// Changes the entries from `offset` to `end` or to the end of the slice, and says where it stopped.
    fn change_slice(
        &self,
        offset: GuestOffset,
        end: u64,
        change: &impl Fn(ExtendedL2Entry, u64, u64) -> Change,
    ) -> Result<Ready<Option<u64>>> {
        let place = match self.own_entry(offset)? {
            Ready::Yes(place) => place,
            Ready::Miss(miss) => return Ok(Ready::Miss(miss)),
        };
        let bits = self.geometry.cluster_bits;
        let start = bits.start_of(offset.0);
        let count = bits.count(end - start).min(self.entries_left(&place));
        for n in 0..count {
            let (place, guest) = (self.nth(&place, n), start + n * bits.size());
            let from = offset.0.max(guest) - guest;
            let to = (end - guest).min(bits.size());
            let old = self.read_entry(&place, GuestOffset(guest))?;
            match change(old, from, to) {
                Change::None => {}
                Change::Impossible => return Ok(Ready::Yes(None)),
                Change::To(new) => {
                    let frees = new.entry.host().is_none() || new.entry.host() != old.entry.host();
                    if frees {
                        self.refuse_freeing(old.entry, GuestOffset(guest))?;
                    }
                    self.write_entry(&place, new);
                    if frees {
                        self.free_reference(old.entry, Freed::Request);
                    }
                }
            }
        }
        Ok(Ready::Yes(Some((start + count * bits.size()).min(end))))
    }

    /// The entry that reads as zeros from byte `from` to `to` of its cluster. Clusters are kept unless the caller
    /// says that they may go: a later write then finds its space reserved.
    fn zeroed(&self, old: ExtendedL2Entry, from: u64, to: u64, flags: ZeroFlags) -> Change {
        let geometry = &self.geometry;
        let compressed = matches!(old.entry, L2Entry::Compressed { .. });
        let frees = compressed || flags.may_unmap;
        if !geometry.rules.extended {
            let kept = old.entry.host().filter(|_| !frees);
            let new = L2Entry::Zero { host: kept, copied: kept.is_some() && old.entry.copied() };
            return if new == old.entry { Change::None } else { Change::To(plain(new)) };
        }
        let first = (from / geometry.subcluster_size) as u32;
        let end = to.div_ceil(geometry.subcluster_size) as u32;
        let mask = subcluster_mask(first, end);
        if compressed && end - first < SUBCLUSTERS {
            return Change::Impossible;
        }
        let (allocated, zero) = (old.allocated & !mask, old.zero | mask);
        let entry = if frees && zero == u32::MAX { L2Entry::Unallocated } else { old.entry };
        let new = ExtendedL2Entry { entry, allocated, zero };
        if new == old { Change::None } else { Change::To(new) }
    }

    /// The entry of a discarded cluster: zero where something else would show through, else nothing.
    fn discarded(&self, old: ExtendedL2Entry, has_backing: bool) -> Change {
        let shows =
            has_backing || old.entry.host().is_some() || matches!(old.entry, L2Entry::Compressed { .. });
        if !shows {
            return Change::None;
        }
        let kept = old.entry.host().is_some() && self.discard_no_unref;
        let new = match (self.geometry.rules.extended, self.writes_version.get()) {
            (true, _) if kept => ExtendedL2Entry { entry: old.entry, allocated: 0, zero: u32::MAX },
            (false, _) if kept => plain(L2Entry::Zero { host: old.entry.host(), copied: old.entry.copied() }),
            (true, _) => ExtendedL2Entry { entry: L2Entry::Unallocated, allocated: 0, zero: u32::MAX },
            (false, 2) => plain(L2Entry::Unallocated),
            (false, _) => plain(L2Entry::Zero { host: None, copied: false }),
        };
        if new == old { Change::None } else { Change::To(new) }
    }
}

fn plain(entry: L2Entry) -> ExtendedL2Entry {
    ExtendedL2Entry { entry, allocated: 0, zero: 0 }
}
