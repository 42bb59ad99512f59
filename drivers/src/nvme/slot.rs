//! Commands in flight, and the requests that they belong to.

use std::sync::atomic::Ordering;
use std::time::Duration;

use drystone_core::buf::{Buf, BufList};

use super::error::RequestError;
use super::layout::{BlockRange, Command, DataPointer, Namespace, Prp, dataset_range};
use super::mapper::{Mapper, Range};
use super::request::{Operation, Request};

/// A command in flight, or the place for one.
pub(super) struct Slot {
    /// CID of the last command: the slot's number in the low bits, and above them how often it was used, so that a completion
    /// that comes twice, or late, is not taken for the next command's.
    pub(super) cid: u16,
    pub(super) owner: Owner,
    /// The buffers of a whole request; else there are none.
    pub(super) data: BufList,
    pub(super) op: Operation,
    pub(super) attempts: u8,
    pub(super) aborting: bool,
    /// When it was first seen to be in flight: [`UNSEEN`], until somebody looks for what takes too long.
    pub(super) since: Duration,
    /// What of the owner's buffers it moves.
    pub(super) range: Range,
    /// Pages that stand in for the buffers; keeps its memory.
    pub(super) pages: Vec<u32>,
    /// As it was sent, to be sent again.
    pub(super) command: Command,
}

/// No time at all.
pub(super) const UNSEEN: Duration = Duration::MAX;

/// Whose command it is.
#[derive(Clone, Copy)]
pub(super) enum Owner {
    Nobody,
    Whole { tag: u64 },
    Part { split: usize },
}

/// A request of several commands.
pub(super) struct Split {
    pub(super) namespace: Namespace,
    pub(super) request: Request,
    /// Bytes that commands were made for.
    pub(super) sent: u64,
    pub(super) outstanding: u32,
    /// It is in the queue of those that wait.
    pub(super) waits: bool,
    pub(super) error: Option<RequestError>,
}

impl Split {
    pub(super) fn abandon(&mut self) {
        abandon(&mut self.request.data);
    }
}

/// What waits for a slot.
pub(super) enum Waiting {
    Fresh(Namespace, Request),
    Rest(usize),
}

/// Has buffers stay as they are for ever, and others of the same size take their place.
pub(super) fn abandon(data: &mut BufList) {
    let fresh = Buf::zeroed(data.len_bytes());
    std::mem::forget(std::mem::replace(data, fresh.into()));
}

impl Slot {
    /// The place of that number.
    pub(super) fn new(number: u16) -> Self {
        Self {
            cid: number,
            owner: Owner::Nobody,
            data: BufList::new(),
            op: Operation::Flush,
            attempts: 0,
            aborting: false,
            since: UNSEEN,
            range: Range { at: 0, len: 0, block: 1 },
            pages: Vec::new(),
            command: Command::default(),
        }
    }
}

/// Puts the data of a command, `part` bytes from `at` on of its request, where the controller finds it; nothing while
/// there is no memory for that. Also says how many bytes it will be.
pub(super) fn place(
    mapper: &mut Mapper,
    slot: &mut Slot,
    cid: u16,
    namespace: &Namespace,
    request: &Request,
    (at, part): (u64, u64),
) -> Option<(DataPointer, u64)> {
    if request.op.moves_data() {
        let range = Range { at: at as usize, len: part as usize, block: namespace.block() as usize };
        let windows = request.data.windows();
        let described = match mapper.describe(cid, windows, range) {
            Some(described) => described,
            None => {
                let described = mapper.bounce(cid, range, &mut slot.pages)?;
                if request.op != Operation::Read {
                    mapper.copy_in(&slot.pages, windows, Range { len: described.len, ..range });
                }
                described
            }
        };
        slot.range = Range { len: described.len, ..range };
        return Some((described.data, described.len as u64));
    }
    if request.op != Operation::Deallocate {
        return Some((DataPointer::NONE, part));
    }
    let page = mapper.page_of(cid);
    let blocks = u32::try_from(part >> namespace.block_bits).expect("one command's blocks");
    let range = dataset_range((request.offset + at) >> namespace.block_bits, blocks);
    for (word, value) in page.words().iter().zip(range) {
        word.store(value.to_le(), Ordering::Relaxed);
    }
    Some((Prp::page(page.iova()).into(), part))
}

/// The command for a part of a request.
pub(super) fn encode(
    op: Operation,
    namespace: &Namespace,
    data: DataPointer,
    (offset, len): (u64, u64),
) -> Command {
    match op {
        Operation::Flush => Command::flush(namespace.id),
        Operation::Deallocate => Command::deallocate(namespace.id, data),
        _ => {
            let range = namespace.blocks_at(offset, len).expect("a part of a request that was judged");
            encode_blocks(op, namespace, data, range)
        }
    }
}

/// The command for what names its blocks itself.
fn encode_blocks(op: Operation, namespace: &Namespace, data: DataPointer, range: BlockRange) -> Command {
    let id = namespace.id;
    match op {
        Operation::Read => Command::read(id, data, range),
        Operation::Write { fua } => Command::write(id, data, range, fua),
        Operation::Compare => Command::compare(id, data, range),
        Operation::WriteZeroes { deallocate } => {
            let deallocate = deallocate && namespace.zeroes_deallocate && namespace.deallocated_reads_zero;
            Command::write_zeroes(id, range, deallocate)
        }
        Operation::Flush | Operation::Deallocate => unreachable!("these name no blocks"),
    }
}
