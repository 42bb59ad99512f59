//! Requests that are one intent: most reads, and most writes in place.
//!
//! They keep no books: the flight itself remembers whom to answer. Whatever does not go to plan (a request that splits,
//! a short transfer, an error) opens the books after all and takes the way of every other request.

use super::path::{Part, Piece, Place, Verb, resolve};
use super::{Flight, ReplyTo, Shared};
use crate::graph::{self, Collision, Kind, NodeId, Owner};
use crate::intent::{Action, Fua, Intent, Outcome, Token};

/// A whole request in flight.
pub(crate) struct Whole {
    to: ReplyTo,
    epoch: Option<u8>,
    part: Part,
}

impl Shared {
    /// Says where a read or write is, when memory knows, and one intent will do.
    #[inline]
    pub(crate) fn whole_place(&self, piece: &Piece) -> Option<(NodeId, u64)> {
        if piece.len == 0 || !matches!(piece.verb, Verb::Read | Verb::Write(Fua::No)) {
            return None;
        }
        self.graph.with(|nodes| {
            let place = resolve(nodes, piece.node, piece.offset, piece.len, piece.verb.access());
            let Ok((len, Place::Leaf { node, offset })) = place else { return None };
            let Kind::Leaf(leaf) = &graph::at(nodes, node).kind else {
                unreachable!("requests end on leaves")
            };
            let fits =
                len == piece.len && len <= leaf.transfer_max() as u64 && leaf.fits(offset, &piece.data);
            let free =
                piece.verb == Verb::Read || !leaf.collides(offset, offset + len, Collision::WithCycles);
            (fits && free).then_some((node, offset))
        })
    }

    /// Emits a request as one intent on the leaf `node`.
    #[inline]
    pub(crate) fn emit_whole(&self, to: ReplyTo, epoch: Option<u8>, piece: Piece, at: (NodeId, u64)) {
        let (node, offset) = at;
        let Piece { label, verb, len, data, .. } = piece;
        let part = Part { request: u32::MAX, label, verb, leaf: node, offset, len, position: 0 };
        let token = self.fly(Flight::Whole(Whole { to, epoch, part }));
        self.graph.with(|nodes| {
            let Kind::Leaf(leaf) = &graph::at(nodes, node).kind else {
                unreachable!("requests end on leaves")
            };
            let id = leaf.info.leaf;
            let action = match verb {
                Verb::Write(fua) => {
                    leaf.enter(Owner::Intent(token), offset, offset + len);
                    Action::Write { leaf: id, offset, data, fua }
                }
                _ => Action::Read { leaf: id, offset, data },
            };
            self.intents.borrow_mut().push_back(Intent { token, label, action });
        });
    }

    /// Takes the answer to an intent that [`emit_whole`](Self::emit_whole) made.
    #[inline]
    pub(crate) fn whole_done(&self, token: Token, whole: Whole, outcome: Outcome) {
        let Whole { to, epoch, mut part } = whole;
        match outcome {
            Outcome::Moved { data, result: Ok(moved) } if moved as u64 >= part.len => {
                if part.verb != Verb::Read {
                    self.wrote_whole(token, &part);
                }
                if let Some(epoch) = epoch {
                    self.epochs.leave(epoch, &self.tasks);
                }
                self.reply(to, data, Ok(()));
            }
            outcome => {
                part.request = self.open_request(to, epoch);
                self.part_done(token, part, outcome);
            }
        }
    }

    fn wrote_whole(&self, token: Token, part: &Part) {
        self.graph.with(|nodes| {
            let Kind::Leaf(leaf) = &graph::at(nodes, part.leaf).kind else {
                unreachable!("intents go to leaves")
            };
            leaf.leave(Owner::Intent(token));
            leaf.settled.notify(&self.tasks);
            leaf.wrote(part.offset + part.len);
        });
    }
}
