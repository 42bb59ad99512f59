//! The graph of block nodes: who reads from and writes to whom.
//!
//! ```text
//!    disk0 (qcow2) --file-->    #block1 (file, leaf)
//!          '-------backing-->  base (qcow2) --file--> #block3 (file, leaf)
//! ```
//!
//! A node is a leaf, which an executor carries out, or a [`Driver`], which translates to its children. Edges have
//! the names that QEMU gives them ([`Role`]). Start at [`open`](open::open).

pub mod driver;
mod leaf;
pub mod open;
pub(crate) mod opening;
pub mod options;

use std::cell::{Cell, Ref, RefCell};
use std::rc::Rc;

use smallvec::SmallVec;

pub use driver::{Access, Driver, Extent, Length, Mapping, Miss, Preallocate, Ready, Reservation, Role};
pub(crate) use leaf::{Collision, Leaf, Owner, Use, UseId};

use crate::engine::claims::Claims;
use crate::error::{Error, Result};

/// Images in one chain at the most: longer than any honest chain, short enough for the stack of who opens it, and for
/// reads, each of which walks down it.
pub const CHAIN_MAX: usize = 200;

/// Bytes in a node name at the most. Source: QEMU's limit, with its terminator.
const NODE_NAME_MAX: usize = 31;

/// Names a node of one engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub(crate) u32);

/// What a node is.
pub(crate) enum Kind {
    Leaf(Box<Leaf>),
    Driver(Rc<dyn Driver>),
}

/// How a node was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeFlags {
    /// Writes are refused.
    pub read_only: bool,
    /// Discards reach the host (`discard=unmap`).
    pub discard: bool,
    /// Flushes are left out (`cache.no-flush`).
    pub no_flush: bool,
    /// Every write is durable when it completes (the cache modes `writethrough` and `directsync`).
    pub write_through: bool,
    /// Whoever uses the node lets others write to it meanwhile (`force-share`).
    pub force_share: bool,
    /// A leaf whose image locks nobody takes (`locking=off`).
    pub unlocked: bool,
    /// Whether what is written is looked at for zeros.
    pub detect_zeroes: DetectZeroes,
}

/// Whether a node looks for zeros in what is written to it, and turns a write of nothing else into one of zeros
/// (`detect-zeroes`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DetectZeroes {
    /// It does not.
    #[default]
    Off,
    /// The zeros keep their space.
    On,
    /// Their space may be given up.
    Unmap,
}

/// A node of the graph.
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) name: String,
    /// The name it goes by to people: a file name, or the node name.
    pub(crate) title: String,
    pub(crate) kind: Kind,
    pub(crate) flags: NodeFlags,
    pub(crate) edges: Rc<Edges>,
    /// Guest ranges whose mapping is being changed.
    pub(crate) claims: Claims,
    /// Parents and callers that have the node open; the last to close it closes it. With none left it is closing.
    users: Cell<u32>,
}

/// The children of a node.
#[derive(Default)]
pub(crate) struct Edges {
    file: Cell<Option<NodeId>>,
    backing: Cell<Option<NodeId>>,
    data_file: Cell<Option<NodeId>>,
    raw: Cell<Option<NodeId>>,
    log: Cell<Option<NodeId>>,
    header: Cell<Option<NodeId>>,
    crypt: Cell<Option<NodeId>>,
    /// In the order of the disk.
    extents: RefCell<Vec<Option<NodeId>>>,
    /// What the node declared to do with leaves.
    uses: RefCell<SmallVec<[(NodeId, UseId); 1]>>,
}

impl Edges {
    #[inline(always)]
    pub(crate) fn at(&self, role: Role) -> Option<NodeId> {
        // Most ask for that.
        if role == Role::File { self.file.get() } else { self.other_at(role) }
    }

    fn other_at(&self, role: Role) -> Option<NodeId> {
        match role {
            Role::File => self.file.get(),
            Role::Backing => self.backing.get(),
            Role::DataFile => self.data_file.get(),
            Role::Raw => self.raw.get(),
            Role::Log => self.log.get(),
            Role::Header => self.header.get(),
            Role::Crypt => self.crypt.get(),
            Role::Extent(number) => self.extents.borrow().get(usize::from(number)).copied().flatten(),
        }
    }

    pub(crate) fn set(&self, role: Role, child: Option<NodeId>) {
        match role {
            Role::File => self.file.set(child),
            Role::Backing => self.backing.set(child),
            Role::DataFile => self.data_file.set(child),
            Role::Raw => self.raw.set(child),
            Role::Log => self.log.set(child),
            Role::Header => self.header.set(child),
            Role::Crypt => self.crypt.set(child),
            Role::Extent(number) => {
                let (mut extents, number) = (self.extents.borrow_mut(), usize::from(number));
                if extents.len() <= number {
                    extents.resize(number + 1, None);
                }
                extents[number] = child;
            }
        }
    }

    pub(crate) fn add_use(&self, of: NodeId, id: UseId) {
        self.uses.borrow_mut().push((of, id));
    }

    pub(crate) fn take_uses(&self) -> SmallVec<[(NodeId, UseId); 1]> {
        self.uses.take()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Role, NodeId)> + '_ {
        let extents = (0..self.extents.borrow().len() as u16).map(Role::Extent);
        [Role::File, Role::Backing, Role::DataFile, Role::Raw, Role::Log, Role::Header, Role::Crypt]
            .into_iter()
            .chain(extents)
            .filter_map(|role| Some((role, self.at(role)?)))
    }
}

impl Node {
    pub(crate) fn driver_name(&self) -> &'static str {
        match &self.kind {
            Kind::Leaf(leaf) => leaf.driver_name(),
            Kind::Driver(driver) => driver.name(),
        }
    }

    pub(crate) fn out_of_range(
        &self,
        operation: &'static str,
        offset: u64,
        len: u64,
        size: u64,
    ) -> Box<Error> {
        Box::new(Error::OutOfRange { node: self.name.clone(), operation, offset, len, size })
    }

    /// Counts one more that has the node open.
    pub(crate) fn enter(&self) {
        self.users.set(self.users.get() + 1);
    }

    /// Counts one less, and tells whether that was the last.
    pub(crate) fn leave(&self) -> bool {
        let left = self.users.get().checked_sub(1).expect("who closes a node has it open");
        self.users.set(left);
        left == 0
    }

    /// Whether anybody but the one who asks has the node open.
    pub(crate) fn is_shared(&self) -> bool {
        self.users.get() > 1
    }

    #[inline(always)]
    pub(crate) fn child(&self, role: Role) -> NodeId {
        self.edges.at(role).expect("a driver names only edges that it opened")
    }
}

/// All nodes of an engine.
#[derive(Default)]
pub(crate) struct Graph {
    nodes: RefCell<Vec<Option<Rc<Node>>>>,
    next_name: Cell<u32>,
}

impl Graph {
    /// Adds a node; `name` is made up where the caller has none.
    pub(crate) fn add(
        &self,
        name: Option<&str>,
        title: &str,
        flags: NodeFlags,
        kind: Kind,
        edges: Rc<Edges>,
    ) -> Result<Rc<Node>> {
        let name = match name {
            Some(name) => self.checked_name(name)?,
            None => self.made_up_name(),
        };
        let mut nodes = self.nodes.borrow_mut();
        let index = nodes.iter().position(Option::is_none).unwrap_or_else(|| {
            nodes.push(None);
            nodes.len() - 1
        });
        let id = NodeId(u32::try_from(index).expect("fewer than 2^32 nodes"));
        let node = Rc::new(Node {
            id,
            name,
            title: title.into(),
            kind,
            flags,
            edges,
            claims: Claims::default(),
            users: Cell::new(1),
        });
        nodes[index] = Some(Rc::clone(&node));
        Ok(node)
    }

    fn checked_name(&self, name: &str) -> Result<String> {
        let starts_well = name.starts_with(|c: char| c.is_ascii_alphabetic());
        let goes_on_well = name.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c));
        if !starts_well || !goes_on_well {
            return Err(Box::new(Error::NodeName(format!("Invalid node-name: '{name}'"))));
        }
        if name.len() > NODE_NAME_MAX {
            return Err(Box::new(Error::NodeName("Node name too long".into())));
        }
        if self.nodes.borrow().iter().flatten().any(|node| node.name == name) {
            return Err(Box::new(Error::NodeName(format!("Duplicate nodes with node-name='{name}'"))));
        }
        Ok(name.into())
    }

    fn made_up_name(&self) -> String {
        let name = self.next_name();
        self.next_name.set(self.next_name.get() + 1);
        name
    }

    /// The name that the next node without one will have.
    pub(crate) fn next_name(&self) -> String {
        format!("#block{:03}", self.next_name.get())
    }

    /// The node of that name, unless it is closing.
    pub(crate) fn find(&self, name: &str) -> Option<NodeId> {
        let nodes = self.nodes.borrow();
        let found = nodes.iter().flatten().find(|node| node.name == name && node.users.get() > 0);
        found.map(|node| node.id)
    }

    pub(crate) fn remove(&self, id: NodeId) {
        self.nodes.borrow_mut()[id.0 as usize] = None;
    }

    /// The node of that number.
    ///
    /// # Panics
    /// When it was removed: who holds a number holds the node.
    pub(crate) fn node(&self, id: NodeId) -> Rc<Node> {
        self.nodes.borrow()[id.0 as usize].clone().expect("a node lives while its number is used")
    }

    /// The nodes, for the data path, which clones none of them.
    #[inline]
    pub(crate) fn nodes(&self) -> Ref<'_, Vec<Option<Rc<Node>>>> {
        self.nodes.borrow()
    }

    /// Runs `f` with the nodes, for the data path, which clones none of them.
    #[inline(always)]
    pub(crate) fn with<T>(&self, f: impl FnOnce(&[Option<Rc<Node>>]) -> T) -> T {
        f(&self.nodes.borrow())
    }

    /// Length of what a node shows, in bytes.
    pub(crate) fn len(&self, id: NodeId) -> u64 {
        self.with(|nodes| length(nodes, id))
    }

    /// Describes every node, in the order of opening.
    pub(crate) fn describe(&self) -> Vec<NodeInfo> {
        let nodes = self.nodes.borrow();
        let name = |id: NodeId| at(&nodes, id).name.clone();
        nodes
            .iter()
            .flatten()
            .map(|node| NodeInfo {
                id: node.id,
                name: node.name.clone(),
                driver: node.driver_name(),
                title: node.title.clone(),
                len: length(&nodes, node.id),
                flags: node.flags,
                edges: node.edges.iter().map(|(role, child)| (role, name(child))).collect(),
            })
            .collect()
    }
}

/// The node at `id`, without counting a reference.
#[inline(always)]
pub(crate) fn at(nodes: &[Option<Rc<Node>>], id: NodeId) -> &Node {
    nodes[id.0 as usize].as_ref().expect("a node lives while its number is used")
}

/// Length of what a node shows, in bytes.
#[inline]
pub(crate) fn length(nodes: &[Option<Rc<Node>>], id: NodeId) -> u64 {
    length_as(nodes, id, |driver| driver.length())
}

/// Length of what a guest may ask a node for, in bytes.
#[inline]
pub(crate) fn guest_length(nodes: &[Option<Rc<Node>>], id: NodeId) -> u64 {
    length_as(nodes, id, |driver| driver.guest_length())
}

#[inline]
fn length_as(nodes: &[Option<Rc<Node>>], id: NodeId, of: fn(&dyn Driver) -> Length) -> u64 {
    let node = at(nodes, id);
    match &node.kind {
        Kind::Leaf(leaf) => leaf.len.get(),
        Kind::Driver(driver) => match of(driver.as_ref()) {
            Length::Bytes(len) | Length::Growing(len) => len,
            Length::OfFileFrom(start) => length_as(nodes, node.child(Role::File), of).saturating_sub(start),
        },
    }
}

/// What a snapshot of the graph says of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeInfo {
    /// Its number.
    pub id: NodeId,
    /// Its node name.
    pub name: String,
    /// Its driver.
    pub driver: &'static str,
    /// The file name or node name it goes by.
    pub title: String,
    /// Length in bytes.
    pub len: u64,
    /// How it was opened.
    pub flags: NodeFlags,
    /// Its edges, and the names of the nodes that they lead to.
    pub edges: Vec<(Role, String)>,
}
