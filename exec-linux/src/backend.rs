//! Carries out intents: decides which go to threads, and brings back what came of them.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use drystone_core::intent::{Action, Intent, Outcome, Token};
use rustix::event::{PollFd, PollFlags, poll};

use crate::config::Config;
use crate::doorbell::Doorbell;
use crate::host::{Carried, Host};
use crate::pool::{Finished, Job, Outbox, Pool};
use crate::timer::Timer;

/// Jobs with the threads at the most, waiting and running; further intents stay with the engine.
const JOBS_MAX: usize = 1024;

/// Threads for blocking calls at the most: enough for a disk's queue, few enough to be cheap.
const BLOCKING_THREADS_MAX: usize = 32;

/// What carries out the intents of one engine.
pub struct Backend {
    host: Host,
    blocking: Pool,
    compute: Pool,
    timer: Timer,
    bell: Arc<Doorbell>,
    outbox: Arc<Outbox>,
    /// Answers that were there at once.
    ready: VecDeque<(Token, Outcome)>,
    /// Empty between calls; kept for its memory.
    finished: Vec<Finished>,
    jobs: usize,
}

impl Backend {
    /// Starts a backend with nothing open.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(config: &Config) -> io::Result<Self> {
        let bell = Arc::new(Doorbell::new()?);
        let outbox = Arc::new(Outbox::new(Arc::clone(&bell)));
        let workers = match config.workers {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            workers => workers,
        };
        Ok(Self {
            host: Host::new(),
            blocking: Pool::new(BLOCKING_THREADS_MAX, Arc::clone(&outbox)),
            compute: Pool::new(workers, Arc::clone(&outbox)),
            timer: Timer::new(Arc::clone(&outbox)),
            bell,
            outbox,
            ready: VecDeque::new(),
            finished: Vec::new(),
            jobs: 0,
        })
    }

    /// Wakes who waits for this backend, from any thread.
    pub(crate) fn bell(&self) -> Arc<Doorbell> {
        Arc::clone(&self.bell)
    }

    /// Whether another intent may be pushed.
    pub fn has_room(&self) -> bool {
        self.jobs < JOBS_MAX
    }

    /// Tells whether nothing is in flight.
    pub fn is_idle(&self) -> bool {
        self.jobs == 0 && self.ready.is_empty()
    }

    /// Takes an intent; it may begin only with [`submit`](Self::submit).
    pub fn push(&mut self, intent: Intent) {
        let Intent { token, action, .. } = intent;
        let leaves = self.host.leaves_of(&action);
        match action {
            Action::Close { leaf } => {
                let outcome = Outcome::Done(self.host.close(leaf));
                self.ready.push_back((token, outcome));
                return;
            }
            Action::Sleep { duration } => self.timer.push(token, duration),
            Action::Compute(_) => self.compute.push(Job { token, action, leaves }),
            action => self.blocking.push(Job { token, action, leaves }),
        }
        self.jobs += 1;
    }

    /// Begins what was pushed.
    ///
    /// # Errors
    /// The kernel's.
    pub fn submit(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// Hands over what came of earlier intents. Does not wait. Tells whether there was anything.
    pub fn reap(&mut self, mut done: impl FnMut(Token, Outcome)) -> bool {
        let mut any = false;
        while let Some((token, outcome)) = self.ready.pop_front() {
            done(token, outcome);
            any = true;
        }
        if !self.bell.answer() {
            return any;
        }
        let mut finished = std::mem::take(&mut self.finished);
        self.outbox.take(&mut finished);
        for Finished { token, carried } in finished.drain(..) {
            self.jobs -= 1;
            let outcome = match carried {
                Carried::Outcome(outcome) => outcome,
                Carried::Opened(leaf, info) => Outcome::Opened(Ok(self.host.admit(leaf, info))),
            };
            done(token, outcome);
        }
        self.finished = finished;
        true
    }

    /// Waits until something came of an intent, or somebody rang.
    ///
    /// # Errors
    /// The kernel's.
    pub fn wait(&mut self) -> io::Result<()> {
        if !self.ready.is_empty() {
            return Ok(());
        }
        let mut fds = [PollFd::new(&self.bell, PollFlags::IN)];
        rustix::io::retry_on_intr(|| poll(&mut fds, None))?;
        Ok(())
    }
}

impl AsFd for Backend {
    /// A descriptor that is readable while something came of an intent.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}
