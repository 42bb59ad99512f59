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
use crate::graph::driver::{Access, Role};
use crate::graph::{Kind, Leaf, NodeId};
use crate::intent::{Action, Errno, Fua, Label, Outcome, ZeroFlags};

/// A coroutine's access to the engine.
#[derive(Clone)]
pub struct Io {
    shared: Rc<Shared>,
    node: Option<NodeId>,
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

    pub(super) async fn outcome(&self, label: Label, action: Action) -> Outcome {
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
}
