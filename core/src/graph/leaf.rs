//! A leaf of the graph: what core remembers of a file or device that an executor holds open.

use std::cell::{Cell, RefCell};

use smallvec::SmallVec;

use super::NodeId;
use super::driver::Role;
use crate::buf::{Buf, BufList};
use crate::engine::task::{Gate, WaitList};
use crate::error::{Error, Result};
use crate::intent::{Errno, LeafInfo, LeafKind, Location, Permissions, Token};

pub(crate) struct Leaf {
    pub(crate) info: LeafInfo,
    pub(crate) location: Location,
    /// Alignment of requests and of memory, less one; powers of two, and a division costs as much as a lookup.
    block_mask: usize,
    memory_mask: usize,
    transfer_max: usize,
    /// Length in bytes, kept up with writes beyond the end.
    pub(crate) len: Cell<u64>,
    /// Counts completed writes; a flush that began at this count covers them.
    pub(crate) written: Cell<u64>,
    /// The count that the last successful flush covers.
    pub(crate) flushed: Cell<u64>,
    /// A flush failed: what it should have covered may be lost, and no later flush brings it back. Sticky.
    pub(crate) flush_failed: Cell<Option<Errno>>,
    /// Writes in flight, kept only where unaligned writes must read, modify and write whole blocks.
    pub(crate) in_flight: RefCell<SmallVec<[InFlight; 8]>>,
    pub(crate) settled: WaitList,
    /// What the nodes above do with the leaf, and tolerate that others do.
    uses: RefCell<SmallVec<[(UseId, Use); 1]>>,
    next_use: Cell<u32>,
    /// One change of the image locks at a time.
    pub(crate) locks: Gate,
}

/// What a node above does with a leaf.
#[derive(Clone)]
pub(crate) struct Use {
    /// The node's name, and its edge.
    pub(crate) user: String,
    pub(crate) role: Role,
    /// The node that whoever opened it uses, rather than a node above it: these uses add up.
    pub(crate) own: Option<NodeId>,
    pub(crate) holds: Permissions,
    pub(crate) shares: Permissions,
}

/// Names one use of one leaf.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct UseId(u32);

/// A range of the leaf that is being written.
#[derive(Clone, Copy)]
pub(crate) struct InFlight {
    pub(crate) owner: Owner,
    pub(crate) start: u64,
    pub(crate) end: u64,
}

/// Who is writing.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owner {
    /// An intent.
    Intent(Token),
    /// The request that its caller carries out. There is one of them at a time.
    Lone,
    /// A read-modify-write cycle, by its number.
    Cycle(u64),
}

impl Leaf {
    pub(crate) fn new(info: LeafInfo, location: Location) -> Self {
        let block = info.request_align.max(1) as usize;
        Self {
            len: Cell::new(info.len),
            block_mask: block - 1,
            memory_mask: info.memory_align.max(1) as usize - 1,
            transfer_max: match info.transfer_max as usize {
                0 => usize::MAX,
                limit => (limit - limit % block).max(block),
            },
            info,
            location,
            written: Cell::new(0),
            flushed: Cell::new(0),
            flush_failed: Cell::new(None),
            in_flight: RefCell::default(),
            settled: WaitList::default(),
            uses: RefCell::default(),
            next_use: Cell::new(0),
            locks: Gate::default(),
        }
    }

    /// Takes note of a use, unless it does not go with one that there is; `leaf` is the leaf's name. What who opened a node
    /// denies others is not denied to them.
    pub(crate) fn add_use(&self, leaf: &str, new: Use) -> Result<UseId> {
        let uses = self.uses.borrow();
        for (_, old) in uses.iter().filter(|(_, old)| old.own.is_none() || old.own != new.own) {
            for (needs, denies) in [(old, &new), (&new, old)] {
                let both = Permissions(needs.holds.0 & denies.shares.complement().0);
                if both != Permissions::NONE {
                    return Err(conflict(leaf, both, needs, denies));
                }
            }
        }
        drop(uses);
        let id = UseId(self.next_use.get());
        self.next_use.set(id.0 + 1);
        self.uses.borrow_mut().push((id, new));
        Ok(id)
    }

    pub(crate) fn remove_use(&self, id: UseId) {
        self.uses.borrow_mut().retain(|(other, _)| *other != id);
    }

    /// What whoever opened a node does with the leaf below it.
    pub(crate) fn held_by(&self, node: NodeId) -> Permissions {
        let uses = self.uses.borrow();
        let own = uses.iter().filter(|(_, one)| one.own == Some(node));
        own.fold(Permissions::NONE, |holds, (_, one)| holds.with(one.holds))
    }

    /// What all uses together do, and tolerate.
    pub(crate) fn used_as(&self) -> (Permissions, Permissions) {
        let start = (Permissions::NONE, Permissions::ALL);
        self.uses.borrow().iter().fold(start, |(holds, shares), (_, one)| {
            (holds.with(one.holds), Permissions(shares.0 & one.shares.0))
        })
    }

    pub(crate) fn driver_name(&self) -> &'static str {
        match self.info.kind {
            LeafKind::HostDevice => "host_device",
            LeafKind::Null => "null-co",
            LeafKind::Namespace => "nvme",
            LeafKind::Nbd => "nbd",
            LeafKind::File => "file",
        }
    }

    /// Whether writes that are not whole blocks need a read-modify-write cycle.
    pub(crate) fn has_blocks(&self) -> bool {
        self.block_mask != 0
    }

    /// Bytes in one transfer at the most: whole blocks, at least one.
    #[inline]
    pub(crate) fn transfer_max(&self) -> usize {
        self.transfer_max
    }

    /// The part of a short transfer that ends with a whole block: where the next one can begin.
    pub(crate) fn whole_blocks(&self, moved: usize) -> usize {
        moved & !self.block_mask
    }

    /// Whether the leaf takes a request as it is.
    #[inline]
    pub(crate) fn fits(&self, offset: u64, data: &BufList) -> bool {
        data.windows().iter().all(|window| self.fits_window(offset, window))
    }

    /// As [`fits`](Self::fits), for a request of one window.
    #[inline(always)]
    pub(crate) fn fits_window(&self, offset: u64, window: &Buf) -> bool {
        (offset as usize | window.len()) & self.block_mask == 0
            && window.as_ptr() as usize & self.memory_mask == 0
    }

    /// The blocks that a write of a range touches, and what it must not meet there: whole blocks go beside their like.
    pub(crate) fn blocks_of_write(&self, start: u64, end: u64) -> (u64, u64, Collision) {
        let block = u64::from(self.info.request_align.max(1));
        let (first, last) = (start - start % block, end.next_multiple_of(block));
        let whole = (first, last) == (start, end);
        (first, last, if whole { Collision::WithCycles } else { Collision::WithAny })
    }

    /// Whether a write to the range must wait for another one that shares a block with it.
    pub(crate) fn collides(&self, start: u64, end: u64, with: Collision) -> bool {
        if !self.has_blocks() {
            return false;
        }
        self.in_flight.borrow().iter().any(|other| {
            let serial = with == Collision::WithAny || matches!(other.owner, Owner::Cycle(_));
            serial && other.start < end && start < other.end
        })
    }

    /// Remembers a write in flight.
    pub(crate) fn enter(&self, owner: Owner, start: u64, end: u64) {
        if self.has_blocks() {
            self.in_flight.borrow_mut().push(InFlight { owner, start, end });
        }
    }

    /// Forgets it.
    pub(crate) fn leave(&self, owner: Owner) {
        let mut in_flight = self.in_flight.borrow_mut();
        if let Some(index) = in_flight.iter().position(|other| other.owner == owner) {
            in_flight.swap_remove(index);
        }
    }

    /// Takes note of a write that completed.
    pub(crate) fn wrote(&self, end: u64) {
        self.written.set(self.written.get() + 1);
        self.len.set(self.len.get().max(end));
    }

    pub(crate) fn error(&self, operation: &'static str, offset: u64, len: u64, errno: Errno) -> Box<Error> {
        Box::new(Error::Leaf { location: self.location.to_string(), operation, offset, len, errno })
    }
}

/// The reference's words for two nodes that cannot share a third.
fn conflict(leaf: &str, both: Permissions, needs: &Use, denies: &Use) -> Box<Error> {
    let names: Vec<_> = both.iter().map(Permissions::name).collect();
    let who = |one: &Use| format!("node '{}' (uses node '{leaf}' as '{}' child)", one.user, one.role.name());
    let text = format!(
        "Permission conflict on node '{leaf}': permissions '{}' are both required by {} and unshared by {}.",
        names.join(", "),
        who(needs),
        who(denies)
    );
    Box::new(Error::Options(text))
}

/// Which writes in flight a new one must not share a block with.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Collision {
    /// Read-modify-write cycles.
    WithCycles,
    /// All.
    WithAny,
}
