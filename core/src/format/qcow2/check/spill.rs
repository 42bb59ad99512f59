//! What the first pass meets of later windows, kept so that they need no pass over the metadata of their own.

use std::ops::Range;

/// References that are kept: 64 MiB.
const REFERENCES_MAX: usize = 1 << 23;

/// Entries whose COPIED flag waits for its refcount: 64 MiB.
const FLAGS_MAX: usize = 1 << 22;

/// An entry of an active table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flag {
    pub(super) cluster: u64,
    pub(super) raw: u64,
    pub(super) times: u32,
    /// Its place in the L1 table; none for an L2 entry.
    pub(super) l1_index: Option<u32>,
}

/// References and flags of clusters outside the first window.
#[derive(Default)]
pub(super) struct Spill {
    /// Cluster and times.
    references: Vec<(u32, u32)>,
    flags: Vec<Flag>,
    /// There were too many: what is kept is of no use.
    overflowed: bool,
}

impl Spill {
    pub(super) fn reference(&mut self, clusters: Range<u64>, times: u64) {
        let room = REFERENCES_MAX.saturating_sub(self.references.len()) as u64;
        let fits = clusters.end - clusters.start <= room && clusters.end <= u64::from(u32::MAX);
        match u32::try_from(times) {
            Ok(times) if fits && !self.overflowed => {
                self.references.extend(clusters.map(|cluster| (cluster as u32, times)));
            }
            _ => self.overflow(),
        }
    }

    pub(super) fn flag(&mut self, flag: Flag) {
        if self.flags.len() < FLAGS_MAX && !self.overflowed {
            self.flags.push(flag);
        } else {
            self.overflow();
        }
    }

    fn overflow(&mut self) {
        *self = Self { overflowed: true, ..Self::default() };
    }

    /// All of it in the order of clusters; none when not all was kept.
    pub(super) fn sorted(mut self) -> Option<Self> {
        self.references.sort_unstable();
        self.flags.sort_unstable_by_key(|flag| flag.cluster);
        (!self.overflowed).then_some(self)
    }

    pub(super) fn references_of(&self, clusters: &Range<u64>) -> &[(u32, u32)] {
        let before = |end: u64| self.references.partition_point(|(cluster, _)| u64::from(*cluster) < end);
        &self.references[before(clusters.start)..before(clusters.end)]
    }

    pub(super) fn flags_of(&self, clusters: &Range<u64>) -> &[Flag] {
        let before = |end: u64| self.flags.partition_point(|flag| flag.cluster < end);
        &self.flags[before(clusters.start)..before(clusters.end)]
    }
}
