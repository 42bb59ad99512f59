//! Slices of a format's tables in memory, bounded.
//!
//! A slice is a part of a table that is read and written at once. A dirty slice waits for the next commit
//! (`flush`); one that is being written stays in memory until the write has landed, because until then the file
//! still holds what was there before.

use std::cell::Cell;

use rustc_hash::FxHashMap;

use super::HostOffset;
use crate::buf::Buf;

/// Slices of one kind of table.
pub(in crate::format) struct SliceCache {
    slice_len: usize,
    /// The slice length's, or that of the largest power of two in it.
    slice_bits: u32,
    slots_max: usize,
    slots: Vec<Slot>,
    index: FxHashMap<u64, u32>,
    /// Where slices were found last, by where they start in the file. A slot says itself whether it is the right one.
    hints: [Cell<u32>; HINTS],
    /// Where the search for a victim goes on.
    hand: usize,
    dirty: usize,
}

/// As many slices as it costs little to keep hints of.
const HINTS: usize = 64;

struct Slot {
    at: HostOffset,
    bytes: Buf,
    dirty: bool,
    writing: bool,
    /// Used since the hand came by.
    used: Cell<bool>,
}

/// Place of a slice in the cache, good until the next await.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::format) struct SlotIndex(u32);

/// No slice can be dropped: all hold changes that are not written yet.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::format) struct AllDirty;

impl SliceCache {
    /// Holds at most `bytes_max` bytes, and never fewer than a few slices.
    pub(in crate::format) fn new(slice_len: usize, bytes_max: usize) -> Self {
        /// A commit writes while others look up; with fewer than this they would wait for each other.
        const SLOTS_MIN: usize = 16;
        let slots_max = (bytes_max / slice_len).max(SLOTS_MIN);
        let (slots, index) = (Vec::new(), FxHashMap::default());
        let slice_bits = slice_len.trailing_zeros() % usize::BITS;
        Self {
            slice_len,
            slice_bits,
            slots_max,
            slots,
            index,
            hints: [const { Cell::new(0) }; HINTS],
            hand: 0,
            dirty: 0,
        }
    }

    /// Bytes of a slice.
    pub(in crate::format) fn slice_len(&self) -> usize {
        self.slice_len
    }

    /// Number of dirty slices.
    pub(in crate::format) fn dirty(&self) -> usize {
        self.dirty
    }

    /// Finds the slice that starts at `at`.
    #[inline]
    pub(in crate::format) fn find(&self, at: HostOffset) -> Option<SlotIndex> {
        if self.hinted(at).is_some() {
            return Some(SlotIndex(self.hint(at).get()));
        }
        let index = *self.index.get(&at.0)?;
        self.slots[index as usize].used.set(true);
        self.hint(at).set(index);
        Some(SlotIndex(index))
    }

    /// The bytes of the slice that starts at `at`, where it was [found](Self::find) not long ago.
    #[inline(always)]
    pub(in crate::format) fn hinted(&self, at: HostOffset) -> Option<&[u8]> {
        let slot = self.slots.get(self.hint(at).get() as usize).filter(|slot| slot.at == at)?;
        slot.used.set(true);
        Some(&slot.bytes)
    }

    #[inline(always)]
    fn hint(&self, at: HostOffset) -> &Cell<u32> {
        &self.hints[at.0.wrapping_shr(self.slice_bits) as usize % HINTS]
    }

    #[inline]
    pub(in crate::format) fn bytes(&self, slot: SlotIndex) -> &[u8] {
        &self.slots[slot.0 as usize].bytes
    }

    /// The bytes of a slice, which is dirty from here on.
    pub(in crate::format) fn bytes_mut(&mut self, slot: SlotIndex) -> &mut [u8] {
        let slot = &mut self.slots[slot.0 as usize];
        if !slot.dirty {
            slot.dirty = true;
            self.dirty += 1;
        }
        &mut slot.bytes
    }

    /// Whether another slice can be put in.
    pub(in crate::format) fn has_room(&self) -> bool {
        self.slots.len() < self.slots_max || self.slots.iter().any(|slot| !slot.dirty && !slot.writing)
    }

    /// Puts a slice in, in the place of one that was not used lately. One that is there already stays.
    pub(in crate::format) fn insert(&mut self, at: HostOffset, bytes: Buf) -> Result<SlotIndex, AllDirty> {
        if let Some(slot) = self.find(at) {
            return Ok(slot);
        }
        let slot = Slot { at, bytes, dirty: false, writing: false, used: Cell::new(true) };
        let place = if self.slots.len() < self.slots_max {
            self.slots.push(slot);
            self.slots.len() - 1
        } else {
            let victim = self.victim()?;
            self.index.remove(&self.slots[victim].at.0);
            self.slots[victim] = slot;
            victim
        };
        let place = u32::try_from(place).expect("a cache holds fewer than 2^32 slices");
        self.index.insert(at.0, place);
        Ok(SlotIndex(place))
    }

    /// The next clean slot that was not used since the hand last came by.
    fn victim(&mut self) -> Result<usize, AllDirty> {
        for _ in 0..2 * self.slots.len() {
            let place = self.hand;
            self.hand = (self.hand + 1) % self.slots.len();
            let slot = &self.slots[place];
            if !slot.dirty && !slot.writing && !slot.used.replace(false) {
                return Ok(place);
            }
        }
        Err(AllDirty)
    }

    /// Forgets the slices of a table that is no longer in use.
    pub(in crate::format) fn forget(&mut self, start: HostOffset, len: u64) {
        for slot in 0..self.slots.len() {
            let at = self.slots[slot].at.0;
            if (start.0..start.0 + len).contains(&at) && self.index.remove(&at).is_some() {
                let slot = &mut self.slots[slot];
                self.dirty -= usize::from(slot.dirty);
                // A write that is under way and fails must not bring the slice back to life.
                (slot.dirty, slot.writing, slot.at) = (false, false, HostOffset(u64::MAX));
                slot.used.set(false);
            }
        }
    }

    /// Drops the slices that hold no changes and were not used since the last time, with their memory.
    pub(super) fn clean(&mut self) {
        self.slots.retain(|slot| slot.dirty || slot.writing || slot.used.replace(false));
        self.index.clear();
        for (place, slot) in (0..).zip(&self.slots) {
            // One that was forgotten, and used when it was, is nowhere.
            if slot.at.0 != u64::MAX {
                self.index.insert(slot.at.0, place);
            }
        }
        self.slots.shrink_to_fit();
        self.hand = 0;
    }

    /// Forgets everything, changes too: no slice is one of the image's any more, and none is being written.
    pub(in crate::format) fn clear(&mut self) {
        assert!(
            self.slots.iter().all(|slot| !slot.writing),
            "what is being written stays until it has landed"
        );
        self.slots.clear();
        self.index.clear();
        (self.hand, self.dirty) = (0, 0);
    }

    /// Copies of all dirty slices in the order of the file; they count as being written until
    /// [`written`](Self::written) or [`failed`](Self::failed).
    pub(in crate::format) fn take_dirty(&mut self) -> Vec<(HostOffset, Buf)> {
        let mut taken: Vec<_> = self
            .slots
            .iter_mut()
            .filter(|slot| slot.dirty)
            .map(|slot| {
                (slot.dirty, slot.writing) = (false, true);
                (slot.at, Buf::from(&slot.bytes[..]))
            })
            .collect();
        self.dirty = 0;
        taken.sort_unstable_by_key(|(at, _)| *at);
        taken
    }

    /// The writes of [`take_dirty`](Self::take_dirty) have landed.
    pub(in crate::format) fn written(&mut self) {
        for slot in &mut self.slots {
            slot.writing = false;
        }
    }

    /// They failed: the slices are dirty again.
    pub(in crate::format) fn failed(&mut self) {
        for slot in &mut self.slots {
            if std::mem::take(&mut slot.writing) && !slot.dirty {
                slot.dirty = true;
                self.dirty += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full_cache() -> SliceCache {
        let mut cache = SliceCache::new(512, 16 * 512);
        for i in 0..16 {
            cache.insert(HostOffset(i * 512), Buf::zeroed(512)).expect("room");
        }
        cache
    }

    /// 512 bytes a slice, and as many hints as 64: slices whose starts are 32 KiB apart share one.
    #[test]
    fn a_hint_is_of_the_slice_that_is_there() {
        let mut cache = SliceCache::new(512, 16 * 512);
        let (one, other) = (HostOffset(512), HostOffset(512 + 64 * 512));
        assert_eq!(cache.hinted(one), None);
        for (at, byte) in [(one, 1), (other, 2)] {
            cache.insert(at, Buf::from(&[byte; 512][..])).expect("there is room");
        }
        for (at, byte) in [(one, 1), (other, 2), (one, 1)] {
            assert!(cache.find(at).is_some());
            assert_eq!(cache.hinted(at), Some(&[byte; 512][..]));
        }
        assert_eq!(cache.hinted(other), None, "the hint is of the one that was found last");
        cache.forget(one, 512);
        assert_eq!(cache.hinted(one), None);
        assert_eq!(cache.find(one), None);
        cache.insert(one, Buf::from(&[3; 512][..])).expect("there is room");
        assert!(cache.find(one).is_some());
        assert_eq!(cache.hinted(one), Some(&[3; 512][..]));
        cache.clear();
        assert_eq!((cache.hinted(one), cache.find(other)), (None, None));
    }

    #[test]
    fn a_full_cache_drops_what_is_clean_and_unused() {
        let mut cache = full_cache();
        for i in 0..15 {
            let slot = cache.find(HostOffset(i * 512)).expect("present");
            cache.bytes_mut(slot)[0] = 1;
        }
        cache.insert(HostOffset(1 << 20), Buf::zeroed(512)).expect("one slice is clean");
        assert_eq!(cache.find(HostOffset(15 * 512)), None);
        let slot = cache.find(HostOffset(1 << 20)).expect("present");
        cache.bytes_mut(slot)[0] = 1;
        assert_eq!(cache.insert(HostOffset(1 << 21), Buf::zeroed(512)), Err(AllDirty));
        assert!(!cache.has_room());
    }

    #[test]
    fn what_nobody_uses_is_dropped_in_time() {
        let mut cache = full_cache();
        let slot = cache.find(HostOffset(0)).expect("present");
        cache.bytes_mut(slot)[0] = 1;
        cache.clean();
        assert_eq!(cache.slots.len(), 16, "all were new");
        cache.find(HostOffset(5 * 512)).expect("present");
        cache.clean();
        assert_eq!(cache.slots.len(), 2, "one is dirty, and one was used");
        let slot = cache.find(HostOffset(0)).expect("present");
        assert_eq!((cache.bytes(slot)[0], cache.find(HostOffset(512))), (1, None));
        assert_eq!(cache.take_dirty().len(), 1);
        cache.clean();
        cache.clean();
        assert!(cache.find(HostOffset(0)).is_some(), "it is being written");
        cache.written();
        cache.clean();
        cache.clean();
        assert!(cache.slots.is_empty() && cache.index.is_empty());
    }

    #[test]
    fn a_slice_stays_while_it_is_written_and_is_dirty_again_on_failure() {
        let mut cache = full_cache();
        let slot = cache.find(HostOffset(512)).expect("present");
        cache.bytes_mut(slot)[3] = 7;
        let taken = cache.take_dirty();
        assert_eq!((taken.len(), taken[0].0, taken[0].1[3]), (1, HostOffset(512), 7));
        assert_eq!(cache.dirty(), 0);
        for i in 100..200 {
            cache.insert(HostOffset(i * 512), Buf::zeroed(512)).expect("others are clean");
        }
        assert!(cache.find(HostOffset(512)).is_some());
        cache.failed();
        assert_eq!((cache.dirty(), cache.take_dirty().len()), (1, 1));
        cache.forget(HostOffset(0), 1024);
        assert_eq!(cache.find(HostOffset(512)), None);
        cache.failed();
        assert_eq!(cache.dirty(), 0, "what is forgotten is not written again");
    }
}
