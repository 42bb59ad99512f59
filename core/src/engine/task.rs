//! Coroutines: how formats, filters and jobs wait without a runtime.
//!
//! A task is polled by the engine alone, with a waker that does nothing. It waits for an answer to an intent or a
//! request ([`Answers`]), or for another task ([`WaitList`]); whoever brings about what is waited for wakes the task
//! by its number. Two kinds of task exist: [`Task::Once`] is boxed for a job or a rare branch, [`Task::Serve`] is a
//! reused slot for the requests that the synchronous data path cannot answer, so that they allocate nothing.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use slab::Slab;

use super::path::Piece;

/// Number of a task.
pub(crate) type TaskId = u32;

/// A boxed coroutine, for control operations and rare branches.
pub type LocalFuture<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// A slot whose coroutine can be started again with another piece, in the same memory.
pub(crate) trait Serve {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()>;
    fn restart(&mut self, piece: Piece);
}

/// The one implementation of [`Serve`]: `make` names the coroutine's type without naming it.
pub(crate) struct ServeSlot<M, F> {
    make: M,
    coroutine: Pin<Box<Option<F>>>,
}

impl<M: Fn(Piece) -> F, F: Future<Output = ()>> ServeSlot<M, F> {
    pub(crate) fn new(make: M) -> Self {
        Self { make, coroutine: Box::pin(None) }
    }
}

impl<M: Fn(Piece) -> F, F: Future<Output = ()>> Serve for ServeSlot<M, F> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let coroutine =
            self.coroutine.as_mut().as_pin_mut().expect("a slot is polled between restart and end");
        let state = coroutine.poll(cx);
        if state.is_ready() {
            self.coroutine.set(None);
        }
        state
    }

    fn restart(&mut self, piece: Piece) {
        let coroutine = (self.make)(piece);
        self.coroutine.set(Some(coroutine));
    }
}

/// A coroutine in its slot.
pub(crate) enum Task {
    Once(LocalFuture<'static, ()>),
    Serve(Box<dyn Serve>),
}

struct TaskSlot {
    /// Out of its slot while it is being polled.
    task: Option<Task>,
    queued: bool,
}

/// All coroutines of an engine.
#[derive(Default)]
pub(crate) struct Tasks {
    slots: RefCell<Slab<TaskSlot>>,
    ready: RefCell<VecDeque<TaskId>>,
    idle: RefCell<Vec<Box<dyn Serve>>>,
    current: Cell<TaskId>,
    running: Cell<bool>,
    started: Cell<u64>,
}

impl Tasks {
    /// The task that is being polled.
    pub(crate) fn current(&self) -> TaskId {
        self.current.get()
    }

    /// Number of coroutines alive.
    pub(crate) fn len(&self) -> usize {
        self.slots.borrow().len()
    }

    /// Number of coroutines started so far.
    pub(crate) fn started(&self) -> u64 {
        self.started.get()
    }

    /// Starts a coroutine that ends by itself.
    pub(crate) fn spawn(&self, coroutine: LocalFuture<'static, ()>) {
        self.insert(Task::Once(coroutine));
    }

    /// Starts the serving coroutine for `piece` in an idle slot, or in one that `make` adds.
    pub(crate) fn serve(&self, piece: Piece, make: impl FnOnce() -> Box<dyn Serve>) {
        let idle = self.idle.borrow_mut().pop();
        let mut slot = idle.unwrap_or_else(make);
        slot.restart(piece);
        self.insert(Task::Serve(slot));
    }

    fn insert(&self, task: Task) {
        self.started.set(self.started.get() + 1);
        let id = self.slots.borrow_mut().insert(TaskSlot { task: Some(task), queued: false });
        self.wake(TaskId::try_from(id).expect("fewer than 2^32 tasks"));
    }

    /// Has the task polled before the engine returns to its caller.
    pub(crate) fn wake(&self, id: TaskId) {
        if let Some(slot) = self.slots.borrow_mut().get_mut(id as usize)
            && !slot.queued
        {
            slot.queued = true;
            self.ready.borrow_mut().push_back(id);
        }
    }

    /// Polls tasks until all of them wait. Does nothing when a task of this engine is what calls.
    #[inline(always)]
    pub(crate) fn run(&self) {
        if !self.ready.borrow().is_empty() {
            self.run_ready();
        }
    }

    fn run_ready(&self) {
        if self.running.replace(true) {
            return;
        }
        let mut cx = Context::from_waker(Waker::noop());
        loop {
            let next = self.ready.borrow_mut().pop_front();
            let Some(id) = next else { break };
            self.poll(id, &mut cx);
        }
        self.running.set(false);
    }

    fn poll(&self, id: TaskId, cx: &mut Context<'_>) {
        let task = {
            let mut slots = self.slots.borrow_mut();
            // A task that woke itself while it came to its end is gone.
            let Some(slot) = slots.get_mut(id as usize) else { return };
            slot.queued = false;
            slot.task.take()
        };
        let mut task = task.expect("a task is not polled from within itself");
        self.current.set(id);
        let state = match &mut task {
            Task::Once(coroutine) => coroutine.as_mut().poll(cx),
            Task::Serve(slot) => slot.poll(cx),
        };
        if state.is_pending() {
            self.slots.borrow_mut()[id as usize].task = Some(task);
            return;
        }
        self.slots.borrow_mut().remove(id as usize);
        if let Task::Serve(slot) = task {
            self.idle.borrow_mut().push(slot);
        }
    }

    /// Drops every coroutine; what they had in flight is answered into the void.
    pub(crate) fn clear(&self) {
        let slots = std::mem::take(&mut *self.slots.borrow_mut());
        drop(slots);
        self.ready.borrow_mut().clear();
        self.idle.borrow_mut().clear();
    }
}

/// Tasks that wait for a condition which another task brings about.
#[derive(Default)]
pub(crate) struct WaitList(RefCell<Vec<TaskId>>);

impl WaitList {
    /// Wakes all; each looks at its condition again.
    #[inline(always)]
    pub(crate) fn notify(&self, tasks: &Tasks) {
        if !self.0.borrow().is_empty() {
            self.wake_all(tasks);
        }
    }

    fn wake_all(&self, tasks: &Tasks) {
        let mut waiting = std::mem::take(&mut *self.0.borrow_mut());
        for id in waiting.drain(..) {
            tasks.wake(id);
        }
        // Keeps the capacity, so that waiting allocates nothing in steady state.
        let mut slot = self.0.borrow_mut();
        if slot.is_empty() {
            *slot = waiting;
        }
    }

    /// Waits until `condition` gives a value. It is asked at once, and after every [`notify`](Self::notify).
    pub(crate) async fn wait<T>(&self, tasks: &Tasks, mut condition: impl FnMut() -> Option<T>) -> T {
        std::future::poll_fn(|_| match condition() {
            Some(value) => Poll::Ready(value),
            None => {
                self.0.borrow_mut().push(tasks.current());
                Poll::Pending
            }
        })
        .await
    }
}

/// Where answers wait for the tasks that asked.
pub(crate) struct Answers<T> {
    slots: RefCell<Slab<AnswerSlot<T>>>,
    /// Answers that are still to come, and that nobody waits for.
    abandoned: Cell<u32>,
    settled: WaitList,
}

struct AnswerSlot<T> {
    task: TaskId,
    value: Option<T>,
    /// The asking future was dropped: the answer is dropped too, once it comes.
    abandoned: bool,
}

impl<T> Default for Answers<T> {
    fn default() -> Self {
        Self { slots: RefCell::default(), abandoned: Cell::new(0), settled: WaitList::default() }
    }
}

impl<T> Answers<T> {
    /// Makes room for one answer to the task that is being polled.
    pub(crate) fn open(&self, tasks: &Tasks) -> u32 {
        let slot = AnswerSlot { task: tasks.current(), value: None, abandoned: false };
        u32::try_from(self.slots.borrow_mut().insert(slot)).expect("fewer than 2^32 answers")
    }

    /// Delivers an answer and wakes who waits.
    pub(crate) fn fill(&self, tasks: &Tasks, key: u32, value: T) {
        let mut slots = self.slots.borrow_mut();
        let slot = &mut slots[key as usize];
        if slot.abandoned {
            slots.remove(key as usize);
            drop(slots);
            self.abandoned.set(self.abandoned.get() - 1);
            if self.abandoned.get() == 0 {
                self.settled.notify(tasks);
            }
            return;
        }
        slot.value = Some(value);
        tasks.wake(slot.task);
    }

    fn take(&self, key: u32) -> Option<T> {
        let mut slots = self.slots.borrow_mut();
        slots[key as usize].value.as_ref()?;
        slots.remove(key as usize).value
    }

    fn abandon(&self, key: u32) {
        let mut slots = self.slots.borrow_mut();
        if slots[key as usize].value.is_some() {
            let slot = slots.remove(key as usize);
            drop(slots);
            drop(slot);
        } else {
            slots[key as usize].abandoned = true;
            self.abandoned.set(self.abandoned.get() + 1);
        }
    }

    /// Waits until whatever was asked by a coroutine that is gone has been answered.
    pub(crate) async fn settle(&self, tasks: &Tasks) {
        self.settled.wait(tasks, || (self.abandoned.get() == 0).then_some(())).await;
    }
}

/// Waits for one answer.
pub(crate) struct Answer<'a, T> {
    answers: &'a Answers<T>,
    key: Option<u32>,
}

impl<'a, T> Answer<'a, T> {
    pub(crate) fn new(answers: &'a Answers<T>, key: u32) -> Self {
        Self { answers, key: Some(key) }
    }
}

impl<T> Future for Answer<'_, T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<T> {
        let key = self.key.expect("an answer is taken once");
        match self.answers.take(key) {
            Some(value) => {
                self.key = None;
                Poll::Ready(value)
            }
            None => Poll::Pending,
        }
    }
}

impl<T> Drop for Answer<'_, T> {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.answers.abandon(key);
        }
    }
}

/// A lock that one coroutine holds across awaits; waiters get it in the order of waking.
#[derive(Default)]
pub(crate) struct Gate {
    held: Cell<bool>,
    waiting: WaitList,
}

impl Gate {
    /// Waits for the lock.
    pub(crate) async fn enter<'a>(&'a self, tasks: &'a Tasks) -> GateGuard<'a> {
        self.waiting.wait(tasks, || (!self.held.replace(true)).then_some(())).await;
        GateGuard { gate: self, tasks }
    }

    /// Whether somebody holds it.
    pub(crate) fn is_held(&self) -> bool {
        self.held.get()
    }
}

/// Holds a [`Gate`]; gives it back when dropped.
pub(crate) struct GateGuard<'a> {
    gate: &'a Gate,
    tasks: &'a Tasks,
}

impl Drop for GateGuard<'_> {
    fn drop(&mut self) {
        self.gate.held.set(false);
        self.gate.waiting.notify(self.tasks);
    }
}

/// Runs two coroutines of one task side by side and waits for both, even when one fails.
pub(crate) async fn join<A: Future, B: Future>(a: A, b: B) -> (A::Output, B::Output) {
    let mut a = std::pin::pin!(a);
    let mut b = std::pin::pin!(b);
    let (mut done_a, mut done_b) = (None, None);
    std::future::poll_fn(|cx| {
        if done_a.is_none()
            && let Poll::Ready(value) = a.as_mut().poll(cx)
        {
            done_a = Some(value);
        }
        if done_b.is_none()
            && let Poll::Ready(value) = b.as_mut().poll(cx)
        {
            done_b = Some(value);
        }
        match (done_a.is_some(), done_b.is_some()) {
            (true, true) => Poll::Ready(()),
            _ => Poll::Pending,
        }
    })
    .await;
    (done_a.expect("polled to the end"), done_b.expect("polled to the end"))
}

/// Waits for all coroutines of a list, and returns what they gave in the order of the list.
pub(crate) async fn join_all<T, F: Future<Output = T>>(coroutines: impl IntoIterator<Item = F>) -> Vec<T> {
    let mut waiting: Vec<Pin<Box<F>>> = coroutines.into_iter().map(Box::pin).collect();
    let mut done: Vec<Option<T>> = waiting.iter().map(|_| None).collect();
    std::future::poll_fn(|cx| {
        let mut pending = false;
        for (coroutine, done) in waiting.iter_mut().zip(&mut done) {
            if done.is_none() {
                match coroutine.as_mut().poll(cx) {
                    Poll::Ready(value) => *done = Some(value),
                    Poll::Pending => pending = true,
                }
            }
        }
        if pending { Poll::Pending } else { Poll::Ready(()) }
    })
    .await;
    done.into_iter().map(|value| value.expect("polled to the end")).collect()
}

/// The value of a coroutine that runs as a task of its own.
pub(crate) type Promise<T> = Rc<RefCell<Option<T>>>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_may_wake_itself_and_end() {
        let tasks = Rc::new(Tasks::default());
        let shared = Rc::clone(&tasks);
        tasks.spawn(Box::pin(async move {
            let gate = Gate::default();
            // Both wait in the list of one task: the second one's wake comes while the first leaves the gate.
            join(async { drop(gate.enter(&shared).await) }, async { drop(gate.enter(&shared).await) }).await;
            shared.wake(shared.current());
        }));
        tasks.run();
        assert_eq!(tasks.len(), 0);
    }
}
