//! Threads that carry out actions with blocking calls, and run CPU-heavy work.
//!
//! Threads start when there is work and nobody idle, up to a bound. What they finish lies in an [`Outbox`] until the
//! engine's thread takes it.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Instant;

use drystone_core::compute::Workspace;
use drystone_core::intent::{Action, Outcome, Token};

use crate::doorbell::Doorbell;
use crate::gather::Gathered;
use crate::host::{Carried, Leaves, carry_out};
use crate::leaf::OpenLeaf;

/// Stands for the token of a job that has no answer any more.
const NOBODY: Token = Token(u64::MAX);

/// Something for a thread to do.
pub(crate) enum Job {
    /// One action.
    Action(Token, Action, Leaves),
    /// The writes that wait for a leaf.
    Writes(Arc<OpenLeaf>),
}

/// What came of it.
pub(crate) struct Finished {
    pub(crate) token: Token,
    pub(crate) carried: Carried,
}

/// Where other threads put what they finished.
pub(crate) struct Outbox {
    finished: Mutex<Vec<Finished>>,
    bell: Arc<Doorbell>,
}

impl Outbox {
    pub(crate) fn new(bell: Arc<Doorbell>) -> Self {
        Self { finished: Mutex::default(), bell }
    }

    pub(crate) fn put(&self, finished: impl IntoIterator<Item = Finished>) {
        self.finished.lock().expect("putting and taking do not panic").extend(finished);
        self.bell.ring();
    }

    /// Moves everything into `out`, which is empty; both keep their memory.
    pub(crate) fn take(&self, out: &mut Vec<Finished>) {
        std::mem::swap(&mut *self.finished.lock().expect("putting and taking do not panic"), out);
    }
}

/// A bounded number of threads on one queue.
pub(crate) struct Pool {
    /// What its threads are called, before their number.
    name: &'static str,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    threads_max: usize,
}

struct Shared {
    state: Mutex<State>,
    work: Condvar,
    outbox: Arc<Outbox>,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    /// Threads that wait for work, less those that a job was queued for already.
    idle: usize,
    stopping: bool,
}

impl Pool {
    pub(crate) fn new(name: &'static str, threads_max: usize, outbox: Arc<Outbox>) -> Self {
        let shared = Arc::new(Shared { state: Mutex::default(), work: Condvar::new(), outbox });
        Self { name, shared, threads: Vec::new(), threads_max: threads_max.max(1) }
    }

    /// Queues a job. Its caller bounds how many are queued.
    pub(crate) fn push(&mut self, job: Job) {
        let mut state = self.shared.lock();
        state.jobs.push_back(job);
        if state.idle > 0 {
            state.idle -= 1;
            drop(state);
            self.shared.work.notify_one();
            return;
        }
        drop(state);
        if self.threads.len() < self.threads_max {
            self.start_thread();
        }
    }

    fn start_thread(&mut self) {
        let shared = Arc::clone(&self.shared);
        let name = format!("{}-{}", self.name, self.threads.len());
        match std::thread::Builder::new().name(name).spawn(move || shared.work()) {
            Ok(thread) => self.threads.push(thread),
            // The threads that there are will come to it.
            Err(_) if !self.threads.is_empty() => {}
            Err(error) => panic!("the host gives this process not even one thread: {error}"),
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.stopping = true;
        state.jobs.clear();
        drop(state);
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so already.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no job runs while the queue is locked")
    }

    fn work(&self) {
        let mut workspace = Workspace::default();
        while let Some(job) = self.next() {
            let done = catch_unwind(AssertUnwindSafe(|| self.carry_out(job, &mut workspace)));
            if let Err(panic) = done {
                // Whoever waits for an answer must not wait for ever.
                return self.outbox.put([Finished { token: NOBODY, carried: Carried::Panicked(panic) }]);
            }
        }
    }

    fn carry_out(&self, job: Job, workspace: &mut Workspace) {
        match job {
            Job::Action(token, Action::Compute(work), _) => {
                let start = Instant::now();
                let computed = Outcome::Computed(work.run(workspace).within(start.elapsed()));
                self.outbox.put([Finished { token, carried: Carried::Outcome(computed) }]);
            }
            Job::Action(token, action, leaves) => {
                self.outbox.put([Finished { token, carried: carry_out(leaves, action) }]);
            }
            Job::Writes(leaf) => leaf.write_gathered(|run| self.outbox.put(run.map(finished))),
        }
    }

    /// The next job; nothing once the pool stops.
    fn next(&self) -> Option<Job> {
        let mut state = self.lock();
        loop {
            if state.stopping {
                return None;
            }
            if let Some(job) = state.jobs.pop_front() {
                return Some(job);
            }
            state.idle += 1;
            state = self.work.wait(state).expect("no job runs while the queue is locked");
        }
    }
}

fn finished(Gathered { token, data, result, .. }: Gathered) -> Finished {
    Finished { token, carried: Carried::Outcome(Outcome::Moved { data, result }) }
}

#[cfg(test)]
mod tests {
    use drystone_core::buf::Buf;
    use drystone_core::compute::{Codec, Compute};

    use super::*;

    #[test]
    fn a_panic_is_handed_over_like_an_answer() {
        let bell = Arc::new(Doorbell::new().expect("an eventfd"));
        let outbox = Arc::new(Outbox::new(Arc::clone(&bell)));
        let mut pool = Pool::new("codec", 1, Arc::clone(&outbox));
        // No host has that much memory.
        let work = Compute::Compress { codec: Codec::Zlib, plain: Buf::zeroed(1), limit: usize::MAX };
        pool.push(Job::Action(Token(1), Action::Compute(Box::new(work)), Leaves::default()));
        let mut finished = Vec::new();
        while finished.is_empty() {
            std::thread::yield_now();
            outbox.take(&mut finished);
        }
        assert!(matches!(finished[0].carried, Carried::Panicked(_)));
    }
}
