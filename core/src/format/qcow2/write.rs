//! Write: takes clusters for new data and makes them reachable.
//!
//! Reserve, data, publish: between reserve and publish nothing points to the clusters, in memory or on disk, so that
//! a write that fails, or a crash, leaves the old content. The data path holds a claim on the guest range meanwhile;
//! the L2 entries of the range are looked at anew in each step. On disk, `flush` puts data before the entries.

use super::layout::{
    ExtendedL2Entry, GuestOffset, HostOffset, L1Entry, L2Entry, SUBCLUSTERS, SubclusterKind,
};
use super::lookup::be_u64;
use super::refcount::Freed;
use super::{Missing, Qcow2, Qcow2Error};
use crate::error::Result;
use crate::graph::driver::{Ready, Reservation, Role};

/// A change of L2 entries that are in memory: the slice, and the first byte of the first entry.
pub(super) struct EntryPlace {
    pub(super) slice: HostOffset,
    pub(super) byte: usize,
}

/// How a write to a cluster gets its space.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Plan {
    /// The entry may be written through already.
    InPlace,
    /// The cluster is the image's own, and becomes readable from subcluster `first` to `end`.
    Own { host: HostOffset, first: u32, end: u32 },
    /// A new cluster, of which only the touched subclusters are written.
    NewTouched,
    /// A new cluster, all of it written.
    NewWhole,
}

impl Qcow2 {
    /// The place of the L2 entry for `offset`, in a table that the image owns and a slice that is in memory.
    pub(super) fn own_entry(&self, offset: GuestOffset) -> Result<Ready<EntryPlace>> {
        let index = self.l1_index(offset);
        let L1Entry::Table { at, copied: true } = self.l1_entry(index)? else {
            return Ok(Ready::Miss(Missing::OwnTable.at(index as u64)));
        };
        let (slice, byte) = self.slice_of(at, self.l2_index(offset));
        if self.l2.borrow().find(slice).is_none() {
            return Ok(Ready::Miss(Missing::L2Slice.at(slice.0)));
        }
        Ok(Ready::Yes(EntryPlace { slice, byte }))
    }

    /// Reads an entry of either kind; a standard one as an extended one without bitmap.
    pub(super) fn read_entry(&self, place: &EntryPlace, guest: GuestOffset) -> Result<ExtendedL2Entry> {
        let l2 = self.l2.borrow();
        let slot = l2.find(place.slice).expect("looked up in the same step");
        let bytes = &l2.bytes(slot)[place.byte..];
        let rules = &self.geometry.rules;
        let parsed = if rules.extended {
            ExtendedL2Entry::parse(be_u64(bytes, 0), be_u64(bytes, 8), rules)
        } else {
            L2Entry::parse(be_u64(bytes, 0), rules).map(|entry| ExtendedL2Entry {
                entry,
                allocated: 0,
                zero: 0,
            })
        };
        parsed.map_err(|fault: Qcow2Error| self.fail(fault.in_l2_slice(place.slice, guest)))
    }

    /// Replaces an entry in memory.
    pub(super) fn write_entry(&self, place: &EntryPlace, entry: ExtendedL2Entry) {
        let mut l2 = self.l2.borrow_mut();
        let slot = l2.find(place.slice).expect("looked up in the same step");
        let bytes = &mut l2.bytes_mut(slot)[place.byte..];
        let (raw, bitmap) = entry.encode(&self.geometry.rules);
        bytes[..8].copy_from_slice(&raw.to_be_bytes());
        if self.geometry.rules.extended {
            bytes[8..16].copy_from_slice(&bitmap.to_be_bytes());
        }
    }

    /// Entries of this slice from `place` on.
    pub(super) fn entries_left(&self, place: &EntryPlace) -> u64 {
        ((self.geometry.l2_slice_len - place.byte) / self.geometry.l2_entry_len) as u64
    }

    pub(super) fn nth(&self, place: &EntryPlace, n: u64) -> EntryPlace {
        EntryPlace { slice: place.slice, byte: place.byte + n as usize * self.geometry.l2_entry_len }
    }

    /// Takes space for a write to the range, in one slice and one run of clusters.
    pub(super) fn reserve_space(&self, offset: GuestOffset, len: u64) -> Result<Ready<Reservation>> {
        let place = match self.own_entry(offset)? {
            Ready::Yes(place) => place,
            Ready::Miss(miss) => return Ok(Ready::Miss(miss)),
        };
        let bits = self.geometry.cluster_bits;
        let start = bits.start_of(offset.0);
        let end = offset.0 + len;
        let touched = bits.count(end - start).min(self.entries_left(&place));
        let plan = self.plan(&place, start, offset.0, end)?;
        if let Plan::Own { host, first, end } = plan {
            return Ok(Ready::Yes(self.own_reservation(start, host, first, end)));
        }
        if plan == Plan::InPlace {
            // Somebody made the cluster writable since the lookup: the caller looks again.
            let host =
                self.read_entry(&place, offset)?.entry.host().expect("writable entries have a cluster");
            let all = if self.geometry.rules.extended { SUBCLUSTERS } else { 1 };
            return Ok(Ready::Yes(self.own_reservation(start, host, 0, all)));
        }
        let mut wanted = 1;
        while wanted < touched {
            let next = start + wanted * bits.size();
            if self.plan(&self.nth(&place, wanted), next, next, end)? != plan {
                break;
            }
            wanted += 1;
        }
        let (host, count, zeroed) = if self.geometry.data == Role::DataFile {
            (HostOffset(start), wanted, false)
        } else {
            let taken = self.refcounts.borrow_mut().take(wanted).map_err(|fault| self.fail(fault))?;
            match taken {
                Ready::Yes(taken) => (taken.at, taken.count, taken.zeroed),
                Ready::Miss(miss) => return Ok(Ready::Miss(miss)),
            }
        };
        let whole = (start, start + count * bits.size());
        let subcluster = self.geometry.subcluster_size;
        let (guest_start, guest_end) = match plan {
            Plan::NewWhole => whole,
            _ => (offset.0 - offset.0 % subcluster, end.next_multiple_of(subcluster).min(whole.1)),
        };
        Ok(Ready::Yes(Reservation {
            child: self.geometry.guest,
            host_offset: host.0 + (guest_start - start),
            guest_start,
            guest_end,
            // Zeros in the file are no zeros once they are decrypted.
            zeroed: zeroed && !self.geometry.is_encrypted(),
            fresh: self.geometry.data == Role::File,
        }))
    }

    fn own_reservation(&self, start: u64, host: HostOffset, first: u32, end: u32) -> Reservation {
        let subcluster = self.geometry.subcluster_size;
        Reservation {
            child: self.geometry.guest,
            host_offset: host.0 + u64::from(first) * subcluster,
            guest_start: start + u64::from(first) * subcluster,
            guest_end: start + u64::from(end) * subcluster,
            zeroed: false,
            fresh: false,
        }
    }

    /// How the cluster at `start` gets space for a write from `from` to `to`.
    fn plan(&self, place: &EntryPlace, start: u64, from: u64, to: u64) -> Result<Plan> {
        let geometry = &self.geometry;
        let entry = self.read_entry(place, GuestOffset(from))?;
        self.refuse_overlapping(entry.entry, GuestOffset(start))?;
        if !geometry.rules.extended {
            return Ok(match entry.entry {
                L2Entry::Standard { copied: true, .. } => Plan::InPlace,
                L2Entry::Zero { host: Some(host), copied: true } => Plan::Own { host, first: 0, end: 1 },
                _ => Plan::NewWhole,
            });
        }
        match entry.entry {
            L2Entry::Standard { host, copied: true } => {
                let first = ((from - start) / geometry.subcluster_size) as u32;
                let (kind, count) = entry.run_at(first);
                if kind == SubclusterKind::Allocated {
                    return Ok(Plan::InPlace);
                }
                let last = (to - 1 - start) / geometry.subcluster_size;
                let end = (first + count).min(u32::try_from(last + 1).unwrap_or(SUBCLUSTERS));
                Ok(Plan::Own { host, first, end })
            }
            L2Entry::Unallocated => Ok(Plan::NewTouched),
            _ => Ok(Plan::NewWhole),
        }
    }

    /// Points the L2 entries of a reservation to its clusters. What they pointed to before is freed later.
    pub(super) fn publish_space(&self, reservation: &Reservation) -> Result<Ready<()>> {
        let bits = self.geometry.cluster_bits;
        let place = match self.own_entry(GuestOffset(reservation.guest_start))? {
            Ready::Yes(place) => place,
            Ready::Miss(miss) => return Ok(Ready::Miss(miss)),
        };
        let start = bits.start_of(reservation.guest_start);
        let host_start = reservation.host_offset - bits.offset_in(reservation.guest_start);
        let subcluster = self.geometry.subcluster_size;
        for n in 0..bits.count(reservation.guest_end - start) {
            let (place, guest) = (self.nth(&place, n), start + n * bits.size());
            let host = HostOffset(host_start + n * bits.size());
            let old = self.read_entry(&place, GuestOffset(guest))?;
            let first = reservation.guest_start.saturating_sub(guest) / subcluster;
            let end = (reservation.guest_end - guest).min(bits.size()).div_ceil(subcluster);
            let written =
                if self.geometry.rules.extended { subcluster_mask(first as u32, end as u32) } else { 0 };
            let same = old.entry.host() == Some(host);
            let kept = if same || old.entry == L2Entry::Unallocated { old } else { nothing() };
            let new = ExtendedL2Entry {
                entry: L2Entry::Standard { host, copied: true },
                allocated: kept.allocated | written,
                zero: kept.zero & !written,
            };
            self.write_entry(&place, new);
            if !same {
                self.free_reference(old.entry, Freed::Other);
            }
        }
        Ok(Ready::Yes(()))
    }

    /// Takes note that an entry no longer points to its clusters.
    pub(super) fn free_reference(&self, entry: L2Entry, why: Freed) {
        if self.geometry.data != Role::File {
            return;
        }
        let bits = self.geometry.cluster_bits;
        // What holds metadata is not given up for an entry that should not name it: a leak, for a check to find.
        if self.overlaps_metadata(entry) {
            return;
        }
        if let Some((at, len)) = entry.reference(bits) {
            let first = bits.start_of(at.0);
            self.free_later(HostOffset(first), bits.count(at.0 + len - first), why);
        }
    }

    /// Puts the clusters of a reservation aside that was not published.
    pub(super) fn give_back_space(&self, reservation: &Reservation) {
        if !reservation.fresh {
            return;
        }
        let bits = self.geometry.cluster_bits;
        let first = reservation.host_offset - bits.offset_in(reservation.host_offset);
        let count = bits.count(reservation.guest_end - bits.start_of(reservation.guest_start));
        self.refcounts.borrow_mut().give_back(HostOffset(first), count);
    }
}

fn nothing() -> ExtendedL2Entry {
    ExtendedL2Entry { entry: L2Entry::Unallocated, allocated: 0, zero: 0 }
}

/// Bits `first` to `end` of a subcluster bitmap.
pub(super) fn subcluster_mask(first: u32, end: u32) -> u32 {
    let below = |bits: u32| if bits >= SUBCLUSTERS { u32::MAX } else { (1 << bits) - 1 };
    below(end) & !below(first)
}
