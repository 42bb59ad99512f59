//! How far an amend of several changes is, in the reference's numbers.

use std::cell::Cell;
use std::ops::RangeInclusive;

use crate::job::Progress;

/// Each change is a stage, and counts in units of its own. What stages to come will count is not known: they are taken to
/// be, each, as long as those until now are on average. So the share that is done may fall when a stage begins.
pub(super) struct Stages {
    progress: Progress,
    count: u64,
    /// Stages that have ended, and the units of them all.
    ended: Cell<u64>,
    before: Cell<u64>,
    /// Units of the stage that was told of last.
    last: Cell<u64>,
}

impl Stages {
    pub(super) fn new(count: u64, progress: Progress) -> Self {
        Self { progress, count, ended: Cell::new(0), before: Cell::new(0), last: Cell::new(0) }
    }

    /// Tells of each of the steps, of `units` in all, of the stage that is at work.
    pub(super) fn tell(&self, steps: RangeInclusive<u64>, units: u64) {
        for step in steps {
            let all = self.before.get() + units;
            let to_come = all * self.count.saturating_sub(self.ended.get() + 1) / (self.ended.get() + 1);
            (self.progress)(self.before.get() + step, all + to_come);
        }
        self.last.set(units);
    }

    /// The stage that was told of is over.
    pub(super) fn end(&self) {
        if self.last.get() > 0 {
            self.ended.set(self.ended.get() + 1);
            self.before.set(self.before.get() + self.last.take());
        }
    }
}
