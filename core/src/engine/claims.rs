//! Claims on guest ranges: one change of mapping at a time for each unit of allocation.

use std::cell::{Cell, RefCell};

use smallvec::SmallVec;

use super::task::{Tasks, WaitList};

/// The ranges of one node that somebody holds.
#[derive(Default)]
pub(crate) struct Claims {
    held: RefCell<SmallVec<[(u64, u64, u64); 8]>>,
    next: Cell<u64>,
    /// How many wait for all ranges: nobody is given one before them.
    wanting_all: Cell<u32>,
    freed: WaitList,
}

impl Claims {
    /// Waits until nobody holds a part of `[start, end)`, and takes it.
    pub(crate) async fn take<'a>(&'a self, tasks: &'a Tasks, start: u64, end: u64) -> Claim<'a> {
        let number = self.freed.wait(tasks, || self.try_take(start, end)).await;
        Claim { claims: self, tasks, number }
    }

    /// Waits until nobody holds anything, and takes everything. Claims that come meanwhile wait, so that a busy guest
    /// does not keep this waiting; so who holds a claim must not wait for another one of the same node.
    pub(crate) async fn take_all<'a>(&'a self, tasks: &'a Tasks) -> Claim<'a> {
        let wanting = Wanting::new(self, tasks);
        let all = || {
            let free = self.held.borrow().is_empty();
            free.then(|| self.add(0, u64::MAX))
        };
        let number = self.freed.wait(tasks, all).await;
        drop(wanting);
        Claim { claims: self, tasks, number }
    }

    fn try_take(&self, start: u64, end: u64) -> Option<u64> {
        if self.wanting_all.get() > 0 {
            return None;
        }
        let held = self.held.borrow();
        if held.iter().any(|&(s, e, _)| s < end && start < e) {
            return None;
        }
        drop(held);
        Some(self.add(start, end))
    }

    fn add(&self, start: u64, end: u64) -> u64 {
        let number = self.next.get();
        self.next.set(number + 1);
        self.held.borrow_mut().push((start, end, number));
        number
    }
}

/// Keeps others from claims while it lives.
struct Wanting<'a>(&'a Claims, &'a Tasks);

impl<'a> Wanting<'a> {
    fn new(claims: &'a Claims, tasks: &'a Tasks) -> Self {
        claims.wanting_all.set(claims.wanting_all.get() + 1);
        Self(claims, tasks)
    }
}

impl Drop for Wanting<'_> {
    fn drop(&mut self) {
        self.0.wanting_all.set(self.0.wanting_all.get() - 1);
        self.0.freed.notify(self.1);
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
