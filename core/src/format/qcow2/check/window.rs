//! Counters for one window of clusters.

use std::ops::Range;

/// Clusters that are looked at or skipped together.
const CHUNK: u64 = 1 << 7;

/// A counter, and how many of them are in memory at once.
pub(super) trait Counter: Copy + Default {
    /// Clusters of a window: 128 MiB of counters.
    const WINDOW: u64;
    fn from_count(count: u64) -> Self;
    fn count(self) -> u64;
}

impl Counter for u16 {
    const WINDOW: u64 = 1 << 26;

    fn from_count(count: u64) -> Self {
        count as Self
    }

    fn count(self) -> u64 {
        u64::from(self)
    }
}

impl Counter for u64 {
    const WINDOW: u64 = 1 << 24;

    fn from_count(count: u64) -> Self {
        count
    }

    fn count(self) -> u64 {
        self
    }
}

/// One counter for each cluster of a window.
pub(super) struct Window<C> {
    first: u64,
    counters: Vec<C>,
    /// Chunks that may hold something else than zeros.
    touched: Vec<bool>,
}

impl<C: Counter> Window<C> {
    pub(super) fn new(room: u64) -> Self {
        let room = room.next_multiple_of(CHUNK);
        let counters = vec![C::default(); room as usize];
        Self { first: 0, counters, touched: vec![false; (room / CHUNK) as usize] }
    }

    /// Covers window `number`, all zeros.
    pub(super) fn move_to(&mut self, number: u64) {
        self.first = number * C::WINDOW;
        for (chunk, touched) in self.touched.iter_mut().enumerate() {
            if std::mem::take(touched) {
                self.counters[chunk * CHUNK as usize..][..CHUNK as usize].fill(C::default());
            }
        }
    }

    /// The clusters that it covers.
    pub(super) fn clusters(&self) -> Range<u64> {
        self.first..self.first + self.counters.len() as u64
    }

    /// Those of some clusters that it covers.
    pub(super) fn part_of(&self, clusters: &Range<u64>) -> Range<u64> {
        let covered = self.clusters();
        let start = clusters.start.clamp(covered.start, covered.end);
        start..clusters.end.clamp(start, covered.end)
    }

    /// Adds to the counter of a cluster that is covered, up to `max`; returns what is beyond.
    #[inline]
    pub(super) fn add(&mut self, cluster: u64, times: u64, max: u64) -> u64 {
        let index = (cluster - self.first) as usize;
        let counter = &mut self.counters[index];
        let sum = counter.count().saturating_add(times);
        *counter = C::from_count(sum.min(max));
        self.touched[index / CHUNK as usize] = true;
        sum.saturating_sub(max)
    }

    /// Sets the counters of neighbouring clusters that are covered.
    pub(super) fn set(&mut self, cluster: u64, counters: &[C]) {
        if counters.iter().all(|counter| counter.count() == 0) {
            return;
        }
        let first = (cluster - self.first) as usize;
        self.counters[first..first + counters.len()].copy_from_slice(counters);
        let chunks = first / CHUNK as usize..(first + counters.len()).div_ceil(CHUNK as usize);
        self.touched[chunks].fill(true);
    }

    /// Sets the counter of one cluster that is covered.
    pub(super) fn put(&mut self, cluster: u64, count: u64) {
        let index = (cluster - self.first) as usize;
        self.counters[index] = C::from_count(count);
        self.touched[index / CHUNK as usize] = true;
    }

    /// How many counters of clusters that are covered are not zero, and the last cluster of them.
    pub(super) fn used(&self, clusters: &Range<u64>) -> (u64, Option<u64>) {
        let first = (clusters.start - self.first) as usize;
        let counters = &self.counters[first..(clusters.end - self.first) as usize];
        let used = counters.iter().map(|counter| u32::from(counter.count() != 0)).sum::<u32>();
        let last = counters.iter().rposition(|counter| counter.count() != 0);
        (u64::from(used), last.map(|last| clusters.start + last as u64))
    }

    /// The counter of a cluster that is covered.
    #[inline]
    pub(super) fn get(&self, cluster: u64) -> u64 {
        self.counters[(cluster - self.first) as usize].count()
    }

    /// The counter of a cluster, where it is covered.
    #[inline]
    pub(super) fn try_get(&self, cluster: u64) -> Option<u64> {
        let index = usize::try_from(cluster.checked_sub(self.first)?).ok()?;
        self.counters.get(index).map(|counter| counter.count())
    }

    /// Whether every counter of the chunk that holds a cluster is known to be zero, and the end of that chunk.
    pub(super) fn idle_chunk(&self, cluster: u64) -> (bool, u64) {
        let chunk = (cluster - self.first) / CHUNK;
        (!self.touched[chunk as usize], self.first + (chunk + 1) * CHUNK)
    }
}
