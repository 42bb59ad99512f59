//! Opening filters: what each needs beside its file, and whether it can stand where it is put.

use std::rc::Rc;
use std::time::Duration;

use super::{
    Blkdebug, BlkdebugOptions, Blklogwrites, Blkverify, Compress, CopyOnRead, FilterError, LogOptions, Null,
    NullName, Preallocate, PreallocateOptions,
};
use crate::engine::Io;
use crate::error::{Error, Result};
use crate::graph::driver::{Driver, Role};
use crate::graph::open::{NodeSpec, lock_child, open_child};
use crate::graph::{CHAIN_MAX, Edges, NodeId};
use crate::intent::Permissions;

/// A filter to open above its file.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FilterSpec {
    /// Fails requests, and holds them up.
    Blkdebug(BlkdebugOptions),
    /// Writes changes down.
    Blklogwrites {
        /// Where to.
        log: NodeSpec,
        /// How.
        options: LogOptions,
    },
    /// Compares the file with a copy.
    Blkverify {
        /// The copy.
        raw: NodeSpec,
    },
    /// Has every write stored compressed.
    Compress,
    /// Keeps what was read from backing files.
    CopyOnRead {
        /// Name of the backing file below which nothing is kept.
        bottom: Option<String>,
    },
    /// Takes its time, above a leaf without storage.
    Null {
        /// What it is called.
        name: NullName,
        /// How long each request takes.
        latency: Duration,
    },
    /// Makes the file longer than it needs to be.
    Preallocate(PreallocateOptions),
}

impl FilterSpec {
    /// The children beside the file.
    pub(crate) fn children(&self) -> impl Iterator<Item = &NodeSpec> {
        let child = match self {
            Self::Blklogwrites { log, .. } => Some(log),
            Self::Blkverify { raw } => Some(raw),
            _ => None,
        };
        child.into_iter()
    }
}

/// Opens what a filter needs beside its file, makes it a child, and makes the filter's driver.
pub(crate) async fn open(
    io: &Io,
    spec: &NodeSpec,
    edges: &Edges,
    filter: &FilterSpec,
    depth: usize,
) -> Result<Rc<dyn Driver>> {
    let file = edges.at(Role::File).expect("a filter is opened above its file");
    let fail = |fault| Error::format(io.title(file), fault);
    Ok(match filter {
        FilterSpec::Blkdebug(options) => {
            let writes = [Permissions::WRITE, Permissions::WRITE_UNCHANGED];
            if !spec.mode.writable && writes.iter().any(|one| options.takes.contains(*one)) {
                return Err(Box::new(Error::Options("Block node is read-only".into())));
            }
            Rc::new(Blkdebug::open(io, options).await?)
        }
        FilterSpec::Blklogwrites { log, options } => {
            let log = open_child(io, log, depth).await?;
            edges.set(Role::Log, Some(log));
            lock_child(io, spec, edges, Role::Log).await?;
            Rc::new(Blklogwrites::open(io, log, options).await?)
        }
        FilterSpec::Blkverify { raw } => {
            let raw = open_child(io, raw, depth).await?;
            edges.set(Role::Raw, Some(raw));
            lock_child(io, spec, edges, Role::Raw).await?;
            Rc::new(Blkverify)
        }
        FilterSpec::Compress => {
            let driver = io.driver(file);
            match driver.filter(|driver| driver.compresses()) {
                Some(driver) => Rc::new(Compress::new(driver.granularity())),
                None => return Err(fail(FilterError::CannotCompress(io.driver_name(file)))),
            }
        }
        FilterSpec::CopyOnRead { bottom } => {
            if !spec.mode.writable {
                return Err(Box::new(Error::ReadOnly { node: io.title(file) }));
            }
            let bottom = match bottom {
                None => None,
                Some(name) => Some(find_bottom(io, file, name).map_err(fail)?),
            };
            Rc::new(CopyOnRead::new(io, file, bottom))
        }
        FilterSpec::Null { name, latency } => Rc::new(Null::new(*name, *latency)),
        FilterSpec::Preallocate(options) => {
            Rc::new(Preallocate::new(*options, io.len(file), spec.mode.writable))
        }
    })
}

/// The node of that name, among the backing files below `file`.
fn find_bottom(io: &Io, file: NodeId, name: &str) -> Result<NodeId, FilterError> {
    let bottom = io.find_node(name).ok_or_else(|| FilterError::NoBottom(name.into()))?;
    let mut node = file;
    for _ in 0..CHAIN_MAX {
        let is_filter = io.driver(node).is_some_and(|driver| driver.is_filter());
        let next = io.edge(node, if is_filter { Role::File } else { Role::Backing });
        match next {
            Some(next) if next == bottom => return Ok(bottom),
            Some(next) => node = next,
            None => break,
        }
    }
    Err(FilterError::BottomElsewhere(name.into()))
}
