//! The engine: single-threaded, deterministic, passive.
//!
//! ```text
//!   submit(Request) ─▶ ┌────────┐ ─▶ next_intent()  ─▶ an executor does it
//!                      │ Engine │
//!   next_reply()    ◀─ └────────┘ ◀─ complete(token, Outcome)
//! ```
//!
//! Owns the graph, the requests and the coroutines. Refuses to do I/O, read a clock or draw a random number. The same
//! calls in the same order give the same intents in the same order. Start at [`Engine`]; where a request goes is in
//! `path` (synchronous) and `serve` (coroutines).

pub(crate) mod claims;
mod epoch;
pub(crate) mod hold;
mod io;
mod nodes;
pub(crate) mod path;
mod places;
mod serve;
mod status;
pub(crate) mod task;
mod whole;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::rc::Rc;

use slab::Slab;

pub use io::Io;
pub use places::{Places, Stored};
pub use status::Status;
pub use task::LocalFuture;
pub use whole::Lone;

use crate::buf::{Buf, BufList};
use crate::error::{Error, Result};
use crate::graph::{DetectZeroes, Graph, Kind, NodeId, NodeInfo};
use crate::intent::{Fua, Intent, Label, LeafId, Outcome, Token, ZeroFlags};
use path::{Part, Piece, Slot, Verb};
use task::{Answers, Promise, Tasks};

/// What a caller asks of a node.
#[derive(Debug)]
pub struct Request {
    /// Which node.
    pub node: NodeId,
    /// What to do.
    pub op: Op,
    /// First byte in the node.
    pub offset: u64,
    /// Bytes, for what carries no data; reads and writes take the length of `data`.
    pub len: u64,
    /// Room for what is read, or the bytes to write. Comes back in the reply.
    pub data: BufList,
    /// The caller's own number for the request; comes back in the reply.
    pub tag: u64,
}

/// The verbs of a request. Told apart by a byte of their own: what they come with has room for that, but then it takes six
/// instructions to find out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[repr(u8)]
pub enum Op {
    /// Fill `data`.
    Read,
    /// Write `data`.
    Write(Fua),
    /// Write `data` in compressed form, where the format has one and the data shrinks. Whole clusters.
    WriteCompressed,
    /// Make the range read as zeros.
    WriteZeroes(ZeroFlags, Fua),
    /// Give up the content of the range.
    Discard,
    /// Make everything durable that completed before.
    Flush,
}

/// Something that happened to a node by itself, for who watches it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// An image that is opened for writing was taken for raw, because nobody said what it is, and nothing else fits.
    GuessedRaw {
        /// What it is in.
        node: String,
    },
    /// An image that was not closed properly is repaired as it is opened: a line of the check, in the words of
    /// `qemu-img check`.
    Repair {
        /// The node, or what it is made from while it is none yet.
        node: String,
        /// The line.
        line: String,
    },
    /// Metadata of an image was found broken (`BLOCK_IMAGE_CORRUPTED`).
    ImageCorrupted {
        /// The node.
        node: String,
        /// What was found, in the words of the reference.
        message: String,
        /// Where, if it is about a place in the file that holds the image.
        offset: Option<u64>,
        /// Whether the image was marked, and is not written to any more; else it was open for reading.
        fatal: bool,
    },
}

/// Events that wait for their reader; more are dropped, the oldest first.
const EVENTS_MAX: usize = 1024;

/// What became of a request, or of a job.
#[derive(Debug)]
pub struct Reply {
    /// The caller's number.
    pub tag: u64,
    /// The buffers of the request.
    pub data: BufList,
    /// Whether all of it worked. Of a job: it ended; what it gave is in its [`Job`].
    pub result: Result<()>,
}

/// Takes the result of a coroutine that [`Engine::run`] started.
#[derive(Debug)]
pub struct Job<T>(Promise<T>);

impl<T> Job<T> {
    /// The result, once the reply with the job's tag has come; only once.
    pub fn take(&self) -> Option<T> {
        self.0.borrow_mut().take()
    }
}

/// Who waits for a request.
#[derive(Clone, Copy)]
#[repr(u64)]
pub(crate) enum ReplyTo {
    Caller(u64),
    Task(u32),
}

/// Answers that coroutines wait for.
pub(crate) enum AnswerValue {
    Outcome(Outcome),
    Request(BufList, Result<()>),
}

/// Who waits for an intent.
#[derive(Clone, Copy)]
#[repr(u64)]
pub(crate) enum Flight {
    Part(Part),
    Whole(whole::Whole),
    Task(u32),
}

/// Gives a buffer of so many bytes that the device behind a leaf reaches without copying, while there is one.
pub(crate) type Supply = dyn Fn(LeafId, usize) -> Option<Buf>;

/// The state behind [`Engine`] and [`Io`].
#[derive(Default)]
pub(crate) struct Shared {
    pub(crate) graph: Graph,
    pub(crate) intents: RefCell<VecDeque<Intent>>,
    replies: RefCell<VecDeque<Reply>>,
    events: RefCell<VecDeque<Event>>,
    flights: RefCell<Slab<(u32, Flight)>>,
    generation: Cell<u32>,
    pub(crate) requests: RefCell<Slab<Slot>>,
    pub(crate) tasks: Tasks,
    pub(crate) answers: Answers<AnswerValue>,
    pub(crate) epochs: epoch::Epochs,
    pub(crate) holds: hold::Holds,
    pub(crate) cycles: Cell<u64>,
    /// Passphrases, by the ids that options refer to them by.
    pub(crate) secrets: RefCell<crate::crypto::Secrets>,
    /// Nodes that wait for events of the drivers above them; each counts itself while it lives.
    pub(crate) debugged: Rc<Cell<u32>>,
    /// Where memory comes from that devices reach, if there is any.
    pub(crate) supply: RefCell<Option<Rc<Supply>>>,
    /// The engine itself, for what outlives a call.
    pub(crate) this: RefCell<std::rc::Weak<Shared>>,
}

/// A block layer on one thread.
///
/// ```
/// use drystone_core::engine::Engine;
/// let engine = Engine::new();
/// assert!(engine.next_intent().is_none());
/// ```
pub struct Engine(Rc<Shared>);

impl Default for Engine {
    fn default() -> Self {
        Self::new()
    }
}

impl Engine {
    /// Returns an engine with an empty graph.
    pub fn new() -> Self {
        let shared = Rc::new(Shared::default());
        *shared.this.borrow_mut() = Rc::downgrade(&shared);
        Self(shared)
    }

    /// Has jobs take their buffers from `supply`, which is asked for so many bytes for a leaf, and may have none. What it
    /// gives holds anything.
    pub fn supply_buffers(&self, supply: impl Fn(LeafId, usize) -> Option<Buf> + 'static) {
        *self.0.supply.borrow_mut() = Some(Rc::new(supply));
    }

    /// Begins a request. Its intents are ready when this returns; so may be its reply.
    #[inline]
    pub fn submit(&self, request: Request) {
        if let Err(request) = self.0.begin_whole(request) {
            self.0.submit_any(request);
        }
    }

    /// Finds the place of a read, or of a write that need not be durable, for a caller who carries it out and waits for it: past
    /// intents, outcomes and replies. Nothing where it is not just one buffer and one range of one leaf that memory knows.
    ///
    /// Nothing else may be asked of the engine until it ends with [`end_lone`](Self::end_lone), or is counted with
    /// [`count_lone`](Self::count_lone); another one may begin once it ended, or went on with
    /// [`lone_goes_on`](Self::lone_goes_on). One that its caller does not begin to carry out is dropped before that; one that is
    /// counted has to end, or space is never given out again.
    #[inline(always)]
    pub fn begin_lone(&self, node: NodeId, op: Op, offset: u64, data: &BufList) -> Option<Lone> {
        self.0.begin_lone(op, (node, offset), data)
    }

    /// Counts a lone request among those in flight: from now on the engine waits for it before it gives space to others that
    /// the request may have found, and may be asked for other things beside it. Does nothing the second time.
    pub fn count_lone(&self, lone: &mut Lone) {
        self.0.count_lone(lone);
    }

    /// Ends a lone request: all of its bytes were moved. Tells whether there is something for the executor to do, which comes
    /// of what went on beside it.
    #[inline(always)]
    pub fn end_lone(&self, lone: Lone) -> bool {
        // Who ends alone kept nobody waiting.
        self.0.end_lone(&lone) && {
            self.0.tasks.run();
            self.has_intents()
        }
    }

    /// Has a lone request that was begun to be carried out be answered as any other: what comes of it is handed in under this
    /// token, and then comes a reply with `tag`.
    pub fn lone_goes_on(&self, lone: Lone, tag: u64) -> Token {
        self.0.lone_flies(lone, tag)
    }

    /// Whether there is something for the executor to do.
    #[inline]
    pub fn has_intents(&self) -> bool {
        !self.0.intents.borrow().is_empty()
    }

    /// The next thing for the executor to do, in the order in which core wants them begun.
    #[inline]
    pub fn next_intent(&self) -> Option<Intent> {
        self.0.intents.borrow_mut().pop_front()
    }

    /// Hands in the answer to an intent.
    ///
    /// # Panics
    /// When the token was answered before, or the outcome is of another kind than the intent: a bug of the executor.
    #[inline]
    pub fn complete(&self, token: Token, outcome: Outcome) {
        self.0.complete(token, outcome);
        self.0.tasks.run();
    }

    /// The next request or job that ended.
    #[inline]
    pub fn next_reply(&self) -> Option<Reply> {
        self.0.replies.borrow_mut().pop_front()
    }

    /// The next thing that happened to a node by itself. Nobody has to ask: what is not read is dropped in time.
    pub fn next_event(&self) -> Option<Event> {
        self.0.events.borrow_mut().pop_front()
    }

    /// Keeps a passphrase or key, which options of nodes refer to by `id`; a later one of that id replaces it.
    pub fn add_secret(&self, id: &str, secret: crate::crypto::Secret) {
        self.0.secrets.borrow_mut().add(id, secret);
    }

    /// Starts a coroutine: opening, closing, a job. A reply with `tag` says that it ended.
    ///
    /// Inside, only what [`Io`] offers may be awaited.
    pub fn run<T: 'static, F: Future<Output = T> + 'static>(
        &self,
        tag: u64,
        coroutine: impl FnOnce(Io) -> F,
    ) -> Job<T> {
        let promise: Promise<T> = Promise::default();
        let work = coroutine(Io::new(Rc::clone(&self.0), None));
        let (shared, fulfil) = (Rc::clone(&self.0), Rc::clone(&promise));
        self.0.tasks.spawn(Box::pin(async move {
            let value = work.await;
            *fulfil.borrow_mut() = Some(value);
            shared.reply(ReplyTo::Caller(tag), BufList::new(), Ok(()));
        }));
        self.0.tasks.run();
        Job(promise)
    }

    /// Describes the graph.
    pub fn graph(&self) -> Vec<NodeInfo> {
        self.0.graph.describe()
    }

    /// Length of what a guest may ask a node for, in bytes.
    pub fn len(&self, node: NodeId) -> u64 {
        self.0.graph.with(|nodes| crate::graph::guest_length(nodes, node))
    }

    /// Coroutines started so far. Tests pin it: a request that memory answers starts none.
    pub fn coroutines(&self) -> u64 {
        self.0.tasks.started()
    }

    /// Tells whether nothing is in flight: no intent, no request (other than a [lone](Self::begin_lone) one, until it
    /// goes on as any other), no coroutine.
    pub fn is_idle(&self) -> bool {
        self.0.flights.borrow().is_empty()
            && self.0.requests.borrow().is_empty()
            && self.0.tasks.len() == 0
            && self.0.intents.borrow().is_empty()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // Coroutines hold the shared state; without this, dropping an engine with work in flight would leak it.
        self.0.tasks.clear();
    }
}

impl Shared {
    /// Begins any request, and runs whatever coroutines it starts.
    #[inline(never)]
    fn submit_any(&self, request: Request) {
        let Request { node, op, offset, len, data, tag } = request;
        let (verb, label) = match op {
            Op::Read => (Verb::Read, "read"),
            Op::Write(fua) => (Verb::Write(fua), "write"),
            Op::WriteCompressed => (Verb::WriteCompressed, "write_compressed"),
            Op::WriteZeroes(flags, fua) => (Verb::WriteZeroes(flags, fua), "write_zeroes"),
            Op::Discard => (Verb::Discard, "discard"),
            Op::Flush => (Verb::Flush, "flush"),
        };
        let len = if data.is_empty() { len } else { data.len_bytes() as u64 };
        if let Err(error) = self.admit(node, verb, offset, len) {
            return self.reply(ReplyTo::Caller(tag), data, Err(error));
        }
        let verb = self.through(node, verb);
        self.start(
            ReplyTo::Caller(tag),
            Piece { request: 0, label, verb, node, offset, len, position: 0, through: false, data },
        );
        self.tasks.run();
    }

    /// The verb for a node whose writes are durable when they complete, or are looked at for zeros.
    #[inline]
    pub(crate) fn through(&self, node: NodeId, verb: Verb) -> Verb {
        let flags = self.graph.with(|nodes| crate::graph::at(nodes, node).flags);
        let durable = flags.write_through;
        let verb = match verb {
            Verb::Write(_) if durable => Verb::Write(Fua::Yes),
            Verb::WriteZeroes(flags, _) if durable => Verb::WriteZeroes(flags, Fua::Yes),
            verb => verb,
        };
        if flags.detect_zeroes == DetectZeroes::Off { verb } else { verb.looking() }
    }

    /// Checks what a caller asks against the node; what core asks of itself needs no checking.
    #[inline]
    fn admit(&self, node: NodeId, verb: Verb, offset: u64, len: u64) -> Result<()> {
        self.graph.with(|nodes| {
            let Some(here) = nodes.get(node.0 as usize).and_then(Option::as_ref) else {
                return Err(Box::new(Error::NoSuchNode(format!("#{}", node.0))));
            };
            if here.flags.read_only && !matches!(verb, Verb::Read | Verb::Flush) {
                return Err(Box::new(Error::ReadOnly { node: here.name.clone() }));
            }
            let size = crate::graph::guest_length(nodes, node);
            if verb != Verb::Flush && offset.checked_add(len).is_none_or(|end| end > size) {
                let (node, operation) = (here.name.clone(), verb.name());
                return Err(Box::new(Error::OutOfRange { node, operation, offset, len, size }));
            }
            Ok(())
        })
    }

    /// Begins a request, once nobody holds its node.
    #[inline(always)]
    pub(crate) fn start(&self, to: ReplyTo, piece: Piece) {
        if self.holds.any() { self.start_later(to, piece) } else { self.start_now(to, piece) }
    }

    #[cold]
    fn start_later(&self, to: ReplyTo, piece: Piece) {
        if !self.is_held(piece.node) {
            return self.start_now(to, piece);
        }
        let this = self.this.borrow().upgrade().expect("requests run while the engine lives");
        self.tasks.spawn(Box::pin(async move {
            this.let_go(piece.node).await;
            this.start_now(to, piece);
        }));
    }

    /// Begins a request: as one intent without books, where that will do.
    #[inline(always)]
    fn start_now(&self, to: ReplyTo, piece: Piece) {
        let writes = match piece.verb {
            Verb::Read if self.debugged.get() > 0 => return self.start_parts(to, piece),
            Verb::Read => false,
            Verb::Write(Fua::No) => true,
            _ => return self.start_parts(to, piece),
        };
        let Piece { label, verb, node, offset, len, data, .. } = piece;
        if let Err((to, data)) = self.start_whole(to, writes, label, (node, offset), data) {
            self.start_parts(
                to,
                Piece { request: 0, label, verb, node, offset, len, position: 0, through: false, data },
            );
        }
    }

    /// Begins a request with books on what it is split into.
    #[inline(never)]
    fn start_parts(&self, to: ReplyTo, mut piece: Piece) {
        // A flush waits for commits that wait for quiescence, so it is not counted itself.
        let epoch = (piece.verb != Verb::Flush).then(|| self.epochs.enter());
        piece.request = self.open_request(to, epoch);
        let discards = || self.graph.with(|nodes| crate::graph::at(nodes, piece.node).flags.discard);
        if let Verb::WriteZeroes(flags, _) = &mut piece.verb {
            // Zeros keep their space where discards are ignored.
            flags.may_unmap &= discards();
        }
        match piece.verb {
            // A driver that is watched says where it reads from.
            Verb::Read if self.debugged.get() > 0 && self.has_backing(piece.node) => self.serve(piece),
            Verb::Read | Verb::Write(Fua::No) | Verb::WriteZeroes(_, Fua::No) => self.dispatch(piece),
            Verb::Write(Fua::Yes) if self.is_clean(piece.node) => self.dispatch(piece),
            Verb::Discard if !discards() => self.settle(piece.request, 0, piece.data, Ok(())),
            Verb::Discard => self.dispatch(piece),
            _ => self.serve(piece),
        }
    }

    fn has_backing(&self, node: NodeId) -> bool {
        self.graph.with(|nodes| crate::graph::at(nodes, node).edges.at(crate::graph::Role::Backing).is_some())
    }

    /// Whether no driver below `node` holds metadata back.
    fn is_clean(&self, node: NodeId) -> bool {
        self.graph.with(|nodes| {
            let mut next = Some(node);
            while let Some(id) = next {
                let here = crate::graph::at(nodes, id);
                match &here.kind {
                    Kind::Driver(driver) if !driver.is_clean() => return false,
                    _ => next = here.edges.at(crate::graph::Role::File),
                }
            }
            true
        })
    }

    pub(crate) fn serve(&self, piece: Piece) {
        let this = self.this.borrow().upgrade().expect("requests run while the engine lives");
        self.tasks.serve(piece, || Box::new(serve::slot(this)));
    }

    #[inline(always)]
    pub(crate) fn fly(&self, flight: Flight) -> Token {
        let generation = self.generation.get();
        self.generation.set(generation.wrapping_add(1));
        let key = self.flights.borrow_mut().insert((generation, flight));
        Token(u64::from(generation) << 32 | key as u64)
    }

    /// Has images marked whose metadata was found broken by what has just failed.
    #[cold]
    pub(crate) fn after_failure(&self) {
        let Some(this) = self.this.borrow().upgrade() else { return };
        let broken: Vec<_> = self.graph.with(|nodes| {
            let drivers = nodes.iter().flatten().filter_map(|node| match &node.kind {
                Kind::Driver(driver) if driver.is_broken() => Some((node.id, Rc::clone(driver))),
                _ => None,
            });
            drivers.collect()
        });
        for (node, driver) in broken {
            let io = Io::new(Rc::clone(&this), Some(node));
            // A mark that cannot be written is tried again when the image is closed, which tells.
            self.tasks.spawn(Box::pin(async move { drop(driver.mark_broken(&io).await) }));
        }
    }

    pub(crate) fn report(&self, event: Event) {
        let mut events = self.events.borrow_mut();
        if events.len() == EVENTS_MAX {
            events.pop_front();
        }
        events.push_back(event);
    }

    /// Emits an intent that the running coroutine waits for.
    pub(crate) fn ask(&self, label: Label, action: crate::intent::Action) -> u32 {
        let key = self.answers.open(&self.tasks);
        let token = self.fly(Flight::Task(key));
        self.intents.borrow_mut().push_back(Intent { token, label, action });
        key
    }

    fn complete(&self, token: Token, outcome: Outcome) {
        let (key, generation) = ((token.0 & 0xffff_ffff) as usize, (token.0 >> 32) as u32);
        let mut flights = self.flights.borrow_mut();
        let flight = match flights.get(key) {
            Some((current, flight)) if *current == generation => flight,
            _ => panic!("{token:?} is not in flight: an intent is answered exactly once"),
        };
        match *flight {
            Flight::Whole(whole) => {
                flights.remove(key);
                drop(flights);
                self.whole_done(token, whole, outcome);
            }
            Flight::Part(part) => {
                flights.remove(key);
                drop(flights);
                self.part_done(token, part, outcome);
            }
            Flight::Task(task) => {
                flights.remove(key);
                drop(flights);
                self.answers.fill(&self.tasks, task, AnswerValue::Outcome(outcome));
            }
        }
    }

    #[inline]
    pub(crate) fn reply(&self, to: ReplyTo, data: BufList, result: Result<()>) {
        match to {
            ReplyTo::Caller(tag) => self.replies.borrow_mut().push_back(Reply { tag, data, result }),
            ReplyTo::Task(key) => self.answers.fill(&self.tasks, key, AnswerValue::Request(data, result)),
        }
    }
}
