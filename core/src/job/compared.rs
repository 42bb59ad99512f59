//! What the reference's `rebase` compares, for a progress in its steps.
//!
//! It walks over the disk in pieces of 2 MiB at the most, and counts those that the image does not hold, whether anything
//! has to be copied or not. A piece ends where the answer of one image's metadata ends: at another kind of entry, and at
//! the end of a slice of an L2 table. So the count follows from the images, and from the lengths below, which are the
//! reference's; what is copied, and how, has nothing to do with it.

use std::cell::Cell;

use crate::engine::Io;
use crate::error::Result;
use crate::format::qcow2::Qcow2;
use crate::graph::{CHAIN_MAX, NodeId, Role};

/// Bytes of a piece, and of a share of the whole.
const PIECE: u64 = 2 << 20;

/// Counts pieces up to where the copying is.
pub(super) struct Compared {
    pub(super) image: NodeId,
    pub(super) old: Option<NodeId>,
    /// The new backing file, where it is below the old one.
    pub(super) shared: Option<NodeId>,
    /// Bytes that are written as a whole.
    pub(super) unit: u64,
    pub(super) size: u64,
    pub(super) at: Cell<u64>,
    pub(super) done: Cell<u64>,
}

impl Compared {
    /// Pieces that make the whole where each is as long as it may be; there can be more than that.
    pub(super) fn all(&self) -> u64 {
        (self.size / PIECE).max(1)
    }

    /// Counts the pieces that begin in front of `end`, and calls `tell` for each. Nothing is written from there on by then:
    /// the image would hold it.
    pub(super) async fn go_to(&self, io: &Io, end: u64, tell: &dyn Fn(u64, u64)) -> Result<()> {
        while self.at.get() < end {
            let at = self.at.get();
            let (len, compared) = self.look(io, at).await?;
            if !compared {
                self.at.set(at + len);
                continue;
            }
            let start = at - at % self.unit;
            let end = (at + len).next_multiple_of(self.unit).min(self.size).min(start + PIECE.max(self.unit));
            self.at.set(end);
            self.done.set(self.done.get() + 1);
            tell(self.done.get(), self.all());
        }
        Ok(())
    }

    /// For how many bytes from `at` on nothing, or something, is compared.
    async fn look(&self, io: &Io, at: u64) -> Result<(u64, bool)> {
        let most = PIECE.min(self.size - at);
        let (mut len, allocated) = answer(io, self.image, at, most).await?;
        let (Some(old), Some(shared)) = (self.old, self.shared) else { return Ok((len, !allocated)) };
        if allocated || old == shared {
            return Ok((len, false));
        }
        // Beyond the end of the old backing file everything is compared.
        if at >= io.len(old) {
            return Ok((most, true));
        }
        let chain = std::iter::successors(Some(old), |image| io.edge(*image, Role::Backing));
        for image in chain.take(CHAIN_MAX).take_while(|image| *image != shared) {
            let end = io.len(image);
            if at >= end {
                // What a short image lacks is zeros, which hide what is below.
                return Ok((len, true));
            }
            let (alike, allocated) = answer(io, image, at, len.min(end - at)).await?;
            len = alike;
            if allocated {
                return Ok((len, true));
            }
        }
        Ok((len, false))
    }
}

/// Whether an image itself holds what is at `at`, and for how many bytes one slice of its tables says so.
async fn answer(io: &Io, image: NodeId, at: u64, len: u64) -> Result<(u64, bool)> {
    let qcow2 = io.driver(image);
    let covered =
        qcow2.as_ref().and_then(|driver| driver.as_any().downcast_ref::<Qcow2>()).map(Qcow2::slice_covers);
    let len = covered.map_or(len, |covered| len.min(covered - at % covered));
    let status = io.status(image, at, len, io.edge(image, Role::Backing)).await?;
    Ok((status.len, status.allocated))
}
