//! Opening nodes: from a checked description of a tree to nodes, leaves and locks.
//!
//! A [`NodeSpec`] holds only what can be opened; turning file names and options into one is the work of the
//! tools. Children open first; what fails closes what it opened.

use std::rc::Rc;

use serde_json::{Map, Value};

use super::driver::{Driver, Role};
use super::opening::{Opening, allowed};
pub use super::opening::{beside, names_protocol};
use super::options::Format;
use super::{DetectZeroes, Edges, Kind, NodeFlags, NodeId, Use, options};
use crate::engine::{Event, Io, LocalFuture};
use crate::error::{Error, Result};
use crate::filter::{self, FilterSpec};
use crate::format::ImageFormat;
use crate::format::luks::Sectors;
use crate::format::qcow2::layout::{Header, Incompatible};
use crate::format::qcow2::{self, Qcow2Error, Qcow2Options};
use crate::format::raw::Raw;
use crate::intent::{Aio, Errno, LeafAccess, LeafKind, Location, Permissions};

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
    /// Every write is durable when it completes (the cache modes `writethrough` and `directsync`).
    pub write_through: bool,
    /// `discard=unmap`: discards reach the host.
    pub discard: bool,
    /// `detect-zeroes`; nothing below has it from here.
    pub detect_zeroes: DetectZeroes,
    /// `aio`.
    pub aio: Aio,
    /// `force-share`: others may write to the node meanwhile. Children have it from their parent unless they say
    /// otherwise, and what counts for an image is the word of its file.
    pub force_share: bool,
    /// `locking`: whether image locks are taken at all. Only a leaf's own word counts.
    pub locking: bool,
    /// What is done with the file of a raw image that is written to, beyond reading and writing. Formats say by themselves
    /// what they do with their files.
    pub takes: Permissions,
    /// What nobody else may do meanwhile with the file of a raw image.
    pub denies: Permissions,
    /// What names that images hold may open.
    pub names: ImageNames,
    /// How many images down the backing chain one is that is written to as well, by a commit; 0: none is.
    pub commits_down: usize,
}

impl OpenMode {
    /// Whether the backing file is the one that a commit writes to.
    pub(super) fn writable_below(&self) -> bool {
        self.commits_down == 1
    }

    /// What nodes below have of this unless they say otherwise. What is written through at the top needs one flush a
    /// write, not one for every write below; and each node looks for zeros by itself.
    pub(crate) fn below(self) -> Self {
        Self { write_through: false, detect_zeroes: DetectZeroes::Off, ..self }
    }
}

impl Default for OpenMode {
    fn default() -> Self {
        Self {
            writable: false,
            direct: false,
            no_flush: false,
            write_through: false,
            discard: true,
            detect_zeroes: DetectZeroes::Off,
            aio: Aio::Auto,
            force_share: false,
            locking: true,
            takes: Permissions::RESIZE,
            denies: Permissions::NONE,
            names: ImageNames::Follow,
            commits_down: 0,
        }
    }
}

/// What a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DriverSpec {
    /// A file, a device, or a leaf without storage.
    Leaf(Location),
    /// A block or character device by its path; a file is refused.
    Device(String),
    /// A window on another node.
    Raw {
        /// What it is a window on.
        file: Box<NodeSpec>,
        /// First byte of the window.
        offset: u64,
        /// Bytes; all that there are, without one.
        size: Option<u64>,
    },
    /// A qcow2 image.
    Qcow2 {
        /// What holds the image.
        file: Box<NodeSpec>,
        /// What is read where the image holds nothing.
        backing: ChildSpec,
        /// What holds the guest data of an image that keeps it apart.
        data_file: ChildSpec,
        /// The rest.
        options: Qcow2Options,
    },
    /// An image in another format.
    Image {
        /// Which, and its options.
        format: ImageFormat,
        /// What holds the image.
        file: Box<NodeSpec>,
        /// As for [`Qcow2`](Self::Qcow2); what the format cannot have is refused.
        backing: ChildSpec,
        /// For looks at the metadata: nothing else that the image names is opened, and no key is asked for.
        metadata_only: bool,
    },
    /// An image in the format that its first bytes tell; raw when they tell none.
    Probe {
        /// What holds the image.
        file: Box<NodeSpec>,
        /// As for [`Qcow2`](Self::Qcow2).
        backing: ChildSpec,
        /// What a qcow2 image is opened with, where [`unread`](Self::Probe::unread) does not say otherwise.
        options: Qcow2Options,
        /// Options that are read once it is known which format they are for.
        unread: Map<String, Value>,
    },
    /// A filter.
    Filter {
        /// What it filters.
        file: Box<NodeSpec>,
        /// Which, and how.
        filter: Box<FilterSpec>,
    },
    /// A node that is open already.
    Node(String),
}

/// Where a child of an image comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChildSpec {
    /// From the name that the image holds, as far as [`OpenMode::names`] allows.
    FromImage,
    /// The same, with options that add to it or say otherwise.
    FromImageAnd(Map<String, Value>),
    /// There is none, whatever the image says.
    None,
    /// From here.
    Spec(Box<NodeSpec>),
}

/// What names that an image holds may make us open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ImageNames {
    /// Whatever QEMU would open: paths, and `json:` descriptions of backing files. Data files are paths in any case.
    #[default]
    Follow,
    /// Paths, but no descriptions.
    Plain,
    /// Nothing: an image that names another file is refused.
    Forbid,
}

impl NodeSpec {
    /// A file by its path.
    pub fn file(path: impl Into<String>, mode: OpenMode) -> Self {
        Self { node_name: None, mode, driver: DriverSpec::Leaf(Location::Path(path.into())) }
    }

    /// A leaf by its location.
    pub fn leaf(location: Location, mode: OpenMode) -> Self {
        Self { node_name: None, mode, driver: DriverSpec::Leaf(location) }
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

    /// What is said of the backing file, for a format that may have one.
    pub fn backing_mut(&mut self) -> Option<&mut ChildSpec> {
        match &mut self.driver {
            DriverSpec::Qcow2 { backing, .. }
            | DriverSpec::Probe { backing, .. }
            | DriverSpec::Image { backing, .. } => Some(backing),
            _ => None,
        }
    }

    /// Leaves out backing and data files, extents and keys: what a look at the metadata needs, and nothing that an image
    /// merely names.
    #[must_use]
    pub fn metadata_only(mut self) -> Self {
        if let Some(backing) = self.backing_mut() {
            *backing = ChildSpec::None;
        }
        match &mut self.driver {
            DriverSpec::Qcow2 { options, .. } | DriverSpec::Probe { options, .. } => {
                options.metadata_only = true
            }
            DriverSpec::Image { metadata_only, .. } => *metadata_only = true,
            _ => {}
        }
        self
    }

    /// Whether any part of the tree is a node that is open already.
    pub(super) fn refers_to_nodes(&self) -> bool {
        let child = |child: &ChildSpec| match child {
            ChildSpec::Spec(spec) => spec.refers_to_nodes(),
            ChildSpec::FromImageAnd(options) => options::refer_to_nodes(options),
            ChildSpec::FromImage | ChildSpec::None => false,
        };
        match &self.driver {
            DriverSpec::Leaf(_) | DriverSpec::Device(_) => false,
            DriverSpec::Node(_) => true,
            DriverSpec::Raw { file, .. } => file.refers_to_nodes(),
            DriverSpec::Probe { file, backing, unread, .. } => {
                file.refers_to_nodes() || child(backing) || options::refer_to_nodes(unread)
            }
            DriverSpec::Image { file, backing, format, .. } => {
                file.refers_to_nodes() || child(backing) || format.children().any(Self::refers_to_nodes)
            }
            DriverSpec::Filter { file, filter } => {
                file.refers_to_nodes() || filter.children().any(Self::refers_to_nodes)
            }
            DriverSpec::Qcow2 { file, backing, data_file, .. } => {
                file.refers_to_nodes() || child(backing) || child(data_file)
            }
        }
    }

    fn flags(&self) -> NodeFlags {
        NodeFlags {
            read_only: !self.mode.writable,
            discard: self.mode.discard,
            no_flush: self.mode.no_flush,
            write_through: self.mode.write_through,
            force_share: self.mode.force_share,
            unlocked: !self.mode.locking,
            detect_zeroes: if self.mode.writable { self.mode.detect_zeroes } else { DetectZeroes::Off },
        }
    }
}

/// Opens a tree of nodes, and returns its root.
///
/// # Errors
/// What the leaves, the locks or the formats say; then nothing of the tree stays open.
pub fn open<'a>(io: &'a Io, spec: &'a NodeSpec) -> LocalFuture<'a, Result<NodeId>> {
    Box::pin(async move {
        let root = open_child(io, spec, 0).await?;
        match lock_root(io, spec, root).await {
            Ok(()) => Ok(root),
            Err(error) => Err(undo(io, root, error).await),
        }
    })
}

/// Opens what is `depth` images below the top of a chain.
pub(crate) fn open_child<'a>(
    io: &'a Io,
    spec: &'a NodeSpec,
    depth: usize,
) -> LocalFuture<'a, Result<NodeId>> {
    Box::pin(async move {
        let name = spec.node_name.as_deref();
        if spec.mode.force_share && spec.mode.writable {
            let text = "force-share=on can only be used with read-only images";
            return Err(Box::new(Error::Options(text.into())));
        }
        match &spec.driver {
            DriverSpec::Leaf(Location::Path(_)) if spec.mode.aio == Aio::Native && !spec.mode.direct => {
                let text =
                    "aio=native was specified, but it requires cache.direct=on, which was not specified.";
                Err(Box::new(Error::Options(text.into())))
            }
            DriverSpec::Leaf(location) => {
                let access =
                    LeafAccess { writable: spec.mode.writable, direct: spec.mode.direct, aio: spec.mode.aio };
                io.open_leaf(name, location.clone(), access, spec.flags()).await.map_err(|error| match *error
                {
                    Error::Open { location, errno: Errno::EISDIR } if !access.writable => {
                        let text = format!("'file' driver requires '{location}' to be a regular file");
                        Box::new(Error::Options(text))
                    }
                    _ => error,
                })
            }
            DriverSpec::Device(path) => open_device(io, spec, path).await,
            DriverSpec::Raw { file, offset, size } => {
                let file = open_child(io, file, depth).await?;
                open_raw(io, spec, file, raw_window(io, file, *offset, *size)).await
            }
            DriverSpec::Qcow2 { file, backing, data_file, options } => {
                let file = open_child(io, file, depth).await?;
                open_qcow2(io, spec, file, (backing, data_file, options), depth).await
            }
            DriverSpec::Image { format, file, backing, metadata_only } => {
                let file = open_child(io, file, depth).await?;
                open_image(io, spec, file, depth, (format, backing, *metadata_only)).await
            }
            DriverSpec::Probe { file, backing, options, unread } => {
                open_guessed(io, spec, file, (backing, options, unread), depth).await
            }
            DriverSpec::Filter { file, filter } => {
                let file = open_child(io, file, depth).await?;
                open_filter(io, spec, file, filter, depth).await
            }
            DriverSpec::Node(name) => {
                io.enter_node(name).ok_or_else(|| Box::new(Error::NoSuchNode(name.clone())))
            }
        }
    })
}

/// Opens a device, and nothing else.
async fn open_device(io: &Io, spec: &NodeSpec, path: &str) -> Result<NodeId> {
    let leaf = NodeSpec { driver: DriverSpec::Leaf(Location::Path(path.into())), ..spec.clone() };
    let node = open_child(io, &leaf, 0).await?;
    if io.leaf_info(node).is_some_and(|leaf| leaf.kind == LeafKind::HostDevice) {
        return Ok(node);
    }
    let text = format!("'host_device' driver requires '{path}' to be either a character or block device");
    Err(undo(io, node, Box::new(Error::Options(text))).await)
}

/// Closes what a failed open leaves. The first error is the one that the caller needs to know.
async fn undo(io: &Io, node: NodeId, error: Box<Error>) -> Box<Error> {
    let _ = io.close(node).await;
    error
}

/// Bytes that a format is told by, as many as the reference looks at: a sector, which is what raw's guard keeps guests from making
/// a header of. Every format's magic is within it.
pub(crate) const PROBED_LEN: u64 = 512;

/// The format that the first [`PROBED_LEN`] bytes of a file tell; none, and it is raw.
pub(crate) fn looks_like(head: &[u8]) -> Option<&'static str> {
    if qcow2::probe(head) {
        return Some("qcow2");
    }
    ImageFormat::probe(head).map(|format| format.name())
}

/// Tells the format by the first bytes, or by the name.
async fn probe(io: &Io, file: NodeId) -> Result<Format> {
    let len = io.len(file).min(PROBED_LEN) as usize;
    let head = io.read_bytes("probe", file, 0, len).await?;
    if qcow2::probe(&head) {
        return Ok(Format::Qcow2);
    }
    if let Some(format) = ImageFormat::probe(&head) {
        return Ok(Format::Image(format));
    }
    Ok(ImageFormat::probe_name(&io.title(file)).map_or(Format::Raw, Format::Image))
}

/// Opens an image in the format that it looks like.
async fn open_guessed(
    io: &Io,
    spec: &NodeSpec,
    below: &NodeSpec,
    (backing, options, unread): (&ChildSpec, &Qcow2Options, &Map<String, Value>),
    depth: usize,
) -> Result<NodeId> {
    let file = open_child(io, below, depth).await?;
    let read = async {
        let format = probe(io, file).await?;
        let raw = matches!(format, Format::Raw);
        let read = options::guessed(format, unread.clone(), below.clone(), options.clone());
        // The reference says so before it looks at what the options mean, but not where one cannot be read; and what is
        // below an image is not opened for writing at first.
        let legible = !matches!(&read, Err(error) if matches!(**error, Error::Options(_)));
        if raw && legible && depth == 0 && spec.mode.writable {
            io.report(Event::GuessedRaw { node: io.title(file) });
        }
        read
    };
    match read.await {
        Err(error) => Err(undo(io, file, error).await),
        Ok(DriverSpec::Raw { offset, size, .. }) => {
            open_raw(io, spec, file, raw_window(io, file, offset, size).map(Raw::guessed)).await
        }
        Ok(DriverSpec::Qcow2 { data_file, options, .. }) => {
            open_qcow2(io, spec, file, (backing, &data_file, &options), depth).await
        }
        Ok(DriverSpec::Image { mut format, .. }) => {
            if options.for_check {
                format.for_check();
            }
            open_image(io, spec, file, depth, (&format, backing, options.metadata_only)).await
        }
        Ok(other) => unreachable!("no format: {other:?}"),
    }
}

async fn open_raw(io: &Io, spec: &NodeSpec, file: NodeId, made: Result<Raw>) -> Result<NodeId> {
    let edges = Edges::default();
    edges.set(Role::File, Some(file));
    let made = match made {
        Ok(driver) => Ok(Rc::new(driver) as Rc<dyn Driver>),
        Err(error) => Err(error),
    };
    add_or_undo(io, spec, file, edges, made).await
}

async fn open_image(
    io: &Io,
    spec: &NodeSpec,
    file: NodeId,
    depth: usize,
    (format, backing, metadata_only): (&ImageFormat, &ChildSpec, bool),
) -> Result<NodeId> {
    let edges = Edges::default();
    edges.set(Role::File, Some(file));
    let opened = async {
        lock_child(io, spec, &edges, Role::File).await?;
        format.open(&Opening { io, spec, file, edges: &edges, backing, metadata_only, depth }).await
    };
    let opened = opened.await;
    add_or_undo(io, spec, file, edges, opened).await
}

async fn open_filter(
    io: &Io,
    spec: &NodeSpec,
    file: NodeId,
    filter: &FilterSpec,
    depth: usize,
) -> Result<NodeId> {
    let edges = Edges::default();
    edges.set(Role::File, Some(file));
    let made = filter::open(io, spec, &edges, filter, depth).await;
    add_or_undo(io, spec, file, edges, made).await
}

/// Makes a driver a node above `edges`, or closes what they lead to. The first error is the one that the caller needs
/// to know.
async fn add_or_undo(
    io: &Io,
    spec: &NodeSpec,
    file: NodeId,
    edges: Edges,
    made: Result<Rc<dyn Driver>>,
) -> Result<NodeId> {
    let title = io.title(file);
    let edges = Rc::new(edges);
    let added = made.and_then(|driver| {
        io.add_driver(spec.node_name.as_deref(), &title, spec.flags(), driver, Rc::clone(&edges))
    });
    if added.is_err() {
        let _ = io.close_children(&edges).await;
    }
    added
}

async fn open_qcow2(
    io: &Io,
    spec: &NodeSpec,
    file: NodeId,
    (backing, data_file, options): (&ChildSpec, &ChildSpec, &Qcow2Options),
    depth: usize,
) -> Result<NodeId> {
    let edges = Edges::default();
    edges.set(Role::File, Some(file));
    let opened = async {
        lock_child(io, spec, &edges, Role::File).await?;
        let header = qcow2::read_header(io, file).await?;
        if !options.metadata_only
            && let Some(child) = data_file_spec(io, spec, file, &header, data_file)?
        {
            let child = open_child(io, &child, depth).await?;
            edges.set(Role::DataFile, Some(child));
            lock_child(io, spec, &edges, Role::DataFile).await?;
        }
        let metadata_only = options.metadata_only;
        let opening = Opening { io, spec, file, edges: &edges, backing, metadata_only, depth };
        let name = header.backing_file.as_deref();
        opening.open_backing(name, header.backing_format.as_deref()).await?;
        let key = qcow2::unlock(io, file, &header, options).await?;
        let key = match key {
            qcow2::Key::Luks(sectors) => {
                open_crypt(io, spec, &edges, sectors)?;
                qcow2::Key::Node
            }
            key => key,
        };
        let image = Rc::new(qcow2::open(io, file, header, spec.mode.writable, (options, key)).await?);
        if let Some(interval) = options.cache_clean_interval {
            qcow2::clean_caches(io, &image, interval);
        }
        Ok(image as Rc<dyn Driver>)
    };
    let opened = opened.await;
    add_or_undo(io, spec, file, edges, opened).await
}

/// Puts a node between the image and what holds its data, which encrypts that.
fn open_crypt(io: &Io, spec: &NodeSpec, edges: &Edges, sectors: Sectors) -> Result<()> {
    let data = edges.at(Role::DataFile).or(edges.at(Role::File)).expect("an image has a file");
    let below = Edges::default();
    below.set(Role::File, Some(data));
    let flags = NodeFlags { write_through: false, detect_zeroes: DetectZeroes::Off, ..spec.flags() };
    let node =
        io.add_driver(None, &io.title(data), flags, Rc::new(qcow2::CryptNode(sectors)), Rc::new(below))?;
    // Both have it open.
    io.shared().graph.node(data).enter();
    edges.set(Role::Crypt, Some(node));
    Ok(())
}

/// What the image's data file is: a path, and never more than that, when the image names it.
fn data_file_spec(
    io: &Io,
    spec: &NodeSpec,
    file: NodeId,
    header: &Header,
    choice: &ChildSpec,
) -> Result<Option<NodeSpec>> {
    if !header.has(Incompatible::DATA_FILE) {
        return match choice {
            ChildSpec::Spec(_) => {
                let text = "'data-file' can only be set for images with an external data file";
                Err(Box::new(Error::Options(text.into())))
            }
            _ => Ok(None),
        };
    }
    let name = match (choice, &header.data_file) {
        (ChildSpec::Spec(child), _) => return Ok(Some((**child).clone())),
        (ChildSpec::FromImage, Some(name)) => name,
        _ => {
            let fault = Box::new(Qcow2Error::NoDataFile);
            return Err(Box::new(Error::Format { node: io.title(file), fault }));
        }
    };
    allowed(io, spec, file, "data file", name)?;
    let path = beside(&io.title(file), name);
    Ok(Some(NodeSpec::file(path, spec.mode.below())))
}

fn raw_window(io: &Io, file: NodeId, offset: u64, size: Option<u64>) -> Result<Raw> {
    // The reference counts whole sectors.
    let there = io.len(file).next_multiple_of(512);
    if offset > there {
        return Err(Box::new(Error::Options(format!(
            "Offset ({offset}) cannot be greater than size of the containing file ({there})"
        ))));
    }
    let fits = offset.checked_add(size.unwrap_or(0)).is_some_and(|end| end <= io.len(file));
    if !fits {
        let size = size.unwrap_or(0);
        return Err(Box::new(Error::Options(format!(
            "The sum of offset ({offset}) and size ({size}) has to be smaller or equal to the  actual size of the \
             containing file ({there})"
        ))));
    }
    Ok(Raw::new(offset, size))
}

/// Takes the byte-range locks on the leaf that holds a part of an image, as QEMU does, so that both keep out of each other's
/// way: nobody else writes to an image while it is open. What the nodes above a shared leaf do is added up.
pub(crate) async fn lock_child(io: &Io, spec: &NodeSpec, edges: &Edges, role: Role) -> Result<()> {
    let Some(child) = edges.at(role) else { return Ok(()) };
    let below = below_filters(io, child);
    let changes = Permissions::WRITE.with(Permissions::RESIZE);
    let used = below.used(spec.mode.writable, changes, changes);
    declare_use(io, of_child(io, spec, role, used), edges, below.leaf).await
}

/// The same, of a backing file that is no format and does not say by itself how it is used.
pub(super) async fn lock_backing(io: &Io, image: &NodeSpec, edges: &Edges, mode: OpenMode) -> Result<()> {
    let Some(child) = edges.at(Role::Backing) else { return Ok(()) };
    let below = below_filters(io, child);
    let used = below.used(mode.writable, Permissions::WRITE.with(mode.takes), mode.denies);
    declare_use(io, of_child(io, image, Role::Backing, used), edges, below.leaf).await
}

/// What whoever opened a tree does with the leaf below it, where no format stands between.
async fn lock_root(io: &Io, spec: &NodeSpec, root: NodeId) -> Result<()> {
    let below = below_filters(io, root);
    let used = below.used(spec.mode.writable, Permissions::WRITE.with(spec.mode.takes), spec.mode.denies);
    match io.driver(root) {
        // A node that was open already; and one that has a name, so that others may come to use it in their own way.
        _ if matches!(spec.driver, DriverSpec::Node(_)) => Ok(()),
        None if spec.node_name.is_some() => Ok(()),
        _ => declare_own_use(io, root, below.leaf, used).await,
    }
}

/// Has whoever opened a node do more with the leaf below it, where no format stands between, until the node is closed.
///
/// # Errors
/// When others let nobody do that.
pub async fn take(io: &Io, node: NodeId, more: Permissions) -> Result<()> {
    let leaf = below_filters(io, node).leaf;
    let held = match &io.shared().graph.node(leaf).kind {
        Kind::Leaf(leaf) => leaf.held_by(node),
        Kind::Driver(_) => return Ok(()),
    };
    if held.with(more) == held {
        return Ok(());
    }
    declare_own_use(io, node, leaf, (more, Permissions::ALL)).await
}

/// Declares what whoever opened a node does with the leaf below it, until the node is closed.
async fn declare_own_use(
    io: &Io,
    node: NodeId,
    leaf: NodeId,
    (holds, shares): (Permissions, Permissions),
) -> Result<()> {
    let here = io.shared().graph.node(node);
    let own = Use { user: here.name.clone(), role: Role::File, own: Some(node), holds, shares };
    if node == leaf {
        // It goes with the leaf.
        return io.use_leaf(leaf, own).await.map(|_| ());
    }
    declare_use(io, own, &here.edges, leaf).await
}

/// The node below all filters.
struct BelowFilters {
    leaf: NodeId,
    /// Whether one on the way is shared whatever others do.
    force_share: bool,
    /// What the filters on the way take, and let nobody else take.
    takes: Permissions,
    unshares: Permissions,
}

impl BelowFilters {
    /// What a user does with the leaf who reads it, and takes `changes` where it writes, and what it shares then; together
    /// with what the filters do.
    fn used(&self, writable: bool, changes: Permissions, denies: Permissions) -> (Permissions, Permissions) {
        let changes = if writable { changes } else { Permissions::NONE };
        let denies = if self.force_share { Permissions::NONE } else { denies.with(self.unshares) };
        let holds = Permissions::CONSISTENT_READ.with(changes).with(self.takes);
        (holds, denies.complement())
    }
}

fn below_filters(io: &Io, child: NodeId) -> BelowFilters {
    let none = Permissions::NONE;
    let force_share = io.flags(child).force_share;
    let mut found = BelowFilters { leaf: child, force_share, takes: none, unshares: none };
    // A format has declared by itself what it does with its leaf.
    while let Some(filter) = io.driver(found.leaf).filter(|driver| driver.is_filter())
        && let Some(below) = io.edge(found.leaf, Role::File)
    {
        let (takes, unshares) = filter.child_permissions();
        found.leaf = below;
        found.force_share |= io.flags(below).force_share;
        found.takes = found.takes.with(takes);
        found.unshares = found.unshares.with(unshares);
    }
    found
}

/// What a node that is being opened does with the leaf below its child; the name is for what is said when two do not go
/// together.
fn of_child(io: &Io, spec: &NodeSpec, role: Role, (holds, shares): (Permissions, Permissions)) -> Use {
    let user = spec.node_name.clone().unwrap_or_else(|| io.shared().graph.next_name());
    Use { user, role, own: None, holds, shares }
}

async fn declare_use(io: &Io, new: Use, edges: &Edges, leaf: NodeId) -> Result<()> {
    let used = io.use_leaf(leaf, new).await?;
    if let Some(id) = used {
        edges.add_use(leaf, id);
    }
    Ok(())
}
