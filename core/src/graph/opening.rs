//! What a format needs while it opens: its file, and the other files that the image names.
//!
//! Every name that an image holds goes through [`allowed`] before it is opened.

use serde_json::Map;

use super::driver::Role;
use super::open::{ChildSpec, ImageNames, NodeSpec, OpenMode, lock_backing, lock_child, open_child};
use super::{CHAIN_MAX, Edges, NodeId, options};
use crate::engine::Io;
use crate::error::{Error, Result};

/// An image that is being opened. What it opens beside its file is on `edges`, and closes with them if it fails.
pub(crate) struct Opening<'a> {
    pub io: &'a Io,
    /// The node to be.
    pub spec: &'a NodeSpec,
    /// What holds the image; open, and locked.
    pub file: NodeId,
    pub edges: &'a Edges,
    /// What was said of the backing file.
    pub backing: &'a ChildSpec,
    /// Whether nothing that the image names is opened, and no key asked for.
    pub metadata_only: bool,
    /// How many images lie above in the chain.
    pub depth: usize,
}

impl Opening<'_> {
    /// Whether the image is written to.
    pub fn writable(&self) -> bool {
        self.spec.mode.writable
    }

    /// Opens the backing file, if there is one: what the caller said counts more than what the image says. `name` and
    /// `format` are the image's own.
    ///
    /// # Errors
    /// When it does not open, or its name may not be followed.
    pub async fn open_backing(&self, name: Option<&str>, format: Option<&str>) -> Result<()> {
        let backing_file = |error| Error::child("backing file", error);
        let Some(child) = self.backing_spec(name, format).map_err(backing_file)? else { return Ok(()) };
        if self.depth + 1 >= CHAIN_MAX {
            let location = self.io.title(self.file);
            return Err(Box::new(Error::ChainTooDeep { location, max: CHAIN_MAX }));
        }
        let mode = child.mode;
        let child = open_child(self.io, &child, self.depth + 1).await.map_err(backing_file)?;
        self.edges.set(Role::Backing, Some(child));
        lock_backing(self.io, self.spec, self.edges, mode).await.map_err(backing_file)
    }

    /// Opens a file beside the image that it names as a part of itself, such as an extent, and locks it as the image.
    /// The name is a path, and never more than that. `what` is the part, for messages.
    ///
    /// # Errors
    /// When it does not open, or its name may not be followed.
    pub async fn open_part(&self, role: Role, what: &str, name: &str) -> Result<NodeId> {
        allowed(self.io, self.spec, self.file, what, name)?;
        let path = beside(&self.io.title(self.file), name);
        let part = open_child(self.io, &NodeSpec::file(path, self.spec.mode.below()), self.depth).await?;
        self.edges.set(role, Some(part));
        lock_child(self.io, self.spec, self.edges, role).await?;
        Ok(part)
    }

    /// Opens what options describe as a part of the image, and locks it as the image.
    ///
    /// # Errors
    /// When it does not open.
    pub async fn open_child(&self, role: Role, spec: &NodeSpec) -> Result<NodeId> {
        let child = open_child(self.io, spec, self.depth).await?;
        self.edges.set(role, Some(child));
        lock_child(self.io, self.spec, self.edges, role).await?;
        Ok(child)
    }

    fn backing_spec(&self, name: Option<&str>, format: Option<&str>) -> Result<Option<NodeSpec>> {
        let Self { io, spec, file, .. } = *self;
        let commits_down = spec.mode.commits_down.saturating_sub(1);
        let writable = spec.mode.writable_below();
        let mode = OpenMode { writable, commits_down, ..spec.mode.below() };
        let (name, more) = match (self.backing, name) {
            (ChildSpec::Spec(child), _) => return Ok(Some((**child).clone())),
            (ChildSpec::None, _) | (ChildSpec::FromImage, None) => return Ok(None),
            (ChildSpec::FromImageAnd(more), None) => {
                return options::from_filename_and(None, format, more.clone(), mode).map(Some);
            }
            (ChildSpec::FromImageAnd(more), Some(_)) if options::name_a_file(more) => {
                return options::from_filename_and(None, format, more.clone(), mode).map(Some);
            }
            (ChildSpec::FromImageAnd(more), Some(name)) => (name, more.clone()),
            (ChildSpec::FromImage, Some(name)) => (name, Map::new()),
        };
        allowed(io, spec, file, "backing file", name)?;
        let name = if names_protocol(name) { name.into() } else { beside(&io.title(file), name) };
        let backing = options::from_filename_and(Some(&name), format, more, mode)?;
        if backing.refers_to_nodes() {
            let text = format!("'{}' names an open node in its backing file '{name}'", io.title(file));
            return Err(Box::new(Error::Options(text)));
        }
        Ok(Some(backing))
    }
}

/// Whether the policy lets a name that an image holds be opened.
pub(super) fn allowed(io: &Io, spec: &NodeSpec, file: NodeId, what: &str, name: &str) -> Result<()> {
    let refused = match spec.mode.names {
        ImageNames::Follow => false,
        ImageNames::Plain => names_protocol(name),
        ImageNames::Forbid => true,
    };
    if !refused {
        return Ok(());
    }
    Err(Box::new(Error::Options(format!(
        "'{}' names the {what} '{name}', which the policy for names in images does not allow to be opened",
        io.title(file)
    ))))
}

/// Whether a name begins with a protocol (`nbd:`, `json:`) rather than being a path.
pub fn names_protocol(name: &str) -> bool {
    name.split_once(':').is_some_and(|(protocol, _)| !protocol.contains('/'))
}

/// A path as an image means it: relative to where the image is.
pub fn beside(image: &str, name: &str) -> String {
    match image.rsplit_once('/') {
        Some((folder, _)) if !name.starts_with('/') => format!("{folder}/{name}"),
        _ => name.into(),
    }
}
