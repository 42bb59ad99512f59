//! Requests that are one intent: most reads, and most writes in place.
//!
//! They keep no books: the flight itself remembers whom to answer. Whatever does not go to plan (a request that splits,
//! a short transfer, an error) opens the books after all and takes the way of every other request.

use std::rc::Rc;

use super::path::{Part, Place, Verb, resolve};
use super::{Flight, Op, Reply, ReplyTo, Request, Shared};
use crate::buf::BufList;
use crate::graph::{self, Access, Collision, DetectZeroes, Kind, Leaf, Node, NodeId, Owner};
use crate::intent::{Action, Fua, Intent, Label, Outcome, Token};

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

/// The one intent that is not among the [flights](Shared::fly). There is none other of its kind.
pub(super) const LONE: Token = Token(u64::MAX);

impl Shared {
    /// Begins a caller's request as one intent, in flight by `fly`; gives it back where it is nothing for that.
    #[inline(always)]
    pub(super) fn begin_whole(
        &self,
        request: Request,
        fly: impl FnOnce(&Self, Whole) -> Token,
    ) -> Result<Intent, Request> {
        let Request { node, op, offset, len, data, tag } = request;
        let (writes, label) = match op {
            Op::Read if self.debugged.get() == 0 => (false, "read"),
            Op::Write(Fua::No) => (true, "write"),
            _ => return Err(Request { node, op, offset, len, data, tag }),
        };
        self.graph.with(|nodes| {
            if self.holds.any() || !is_plain(nodes, writes, (node, offset), data.len_bytes() as u64) {
                return Err(Request { node, op, offset, len, data, tag });
            }
            match whole_place(nodes, writes, (node, offset), &data) {
                Some(place) => Ok(self.emit_whole((ReplyTo::Caller(tag), writes, label), place, data, fly)),
                None => Err(Request { node, op, offset, len, data, tag }),
            }
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
        self.graph.with(|nodes| {
            let Some(place) = whole_place(nodes, writes, (node, offset), &data) else {
                return Err((to, data));
            };
            let fly = |this: &Self, whole| this.fly(Flight::Whole(whole));
            let intent = self.emit_whole((to, writes, label), place, data, fly);
            self.intents.borrow_mut().push_back(intent);
            Ok(())
        })
    }

    #[inline(always)]
    fn emit_whole(
        &self,
        (to, writes, label): (ReplyTo, bool, Label),
        (node, leaf, offset): (NodeId, &Leaf, u64),
        data: BufList,
        fly: impl FnOnce(&Self, Whole) -> Token,
    ) -> Intent {
        let (len, id) = (data.len_bytes() as u64, leaf.info.leaf);
        let epoch = u32::from(self.epochs.enter());
        let token = fly(self, Whole { to, epoch, writes, leaf: node, label, offset, len });
        if !writes {
            return Intent { token, label, action: Action::Read { leaf: id, offset, data } };
        }
        leaf.enter(Owner::Intent(token), offset, offset + len);
        Intent { token, label, action: Action::Write { leaf: id, offset, data, fua: Fua::No } }
    }

    /// Takes the answer to an intent that [`start_whole`](Self::start_whole) made.
    #[inline(always)]
    pub(crate) fn whole_done(&self, token: Token, whole: Whole, outcome: Outcome) {
        if let Some(data) = self.end_whole(token, &whole, outcome) {
            self.reply(whole.to, data, Ok(()));
        }
    }

    /// As [`whole_done`](Self::whole_done) for the lone one, which is answered to whoever hands in the outcome, unless there is
    /// more to do for it.
    #[inline(always)]
    pub(super) fn lone_done(&self, outcome: Outcome) -> Option<Reply> {
        let whole = self.lone.take().expect("the lone intent is answered exactly once");
        let ReplyTo::Caller(tag) = whole.to else { unreachable!("a caller's request") };
        let data = self.end_whole(LONE, &whole, outcome)?;
        Some(Reply { tag, data, result: Ok(()) })
    }

    /// Ends a request that went to plan; opens the books for any other.
    #[inline(always)]
    fn end_whole(&self, token: Token, whole: &Whole, outcome: Outcome) -> Option<BufList> {
        match outcome {
            Outcome::Moved { data, result: Ok(moved) } if moved as u64 >= whole.len => {
                if whole.writes {
                    self.wrote_whole(token, whole);
                }
                self.epochs.leave(whole.epoch as u8, &self.tasks);
                Some(data)
            }
            outcome => {
                self.whole_goes_on(token, *whole, outcome);
                None
            }
        }
    }

    #[cold]
    fn whole_goes_on(&self, token: Token, whole: Whole, outcome: Outcome) {
        let Whole { to, epoch, writes, leaf, label, offset, len } = whole;
        let request = self.open_request(to, Some(epoch as u8));
        let verb = if writes { Verb::Write(Fua::No) } else { Verb::Read };
        let part = Part { request, label, verb, leaf, offset, len, position: 0 };
        self.part_done(token, part, outcome);
    }

    fn wrote_whole(&self, token: Token, whole: &Whole) {
        self.graph.with(|nodes| {
            let Kind::Leaf(leaf) = &graph::at(nodes, whole.leaf).kind else {
                unreachable!("intents go to leaves")
            };
            leaf.leave(Owner::Intent(token));
            leaf.settled.notify(&self.tasks);
            leaf.wrote(whole.offset + whole.len);
        });
    }
}

/// Whether a caller may ask a node for a read, or a write, and it means no more than that.
#[inline(always)]
fn is_plain(nodes: &[Option<Rc<Node>>], writes: bool, (node, offset): (NodeId, u64), len: u64) -> bool {
    let Some(here) = nodes.get(node.0 as usize).and_then(Option::as_ref) else { return false };
    let flags = &here.flags;
    let plain =
        !writes || !flags.read_only && !flags.write_through && flags.detect_zeroes == DetectZeroes::Off;
    plain && offset.checked_add(len).is_some_and(|end| end <= graph::guest_length(nodes, node))
}

/// The place of a read or write on a leaf, when memory knows, and one intent will do.
#[inline(always)]
fn whole_place<'a>(
    nodes: &'a [Option<Rc<Node>>],
    writes: bool,
    (node, offset): (NodeId, u64),
    data: &BufList,
) -> Option<(NodeId, &'a Leaf, u64)> {
    let len = data.len_bytes() as u64;
    if len == 0 {
        return None;
    }
    let access = if writes { Access::Write } else { Access::Read };
    let Ok((found, Place::Leaf { node, offset })) = resolve(nodes, node, offset, len, access) else {
        return None;
    };
    let Kind::Leaf(leaf) = &graph::at(nodes, node).kind else { unreachable!("requests end on leaves") };
    let fits = found == len && len <= leaf.transfer_max() as u64 && leaf.fits(offset, data);
    let free = !writes || !leaf.collides(offset, offset + len, Collision::WithCycles);
    (fits && free).then_some((node, leaf, offset))
}
