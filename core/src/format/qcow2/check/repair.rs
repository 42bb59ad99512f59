//! Repair: what a check found is put right, in an order that a crash cannot break.
//!
//! | step | what is written                                   | a crash before the next step leaves                       |
//! |------|---------------------------------------------------|-----------------------------------------------------------|
//! | 1    | L2 entries that lose a cluster                    | clusters that are counted too often                       |
//! | 2    | refcounts, each to the number of references       | COPIED flags as wrong as they were                        |
//! | 3    | COPIED flags of the active tables                 | a sound image that is still marked as dirty or corrupt    |
//! | 4    | the header, without the dirty and corrupt bits    |                                                           |
//!
//! A barrier stands between two steps. No refcount falls below the number of references to its cluster: those are
//! counted before step 2, and only step 1 makes them fewer. Refcounts that are lost are rebuilt instead of step 2
//! (`rebuild`). The snapshot table, when it has to be written anew, comes after step 3.

use super::overlap::{Named, disjoint};
use super::source::{Piece, Source};
use super::tables::{COPIED, Class, OFFSET_MASK, ZERO};
use super::window::Counter;
use super::{Check, CheckReport, Repair};
use crate::buf::Buf;
use crate::error::Result;
use crate::format::qcow2::Qcow2Error;
use crate::format::qcow2::lookup::be_u64;

/// Bytes that are read and written around an entry of a table that changes.
const SLICE: u64 = 4096;

/// What comparing refcounts with references adds to a report.
#[derive(Clone, Copy, Default)]
pub(super) struct Differences {
    corruptions: u64,
    leaks: u64,
    check_errors: u64,
}

impl Differences {
    /// Adds what one window had.
    pub(super) fn add(&mut self, before: &CheckReport, after: &CheckReport) {
        self.corruptions += after.corruptions - before.corruptions;
        self.leaks += after.leaks - before.leaks;
        self.check_errors += after.check_errors - before.check_errors;
    }

    pub(super) fn any(&self) -> bool {
        self.corruptions + self.leaks > 0
    }

    /// The report without them: they are counted again as they are repaired.
    pub(super) fn taken_from(&self, report: &mut CheckReport) {
        report.corruptions -= self.corruptions;
        report.leaks -= self.leaks;
        report.check_errors -= self.check_errors;
    }
}

impl<C: Counter> Check<'_, C> {
    /// Repairs what was found.
    pub(super) async fn repair(mut self, what: Repair) -> Result<CheckReport> {
        self.write_zeroed().await?;
        if self.lost && what == Repair::Leaks {
            self.tell.line(|| "ERROR need to rebuild refcount structures".into());
            return Err(self.plan.source.fail(Qcow2Error::RefcountsLost));
        }
        if self.lost {
            return self.rebuild().await;
        }
        if self.differences.any() {
            self.differences.taken_from(&mut self.tell.report);
            self.repair_refcounts(what).await?;
        }
        self.repair_flags(what).await?;
        self.finish()
    }

    /// Whether the cluster at `at` holds nothing but an L2 table, as far as other metadata goes.
    pub(super) fn may_write(&mut self, at: u64) -> bool {
        let bits = self.plan.bits;
        if bits.offset_in(at) != 0 {
            return false;
        }
        let metadata = self.other_metadata.take().unwrap_or_else(|| self.metadata_ranges());
        let next = metadata.partition_point(|range| range.end <= at);
        let free = metadata.get(next).is_none_or(|range| range.start >= at + bits.size());
        self.other_metadata = Some(metadata);
        free
    }

    /// All metadata but L2 tables and the bitmaps themselves.
    fn metadata_ranges(&self) -> Vec<Named> {
        let (plan, size) = (&self.plan, self.plan.bits.size());
        let named = |start: u64, len: u64| Named { start, end: start.saturating_add(len), times: 1 };
        let mut all = vec![
            named(0, size),
            named(plan.l1_at.0, plan.l1.len() as u64 * 8),
            named(plan.refcount_table_at.0, plan.refcount_table.len() as u64 * 8),
            named(plan.snapshots_at.0, plan.snapshots_len),
        ];
        all.extend(
            plan.refcount_table
                .iter()
                .map(|entry| entry & !0x1ff)
                .filter(|at| *at != 0)
                .map(|at| named(at, size)),
        );
        let snapshots = plan.snapshots.iter();
        all.extend(snapshots.map(|snapshot| named(snapshot.l1_offset.0, u64::from(snapshot.l1_entries) * 8)));
        disjoint(all)
    }

    /// Step 1: entries without a cluster in the place of those that the count left out.
    async fn write_zeroed(&mut self) -> Result<()> {
        let mut places = std::mem::take(&mut self.zeroed);
        if places.is_empty() {
            return Ok(());
        }
        places.sort_unstable();
        places.dedup();
        let slice_len = SLICE.min(self.plan.bits.size());
        let extended = self.plan.geometry.rules.extended;
        for slice in places.chunk_by(|a, b| a / slice_len == b / slice_len) {
            let start = slice[0] - slice[0] % slice_len;
            let mut bytes = self.plan.source.read(start, slice_len).await?;
            for place in slice {
                let entry = &mut bytes[(place - start) as usize..];
                entry[..8].copy_from_slice(&if extended { 0 } else { ZERO }.to_be_bytes());
                if extended {
                    entry[8..16].copy_from_slice(&(u64::MAX << 32).to_be_bytes());
                }
            }
            self.plan.source.write_all("qcow2.repair/l2_entries", vec![(start, bytes)]).await?;
        }
        self.plan.source.barrier("qcow2.repair/after_l2_entries").await
    }

    /// Step 2: refcounts that differ from the number of references, window by window.
    async fn repair_refcounts(&mut self, what: Repair) -> Result<()> {
        let several = self.compared > C::WINDOW;
        let mut next = Some(0);
        while let Some(number) = next {
            if several {
                self.recount(number).await?;
                self.on_disk.move_to(number);
                self.load_refcounts().await;
            }
            let changed = self.compare(Some(what));
            self.write_refcount_blocks(&changed).await?;
            next = self.window_after(number);
        }
        self.plan.source.barrier("qcow2.repair/after_refcounts").await
    }

    /// Writes the blocks of some entries of the refcount table, as the window has them.
    async fn write_refcount_blocks(&self, indexes: &[u64]) -> Result<()> {
        let (width, per_block) = (self.refcount_width(), self.per_block());
        for some in indexes.chunks(64) {
            let blocks = some.iter().map(|index| {
                let mut block = Buf::zeroed(self.plan.bits.size() as usize);
                for nth in 0..per_block {
                    let count = self.on_disk.try_get(index * per_block + nth).unwrap_or(0);
                    width.set(&mut block, nth as usize, count);
                }
                (self.block_entry(index * per_block), block)
            });
            self.plan.source.write_all("qcow2.repair/refcount_blocks", blocks.collect()).await?;
        }
        Ok(())
    }

    /// Step 3: COPIED flags that do not agree with the refcounts.
    ///
    /// They agree with refcounts that are right; when leaks alone are repaired, and some are not, flags are only told.
    pub(super) async fn repair_flags(&mut self, what: Repair) -> Result<()> {
        let report = &self.tell.report;
        let sound = (report.corruptions, report.leaks, report.check_errors) == (0, 0, 0);
        let writes = what == Repair::All || sound;
        let several = self.compared > C::WINDOW;
        let mut next = Some(0);
        while let Some(number) = next {
            if several {
                self.on_disk.move_to(number);
                self.load_refcounts().await;
            }
            self.l1_flags(number == 0, writes).await?;
            self.l2_flags(number == 0, writes).await?;
            next = self.window_after(number);
        }
        if writes { self.plan.source.barrier("qcow2.repair/after_flags").await } else { Ok(()) }
    }

    /// The refcount of a cluster where an entry's flag differs from it; none also where another window tells.
    fn differing(&self, cluster: u64, raw: u64, first: bool) -> Option<u64> {
        let refcount = match self.on_disk.try_get(cluster) {
            _ if self.block_is_unreadable(cluster) => return None,
            Some(refcount) => refcount,
            // What no block counts is told once.
            None if first && self.block_entry(cluster) == 0 => 0,
            None => return None,
        };
        ((refcount == 1) != (raw & COPIED != 0)).then_some(refcount)
    }

    async fn l1_flags(&mut self, first: bool, writes: bool) -> Result<()> {
        let word = if writes { "Repairing" } else { "ERROR" };
        let mut changed = Vec::new();
        for index in 0..self.plan.l1.len() {
            let raw = self.plan.l1[index];
            let at = raw & OFFSET_MASK;
            let Some(refcount) = self.differing(at >> self.plan.bits.bits(), raw, first).filter(|_| at != 0)
            else {
                continue;
            };
            self.tell.line(|| {
                format!(
                    "{word} OFLAG_COPIED L2 cluster: l1_index={index} l1_entry={raw:x} refcount={refcount}"
                )
            });
            if writes {
                self.plan.l1[index] = raw ^ COPIED;
                self.tell.report.corruptions_fixed += 1;
                changed.push(index);
            } else {
                self.tell.report.corruptions += 1;
            }
        }
        const ENTRIES: usize = SLICE as usize / 8;
        for slice in changed.chunk_by(|a, b| a / ENTRIES == b / ENTRIES) {
            let start = slice[0] - slice[0] % ENTRIES;
            let end = (start + ENTRIES).min(self.plan.l1.len());
            let bytes: Vec<u8> =
                self.plan.l1[start..end].iter().flat_map(|entry| entry.to_be_bytes()).collect();
            let write = (self.plan.l1_at.0 + start as u64 * 8, Buf::from(bytes));
            self.plan.source.write_all("qcow2.repair/l1_table", vec![write]).await?;
        }
        Ok(())
    }

    async fn l2_flags(&mut self, first: bool, writes: bool) -> Result<()> {
        let (len, file_len) = (self.plan.bits.size(), self.plan.source.len);
        let mut tables: Vec<u64> = self.plan.l1.iter().map(|raw| raw & OFFSET_MASK).collect();
        tables.retain(|at| *at != 0 && *at < file_len);
        tables.sort_unstable();
        tables.dedup();
        self.limit_odd(&mut tables);
        let mut rest = &tables[..];
        while !rest.is_empty() {
            let (reads, count) = Source::group(rest.iter().copied(), len);
            let (now, later) = rest.split_at(count);
            rest = later;
            let mut now = now.iter().peekable();
            let mut changed = Vec::new();
            for piece in self.plan.source.read_all(&reads).await {
                let Piece { at, bytes } = piece?;
                while let Some(table) = now.next_if(|table| *table + len <= at + bytes.len() as u64) {
                    let start = (table - at) as usize;
                    let content = &bytes[start..start + len as usize];
                    changed.extend(self.table_flags(*table, content, (first, writes)));
                }
            }
            self.plan.source.write_all("qcow2.repair/l2_tables", changed).await?;
        }
        Ok(())
    }

    /// As the count does: tables at odd places, which overlap, no more than the file has clusters.
    fn limit_odd(&self, tables: &mut Vec<u64>) {
        let mut odd = 0;
        tables.retain(|at| {
            odd += u64::from(self.plan.bits.offset_in(*at) != 0);
            self.plan.bits.offset_in(*at) == 0 || odd <= self.plan.clusters
        });
    }

    /// Looks at the flags of one L2 table, and returns the table as it is to be written, if it is.
    fn table_flags(&mut self, at: u64, bytes: &[u8], (first, writes): (bool, bool)) -> Option<(u64, Buf)> {
        let rules = self.plan.geometry.rules;
        let bits = self.plan.bits.bits();
        let mut repaired: Option<Buf> = None;
        for (index, entry) in bytes.chunks_exact(self.plan.geometry.l2_entry_len).enumerate() {
            let raw = be_u64(entry, 0);
            if raw == 0 || Self::class(raw, &rules) != Class::Cluster {
                continue;
            }
            let refcount = match rules.data_file {
                true => (first && raw & COPIED == 0).then_some(1),
                false => self.differing((raw & OFFSET_MASK) >> bits, raw, first),
            };
            let Some(refcount) = refcount else { continue };
            let writes = writes && (repaired.is_some() || self.may_write(at));
            let word = if writes { "Repairing" } else { "ERROR" };
            self.tell
                .line(|| format!("{word} OFLAG_COPIED data cluster: l2_entry={raw:x} refcount={refcount}"));
            if !writes {
                self.tell.report.corruptions += 1;
                continue;
            }
            self.tell.report.corruptions_fixed += 1;
            let table = repaired.get_or_insert_with(|| Buf::from(bytes));
            table[index * self.plan.geometry.l2_entry_len] ^= 0x80;
        }
        repaired.map(|table| (at, table))
    }
}
