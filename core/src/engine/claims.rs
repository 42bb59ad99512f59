//! Claims on guest ranges: one change of mapping at a time for each unit of allocation.

use std::cell::{Cell, RefCell};

use smallvec::SmallVec;

use super::task::{Tasks, WaitList};

/// The ranges of one node that somebody holds.
#[derive(Default)]
pub(crate) struct Claims {
    held: RefCell<SmallVec<[(u64, u64, u64); 8]>>,
    next: Cell<u64>,
    freed: WaitList,
}

impl Claims {
    /// Waits until nobody holds a part of `[start, end)`, and takes it.
    pub(crate) async fn take<'a>(&'a self, tasks: &'a Tasks, start: u64, end: u64) -> Claim<'a> {
        let number = self.freed.wait(tasks, || self.try_take(start, end)).await;
        Claim { claims: self, tasks, number }
    }

    fn try_take(&self, start: u64, end: u64) -> Option<u64> {
        let mut held = self.held.borrow_mut();
        if held.iter().any(|&(s, e, _)| s < end && start < e) {
            return None;
        }
        let number = self.next.get();
        self.next.set(number + 1);
        held.push((start, end, number));
        Some(number)
    }
}

/// A held range; given back when dropped.
pub(crate) struct Claim<'a> {
    claims: &'a Claims,
    tasks: &'a Tasks,
    number: u64,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.claims.held.borrow_mut().retain(|&mut (_, _, number)| number != self.number);
        self.claims.freed.notify(self.tasks);
    }
}
