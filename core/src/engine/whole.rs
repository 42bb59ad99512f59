//! Requests that are one intent: most reads, and most writes in place.
//!
//! They keep no books: the flight itself remembers whom to answer. Whatever does not go to plan (a request that splits,
//! a short transfer, an error) opens the books after all and takes the way of every other request.

use std::rc::Rc;

use super::path::{self, Part, Verb};
use super::{Flight, Op, ReplyTo, Request, Shared};
use crate::buf::BufList;
use crate::graph::{self, Access, Collision, DetectZeroes, Kind, Leaf, Node, NodeId, Owner};
use crate::intent::{Action, Fua, Intent, Label, LeafId, Outcome, Token};

/// A whole request in flight. Its fields are plain words: it is copied for every request, and a copy that gathers what was
/// just written in smaller pieces waits for them.
#[derive(Clone, Copy)]
pub(crate) struct Whole {
    to: ReplyTo,
    epoch: u32,
    writes: bool,
    leaf: NodeId,
    label: Label,
    offset: u64,
    len: u64,
}

/// A request that its caller carries out at once, as one read or write of one buffer and one range of one leaf, without an
/// intent. The engine knows nothing of it, and is asked nothing else, until the request ends or is
/// [counted](super::Engine::count_lone).
#[must_use = "what was moved has to be told"]
pub struct Lone {
    leaf: LeafId,
    node: NodeId,
    offset: u64,
    len: u64,
    /// Where it is counted, once it is.
    epoch: Option<u8>,
    writes: bool,
}

impl Lone {
    /// The leaf.
    #[inline]
    pub fn leaf(&self) -> LeafId {
        self.leaf
    }

    /// First byte there.
    #[inline]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Bytes: those of the buffer.
    #[inline]
    pub fn len_bytes(&self) -> u64 {
        self.len
    }

    /// Whether the buffers are to be written, rather than filled.
    #[inline]
    pub fn writes(&self) -> bool {
        self.writes
    }
}

/// The leaf of a whole request, and the place there.
type Placed<'a> = (NodeId, &'a Leaf, u64);

impl Shared {
    /// Begins a caller's request as one intent; gives it back where it is nothing for that.
    #[inline(always)]
    pub(super) fn begin_whole(&self, request: Request) -> Result<(), Request> {
        let Request { node, op, offset, len, data, tag } = request;
        let nodes = self.graph.nodes();
        let bytes = data.len_bytes() as u64;
        let fits = |leaf: &Leaf, offset| leaf.fits(offset, &data);
        match self.plain(&nodes, op, (node, offset), bytes, fits) {
            Some((writes, place)) => {
                self.emit_whole((ReplyTo::Caller(tag), writes, label(writes)), place, data);
                Ok(())
            }
            None => Err(Request { node, op, offset, len, data, tag }),
        }
    }

    /// What a caller's request is for one who carries it out, if it is one that would be one intent.
    #[inline(always)]
    pub(super) fn begin_lone(&self, op: Op, at: (NodeId, u64), data: &BufList) -> Option<Lone> {
        let nodes = self.graph.nodes();
        let window = data.only()?;
        let (len, fits) = (window.len() as u64, |leaf: &Leaf, offset| leaf.fits_window(offset, window));
        let (writes, (node, leaf, offset)) = self.plain(&nodes, op, at, len, fits)?;
        Some(Lone { leaf: leaf.info.leaf, node, offset, len, epoch: None, writes })
    }

    /// Counts a lone request among those in flight. There is no other of its kind, or its write would be taken for this one's.
    pub(super) fn count_lone(&self, lone: &mut Lone) -> u8 {
        let Lone { node, offset, len, writes, .. } = *lone;
        *lone.epoch.get_or_insert_with(|| {
            if writes {
                self.with_leaf(node, |leaf| leaf.enter(Owner::Lone, offset, offset + len));
            }
            self.epochs.enter()
        })
    }

    /// Begins a read, or a write that need not be durable, as one intent; gives the buffers back where memory does not know
    /// the place, or one intent will not do.
    #[inline]
    pub(crate) fn start_whole(
        &self,
        to: ReplyTo,
        writes: bool,
        label: Label,
        (node, offset): (NodeId, u64),
        data: BufList,
    ) -> Result<(), (ReplyTo, BufList)> {
        let nodes = self.graph.nodes();
        let fits = |leaf: &Leaf, offset| leaf.fits(offset, &data);
        let node = graph::at(&nodes, node);
        match whole_place(&nodes, writes, (node, offset), data.len_bytes() as u64, fits) {
            Some(place) => {
                self.emit_whole((to, writes, label), place, data);
                Ok(())
            }
            None => Err((to, data)),
        }
    }

    /// Whether a caller's request means no more than one intent, and which.
    #[inline(always)]
    fn plain<'a>(
        &self,
        nodes: &'a [Option<Rc<Node>>],
        op: Op,
        (node, offset): (NodeId, u64),
        len: u64,
        fits: impl FnOnce(&Leaf, u64) -> bool,
    ) -> Option<(bool, Placed<'a>)> {
        let writes = match op {
            Op::Read if self.debugged.get() == 0 => false,
            Op::Write(Fua::No) => true,
            _ => return None,
        };
        let node = nodes.get(node.0 as usize)?.as_deref()?;
        if self.holds.any() || writes && !takes_writes(node) || (offset | len) >> 63 != 0 {
            return None;
        }
        let place = whole_place(nodes, writes, (node, offset), len, fits)?;
        // What lies beyond a leaf's end is also beyond that of a node that is as long as its leaf.
        let (_, leaf, there) = place;
        (there <= leaf.len.get().checked_sub(len)?).then_some((writes, place))
    }

    #[inline(always)]
    fn emit_whole(
        &self,
        (to, writes, label): (ReplyTo, bool, Label),
        (node, leaf, offset): Placed<'_>,
        data: BufList,
    ) {
        let (len, id) = (data.len_bytes() as u64, leaf.info.leaf);
        let epoch = u32::from(self.epochs.enter());
        let token = self.fly(Flight::Whole(Whole { to, epoch, writes, leaf: node, label, offset, len }));
        let action = if writes {
            leaf.enter(Owner::Intent(token), offset, offset + len);
            Action::Write { leaf: id, offset, data, fua: Fua::No }
        } else {
            Action::Read { leaf: id, offset, data }
        };
        self.intents.borrow_mut().push_back(Intent { token, label, action });
    }

    /// Takes the answer to an intent that [`start_whole`](Self::start_whole) made.
    #[inline(always)]
    pub(crate) fn whole_done(&self, token: Token, whole: Whole, outcome: Outcome) {
        match outcome {
            Outcome::Moved { data, result: Ok(moved) } if moved as u64 >= whole.len => {
                if whole.writes {
                    self.wrote(Owner::Intent(token), whole.leaf, whole.offset + whole.len);
                }
                self.epochs.leave(whole.epoch as u8, &self.tasks);
                self.reply(whole.to, data, Ok(()));
            }
            outcome => self.whole_goes_on(token, whole, outcome),
        }
    }

    /// Ends a request whose caller has moved all of it. Tells whether others may have gone on beside it.
    #[inline(always)]
    pub(super) fn end_lone(&self, lone: &Lone) -> bool {
        let Some(epoch) = lone.epoch else {
            if lone.writes {
                self.with_leaf(lone.node, |leaf| leaf.wrote(lone.offset + lone.len));
            }
            return false;
        };
        if lone.writes {
            self.wrote(Owner::Lone, lone.node, lone.offset + lone.len);
        }
        self.epochs.leave(epoch, &self.tasks);
        true
    }

    /// Has a request that its caller has begun to carry out end as any other: what comes of it is the answer to the token.
    #[cold]
    pub(super) fn lone_flies(&self, mut lone: Lone, tag: u64) -> Token {
        let epoch = u32::from(self.count_lone(&mut lone));
        let Lone { node: leaf, offset, len, writes, .. } = lone;
        let (to, label) = (ReplyTo::Caller(tag), label(writes));
        let token = self.fly(Flight::Whole(Whole { to, epoch, writes, leaf, label, offset, len }));
        if writes {
            self.with_leaf(leaf, |leaf| {
                leaf.leave(Owner::Lone);
                leaf.enter(Owner::Intent(token), offset, offset + len);
            });
        }
        token
    }

    /// Takes note of a write to a leaf, up to `end`.
    fn wrote(&self, owner: Owner, leaf: NodeId, end: u64) {
        self.with_leaf(leaf, |leaf| {
            leaf.leave(owner);
            leaf.settled.notify(&self.tasks);
            leaf.wrote(end);
        });
    }

    /// Opens the books for a request that did not.
    #[cold]
    fn whole_goes_on(&self, token: Token, whole: Whole, outcome: Outcome) {
        let Whole { to, epoch, writes, leaf, label, offset, len } = whole;
        let request = self.open_request(to, Some(epoch as u8));
        let verb = if writes { Verb::Write(Fua::No) } else { Verb::Read };
        let part = Part { request, label, verb, leaf, offset, len, position: 0 };
        self.part_done(token, part, outcome);
    }

    fn with_leaf(&self, leaf: NodeId, f: impl FnOnce(&Leaf)) {
        self.graph.with(|nodes| match &graph::at(nodes, leaf).kind {
            Kind::Leaf(leaf) => f(leaf),
            Kind::Driver(_) => unreachable!("intents go to leaves"),
        });
    }
}

/// What a caller's request is called.
#[inline(always)]
fn label(writes: bool) -> Label {
    if writes { "write" } else { "read" }
}

/// Whether a caller may write to a node, and means no more than that.
#[inline(always)]
fn takes_writes(node: &Node) -> bool {
    let flags = &node.flags;
    !flags.read_only && !flags.write_through && flags.detect_zeroes == DetectZeroes::Off
}

/// The place of a read or write on a leaf, when memory knows, and one intent will do.
#[inline(always)]
fn whole_place<'a>(
    nodes: &'a [Option<Rc<Node>>],
    writes: bool,
    (node, offset): (&'a Node, u64),
    len: u64,
    fits: impl FnOnce(&Leaf, u64) -> bool,
) -> Option<Placed<'a>> {
    if len == 0 {
        return None;
    }
    let access = if writes { Access::Write } else { Access::Read };
    let (node, leaf, offset) = path::place(nodes, node, offset, len, access)?;
    if len > leaf.transfer_max() as u64 || !fits(leaf, offset) {
        return None;
    }
    let free = !writes || !leaf.collides(offset, offset + len, Collision::WithCycles);
    free.then_some((node, leaf, offset))
}
