//! What backs a range of a node: a walk down the chain of images, to the holes of a leaf.

use std::rc::Rc;

use super::Io;
use super::path::Place;
use crate::error::Result;
use crate::filter::Blkdebug;
use crate::graph::driver::{Access, Mapping, Role};
use crate::graph::{self, Kind, Leaf, NodeId};
use crate::intent::{Action, LeafStatus, Outcome};

/// What backs a range of a node, through its whole chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Bytes from the offset asked about; above zero.
    pub len: u64,
    /// Whether some image of the chain, rather than nothing at all, says what the range holds.
    pub allocated: bool,
    /// Whether the range is known to read as zeros.
    pub zero: bool,
    /// Whether the range is stored as bytes that can be read.
    pub data: bool,
    /// Whether it is stored compressed.
    pub compressed: bool,
    /// How many images down the chain it was found.
    pub depth: u32,
    /// Where it is, when it is stored as it reads: the leaf's node, and the offset there.
    pub place: Option<(NodeId, u64)>,
}

impl Io {
    /// Says what backs the range at `offset`, through the whole chain down to `base` (which is left out), and down to
    /// the holes of the leaf.
    ///
    /// # Errors
    /// When metadata is damaged or cannot be read.
    pub async fn status(&self, node: NodeId, offset: u64, len: u64, base: Option<NodeId>) -> Result<Status> {
        let found = self.status_down_to(node, offset, len, base).await;
        if found.is_err() {
            self.shared().after_failure();
        }
        found
    }

    async fn status_down_to(
        &self,
        node: NodeId,
        offset: u64,
        len: u64,
        base: Option<NodeId>,
    ) -> Result<Status> {
        let _counted = self.shared().epochs.count(&self.shared().tasks);
        let (mut node, mut offset, mut len, mut depth) = (node, offset, len, 0);
        loop {
            let here = self.shared().graph.node(node);
            if let Some((child, there, covered)) = self.filtered(&here, offset, len).await? {
                (node, offset, len) = (child, there, covered);
                continue;
            }
            let (found, place) = self.status_in(&here, offset, len).await?;
            len = found.len;
            if found.allocated {
                return Ok(Status { depth, place, ..found });
            }
            let backing = here.edges.at(Role::Backing).filter(|backing| Some(*backing) != base);
            let end = backing.map_or(0, |backing| self.len(backing));
            match backing {
                Some(backing) if offset < end => {
                    len = len.min(end - offset);
                    node = backing;
                    depth += 1;
                }
                // Beyond the end of the backing file, the overlay is what says that there is nothing.
                _ => return Ok(Status { len, zero: true, depth, place, ..found }),
            }
        }
    }

    /// Where a filter has a range: the child, the offset there, and how much of the range that is good for.
    async fn filtered(
        &self,
        node: &graph::Node,
        offset: u64,
        len: u64,
    ) -> Result<Option<(NodeId, u64, u64)>> {
        let Kind::Driver(driver) = &node.kind else { return Ok(None) };
        if !driver.is_filter() {
            return Ok(None);
        }
        let extent = driver.lookup(offset, len, Access::Read)?;
        if let Some(debug) = driver.as_any().downcast_ref::<Blkdebug>() {
            debug.admit_status(&self.for_node(node.id), offset, extent.len).await?;
        }
        Ok(match extent.mapping {
            Mapping::Data { child, offset } | Mapping::Own { child, offset } => {
                Some((node.child(child), offset, extent.len))
            }
            _ => None,
        })
    }

    /// One image's own answer, without its backing file.
    async fn status_in(
        &self,
        image: &graph::Node,
        offset: u64,
        len: u64,
    ) -> Result<(Status, Option<(NodeId, u64)>)> {
        let nothing = Status {
            len,
            allocated: false,
            zero: false,
            data: false,
            compressed: false,
            depth: 0,
            place: None,
        };
        let driver = match &image.kind {
            Kind::Driver(driver) => driver,
            Kind::Leaf(leaf) => return self.status_of_leaf(image, leaf, offset, len).await,
        };
        let extent = loop {
            let extent = driver.lookup(offset, len, Access::Read)?;
            match extent.mapping {
                Mapping::Miss(miss) => {
                    // Others may wait for the same load, and it may make room by a commit.
                    let (driver, io) = (Rc::clone(driver), self.for_node(image.id));
                    self.to_end(async move { driver.load(&io, miss).await }).await?;
                }
                _ => break extent,
            }
        };
        let nothing = Status { len: extent.len, ..nothing };
        match extent.mapping {
            Mapping::Backing { at } => Ok((nothing, self.kept_place(image, at, extent.len))),
            Mapping::Zero { at } => {
                let place = self.kept_place(image, at, extent.len);
                Ok((Status { allocated: true, zero: true, ..nothing }, place))
            }
            Mapping::Special { compressed } => {
                Ok((Status { allocated: true, data: true, compressed, ..nothing }, None))
            }
            Mapping::Data { child, offset: there } | Mapping::Own { child, offset: there } => {
                let child = image.child(child);
                // What the format calls data is data, whatever holes the host keeps it in.
                let place = self.leaf_place(child, there, extent.len);
                Ok((Status { allocated: true, data: true, ..nothing }, place))
            }
            Mapping::Allocate | Mapping::Miss(_) => unreachable!("not an answer to a read"),
        }
    }

    /// What a leaf says of itself.
    async fn status_of_leaf(
        &self,
        node: &graph::Node,
        leaf: &Leaf,
        offset: u64,
        len: u64,
    ) -> Result<(Status, Option<(NodeId, u64)>)> {
        let LeafStatus { len, data, zero } = self.leaf_status(leaf, offset, len).await?;
        let status = Status { len, allocated: true, zero, data, compressed: false, depth: 0, place: None };
        Ok((status, Some((node.id, offset))))
    }

    /// The leaf in which an image keeps space that it does not use.
    fn kept_place(&self, image: &graph::Node, at: Option<u64>, len: u64) -> Option<(NodeId, u64)> {
        if image.edges.at(Role::Crypt).is_some() {
            return None;
        }
        let child = image.edges.at(Role::DataFile).or(image.edges.at(Role::File));
        at.zip(child).and_then(|(at, child)| self.leaf_place(child, at, len))
    }

    /// The leaf that holds a range of a node as it is, when memory knows it.
    fn leaf_place(&self, node: NodeId, offset: u64, len: u64) -> Option<(NodeId, u64)> {
        self.shared().graph.with(|nodes| {
            let (mut node, mut offset) = (node, offset);
            loop {
                let at = match super::path::resolve(nodes, node, offset, len, Access::Read) {
                    Ok((_, Place::Leaf { node, offset })) => return Some((node, offset)),
                    Ok((_, Place::Coroutine { node, offset })) => (graph::at(nodes, node), offset),
                    _ => return None,
                };
                let Kind::Driver(driver) = &at.0.kind else { return None };
                match driver.lookup(at.1, len, Access::Read).ok()?.mapping {
                    Mapping::Own { child, offset: there } => (node, offset) = (at.0.child(child), there),
                    _ => return None,
                }
            }
        })
    }

    async fn leaf_status(&self, leaf: &Leaf, offset: u64, len: u64) -> Result<LeafStatus> {
        let end = leaf.len.get();
        if offset >= end {
            return Ok(LeafStatus::of(len, true));
        }
        let within = len.min(end - offset);
        let action = Action::BlockStatus { leaf: leaf.info.leaf, offset, len: within };
        match self.outcome("block_status", action).await {
            Outcome::Status(Ok(status)) => Ok(LeafStatus { len: status.len.clamp(1, within), ..status }),
            Outcome::Status(Err(errno)) => Err(leaf.error("block status", offset, within, errno)),
            other => panic!("an executor answered block_status with {other:?}"),
        }
    }
}
