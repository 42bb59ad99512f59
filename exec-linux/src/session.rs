//! One engine with its backend, and everyone who waits for an answer.
//!
//! A request or job is known to the engine by the key of its [`Waiter`]. [`Session::pump`] moves intents one way and
//! outcomes the other until nothing moves; whoever submits only marks the session and wakes its driver task, so that
//! many requests of one turn of the runtime go to the kernel in one call.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use drystone_core::buf::BufList;
use drystone_core::engine::{Engine, Io, Job, Reply, Request};
use drystone_core::error::Result;
use drystone_core::graph::{NodeId, NodeInfo};
use slab::Slab;

use crate::backend::Backend;
use crate::config::Config;
use crate::doorbell::Doorbell;
use crate::image::Opened;

/// An engine on this thread, and what carries out its intents.
pub struct Session {
    engine: Engine,
    backend: RefCell<Backend>,
    waiters: RefCell<Slab<Waiter>>,
    /// The driver task, while it waits.
    driver: RefCell<Option<Waker>>,
    /// The driver task was woken, or is at it.
    kicked: Cell<bool>,
    /// The kernel takes no more requests: nobody is answered any more.
    failed: Cell<bool>,
    /// No client is left: the driver ends with the last request.
    closing: Cell<bool>,
}

/// Who waits for a reply.
enum Waiter {
    Waiting {
        waker: Option<Waker>,
        image: Option<Rc<Opened>>,
    },
    Answered(BufList, Result<()>),
    /// The future was dropped; the answer is dropped too.
    Abandoned {
        image: Option<Rc<Opened>>,
    },
}

impl Session {
    /// Starts an engine with an empty graph.
    ///
    /// # Errors
    /// The kernel's, where it refuses what the configuration asks for.
    pub fn new(config: &Config) -> io::Result<Rc<Self>> {
        Ok(Rc::new(Self {
            engine: Engine::new(),
            backend: RefCell::new(Backend::new(config)?),
            waiters: RefCell::default(),
            driver: RefCell::default(),
            kicked: Cell::new(false),
            failed: Cell::new(false),
            closing: Cell::new(false),
        }))
    }

    /// A descriptor that becomes readable when there is something to do, after
    /// [`pump_and_arm`](Self::pump_and_arm).
    ///
    /// # Errors
    /// The kernel's.
    pub fn readiness_fd(&self) -> io::Result<OwnedFd> {
        self.backend.borrow().as_fd().try_clone_to_owned()
    }

    /// As [`readiness_fd`](Self::readiness_fd), for runtimes that cannot poll: an eventfd whose 8 bytes are to be read, and
    /// that makes the reader wait while there is nothing to do.
    ///
    /// # Errors
    /// The kernel's.
    pub fn counter_fd(&self) -> io::Result<OwnedFd> {
        self.bell().leave_to_reader()?;
        self.readiness_fd()
    }

    /// Moves intents to the backend and outcomes to the engine until nothing moves without waiting.
    ///
    /// # Errors
    /// The kernel's, when it takes no more intents at all.
    pub fn pump(&self) -> io::Result<()> {
        // Whoever submits meanwhile is seen below.
        self.kicked.set(true);
        while self.turn()? {}
        self.kicked.set(false);
        Ok(())
    }

    /// Pumps, and has the descriptor tell when there is more.
    ///
    /// # Errors
    /// The kernel's, when it takes no more intents at all.
    pub fn pump_and_arm(&self) -> io::Result<()> {
        self.backend.borrow_mut().disarm();
        loop {
            self.pump()?;
            if !self.backend.borrow_mut().arm() {
                return Ok(());
            }
        }
    }

    /// Makes the descriptor unreadable again, once it was seen to be readable.
    pub fn hush(&self) {
        self.backend.borrow().hush();
    }

    /// Moves everything once. Tells whether anything moved.
    #[inline]
    fn turn(&self) -> io::Result<bool> {
        let mut backend = self.backend.borrow_mut();
        while backend.has_room()
            && let Some(intent) = self.engine.next_intent()
        {
            backend.push(intent)?;
        }
        backend.submit()?;
        let moved = backend.reap(|token, outcome| self.engine.complete(token, outcome))?;
        drop(backend);
        Ok(self.deliver() || moved)
    }

    /// Wakes the thread that drives this session, from any thread.
    pub(crate) fn bell(&self) -> Arc<Doorbell> {
        self.backend.borrow().bell()
    }

    /// Waits until the backend has something to do. For threads without a runtime.
    pub(crate) fn wait(&self) -> io::Result<()> {
        self.backend.borrow_mut().wait()
    }

    /// Whether there is nothing left to do, and nobody to ask for more.
    pub(crate) fn is_over(&self) -> bool {
        self.closing.get() && self.engine.is_idle() && self.backend.borrow().is_idle()
    }

    /// Has the driver end once everything in flight has ended.
    pub fn close(&self) {
        self.closing.set(true);
        self.kick();
    }

    /// Has the driver task pump, once, however often this is called before it does.
    #[inline]
    pub(crate) fn kick(&self) {
        if self.kicked.replace(true) {
            return;
        }
        let driver = self.driver.borrow_mut().take();
        if let Some(driver) = driver {
            driver.wake();
        }
    }

    /// Begins a request; its answer goes to the key returned, which takes the place of the tag.
    #[inline]
    pub(crate) fn submit(&self, image: &Rc<Opened>, request: Request) -> usize {
        image.enter();
        let waiter = Waiter::Waiting { waker: None, image: Some(Rc::clone(image)) };
        let key = self.waiters.borrow_mut().insert(waiter);
        self.engine.submit(Request { tag: key as u64, ..request });
        // What memory alone can answer is answered by now.
        self.deliver();
        self.kick();
        key
    }

    /// Begins a coroutine; that it ended is answered to the key returned.
    pub(crate) fn run<T: 'static, F: Future<Output = T> + 'static>(
        &self,
        coroutine: impl FnOnce(Io) -> F,
    ) -> (usize, Job<T>) {
        let key = self.waiters.borrow_mut().insert(Waiter::Waiting { waker: None, image: None });
        let job = self.engine.run(key as u64, coroutine);
        self.kick();
        (key, job)
    }

    /// Takes the answer of a key, which is free then; or sees to it that `cx` is woken by it.
    #[inline]
    pub(crate) fn poll_answer(&self, key: usize, cx: &Context<'_>) -> Poll<(BufList, Result<()>)> {
        assert!(!self.failed.get(), "the driver of this engine failed: the kernel takes no more requests");
        let mut waiters = self.waiters.borrow_mut();
        match &mut waiters[key] {
            Waiter::Waiting { waker: Some(waker), .. } if waker.will_wake(cx.waker()) => Poll::Pending,
            Waiter::Waiting { waker, .. } => {
                *waker = Some(cx.waker().clone());
                Poll::Pending
            }
            Waiter::Answered(..) => match waiters.remove(key) {
                Waiter::Answered(data, result) => Poll::Ready((data, result)),
                _ => unreachable!("matched above"),
            },
            Waiter::Abandoned { .. } => unreachable!("who waits has not given up"),
        }
    }

    /// Has everyone who waits find out that nothing will come.
    fn fail(&self) {
        self.failed.set(true);
        let waiters = self.waiters.borrow();
        for (_, waiter) in waiters.iter() {
            if let Waiter::Waiting { waker: Some(waker), .. } = waiter {
                waker.wake_by_ref();
            }
        }
    }

    /// Gives up waiting. What is in flight keeps its buffers until it ends.
    pub(crate) fn abandon(&self, key: usize) {
        let mut waiters = self.waiters.borrow_mut();
        let waiter = &mut waiters[key];
        match waiter {
            Waiter::Waiting { image, .. } => {
                let image = image.take();
                *waiter = Waiter::Abandoned { image };
            }
            Waiter::Answered(..) => {
                let answered = waiters.remove(key);
                drop(waiters);
                drop(answered);
            }
            Waiter::Abandoned { .. } => unreachable!("a future is dropped once"),
        }
    }

    /// Hands replies to who waits for them. Tells whether there were any.
    #[inline]
    fn deliver(&self) -> bool {
        let mut any = false;
        while let Some(Reply { tag, data, result }) = self.engine.next_reply() {
            any = true;
            let key = usize::try_from(tag).expect("a key of the slab");
            let mut waiters = self.waiters.borrow_mut();
            let before = std::mem::replace(&mut waiters[key], Waiter::Answered(data, result));
            let (waker, image) = match before {
                Waiter::Waiting { waker, image } => (waker, image),
                Waiter::Abandoned { image } => {
                    let answer = waiters.remove(key);
                    drop(waiters);
                    drop(answer);
                    (None, image)
                }
                Waiter::Answered(..) => unreachable!("a request is answered once"),
            };
            if let Some(image) = image {
                image.leave();
            }
            if let Some(waker) = waker {
                waker.wake();
            }
        }
        any
    }

    /// Describes the graph.
    pub(crate) fn graph(&self) -> Vec<NodeInfo> {
        self.engine.graph()
    }

    /// Length of what a node shows, in bytes.
    pub(crate) fn len(&self, node: NodeId) -> u64 {
        self.engine.len(node)
    }
}

/// Runs a session until its last client is gone and everything in flight has ended: the body of a driver task.
///
/// `readable` waits until the session's descriptor is readable; it may also return for nothing.
///
/// # Errors
/// The kernel's, or the runtime's. Then requests in flight panic where they are awaited.
pub async fn drive(session: Rc<Session>, readable: impl AsyncFnMut() -> io::Result<()>) -> io::Result<()> {
    let result = drive_to_end(&session, readable).await;
    if result.is_err() {
        session.fail();
    }
    result
}

async fn drive_to_end(
    session: &Session,
    mut readable: impl AsyncFnMut() -> io::Result<()>,
) -> io::Result<()> {
    loop {
        let mut waiting = pin!(readable());
        let over = poll_fn(|cx| {
            *session.driver.borrow_mut() = Some(cx.waker().clone());
            if let Err(error) = session.pump_and_arm() {
                return Poll::Ready(Err(error));
            }
            if session.is_over() {
                return Poll::Ready(Ok(true));
            }
            waiting.as_mut().poll(cx).map_ok(|()| false)
        })
        .await?;
        if over {
            return Ok(());
        }
        session.hush();
    }
}
