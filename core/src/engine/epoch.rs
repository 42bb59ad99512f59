//! Quiescence: knowing that every request which might still use an old mapping has ended.
//!
//! A cluster that is freed may still be the target of a read or write that looked it up before. Requests are counted
//! in one of two epochs; who wants quiescence starts a new epoch and waits until the old one is empty. One counter up
//! and one down a request, and nothing else on the data path.

use std::cell::Cell;

use super::task::{Gate, Tasks, WaitList};

/// The two epochs of an engine.
#[derive(Default)]
pub(crate) struct Epochs {
    live: [Cell<u32>; 2],
    current: Cell<u8>,
    turn: Gate,
    emptied: WaitList,
}

impl Epochs {
    /// Counts a request; the answer goes to [`leave`](Self::leave).
    #[inline]
    pub(crate) fn enter(&self) -> u8 {
        let epoch = self.current.get();
        let live = self.live(epoch);
        live.set(live.get() + 1);
        epoch
    }

    /// How many live in an epoch, which is 0 or 1.
    #[inline(always)]
    fn live(&self, epoch: u8) -> &Cell<u32> {
        &self.live[usize::from(epoch & 1)]
    }

    /// Counts a request that ended.
    #[inline(always)]
    pub(crate) fn leave(&self, epoch: u8, tasks: &Tasks) {
        let live = self.live(epoch);
        live.set(live.get() - 1);
        if live.get() == 0 {
            self.emptied.notify(tasks);
        }
    }

    /// Counts what is no request and looks clusters up all the same, until the answer is dropped.
    pub(crate) fn count<'a>(&'a self, tasks: &'a Tasks) -> Counted<'a> {
        Counted { epochs: self, tasks, epoch: self.enter() }
    }

    /// Waits until every request that is in flight at the call has ended. Must not be called within a request.
    pub(crate) async fn quiesce(&self, tasks: &Tasks) {
        let _turn = self.turn.enter(tasks).await;
        let old = self.current.get();
        self.current.set(1 - old);
        self.emptied.wait(tasks, || (self.live[usize::from(old)].get() == 0).then_some(())).await;
    }
}

/// Something that counts as a request while it lives.
pub(crate) struct Counted<'a> {
    epochs: &'a Epochs,
    tasks: &'a Tasks,
    epoch: u8,
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.epochs.leave(self.epoch, self.tasks);
    }
}
