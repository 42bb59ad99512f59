//! Block status as users are shown it: the images' answers, and the host's where an image cannot know.

use std::cell::RefCell;

use rustc_hash::FxHashMap;

use crate::engine::{Io, Status};
use crate::error::Result;
use crate::format::qcow2::Qcow2;
use crate::graph::NodeId;
use crate::graph::Role;

/// Answers of the nodes of a graph. Where an image seems to have had its metadata preallocated, what it calls data
/// is looked up on the host too, and a hole there is data that reads as zeros.
pub struct Statuses {
    /// Bytes that the file of a node takes on the host; `None` when that is not known.
    allocated: fn(&Io, NodeId) -> Option<u64>,
    /// Guesses that were made: they cost a walk through refcounts.
    guesses: RefCell<FxHashMap<NodeId, bool>>,
}

impl Statuses {
    /// Nothing is guessed yet.
    pub fn new(allocated: fn(&Io, NodeId) -> Option<u64>) -> Self {
        Self { allocated, guesses: RefCell::default() }
    }

    /// As [`Io::status`].
    ///
    /// # Errors
    /// When metadata is damaged or cannot be read.
    pub async fn status(
        &self,
        io: &Io,
        node: NodeId,
        offset: u64,
        len: u64,
        base: Option<NodeId>,
    ) -> Result<Status> {
        let status = io.status(node, offset, len, base).await?;
        let Some((leaf, place)) = status.place.filter(|_| status.data && !status.zero) else {
            return Ok(status);
        };
        if !self.guess(io, deciding(io, node, status.depth)).await {
            return Ok(status);
        }
        // What the host does not tell is what the image said.
        let Ok(below) = io.status(leaf, place, status.len, None).await else { return Ok(status) };
        let at_end = place + below.len >= io.len(leaf);
        Ok(match below.zero {
            // An image may be longer than its file: all that is missing at the end reads as zeros.
            true if at_end => Status { zero: true, ..status },
            zero => Status { zero, len: below.len, ..status },
        })
    }

    async fn guess(&self, io: &Io, image: NodeId) -> bool {
        if let Some(guess) = self.guesses.borrow().get(&image) {
            return *guess;
        }
        let driver = io.driver(image);
        let qcow2 = driver.as_ref().and_then(|driver| driver.as_any().downcast_ref::<Qcow2>());
        let guess = match (qcow2, io.edge(image, Role::File)) {
            (Some(qcow2), Some(file)) => match (self.allocated)(io, file) {
                Some(allocated) => qcow2.seems_preallocated(io, file, allocated).await.unwrap_or(false),
                None => false,
            },
            _ => driver.as_ref().is_some_and(|driver| driver.facts().preallocated),
        };
        self.guesses.borrow_mut().insert(image, guess);
        guess
    }
}

/// The image `depth` steps down the backing chain, below filters.
fn deciding(io: &Io, node: NodeId, depth: u32) -> NodeId {
    let mut image = node;
    for _ in 0..depth {
        image = io.edge(image, Role::Backing).unwrap_or(image);
    }
    while io.driver(image).is_some_and(|driver| driver.is_filter()) {
        let Some(below) = io.edge(image, Role::File) else { break };
        image = below;
    }
    image
}
