//! What everyone who uses an open image shares: its node, and the requests in flight that the node must outlive.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};

use drystone_core::error::{Error, Result};
use drystone_core::graph::NodeId;

use crate::session::Session;

/// An image that is open. Its handles and its requests in flight hold it.
pub(crate) struct Opened {
    session: Weak<Session>,
    node: NodeId,
    /// No further requests are taken.
    closed: Cell<bool>,
    /// The node was handed to the coroutine that closes it.
    node_gone: Cell<bool>,
    in_flight: Cell<usize>,
    /// What to do once nothing is in flight.
    drained: RefCell<Option<Box<dyn FnOnce()>>>,
}

impl Opened {
    pub(crate) fn new(session: &Rc<Session>, node: NodeId) -> Self {
        Self {
            session: Rc::downgrade(session),
            node,
            closed: Cell::new(false),
            node_gone: Cell::new(false),
            in_flight: Cell::new(0),
            drained: RefCell::default(),
        }
    }

    /// The node; it is there for requests that began before the image was closed.
    pub(crate) fn node(&self) -> NodeId {
        self.node
    }

    #[inline]
    pub(crate) fn check_open(&self) -> Result<()> {
        match self.closed.get() {
            false => Ok(()),
            true => Err(Box::new(Error::NoSuchNode("(closed)".into()))),
        }
    }

    /// Counts a request that begins.
    #[inline]
    pub(crate) fn enter(&self) {
        self.in_flight.set(self.in_flight.get() + 1);
    }

    /// Counts a request that ended.
    #[inline]
    pub(crate) fn leave(&self) {
        self.in_flight.set(self.in_flight.get() - 1);
        if self.in_flight.get() == 0 && self.closed.get() {
            let drained = self.drained.borrow_mut().take();
            if let Some(drained) = drained {
                drained();
            }
        }
    }

    /// Counts a coroutine among the requests in flight.
    pub(crate) fn in_use(self: &Rc<Self>) -> Result<InUse> {
        self.check_open()?;
        self.enter();
        Ok(InUse(Rc::clone(self)))
    }

    /// Takes no further requests; once the last has ended, closes the node and hands over what came of it.
    pub(crate) fn close(self: &Rc<Self>, closed: impl FnOnce(Result<()>) + 'static) -> Result<()> {
        self.check_open()?;
        self.closed.set(true);
        let this = Rc::downgrade(self);
        let close_node = move || {
            if let Some(this) = this.upgrade() {
                this.close_node(closed);
            }
        };
        if self.in_flight.get() == 0 {
            close_node();
        } else {
            *self.drained.borrow_mut() = Some(Box::new(close_node));
        }
        Ok(())
    }

    fn close_node(&self, closed: impl FnOnce(Result<()>) + 'static) {
        if self.node_gone.replace(true) {
            return;
        }
        if let Some(session) = self.session.upgrade() {
            let node = self.node;
            session.run_detached(move |io| async move { closed(io.close(node).await) });
        }
    }
}

impl Drop for Opened {
    /// Closes an image that nobody closed. Requests in flight hold this value, so there are none.
    fn drop(&mut self) {
        self.close_node(drop);
    }
}

/// A coroutine that uses an image's node.
pub(crate) struct InUse(Rc<Opened>);

impl InUse {
    pub(crate) fn node(&self) -> NodeId {
        self.0.node
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.0.leave();
    }
}
