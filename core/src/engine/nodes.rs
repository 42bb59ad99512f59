//! The graph of an engine for coroutines: nodes are found, opened, locked, closed and changed in length.

use std::rc::Rc;

use super::Io;
use crate::engine::task::LocalFuture;
use crate::error::{Error, Result};
use crate::graph::driver::{Driver, Preallocate, Role};
use crate::graph::{self, Edges, Kind, Leaf, NodeFlags, NodeId, NodeInfo, Use, UseId};
use crate::intent::{Action, LeafAccess, LeafInfo, LeafKind, Location, Outcome, Permissions, Preallocation};

impl Io {
    /// Describes the graph.
    pub fn graph(&self) -> Vec<NodeInfo> {
        self.shared().graph.describe()
    }

    /// The node of that name.
    pub fn find_node(&self, name: &str) -> Option<NodeId> {
        self.shared().graph.find(name)
    }

    /// The file name or node name that a node goes by.
    pub fn title(&self, node: NodeId) -> String {
        self.shared().graph.node(node).title.clone()
    }

    /// How a node was opened.
    pub(crate) fn flags(&self, node: NodeId) -> NodeFlags {
        self.shared().graph.node(node).flags
    }

    /// The driver of a node, unless it is a leaf.
    pub fn driver(&self, node: NodeId) -> Option<Rc<dyn Driver>> {
        match &self.shared().graph.node(node).kind {
            Kind::Driver(driver) => Some(Rc::clone(driver)),
            Kind::Leaf(_) => None,
        }
    }

    /// Name of the driver of a node.
    pub fn driver_name(&self, node: NodeId) -> &'static str {
        self.shared().graph.node(node).driver_name()
    }

    /// What the executor said of a leaf.
    pub fn leaf_info(&self, node: NodeId) -> Option<LeafInfo> {
        match &self.shared().graph.node(node).kind {
            Kind::Leaf(leaf) => Some(leaf.info.clone()),
            Kind::Driver(_) => None,
        }
    }

    /// The child of any node at the end of an edge.
    pub fn edge(&self, node: NodeId, role: Role) -> Option<NodeId> {
        self.shared().graph.node(node).edges.at(role)
    }

    /// Opens a leaf and makes it a node.
    pub(crate) async fn open_leaf(
        &self,
        name: Option<&str>,
        location: Location,
        access: LeafAccess,
        flags: NodeFlags,
    ) -> Result<NodeId> {
        let title = location.to_string();
        let action = Action::Open { location: location.clone(), access };
        let info = match self.outcome("open", action).await {
            Outcome::Opened(result) => {
                result.map_err(|errno| Box::new(Error::Open { location: title.clone(), errno }))?
            }
            Outcome::Unusable(errno, reason) => {
                return Err(Box::new(match location {
                    Location::Nbd(_) => Error::Server { location: title, errno, reason },
                    _ => Error::Device { location: title, errno, reason },
                }));
            }
            Outcome::NoIoUring(errno) => return Err(Box::new(Error::NoIoUring { location: title, errno })),
            other => panic!("an executor answered open with {other:?}"),
        };
        let leaf = info.leaf;
        let kind = Kind::Leaf(Box::new(Leaf::new(info, location)));
        match self.shared().graph.add(name, &title, flags, kind, Rc::default()) {
            Ok(node) => Ok(node.id),
            Err(error) => {
                let _ = self.done("open/undo", Action::Close { leaf }).await;
                Err(error)
            }
        }
    }

    /// Declares what a node above does with a leaf, to the other nodes and, by image locks, to other processes.
    ///
    /// # Errors
    /// When the one or the other does not go with it.
    pub(crate) async fn use_leaf(&self, node: NodeId, new: Use) -> Result<Option<UseId>> {
        let here = self.shared().graph.node(node);
        let Kind::Leaf(leaf) = &here.kind else { return Ok(None) };
        let id = leaf.add_use(&here.name, new)?;
        let locked = self.lock_as_used(node, &here, leaf).await;
        if locked.is_err() {
            leaf.remove_use(id);
        }
        locked.map(|()| Some(id))
    }

    /// Takes back what [`use_leaf`](Self::use_leaf) declared.
    async fn end_use(&self, node: NodeId, id: UseId, leaf_goes_too: bool) {
        let here = self.shared().graph.node(node);
        let Kind::Leaf(leaf) = &here.kind else { return };
        leaf.remove_use(id);
        // Locks go with the file. Where they stay behind, others are kept out for longer than needed, no more.
        if !leaf_goes_too {
            let _ = self.lock_as_used(node, &here, leaf).await;
        }
    }

    async fn lock_as_used(&self, node: NodeId, here: &graph::Node, leaf: &Leaf) -> Result<()> {
        if here.flags.unlocked {
            return Ok(());
        }
        let _one_at_a_time = leaf.locks.enter(&self.shared().tasks).await;
        let (holds, shares) = leaf.used_as();
        self.lock(node, holds, shares).await
    }

    /// Takes the image locks of a leaf.
    pub(crate) async fn lock(&self, node: NodeId, holds: Permissions, shares: Permissions) -> Result<()> {
        let here = self.shared().graph.node(node);
        let Kind::Leaf(leaf) = &here.kind else { return Ok(()) };
        match self.outcome("lock", Action::Lock { leaf: leaf.info.leaf, holds, shares }).await {
            Outcome::Locked(result) => result
                .map_err(|refused| Box::new(Error::Locked { location: leaf.location.to_string(), refused })),
            other => panic!("an executor answered lock with {other:?}"),
        }
    }

    /// Creates a file, or empties an existing one.
    ///
    /// # Errors
    /// [`Error::Create`] with the host's answer; [`Error::Locked`] when somebody uses the file.
    pub async fn create_leaf(
        &self,
        location: &Location,
        len: u64,
        preallocation: Preallocation,
    ) -> Result<()> {
        let action = Action::Create { location: location.clone(), len, preallocation };
        let protocol = if matches!(location, Location::Nbd(_)) { "nbd" } else { "nvme" };
        let location = location.to_string();
        match self.outcome("create", action).await {
            Outcome::Done(result) => result.map_err(|errno| Box::new(Error::Create { location, errno })),
            Outcome::Locked(result) => {
                result.map_err(|refused| Box::new(Error::Locked { location, refused }))
            }
            Outcome::Unusable(errno, reason) => Err(Box::new(Error::Fixed { protocol, errno, reason })),
            other => panic!("an executor answered create with {other:?}"),
        }
    }

    /// Adds a driver's node above `edges`.
    pub(crate) fn add_driver(
        &self,
        name: Option<&str>,
        title: &str,
        flags: NodeFlags,
        driver: Rc<dyn Driver>,
        edges: Rc<Edges>,
    ) -> Result<NodeId> {
        Ok(self.shared().graph.add(name, title, flags, Kind::Driver(driver), edges)?.id)
    }

    /// Closes a node and everything below it, drivers first. What a driver holds back is written out. A node that
    /// somebody else has open too stays.
    ///
    /// # Errors
    /// The first failure; all nodes are gone all the same.
    pub fn close(&self, node: NodeId) -> LocalFuture<'_, Result<()>> {
        Box::pin(async move {
            let here = self.shared().graph.node(node);
            if !here.leave() {
                return Ok(());
            }
            // A coroutine that was dropped may have left requests behind, and they use the node until their end.
            self.shared().answers.settle(&self.shared().tasks).await;
            let mut result = match &here.kind {
                Kind::Driver(driver) => driver.close(&self.for_node(node)).await,
                Kind::Leaf(leaf) => {
                    let closed = self.done("close", Action::Close { leaf: leaf.info.leaf }).await;
                    closed.map_err(|errno| leaf.error("close", 0, 0, errno))
                }
            };
            self.shared().graph.remove(node);
            result = result.and(self.close_children(&here.edges).await);
            result
        })
    }

    /// Closes what a node had open below it.
    pub(crate) async fn close_children(&self, edges: &Edges) -> Result<()> {
        for (leaf, id) in edges.take_uses() {
            let goes = edges.iter().any(|(_, child)| self.goes_with(child, leaf));
            self.end_use(leaf, id, goes).await;
        }
        let mut result = Ok(());
        for (_, child) in edges.iter() {
            result = result.and(self.close(child).await);
        }
        result
    }

    /// Whether a leaf goes when `node` is closed: it is the node's file, and nobody else has either open.
    fn goes_with(&self, node: NodeId, leaf: NodeId) -> bool {
        let mut node = node;
        loop {
            if self.shared().graph.node(node).is_shared() {
                return false;
            }
            match self.edge(node, Role::File) {
                _ if node == leaf => return true,
                Some(file) => node = file,
                None => return false,
            }
        }
    }

    /// Opens a node that is open already: closing it is owed once more.
    pub(crate) fn enter_node(&self, name: &str) -> Option<NodeId> {
        let node = self.shared().graph.find(name)?;
        self.shared().graph.node(node).enter();
        Some(node)
    }

    /// Changes the length of a leaf, or of the leaf below filters that pass it on.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where a format is in the way; else the leaf's.
    pub async fn set_len(&self, node: NodeId, len: u64, preallocation: Preallocation) -> Result<()> {
        let here = self.shared().graph.node(node);
        match &here.kind {
            Kind::Leaf(leaf) => {
                let action = Action::SetLen { leaf: leaf.info.leaf, len, preallocation };
                let result = self.done("set_len", action).await;
                result.map_err(|errno| leaf.error("change of length", len, 0, errno))?;
                leaf.wrote(0);
                leaf.len.set(len);
                Ok(())
            }
            Kind::Driver(driver) => match driver.length() {
                graph::Length::OfFileFrom(start) => {
                    Box::pin(self.set_len(here.child(Role::File), start + len, preallocation)).await
                }
                graph::Length::Growing(_) => {
                    Box::pin(self.set_len(here.child(Role::File), len, preallocation)).await?;
                    driver.resized(len);
                    Ok(())
                }
                graph::Length::Bytes(_) => Err(Box::new(Error::Unsupported {
                    node: here.name.clone(),
                    driver: driver.name(),
                    what: "a change of length",
                })),
            },
        }
    }

    /// Changes the length of a node; what is new reads as zeros. Durable on return where a format keeps the length.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where a driver cannot; [`Error::Options`] where a leaf would preallocate metadata, or while it
    /// gets shorter; else the format's or leaf's.
    pub async fn resize(&self, node: NodeId, len: u64, how: Preallocate) -> Result<()> {
        let here = self.shared().graph.node(node);
        let unsupported = |what| {
            Err(Box::new(Error::Unsupported { node: here.name.clone(), driver: here.driver_name(), what }))
        };
        match &here.kind {
            Kind::Leaf(_) if here.flags.read_only => {
                Err(Box::new(Error::ReadOnly { node: here.name.clone() }))
            }
            Kind::Leaf(leaf) if leaf.info.kind == LeafKind::Null => unsupported("a change of length"),
            Kind::Leaf(leaf) if leaf.info.kind == LeafKind::Nbd && len == leaf.len.get() => Ok(()),
            Kind::Leaf(leaf) if leaf.info.kind == LeafKind::Nbd => {
                Err(Box::new(Error::Options("Cannot resize NBD nodes".into())))
            }
            Kind::Leaf(leaf) if how != Preallocate::Off && len < leaf.len.get() => {
                Err(Box::new(Error::Options("Cannot use preallocation for shrinking files".into())))
            }
            Kind::Leaf(_) if how == Preallocate::Metadata => {
                Err(Box::new(Error::Options("Unsupported preallocation mode: metadata".into())))
            }
            Kind::Leaf(_) => self.set_len(node, len, how.of_file()).await,
            Kind::Driver(driver) => match driver.length() {
                graph::Length::OfFileFrom(start) => {
                    Box::pin(self.resize(here.child(Role::File), start + len, how)).await
                }
                graph::Length::Growing(_) => {
                    Box::pin(self.resize(here.child(Role::File), len, how)).await?;
                    driver.resized(len);
                    Ok(())
                }
                graph::Length::Bytes(_) => {
                    let (driver, io) = (Rc::clone(driver), self.for_node(node));
                    self.shared().let_go(node).await;
                    self.to_end(async move { driver.resize(&io, len, how).await }).await
                }
            },
        }
    }
}
