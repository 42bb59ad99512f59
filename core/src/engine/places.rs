//! Where ranges are that need no engine to be read: whoever holds the leaf may take them from there.

use std::rc::Rc;

use smallvec::SmallVec;

use super::Engine;
use super::path::{Place, resolve};
use crate::graph::{self, Access, Kind, Node, NodeId, Role};
use crate::intent::LeafId;

/// Bytes that a leaf holds as they read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Which leaf.
    pub leaf: LeafId,
    /// First byte there.
    pub offset: u64,
    /// How many.
    pub len: u64,
}

/// The places of a range, in order.
pub type Places = SmallVec<[Stored; 2]>;

impl Engine {
    /// Where leaves hold the `len` bytes of a node at `offset` as they read; `None` where memory does not know, and where
    /// some of them are stored otherwise or not at all.
    ///
    /// They stay there: nothing of the engine's moves them, nor puts anything of another range in their place. So there is no
    /// answer about a node that may be written, other than a window of a leaf.
    pub fn places(&self, node: NodeId, offset: u64, len: u64) -> Option<Places> {
        self.0.graph.with(|nodes| {
            let here = graph::at(nodes, node);
            if !here.flags.read_only && !is_window(nodes, here) {
                return None;
            }
            let mut places = Places::new();
            let (mut at, end) = (offset, offset.checked_add(len)?);
            while at < end {
                let Ok((len, Place::Leaf { node, offset })) =
                    resolve(nodes, node, at, end - at, Access::Read)
                else {
                    return None;
                };
                let Kind::Leaf(leaf) = &graph::at(nodes, node).kind else { unreachable!("it says so") };
                at += len;
                match places.last_mut() {
                    Some(last) if last.leaf == leaf.info.leaf && last.offset + last.len == offset => {
                        last.len += len;
                    }
                    _ => places.push(Stored { leaf: leaf.info.leaf, offset, len }),
                }
            }
            Some(places)
        })
    }
}

/// Whether a node passes everything on to a leaf.
fn is_window(nodes: &[Option<Rc<Node>>], node: &Node) -> bool {
    match &node.kind {
        Kind::Leaf(_) => true,
        Kind::Driver(driver) => {
            let child = node.edges.at(Role::File);
            let leaf = child.is_some_and(|child| matches!(graph::at(nodes, child).kind, Kind::Leaf(_)));
            driver.is_filter() && leaf
        }
    }
}
