//! A dirty bitmap in memory: one bit for each `granularity` bytes of the disk, in chunks that exist once a bit is set.

use std::ops::Range;

/// Bytes of a chunk.
const CHUNK: usize = 4096;
/// Bits of a chunk.
const CHUNK_BITS: u64 = 8 * CHUNK as u64;

/// The bits. Bit `n` is bit `n % 8`, counted from the lowest, of byte `n / 8`.
#[derive(Clone, Debug)]
pub(super) struct Bits {
    count: u64,
    chunks: Vec<Option<Box<[u8; CHUNK]>>>,
}

impl Bits {
    /// No bit is set.
    pub(super) fn new(count: u64) -> Self {
        Self { count, chunks: vec![None; count.div_ceil(CHUNK_BITS) as usize] }
    }

    /// How many there are.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// Whether a bit is set.
    pub(super) fn get(&self, bit: u64) -> bool {
        let chunk = &self.chunks[(bit / CHUNK_BITS) as usize];
        let (byte, in_byte) = ((bit % CHUNK_BITS / 8) as usize, bit % 8);
        chunk.as_ref().is_some_and(|chunk| chunk[byte] >> in_byte & 1 == 1)
    }

    /// Sets neighbouring bits; those beyond the end there are none of.
    pub(super) fn set(&mut self, bits: Range<u64>) {
        let mut bit = bits.start;
        let end = bits.end.min(self.count);
        while bit < end {
            let chunk = self.chunks[(bit / CHUNK_BITS) as usize].get_or_insert_with(|| Box::new([0; CHUNK]));
            let stop = end.min((bit / CHUNK_BITS + 1) * CHUNK_BITS);
            while bit < stop {
                let byte = &mut chunk[(bit % CHUNK_BITS / 8) as usize];
                let upto = stop.min((bit / 8 + 1) * 8);
                *byte |= ((0xff_u16 << (bit % 8)) & (0xff_u16 >> (7 - (upto - 1) % 8))) as u8;
                bit = upto;
            }
        }
    }

    /// Changes how many there are; new ones are not set.
    pub(super) fn resize(&mut self, count: u64) {
        self.count = count;
        self.chunks.resize(count.div_ceil(CHUNK_BITS) as usize, None);
        self.cut_off();
    }

    /// Clears what lies beyond the last bit.
    fn cut_off(&mut self) {
        let Some(Some(chunk)) = self.chunks.last_mut() else { return };
        let in_chunk = (self.count - 1) % CHUNK_BITS + 1;
        let (full, odd) = ((in_chunk / 8) as usize, in_chunk % 8);
        if odd != 0 {
            chunk[full] &= 0xff >> (8 - odd);
        }
        chunk[full + usize::from(odd != 0)..].fill(0);
    }

    /// Clears all.
    pub(super) fn clear(&mut self) {
        self.chunks.fill(None);
    }

    /// Copies bytes of the bitmap, zeros where there are none.
    pub(super) fn copy_out(&self, byte: u64, out: &mut [u8]) {
        let mut done = 0;
        while done < out.len() {
            let at = byte as usize + done;
            let (chunk, start) = (at / CHUNK, at % CHUNK);
            let len = (CHUNK - start).min(out.len() - done);
            match self.chunks.get(chunk).and_then(Option::as_ref) {
                Some(chunk) => out[done..done + len].copy_from_slice(&chunk[start..start + len]),
                None => out[done..done + len].fill(0),
            }
            done += len;
        }
    }

    /// Takes bytes of a bitmap; what lies beyond its end is left out.
    pub(super) fn copy_in(&mut self, byte: u64, bytes: &[u8]) {
        let end = self.count.div_ceil(8);
        let len = end.saturating_sub(byte).min(bytes.len() as u64) as usize;
        for (index, value) in bytes[..len].iter().enumerate().filter(|(_, value)| **value != 0) {
            let at = byte as usize + index;
            let chunk = self.chunks[at / CHUNK].get_or_insert_with(|| Box::new([0; CHUNK]));
            chunk[at % CHUNK] = *value;
        }
        // Bits beyond the last are no bits of the disk, whatever was stored.
        self.cut_off();
    }

    /// The next run of set bits from `bit` on.
    pub(super) fn next_run(&self, bit: u64) -> Option<Range<u64>> {
        let mut start = bit;
        while start < self.count && !self.get(start) {
            start += match &self.chunks[(start / CHUNK_BITS) as usize] {
                None => CHUNK_BITS - start % CHUNK_BITS,
                Some(_) => 1,
            };
        }
        if start >= self.count {
            return None;
        }
        let mut end = start + 1;
        while end < self.count && self.get(end) {
            end += 1;
        }
        Some(start..end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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

    proptest! {
        #[test]
        fn bits_are_those_of_a_plain_vector(count in 1u64..100_000, runs in proptest::collection::vec((0u64..100_000, 0u64..70_000), 0..5)) {
            let mut bits = Bits::new(count);
            let mut plain = vec![false; count as usize];
            for (start, len) in runs {
                bits.set(start..start + len);
                for bit in start..(start + len).min(count) {
                    plain[bit as usize] = true;
                }
            }
            prop_assert!((0..count).all(|bit| bits.get(bit) == plain[bit as usize]));
            let mut found = vec![false; count as usize];
            let mut at = 0;
            while let Some(run) = bits.next_run(at) {
                found[run.start as usize..run.end as usize].fill(true);
                at = run.end;
            }
            prop_assert_eq!(&found, &plain);
            let mut bytes = vec![0; count.div_ceil(8) as usize];
            bits.copy_out(0, &mut bytes);
            let mut again = Bits::new(count);
            again.copy_in(0, &bytes);
            prop_assert!((0..count).all(|bit| again.get(bit) == plain[bit as usize]));
        }
    }
}
