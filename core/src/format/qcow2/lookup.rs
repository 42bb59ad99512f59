//! Lookup: from a guest offset to an extent, from the L1 table and the L2 slices in memory.
//! Source: \[qcow2\] "Cluster mapping".

use super::crypt::aes_mapping;
use super::layout::{
    COPIED, ExtendedL2Entry, GuestOffset, HostOffset, L1Entry, L2Entry, OFFSET_MASK, SubclusterKind,
    usual_place,
};
use super::{Geometry, Lock, Missing, Qcow2, Qcow2Error};
use crate::error::Result;
use crate::graph::driver::{Access, Extent, Mapping};

impl Qcow2 {
    /// The extent at `offset`: neighbouring clusters of one slice that read alike count as one.
    pub(super) fn extent(&self, offset: GuestOffset, len: u64, access: Access) -> Result<Extent> {
        let geometry = &self.geometry;
        match self.locked.get() {
            None => {}
            // Neither ciphertext to a reader nor plaintext into the image.
            Some(Lock::Encrypted) => return Err(self.fail(Qcow2Error::Encrypted)),
            Some(Lock::NoDataFile) => return Err(self.fail(Qcow2Error::NoDataFile)),
            Some(Lock::Corrupt | Lock::Watched) if access == Access::Read => {}
            Some(Lock::Watched) => self.dirty(offset.0, len),
            Some(Lock::Corrupt) => return Err(self.fail(Qcow2Error::BecameCorrupt)),
        }
        if access == Access::Zero {
            return Ok(Extent { len, mapping: Mapping::Allocate });
        }
        let index = self.l1_index(offset);
        let table_span = geometry.cluster_size << geometry.l2_bits;
        let len = len.min(table_span - (offset.0 & (table_span - 1)));
        let (table, owned) = match self.l1_entry(index)? {
            L1Entry::Unallocated => return Ok(Extent { len, mapping: nothing(access) }),
            L1Entry::Table { at, copied } => (at, copied),
        };
        if access == Access::Write && !owned {
            return Ok(Extent { len, mapping: Mapping::Allocate });
        }
        let (slice, first) = self.slice_of(table, self.l2_index(offset));
        let l2 = self.l2.borrow();
        let Some(slot) = l2.find(slice) else {
            return Ok(Extent { len, mapping: Mapping::Miss(Missing::L2Slice.at(slice.0)) });
        };
        let entries = &l2.bytes(slot)[first..];
        match self.segment(entries, geometry.cluster_bits.offset_in(offset.0), access) {
            Ok((mapping, segment)) if segment >= len => Ok(Extent { len, mapping }),
            _ => self.walk(entries, slice, offset, len, access),
        }
    }

    /// The place of a range that a guest may ask for, and that lies within one standard cluster of data, where memory knows it:
    /// most requests. What [`extent`](Self::extent) says too, by way of values that stay in registers.
    #[inline(always)]
    pub(super) fn data_at(&self, offset: GuestOffset, len: u64, access: Access) -> Option<u64> {
        let Geometry { cluster_size, direct, unusual, .. } = self.geometry;
        // Slices and clusters are powers of two, and no shift is by more than 63: nothing of this wraps.
        let (cluster_mask, slice_mask) =
            (cluster_size.wrapping_sub(1), self.geometry.l2_slice_len.wrapping_sub(1) as u64);
        let in_cluster = offset.0 & cluster_mask;
        let usual = direct && self.locked.get().is_none() && self.shown_len.get().is_none();
        if !usual || len > cluster_size.wrapping_sub(in_cluster) {
            return None;
        }
        if offset.0 > self.guest_len().checked_sub(len)? {
            return None;
        }
        let cluster = offset.0.wrapping_shr(self.geometry.cluster_bits.bits());
        let index = cluster.wrapping_shr(self.geometry.l2_bits) as usize;
        let l1 = self.l1.borrow().entries.get(index).copied().unwrap_or(0);
        if l1 & unusual != 0 {
            return None;
        }
        // Without a table, this is a place in the header, where no slice is found.
        let table = l1 & OFFSET_MASK;
        let byte = cluster.wrapping_mul(8) & cluster_mask;
        let l2 = self.l2.borrow();
        let slice = l2.hinted(HostOffset(table | byte & !slice_mask))?;
        let (entries, _) = slice.as_chunks();
        let entry = u64::from_be_bytes(*entries.get((byte & slice_mask) as usize / 8)?);
        let host = usual_place(entry, unusual)?;
        let allowed = match access {
            Access::Read => true,
            Access::Write => l1 & entry & COPIED != 0,
            Access::Zero => false,
        };
        allowed.then_some(host.0 | in_cluster)
    }

    /// Merges segments from the first entry of `entries` on.
    fn walk(
        &self,
        entries: &[u8],
        slice: HostOffset,
        offset: GuestOffset,
        len: u64,
        access: Access,
    ) -> Result<Extent> {
        let geometry = &self.geometry;
        let mut in_cluster = geometry.cluster_bits.offset_in(offset.0);
        let mut found: Option<Extent> = None;
        for entry in entries.chunks_exact(geometry.l2_entry_len) {
            while in_cluster < geometry.cluster_size {
                let (mapping, segment) = self.segment(entry, in_cluster, access).map_err(|fault| {
                    let at = offset.0 + found.map_or(0, |extent| extent.len);
                    self.fail(fault.in_l2_slice(slice, GuestOffset(at)))
                })?;
                match &mut found {
                    None => found = Some(Extent { len: segment, mapping }),
                    Some(extent) if continues(extent, mapping) => extent.len += segment,
                    Some(extent) => return Ok(Extent { len: extent.len.min(len), ..*extent }),
                }
                in_cluster += segment;
                if found.is_some_and(|extent| extent.len >= len) {
                    break;
                }
            }
            if found.is_some_and(|extent| extent.len >= len) {
                break;
            }
            in_cluster = 0;
        }
        let extent = found.expect("a slice holds the entry that was asked about");
        Ok(Extent { len: extent.len.min(len), ..extent })
    }

    /// What the first of `entry` says of its cluster from `in_cluster` on, and for how many bytes.
    #[inline]
    fn segment(&self, entry: &[u8], in_cluster: u64, access: Access) -> Result<(Mapping, u64), Qcow2Error> {
        let geometry = &self.geometry;
        let rest = geometry.cluster_size - in_cluster;
        if geometry.l2_entry_len == 8 {
            let entry = L2Entry::parse(be_u64(entry, 0), &geometry.rules)?;
            return Ok((geometry.mapping(&entry, in_cluster, access), rest));
        }
        let entry = ExtendedL2Entry::parse(be_u64(entry, 0), be_u64(entry, 8), &geometry.rules)?;
        let subcluster = in_cluster / geometry.subcluster_size;
        if matches!(entry.entry, L2Entry::Compressed { .. }) {
            return Ok((geometry.mapping(&entry.entry, in_cluster, access), rest));
        }
        let (kind, count) = entry.run_at(subcluster as u32);
        let end = (subcluster + u64::from(count)) * geometry.subcluster_size;
        let mapping = match (kind, access) {
            (SubclusterKind::Allocated, _) => geometry.mapping(&entry.entry, in_cluster, access),
            (_, Access::Write) => Mapping::Allocate,
            (SubclusterKind::Zero, _) => {
                Mapping::Zero { at: entry.entry.host().map(|host| host.0 + in_cluster) }
            }
            (SubclusterKind::Unallocated, _) => {
                Mapping::Backing { at: entry.entry.host().map(|host| host.0 + in_cluster) }
            }
        };
        Ok((mapping, end - in_cluster))
    }
}

impl Geometry {
    #[inline]
    fn mapping(&self, entry: &L2Entry, in_cluster: u64, access: Access) -> Mapping {
        match (entry, access) {
            (L2Entry::Standard { .. }, Access::Read) if self.aes => aes_mapping(),
            (L2Entry::Standard { host, copied: true }, _)
            | (L2Entry::Standard { host, .. }, Access::Read) => {
                Mapping::Data { child: self.guest, offset: host.0 + in_cluster }
            }
            (_, Access::Write | Access::Zero) => Mapping::Allocate,
            (L2Entry::Unallocated, Access::Read) => Mapping::Backing { at: None },
            (L2Entry::Zero { host, .. }, Access::Read) => {
                Mapping::Zero { at: host.map(|host| host.0 + in_cluster) }
            }
            (L2Entry::Compressed { .. }, Access::Read) => Mapping::Special { compressed: true },
        }
    }
}

fn nothing(access: Access) -> Mapping {
    if access == Access::Read { Mapping::Backing { at: None } } else { Mapping::Allocate }
}

/// Whether `next` goes on where `extent` ends.
fn continues(extent: &Extent, next: Mapping) -> bool {
    match (extent.mapping, next) {
        (Mapping::Data { child, offset }, Mapping::Data { child: next_child, offset: next }) => {
            child == next_child && offset + extent.len == next
        }
        (Mapping::Zero { at }, Mapping::Zero { at: next })
        | (Mapping::Backing { at }, Mapping::Backing { at: next }) => match (at, next) {
            (None, None) => true,
            (Some(at), Some(next)) => at + extent.len == next,
            _ => false,
        },
        (Mapping::Allocate, Mapping::Allocate) => true,
        _ => false,
    }
}

/// Big-endian number at `byte` of an entry.
#[inline]
pub(super) fn be_u64(bytes: &[u8], byte: usize) -> u64 {
    let bytes = bytes[byte..byte + 8].try_into().expect("eight bytes");
    u64::from_be_bytes(bytes)
}
