//! One answer from the engine's thread to another: waited for by blocking, or as a future of any runtime.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use drystone_core::buf::BufList;
use drystone_core::error::{Error, Result};

use crate::sync::{Condvar, Mutex, MutexGuard};

/// Makes both ends of an answer.
pub(crate) fn promise<T: Cancelled>() -> (Answer<T>, Ticket<T>) {
    let promise = Arc::new(Promise { state: Mutex::new(State::Pending(None)), given: Condvar::new() });
    (Answer(Some(Arc::clone(&promise))), Ticket(promise))
}

struct Promise<T> {
    state: Mutex<State<T>>,
    given: Condvar,
}

enum State<T> {
    Pending(Option<Waker>),
    Given(T),
    Taken,
}

impl<T> Promise<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().expect("giving and taking do not panic")
    }

    fn give(&self, value: T) {
        let before = std::mem::replace(&mut *self.lock(), State::Given(value));
        self.given.notify_one();
        if let State::Pending(Some(waker)) = before {
            waker.wake();
        }
    }
}

/// What an answer is when nobody gives one.
pub(crate) trait Cancelled {
    fn cancelled() -> Self;
}

impl<T> Cancelled for Result<T> {
    fn cancelled() -> Self {
        Err(Box::new(Error::Cancelled))
    }
}

impl Cancelled for (BufList, Result<()>) {
    fn cancelled() -> Self {
        (BufList::new(), Err(Box::new(Error::Cancelled)))
    }
}

/// The end that gives. Dropped, it says that the command was cancelled.
pub(crate) struct Answer<T: Cancelled>(Option<Arc<Promise<T>>>);

impl<T: Cancelled> Answer<T> {
    pub(crate) fn give(mut self, value: T) {
        if let Some(promise) = self.0.take() {
            promise.give(value);
        }
    }
}

impl<T: Cancelled> Drop for Answer<T> {
    fn drop(&mut self) {
        if let Some(promise) = self.0.take() {
            promise.give(T::cancelled());
        }
    }
}

/// A request that another thread is carrying out; a future, or something to [`wait`](Self::wait) for.
///
/// Dropping it does not stop the request.
#[must_use = "the request's answer comes through this"]
pub struct Ticket<T>(Arc<Promise<T>>);

impl<T> Ticket<T> {
    /// Blocks until the answer is there. Not for the engine's own thread, which would wait for itself.
    pub fn wait(self) -> T {
        let mut state = self.0.lock();
        loop {
            match std::mem::replace(&mut *state, State::Taken) {
                State::Given(value) => return value,
                State::Taken => unreachable!("a ticket is waited for once"),
                pending => *state = pending,
            }
            state = self.0.given.wait(state).expect("giving and taking do not panic");
        }
    }
}

impl<T> Future for Ticket<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let mut state = self.0.lock();
        match std::mem::replace(&mut *state, State::Taken) {
            State::Given(value) => Poll::Ready(value),
            State::Pending(_) => {
                *state = State::Pending(Some(cx.waker().clone()));
                Poll::Pending
            }
            State::Taken => panic!("a ticket is not polled after its end"),
        }
    }
}
