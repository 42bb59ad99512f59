//! A node that is open, for reading and writing.

use std::future::Future;
use std::mem::ManuallyDrop;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use drystone_core::buf::BufList;
use drystone_core::engine::{Op, Request, Status};
use drystone_core::error::Result;
use drystone_core::graph::NodeId;
use drystone_core::intent::{Fua, ZeroFlags};

use crate::client::Client;
use crate::opened::Opened;
use crate::promise::promise;
use crate::session::Alone;

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

impl Image {
    pub(crate) fn new(client: Client, node: NodeId) -> Self {
        let opened = Opened::new(client.session(), node);
        Self { client, opened: Rc::new(opened) }
    }

    pub(crate) fn opened(&self) -> &Rc<Opened> {
        &self.opened
    }

    /// The node, for coroutines that work on it.
    pub fn node(&self) -> NodeId {
        self.opened.node()
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
        assert!(self.opened.check_open().is_ok(), "a closed image has no length");
        self.client.session().len(self.opened.node())
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
        Transfer { image: self, state: State::New, op, offset, len, data: ManuallyDrop::new(data) }
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
        let image = self.opened.in_use()?;
        let status =
            self.client.run_to_end(move |io| async move { io.status(image.node(), offset, len, None).await });
        status.await
    }

    /// Waits for the requests in flight, writes out what is held back, and closes the nodes. Goes on to its end even
    /// when the future is dropped.
    ///
    /// # Errors
    /// The first failure; the nodes are gone all the same. [`Error::NoSuchNode`](drystone_core::error::Error) when it was
    /// closed before.
    pub async fn close(&self) -> Result<()> {
        let (answer, ticket) = promise();
        self.opened.close(move |result| answer.give(result))?;
        ticket.await
    }
}

/// A request: begins when it is first polled, and gives back its buffers and what came of it.
///
/// Dropped before its end, it leaves the request to finish on its own; the buffers are freed then.
#[must_use = "a request begins when it is awaited"]
pub struct Transfer<'a> {
    image: &'a Image,
    state: State,
    op: Op,
    offset: u64,
    len: u64,
    /// The buffers, until it begins. Then there is nothing to drop.
    data: ManuallyDrop<BufList>,
}

enum State {
    New,
    InFlight(usize),
    Done,
}

impl Future for Transfer<'_> {
    type Output = (BufList, Result<()>);

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let session = this.image.client.session();
        let key = match this.state {
            State::InFlight(key) => key,
            State::New => {
                let opened = &this.image.opened;
                let offset = this.offset;
                this.state = State::Done;
                if let Err(error) = opened.check_open() {
                    return Poll::Ready((std::mem::take(&mut *this.data), Err(error)));
                }
                let alone = match this.op {
                    // By name, so that each is compiled for itself and does not ask which it is.
                    Op::Read => session.submit_alone(opened, Op::Read, offset, &mut this.data),
                    Op::Write(Fua::No) => {
                        session.submit_alone(opened, Op::Write(Fua::No), offset, &mut this.data)
                    }
                    _ => Alone::No,
                };
                match alone {
                    Alone::Done(data) => return Poll::Ready((data, Ok(()))),
                    Alone::Waits(key) => key,
                    Alone::No => {
                        let (op, len, data) = (this.op, this.len, std::mem::take(&mut *this.data));
                        session.submit(opened, Request { node: opened.node(), op, offset, len, data, tag: 0 })
                    }
                }
            }
            State::Done => panic!("a request is not polled after its end"),
        };
        let answer = session.poll_answer(key, cx);
        this.state = if answer.is_pending() { State::InFlight(key) } else { State::Done };
        answer
    }
}

impl Drop for Transfer<'_> {
    #[inline]
    fn drop(&mut self) {
        if !matches!(self.state, State::Done) {
            self.give_up();
        }
    }
}

impl Transfer<'_> {
    #[cold]
    fn give_up(&mut self) {
        match self.state {
            State::New => drop(std::mem::take(&mut *self.data)),
            State::InFlight(key) => self.image.client.session().abandon(key),
            State::Done => {}
        }
    }
}
