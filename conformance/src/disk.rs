//! A disk with a volatile cache.
//!
//! Owns what a disk shows and what of it would survive a crash. Refuses to know intents and time: that is
//! [`sim`](crate::sim). Start at [`Disk`].
//!
//! ```text
//!   begin(change) ──▶ log: [w1][w2][zero][w3]       what a crash may keep, sector by sector
//!                      │ applied to `view` at once   what reads see
//!   harden(..)   ──────┴─▶ `stable`                  what a crash always keeps
//! ```
//!
//! At a crash every sector (512 bytes, or 4096) of every change in the log survives or not on its own, as
//! [`Survival`] decides. Changes of length survive in the order in which they were made.

use std::ops::Range;

use drystone_core::intent::LeafKind;
use fastrand::Rng;

use crate::sparse::{PAGE, Sparse};

/// What a disk is like to those who open it.
#[derive(Clone, Debug)]
pub struct DiskConfig {
    /// What kind of thing it is.
    pub kind: LeafKind,
    /// What offsets and lengths of direct I/O must be multiples of.
    pub request_align: u32,
    /// What addresses of direct I/O must be multiples of.
    pub memory_align: u32,
    /// Bytes in one transfer at the most; 0 for no limit.
    pub transfer_max: u32,
    /// Bytes that a crash keeps or loses as one.
    pub sector: u64,
    /// Whether space added by growing reads as zeros. It reads as garbage otherwise.
    pub grows_as_zeroes: bool,
    /// What a discard does.
    pub discard: DiscardEffect,
    /// Whether ranges can be zeroed without writing, and at what alignment.
    pub zeroes_align: Option<u64>,
    /// Whether `CopyRange` works.
    pub copies: bool,
    /// Whether it refuses to be opened for writing.
    pub read_only: bool,
    /// Bytes that may be stored before the space runs out.
    pub capacity: u64,
}

impl Default for DiskConfig {
    /// A file on a file system that can do everything.
    fn default() -> Self {
        Self {
            kind: LeafKind::File,
            request_align: 512,
            memory_align: 512,
            transfer_max: 0,
            sector: 512,
            grows_as_zeroes: true,
            discard: DiscardEffect::Zeroes,
            zeroes_align: Some(1),
            copies: true,
            read_only: false,
            capacity: u64::MAX,
        }
    }
}

/// What the content of a discarded range is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiscardEffect {
    /// Zeros, always.
    Zeroes,
    /// Each sector as it was, zeros, or garbage.
    Anything,
    /// Discards are not supported.
    Unsupported,
}

/// Bytes that no test writes on purpose.
pub const GARBAGE: u8 = 0xa5;

/// A change that was made to a disk.
#[derive(Clone, Debug)]
pub enum Change {
    /// Bytes written at an offset.
    Write(u64, Vec<u8>),
    /// A range made zero; the flag says whether it becomes a hole.
    Zero(Range<u64>, bool),
    /// A new length.
    SetLen(u64),
}

impl Change {
    /// Number of parts that a crash decides about.
    pub fn sectors(&self, sector: u64) -> usize {
        sectors_of(self, sector).count()
    }
}

/// Names a change that is in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ChangeId(u64);

#[derive(Clone, Debug)]
struct Pending {
    id: ChangeId,
    change: Change,
    /// Bytes that it touches.
    range: Range<u64>,
    /// The length that it left the disk with, where it changed that.
    new_len: Option<u64>,
    /// When its completion was delivered.
    completed: Option<u64>,
}

/// A change that a crash may keep.
#[derive(Clone, Debug)]
pub struct Unflushed {
    /// The change.
    pub change: Change,
    /// The length that it left the disk with, where it changed that.
    pub new_len: Option<u64>,
}

/// Which of the changes that are not durable survive a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Survival {
    /// None.
    Nothing,
    /// All.
    Everything,
    /// A choice for every sector, drawn from a seed.
    Seed(u64),
    /// Bit n says whether the n-th sector of the log survives; see [`Disk::unflushed_sectors`].
    Mask(u64),
}

/// One simulated disk.
#[derive(Clone, Debug)]
pub struct Disk {
    /// What it is like.
    pub config: DiskConfig,
    view: Sparse,
    stable: Sparse,
    log: Vec<Pending>,
    next_id: u64,
}

impl Disk {
    /// Returns a disk with this durable content.
    pub fn new(config: DiskConfig, content: Sparse) -> Self {
        Self { config, stable: content.clone(), view: content, log: Vec::new(), next_id: 0 }
    }

    /// What reads see.
    pub fn view(&self) -> &Sparse {
        &self.view
    }

    /// What survives every crash.
    pub fn stable(&self) -> &Sparse {
        &self.stable
    }

    /// Whether storing this much more would exceed the capacity.
    pub fn is_full_after(&self, more: u64) -> bool {
        self.view.allocated().saturating_add(more) > self.config.capacity
    }

    /// Makes a change that reads see at once, and that a crash may lose.
    pub fn begin(&mut self, change: Change) -> ChangeId {
        let old_len = self.view.len();
        if !self.config.grows_as_zeroes {
            self.fill_growth(&change);
        }
        apply(&mut self.view, &change);
        let len = self.view.len();
        let range = match &change {
            Change::Write(offset, bytes) => *offset..offset + bytes.len() as u64,
            Change::Zero(range, _) => range.clone(),
            Change::SetLen(_) => old_len.min(len)..u64::MAX,
        };
        self.record(change, range, (len != old_len).then_some(len))
    }

    fn record(&mut self, change: Change, range: Range<u64>, new_len: Option<u64>) -> ChangeId {
        let id = ChangeId(self.next_id);
        self.next_id += 1;
        self.log.push(Pending { id, change, range, new_len, completed: None });
        id
    }

    /// On a disk whose new space is not zero: garbage between the old end and what is written.
    fn fill_growth(&mut self, change: &Change) {
        let end = match change {
            Change::Write(offset, _) => *offset,
            Change::Zero(range, _) => range.start,
            Change::SetLen(len) => *len,
        };
        let start = self.view.len();
        if end > start {
            let bytes = vec![GARBAGE; (end - start) as usize];
            self.view.write(start, &bytes);
            self.record(Change::Write(start, bytes), start..end, Some(end));
        }
    }

    /// Makes part of a change, any sectors of it, as a request that fails may.
    pub fn begin_torn(&mut self, offset: u64, bytes: &[u8], rng: &mut Rng) {
        for sector in sectors(offset..offset + bytes.len() as u64, self.config.sector) {
            if rng.bool() {
                let part = &bytes[(sector.start - offset) as usize..(sector.end - offset) as usize];
                self.begin(Change::Write(sector.start, part.to_vec()));
            }
        }
    }

    /// Takes note that a change completed.
    pub fn complete(&mut self, id: ChangeId, now: u64) {
        if let Some(pending) = self.log.iter_mut().find(|pending| pending.id == id) {
            pending.completed = Some(now);
        }
    }

    /// Makes durable what completed at `before` or earlier, as a flush does.
    pub fn flush(&mut self, before: u64) {
        self.harden(|pending| pending.completed.is_some_and(|at| at <= before));
    }

    /// Makes one change durable, as a FUA write does.
    pub fn harden_one(&mut self, id: ChangeId) {
        self.harden(|pending| pending.id == id);
    }

    /// Loses for good, or makes durable, what a flush that fails should have covered. Reads go on seeing all of it.
    pub fn fail_flush(&mut self, before: u64, rng: &mut Rng) {
        let covered = |pending: &Pending| pending.completed.is_some_and(|at| at <= before);
        let lost: Vec<ChangeId> = self
            .log
            .iter()
            .filter(|pending| covered(pending) && rng.bool())
            .map(|pending| pending.id)
            .collect();
        self.log.retain(|pending| !lost.contains(&pending.id));
        self.harden(covered);
    }

    /// Applies to the stable content what is chosen, and whatever lies under it.
    fn harden(&mut self, chosen: impl Fn(&Pending) -> bool) {
        // What a durable change overwrote must not come back over it, so it becomes durable along with it.
        let mut harden: Vec<bool> = self.log.iter().map(chosen).collect();
        for over in (0..self.log.len()).rev() {
            for under in 0..over {
                harden[under] |= harden[over] && overlap(&self.log[under].range, &self.log[over].range);
            }
        }
        let mut index = 0;
        let stable = &mut self.stable;
        self.log.retain(|pending| {
            let now = harden[index];
            index += 1;
            if now {
                apply(stable, &pending.change);
            }
            !now
        });
    }

    /// Number of sectors whose fate a crash decides.
    pub fn unflushed_sectors(&self) -> usize {
        self.log.iter().map(|pending| pending.change.sectors(self.config.sector)).sum()
    }

    /// What a crash decides about, with what is in flight besides the log.
    pub fn unflushed(&self, in_flight: Vec<Change>) -> Vec<Unflushed> {
        let mut disk = Self { log: self.log.clone(), ..Self::new(self.config.clone(), Sparse::default()) };
        disk.view = Sparse::new(self.view.len());
        disk.add_in_flight(in_flight);
        disk.log.into_iter().map(|Pending { change, new_len, .. }| Unflushed { change, new_len }).collect()
    }

    /// A number that differs whenever the log does.
    pub fn moment(&self) -> u64 {
        self.next_id.wrapping_mul(0x1_0001).wrapping_add(self.log.len() as u64)
    }

    fn add_in_flight(&mut self, in_flight: Vec<Change>) {
        for change in in_flight {
            let range = match &change {
                Change::Write(offset, bytes) => *offset..offset + bytes.len() as u64,
                Change::Zero(range, _) => range.clone(),
                Change::SetLen(len) => *len..u64::MAX,
            };
            let new_len = match &change {
                Change::SetLen(len) => Some(*len),
                _ => (range.end > self.view.len()).then_some(range.end),
            };
            self.record(change, range, new_len);
        }
    }

    /// Stops the power. What is in flight besides the log may reach the disk too.
    pub fn crash(&mut self, in_flight: Vec<Change>, fate: &mut Fate) {
        self.add_in_flight(in_flight);
        let log = std::mem::take(&mut self.log);
        let lengths: Vec<&Pending> = log.iter().filter(|pending| pending.new_len.is_some()).collect();
        let survive = fate.prefix(lengths.len());
        let mut end = self.stable.len();
        for pending in &lengths[..survive] {
            let len = pending.new_len.expect("just chosen");
            // A write grows the disk; one from before a durable longer write does not shrink it.
            end = if matches!(pending.change, Change::SetLen(_)) { len } else { end.max(len) };
        }
        // Sectors do not tear, not even where a length that is lost would cut one in two.
        let cut = (survive < lengths.len()).then_some(end);
        let mut seen = 0;
        for pending in &log {
            let resized = pending.new_len.is_some();
            seen += usize::from(resized);
            self.survive(&pending.change, resized && seen <= survive, cut, fate);
        }
        self.stable.set_len(end);
        self.view = self.stable.clone();
    }

    /// Stores what reads see.
    pub fn shut_down(&mut self) {
        self.log.clear();
        self.stable = self.view.clone();
    }

    /// Applies the sectors of one change that survive; lengths come later.
    fn survive(&mut self, change: &Change, length_survives: bool, cut: Option<u64>, fate: &mut Fate) {
        let whole = fate.next_change();
        let sector_len = self.config.sector;
        let is_cut = |part: &Range<u64>| {
            let sector = part.start / sector_len;
            cut.is_some_and(|cut| cut % sector_len != 0 && cut / sector_len == sector)
        };
        match change {
            Change::SetLen(len) if length_survives => {
                let end = self.stable.len().max(*len);
                self.stable.zero(*len, end, true);
            }
            Change::SetLen(_) => {}
            Change::Write(offset, bytes) => {
                for sector in sectors_of(change, self.config.sector) {
                    let part = (sector.start - offset) as usize..(sector.end - offset) as usize;
                    if fate.sector(whole) && !is_cut(&sector) {
                        self.stable.write(sector.start, &bytes[part]);
                    }
                }
            }
            Change::Zero(_, unmap) => {
                for sector in sectors_of(change, self.config.sector) {
                    if fate.sector(whole) {
                        self.stable.zero(sector.start, sector.end, *unmap);
                    }
                }
            }
        }
    }
}

fn apply(content: &mut Sparse, change: &Change) {
    match change {
        Change::Write(offset, bytes) => content.write(*offset, bytes),
        Change::Zero(range, unmap) => content.zero(range.start, range.end, *unmap),
        Change::SetLen(len) => content.set_len(*len),
    }
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

/// Cuts a range at multiples of `sector`.
fn sectors(range: Range<u64>, sector: u64) -> impl Iterator<Item = Range<u64>> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        let end = (at + sector - at % sector).min(range.end);
        (at < range.end).then(|| std::mem::replace(&mut at, end)..end)
    })
}

/// The parts of a change that a crash decides about one by one. A large range of zeros is cut more coarsely.
fn sectors_of(change: &Change, sector: u64) -> impl Iterator<Item = Range<u64>> {
    const ZERO_PARTS_MAX: u64 = 1024;
    match change {
        Change::Write(offset, bytes) => sectors(*offset..offset + bytes.len() as u64, sector),
        Change::Zero(range, _) => {
            let coarse = ((range.end - range.start) / ZERO_PARTS_MAX).next_multiple_of(PAGE);
            sectors(range.clone(), if coarse > PAGE { coarse } else { sector })
        }
        Change::SetLen(_) => sectors(0..0, sector),
    }
}

/// Decides what survives, one sector after the other, over all disks of a world.
#[derive(Debug)]
pub struct Fate {
    survival: Survival,
    rng: Rng,
    bit: u32,
}

/// What happens to a change as a whole.
#[derive(Clone, Copy)]
enum Whole {
    Kept,
    Lost,
    Torn,
}

impl Fate {
    /// Returns the decisions of a crash.
    pub fn new(survival: Survival) -> Self {
        let seed = match survival {
            Survival::Seed(seed) | Survival::Mask(seed) => seed,
            Survival::Nothing | Survival::Everything => 0,
        };
        Self { survival, rng: Rng::with_seed(seed), bit: 0 }
    }

    fn prefix(&mut self, lengths: usize) -> usize {
        match self.survival {
            Survival::Nothing => 0,
            Survival::Everything => lengths,
            Survival::Seed(_) | Survival::Mask(_) => self.rng.usize(..=lengths),
        }
    }

    fn next_change(&mut self) -> Whole {
        match self.survival {
            Survival::Nothing => Whole::Lost,
            Survival::Everything => Whole::Kept,
            Survival::Mask(_) => Whole::Torn,
            Survival::Seed(_) => match self.rng.u8(..4) {
                0 => Whole::Torn,
                1 => Whole::Kept,
                _ if self.rng.bool() => Whole::Kept,
                _ => Whole::Lost,
            },
        }
    }

    fn sector(&mut self, whole: Whole) -> bool {
        match (whole, self.survival) {
            (Whole::Kept, _) => true,
            (Whole::Lost, _) => false,
            (Whole::Torn, Survival::Mask(mask)) => {
                let bit = self.bit;
                self.bit += 1;
                mask.checked_shr(bit).unwrap_or(0) & 1 == 1
            }
            (Whole::Torn, _) => self.rng.bool(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk() -> Disk {
        Disk::new(DiskConfig::default(), Sparse::from_bytes(&[1; 2048]))
    }

    #[test]
    fn a_flush_keeps_what_completed_before_it() {
        let mut disk = disk();
        let first = disk.begin(Change::Write(0, vec![2; 512]));
        let second = disk.begin(Change::Write(512, vec![3; 512]));
        disk.begin(Change::Write(1024, vec![4; 512]));
        disk.complete(first, 1);
        disk.complete(second, 3);
        disk.flush(2);
        disk.crash(Vec::new(), &mut Fate::new(Survival::Nothing));
        assert_eq!(disk.view().bytes(0, 2048), [vec![2; 512], vec![1; 1536]].concat());
    }

    #[test]
    fn what_was_overwritten_never_comes_back_over_a_durable_write() {
        for seed in 0..20 {
            let mut disk = disk();
            disk.begin(Change::Write(0, vec![2; 1024]));
            let over = disk.begin(Change::Write(0, vec![3; 512]));
            disk.harden_one(over);
            disk.crash(Vec::new(), &mut Fate::new(Survival::Seed(seed)));
            assert_eq!(disk.view().bytes(0, 512), [3; 512]);
        }
    }

    #[test]
    fn every_subset_of_sectors_can_survive_and_no_sector_tears() {
        let mut outcomes = std::collections::BTreeSet::new();
        for mask in 0..16 {
            let mut disk = disk();
            disk.begin(Change::Write(256, vec![2; 1024]));
            disk.begin(Change::Zero(1536..2048, true));
            assert_eq!(disk.unflushed_sectors(), 4);
            disk.crash(Vec::new(), &mut Fate::new(Survival::Mask(mask)));
            outcomes.insert(disk.view().to_vec());
        }
        assert_eq!(outcomes.len(), 16);
        for outcome in outcomes {
            assert!(outcome.chunks(512).skip(1).take(1).all(|sector| sector.iter().all(|b| *b == sector[0])));
        }
    }

    #[test]
    fn lengths_survive_in_order_and_cut_what_lies_beyond() {
        let mut lengths = std::collections::BTreeSet::new();
        for seed in 0..200 {
            let mut disk = disk();
            disk.begin(Change::SetLen(512));
            disk.begin(Change::Write(4096, vec![7; 512]));
            disk.crash(Vec::new(), &mut Fate::new(Survival::Seed(seed)));
            lengths.insert(disk.view().len());
            let tail = disk.view().bytes(512, 1536);
            if disk.view().len() == 4608 {
                assert_eq!(tail, [0; 1536], "the truncation came first");
            }
        }
        assert_eq!(lengths.into_iter().collect::<Vec<_>>(), [512, 2048, 4608]);
    }

    #[test]
    fn a_failed_flush_loses_for_good_what_reads_still_see() {
        let mut lost = 0;
        for seed in 0..20 {
            let mut disk = disk();
            let id = disk.begin(Change::Write(0, vec![2; 512]));
            disk.complete(id, 1);
            disk.fail_flush(1, &mut Rng::with_seed(seed));
            disk.flush(2);
            assert_eq!(disk.view().bytes(0, 512), [2; 512]);
            disk.crash(Vec::new(), &mut Fate::new(Survival::Everything));
            lost += u32::from(disk.view().bytes(0, 512) == [1; 512]);
        }
        assert!((1..20).contains(&lost));
    }
}
