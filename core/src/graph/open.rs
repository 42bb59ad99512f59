//! Opening nodes: from a checked description of a tree to nodes, leaves and locks.
//!
//! A [`NodeSpec`] holds only what can be opened; turning file names and options into one is the work of the
//! tools. Children open first; what fails closes what it opened.

use std::rc::Rc;

use super::driver::{Driver, Role};
use super::{Edges, NodeFlags, NodeId};
use crate::engine::{Io, LocalFuture};
use crate::error::{Error, Result};
use crate::format::raw::Raw;
use crate::intent::{Aio, LeafAccess, Location, Permissions};

/// A tree of nodes to open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSpec {
    /// The name to give the node; one is made up without.
    pub node_name: Option<String>,
    /// How to open it, and what it opens below itself unless that says otherwise.
    pub mode: OpenMode,
    /// What it is.
    pub driver: DriverSpec,
}

/// How a node is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenMode {
    /// Whether it is written to.
    pub writable: bool,
    /// `cache.direct`: past the host's page cache.
    pub direct: bool,
    /// `cache.no-flush`: flushes are left out.
    pub no_flush: bool,
    /// `discard=unmap`: discards reach the host.
    pub discard: bool,
    /// `aio`.
    pub aio: Aio,
    /// `force-share`: others may write to the image meanwhile.
    pub force_share: bool,
    /// `locking`: whether image locks are taken at all.
    pub locking: bool,
}

impl Default for OpenMode {
    fn default() -> Self {
        Self {
            writable: false,
            direct: false,
            no_flush: false,
            discard: true,
            aio: Aio::Auto,
            force_share: false,
            locking: true,
        }
    }
}

/// What a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DriverSpec {
    /// A file, a device, or a leaf without storage.
    Leaf(Location),
    /// A window on another node.
    Raw {
        /// What it is a window on.
        file: Box<NodeSpec>,
        /// First byte of the window.
        offset: u64,
        /// Bytes; all that there are, without one.
        size: Option<u64>,
    },
    /// A node that is open already.
    Node(String),
}

impl NodeSpec {
    /// A file by its path.
    pub fn file(path: impl Into<String>, mode: OpenMode) -> Self {
        Self { node_name: None, mode, driver: DriverSpec::Leaf(Location::Path(path.into())) }
    }

    /// raw on top of `file`.
    pub fn raw(file: NodeSpec) -> Self {
        let mode = file.mode;
        Self {
            node_name: None,
            mode,
            driver: DriverSpec::Raw { file: Box::new(file), offset: 0, size: None },
        }
    }

    fn flags(&self) -> NodeFlags {
        NodeFlags { read_only: !self.mode.writable, discard: self.mode.discard, no_flush: self.mode.no_flush }
    }
}

/// Opens a tree of nodes, and returns its root.
///
/// # Errors
/// What the leaves, the locks or the formats say; then nothing of the tree stays open.
pub fn open<'a>(io: &'a Io, spec: &'a NodeSpec) -> LocalFuture<'a, Result<NodeId>> {
    Box::pin(async move {
        let name = spec.node_name.as_deref();
        match &spec.driver {
            DriverSpec::Leaf(location) => {
                let access =
                    LeafAccess { writable: spec.mode.writable, direct: spec.mode.direct, aio: spec.mode.aio };
                io.open_leaf(name, location.clone(), access, spec.flags()).await
            }
            DriverSpec::Raw { file, offset, size } => {
                let file = open(io, file).await?;
                let driver = raw_window(io, file, *offset, *size);
                above(io, spec, file, Sharing::Everything, driver).await
            }
            DriverSpec::Node(name) => {
                io.find_node(name).ok_or_else(|| Box::new(Error::NoSuchNode(name.clone())))
            }
        }
    })
}

fn raw_window(io: &Io, file: NodeId, offset: u64, size: Option<u64>) -> Result<Rc<dyn Driver>> {
    let there = io.len(file);
    let fits = offset.checked_add(size.unwrap_or(0)).is_some_and(|end| end <= there);
    if !fits {
        let size = size.unwrap_or(0);
        return Err(Box::new(Error::Options(format!(
            "The sum of offset ({offset}) and size ({size}) has to be smaller or equal to the  actual size of the \
             containing file ({there})"
        ))));
    }
    Ok(Rc::new(Raw::new(offset, size)))
}

/// What a node tolerates that other processes do with its file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sharing {
    /// All: the file has no metadata that could go stale.
    Everything,
    /// Reading: the file has metadata.
    Reads,
}

/// Puts a driver's node above its file, with the file's locks taken; closes the file when that fails.
async fn above(
    io: &Io,
    spec: &NodeSpec,
    file: NodeId,
    sharing: Sharing,
    driver: Result<Rc<dyn Driver>>,
) -> Result<NodeId> {
    let made = match driver {
        Ok(driver) => lock_file(io, spec.mode, file, sharing).await.map(|()| driver),
        Err(error) => Err(error),
    };
    let added = made.and_then(|driver| {
        let edges = Edges::default();
        edges.set(Role::File, Some(file));
        let title = io.title(file);
        io.add_driver(spec.node_name.as_deref(), &title, spec.flags(), driver, edges)
    });
    if added.is_err() {
        // The first error is what the caller needs to know.
        let _ = io.close(file).await;
    }
    added
}

/// Takes the byte-range locks on the leaf that holds an image, as QEMU does, so that both keep out of each other's way.
pub(crate) async fn lock_file(io: &Io, mode: OpenMode, file: NodeId, sharing: Sharing) -> Result<()> {
    if !mode.locking {
        return Ok(());
    }
    let mut leaf = file;
    while let Some(below) = io.edge(leaf, Role::File) {
        leaf = below;
    }
    let holds = match mode.writable {
        true => Permissions::CONSISTENT_READ.with(Permissions::WRITE).with(Permissions::RESIZE),
        false => Permissions::CONSISTENT_READ,
    };
    if mode.force_share {
        return io.lock(leaf, Permissions::NONE, Permissions::ALL).await;
    }
    let shares = match sharing {
        Sharing::Everything => Permissions::ALL,
        Sharing::Reads => Permissions::WRITE.with(Permissions::RESIZE).complement(),
    };
    io.lock(leaf, holds, shares).await
}
