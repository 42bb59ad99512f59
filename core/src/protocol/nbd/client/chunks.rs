//! Which part of a read has been answered: every byte is to be, and none twice.

use std::ops::Range;

use smallvec::SmallVec;

use crate::protocol::nbd::NbdError;
use crate::protocol::nbd::limits::FRAGMENTS_MAX;

/// Ranges of a request that have come, apart from each other and in order.
#[derive(Debug, Default)]
pub(super) struct Fragments(SmallVec<[Range<usize>; 1]>);

impl Fragments {
    /// Takes note of a range that is about to come, which must lie within `len`.
    ///
    /// # Errors
    /// When it does not, is empty, or comes twice; or there are too many.
    pub(super) fn add(&mut self, at: u64, count: u64, len: usize) -> Result<Range<usize>, NbdError> {
        let value = |what, found, expected| NbdError::Value { what, found, expected };
        if count == 0 {
            return Err(value("length of a chunk of data", 0, "above zero"));
        }
        let end = at.checked_add(count).filter(|end| *end <= len as u64);
        let Some(end) = end else {
            return Err(value(
                "offset of a chunk within the request",
                at,
                "a chunk that lies in the request",
            ));
        };
        let new = at as usize..end as usize;
        let after = self.0.partition_point(|range| range.end <= new.start);
        if self.0.get(after).is_some_and(|next| next.start < new.end) {
            return Err(value(
                "offset of a chunk within the request",
                at,
                "a chunk that has not come before",
            ));
        }
        let joins_left = after > 0 && self.0[after - 1].end == new.start;
        let joins_right = self.0.get(after).is_some_and(|next| next.start == new.end);
        match (joins_left, joins_right) {
            (true, true) => {
                self.0[after - 1].end = self.0[after].end;
                self.0.remove(after);
            }
            (true, false) => self.0[after - 1].end = new.end,
            (false, true) => self.0[after].start = new.start,
            (false, false) => self.0.insert(after, new.clone()),
        }
        if self.0.len() > FRAGMENTS_MAX {
            let (found, max) = (self.0.len() as u64, FRAGMENTS_MAX as u64);
            return Err(NbdError::TooMuch { what: "separate chunks of one read", found, max });
        }
        Ok(new)
    }

    /// Whether all of a request of that length has come.
    pub(super) fn cover(&self, len: usize) -> bool {
        match &self.0[..] {
            [] => len == 0,
            [all] => *all == (0..len),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_comes_once() {
        let mut some = Fragments::default();
        for (at, count) in [(0, 2), (6, 2), (4, 2), (2, 1), (9, 1), (8, 1)] {
            some.add(at, count, 10).expect("free");
            assert!(!some.cover(10));
        }
        for (at, count) in [(2, 1), (0, 10), (3, 2), (9, 1), (3, 8), (10, 1), (u64::MAX, 2), (3, 0)] {
            assert!(some.add(at, count, 10).is_err(), "{at}+{count}");
        }
        some.add(3, 1, 10).expect("free");
        assert!(some.cover(10) && some.0.len() == 1);
    }

    #[test]
    fn a_read_in_a_million_pieces_is_refused() {
        let mut some = Fragments::default();
        let refused = (0..1 << 20).find(|index| some.add(index * 2, 1, 4 << 20).is_err());
        assert_eq!(refused, Some(FRAGMENTS_MAX as u64));
    }
}
