//! Corruption that shows while the image is in use: it is told once, marked durably, and nothing is written any more.
//!
//! What shows it: an entry that names a place between clusters, a refcount that calls metadata free, and an L2 entry that
//! names metadata as the guest's data. The last is looked for when a slice of an L2 table is loaded, not when data is
//! written: such an entry loses its COPIED flag in memory, so that a write to it is no overwrite in place but comes by
//! [`refuse_overlapping`](Qcow2). Writes in place cost nothing. Discards and zeros, which would free the metadata, come by
//! [`refuse_freeing`](Qcow2).

use rustc_hash::FxHashSet;

use super::layout::{
    COMPRESSED, COPIED, GuestOffset, HostOffset, Incompatible, L1_LEN_MAX, L1Entry, L2Entry,
    RefcountTableEntry, extension_kind,
};
use super::lookup::be_u64;
use super::{Lock, Qcow2, Qcow2Error};
use crate::engine::{Event, Io};
use crate::error::Result;
use crate::graph::NodeId;
use crate::graph::driver::Role;

/// A number as C's `%#x` prints it, which has no prefix for zero.
fn hex(number: u64) -> String {
    if number == 0 { "0".into() } else { format!("{number:#x}") }
}

/// What is known of an image's corruption.
#[derive(Default)]
pub(super) struct Corruption {
    /// What was found first, until it is told and marked.
    found: Option<(String, Option<u64>)>,
    /// Whether something was found before.
    signaled: bool,
    /// Metadata that entries in memory name as data.
    overlapping: FxHashSet<u64>,
}

impl Corruption {
    pub(super) fn is_new(&self) -> bool {
        self.found.is_some()
    }
}

impl Qcow2 {
    /// Takes note of an error that shows corruption; from here on, nothing is written.
    pub(super) fn take_note(&self, fault: &Qcow2Error) {
        let Some((message, offset)) = self.sign_of_corruption(fault) else { return };
        let mut corruption = self.corruption.borrow_mut();
        if !std::mem::replace(&mut corruption.signaled, true) {
            corruption.found = Some((message, offset));
            if self.writable {
                self.locked.set(Some(Lock::Corrupt));
            }
        }
    }

    /// The reference's words for corruption, and the place that it is about.
    fn sign_of_corruption(&self, fault: &Qcow2Error) -> Option<(String, Option<u64>)> {
        const PLACE: u64 = 0x00ff_ffff_ffff_fe00;
        match fault {
            Qcow2Error::InL2Slice { slice, guest, problem } => {
                let Qcow2Error::Misaligned { raw, .. } = **problem else { return None };
                let (at, index) = (raw & PLACE, self.l2_index(*guest));
                let in_table = index * self.geometry.l2_entry_len / self.geometry.l2_slice_len;
                let table = slice.0 - (in_table * self.geometry.l2_slice_len) as u64;
                let text = format!(
                    "Cluster allocation offset {at:#x} unaligned (L2 offset: {table:#x}, L2 index: {index})"
                );
                Some((text, None))
            }
            Qcow2Error::InL1Table { index, problem } => {
                let Qcow2Error::Misaligned { raw, .. } = **problem else { return None };
                let index = hex(*index as u64);
                Some((format!("L2 table offset {:#x} unaligned (L1 index: {index})", raw & PLACE), None))
            }
            Qcow2Error::RefcountBlockOffset { index, raw, .. } => {
                let (at, index) = (raw & !0x1ff, hex(*index));
                Some((format!("Refblock offset {at:#x} unaligned (reftable index: {index})"), None))
            }
            Qcow2Error::MetadataIsFree { at } => {
                let holds = "Preventing invalid write on metadata (overlaps with ";
                Some((format!("{holds}{})", self.metadata_at(*at)), Some(at.0)))
            }
            Qcow2Error::OverlapsMetadata { at, holds, .. } => {
                Some((format!("Preventing invalid write on metadata (overlaps with {holds})"), Some(at.0)))
            }
            _ => None,
        }
    }

    /// Tells what was found, and sets the corrupt bit, durably.
    pub(super) async fn mark_corrupt(&self, io: &Io) -> Result<()> {
        let found = self.corruption.borrow_mut().found.take();
        if let Some((message, offset)) = found {
            let (node, fatal) = (self.name.clone(), self.writable);
            io.report(Event::ImageCorrupted { node, message, offset, fatal });
        }
        if !self.writable {
            return Ok(());
        }
        // Whoever comes second waits for the first, and finds nothing to do.
        let _one_at_a_time = self.commits.enter(&io.shared().tasks).await;
        if self.header.borrow().incompatible & Incompatible::CORRUPT != 0 || self.geometry.version < 3 {
            return Ok(());
        }
        self.write_header(io, io.child(Role::File), |header| header.incompatible |= Incompatible::CORRUPT)
            .await
    }

    /// Takes the COPIED flag off entries that name metadata as data.
    pub(super) fn disown_overlapping(&self, slice: &mut [u8]) {
        if !self.writable || self.geometry.data != Role::File {
            return;
        }
        let refcounts = self.refcounts.borrow();
        let bits = self.geometry.cluster_bits.bits();
        for entry in slice.chunks_exact_mut(self.geometry.l2_entry_len) {
            let raw = be_u64(entry, 0);
            if raw & (COPIED | COMPRESSED) != COPIED {
                continue;
            }
            let cluster = (raw & 0x00ff_ffff_ffff_fe00) >> bits;
            if cluster != 0 && refcounts.is_protected(cluster) {
                entry[0] &= 0x7f;
                self.corruption.borrow_mut().overlapping.insert(cluster);
            }
        }
    }

    /// Whether an entry names metadata as data.
    pub(super) fn overlaps_metadata(&self, entry: L2Entry) -> bool {
        let bits = self.geometry.cluster_bits.bits();
        entry.host().is_some_and(|at| self.refcounts.borrow().metadata.contains(&(at.0 >> bits)))
    }

    /// Refuses to write to the cluster of an entry that names metadata.
    pub(super) fn refuse_overlapping(&self, entry: L2Entry, guest: GuestOffset) -> Result<()> {
        let Some(at) = entry.host() else { return Ok(()) };
        let cluster = at.0 >> self.geometry.cluster_bits.bits();
        if !self.corruption.borrow().overlapping.contains(&cluster) {
            return Ok(());
        }
        Err(self.fail(Qcow2Error::OverlapsMetadata { guest, at, holds: self.metadata_at(at) }))
    }

    /// Refuses to free the cluster of an entry that names metadata. QEMU 10.0.2 frees it, and finds out when the next
    /// cluster that it takes is one of the metadata's.
    pub(super) fn refuse_freeing(&self, entry: L2Entry, guest: GuestOffset) -> Result<()> {
        let Some(at) = entry.host().filter(|_| self.geometry.data == Role::File) else { return Ok(()) };
        let cluster = at.0 >> self.geometry.cluster_bits.bits();
        let protected = self.refcounts.borrow().is_protected(cluster);
        match protected {
            false => Ok(()),
            true => Err(self.fail(Qcow2Error::OverlapsMetadata { guest, at, holds: self.metadata_at(at) })),
        }
    }

    /// What a cluster holds, in the reference's words.
    fn metadata_at(&self, at: HostOffset) -> &'static str {
        let bits = self.geometry.cluster_bits;
        let start = bits.start_of(at.0);
        let within =
            |table: u64, len: u64| (table..table + len.max(1).next_multiple_of(bits.size())).contains(&start);
        let l1 = self.l1.borrow();
        if start == 0 {
            return "qcow2_header";
        }
        if within(l1.at.0, l1.entries.len() as u64 * 8) {
            return "active L1 table";
        }
        let names =
            |raw: &u64| matches!(L1Entry::parse(*raw, bits), Ok(L1Entry::Table { at, .. }) if at.0 == start);
        if l1.entries.iter().any(names) {
            return "active L2 table";
        }
        // One that is being changed is not looked into.
        let Ok(refcounts) = self.refcounts.try_borrow() else { return "refcount block" };
        if within(refcounts.table_at.0, refcounts.table.len() as u64 * 8) {
            return "refcount table";
        }
        if refcounts.table.contains(&RefcountTableEntry::of(HostOffset(start)).encode()) {
            return "refcount block";
        }
        match self.header.borrow().snapshots_offset.0 == start {
            true => "snapshot table",
            false => "inactive L1 table",
        }
    }

    /// Protects metadata that only snapshots and bitmaps need.
    pub(super) async fn protect_more(&self, io: &Io, file: NodeId) -> Result<()> {
        let (header, what) = (self.header(), self.refcounts.borrow().protect);
        let bits = header.cluster_bits;
        // Beyond the end of the file there is nothing to protect, and no end to what a damaged image may name.
        let end = bits.count(io.len(file));
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        let mut add = |at: u64, len: u64| {
            let first = at >> bits.bits();
            ranges.push((first.min(end), first.saturating_add(bits.count(len)).min(end)));
        };
        if what.bitmap_directory
            && let Some(extension) = header.extension(extension_kind::BITMAPS).filter(|data| data.len() == 24)
        {
            let (len, at) = (be_u64(extension, 8), be_u64(extension, 16));
            add(at, len.min(64 << 20));
        }
        if header.snapshot_count > 0 && (what.snapshot_table || what.inactive_l1 || what.inactive_l2) {
            let snapshots = self.snapshots(io, file).await?;
            if what.snapshot_table {
                add(header.snapshots_offset.0, snapshots.iter().map(|snapshot| snapshot.entry_len).sum());
            }
            for snapshot in snapshots {
                let (at, len) = (snapshot.l1_offset.0, (u64::from(snapshot.l1_entries) * 8).min(L1_LEN_MAX));
                if what.inactive_l1 {
                    add(at, len);
                }
                if what.inactive_l2 && at < io.len(file) {
                    let len = len.min(io.len(file) - at);
                    let table = io.read_bytes("qcow2.open/inactive_l1", file, at, len as usize).await?;
                    for raw in table.chunks_exact(8) {
                        if let Ok(L1Entry::Table { at, .. }) = L1Entry::parse(be_u64(raw, 0), bits) {
                            add(at.0, 1);
                        }
                    }
                }
            }
        }
        ranges.sort_unstable();
        let mut refcounts = self.refcounts.borrow_mut();
        let mut done = 0;
        for (first, end) in ranges {
            refcounts.metadata.extend(first.max(done)..end.max(done));
            refcounts.unprotected.retain(|cluster| !(first..end).contains(cluster));
            done = done.max(end);
        }
        Ok(())
    }
}
