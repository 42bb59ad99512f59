//! What a log changes, beside a file that is not written to: sectors, and ranges of zeros.

use std::collections::BTreeMap;

use super::layout::SECTOR;
use crate::buf::Buf;

/// Pieces that do not overlap, by where they begin; all of whole sectors.
#[derive(Default)]
pub(super) struct Overlay(BTreeMap<u64, Piece>);

/// A piece of the file as the log says it is.
pub(super) enum Piece {
    Sector(Buf),
    Zeros(u64),
}

impl Piece {
    fn len(&self) -> u64 {
        match self {
            Self::Sector(_) => SECTOR as u64,
            Self::Zeros(len) => *len,
        }
    }
}

impl Overlay {
    /// Puts a piece above all that is there.
    pub(super) fn put(&mut self, at: u64, piece: Piece) {
        let end = at + piece.len();
        if at == end {
            return;
        }
        let first = self.0.range(..=at).next_back().map_or(at, |(first, _)| *first);
        let below: Vec<(u64, u64)> = self.0.range(first..end).map(|(at, piece)| (*at, piece.len())).collect();
        for (other, len) in below.into_iter().filter(|(other, len)| other + len > at) {
            self.0.remove(&other);
            // Only zeros are longer than a sector.
            if other < at {
                self.0.insert(other, Piece::Zeros(at - other));
            }
            if other + len > end {
                self.0.insert(end, Piece::Zeros(other + len - end));
            }
        }
        self.0.insert(at, piece);
    }

    pub(super) fn pieces(&self) -> impl Iterator<Item = (u64, &Piece)> {
        self.0.iter().map(|(at, piece)| (*at, piece))
    }

    /// How many of `len` bytes at `at` are all the file's, or all not; and which of the two.
    pub(super) fn run(&self, at: u64, len: u64) -> (u64, bool) {
        if self.0.is_empty() {
            return (len, false);
        }
        match self.overlapping(at, len).next() {
            None => (len, false),
            Some((start, _)) if start > at => (start - at, false),
            Some((start, piece)) => (len.min(start + piece.len() - at), true),
        }
    }

    /// Changes bytes that were read at `at` to what the log says.
    pub(super) fn apply(&self, at: u64, bytes: &mut [u8]) {
        let end = at + bytes.len() as u64;
        for (start, piece) in self.overlapping(at, bytes.len() as u64) {
            let (from, to) = (start.max(at), (start + piece.len()).min(end));
            let out = &mut bytes[(from - at) as usize..(to - at) as usize];
            match piece {
                Piece::Zeros(_) => out.fill(0),
                Piece::Sector(sector) => {
                    out.copy_from_slice(&sector[(from - start) as usize..(to - start) as usize]);
                }
            }
        }
    }

    fn overlapping(&self, at: u64, len: u64) -> impl Iterator<Item = (u64, &Piece)> {
        let first = self.0.range(..=at).next_back().map_or(at, |(first, _)| *first);
        let pieces = self.0.range(first..at + len).map(|(at, piece)| (*at, piece));
        pieces.filter(move |(start, piece)| start + piece.len() > at)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_last_word_counts(pieces in prop::collection::vec((0u64..12, 0u64..5, any::<u8>()), 0..20), at in 0u64..40_000, len in 1u64..20_000) {
            let mut flat = vec![None; 20 * SECTOR];
            let mut overlay = Overlay::default();
            for (sector, zeros, fill) in pieces {
                let start = sector * SECTOR as u64;
                let piece = match zeros {
                    0 => Piece::Sector(Buf::from(vec![fill; SECTOR])),
                    sectors => Piece::Zeros(sectors * SECTOR as u64),
                };
                let byte = if zeros == 0 { fill } else { 0 };
                flat[start as usize..][..piece.len() as usize].fill(Some(byte));
                overlay.put(start, piece);
            }
            let mut bytes = vec![0xee; len as usize];
            overlay.apply(at, &mut bytes);
            let expected: Vec<u8> = flat[at as usize..][..len as usize].iter().map(|byte| byte.unwrap_or(0xee)).collect();
            prop_assert_eq!(bytes, expected);
            let (run, patched) = overlay.run(at, len);
            prop_assert!(run > 0 && run <= len);
            prop_assert!(flat[at as usize..][..run as usize].iter().all(|byte| byte.is_some() == patched));
        }
    }
}
