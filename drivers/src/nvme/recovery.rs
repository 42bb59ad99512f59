//! What a queue pair does when it is not simply running: making its queues, timeouts, resets, and its end.
//!
//! ```text
//!   Detached ──▶ CreatingCompletion ──▶ CreatingSubmission ──▶ Running
//!      ▲                                                          │
//!      └───────────── the epoch changed: the controller was reset ┘
//! ```
//!
//! Nothing is lost in a reset: what was in flight stays in its slot with its memory, and is sent again once the queues are
//! there again, a few times at the most. A command that was completed, but not seen to be, is then done twice; every
//! command of this driver may be.

use std::sync::atomic::Ordering;
use std::time::Duration;

use smallvec::SmallVec;

use super::admin::Call;
use super::error::{NvmeError, RequestError};
use super::layout::{Command, Priority};
use super::queue_pair::{ATTEMPTS_MAX, QueuePair, rings};
use super::request::Answer;
use super::slot::{Owner, UNSEEN, Waiting, abandon};

/// How often a running queue pair goes on with what the controller tells by itself.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Where a queue pair is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// The controller knows nothing of the queues.
    Detached,
    /// The completion queue is being created.
    CreatingCompletion(Call),
    /// The submission queue is being created.
    CreatingSubmission(Call),
    /// Requests go to the controller.
    Running,
    /// Every request is answered with this.
    Failed(RequestError),
}

impl QueuePair {
    /// Goes on with what is not the way of requests: to be called from time to time while anything is in flight, and
    /// often while requests wait for the queues to be made.
    pub fn tick(&mut self, mut done: impl FnMut(Answer)) {
        self.now = self.device.transport.now();
        match self.state {
            State::Running => self.supervise(),
            State::Failed(_) => {}
            _ => self.attach(&mut done),
        }
    }

    /// Goes over to another state. Whatever that is, `running_in` says the same.
    pub(super) fn enter(&mut self, state: State) {
        self.state = state;
        self.running_in = if state == State::Running { self.epoch_seen } else { 0 };
    }

    /// Whether requests go to the controller at once; while not, [`tick`](Self::tick) wants to be called.
    pub fn is_running(&self) -> bool {
        self.state == State::Running
    }

    /// Looks for commands that take too long, from time to time.
    fn supervise(&mut self) {
        if self.now >= self.looked + LOOK_EVERY {
            self.looked = self.now;
            if let Some(mut controller) = self.device.try_controller() {
                controller.poll();
            }
        }
        let timeout = self.device.options().timeout;
        if self.now < self.scanned + timeout / 8 {
            return;
        }
        self.scanned = self.now;
        let mut overdue = SmallVec::<[u16; 8]>::new();
        for (number, slot) in (0..).zip(&mut self.slots) {
            match slot.owner {
                Owner::Nobody => {}
                // Its time begins now: nobody looks while nothing is in flight, and what was the time then says nothing.
                _ if slot.since == UNSEEN => slot.since = self.now,
                _ if slot.since + timeout <= self.now => overdue.push(number),
                _ => {}
            }
        }
        if !overdue.is_empty() {
            self.chase(&overdue);
        }
    }

    /// Has commands aborted that take too long; the controller is reset when that did not help either.
    #[cold]
    fn chase(&mut self, overdue: &[u16]) {
        let device = self.device.clone();
        let mut controller = device.controller();
        // Is it there at all?
        if let Err(error) = controller.examine() {
            match error {
                NvmeError::Removed => controller.fail(error),
                error => controller.reset(error),
            }
            return;
        }
        let stubborn = overdue.iter().any(|number| self.slots[usize::from(*number)].aborting);
        if stubborn {
            let within = device.options().timeout;
            return controller.reset(NvmeError::Stuck { what: "complete or abort a command", within });
        }
        for number in overdue {
            let slot = &mut self.slots[usize::from(*number)];
            if controller.abort(self.lease.number, slot.cid) {
                self.counters.aborts += 1;
            }
            slot.aborting = true;
            slot.since = self.now;
        }
    }

    /// Has the controller reset after something that makes no sense.
    #[cold]
    pub(super) fn fault(&mut self, error: NvmeError) {
        self.device.controller().reset(error);
        self.enter(State::Detached);
    }

    /// Goes on with making the queues, unless another thread is at the controller.
    #[cold]
    fn attach(&mut self, done: &mut impl FnMut(Answer)) {
        let device = self.device.clone();
        let Some(mut controller) = device.try_controller() else { return };
        controller.poll();
        if controller.failure().is_some() {
            let isolated = controller.is_isolated();
            drop(controller);
            return self.give_up(RequestError::Removed, isolated, done);
        }
        let epoch = self.epoch.load(Ordering::Acquire);
        if epoch != self.epoch_seen {
            self.enter(State::Detached);
        }
        let (queue, entries) = (self.lease.number, self.submission.len());
        match self.state {
            State::Detached if controller.is_ready() => {
                self.epoch_seen = epoch;
                let shadow = controller.shadow().cloned();
                (self.submission, self.completion) =
                    rings(&device, queue, &self.memory, entries, shadow.as_ref());
                let at = self.completion.iova();
                let command = Command::create_completion_queue(queue, entries, at, self.vector());
                if let Some(call) = controller.call("Create I/O Completion Queue", command) {
                    self.enter(State::CreatingCompletion(call));
                }
            }
            State::CreatingCompletion(call) => match controller.answer(call) {
                None => {}
                Some(Err(error)) => {
                    drop(controller);
                    self.refused(error, done);
                }
                Some(Ok(_)) => {
                    let at = self.submission.iova();
                    // Without weights all are alike, and the field has to be 0.
                    let weighted = controller.is_weighted();
                    let priority = if weighted { self.priority } else { Priority::Urgent };
                    let command = Command::create_submission_queue(queue, entries, at, priority);
                    if let Some(call) = controller.call("Create I/O Submission Queue", command) {
                        self.enter(State::CreatingSubmission(call));
                    }
                }
            },
            State::CreatingSubmission(call) => match controller.answer(call) {
                None => {}
                Some(Err(error)) => {
                    drop(controller);
                    self.refused(error, done);
                }
                Some(Ok(_)) => {
                    drop(controller);
                    self.attached(done);
                }
            },
            _ => {}
        }
    }

    /// Sends everything that was in flight again, and what waits.
    fn attached(&mut self, done: &mut impl FnMut(Answer)) {
        self.enter(State::Running);
        self.counters.attached += 1;
        (self.scanned, self.looked) = (self.now, self.now);
        for cid in 0..self.slots.len() as u16 {
            let slot = &self.slots[usize::from(cid)];
            match slot.owner {
                Owner::Nobody => {}
                // The reset has ended whatever the controller was doing with its memory.
                _ if slot.attempts >= ATTEMPTS_MAX => self.finish(cid, Err(RequestError::TimedOut), done),
                _ => self.send_again(cid),
            }
        }
        self.refill(done);
        self.ring();
    }

    /// The controller will not make the queues.
    fn refused(&mut self, error: NvmeError, done: &mut impl FnMut(Answer)) {
        match error {
            NvmeError::Lost { .. } => self.enter(State::Detached),
            NvmeError::Admin { status, .. } => self.give_up(RequestError::Status(status), true, done),
            _ => self.give_up(RequestError::Removed, true, done),
        }
    }

    /// Answers everything with an error. Without isolation the controller may still write to what is in flight: then who
    /// asked gets other memory of the same size.
    fn give_up(&mut self, error: RequestError, isolated: bool, done: &mut impl FnMut(Answer)) {
        self.enter(State::Failed(error));
        for cid in 0..self.slots.len() as u16 {
            let slot = &mut self.slots[usize::from(cid)];
            match slot.owner {
                _ if isolated => {}
                Owner::Whole { .. } => abandon(&mut slot.data),
                Owner::Part { split } => self.splits[split].abandon(),
                Owner::Nobody => {}
            }
            if !matches!(slot.owner, Owner::Nobody) {
                self.finish(cid, Err(error), done);
            }
        }
        while let Some(waiting) = self.waiting.pop_front() {
            match waiting {
                Waiting::Fresh(_, request) => {
                    let (tag, op, data) = (request.tag, request.op, request.data);
                    done(Answer { tag, op, data, result: Err(error) });
                }
                Waiting::Rest(split) => self.end_split(split, error, isolated, done),
            }
        }
        if !isolated {
            // Never freed: the controller may still look at it.
            std::mem::forget(self.memory.clone());
        }
    }

    /// Deletes the queues, so that their memory may go. Whatever is in flight has nobody any more.
    fn detach(&mut self) -> bool {
        while matches!(self.state, State::CreatingCompletion(_) | State::CreatingSubmission(_)) {
            self.tick(drop);
            self.device.transport.pause();
        }
        if self.state == State::Running && self.epoch.load(Ordering::Acquire) == self.epoch_seen {
            let queue = self.lease.number;
            let deleted = self
                .device
                .run("Delete I/O Submission Queue", Command::delete_submission_queue(queue))
                .and_then(|_| {
                    self.device.run("Delete I/O Completion Queue", Command::delete_completion_queue(queue))
                });
            match deleted {
                Ok(_) => return true,
                Err(error) => self.device.controller().reset(error),
            }
        }
        if self.free.len() == self.slots.len() && matches!(self.state, State::Failed(_)) {
            return true;
        }
        self.device.settle()
    }
}

impl Drop for QueuePair {
    fn drop(&mut self) {
        if !self.detach() {
            // The controller may still look at all this, and write to what was in flight.
            std::mem::forget(self.memory.clone());
            std::mem::forget(std::mem::take(&mut self.slots));
            std::mem::forget(std::mem::take(&mut self.splits));
        }
    }
}
