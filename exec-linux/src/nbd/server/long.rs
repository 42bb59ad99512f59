//! Orders about more than is done at once: they are carried out in steps, a client's one after the other.
//!
//! Between two steps everybody else has a turn, also where memory alone can tell what a range holds. A client that goes
//! leaves at most the step that is in flight behind.

use std::collections::VecDeque;

use drystone_core::engine::Op;
use drystone_core::intent::{Fua, ZeroFlags};
use drystone_core::protocol::nbd::limits::{CACHE_STEP, PAYLOAD_MAX};
use drystone_core::protocol::nbd::server::{Command, OrderId};

use super::Job;

/// Bytes of a longer range that are given up or made zero in one step, which ends at a multiple of that: no format has
/// larger units, and one that is cut in two would be kept.
const RANGE_STEP: u64 = 256 << 20;

/// An order in steps.
pub(super) struct Long {
    pub(super) job: Job,
    work: Work,
    at: u64,
    end: u64,
    /// Bytes of the step that is in flight or comes next.
    step: u64,
}

#[derive(Clone, Copy)]
enum Work {
    Cache,
    Trim,
    WriteZeroes(ZeroFlags, Fua),
}

impl Long {
    /// An order as one of these, where it is about enough bytes.
    pub(super) fn of(command: &Command, (offset, len): (u64, u64), job: Job) -> Option<Self> {
        let (work, enough, then_flush) = match command {
            Command::Cache => (Work::Cache, CACHE_STEP, false),
            Command::Trim(fua) => (Work::Trim, PAYLOAD_MAX.into(), *fua == Fua::Yes),
            Command::WriteZeroes(flags, fua) => (Work::WriteZeroes(*flags, *fua), PAYLOAD_MAX.into(), false),
            _ => return None,
        };
        let job = Job { then_flush, ..job };
        (len > enough).then(|| Self { job, work, at: offset, end: offset + len, step: 0 }.measured())
    }

    /// The same with the length of its next step.
    fn measured(self) -> Self {
        let most = match self.work {
            Work::Cache => CACHE_STEP,
            Work::Trim | Work::WriteZeroes(..) => RANGE_STEP - self.at % RANGE_STEP,
        };
        Self { step: most.min(self.end - self.at), ..self }
    }

    /// The next step: what to do, whether that reads, and the range.
    pub(super) fn step(&self) -> ((Op, bool), u64, u64) {
        let what = match self.work {
            Work::Cache => (Op::Read, true),
            Work::Trim => (Op::Discard, false),
            Work::WriteZeroes(flags, fua) => (Op::WriteZeroes(flags, fua), false),
        };
        (what, self.at, self.step)
    }
}

/// The orders in steps of one client; the first is being carried out.
#[derive(Default)]
pub(super) struct Longs(VecDeque<Long>);

impl Longs {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes an order; tells whether it is to begin at once.
    pub(super) fn push(&mut self, long: Long) -> bool {
        self.0.push_back(long);
        self.0.len() == 1
    }

    pub(super) fn first(&self) -> Option<&Long> {
        self.0.front()
    }

    /// Whether a request is the step of the order that is being carried out.
    pub(super) fn is_at(&self, order: OrderId) -> bool {
        self.first().is_some_and(|long| long.job.order == order)
    }

    /// Takes note of what came of the step in flight. Tells whether its order goes on; else the next one is the first.
    pub(super) fn advance(&mut self, worked: bool) -> bool {
        let first = self.0.pop_front().expect("somebody has asked which it is");
        let at = first.at + first.step;
        if !worked || at >= first.end {
            return false;
        }
        self.0.push_front(Long { at, ..first }.measured());
        true
    }

    /// Has nothing read ahead any more: it would be for nobody.
    pub(super) fn hurry(&mut self) {
        for long in self.0.iter_mut().filter(|long| matches!(long.work, Work::Cache)) {
            long.end = long.end.min(long.at + long.step);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(command: &Command, offset: u64, len: u64) -> Option<Vec<(u64, u64)>> {
        let job = Job { client: 1, order: OrderId(3), then_flush: false };
        let mut longs = Longs::default();
        assert!(longs.push(Long::of(command, (offset, len), job)?) && longs.is_at(OrderId(3)));
        let mut seen = Vec::new();
        loop {
            let (_, at, step) = longs.first().expect("it goes on").step();
            seen.push((at, step));
            if !longs.advance(true) {
                assert!(longs.is_empty());
                return Some(seen);
            }
        }
    }

    #[test]
    fn steps_end_where_no_unit_of_a_format_is_cut() {
        const MIB: u64 = 1 << 20;
        let zeroes = Command::WriteZeroes(ZeroFlags { may_unmap: true, no_fallback: false }, Fua::No);
        for (command, offset, len, expected) in [
            (&zeroes, 0, 32 * MIB, None),
            (&zeroes, 5, 33 * MIB, Some(vec![(5, 33 * MIB)])),
            (
                &Command::Trim(Fua::No),
                255 * MIB,
                258 * MIB,
                Some(vec![(255 * MIB, MIB), (256 * MIB, 256 * MIB), (512 * MIB, MIB)]),
            ),
            (&Command::Cache, 7, MIB, None),
            (&Command::Cache, 7, MIB + 1, Some(vec![(7, MIB), (7 + MIB, 1)])),
        ] {
            assert_eq!(steps(command, offset, len), expected, "{command:?}, {len} bytes at {offset}");
        }
    }

    #[test]
    fn what_fails_or_is_for_nobody_goes_no_further() {
        let job = |order| Job { client: 1, order: OrderId(order), then_flush: false };
        let mut longs = Longs::default();
        assert!(longs.push(Long::of(&Command::Trim(Fua::Yes), (0, 1 << 40), job(0)).expect("it is long")));
        assert!(!longs.push(Long::of(&Command::Cache, (0, 1 << 25), job(1)).expect("it is long")));
        assert!(longs.first().is_some_and(|long| long.job.then_flush));
        assert!(longs.advance(true) && !longs.advance(false) && longs.is_at(OrderId(1)));
        assert!(longs.advance(true));
        longs.hurry();
        assert!(!longs.advance(true) && longs.is_empty());
    }
}
