//! A dirty bitmap in memory: one bit for each `granularity` bytes of the disk.
//!
//! ```text
//!   chunks:  0      1       2     3     4      5 …
//!            -    [bits]    ╰── ones ───╯      -        a chunk of zeros is nowhere, runs of ones are two numbers
//! ```
//!
//! So a bitmap takes as much memory as its table and its clusters take in the file, however large the disk that the image
//! claims to have.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::buf::is_zero;

/// Bytes of a chunk.
const CHUNK: usize = 4096;
/// Bits of a chunk.
const CHUNK_BITS: u64 = 8 * CHUNK as u64;

/// The bits. Bit `n` is bit `n % 8`, counted from the lowest, of byte `n / 8`.
#[derive(Clone, Debug)]
pub(in crate::format) struct Bits {
    count: u64,
    /// Runs of chunks in which all bits are set, by their first chunk: the end. They do not touch each other.
    ones: BTreeMap<u64, u64>,
    /// Chunks in which some bits are set, by their number. None of them is in a run.
    mixed: BTreeMap<u64, Box<[u8; CHUNK]>>,
}

impl Bits {
    /// No bit is set.
    pub(in crate::format) fn new(count: u64) -> Self {
        Self { count, ones: BTreeMap::new(), mixed: BTreeMap::new() }
    }

    /// How many there are.
    pub(in crate::format) fn count(&self) -> u64 {
        self.count
    }

    /// The run of ones that a chunk is in.
    fn run_of(&self, chunk: u64) -> Option<Range<u64>> {
        let (start, end) = self.ones.range(..=chunk).next_back()?;
        (chunk < *end).then_some(*start..*end)
    }

    /// Sets neighbouring bits; those beyond the end there are none of.
    pub(in crate::format) fn set(&mut self, bits: Range<u64>) {
        let end = bits.end.min(self.count);
        if bits.start >= end {
            return;
        }
        let whole = bits.start.div_ceil(CHUNK_BITS)..end / CHUNK_BITS;
        if whole.start >= whole.end {
            self.set_within_chunks(bits.start..end);
            return;
        }
        self.set_within_chunks(bits.start..whole.start * CHUNK_BITS);
        self.set_chunks(whole.clone());
        self.set_within_chunks(whole.end * CHUNK_BITS..end);
    }

    /// Sets all bits of neighbouring chunks.
    fn set_chunks(&mut self, chunks: Range<u64>) {
        let inside: Vec<u64> = self.mixed.range(chunks.clone()).map(|(chunk, _)| *chunk).collect();
        for chunk in inside {
            self.mixed.remove(&chunk);
        }
        let (mut start, mut end) = (chunks.start, chunks.end);
        // Runs that overlap this one, or touch it, become one with it.
        while let Some((first, last)) = self.ones.range(..=end).next_back().map(|(a, b)| (*a, *b)) {
            if last < start {
                break;
            }
            self.ones.remove(&first);
            (start, end) = (start.min(first), end.max(last));
        }
        self.ones.insert(start, end);
    }

    fn set_within_chunks(&mut self, bits: Range<u64>) {
        let (mut bit, end) = (bits.start, bits.end);
        while bit < end {
            let number = bit / CHUNK_BITS;
            let stop = end.min((number + 1) * CHUNK_BITS);
            if self.run_of(number).is_none() {
                let chunk = self.mixed.entry(number).or_insert_with(|| Box::new([0; CHUNK]));
                set_in(chunk, bit % CHUNK_BITS..bit % CHUNK_BITS + (stop - bit));
            }
            bit = stop;
        }
    }

    /// Changes how many there are; new ones are not set.
    pub(in crate::format) fn resize(&mut self, count: u64) {
        self.count = count;
        self.cut_off();
    }

    /// Clears what lies beyond the last bit.
    fn cut_off(&mut self) {
        let (whole, odd) = (self.count / CHUNK_BITS, self.count % CHUNK_BITS);
        self.mixed.split_off(&self.count.div_ceil(CHUNK_BITS));
        if let Some(chunk) = self.mixed.get_mut(&whole) {
            let full = (odd / 8) as usize;
            if !odd.is_multiple_of(8) {
                chunk[full] &= 0xff >> (8 - odd % 8);
            }
            chunk[full + usize::from(!odd.is_multiple_of(8))..].fill(0);
        }
        let last_is_full = self.run_of(whole).is_some();
        self.ones.split_off(&whole);
        if let Some(mut last) = self.ones.last_entry() {
            let end = (*last.get()).min(whole);
            last.insert(end);
        }
        if last_is_full && odd > 0 {
            self.set_within_chunks(whole * CHUNK_BITS..self.count);
        }
    }

    /// Clears all.
    pub(in crate::format) fn clear(&mut self) {
        self.ones.clear();
        self.mixed.clear();
    }

    /// Copies bytes of the bitmap, zeros where there are none.
    pub(in crate::format) fn copy_out(&self, byte: u64, out: &mut [u8]) {
        let mut done = 0;
        while done < out.len() {
            let at = byte + done as u64;
            let (number, start) = (at / CHUNK as u64, (at % CHUNK as u64) as usize);
            let len = (CHUNK - start).min(out.len() - done);
            let out = &mut out[done..done + len];
            match self.mixed.get(&number) {
                Some(chunk) => out.copy_from_slice(&chunk[start..start + len]),
                None => out.fill(if self.run_of(number).is_some() { 0xff } else { 0 }),
            }
            done += len;
        }
    }

    /// Takes bytes of a bitmap beside those that are set; what lies beyond its end is left out.
    pub(in crate::format) fn copy_in(&mut self, byte: u64, bytes: &[u8]) {
        let end = self.count.div_ceil(8);
        let len = end.saturating_sub(byte).min(bytes.len() as u64) as usize;
        let mut done = 0;
        while done < len {
            let at = byte + done as u64;
            let (number, start) = (at / CHUNK as u64, (at % CHUNK as u64) as usize);
            let part = &bytes[done..len.min(done + CHUNK - start)];
            done += part.len();
            if is_zero(part) || self.run_of(number).is_some() {
                continue;
            }
            let chunk = self.mixed.entry(number).or_insert_with(|| Box::new([0; CHUNK]));
            chunk[start..].iter_mut().zip(part).for_each(|(there, more)| *there |= *more);
        }
        // Bits beyond the last are no bits of the disk, whatever was stored.
        self.cut_off();
    }

    /// Whether all of some bits are set, or none is; beyond the last bit none is.
    pub(in crate::format) fn alike(&self, bits: Range<u64>) -> Option<bool> {
        let Some(set) = self.next(bits.start, true).filter(|set| *set < bits.end) else { return Some(false) };
        let all = set == bits.start && self.next(set, false).unwrap_or(self.count) >= bits.end;
        all.then_some(true)
    }

    /// The next run of set bits from `bit` on.
    pub(in crate::format) fn next_run(&self, bit: u64) -> Option<Range<u64>> {
        let start = self.next(bit, true)?;
        Some(start..self.next(start, false).unwrap_or(self.count))
    }

    /// The first bit from `bit` on that is set, or is not.
    fn next(&self, bit: u64, set: bool) -> Option<u64> {
        let mut at = bit;
        while at < self.count {
            let number = at / CHUNK_BITS;
            let (found, covered) = match (self.mixed.get(&number), self.run_of(number)) {
                (Some(chunk), _) => {
                    let from = at % CHUNK_BITS;
                    match (from..CHUNK_BITS).find(|bit| is_set(chunk, *bit) == set) {
                        Some(found) => (true, number * CHUNK_BITS + found),
                        None => (false, (number + 1) * CHUNK_BITS),
                    }
                }
                (None, Some(run)) => (set, if set { at } else { run.end * CHUNK_BITS }),
                (None, None) => (!set, if set { self.next_chunk(number) } else { at }),
            };
            if found {
                return Some(covered).filter(|found| *found < self.count);
            }
            at = covered;
        }
        None
    }

    /// Where the first chunk after `number` begins in which any bit is set.
    fn next_chunk(&self, number: u64) -> u64 {
        let mixed = self.mixed.range(number..).next().map(|(chunk, _)| *chunk);
        let ones = self.ones.range(number..).next().map(|(chunk, _)| *chunk);
        let next = mixed.into_iter().chain(ones).min();
        next.map_or(self.count, |chunk| chunk * CHUNK_BITS)
    }
}

fn is_set(chunk: &[u8; CHUNK], bit: u64) -> bool {
    chunk[(bit / 8) as usize] >> (bit % 8) & 1 == 1
}

fn set_in(chunk: &mut [u8; CHUNK], bits: Range<u64>) {
    let mut bit = bits.start;
    while bit < bits.end {
        let byte = &mut chunk[(bit / 8) as usize];
        let upto = bits.end.min((bit / 8 + 1) * 8);
        *byte |= ((0xff_u16 << (bit % 8)) & (0xff_u16 >> (7 - (upto - 1) % 8))) as u8;
        bit = upto;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    impl Bits {
        fn plain(&self) -> Vec<bool> {
            let mut bytes = vec![0; self.count.div_ceil(8) as usize];
            self.copy_out(0, &mut bytes);
            (0..self.count).map(|bit| bytes[(bit / 8) as usize] >> (bit % 8) & 1 == 1).collect()
        }
    }

    #[test]
    fn bits_go_and_come_with_the_length() {
        let mut bits = Bits::new(100_000);
        bits.set(0..100_000);
        bits.resize(32_771);
        bits.resize(100_000);
        assert_eq!(bits.next_run(0), Some(0..32_771));
        assert_eq!(bits.next_run(32_771), None);
        bits.resize(0);
        bits.resize(9);
        assert_eq!(bits.next_run(0), None);
    }

    #[test]
    fn a_run_of_ones_takes_no_memory_however_long() {
        let mut bits = Bits::new(1 << 32);
        for start in (0..1 << 32).step_by(1 << 24) {
            bits.set(start..start + (1 << 24));
        }
        assert_eq!((bits.ones.len(), bits.mixed.len()), (1, 0));
        assert_eq!(bits.next_run(0), Some(0..1 << 32));
        bits.resize((1 << 31) + 5);
        assert_eq!((bits.ones.len(), bits.mixed.len()), (1, 1));
        assert_eq!(bits.next_run(7), Some(7..(1 << 31) + 5));
    }

    proptest! {
        #[test]
        fn bits_are_those_of_a_plain_vector(
            count in 1u64..300_000,
            runs in proptest::collection::vec((0u64..300_000, 0u64..150_000), 0..5),
            lens in proptest::collection::vec(0u64..300_000, 0..3),
        ) {
            let mut bits = Bits::new(count);
            let mut plain = vec![false; count as usize];
            for (index, (start, len)) in runs.iter().enumerate() {
                bits.set(*start..start + len);
                for bit in *start..(start + len).min(plain.len() as u64) {
                    plain[bit as usize] = true;
                }
                if let Some(len) = lens.get(index) {
                    bits.resize(*len);
                    plain.resize(*len as usize, false);
                }
            }
            prop_assert_eq!(&bits.plain(), &plain);
            let mut found = vec![false; plain.len()];
            let mut at = 0;
            while let Some(run) = bits.next_run(at) {
                prop_assert!(run.start >= at && run.start < run.end);
                found[run.start as usize..run.end as usize].fill(true);
                at = run.end;
            }
            prop_assert_eq!(&found, &plain);
            for start in (0..count).step_by(20_000) {
                let there = plain.iter().copied().chain(std::iter::repeat(false)).skip(start as usize).take(30_000);
                let set = there.filter(|bit| *bit).count();
                let alike = [(0, Some(false)), (30_000, Some(true))].into_iter().find(|(count, _)| *count == set);
                prop_assert_eq!(bits.alike(start..start + 30_000), alike.and_then(|(_, alike)| alike));
            }
            let mut bytes = vec![0; bits.count().div_ceil(8) as usize];
            bits.copy_out(0, &mut bytes);
            let mut again = Bits::new(bits.count());
            again.set(0..bits.count() / 3);
            again.copy_in(0, &bytes);
            let third = (plain.len() / 3).min(plain.len());
            plain[..third].fill(true);
            prop_assert_eq!(again.plain(), plain);
        }
    }
}
