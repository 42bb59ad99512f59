//! The data path: from a request on a node to intents on leaves.
//!
//! [`dispatch`](Shared::dispatch) asks every driver between the node and the leaf where a range is, merges what is
//! contiguous, and emits intents with the caller's own buffers. No coroutine, no heap allocation. What memory cannot
//! answer becomes a [`Piece`] for a serving coroutine (`serve`), which ends in the same dispatch.
//!
//! ```text
//!   request [====================================]
//!   extents [ data @64K ][ data @128K ][ zero ][ miss ]
//!   parts   [   one leaf intent       ][ fill ][ coroutine: load, dispatch again ]
//! ```

use std::rc::Rc;

use smallvec::SmallVec;

use super::{ReplyTo, Shared};
use crate::buf::BufList;
use crate::error::{Error, Result};
use crate::graph::driver::{Access, Length, Mapping, Role};
use crate::graph::{self, DetectZeroes, Kind, Leaf, Node, NodeId};
use crate::graph::{Collision, Owner};
use crate::intent::{Action, Errno, Fua, Intent, Label, Outcome, Token, ZeroFlags};

/// What a piece of a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    Read,
    Write(Fua),
    WriteCompressed,
    /// A write to a node that looks for zeros, not yet looked at (`detect-zeroes`).
    WriteLooking {
        fua: Fua,
        compressed: bool,
    },
    WriteZeroes(ZeroFlags, Fua),
    /// Zeros for a leaf that refused to zero the range.
    ZeroesOtherwise(ZeroFlags),
    Discard,
    Flush,
}

impl Verb {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write(_) | Self::WriteLooking { .. } => "write",
            Self::WriteCompressed => "compressed write",
            Self::WriteZeroes(..) | Self::ZeroesOtherwise(_) => "write of zeros",
            Self::Discard => "discard",
            Self::Flush => "flush",
        }
    }

    /// The verb at a node that looks for zeros.
    pub(crate) fn looking(self) -> Self {
        match self {
            Self::Write(fua) => Self::WriteLooking { fua, compressed: false },
            Self::WriteCompressed => Self::WriteLooking { fua: Fua::No, compressed: true },
            verb => verb,
        }
    }

    #[inline]
    pub(crate) fn access(self) -> Access {
        match self {
            Self::Read => Access::Read,
            Self::WriteZeroes(..) | Self::Discard => Access::Zero,
            _ => Access::Write,
        }
    }
}

/// A part of a request that is still to be placed. Whoever holds one owes the request an answer for it.
#[derive(Debug)]
pub(crate) struct Piece {
    pub(crate) request: u32,
    pub(crate) label: Label,
    pub(crate) verb: Verb,
    pub(crate) node: NodeId,
    /// First byte in the node.
    pub(crate) offset: u64,
    pub(crate) len: u64,
    /// First byte in the request, to put buffers back in order.
    pub(crate) position: u64,
    /// Whether a driver above passed the piece on to `node`.
    pub(crate) through: bool,
    /// `len` bytes for reads and writes, nothing for the rest.
    pub(crate) data: BufList,
}

impl Piece {
    /// A whole request that carries data.
    pub(crate) fn new(label: Label, verb: Verb, node: NodeId, offset: u64, data: BufList) -> Self {
        let len = data.len_bytes() as u64;
        Self { request: 0, label, verb, node, offset, len, position: 0, through: false, data }
    }

    /// A whole request that carries none.
    pub(crate) fn range(label: Label, verb: Verb, node: NodeId, offset: u64, len: u64) -> Self {
        let data = BufList::new();
        Self { request: 0, label, verb, node, offset, len, position: 0, through: false, data }
    }

    /// Splits off the first `len` bytes.
    pub(crate) fn split_to(&mut self, len: u64) -> Self {
        let data = if self.data.is_empty() { BufList::new() } else { self.data.split_to(len as usize) };
        let front = Self { len, data, ..*self };
        self.offset += len;
        self.position += len;
        self.len -= len;
        front
    }
}

/// A request while any part of it is unanswered.
pub(crate) struct Slot {
    pub(crate) to: ReplyTo,
    pub(crate) epoch: Option<u8>,
    pending: u32,
    error: Option<Box<Error>>,
    returned: SmallVec<[(u64, BufList); 1]>,
}

/// An intent in flight that belongs to a part of a request.
#[derive(Clone, Copy)]
pub(crate) struct Part {
    pub(crate) request: u32,
    pub(crate) label: Label,
    pub(crate) verb: Verb,
    pub(crate) leaf: NodeId,
    pub(crate) offset: u64,
    pub(crate) len: u64,
    pub(crate) position: u64,
}

/// Where the walk from a node towards the leaves ended.
pub(crate) enum Place {
    /// On a leaf.
    Leaf { node: NodeId, offset: u64 },
    /// On a range that reads as zeros.
    Zero,
    /// At a driver that needs a coroutine.
    Coroutine { node: NodeId, offset: u64 },
    /// At a node below the first that looks for zeros in what is written.
    Looking { node: NodeId, offset: u64 },
}

/// The leaf that holds all of a range, and the place there, where memory knows it and there is no more to say: what
/// [`resolve`] says too, of most requests.
#[inline(always)]
pub(crate) fn place<'a>(
    nodes: &'a [Option<Rc<Node>>],
    first: &'a Node,
    start: u64,
    len: u64,
    access: Access,
) -> Option<(NodeId, &'a Leaf, u64)> {
    let (mut here, mut offset) = (first, start);
    loop {
        let driver = match &here.kind {
            Kind::Leaf(leaf) => {
                let (first, place) = ((first.id, start), (here.id, offset));
                debug_assert!(is_at(nodes, first, len, access, place), "{first:?}");
                return Some((here.id, leaf, offset));
            }
            Kind::Driver(driver) => driver,
        };
        let (child, there) = driver.place(offset, len, access)?;
        let below = here.edges.at(child)?;
        // What lies beyond the end of a backing file reads as zeros.
        if child == Role::Backing && there.checked_add(len)? > graph::length(nodes, below) {
            return None;
        }
        (here, offset) = (graph::at(nodes, below), there);
        if access == Access::Write && here.flags.detect_zeroes != DetectZeroes::Off {
            return None;
        }
    }
}

/// Whether the long way to a place ends there, too.
fn is_at(
    nodes: &[Option<Rc<Node>>],
    (first, start): (NodeId, u64),
    len: u64,
    access: Access,
    there: (NodeId, u64),
) -> bool {
    let found = resolve(nodes, first, start, len, access);
    matches!(found, Ok((long, Place::Leaf { node, offset })) if long == len && (node, offset) == there)
}

/// Walks from `node` down to the leaf that holds `offset`; says how many of the `len` bytes the answer covers.
#[inline]
pub(crate) fn resolve(
    nodes: &[Option<Rc<Node>>],
    mut node: NodeId,
    mut offset: u64,
    mut len: u64,
    access: Access,
) -> Result<(u64, Place)> {
    let first = node;
    loop {
        let here = graph::at(nodes, node);
        if access == Access::Write && here.flags.detect_zeroes != DetectZeroes::Off && node != first {
            return Ok((len, Place::Looking { node, offset }));
        }
        let driver = match &here.kind {
            Kind::Leaf(_) => return Ok((len, Place::Leaf { node, offset })),
            Kind::Driver(driver) => driver,
        };
        if let Length::Bytes(end) = driver.length() {
            // What lies beyond the end reads as zeros; copy-on-write of the last unit asks for it.
            if offset >= end {
                return match access {
                    Access::Read => Ok((len, Place::Zero)),
                    Access::Write | Access::Zero => Err(here.out_of_range("write", offset, len, end)),
                };
            }
            len = len.min(end - offset);
        }
        let extent = driver.lookup(offset, len, access)?;
        len = extent.len;
        match extent.mapping {
            Mapping::Data { child, offset: there } => {
                node = here.child(child);
                offset = there;
            }
            Mapping::Zero { .. } => return Ok((len, Place::Zero)),
            Mapping::Backing { .. } => match here.edges.at(Role::Backing) {
                None => return Ok((len, Place::Zero)),
                Some(backing) => {
                    let end = graph::length(nodes, backing);
                    if offset >= end {
                        return Ok((len, Place::Zero));
                    }
                    len = len.min(end - offset);
                    node = backing;
                }
            },
            Mapping::Special { .. } | Mapping::Own { .. } | Mapping::Allocate | Mapping::Miss(_) => {
                return Ok((len, Place::Coroutine { node, offset }));
            }
        }
    }
}

/// Neighbouring extents on one leaf, not yet emitted.
struct Run {
    leaf: NodeId,
    offset: u64,
    len: u64,
}

impl Shared {
    /// Opens the books on a request, with one piece outstanding.
    pub(crate) fn open_request(&self, to: ReplyTo, epoch: Option<u8>) -> u32 {
        let slot = Slot { to, epoch, pending: 1, error: None, returned: SmallVec::new() };
        u32::try_from(self.requests.borrow_mut().insert(slot)).expect("fewer than 2^32 requests")
    }

    /// Places a piece, as far as memory knows where.
    pub(crate) fn dispatch(&self, mut piece: Piece) {
        let request = piece.request;
        self.graph.with(|nodes| {
            let mut run: Option<Run> = None;
            while piece.len > 0 {
                let run_len = run.as_ref().map_or(0, |run| run.len);
                let rest = piece.len - run_len;
                if rest == 0 {
                    break;
                }
                let next = resolve(nodes, piece.node, piece.offset + run_len, rest, piece.verb.access());
                let (len, place) = match next {
                    Ok(next) => next,
                    Err(error) => {
                        self.emit_run(nodes, &mut piece, run.take());
                        let left = piece.split_to(piece.len);
                        self.owe(request);
                        self.settle(request, left.position, left.data, Err(error));
                        break;
                    }
                };
                match place {
                    Place::Leaf { node, offset } => match &mut run {
                        Some(run) if run.leaf == node && run.offset + run.len == offset => run.len += len,
                        _ => {
                            self.emit_run(nodes, &mut piece, run.take());
                            run = Some(Run { leaf: node, offset, len });
                        }
                    },
                    Place::Zero => {
                        self.emit_run(nodes, &mut piece, run.take());
                        let mut front = piece.split_to(len);
                        front.data.zero_from(0);
                        self.owe(request);
                        self.settle(request, front.position, front.data, Ok(()));
                    }
                    Place::Coroutine { node, offset } => {
                        self.emit_run(nodes, &mut piece, run.take());
                        let mut front = piece.split_to(len);
                        front.through |= front.node != node;
                        (front.node, front.offset) = (node, offset);
                        self.owe(request);
                        self.serve(front);
                    }
                    Place::Looking { node, offset } => {
                        self.emit_run(nodes, &mut piece, run.take());
                        let verb = piece.verb.looking();
                        let front = Piece { verb, node, offset, ..piece.split_to(len) };
                        self.owe(request);
                        self.serve(front);
                    }
                }
            }
            self.emit_run(nodes, &mut piece, run.take());
        });
        self.settle(request, 0, BufList::new(), Ok(()));
    }

    fn emit_run(&self, nodes: &[Option<Rc<Node>>], piece: &mut Piece, run: Option<Run>) {
        let Some(run) = run else { return };
        let node = graph::at(nodes, run.leaf);
        let Kind::Leaf(leaf) = &node.kind else { unreachable!("runs end on leaves") };
        let transfer_max = match piece.verb {
            Verb::Read | Verb::Write(_) => leaf.transfer_max() as u64,
            _ => u64::MAX,
        };
        let mut offset = run.offset;
        let end = run.offset + run.len;
        while offset < end {
            let len = (end - offset).min(transfer_max);
            let mut front = piece.split_to(len);
            (front.node, front.offset) = (run.leaf, offset);
            self.owe(piece.request);
            offset += len;
            match &mut front.verb {
                // The leaf says so for itself, whatever the nodes above it say.
                Verb::Discard if !node.flags.discard => {
                    self.settle(piece.request, front.position, front.data, Ok(()));
                    continue;
                }
                Verb::WriteZeroes(flags, _) => flags.may_unmap &= node.flags.discard,
                _ => {}
            }
            let ready = match front.verb {
                Verb::Read => leaf.fits(front.offset, &front.data),
                Verb::Write(_) => {
                    leaf.fits(front.offset, &front.data)
                        && !leaf.collides(front.offset, front.offset + len, Collision::WithCycles)
                }
                Verb::WriteZeroes(..) => {
                    !leaf.collides(front.offset, front.offset + len, Collision::WithCycles)
                }
                _ => true,
            };
            if ready { self.emit(front) } else { self.serve(front) }
        }
    }

    /// Turns a piece on a leaf into an intent.
    pub(crate) fn emit(&self, piece: Piece) {
        let Piece { request, label, verb, node, offset, len, position, data, .. } = piece;
        let part = Part { request, label, verb, leaf: node, offset, len, position };
        self.graph.with(|nodes| {
            let Kind::Leaf(leaf) = &graph::at(nodes, node).kind else { unreachable!("intents go to leaves") };
            let id = leaf.info.leaf;
            let action = match verb {
                Verb::Read => Action::Read { leaf: id, offset, data },
                Verb::Write(fua) => Action::Write { leaf: id, offset, data, fua },
                Verb::WriteZeroes(flags, _) => Action::WriteZeroes { leaf: id, offset, len, flags },
                Verb::Discard => Action::Discard { leaf: id, offset, len },
                Verb::WriteCompressed
                | Verb::WriteLooking { .. }
                | Verb::ZeroesOtherwise(_)
                | Verb::Flush => {
                    unreachable!("served by coroutines")
                }
            };
            let token = self.fly(super::Flight::Part(part));
            if matches!(verb, Verb::Write(_) | Verb::WriteZeroes(..)) {
                leaf.enter(Owner::Intent(token), offset, offset + len);
            }
            self.intents.borrow_mut().push_back(Intent { token, label, action });
        });
    }

    /// Takes the answer to an intent that [`emit`](Self::emit) made.
    pub(crate) fn part_done(&self, token: Token, part: Part, outcome: Outcome) {
        let node = self.graph.node(part.leaf);
        let Kind::Leaf(leaf) = &node.kind else { unreachable!("intents go to leaves") };
        let fail = |errno| Err(leaf.error(part.verb.name(), part.offset, part.len, errno));
        if matches!(part.verb, Verb::Write(_) | Verb::WriteZeroes(..)) {
            leaf.leave(Owner::Intent(token));
            leaf.settled.notify(&self.tasks);
        }
        match outcome {
            Outcome::Moved { mut data, result } => {
                if matches!(part.verb, Verb::Write(_)) {
                    leaf.wrote(part.offset + *result.as_ref().unwrap_or(&0) as u64);
                }
                let moved = match result {
                    Ok(moved) if moved as u64 >= part.len => {
                        return self.settle(part.request, part.position, data, Ok(()));
                    }
                    Ok(moved) => moved,
                    Err(errno) => return self.settle(part.request, part.position, data, fail(errno)),
                };
                let reads = part.verb == Verb::Read;
                let whole = leaf.whole_blocks(moved);
                if whole == 0 && reads {
                    data.zero_from(moved);
                    return self.settle(part.request, part.position, data, Ok(()));
                }
                if whole == 0 || (whole < moved && !reads) {
                    return self.settle(part.request, part.position, data, fail(Errno::EIO));
                }
                let front = data.split_to(whole);
                self.owe(part.request);
                self.settle(part.request, part.position, front, Ok(()));
                let rest = Piece {
                    request: part.request,
                    label: part.label,
                    verb: part.verb,
                    node: part.leaf,
                    offset: part.offset + whole as u64,
                    len: part.len - whole as u64,
                    position: part.position + whole as u64,
                    through: false,
                    data,
                };
                if leaf.fits(rest.offset, &rest.data) { self.emit(rest) } else { self.serve(rest) }
            }
            Outcome::Done(result) => self.range_done(leaf, &part, result),
            other => panic!("an executor answered a {} with {other:?}", part.verb.name()),
        }
    }

    fn range_done(&self, leaf: &Leaf, part: &Part, result: Result<(), Errno>) {
        let zeroes = matches!(part.verb, Verb::WriteZeroes(..));
        if result.is_ok() {
            leaf.wrote(if zeroes { part.offset + part.len } else { 0 });
        }
        let result = match (part.verb, result) {
            // Advice that the host cannot take is no failure.
            (_, Ok(())) | (Verb::Discard, Err(Errno::ENOTSUP | Errno::EINVAL)) => Ok(()),
            (Verb::WriteZeroes(flags, _), Err(Errno::ENOTSUP | Errno::EINVAL)) => {
                return self.serve(Piece {
                    request: part.request,
                    label: part.label,
                    verb: Verb::ZeroesOtherwise(flags),
                    node: part.leaf,
                    offset: part.offset,
                    len: part.len,
                    position: part.position,
                    through: false,
                    data: BufList::new(),
                });
            }
            (verb, Err(errno)) => Err(leaf.error(verb.name(), part.offset, part.len, errno)),
        };
        self.settle(part.request, part.position, BufList::new(), result);
    }

    /// Writes down that one more part of a request is outstanding.
    pub(crate) fn owe(&self, request: u32) {
        self.requests.borrow_mut()[request as usize].pending += 1;
    }

    /// Answers for one part of a request; the last one completes it. The first error is the request's.
    pub(crate) fn settle(&self, request: u32, position: u64, data: BufList, result: Result<()>) {
        let mut requests = self.requests.borrow_mut();
        let slot = &mut requests[request as usize];
        if !data.is_empty() {
            slot.returned.push((position, data));
        }
        if let Err(error) = result {
            slot.error.get_or_insert(error);
            self.after_failure();
        }
        slot.pending -= 1;
        if slot.pending > 0 {
            return;
        }
        let slot = requests.remove(request as usize);
        drop(requests);
        if let Some(epoch) = slot.epoch {
            self.epochs.leave(epoch, &self.tasks);
        }
        self.reply(slot.to, reunite(slot.returned), slot.error.map_or(Ok(()), Err));
    }
}

/// Puts the buffers of a request back in the order in which they came.
fn reunite(mut returned: SmallVec<[(u64, BufList); 1]>) -> BufList {
    if returned.len() == 1 {
        return returned.pop().map(|(_, data)| data).unwrap_or_default();
    }
    returned.sort_unstable_by_key(|(position, _)| *position);
    let mut data = BufList::new();
    for (_, part) in returned {
        data.append(part);
    }
    data
}
