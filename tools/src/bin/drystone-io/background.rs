//! Requests that go on while commands are carried out.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

type Task = Pin<Box<dyn Future<Output = ()>>>;

/// Futures that are polled whenever the shell waits for something.
#[derive(Default)]
pub struct Background {
    tasks: RefCell<Vec<Task>>,
    waker: RefCell<Option<Waker>>,
}

impl Background {
    /// Begins a task; its first steps are taken when this returns.
    pub async fn start(&self, task: impl Future<Output = ()> + 'static) {
        self.tasks.borrow_mut().push(Box::pin(task));
        poll_fn(|cx| {
            self.poll(cx);
            Poll::Ready(())
        })
        .await;
    }

    /// Waits for a future, and lets the tasks go on meanwhile.
    pub async fn beside<T>(&self, future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        poll_fn(|cx| {
            let value = future.as_mut().poll(cx);
            if value.is_pending() {
                self.poll(cx);
            }
            value
        })
        .await
    }

    /// Waits until a condition holds, which is looked at after every step of a task and after [`wake`](Self::wake); or
    /// until no task is left that could bring it about. Tells whether it holds.
    pub async fn until(&self, condition: impl Fn() -> bool) -> bool {
        poll_fn(|cx| {
            self.poll(cx);
            match condition() {
                true => Poll::Ready(true),
                false if self.tasks.borrow().is_empty() => Poll::Ready(false),
                false => Poll::Pending,
            }
        })
        .await
    }

    /// Waits until all tasks have ended.
    pub async fn all(&self) {
        self.until(|| false).await;
    }

    /// Has whoever waits look again.
    pub fn wake(&self) {
        let waker = self.waker.borrow_mut().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn poll(&self, cx: &mut Context<'_>) {
        *self.waker.borrow_mut() = Some(cx.waker().clone());
        let mut tasks = std::mem::take(&mut *self.tasks.borrow_mut());
        tasks.retain_mut(|task| task.as_mut().poll(cx).is_pending());
        self.tasks.borrow_mut().append(&mut tasks);
    }
}
