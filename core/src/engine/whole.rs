//! Requests that are one intent: most reads, and most writes in place.
//!
//! They keep no books: the flight itself remembers whom to answer. Whatever does not go to plan (a request that splits,
//! a short transfer, an error) opens the books after all and takes the way of every other request.

use std::rc::Rc;

use super::path::{Part, Place, Verb, resolve};
use super::{Flight, ReplyTo, Shared};
use crate::buf::BufList;
use crate::graph::{self, Access, Collision, Kind, Leaf, Node, NodeId, Owner};
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

impl Shared {
    /// Begins a read, or a write that need not be durable, as one intent; gives the buffers back where memory does not know
    /// the place, or one intent will not do.
    #[inline(always)]
    pub(crate) fn start_whole(
        &self,
        to: ReplyTo,
        writes: bool,
        label: Label,
        (node, offset): (NodeId, u64),
        data: BufList,
    ) -> Result<(), (ReplyTo, BufList)> {
        let len = data.len_bytes() as u64;
        self.graph.with(|nodes| {
            let Some((leaf_node, leaf, offset)) = whole_place(nodes, writes, (node, offset), &data) else {
                return Err((to, data));
            };
            let epoch = self.epochs.enter();
            let whole = Whole { to, epoch: u32::from(epoch), writes, leaf: leaf_node, label, offset, len };
            let token = self.fly(Flight::Whole(whole));
            let id = leaf.info.leaf;
            let mut intents = self.intents.borrow_mut();
            if writes {
                leaf.enter(Owner::Intent(token), offset, offset + len);
                let action = Action::Write { leaf: id, offset, data, fua: Fua::No };
                intents.push_back(Intent { token, label, action });
            } else {
                let action = Action::Read { leaf: id, offset, data };
                intents.push_back(Intent { token, label, action });
            }
            Ok(())
        })
    }

    /// Takes the answer to an intent that [`start_whole`](Self::start_whole) made.
    #[inline(always)]
    pub(crate) fn whole_done(&self, token: Token, whole: Whole, outcome: Outcome) {
        match outcome {
            Outcome::Moved { data, result: Ok(moved) } if moved as u64 >= whole.len => {
                if whole.writes {
                    self.wrote_whole(token, &whole);
                }
                self.epochs.leave(whole.epoch as u8, &self.tasks);
                self.reply(whole.to, data, Ok(()));
            }
            outcome => {
                let Whole { to, epoch, writes, leaf, label, offset, len } = whole;
                let request = self.open_request(to, Some(epoch as u8));
                let verb = if writes { Verb::Write(Fua::No) } else { Verb::Read };
                let part = Part { request, label, verb, leaf, offset, len, position: 0 };
                self.part_done(token, part, outcome);
            }
        }
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

/// The place of a read or write on a leaf, when memory knows, and one intent will do.
#[inline]
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
