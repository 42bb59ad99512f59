//! What a coroutine may wait for: requests on nodes, intents, and the internal locks of the engine.

use std::rc::Rc;
use std::time::Duration;

use smallvec::SmallVec;

use super::hold::Hold;
use super::path::{Piece, Place, Verb};
use super::serve::Held;
use super::task::{Answer, LocalFuture, Promise};
use super::{AnswerValue, ReplyTo, Shared, Supply};
use crate::buf::{Buf, BufList};
use crate::compute::{Compute, Computed};
use crate::crypto::Secret;
use crate::error::{Error, Result};
use crate::filter::{Blkdebug, DebugEvent};
use crate::graph::driver::{Access, Driver, Mapping, Preallocate, Role};
use crate::graph::{self, Edges, Kind, Leaf, NodeFlags, NodeId, NodeInfo, Use, UseId};
use crate::intent::{
    Action, Errno, Fua, Label, LeafAccess, LeafInfo, LeafKind, LeafStatus, Location, Outcome, Permissions,
    Preallocation, ZeroFlags,
};

/// A coroutine's access to the engine.
#[derive(Clone)]
pub struct Io {
    shared: Rc<Shared>,
    node: Option<NodeId>,
}

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
    pub(crate) fn new(shared: Rc<Shared>, node: Option<NodeId>) -> Self {
        Self { shared, node }
    }

    pub(crate) fn shared(&self) -> &Rc<Shared> {
        &self.shared
    }

    /// The same access for the driver of `node`.
    pub(crate) fn for_node(&self, node: NodeId) -> Self {
        Self { shared: Rc::clone(&self.shared), node: Some(node) }
    }

    /// The node whose driver this is for.
    pub(crate) fn node(&self) -> NodeId {
        self.node.expect("the engine hands a driver access for its node")
    }

    /// The child of the driver's node at the end of an edge.
    pub fn child(&self, role: Role) -> NodeId {
        self.shared.graph.node(self.node()).child(role)
    }

    /// The child at the end of an edge that need not exist.
    pub fn try_child(&self, role: Role) -> Option<NodeId> {
        self.shared.graph.node(self.node()).edges.at(role)
    }

    /// Tells the blkdebug node at the end of the `file` edge, where there is one, that the driver has come to `event`.
    /// Costs a look at a number where the engine has no such node.
    pub(crate) async fn event(&self, event: DebugEvent) {
        if self.shared.debugged.get() > 0
            && let Some(file) = self.try_child(Role::File)
        {
            self.event_at(file, event).await;
        }
    }

    /// Tells `node`, if it is a blkdebug node, or the one that it is a window on, that the driver above has come to
    /// `event`.
    pub(crate) async fn event_at(&self, node: NodeId, event: DebugEvent) {
        if self.shared.debugged.get() > 0 {
            Box::pin(Blkdebug::tell(self, node, event)).await;
        }
    }

    /// A request as it is, without the cache mode of the node.
    pub(super) async fn request(&self, piece: Piece) -> (BufList, Result<()>) {
        let key = self.shared.answers.open(&self.shared.tasks);
        self.shared.start(ReplyTo::Task(key), piece);
        match Answer::new(&self.shared.answers, key).await {
            AnswerValue::Request(data, result) => (data, result),
            AnswerValue::Outcome(outcome) => panic!("a request was answered with {outcome:?}"),
        }
    }

    /// Reads from a node; what lies beyond its end reads as zeros.
    pub async fn read(
        &self,
        label: Label,
        node: NodeId,
        offset: u64,
        data: impl Into<BufList>,
    ) -> (BufList, Result<()>) {
        self.request(Piece::new(label, Verb::Read, node, offset, data.into())).await
    }

    /// Reads `len` bytes into a buffer of its own.
    ///
    /// # Errors
    /// When the read fails.
    pub async fn read_bytes(&self, label: Label, node: NodeId, offset: u64, len: usize) -> Result<Buf> {
        let (data, result) = self.read(label, node, offset, Buf::zeroed(len)).await;
        result.map(|()| data.into_single())
    }

    /// A buffer of `len` zeros for reading from and writing to any of the nodes: where one of them lies on a device that the
    /// executor drives itself, from memory which that device reaches, so that nothing is copied.
    pub fn buffer(&self, nodes: &[NodeId], len: usize) -> Buf {
        let supply = self.shared.supply.borrow().clone();
        let supplied =
            supply.and_then(|supply| nodes.iter().find_map(|node| self.supplied(&*supply, *node, len)));
        match supplied {
            Some(mut buf) => {
                buf.fill(0);
                buf
            }
            None => Buf::zeroed(len),
        }
    }

    /// A buffer for the leaf that holds a node's data.
    fn supplied(&self, supply: &Supply, mut node: NodeId, len: usize) -> Option<Buf> {
        loop {
            let here = self.shared.graph.node(node);
            match &here.kind {
                Kind::Leaf(leaf) => return supply(leaf.info.leaf, len),
                Kind::Driver(_) => node = here.edges.at(Role::DataFile).or(here.edges.at(Role::File))?,
            }
        }
    }

    /// Writes to a node.
    pub async fn write(
        &self,
        label: Label,
        node: NodeId,
        offset: u64,
        data: impl Into<BufList>,
        fua: Fua,
    ) -> (BufList, Result<()>) {
        let verb = self.shared.through(node, Verb::Write(fua));
        self.request(Piece::new(label, verb, node, offset, data.into())).await
    }

    /// Writes to a node in compressed form where it has one.
    pub async fn write_compressed(
        &self,
        label: Label,
        node: NodeId,
        offset: u64,
        data: impl Into<BufList>,
    ) -> (BufList, Result<()>) {
        let verb = self.shared.through(node, Verb::WriteCompressed);
        self.request(Piece::new(label, verb, node, offset, data.into())).await
    }

    /// Makes a range of a node read as zeros.
    ///
    /// # Errors
    /// When a leaf fails; `ENOTSUP` where `no_fallback` forbids to write data.
    pub async fn write_zeroes(
        &self,
        label: Label,
        node: NodeId,
        offset: u64,
        len: u64,
        flags: ZeroFlags,
    ) -> Result<()> {
        let verb = self.shared.through(node, Verb::WriteZeroes(flags, Fua::No));
        self.request(Piece::range(label, verb, node, offset, len)).await.1
    }

    /// Gives up the content of a range of a node.
    ///
    /// # Errors
    /// When a leaf fails; a leaf that cannot discard does not.
    pub async fn discard(&self, label: Label, node: NodeId, offset: u64, len: u64) -> Result<()> {
        self.request(Piece::range(label, Verb::Discard, node, offset, len)).await.1
    }

    /// Makes an image hold nothing, durably, so that its backing file, or zeros, show through. Who asks has nothing in flight
    /// on the node: it would meet what the image was. Requests that come meanwhile wait, also when who asked has given up.
    ///
    /// # Errors
    /// When a leaf fails; [`Error::Unsupported`] for a format that cannot be emptied.
    pub async fn make_empty(&self, node: NodeId) -> Result<()> {
        let here = self.shared.graph.node(node);
        if here.flags.read_only {
            return Err(Box::new(Error::ReadOnly { node: here.name.clone() }));
        }
        match &here.kind {
            Kind::Driver(driver) => {
                let (driver, io) = (Rc::clone(driver), self.for_node(node));
                // Whoever gives this up cannot know when it ends, and would write to blocks that are being taken out.
                let hold = Hold::take(&self.shared, node).await;
                self.to_end(async move {
                    let _hold = hold;
                    driver.make_empty(&io).await
                })
                .await
            }
            Kind::Leaf(leaf) => Err(Box::new(Error::Unsupported {
                node: here.name.clone(),
                driver: leaf.driver_name(),
                what: "emptying",
            })),
        }
    }

    /// Makes everything durable that completed on a node before.
    ///
    /// # Errors
    /// When a leaf fails; then what was written since the last flush may be lost, and every later flush fails too.
    pub async fn flush(&self, label: Label, node: NodeId) -> Result<()> {
        self.request(Piece::range(label, Verb::Flush, node, 0, 0)).await.1
    }

    async fn outcome(&self, label: Label, action: Action) -> Outcome {
        let key = self.shared.ask(label, action);
        match Answer::new(&self.shared.answers, key).await {
            AnswerValue::Outcome(outcome) => outcome,
            AnswerValue::Request(..) => panic!("an intent was answered as a request"),
        }
    }

    /// Emits an intent that only succeeds or fails.
    pub(crate) async fn done(&self, label: Label, action: Action) -> Result<(), Errno> {
        match self.outcome(label, action).await {
            Outcome::Done(result) => result,
            other => panic!("an executor answered {label} with {other:?}"),
        }
    }

    /// Emits an intent that moves bytes.
    pub(crate) async fn moved(&self, label: Label, action: Action) -> (BufList, Result<usize, Errno>) {
        match self.outcome(label, action).await {
            Outcome::Moved { data, result } => (data, result),
            other => panic!("an executor answered {label} with {other:?}"),
        }
    }

    /// Bytes that nobody can foretell, for an image in `file`.
    ///
    /// # Errors
    /// When the host has none.
    pub async fn entropy<const N: usize>(&self, file: NodeId) -> Result<[u8; N]> {
        let action = Action::Entropy { data: Buf::zeroed(N).into() };
        let (data, result) = self.moved("entropy", action).await;
        match result {
            Ok(moved) if moved == N => Ok(data.into_single()[..].try_into().expect("as long as it was")),
            Ok(_) => Err(Box::new(Error::Entropy { location: self.title(file), errno: Errno::EIO })),
            Err(errno) => Err(Box::new(Error::Entropy { location: self.title(file), errno })),
        }
    }

    /// Bytes that nobody can foretell, as many as are asked for.
    ///
    /// # Errors
    /// When the host has none.
    pub async fn entropy_bytes(&self, file: NodeId, len: usize) -> Result<Buf> {
        let mut bytes = Buf::zeroed(len);
        let mut done = 0;
        while done < len {
            let rest = Buf::zeroed(len - done);
            let (data, result) = self.moved("entropy", Action::Entropy { data: rest.into() }).await;
            let moved = match result {
                Ok(0) => Err(Errno::EIO),
                other => other,
            };
            let moved = moved.map_err(|errno| Error::Entropy { location: self.title(file), errno })?;
            data.copy_out(0, &mut bytes[done..]);
            done += moved;
        }
        Ok(bytes)
    }

    /// The secret of that id.
    ///
    /// # Errors
    /// When there is none.
    pub fn secret(&self, id: &str) -> Result<Secret> {
        let found = self.shared.secrets.borrow().find(id);
        found.ok_or_else(|| Box::new(Error::Options(format!("No secret with id '{id}'"))))
    }

    /// Has several pieces of work done side by side; the answers come in the order of the pieces.
    pub(crate) async fn compute_all(
        &self,
        label: Label,
        works: impl IntoIterator<Item = Compute>,
    ) -> SmallVec<[Computed; 4]> {
        let ask = |work| self.shared.ask(label, Action::Compute(Box::new(work)));
        let keys: SmallVec<[u32; 4]> = works.into_iter().map(ask).collect();
        let mut done = SmallVec::new();
        for key in keys {
            match Answer::new(&self.shared.answers, key).await {
                AnswerValue::Outcome(Outcome::Computed(computed)) => done.push(computed),
                _ => panic!("an executor answered {label} with something else"),
            }
        }
        done
    }

    /// Has CPU-heavy work done where the executor chooses.
    pub async fn compute(&self, label: Label, work: Compute) -> Computed {
        match self.outcome(label, Action::Compute(Box::new(work))).await {
            Outcome::Computed(computed) => computed,
            other => panic!("an executor answered {label} with {other:?}"),
        }
    }

    /// Tells whoever watches the engine that something happened.
    pub(crate) fn report(&self, event: super::Event) {
        self.shared.report(event);
    }

    /// Lets time pass.
    pub async fn sleep(&self, duration: Duration) {
        // A timer that fails is a timer that rang at once.
        let _ = self.done("sleep", Action::Sleep { duration }).await;
    }

    /// Has something done by a coroutine of its own, which goes on to its end where the one that waits for it is dropped:
    /// steps of which all have to be taken, or memory would no longer say what is on the disk.
    pub(crate) async fn to_end<T: 'static>(&self, work: impl Future<Output = T> + 'static) -> T {
        let key = self.shared.answers.open(&self.shared.tasks);
        let promise = Promise::default();
        let (shared, fulfil) = (Rc::clone(&self.shared), Rc::clone(&promise));
        self.spawn(Box::pin(async move {
            let value = work.await;
            *fulfil.borrow_mut() = Some(value);
            shared.answers.fill(&shared.tasks, key, AnswerValue::Request(BufList::new(), Ok(())));
        }));
        Answer::new(&self.shared.answers, key).await;
        promise.take().expect("it has just ended")
    }

    /// Starts another coroutine beside this one.
    pub fn spawn(&self, coroutine: LocalFuture<'static, ()>) {
        self.shared.tasks.spawn(coroutine);
    }

    /// Waits until every request that is in flight has ended; not to be used within one.
    pub(crate) async fn quiesce(&self) {
        self.shared.epochs.quiesce(&self.shared.tasks).await;
    }

    /// Length of what a node shows, in bytes.
    pub fn len(&self, node: NodeId) -> u64 {
        self.shared.graph.len(node)
    }

    /// Bytes of a node's unit of allocation; 1 where there is none.
    pub fn granularity(&self, node: NodeId) -> u64 {
        self.driver(node).map_or(1, |driver| driver.granularity())
    }

    /// Whether a node that was just made reads as zeros: a file does, a device holds what it held.
    pub fn starts_as_zeroes(&self, node: NodeId) -> bool {
        match self.driver(node) {
            None => self.leaf_info(node).is_some_and(|info| info.grows_as_zeroes),
            Some(driver) if driver.is_filter() => {
                self.edge(node, Role::File).is_some_and(|file| self.starts_as_zeroes(file))
            }
            Some(driver) if !driver.starts_as_zeroes() => false,
            Some(_) => self.edge(node, Role::DataFile).is_none_or(|data| self.starts_as_zeroes(data)),
        }
    }

    /// Describes the graph.
    pub fn graph(&self) -> Vec<NodeInfo> {
        self.shared.graph.describe()
    }

    /// The node of that name.
    pub fn find_node(&self, name: &str) -> Option<NodeId> {
        self.shared.graph.find(name)
    }

    /// The file name or node name that a node goes by.
    pub fn title(&self, node: NodeId) -> String {
        self.shared.graph.node(node).title.clone()
    }

    /// How a node was opened.
    pub(crate) fn flags(&self, node: NodeId) -> NodeFlags {
        self.shared.graph.node(node).flags
    }

    /// The driver of a node, unless it is a leaf.
    pub fn driver(&self, node: NodeId) -> Option<Rc<dyn Driver>> {
        match &self.shared.graph.node(node).kind {
            Kind::Driver(driver) => Some(Rc::clone(driver)),
            Kind::Leaf(_) => None,
        }
    }

    /// Name of the driver of a node.
    pub fn driver_name(&self, node: NodeId) -> &'static str {
        self.shared.graph.node(node).driver_name()
    }

    /// What the executor said of a leaf.
    pub fn leaf_info(&self, node: NodeId) -> Option<LeafInfo> {
        match &self.shared.graph.node(node).kind {
            Kind::Leaf(leaf) => Some(leaf.info.clone()),
            Kind::Driver(_) => None,
        }
    }

    /// The child of any node at the end of an edge.
    pub fn edge(&self, node: NodeId, role: Role) -> Option<NodeId> {
        self.shared.graph.node(node).edges.at(role)
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
        match self.shared.graph.add(name, &title, flags, kind, Rc::default()) {
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
        let here = self.shared.graph.node(node);
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
        let here = self.shared.graph.node(node);
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
        let _one_at_a_time = leaf.locks.enter(&self.shared.tasks).await;
        let (holds, shares) = leaf.used_as();
        self.lock(node, holds, shares).await
    }

    /// Takes the image locks of a leaf.
    pub(crate) async fn lock(&self, node: NodeId, holds: Permissions, shares: Permissions) -> Result<()> {
        let here = self.shared.graph.node(node);
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
        Ok(self.shared.graph.add(name, title, flags, Kind::Driver(driver), edges)?.id)
    }

    /// Closes a node and everything below it, drivers first. What a driver holds back is written out. A node that
    /// somebody else has open too stays.
    ///
    /// # Errors
    /// The first failure; all nodes are gone all the same.
    pub fn close(&self, node: NodeId) -> LocalFuture<'_, Result<()>> {
        Box::pin(async move {
            let here = self.shared.graph.node(node);
            if !here.leave() {
                return Ok(());
            }
            // A coroutine that was dropped may have left requests behind, and they use the node until their end.
            self.shared.answers.settle(&self.shared.tasks).await;
            let mut result = match &here.kind {
                Kind::Driver(driver) => driver.close(&self.for_node(node)).await,
                Kind::Leaf(leaf) => {
                    let closed = self.done("close", Action::Close { leaf: leaf.info.leaf }).await;
                    closed.map_err(|errno| leaf.error("close", 0, 0, errno))
                }
            };
            self.shared.graph.remove(node);
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
            if self.shared.graph.node(node).is_shared() {
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
        let node = self.shared.graph.find(name)?;
        self.shared.graph.node(node).enter();
        Some(node)
    }

    /// Changes the length of a leaf, or of the leaf below filters that pass it on.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where a format is in the way; else the leaf's.
    pub async fn set_len(&self, node: NodeId, len: u64, preallocation: Preallocation) -> Result<()> {
        let here = self.shared.graph.node(node);
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
        let here = self.shared.graph.node(node);
        let unsupported = |what| {
            Err(Box::new(Error::Unsupported { node: here.name.clone(), driver: here.driver_name(), what }))
        };
        match &here.kind {
            Kind::Leaf(_) if here.flags.read_only => {
                Err(Box::new(Error::ReadOnly { node: here.name.clone() }))
            }
            Kind::Leaf(leaf) if leaf.info.kind == LeafKind::Null => unsupported("a change of length"),
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
                    self.shared.let_go(node).await;
                    self.to_end(async move { driver.resize(&io, len, how).await }).await
                }
            },
        }
    }

    /// Says what backs the range at `offset`, through the whole chain down to `base` (which is left out), and down to
    /// the holes of the leaf.
    ///
    /// # Errors
    /// When metadata is damaged or cannot be read.
    pub async fn status(&self, node: NodeId, offset: u64, len: u64, base: Option<NodeId>) -> Result<Status> {
        let _counted = self.shared.epochs.count(&self.shared.tasks);
        let (mut node, mut offset, mut len, mut depth) = (node, offset, len, 0);
        loop {
            let here = self.shared.graph.node(node);
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
        self.shared.graph.with(|nodes| {
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

    /// Copies between a leaf and a node within the host, as far as both hold the range as it is. Returns the bytes
    /// copied; 0 where the host cannot, and the caller is to read and write.
    ///
    /// # Errors
    /// When the leaf fails.
    pub async fn copy_range(
        &self,
        label: Label,
        (from, from_offset): (NodeId, u64),
        (to, to_offset): (NodeId, u64),
        len: u64,
    ) -> Result<u64> {
        let _counted = self.shared.epochs.count(&self.shared.tasks);
        let source = self.shared.graph.node(from);
        let Kind::Leaf(source) = &source.kind else { return Ok(0) };
        loop {
            let target = self.shared.graph.with(|nodes| {
                match super::path::resolve(nodes, to, to_offset, len, Access::Write) {
                    Ok((len, Place::Leaf { node, offset })) => Some((len, node, offset)),
                    _ => None,
                }
            });
            let Some((len, node, offset)) = target else { return Ok(0) };
            let target = self.shared.graph.node(node);
            let Kind::Leaf(leaf) = &target.kind else { return Ok(0) };
            let (first, last, against) = leaf.blocks_of_write(offset, offset + len);
            let Some(_held) = Held::try_take(&self.shared, leaf, first, last, against) else {
                // While this waits, the target may get its data elsewhere.
                drop(Held::take(self, leaf, first, last, against).await);
                continue;
            };
            return self.copy_to_leaf(label, (source, from_offset), (leaf, offset), len).await;
        }
    }

    /// Copies to blocks that the caller holds.
    async fn copy_to_leaf(
        &self,
        label: Label,
        (source, from_offset): (&Leaf, u64),
        (target, to_offset): (&Leaf, u64),
        len: u64,
    ) -> Result<u64> {
        let (from, to) = (source.info.leaf, target.info.leaf);
        let (_, result) =
            self.moved(label, Action::CopyRange { from, from_offset, to, to_offset, len }).await;
        match result {
            Ok(moved) => {
                target.wrote(to_offset + moved as u64);
                Ok(moved as u64)
            }
            // Whatever the reason, reading and writing will tell it, or do.
            Err(_) => Ok(0),
        }
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
