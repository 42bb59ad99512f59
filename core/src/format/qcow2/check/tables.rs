//! L1 and L2 tables: what their entries refer to, and what is wrong with them.

use super::overlap::{Named, disjoint};
use super::source::{Holes, Piece, READ_LEN, Source};
use super::spill::Flag;
use super::window::Counter;
use super::{Check, Repair, TOLD_MAX};
use crate::error::Result;
use crate::format::qcow2::Qcow2Error;
use crate::format::qcow2::layout::{EntryRules, HostOffset, L1_LEN_MAX};
use crate::format::qcow2::lookup::be_u64;
use crate::graph::driver::Role;

/// Bits 9 to 55 of an entry: a host offset.
pub(super) const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
/// Bits of an L1 entry that must be zero.
const L1_RESERVED: u64 = 0x7f00_0000_0000_01ff;
/// Bits of a standard L2 entry that must be zero.
const L2_RESERVED: u64 = 0x3f00_0000_0000_01fe;
pub(super) const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
pub(super) const ZERO: u64 = 1;

/// L2 tables that wait in memory to be followed: sorted and read when there are so many.
const TABLES_MAX: usize = 1 << 21;

/// Bytes of L2 tables from which on the holes of the file are asked for, rather than read.
const ASK_FOR_HOLES: u64 = 64 << 20;

/// L2 entries that one repair turns into zero clusters: 8 MiB of places. Another repair does the rest.
const ZEROED_MAX: usize = 1 << 20;

/// An L2 table that L1 entries name.
#[derive(Clone, Copy, Debug)]
pub(super) struct Table {
    at: u64,
    /// L1 entries that name it, of all snapshots.
    times: u64,
    /// Those of the active L1 table.
    active: u32,
    /// The first of those.
    l1_index: u32,
}

/// What an L2 entry is, as the check sees it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    Nothing,
    Compressed,
    Cluster,
}

impl<C: Counter> Check<'_, C> {
    pub(super) async fn count_active(&mut self) -> Result<()> {
        self.reference(self.plan.l1_at.0, self.plan.l1.len() as u64 * 8, 1);
        for index in 0..self.plan.l1.len() {
            let raw = self.plan.l1[index];
            self.l1_entry(raw, 1, Some(index as u32));
            self.follow_if_many().await?;
        }
        self.follow().await
    }

    /// The L1 tables of all snapshots. They may share bytes of the file, which are then read once.
    pub(super) async fn count_snapshots(&mut self) -> Result<()> {
        let (l1_tables, l1_clusters) = self.snapshot_l1_tables();
        let beyond_all = l1_clusters.iter().find(|table| table.end > i64::MAX as u64);
        if let Some(Named { start, .. }) = beyond_all {
            let (table, at, file_len) = ("L1 table of a snapshot", HostOffset(*start), self.plan.source.len);
            return Err(self.plan.source.fail(Qcow2Error::BeyondEnd { table, at, file_len }));
        }
        for Named { start, end, times } in l1_clusters {
            self.reference(start, end - start, times);
        }
        let mut holes = Holes::of(self.plan.source);
        for Named { start, end, times } in l1_tables {
            let mut at = start;
            while at < end {
                let after_hole = holes.end(at).await;
                if after_hole > at {
                    // An L1 entry is never cut: holes end at sectors.
                    at = after_hole;
                    continue;
                }
                let len = READ_LEN.min(end - at);
                let bytes = self.plan.source.read(at, len).await?;
                for entry in bytes.chunks_exact(8) {
                    self.l1_entry(be_u64(entry, 0), times, None);
                    self.follow_if_many().await?;
                }
                at += len;
            }
        }
        self.follow().await?;
        self.reference(self.plan.snapshots_at.0, self.plan.snapshots_len, 1);
        Ok(())
    }

    /// The bytes of the snapshots' L1 tables, and the clusters that they take.
    fn snapshot_l1_tables(&mut self) -> (Vec<Named>, Vec<Named>) {
        let count = self.plan.snapshots.len();
        if count > 0 && self.plan.geometry.data == Role::DataFile && self.first_pass {
            self.tell.corruption(1, || format!("ERROR {count} snapshots in image with data file"));
        }
        let bits = self.plan.bits;
        let (mut tables, mut clusters) = (Vec::new(), Vec::new());
        for snapshot in &self.plan.snapshots {
            let (at, entries) = (snapshot.l1_offset.0, snapshot.l1_entries);
            let place = match () {
                () if bits.offset_in(at) != 0 => {
                    Some(format!("l1_offset={at:#x}: L1 table is not cluster aligned"))
                }
                () if u64::from(entries) * 8 > L1_LEN_MAX => {
                    Some(format!("l1_size={entries:#x}: L1 table is too large"))
                }
                () => None,
            };
            if let Some(place) = place {
                if self.first_pass {
                    let (id, name) = (&snapshot.id, &snapshot.name);
                    self.tell.corruption(1, || {
                        format!("ERROR snapshot {id} ({name}) {place}; snapshot table entry corrupted")
                    });
                }
                continue;
            }
            let end = at.saturating_add(u64::from(entries) * 8);
            tables.push(Named { start: at, end, times: 1 });
            clusters.push(Named { start: at, end, times: 1 });
        }
        let file_len = self.plan.source.len;
        let within = |table: &Named| table.end <= file_len || table.end - file_len < bits.size();
        // What exceeds the file is told as a whole, and not counted at all.
        let (inside, outside): (Vec<_>, Vec<_>) = clusters.into_iter().partition(within);
        let whole = inside.into_iter().filter(|table| table.start < table.end).map(|table| Named {
            start: table.start,
            end: bits.start_of(table.end - 1) + bits.size(),
            times: 1,
        });
        let mut counted: Vec<Named> = disjoint(whole)
            .into_iter()
            .map(|table| Named { end: table.end.min(file_len.max(table.start + 1)), ..table })
            .collect();
        counted.extend(outside);
        let readable = tables.into_iter().map(|table| Named { end: table.end.min(file_len), ..table });
        (disjoint(readable), counted)
    }

    fn l1_entry(&mut self, raw: u64, times: u64, active: Option<u32>) {
        if raw == 0 {
            return;
        }
        if raw & L1_RESERVED != 0 && self.first_pass {
            self.tell.corruption(times, || format!("ERROR found L1 entry with reserved bits set: {raw:x}"));
        }
        let at = raw & OFFSET_MASK;
        self.reference(at, self.plan.bits.size(), times);
        if self.plan.bits.offset_in(at) != 0 && self.first_pass {
            self.tell.corruption(times, || {
                format!("ERROR l2_offset={at:x}: Table is not cluster aligned; L1 entry corrupted")
            });
        }
        if active.is_some() && at != 0 && self.what.is_none() {
            let cluster = at >> self.plan.bits.bits();
            self.check_copied(Flag { cluster, raw, times: 1, l1_index: active });
        }
        if at >= self.plan.source.len {
            return;
        }
        // An entry without an offset is followed, but its table is not one whose flags are looked at.
        let is_active = u32::from(active.is_some());
        let l1_index = active.unwrap_or(u32::MAX);
        match self.tables.last_mut() {
            Some(last) if last.at == at => {
                last.times += times;
                last.active += is_active;
            }
            _ => self.tables.push(Table { at, times, active: is_active, l1_index }),
        }
    }

    async fn follow_if_many(&mut self) -> Result<()> {
        if self.tables.len() >= TABLES_MAX { self.follow().await } else { Ok(()) }
    }

    /// Reads the L2 tables that wait, each once, in the order of the file.
    async fn follow(&mut self) -> Result<()> {
        let mut tables = std::mem::take(&mut self.tables);
        tables.sort_unstable_by_key(|table| (table.at, table.l1_index));
        tables.dedup_by(|next, first| {
            let same = next.at == first.at;
            if same {
                first.times += next.times;
                first.active += next.active;
            }
            same
        });
        self.limit_misaligned(&mut tables);
        let len = self.plan.bits.size();
        if tables.len() as u64 * len > ASK_FOR_HOLES {
            tables = self.without_holes(tables).await;
        }
        let mut rest = &tables[..];
        while !rest.is_empty() {
            let (reads, count) = Source::group(rest.iter().map(|table| table.at), len);
            let (now, later) = rest.split_at(count);
            rest = later;
            let mut now = now.iter().peekable();
            for piece in self.plan.source.read_all(&reads).await {
                let Piece { at, bytes } = piece?;
                let end = at + bytes.len() as u64;
                while let Some(table) = now.next_if(|table| table.at + len <= end) {
                    let start = (table.at - at) as usize;
                    self.l2_table(table, &bytes[start..start + len as usize]);
                }
            }
            self.advance(count as u64 * len);
        }
        Ok(())
    }

    /// Tables at odd places overlap each other. As many are followed as the file has clusters: no more bytes than it
    /// has.
    fn limit_misaligned(&mut self, tables: &mut Vec<Table>) {
        let bits = self.plan.bits;
        let (mut followed, max, mut dropped) = (self.misaligned_followed, self.plan.clusters, 0u64);
        tables.retain(|table| {
            let odd = bits.offset_in(table.at) != 0;
            followed += u64::from(odd);
            let keep = !odd || followed <= max;
            dropped += u64::from(!keep);
            keep
        });
        self.misaligned_followed = followed.min(max);
        if dropped > 0 && self.first_pass {
            self.tell.check_error(1, || {
                format!(
                    "ERROR: {dropped} L2 tables that are not cluster aligned overlap; they are not checked"
                )
            });
        }
    }

    /// Leaves out the tables that are holes of the file: all of their entries are zero.
    async fn without_holes(&self, tables: Vec<Table>) -> Vec<Table> {
        let mut holes = Holes::of(self.plan.source);
        let mut kept = Vec::new();
        for table in tables {
            if holes.end(table.at).await < table.at + self.plan.bits.size() {
                kept.push(table);
            }
        }
        kept
    }

    fn l2_table(&mut self, table: &Table, bytes: &[u8]) {
        let entry_len = self.plan.geometry.l2_entry_len;
        let mut next = None;
        for (index, entry) in bytes.chunks_exact(entry_len).enumerate() {
            let raw = be_u64(entry, 0);
            let bitmap = if entry_len == 16 { be_u64(entry, 8) } else { 0 };
            if raw | bitmap != 0 {
                self.l2_entry(table, index, raw, bitmap, &mut next);
            }
        }
    }

    pub(super) fn class(raw: u64, rules: &EntryRules) -> Class {
        let at = raw & OFFSET_MASK;
        if raw & COMPRESSED != 0 {
            Class::Compressed
        } else if at != 0 || rules.data_file && raw & COPIED != 0 && (rules.extended || raw & ZERO == 0) {
            // Offset 0 is a place like any other in a data file.
            Class::Cluster
        } else {
            Class::Nothing
        }
    }

    /// `next` is where the next cluster of the table would not be fragmented.
    fn l2_entry(&mut self, table: &Table, index: usize, raw: u64, bitmap: u64, next: &mut Option<u64>) {
        let (rules, first) = (self.plan.geometry.rules, self.first_pass);
        if raw & COMPRESSED == 0 && raw & L2_RESERVED != 0 && first {
            self.tell
                .corruption(table.times, || format!("ERROR found l2 entry with reserved bits set: {raw:x}"));
        }
        match Self::class(raw, &rules) {
            Class::Compressed => self.compressed(table, index, raw, bitmap),
            Class::Cluster => self.cluster(table, index, raw, bitmap, next),
            Class::Nothing => {
                if bitmap as u32 != 0 && first {
                    self.tell.corruption(table.times, || {
                        "ERROR: Unallocated cluster has non-zero subcluster allocation map".into()
                    });
                }
            }
        }
    }

    fn compressed(&mut self, table: &Table, index: usize, raw: u64, bitmap: u64) {
        let (rules, first, times) = (self.plan.geometry.rules, self.first_pass, table.times);
        if raw & COPIED != 0 && first {
            self.tell.corruption(times, || {
                let mask = (1 << (70 - rules.cluster_bits.bits())) - 1;
                let at = raw & mask;
                format!("ERROR: coffset={at:#x}: copied flag must never be set for compressed clusters")
            });
        }
        let entry = raw & !COPIED;
        let problem = match () {
            () if rules.data_file => "data file",
            () if bitmap != 0 => "non-zero subcluster allocation bitmap",
            () => "",
        };
        if !problem.is_empty() {
            if first {
                self.tell.corruption(times, || {
                    format!("ERROR compressed cluster {index} with {problem}, entry={entry:#x}")
                });
            }
            return;
        }
        // All bits of the offset count here, also those beyond 56 that no file reaches.
        let split = 70 - rules.cluster_bits.bits();
        let at = entry & ((1 << split) - 1);
        let sectors = ((entry & (COMPRESSED - 1)) >> split) + 1;
        self.reference(at, sectors * 512 - at % 512, times);
        if first {
            let active = u64::from(table.active);
            let report = &mut self.tell.report;
            report.allocated_clusters += active;
            report.compressed_clusters += active;
            report.fragmented_clusters += active;
        }
    }

    fn cluster(&mut self, table: &Table, index: usize, raw: u64, bitmap: u64, next: &mut Option<u64>) {
        let (at, size, first) = (raw & OFFSET_MASK, self.plan.bits.size(), self.first_pass);
        let rules = self.plan.geometry.rules;
        if table.active > 0 && table.at != 0 && self.what.is_none() {
            let flag =
                Flag { cluster: at >> self.plan.bits.bits(), raw, times: table.active, l1_index: None };
            match rules.data_file {
                // Nobody shares a cluster of a data file.
                true if raw & COPIED == 0 && first => self.wrong_copied(flag, 1),
                true => {}
                false => self.check_copied(flag),
            }
        }
        if (bitmap >> 32) & bitmap != 0 && first {
            self.tell.corruption(table.times, || {
                format!("ERROR offset={at:x}: Allocated cluster has corrupted subcluster allocation bitmap")
            });
        }
        if self.plan.bits.offset_in(at) != 0 {
            let has_data = if rules.extended { bitmap as u32 != 0 } else { raw & ZERO == 0 };
            if !has_data && self.makes_zero(table, index, at) {
                return;
            }
            let kind = if has_data { "Data" } else { "Preallocated" };
            if first {
                self.tell.corruption(table.times, || {
                    format!(
                        "ERROR offset={at:x}: {kind} cluster is not properly aligned; L2 entry corrupted."
                    )
                });
            }
        }
        if first {
            let active = u64::from(table.active);
            let fragmented = next.is_some_and(|next| next != at);
            *next = Some(at + size);
            self.tell.report.allocated_clusters += active;
            self.tell.report.fragmented_clusters += if fragmented { active } else { 0 };
        }
        if !rules.data_file {
            self.reference(at, size, table.times);
        } else if self.plan.raw_data_file && table.active > 0 && first {
            self.same_place_in_raw_file(table, index, at);
        }
    }

    /// Whether a repair turns an entry for nothing but zeros into one without a cluster.
    fn makes_zero(&mut self, table: &Table, index: usize, at: u64) -> bool {
        let geometry = &self.plan.geometry;
        let place = table.at + (index * geometry.l2_entry_len) as u64;
        let writable = self.what == Some(Repair::All) && geometry.version >= 3 && self.may_write(table.at);
        if !writable || self.zeroed.len() >= ZEROED_MAX {
            return false;
        }
        // Later passes come before the entry is written.
        if self.first_pass {
            self.zeroed.push(place);
            self.tell.report.corruptions_fixed += table.times;
            self.tell.line(|| {
                format!(
                    "Repairing offset={at:x}: Preallocated cluster is not properly aligned; L2 entry corrupted."
                )
            });
        }
        true
    }

    /// A raw data file holds each guest cluster at its own offset.
    fn same_place_in_raw_file(&mut self, table: &Table, index: usize, at: u64) {
        let geometry = &self.plan.geometry;
        let cluster = (u64::from(table.l1_index) << geometry.l2_bits) + index as u64;
        let guest = cluster << self.plan.bits.bits();
        if guest != at {
            self.tell.corruption(1, || {
                format!(
                    "ERROR offset={at:x}: raw data file must hold guest offset {guest:x} at that very place"
                )
            });
        }
    }

    /// Compares an entry's COPIED flag with the refcount on disk.
    #[inline]
    pub(super) fn check_copied(&mut self, flag: Flag) {
        match self.on_disk.try_get(flag.cluster) {
            Some(refcount) if (refcount == 1) == (flag.raw & COPIED != 0) => {}
            Some(refcount) => self.wrong_copied(flag, refcount),
            None => self.check_copied_elsewhere(flag),
        }
    }

    /// Outside the window, the refcount is zero where no block counts the cluster; else a later pass will tell.
    #[cold]
    fn check_copied_elsewhere(&mut self, flag: Flag) {
        if !self.first_pass {
            return;
        }
        if self.block_entry(flag.cluster) == 0 {
            if flag.raw & COPIED != 0 {
                self.wrong_copied(flag, 0);
            }
            return;
        }
        self.refers_to(flag.cluster / C::WINDOW);
        if let Some(spill) = &mut self.spill {
            spill.flag(flag);
        }
    }

    #[cold]
    fn wrong_copied(&mut self, flag: Flag, refcount: u64) {
        let counted = !self.plan.geometry.rules.data_file || flag.l1_index.is_some();
        // What no block counts was told in the first pass, whatever the window.
        let told = !self.first_pass && self.block_entry(flag.cluster) == 0;
        if counted && (told || self.block_is_unreadable(flag.cluster)) {
            return;
        }
        let report = &mut self.tell.report;
        report.corruptions = report.corruptions.saturating_add(u64::from(flag.times));
        if (self.copied_lines.len() as u64) < TOLD_MAX {
            let raw = flag.raw;
            self.copied_lines.push(match flag.l1_index {
                Some(index) => format!(
                    "ERROR OFLAG_COPIED L2 cluster: l1_index={index} l1_entry={raw:x} refcount={refcount}"
                ),
                None => format!("ERROR OFLAG_COPIED data cluster: l2_entry={raw:x} refcount={refcount}"),
            });
        }
    }
}
