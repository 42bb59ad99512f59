//! Letting time pass where there is no io_uring: one thread and a heap of deadlines.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use drystone_core::intent::{Outcome, Token};

use crate::host::Carried;
use crate::pool::{Finished, Outbox};

/// Answers tokens when their time has come.
pub(crate) struct Timer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    outbox: Arc<Outbox>,
}

#[derive(Default)]
struct State {
    deadlines: BinaryHeap<Reverse<(Instant, Token)>>,
    hurried: bool,
    stopping: bool,
}

impl Timer {
    pub(crate) fn new(outbox: Arc<Outbox>) -> Self {
        let shared = Arc::new(Shared { state: Mutex::default(), changed: Condvar::new(), outbox });
        Self { shared, thread: None }
    }

    /// Answers `token` after `duration`.
    pub(crate) fn push(&mut self, token: Token, duration: Duration) {
        /// For durations that overflow the clock.
        const FAR: Duration = Duration::from_hours(24 * 365);
        let now = Instant::now();
        let deadline = now.checked_add(duration).unwrap_or(now + FAR);
        self.shared.state.lock().expect(LOCKED).deadlines.push(Reverse((deadline, token)));
        self.shared.changed.notify_one();
        if self.thread.is_none() {
            let shared = Arc::clone(&self.shared);
            let spawned =
                std::thread::Builder::new().name("drystone-timer".into()).spawn(move || shared.work());
            self.thread = Some(spawned.expect("the host gives this process one thread for timers"));
        }
    }
}

impl Timer {
    /// Has every timer ring at once, from now on.
    pub(crate) fn hurry(&self) {
        self.shared.state.lock().expect(LOCKED).hurried = true;
        self.shared.changed.notify_one();
    }
}

const LOCKED: &str = "nothing panics while it holds the deadlines";

impl Drop for Timer {
    fn drop(&mut self) {
        self.shared.state.lock().expect(LOCKED).stopping = true;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has said so already.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn work(&self) {
        let mut state = self.state.lock().expect(LOCKED);
        while !state.stopping {
            let Some(&Reverse((deadline, token))) = state.deadlines.peek() else {
                state = self.changed.wait(state).expect(LOCKED);
                continue;
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if state.hurried || left.is_zero() {
                state.deadlines.pop();
                self.outbox.put([Finished { token, carried: Carried::Outcome(Outcome::Done(Ok(()))) }]);
            } else {
                state = self.changed.wait_timeout(state, left).expect(LOCKED).0;
            }
        }
    }
}
