//! A node that is open, for reading and writing.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};

use drystone_core::buf::BufList;
use drystone_core::engine::{Op, Request, Status};
use drystone_core::error::{Error, Result};
use drystone_core::graph::NodeId;
use drystone_core::intent::{Fua, ZeroFlags};

use crate::client::Client;
use crate::session::Session;

/// A disk: the root of a tree of nodes that [`Client::open`] opened.
///
/// Clones are the same disk. Many requests may be in flight; each moves its buffers in and gives them back with the
/// answer. Dropping a request's future does not stop the request.
///
/// [`close`](Self::close) before the end: dropping the last clone closes too, but cannot say what went wrong.
#[derive(Clone)]
pub struct Image {
    client: Client,
    opened: Rc<Opened>,
}

/// What the clones of an image, and its requests in flight, share.
pub(crate) struct Opened {
    session: Weak<Session>,
    node: NodeId,
    closed: Cell<bool>,
    /// Whether the node was handed to the coroutine that closes it.
    node_gone: Cell<bool>,
    /// Requests in flight; the node goes only after them.
    in_flight: Cell<usize>,
    /// Who waits until there are none.
    drained: RefCell<Option<Waker>>,
}

impl Opened {
    /// Counts a request that begins.
    #[inline]
    pub(crate) fn enter(&self) {
        self.in_flight.set(self.in_flight.get() + 1);
    }

    /// Counts a request that ended.
    #[inline]
    pub(crate) fn leave(&self) {
        self.in_flight.set(self.in_flight.get() - 1);
        if self.in_flight.get() == 0
            && let Some(waker) = self.drained.borrow_mut().take()
        {
            waker.wake();
        }
    }

    fn poll_drained(&self, cx: &Context<'_>) -> Poll<()> {
        if self.in_flight.get() == 0 {
            return Poll::Ready(());
        }
        *self.drained.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Opened {
    /// Closes an image that nobody closed. Requests in flight hold this value, so there are none.
    fn drop(&mut self) {
        if self.node_gone.get() {
            return;
        }
        if let Some(session) = self.session.upgrade() {
            let node = self.node;
            let (key, _) = session.run(move |io| async move { io.close(node).await });
            session.abandon(key);
        }
    }
}

/// Counts a coroutine among the requests in flight.
struct InFlight(Rc<Opened>);

impl InFlight {
    fn new(opened: &Rc<Opened>) -> Self {
        opened.enter();
        Self(Rc::clone(opened))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.leave();
    }
}

impl Image {
    pub(crate) fn new(client: Client, node: NodeId) -> Self {
        let opened = Opened {
            session: Rc::downgrade(client.session()),
            node,
            closed: Cell::new(false),
            node_gone: Cell::new(false),
            in_flight: Cell::new(0),
            drained: RefCell::default(),
        };
        Self { client, opened: Rc::new(opened) }
    }

    /// The node, for coroutines that work on it.
    pub fn node(&self) -> NodeId {
        self.opened.node
    }

    /// The client that opened it.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Length in bytes.
    ///
    /// # Panics
    /// When the image is closed.
    pub fn len(&self) -> u64 {
        assert!(!self.opened.node_gone.get(), "a closed image has no length");
        self.client.session().len(self.opened.node)
    }

    /// Tells whether it holds no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills `buf` from `offset` on. The buffers come back whatever happens.
    #[inline]
    pub fn read(&self, offset: u64, buf: impl Into<BufList>) -> Transfer<'_> {
        self.transfer(Op::Read, offset, 0, buf.into())
    }

    /// Writes `buf` at `offset`. The buffers come back whatever happens.
    pub fn write(&self, offset: u64, buf: impl Into<BufList>) -> Transfer<'_> {
        self.transfer(Op::Write(Fua::No), offset, 0, buf.into())
    }

    /// Begins any request; `len` is for those that carry no data.
    #[inline]
    pub fn transfer(&self, op: Op, offset: u64, len: u64, data: BufList) -> Transfer<'_> {
        Transfer { image: self, state: State::New { op, offset, len, data } }
    }

    /// Makes everything durable that completed before.
    ///
    /// # Errors
    /// When a leaf fails.
    pub async fn flush(&self) -> Result<()> {
        self.transfer(Op::Flush, 0, 0, BufList::new()).await.1
    }

    /// Gives up the content of a range.
    ///
    /// # Errors
    /// When a leaf fails, or the range is beyond the end.
    pub async fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.transfer(Op::Discard, offset, len, BufList::new()).await.1
    }

    /// Makes a range read as zeros.
    ///
    /// # Errors
    /// When a leaf fails, or the range is beyond the end.
    pub async fn write_zeroes(&self, offset: u64, len: u64, flags: ZeroFlags) -> Result<()> {
        self.transfer(Op::WriteZeroes(flags, Fua::No), offset, len, BufList::new()).await.1
    }

    /// Says what backs the range at `offset`; the answer may cover fewer than `len` bytes.
    ///
    /// # Errors
    /// When metadata is damaged, or a leaf fails.
    pub async fn block_status(&self, offset: u64, len: u64) -> Result<Status> {
        self.check_open()?;
        let node = self.opened.node;
        let in_flight = InFlight::new(&self.opened);
        let status = self.client.run_to_end(move |io| async move {
            let _in_flight = in_flight;
            io.status(node, offset, len, None).await
        });
        status.await
    }

    /// Waits for the requests in flight, writes out what is held back, and closes the nodes.
    ///
    /// # Errors
    /// The first failure; the nodes are gone all the same. [`Error::NoSuchNode`] when it was closed before.
    pub async fn close(&self) -> Result<()> {
        self.check_open()?;
        self.opened.closed.set(true);
        poll_fn(|cx| self.opened.poll_drained(cx)).await;
        self.opened.node_gone.set(true);
        let node = self.opened.node;
        self.client.run_to_end(move |io| async move { io.close(node).await }).await
    }

    #[inline]
    fn check_open(&self) -> Result<()> {
        match self.opened.closed.get() {
            false => Ok(()),
            true => Err(Box::new(Error::NoSuchNode("(closed)".into()))),
        }
    }
}

/// A request: begins when it is first polled, and gives back its buffers and what came of it.
///
/// Dropped before its end, it leaves the request to finish on its own; the buffers are freed then.
#[must_use = "a request begins when it is awaited"]
pub struct Transfer<'a> {
    image: &'a Image,
    state: State,
}

enum State {
    New { op: Op, offset: u64, len: u64, data: BufList },
    InFlight(usize),
    Done,
}

impl Future for Transfer<'_> {
    type Output = (BufList, Result<()>);

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let session = self.image.client.session();
        let key = match std::mem::replace(&mut self.state, State::Done) {
            State::InFlight(key) => key,
            State::New { op, offset, len, data } => {
                if let Err(error) = self.image.check_open() {
                    return Poll::Ready((data, Err(error)));
                }
                let opened = &self.image.opened;
                session.submit(opened, Request { node: opened.node, op, offset, len, data, tag: 0 })
            }
            State::Done => panic!("a request is not polled after its end"),
        };
        let answer = session.poll_answer(key, cx);
        if answer.is_pending() {
            self.state = State::InFlight(key);
        }
        answer
    }
}

impl Drop for Transfer<'_> {
    fn drop(&mut self) {
        if let State::InFlight(key) = self.state {
            self.image.client.session().abandon(key);
        }
    }
}
