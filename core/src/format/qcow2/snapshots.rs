//! Internal snapshots: take one, go back to one, delete one. Source: \[qcow2\] "Snapshots".
//!
//! ```text
//!   active L1 ─┬▶ L2 tables ─▶ clusters
//!   snapshot's ┘     a snapshot is an L1 table of its own; what both reach is counted twice, and flagged as shared
//! ```
//!
//! Each operation writes a new generation of the metadata (`generation`) that one write of the header makes the image's:
//! a crash leaves the image without the change or with it, and at most leaked clusters beside. The new snapshot table is
//! durable before the header points to it, and the old one is given up after that.
//!
//! Guest requests go on. Mappings stand still until the header is written; whatever looked a cluster up before and still
//! writes to it has ended before a snapshot is called taken ([`Qcow2::create_snapshot`]), and before a cluster is given
//! back (`reclaim`).

use super::generation::{Change, SnapshotTable};
use super::layout::{
    GuestOffset, HostOffset, Incompatible, L1_LEN_MAX, L1Entry, L2Entry, SNAPSHOT_TABLE_LEN_MAX,
    SNAPSHOTS_MAX, Snapshot, check_table,
};
use super::lookup::be_u64;
use super::open::{SnapshotChoice, read_table};
use super::refcount::{Freed, FreedRun};
use super::{Qcow2, Qcow2Error};
use crate::engine::Io;
use crate::error::{Error, Result};
use crate::graph::driver::Role;

/// A snapshot to be taken. The caller knows the time; this program has no clock.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewSnapshot {
    /// Its name; other snapshots may have the same.
    pub name: String,
    /// Seconds since 1970.
    pub seconds: u32,
    /// …and nanoseconds.
    pub nanoseconds: u32,
    /// How long the guest has run, in nanoseconds.
    pub guest_nanoseconds: u64,
    /// Bytes of machine state that the image holds beyond the end of its disk. They are the snapshot's from then on, and
    /// the disk's no more.
    pub vm_state_len: u64,
    /// Instructions that the guest has run, where somebody counted.
    pub icount: Option<u64>,
}

/// Bytes of a snapshot's name at the most. Source: QEMU cuts names off there.
pub const SNAPSHOT_NAME_LEN_MAX: usize = 255;

impl Qcow2 {
    /// Takes a snapshot; returns its id, the number after the highest that there is.
    ///
    /// Durable on return, and no write that began before still reaches a cluster of the snapshot.
    ///
    /// # Errors
    /// When there are too many, a refcount does not hold one reference more, or the file cannot be written: the image is
    /// then what it was. Or when the snapshot is there, and the disk could not let go of the state that it took over.
    pub(crate) async fn create_snapshot(&self, io: &Io, new: &NewSnapshot) -> Result<String> {
        self.check_snapshots_work(io)?;
        let node = io.shared().graph.node(io.node());
        let still = self.stand_still(io, &node).await?;
        let (snapshots, table) = self.snapshot_table(io).await?;
        let id = next_id(&snapshots);
        let mut change = Change::of(self);
        change.raise.clone_from(&change.l1);
        let entry = Snapshot {
            l1_offset: HostOffset(0),
            l1_entries: u32::try_from(change.l1.len()).expect("an L1 table is at most 32 MiB"),
            id: id.clone(),
            name: cut_name(&new.name).into(),
            seconds: new.seconds,
            nanoseconds: new.nanoseconds,
            guest_nanoseconds: new.guest_nanoseconds,
            vm_state_len: new.vm_state_len,
            disk_size: Some(change.size),
            icount: new.icount,
            unknown_extra: Vec::new(),
            entry_len: 0,
        };
        if snapshots.len() >= SNAPSHOTS_MAX as usize {
            return Err(self.fail(Qcow2Error::SnapshotsFull { max: SNAPSHOTS_MAX }));
        }
        let len = (table.len() + entry.encode().len()) as u64;
        if len > SNAPSHOT_TABLE_LEN_MAX {
            let (table, max) = ("Snapshot table", SNAPSHOT_TABLE_LEN_MAX);
            return Err(self.fail(Qcow2Error::TableTooLarge { table, len, max }));
        }
        change.retired = self.old_snapshot_table(table.len() as u64);
        change.snapshots =
            Some(SnapshotTable { kept: table, kept_count: snapshots.len() as u32, new: Some(entry) });
        // From here on nothing is overwritten in place: whoever wants to, waits, and then finds the cluster shared.
        let before = self.share_all()?;
        let switched = self.switch(io, &still, change).await;
        if switched.is_err() {
            self.l1.borrow_mut().entries = before;
        }
        drop(still);
        switched?;
        io.quiesce().await;
        let forgotten = self.forget_vmstate(io, new.vm_state_len).await;
        self.start_giving_back(io).await;
        forgotten.map(|()| id)
    }

    /// Makes the disk what it was when a snapshot was taken, its length included. The snapshot stays.
    ///
    /// # Errors
    /// [`Qcow2Error::NoSnapshot`], or what [`create_snapshot`](Self::create_snapshot) says.
    pub(crate) async fn apply_snapshot(&self, io: &Io, choice: &SnapshotChoice) -> Result<()> {
        self.check_snapshots_work(io)?;
        if self.counts_changes() {
            return Err(self.fail(Qcow2Error::CountsChanges));
        }
        let node = io.shared().graph.node(io.node());
        let still = self.stand_still(io, &node).await?;
        let (snapshots, _) = self.snapshot_table(io).await?;
        let snapshot = choice.find(&snapshots).ok_or_else(|| self.fail(Qcow2Error::NoSnapshot))?;
        let mut change = Change::of(self);
        let before = std::mem::take(&mut change.l1);
        change.raise = self.snapshot_l1(io, snapshot).await?;
        change.size = snapshot.disk_size.unwrap_or(change.size);
        let needed = self.header.borrow().l1_entries_for(change.size);
        let entries = change.raise.len().max(before.len()).max(needed as usize);
        if entries as u64 * 8 > L1_LEN_MAX {
            let (table, len, max) = ("Active L1 table", entries as u64 * 8, L1_LEN_MAX);
            return Err(self.fail(Qcow2Error::TableTooLarge { table, len, max }));
        }
        change.l1.clone_from(&change.raise);
        change.l1.resize(entries, 0);
        self.switch(io, &still, change).await?;
        // The snapshot keeps a reference to all that the disk has now, so that no count of it drops to one here.
        let freed = self.free_all(io, &before).await;
        drop(still);
        self.start_giving_back(io).await;
        freed
    }

    /// Deletes a snapshot.
    ///
    /// # Errors
    /// [`Qcow2Error::NoSnapshot`], or what [`create_snapshot`](Self::create_snapshot) says.
    pub(crate) async fn delete_snapshot(&self, io: &Io, choice: &SnapshotChoice) -> Result<()> {
        self.check_snapshots_work(io)?;
        let node = io.shared().graph.node(io.node());
        let still = self.stand_still(io, &node).await?;
        let (snapshots, table) = self.snapshot_table(io).await?;
        let snapshot = choice.find(&snapshots).ok_or_else(|| self.fail(Qcow2Error::NoSnapshot))?;
        let mut change = Change::of(self);
        change.lower = self.snapshot_l1(io, snapshot).await?;
        let bits = self.geometry.cluster_bits;
        let l1_len = u64::from(snapshot.l1_entries) * 8;
        change.retired = self.old_snapshot_table(table.len() as u64);
        change.retired.push(FreedRun {
            first: snapshot.l1_offset.0 >> bits.bits(),
            count: bits.count(l1_len),
            why: Freed::Other,
        });
        change.retired.retain(|run| run.count > 0);
        let mut kept = Vec::with_capacity(table.len());
        let mut at = 0;
        for other in &snapshots {
            let end = at + other.entry_len as usize;
            if !std::ptr::eq(other, snapshot) {
                kept.extend(&table[at..end]);
            }
            at = end;
        }
        change.snapshots = Some(SnapshotTable { kept, kept_count: snapshots.len() as u32 - 1, new: None });
        let old_table = self.refcounts.borrow().table.clone();
        self.switch(io, &still, change).await?;
        if self.discards.snapshot {
            self.punch_freed(io, &old_table, &still).await;
        }
        drop(still);
        self.start_giving_back(io).await;
        Ok(())
    }

    /// Has a commit begin to give back what was retired. What keeps it from that, the next flush meets again.
    async fn start_giving_back(&self, io: &Io) {
        let _ = self.commit(io).await;
    }

    fn check_snapshots_work(&self, io: &Io) -> Result<()> {
        if io.flags(io.node()).read_only {
            return Err(Box::new(Error::ReadOnly { node: self.name.clone() }));
        }
        match self.header.borrow().has(Incompatible::DATA_FILE) {
            true => Err(self.fail(Qcow2Error::SnapshotOfDataFile)),
            false => Ok(()),
        }
    }

    /// The snapshots, and the bytes of their table.
    pub(super) async fn snapshot_table(&self, io: &Io) -> Result<(Vec<Snapshot>, Vec<u8>)> {
        let file = io.child(Role::File);
        let snapshots = self.snapshots(io, file).await?;
        let len = snapshots.iter().map(|snapshot| snapshot.entry_len).sum::<u64>();
        if len == 0 {
            return Ok((snapshots, Vec::new()));
        }
        let at = self.header.borrow().snapshots_offset.0;
        let bytes = io.read_bytes("qcow2.snapshots/table", file, at, len as usize).await?;
        Ok((snapshots, bytes.to_vec()))
    }

    pub(super) fn old_snapshot_table(&self, len: u64) -> Vec<FreedRun> {
        let bits = self.geometry.cluster_bits;
        let first = self.header.borrow().snapshots_offset.0 >> bits.bits();
        let run = FreedRun { first, count: bits.count(len), why: Freed::Other };
        Some(run).filter(|run| run.count > 0).into_iter().collect()
    }

    /// The entries of a snapshot's L1 table.
    pub(super) async fn snapshot_l1(&self, io: &Io, snapshot: &Snapshot) -> Result<Vec<u64>> {
        let (table, at, bits) = ("Snapshot L1 table", snapshot.l1_offset, self.geometry.cluster_bits);
        let len = u64::from(snapshot.l1_entries) * 8;
        check_table(table, at, len, L1_LEN_MAX, bits).map_err(|fault| self.fail(fault))?;
        read_table(io, io.child(Role::File), table, at, len).await
    }

    /// Clears the flags of all L2 tables in memory, and returns the entries as they were: nothing that they lead to is
    /// written in place any more.
    fn share_all(&self) -> Result<Vec<u64>> {
        let mut l1 = self.l1.borrow_mut();
        let shared = l1.entries.iter().map(|raw| {
            let entry = L1Entry::parse(*raw, self.geometry.cluster_bits).map_err(|fault| self.fail(fault))?;
            Ok(match entry {
                L1Entry::Table { at, .. } => L1Entry::Table { at, copied: false }.encode(),
                L1Entry::Unallocated => 0,
            })
        });
        let shared = shared.collect::<Result<Vec<_>>>()?;
        Ok(std::mem::replace(&mut l1.entries, shared))
    }

    /// Gives up every reference of an L1 table that nothing points to any more, its L2 tables last.
    async fn free_all(&self, io: &Io, l1: &[u64]) -> Result<()> {
        let (file, bits) = (io.child(Role::File), self.geometry.cluster_bits);
        for raw in l1 {
            let entry = L1Entry::parse(*raw, bits).map_err(|fault| self.fail(fault))?;
            let L1Entry::Table { at, .. } = entry else { continue };
            let bytes = io.read_bytes("qcow2.snapshots/free", file, at.0, bits.size() as usize).await?;
            for (index, entry) in (0u64..).zip(bytes.chunks_exact(self.geometry.l2_entry_len)) {
                let parsed = L2Entry::parse(be_u64(entry, 0), &self.geometry.rules);
                let parsed = parsed
                    .map_err(|fault| self.fail(fault.in_l2_slice(at, GuestOffset(index << bits.bits()))))?;
                self.free_reference(parsed, Freed::Snapshot);
            }
            self.free_later(at, 1, Freed::Snapshot);
            if self.owes_a_commit() {
                self.commit(io).await?;
            }
        }
        Ok(())
    }
}

/// The number after the highest; an id that is no number counts as far as it begins with one.
fn next_id(snapshots: &[Snapshot]) -> String {
    let number = |snapshot: &Snapshot| {
        let digits = snapshot.id.trim_start().bytes().take_while(u8::is_ascii_digit);
        digits.fold(0u64, |number, digit| number.saturating_mul(10).saturating_add(u64::from(digit - b'0')))
    };
    let highest = snapshots.iter().map(number).max().unwrap_or(0);
    highest.wrapping_add(1).to_string()
}

/// As much of a name as an entry may have.
fn cut_name(name: &str) -> &str {
    let mut len = name.len().min(SNAPSHOT_NAME_LEN_MAX);
    while !name.is_char_boundary(len) {
        len -= 1;
    }
    &name[..len]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_go_on_after_the_highest() {
        let with = |ids: &[&str]| -> Vec<Snapshot> {
            let entry = |id: &&str| Snapshot {
                l1_offset: HostOffset(0),
                l1_entries: 0,
                id: (*id).into(),
                name: String::new(),
                seconds: 0,
                nanoseconds: 0,
                guest_nanoseconds: 0,
                vm_state_len: 0,
                disk_size: None,
                icount: None,
                unknown_extra: Vec::new(),
                entry_len: 0,
            };
            ids.iter().map(entry).collect()
        };
        for (ids, next) in [(&[][..], "1"), (&["1", "7", "3"], "8"), (&["x", "12abc"], "13"), (&["x"], "1")] {
            assert_eq!(next_id(&with(ids)), next, "{ids:?}");
        }
    }

    #[test]
    fn names_are_cut_between_letters() {
        assert_eq!(cut_name("short"), "short");
        assert_eq!(cut_name(&"ä".repeat(200)).len(), 254);
    }
}
