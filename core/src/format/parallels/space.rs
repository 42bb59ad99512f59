//! Clusters of the file: which are taken, and where the next one comes from.

use super::ParallelsError;
use super::layout::{ClusterIndex, Geometry};

/// Clusters of a file that are kept account of: a bit each, 32 MiB of memory. No honest image comes near.
const CLUSTERS_MAX: u64 = 1 << 28;

/// A set of clusters of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Clusters(Vec<u64>);

impl Clusters {
    /// An empty set of those that a file of `file_len` bytes can hold.
    pub fn of_file(geometry: &Geometry, file_len: u64) -> Result<Self, ParallelsError> {
        let found = geometry.clusters_in(file_len);
        if found > CLUSTERS_MAX {
            return Err(ParallelsError::TooManyClusters { found, max: CLUSTERS_MAX });
        }
        Ok(Self(vec![0; found.div_ceil(64) as usize]))
    }

    pub fn has(&self, index: ClusterIndex) -> bool {
        self.0.get(index as usize / 64).is_some_and(|word| word >> (index % 64) & 1 == 1)
    }

    /// Adds a cluster; tells whether it was not there before. One that no file which is kept account of can hold is not added.
    pub fn add(&mut self, index: ClusterIndex) -> bool {
        if u64::from(index) >= CLUSTERS_MAX {
            return false;
        }
        let word = index as usize / 64;
        if word >= self.0.len() {
            self.0.resize(word + 1, 0);
        }
        let (before, bit) = (self.0[word], 1 << (index % 64));
        self.0[word] = before | bit;
        before & bit == 0
    }

    pub fn remove(&mut self, index: ClusterIndex) {
        if let Some(word) = self.0.get_mut(index as usize / 64) {
            *word &= !(1 << (index % 64));
        }
    }

    /// The first cluster behind all of them.
    pub fn end(&self) -> ClusterIndex {
        let last = self.0.iter().rposition(|word| *word != 0);
        last.map_or(0, |word| word as u32 * 64 + 64 - self.0[word].leading_zeros())
    }

    /// The first cluster from word `from` on that is not in the set.
    fn first_gap(&self, from: usize) -> ClusterIndex {
        let word = (from..self.0.len()).find(|word| self.0[*word] != u64::MAX).unwrap_or(self.0.len());
        let within = self.0.get(word).map_or(0, |bits| bits.trailing_ones());
        word as u32 * 64 + within
    }
}

/// Clusters that were taken, neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Taken {
    pub first: ClusterIndex,
    pub count: u32,
    /// Nobody wrote there since the file grew so far.
    pub fresh: bool,
}

/// The clusters of an image that is written to.
#[derive(Debug, Default)]
pub(super) struct Space {
    taken: Clusters,
    /// Clusters that the file holds.
    room: u32,
    /// The first one that nobody wrote to; all before it were taken once.
    fresh: u32,
    /// All words of `taken` before this one are full.
    full_before: usize,
}

impl Space {
    /// What a file with `room` clusters has, of which some are `taken`. What the others hold nobody knows.
    pub fn new(taken: Clusters, room: u32) -> Self {
        Self { taken, room, fresh: room, full_before: 0 }
    }

    /// Takes at most `count` neighbours, the first that are free; none where the file must grow first.
    pub fn take(&mut self, count: u32) -> Option<Taken> {
        let first = self.taken.first_gap(self.full_before);
        if first >= self.room {
            return None;
        }
        self.full_before = first as usize / 64;
        let fresh = first >= self.fresh;
        let limit = if fresh { self.room } else { self.fresh };
        let free = (first..limit).take(count as usize).take_while(|index| !self.taken.has(*index));
        let count = free.count() as u32;
        for index in first..first + count {
            self.taken.add(index);
        }
        self.fresh = self.fresh.max(first + count);
        Some(Taken { first, count, fresh })
    }

    /// Gives a cluster back.
    pub fn free(&mut self, index: ClusterIndex) {
        self.taken.remove(index);
        self.full_before = self.full_before.min(index as usize / 64);
    }

    /// Clusters that the file holds.
    pub fn room(&self) -> u32 {
        self.room
    }

    /// Whether the next [`take`](Self::take) finds something.
    pub fn has_room(&self) -> bool {
        self.taken.first_gap(self.full_before) < self.room
    }

    /// The file has grown: what is new reads as zeros.
    pub fn grown_to(&mut self, room: u32) {
        self.room = self.room.max(room);
    }

    /// The first cluster behind all that are taken.
    pub fn end(&self) -> ClusterIndex {
        self.taken.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn took(first: u32, count: u32, fresh: bool) -> Option<Taken> {
        Some(Taken { first, count, fresh })
    }

    #[test]
    fn gaps_are_filled_before_the_file_grows() {
        let mut taken = Clusters::default();
        for index in [0, 1, 4, 63, 64] {
            assert!(taken.add(index));
            assert!(!taken.add(index));
        }
        assert_eq!(taken.end(), 65);
        let mut space = Space::new(taken, 66);
        assert_eq!(space.take(1), took(2, 1, false));
        assert_eq!(space.take(9), took(3, 1, false));
        assert_eq!(space.take(100), took(5, 58, false));
        assert_eq!(space.take(2), took(65, 1, false));
        assert_eq!((space.take(1), space.has_room()), (None, false));
        space.grown_to(200);
        assert_eq!(space.take(3), took(66, 3, true));
        space.free(67);
        space.free(10);
        assert_eq!(space.take(8), took(10, 1, false));
        assert_eq!(space.take(8), took(67, 1, false), "what was written to is not zeros");
        assert_eq!(space.take(1), took(69, 1, true));
        assert_eq!(space.end(), 70);
        space.free(69);
        assert_eq!(space.end(), 69);
    }

    #[test]
    fn a_file_of_more_clusters_than_there_is_memory_for_is_refused() {
        let header = super::super::layout::Header::new(512, 1).expect("small");
        let geometry = header.geometry(1 << 20);
        assert!(Clusters::of_file(&geometry, 1 << 30).is_ok());
        let refused = Clusters::of_file(&geometry, 1 << 50);
        assert!(matches!(refused, Err(ParallelsError::TooManyClusters { .. })));
    }
}
