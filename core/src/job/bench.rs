//! Bench: many requests of one kind, so many in flight.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use crate::buf::BufList;
use crate::engine::Io;
use crate::engine::task::WaitList;
use crate::error::{Error, Result};
use crate::graph::NodeId;
use crate::intent::Fua;

/// What to send.
#[derive(Clone, Copy, Debug)]
pub struct Bench {
    /// Where to.
    pub node: NodeId,
    /// Requests in all.
    pub count: u64,
    /// In flight at once.
    pub depth: u64,
    /// Bytes of each.
    pub len: u64,
    /// Bytes from the start of one to the start of the next.
    pub step: u64,
    /// Start of the first.
    pub offset: u64,
    /// Write this byte, rather than read.
    pub write: Option<u8>,
    /// Flush after so many writes.
    pub flush_every: u64,
    /// Wait for the requests before a flush, rather than let it go beside them.
    pub drain: bool,
}

struct State {
    plan: Bench,
    size: u64,
    next: Cell<u64>,
    at: Cell<u64>,
    done: Cell<u64>,
    in_flight: Cell<u64>,
    /// A flush that waits for the requests before it holds new ones back.
    draining: Cell<u32>,
    workers: Cell<u64>,
    error: RefCell<Option<Box<Error>>>,
    changed: WaitList,
}

/// Sends all of it, and returns when the last request was answered.
///
/// # Errors
/// The first failure.
pub async fn bench(io: &Io, plan: Bench) -> Result<()> {
    let state = Rc::new(State {
        plan,
        size: io.len(plan.node),
        next: Cell::new(0),
        at: Cell::new(plan.offset),
        done: Cell::new(0),
        in_flight: Cell::new(0),
        draining: Cell::new(0),
        workers: Cell::new(plan.depth),
        error: RefCell::new(None),
        changed: WaitList::default(),
    });
    if plan.offset.checked_add(plan.len).is_none_or(|end| end > state.size) {
        return Err(Box::new(Error::OutOfRange {
            node: io.title(plan.node),
            operation: if plan.write.is_some() { "write" } else { "read" },
            offset: plan.offset,
            len: plan.len,
            size: state.size,
        }));
    }
    for _ in 0..plan.depth {
        let (io, state) = (io.clone(), Rc::clone(&state));
        io.clone().spawn(Box::pin(async move {
            if let Err(error) = state.work(&io).await {
                state.error.borrow_mut().get_or_insert(error);
            }
            state.workers.set(state.workers.get() - 1);
            state.changed.notify(&io.shared().tasks);
        }));
    }
    let tasks = &io.shared().tasks;
    state.changed.wait(tasks, || (state.workers.get() == 0).then_some(())).await;
    state.error.take().map_or(Ok(()), Err)
}

impl State {
    async fn work(&self, io: &Io) -> Result<()> {
        let mut data = BufList::from(io.buffer(&[self.plan.node], self.plan.len as usize));
        if let Some(pattern) = self.plan.write {
            data.windows_mut().iter_mut().for_each(|window| window.fill(pattern));
        }
        while self.next.get() < self.plan.count && self.error.borrow().is_none() {
            if self.draining.get() > 0 {
                let free = || (self.draining.get() == 0).then_some(());
                self.changed.wait(&io.shared().tasks, free).await;
                continue;
            }
            self.next.set(self.next.get() + 1);
            let offset = self.at.get();
            self.at.set(self.after(offset));
            self.in_flight.set(self.in_flight.get() + 1);
            let (back, result) = match self.plan.write {
                Some(_) => io.write("bench", self.plan.node, offset, data, Fua::No).await,
                None => io.read("bench", self.plan.node, offset, data).await,
            };
            data = back;
            self.in_flight.set(self.in_flight.get() - 1);
            if self.draining.get() > 0 {
                self.changed.notify(&io.shared().tasks);
            }
            result?;
            self.done.set(self.done.get() + 1);
            self.flush_if_due(io).await?;
        }
        Ok(())
    }

    /// Start of the request after the one at `offset`; it wraps around where it would not fit.
    fn after(&self, offset: u64) -> u64 {
        let next = offset + self.plan.step;
        match self.size {
            0 => 0,
            size => {
                let next = next % size;
                if next + self.plan.len > size { 0 } else { next }
            }
        }
    }

    async fn flush_if_due(&self, io: &Io) -> Result<()> {
        let every = self.plan.flush_every;
        if every == 0 || !self.done.get().is_multiple_of(every) {
            return Ok(());
        }
        if !self.plan.drain {
            return io.flush("bench/flush", self.plan.node).await;
        }
        self.draining.set(self.draining.get() + 1);
        let tasks = &io.shared().tasks;
        self.changed.notify(tasks);
        self.changed.wait(tasks, || (self.in_flight.get() == 0).then_some(())).await;
        let result = io.flush("bench/flush", self.plan.node).await;
        self.draining.set(self.draining.get() - 1);
        self.changed.notify(tasks);
        result
    }
}
