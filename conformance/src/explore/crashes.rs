//! What a crash may leave of one moment: every combination of what each sector may hold, or a sample of them.
//!
//! ```text
//!   stable content ─▶ sector 3: stable | first write | second write      one choice for each sector,
//!                     sector 9: stable | write                           and how many changes of length
//!                     length:   old | longer | longer still              survive, in their order
//! ```
//!
//! Choosing for sectors rather than for writes covers every subset and every order of the writes at once, without
//! trying the same outcome twice. Nothing is run again: a disk is the stable one with some pages replaced.

use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

use fastrand::Rng;

use crate::disk::{Change, Disk};
use crate::sparse::Sparse;
use crate::world::{Frozen, FrozenDisk, World};

/// Bytes of a sector at the least, in which the sums of all disks are made.
const SECTOR_MIN: u64 = 512;

/// Outcomes of one moment up to which all are tried: every subset of 12 sector writes.
const ALL_MAX: u64 = 1 << 12;

/// Writes to parts of one sector of which every subset and order is tried; of more, the oldest are taken to survive.
const PARTS_MAX: usize = 5;

/// All that a crash may leave of one moment.
pub struct Crashes {
    disks: Vec<Vec<Layout>>,
    /// Bytes that a crash keeps or loses as one, by disk.
    sectors: Vec<u64>,
    paths: Vec<String>,
    templates: Vec<Disk>,
    /// Without disks.
    world: World,
}

/// A disk of which so many changes of length have survived.
#[derive(Clone)]
struct Layout {
    base: Sparse,
    base_sum: u64,
    end: u64,
    /// Bytes of a sector.
    sector: u64,
    /// Whether every change of length has survived.
    longest: bool,
    slots: Rc<Vec<Slot>>,
}

/// A sector that was written since the last flush.
struct Slot {
    sector: u64,
    /// Changes that touch it, in order; all of a change survives, or none, or some sectors.
    changes: Vec<usize>,
    /// What it may hold; first, what is stable.
    options: Vec<(Vec<u8>, u64)>,
    /// Which option each subset of the changes leaves, in their order.
    by_subset: Vec<u16>,
}

/// What one change writes to one sector.
struct Part {
    change: usize,
    /// Bytes of the sector.
    part: Range<usize>,
    /// Zeros, without any.
    bytes: Option<Vec<u8>>,
}

/// One outcome: for each disk a layout, and what each of its slots holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    choice: Vec<(usize, Vec<u16>)>,
    /// The same for the same bytes on all disks.
    pub sum: u64,
}

impl Crashes {
    /// Returns the outcomes of a crash at this moment.
    pub fn new(frozen: &Frozen) -> Self {
        Self {
            disks: frozen.disks.iter().map(layouts).collect(),
            sectors: frozen.disks.iter().map(|disk| disk.config.sector).collect(),
            paths: frozen.disks.iter().map(|disk| disk.path.clone()).collect(),
            templates: frozen
                .disks
                .iter()
                .map(|disk| Disk::new(disk.config.clone(), Sparse::default()))
                .collect(),
            world: World::after(frozen),
        }
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        let of_disk =
            |layouts: &Vec<Layout>| layouts.iter().fold(0, |sum: u64, one| sum.saturating_add(one.count()));
        self.disks.iter().map(of_disk).fold(1, u64::saturating_mul)
    }

    /// Visits all of them where they are few, and else so many that are drawn; stops at the first failure.
    ///
    /// # Errors
    /// What `visit` says.
    pub fn each<E>(
        &self,
        samples: u64,
        rng: &mut Rng,
        mut visit: impl FnMut(&Outcome) -> Result<(), E>,
    ) -> Result<u64, E> {
        let count = self.count();
        if count <= ALL_MAX.min(samples.saturating_mul(2).max(1)) {
            for number in 0..count {
                visit(&self.numbered(number))?;
            }
            return Ok(count);
        }
        for sample in 0..samples {
            let outcome = match sample {
                0 => self.numbered(0),
                1 => self.drawn(rng, |_| 1, true),
                _ => self.drawn(rng, |rng| rng.u8(..4), false),
            };
            visit(&outcome)?;
        }
        Ok(samples)
    }

    /// The outcome of a number below [`count`](Self::count); number 0 loses everything.
    fn numbered(&self, mut number: u64) -> Outcome {
        let mut choice = Vec::with_capacity(self.disks.len());
        for layouts in &self.disks {
            let all = layouts.iter().fold(0, |sum: u64, one| sum.saturating_add(one.count()));
            let mut rest = number % all;
            number /= all;
            let mut which = 0;
            while rest >= layouts[which].count() {
                rest -= layouts[which].count();
                which += 1;
            }
            let slots = layouts[which].slots.iter().map(|slot| {
                let options = slot.options.len() as u64;
                let option = rest % options;
                rest /= options;
                option as u16
            });
            choice.push((which, slots.collect()));
        }
        self.outcome(choice)
    }

    /// An outcome in which each change survives whole, not at all, or in some sectors.
    fn drawn(&self, rng: &mut Rng, fate: impl Fn(&mut Rng) -> u8, longest: bool) -> Outcome {
        let mut choice = Vec::with_capacity(self.disks.len());
        for layouts in &self.disks {
            let last = layouts.len() - 1;
            let which = if longest || rng.bool() { last } else { rng.usize(..=last) };
            let mut fates: BTreeMap<usize, u8> = BTreeMap::new();
            let slots = layouts[which].slots.iter().map(|slot| {
                let mut subset = 0;
                for (bit, change) in slot.changes.iter().enumerate() {
                    let survives = match *fates.entry(*change).or_insert_with(|| fate(rng)) {
                        0 => false,
                        1 => true,
                        _ => rng.bool(),
                    };
                    subset |= usize::from(survives) << bit;
                }
                slot.by_subset[subset]
            });
            choice.push((which, slots.collect()));
        }
        self.outcome(choice)
    }

    fn outcome(&self, choice: Vec<(usize, Vec<u16>)>) -> Outcome {
        let mut sum = 0_u64;
        for (disk, (which, slots)) in choice.iter().enumerate() {
            let layout = &self.disks[disk][*which];
            let mut here = layout.base_sum.wrapping_add(mix(layout.end));
            for (slot, option) in layout.slots.iter().zip(slots) {
                if layout.keeps(slot) {
                    let (old, new) = (slot.options[0].1, slot.options[usize::from(*option)].1);
                    here = here.wrapping_sub(old).wrapping_add(new);
                }
            }
            sum = mix(sum.wrapping_add(here));
        }
        Outcome { choice, sum }
    }

    /// Puts an outcome on disks.
    pub fn world(&self, outcome: &Outcome) -> World {
        let mut world = self.world.clone();
        for (disk, (which, slots)) in outcome.choice.iter().enumerate() {
            let layout = &self.disks[disk][*which];
            let mut content = layout.base.clone();
            for (slot, option) in layout.slots.iter().zip(slots) {
                if *option > 0 && layout.keeps(slot) {
                    content.write(slot.sector * self.sectors[disk], &slot.options[usize::from(*option)].0);
                }
            }
            content.set_len(layout.end);
            world.add_disk(&self.paths[disk], self.templates[disk].config.clone(), content);
        }
        world
    }

    /// Says in words which sectors survive.
    pub fn describe(&self, outcome: &Outcome) -> String {
        let mut words = Vec::new();
        for (disk, (which, slots)) in outcome.choice.iter().enumerate() {
            let layout = &self.disks[disk][*which];
            words.push(format!("{} of {} bytes", self.paths[disk], layout.end));
            for (slot, option) in layout.slots.iter().zip(slots) {
                if layout.keeps(slot) {
                    let what = if *option == 0 { "old".into() } else { format!("new {option}") };
                    words.push(format!("  sector at {:#x}: {what}", slot.sector * self.sectors[disk]));
                }
            }
        }
        words.join("\n")
    }
}

impl Layout {
    /// Whether what was written to a sector can be there: not beyond the end, and not where a length that is lost would
    /// cut it in two, because sectors do not tear.
    fn keeps(&self, slot: &Slot) -> bool {
        let start = slot.sector * self.sector;
        let end = if self.longest { start + 1 } else { start + self.sector };
        end <= self.end
    }

    fn count(&self) -> u64 {
        self.slots.iter().fold(1, |product: u64, slot| product.saturating_mul(slot.options.len() as u64))
    }
}

/// The disk with 0, 1, … of its changes of length.
fn layouts(disk: &FrozenDisk) -> Vec<Layout> {
    let lengths: Vec<u64> = disk.unflushed.iter().filter_map(|pending| pending.new_len).collect();
    let is_cut = |change: &Change| matches!(change, Change::SetLen(_));
    let cuts = disk.unflushed.iter().any(|pending| is_cut(&pending.change));
    let mut layouts: Vec<Layout> = Vec::with_capacity(lengths.len() + 1);
    let mut end = disk.stable.len();
    for survive in 0..=lengths.len() {
        if survive > 0 {
            let pending = disk.unflushed.iter().filter(|pending| pending.new_len.is_some()).nth(survive - 1);
            let set = pending.is_some_and(|pending| is_cut(&pending.change));
            let len = lengths[survive - 1];
            // A write grows the disk; one from before a longer write that survives does not shrink it.
            end = if set { len } else { end.max(len) };
        }
        let longest = survive == lengths.len();
        let layout = match layouts.last() {
            Some(last) if !cuts => Layout { end, longest, ..last.clone() },
            _ => layout(disk, survive, end, longest),
        };
        layouts.push(layout);
    }
    layouts
}

fn layout(disk: &FrozenDisk, survive: usize, end: u64, longest: bool) -> Layout {
    let sector_len = disk.config.sector;
    let mut base = disk.stable.clone();
    let mut touched: BTreeMap<u64, Vec<Part>> = BTreeMap::new();
    let mut seen = 0;
    for (number, pending) in disk.unflushed.iter().enumerate() {
        seen += usize::from(pending.new_len.is_some());
        match &pending.change {
            Change::SetLen(len) => {
                if pending.new_len.is_some() && seen <= survive && *len < base.len() {
                    base.set_len(*len);
                }
                if pending.new_len.is_some() && seen <= survive {
                    touched.retain(|sector, _| sector * sector_len < *len);
                }
            }
            Change::Write(at, bytes) => {
                for (sector, part, from) in sectors(*at..at + bytes.len() as u64, sector_len) {
                    let bytes = bytes[from..from + part.len()].to_vec();
                    touched.entry(sector).or_default().push(Part {
                        change: number,
                        part,
                        bytes: Some(bytes),
                    });
                }
            }
            Change::Zero(range, _) => {
                for (sector, part, _) in sectors(range.clone(), sector_len) {
                    touched.entry(sector).or_default().push(Part { change: number, part, bytes: None });
                }
            }
        }
    }
    let slot = |(sector, parts)| slot(&base, sector, sector_len, parts);
    let slots: Vec<Slot> = touched.into_iter().map(slot).collect();
    Layout { base_sum: sum_of(&base), base, end, sector: sector_len, longest, slots: Rc::new(slots) }
}

/// What a sector may hold, after any of the changes in any order.
fn slot(base: &Sparse, sector: u64, sector_len: u64, mut parts: Vec<Part>) -> Slot {
    let start = sector * sector_len;
    let mut stable = base.bytes(start, sector_len as usize);
    while parts.len() > PARTS_MAX {
        parts.remove(0).lay(&mut stable);
    }
    let mut options = vec![(stable.clone(), sum_of_bytes(start, &stable))];
    let mut option = |content: Vec<u8>| {
        let known = options.iter().position(|(bytes, _)| *bytes == content);
        let index = known.unwrap_or_else(|| {
            let sum = sum_of_bytes(start, &content);
            options.push((content, sum));
            options.len() - 1
        });
        index as u16
    };
    let compose = |order: &[usize]| {
        let mut content = stable.clone();
        order.iter().for_each(|part| parts[*part].lay(&mut content));
        content
    };
    let chosen = |subset: usize| (0..parts.len()).filter(move |part| subset >> part & 1 == 1);
    let by_subset: Vec<u16> =
        (0..1 << parts.len()).map(|subset| option(compose(&chosen(subset).collect::<Vec<_>>()))).collect();
    // The other orders. Of parts of the same bytes the last one wins, so that it is enough to let each be last; where they
    // overlap in part, every order counts.
    let alike = parts.iter().all(|part| part.part == parts[0].part);
    for subset in 0..1_usize << parts.len() {
        if alike || subset.count_ones() < 3 {
            for last in chosen(subset) {
                let order: Vec<usize> = chosen(subset).filter(|part| *part != last).chain([last]).collect();
                option(compose(&order));
            }
        } else {
            let mut order: Vec<usize> = chosen(subset).collect();
            permuted(&mut order, 0, &mut |order| {
                option(compose(order));
            });
        }
    }
    let changes = parts.iter().map(|part| part.change).collect();
    Slot { sector, changes, options, by_subset }
}

/// Visits every order of what comes from `first` on.
fn permuted(order: &mut [usize], first: usize, visit: &mut dyn FnMut(&[usize])) {
    if first == order.len() {
        return visit(order);
    }
    for next in first..order.len() {
        order.swap(first, next);
        permuted(order, first + 1, visit);
        order.swap(first, next);
    }
}

impl Part {
    fn lay(&self, content: &mut [u8]) {
        match &self.bytes {
            Some(bytes) => content[self.part.clone()].copy_from_slice(bytes),
            None => content[self.part.clone()].fill(0),
        }
    }
}

/// The sectors of a range, of `len` bytes each: number, bytes within the sector, and where those begin in the range.
fn sectors(range: Range<u64>, len: u64) -> impl Iterator<Item = (u64, Range<usize>, usize)> {
    let first = range.start / len;
    (first..range.end.div_ceil(len)).map(move |sector| {
        let (start, end) = (range.start.max(sector * len), range.end.min((sector + 1) * len));
        let within = (start - sector * len) as usize..(end - sector * len) as usize;
        (sector, within, (start - range.start) as usize)
    })
}

/// A number for all bytes of a disk: the sum over its sectors, so that replacing one is a subtraction and an addition.
fn sum_of(content: &Sparse) -> u64 {
    content.pages().fold(0, |sum: u64, (at, page)| sum.wrapping_add(sum_of_bytes(at, page)))
}

/// What some sectors count for. One of zeros counts for nothing, whether it is a hole or not.
fn sum_of_bytes(at: u64, bytes: &[u8]) -> u64 {
    let sectors = bytes.chunks(SECTOR_MIN as usize).zip(at / SECTOR_MIN..);
    sectors.filter(|(bytes, _)| !drystone_core::buf::is_zero(bytes)).fold(0, |sum: u64, (bytes, sector)| {
        sum.wrapping_add(mix(fingerprint(bytes) ^ sector.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
    })
}

/// A number for some bytes, the same on every machine.
pub fn fingerprint(bytes: &[u8]) -> u64 {
    let mut sum = bytes.len() as u64 ^ 0x51_7c_c1_b7_27_22_0a_95;
    let (words, rest) = bytes.as_chunks::<8>();
    for word in words {
        sum = (sum.rotate_left(29) ^ u64::from_le_bytes(*word)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    }
    for byte in rest {
        sum = (sum.rotate_left(29) ^ u64::from(*byte)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    }
    mix(sum)
}

fn mix(mut number: u64) -> u64 {
    number = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    number = (number ^ number >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ number >> 31
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{DiskConfig, Unflushed};
    use std::collections::BTreeSet;

    fn frozen(stable: &[u8], changes: Vec<(Change, Option<u64>)>) -> Frozen {
        let unflushed = changes.into_iter().map(|(change, new_len)| Unflushed { change, new_len }).collect();
        let stable = Sparse::from_bytes(stable);
        let config = DiskConfig::default();
        Frozen { crashes: 0, disks: vec![FrozenDisk { path: "disk".into(), config, stable, unflushed }] }
    }

    fn outcomes(frozen: &Frozen, samples: u64) -> BTreeSet<Vec<u8>> {
        let crashes = Crashes::new(frozen);
        let (mut found, mut sums) = (BTreeSet::new(), BTreeSet::new());
        let visited = crashes.each(samples, &mut Rng::with_seed(1), |outcome| {
            let bytes = crashes.world(outcome).export("disk");
            assert_eq!(found.insert(bytes), sums.insert(outcome.sum), "a sum is one content's");
            Ok::<(), ()>(())
        });
        visited.expect("nothing fails");
        found
    }

    #[test]
    fn every_sector_survives_or_not() {
        let change = Change::Write(512, vec![2; 1024]);
        let found =
            outcomes(&frozen(&[1; 2048], vec![(change, None), (Change::Zero(0..512, true), None)]), 100);
        assert_eq!(found.len(), 8);
    }

    #[test]
    fn writes_to_one_sector_survive_in_any_order() {
        let changes = vec![(Change::Write(0, vec![2; 300]), None), (Change::Write(200, vec![3; 312]), None)];
        let found = outcomes(&frozen(&[1; 512], changes), 100);
        let both_ways = [[vec![2; 200], vec![3; 312]].concat(), [vec![2; 300], vec![3; 212]].concat()];
        assert_eq!(found.len(), 5, "neither, either, both in two orders");
        assert!(both_ways.iter().all(|content| found.contains(content)));
    }

    #[test]
    fn each_of_three_may_lie_over_the_next() {
        let write = |at: u64, end: u64, byte| (Change::Write(at, vec![byte; (end - at) as usize]), None);
        let changes = vec![write(0, 300, 2), write(200, 400, 3), write(350, 512, 4)];
        let found = outcomes(&frozen(&[1; 512], changes), 100);
        let first_over_second_over_third = [vec![2; 300], vec![3; 100], vec![4; 112]].concat();
        let second_over_both = [vec![2; 200], vec![3; 200], vec![4; 112]].concat();
        assert!(found.contains(&first_over_second_over_third) && found.contains(&second_over_both));
    }

    #[test]
    fn lengths_survive_in_order_and_a_cut_takes_what_is_beyond() {
        let changes = vec![(Change::SetLen(512), Some(512)), (Change::Write(1024, vec![7; 512]), Some(1536))];
        let found = outcomes(&frozen(&[1; 1024], changes), 100);
        let lengths: Vec<usize> = found.iter().map(Vec::len).collect();
        assert_eq!(lengths.iter().collect::<BTreeSet<_>>().len(), 3, "{lengths:?}");
        let grown = found.iter().filter(|content| content.len() == 1536);
        assert!(
            grown.clone().count() == 2 && grown.into_iter().all(|content| content[512..1024] == [0; 512])
        );
    }

    #[test]
    fn a_larger_sector_survives_as_one() {
        let mut frozen = frozen(
            &[1; 8192],
            vec![(Change::Write(512, vec![2; 1024]), None), (Change::Write(4096, vec![3; 512]), None)],
        );
        frozen.disks[0].config.sector = 4096;
        let found = outcomes(&frozen, 100);
        assert_eq!(found.len(), 4, "each of two sectors is old or new");
        assert!(found.iter().all(|content| content[512] == content[1535]));
    }

    #[test]
    fn every_subset_of_twelve_sectors_is_tried() {
        let twelve = frozen(&[1; 12 * 512], vec![(Change::Write(0, vec![2; 12 * 512]), None)]);
        let thorough = super::super::Thoroughness::full().samples;
        assert_eq!(outcomes(&twelve, thorough).len(), 1 << 12);
    }

    #[test]
    fn many_sectors_are_sampled() {
        let crashes = frozen(&[1; 64 * 512], vec![(Change::Write(0, vec![2; 64 * 512]), None)]);
        let found = outcomes(&crashes, 200);
        assert!((50..=200).contains(&found.len()), "{}", found.len());
        assert!(found.contains(&vec![1; 64 * 512]) && found.contains(&vec![2; 64 * 512]));
    }
}
