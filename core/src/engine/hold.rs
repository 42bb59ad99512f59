//! Holds: nodes whose requests wait, because what they are about to meet is being taken apart.
//!
//! An image that is emptied goes on being emptied when whoever asked gives up, and cannot know when that ends. A write beside
//! it would take a block whose bitmap is just being forgotten, or space that is given out once more. A request waits before
//! it is counted and before it looks anything up, so that whoever holds a node may wait for quiescence. What is in flight when
//! the hold begins goes on. Nothing on the data path but a look at whether there are any.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use super::Shared;
use super::task::WaitList;
use crate::graph::{NodeId, Role};

/// The nodes of an engine that are held.
#[derive(Default)]
pub(crate) struct Holds {
    held: RefCell<Vec<NodeId>>,
    /// Whether there is any, for the data path.
    any: Cell<bool>,
    released: WaitList,
}

impl Holds {
    /// Whether there is any.
    #[inline]
    pub(crate) fn any(&self) -> bool {
        self.any.get()
    }

    /// Changes what is held, and whether there is any.
    fn change(&self, change: impl FnOnce(&mut Vec<NodeId>)) {
        let mut held = self.held.borrow_mut();
        change(&mut held);
        self.any.set(!held.is_empty());
    }
}

/// A node that is held; let go when dropped.
pub(crate) struct Hold {
    shared: Rc<Shared>,
    node: NodeId,
}

impl Hold {
    /// Waits until nobody holds the node, and holds it.
    pub(crate) async fn take(shared: &Rc<Shared>, node: NodeId) -> Self {
        shared.let_go(node).await;
        shared.holds.change(|held| held.push(node));
        Self { shared: Rc::clone(shared), node }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.shared.holds.change(|held| held.retain(|held| *held != self.node));
        self.shared.holds.released.notify(&self.shared.tasks);
    }
}

impl Shared {
    /// Whether requests to a node wait: it is held, or the file that it passes them on to is.
    pub(crate) fn is_held(&self, node: NodeId) -> bool {
        let held = self.holds.held.borrow();
        self.graph.with(|nodes| {
            let mut next = Some(node);
            while let Some(id) = next.filter(|id| !held.contains(id)) {
                next = nodes
                    .get(id.0 as usize)
                    .and_then(Option::as_ref)
                    .and_then(|here| here.edges.at(Role::File));
            }
            next.is_some()
        })
    }

    /// Waits until nobody holds a node.
    pub(crate) async fn let_go(&self, node: NodeId) {
        self.holds.released.wait(&self.tasks, || (!self.is_held(node)).then_some(())).await;
    }
}
