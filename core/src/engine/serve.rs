//! What the synchronous path cannot answer: one coroutine a piece, in a reused slot.
//!
//! Each branch ends by settling the piece, or by dispatching it again once its metadata is loaded.
//!
//! The order of an allocating write, on the page and on the disk: `reserve` takes space that nothing points to; the
//! data goes there, with the edges of the unit that the guest did not write copied from the old mapping or zeroed;
//! `publish` makes the space reachable. A crash between any two leaves at most space that nothing points to.

use std::rc::Rc;

use super::io::Io;
use super::path::{Piece, Place, Verb, resolve};
use super::task::{Serve, ServeSlot, join};
use super::{Op, Request, Shared};
use crate::buf::{Buf, BufList};
use crate::error::Result;
use crate::filter::DebugEvent;
use crate::graph::driver::{Access, Driver, Mapping, Ready, Reservation, Role};
use crate::graph::{Collision, DetectZeroes, Kind, Leaf, Node, NodeId, Owner};
use crate::intent::{Action, Errno, Fua, Label, Preallocation, ZeroFlags};

/// Bytes of zeros written at once where a leaf cannot zero a range.
const ZERO_CHUNK: u64 = 256 * 1024;

/// Bytes of copy-on-write edges from which zeroing them apart beats writing zeros along with the data.
const ZERO_APART_MIN: u64 = 128 * 1024;

/// Makes one serving slot.
pub(crate) fn slot(shared: Rc<Shared>) -> impl Serve + 'static {
    ServeSlot::new(move |piece| serving(Rc::clone(&shared), piece))
}

async fn serving(shared: Rc<Shared>, mut piece: Piece) {
    let node = shared.graph.node(piece.node);
    let io = Io::new(Rc::clone(&shared), Some(piece.node));
    let result = match (&node.kind, piece.verb) {
        (Kind::Driver(driver), Verb::Read) => match read(&io, driver, &mut piece).await {
            Ok(After::Dispatch) => return shared.dispatch(piece),
            Ok(After::Settle) => Ok(()),
            Err(error) => Err(error),
        },
        (Kind::Driver(driver), Verb::Write(Fua::No)) => {
            match write(&io, &node, driver.as_ref(), &mut piece).await {
                Ok(After::Dispatch) => return shared.dispatch(piece),
                Ok(After::Settle) => Ok(()),
                Err(error) => Err(error),
            }
        }
        (Kind::Leaf(leaf), Verb::Read) => leaf_read(&io, leaf, &mut piece).await,
        (Kind::Leaf(leaf), Verb::Write(_)) => leaf_write(&io, leaf, &mut piece).await,
        (Kind::Leaf(leaf), Verb::Flush) => flush_leaf(&io, &node, leaf, piece.label).await,
        (Kind::Driver(driver), Verb::Flush) => flush(&io, driver.as_ref()).await,
        (Kind::Driver(driver), Verb::Write(Fua::Yes)) => {
            Box::pin(write_through(&io, driver.as_ref(), &mut piece)).await
        }
        (Kind::Driver(driver), Verb::WriteCompressed) => {
            Box::pin(write_compressed(&io, &node, driver.as_ref(), &mut piece)).await
        }
        (Kind::Leaf(_), Verb::WriteCompressed) => Box::pin(write_plainly(&io, &mut piece)).await,
        (_, Verb::WriteLooking { fua, compressed }) => {
            Box::pin(look_for_zeroes(&io, &node, &mut piece, fua, compressed)).await
        }
        (_, Verb::WriteZeroes(flags, Fua::Yes)) => Box::pin(zero_through(&io, &piece, flags)).await,
        (Kind::Driver(driver), Verb::WriteZeroes(..) | Verb::Discard) => {
            match Box::pin(clear(&io, &node, driver.as_ref(), &mut piece)).await {
                Ok(After::Dispatch) => return shared.dispatch(piece),
                Ok(After::Settle) => Ok(()),
                Err(error) => Err(error),
            }
        }
        (Kind::Leaf(leaf), Verb::WriteZeroes(_, Fua::No)) => {
            leaf_without_cycles(&io, leaf, &piece).await;
            return shared.dispatch(piece);
        }
        (Kind::Leaf(leaf), Verb::ZeroesOtherwise(flags)) => {
            Box::pin(leaf_zeroes_otherwise(&io, leaf, &piece, flags)).await
        }
        (Kind::Driver(_), Verb::ZeroesOtherwise(_)) => unreachable!("a leaf refuses to zero"),
        (Kind::Leaf(_), Verb::Discard) => unreachable!("a leaf takes discards as they are"),
    };
    shared.settle(piece.request, piece.position, std::mem::take(&mut piece.data), result);
}

/// How a branch ended.
enum After {
    /// Memory now says where the piece is.
    Dispatch,
    /// The piece is done.
    Settle,
}

async fn read(io: &Io, driver: &Rc<dyn Driver>, piece: &mut Piece) -> Result<After> {
    tell_backing_reads(io, driver.as_ref(), piece.offset, piece.len).await?;
    let extent = driver.lookup(piece.offset, piece.len, Access::Read)?;
    match extent.mapping {
        Mapping::Miss(miss) => driver.load(io, miss).await.map(|()| After::Dispatch),
        Mapping::Special { .. } if extent.len >= piece.len => {
            driver.read_special(io, piece.offset, &mut piece.data).await.map(|()| After::Settle)
        }
        Mapping::Own { .. } if extent.len >= piece.len => {
            Box::pin(own(io, driver.as_ref(), piece, Op::Read)).await.map(|()| After::Settle)
        }
        _ => Ok(After::Dispatch),
    }
}

/// Tells who waits for events of each part of a read that the backing file answers.
async fn tell_backing_reads(io: &Io, driver: &dyn Driver, offset: u64, len: u64) -> Result<()> {
    if io.shared().debugged.get() == 0 || io.try_child(Role::Backing).is_none() {
        return Ok(());
    }
    let (mut at, end) = (offset, (offset + len).min(io.len(io.node())));
    while at < end {
        let extent = driver.lookup(at, end - at, Access::Read)?;
        match extent.mapping {
            Mapping::Miss(miss) => {
                driver.load(io, miss).await?;
                continue;
            }
            Mapping::Backing { .. } => io.event(DebugEvent::ReadBackingAio).await,
            _ => {}
        }
        at += extent.len;
    }
    Ok(())
}

/// Leaves a piece to its driver.
async fn own(io: &Io, driver: &dyn Driver, piece: &mut Piece, op: Op) -> Result<()> {
    // A driver that passes data on says so before it does.
    match op {
        Op::Read if piece.through => io.event_at(piece.node, DebugEvent::ReadAio).await,
        Op::Write(_) if piece.through => io.event_at(piece.node, DebugEvent::WriteAio).await,
        _ => {}
    }
    let data = std::mem::take(&mut piece.data);
    let Piece { node, offset, len, .. } = *piece;
    let mut request = Request { node, op, offset, len, data, tag: 0 };
    let result = driver.serve(io, &mut request).await;
    piece.data = request.data;
    result
}

/// Whether a driver carries a write of the piece out itself. What is empty is nowhere.
fn writes_itself(driver: &dyn Driver, piece: &Piece) -> Result<bool> {
    if piece.len == 0 {
        return Ok(false);
    }
    let extent = driver.lookup(piece.offset, piece.len, Access::Write)?;
    Ok(matches!(extent.mapping, Mapping::Own { .. }))
}

async fn write(io: &Io, node: &Node, driver: &dyn Driver, piece: &mut Piece) -> Result<After> {
    let extent = driver.lookup(piece.offset, piece.len, Access::Write)?;
    match extent.mapping {
        Mapping::Miss(miss) => driver.load(io, miss).await.map(|()| After::Dispatch),
        Mapping::Allocate => write_allocating(io, node, driver, piece).await,
        Mapping::Own { .. } if extent.len >= piece.len => {
            Box::pin(own(io, driver, piece, Op::Write(Fua::No))).await.map(|()| After::Settle)
        }
        _ => Ok(After::Dispatch),
    }
}

/// Writes the piece, allocating as it goes; what turns out to be writable in place is dispatched.
async fn write_allocating(io: &Io, node: &Node, driver: &dyn Driver, piece: &mut Piece) -> Result<After> {
    let shared = io.shared();
    let unit = driver.granularity();
    loop {
        let start = piece.offset - piece.offset % unit;
        let end = (piece.offset + piece.len).next_multiple_of(unit);
        let _claim = node.claims.take(&shared.tasks, start, end).await;
        // Whoever held the claim before may have allocated what this piece needs.
        let extent = driver.lookup(piece.offset, piece.len, Access::Write)?;
        match extent.mapping {
            Mapping::Allocate => {}
            Mapping::Miss(miss) => {
                driver.load(io, miss).await?;
                continue;
            }
            _ => return Ok(After::Dispatch),
        }
        let reserved = Reserved::take(io, driver, piece.offset, extent.len.min(piece.len)).await?;
        let len = piece.len.min(reserved.space.guest_end - piece.offset);
        let whole = len == piece.len;
        let mut part =
            if whole { std::mem::take(&mut piece.data) } else { piece.data.split_to(len as usize) };
        let result = fill(io, node, &reserved.space, piece.offset, &mut part).await;
        let result = match result {
            Ok(()) => reserved.publish(io).await,
            Err(error) => Err(error),
        };
        if whole {
            piece.data = part;
            return result.map(|()| After::Settle);
        }
        shared.owe(piece.request);
        shared.settle(piece.request, piece.position, part, Ok(()));
        piece.offset += len;
        piece.position += len;
        piece.len -= len;
        result?;
    }
}

/// A reservation that gives itself back, in memory, unless it is published.
struct Reserved<'a> {
    driver: &'a dyn Driver,
    space: Reservation,
    published: bool,
}

impl<'a> Reserved<'a> {
    async fn take(io: &Io, driver: &'a dyn Driver, offset: u64, len: u64) -> Result<Self> {
        loop {
            match driver.reserve(offset, len)? {
                Ready::Yes(space) => {
                    let reserved = Self { driver, space, published: false };
                    if space.fresh {
                        io.event(DebugEvent::ClusterAlloc).await;
                        io.event(DebugEvent::RefblockAlloc).await;
                    }
                    return Ok(reserved);
                }
                Ready::Miss(miss) => driver.load(io, miss).await?,
            }
        }
    }

    async fn publish(mut self, io: &Io) -> Result<()> {
        loop {
            match self.driver.publish(&self.space)? {
                Ready::Yes(()) => {
                    self.published = true;
                    return Ok(());
                }
                Ready::Miss(miss) => self.driver.load(io, miss).await?,
            }
        }
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        if !self.published {
            self.driver.give_back(&self.space);
        }
    }
}

/// Writes `data` for `offset` into reserved space, with the edges that the guest did not write.
async fn fill(io: &Io, node: &Node, space: &Reservation, offset: u64, data: &mut BufList) -> Result<()> {
    let child = node.child(space.child);
    let end = offset + data.len_bytes() as u64;
    let head = space.guest_start..offset;
    let tail = end..space.guest_end;
    let host = |guest: u64| space.host_offset + (guest - space.guest_start);
    let edges_len = (head.end - head.start) + (tail.end - tail.start);
    if edges_len == 0 {
        io.event(DebugEvent::WriteAio).await;
        return write_back(io, child, host(offset), data).await;
    }
    let zero_edges = reads_zero(io, node.id, head.clone()) && reads_zero(io, node.id, tail.clone());
    if zero_edges {
        io.event(DebugEvent::ClusterAllocSpace).await;
    }
    if zero_edges && space.zeroed {
        io.event(DebugEvent::WriteAio).await;
        return write_back(io, child, host(offset), data).await;
    }
    Box::pin(async {
        if !zero_edges {
            io.event(DebugEvent::CowRead).await;
        }
        if zero_edges && edges_len >= ZERO_APART_MIN {
            let flags = ZeroFlags::default();
            io.event(DebugEvent::WriteAio).await;
            let around = join(
                zero_edge(io, child, host(head.start), head.end - head.start, flags),
                zero_edge(io, child, host(tail.start), tail.end - tail.start, flags),
            );
            let (around, written) = join(around, write_back(io, child, host(offset), data)).await;
            return around.0.and(around.1).and(written);
        }
        let (before, after) = join(edge(io, node.id, head.clone()), edge(io, node.id, tail.clone())).await;
        let (before, after) = (before?, after?);
        let (before_len, data_len) = (before.len(), data.len_bytes());
        let mut whole = BufList::from(before);
        whole.append(std::mem::take(data));
        whole.append(BufList::from(after));
        io.event(DebugEvent::WriteAio).await;
        if !zero_edges {
            io.event(DebugEvent::CowWrite).await;
        }
        let (mut whole, result) = io.write("cow/write", child, space.host_offset, whole, Fua::No).await;
        drop(whole.split_to(before_len));
        *data = whole.split_to(data_len);
        result
    })
    .await
}

async fn zero_edge(io: &Io, child: NodeId, at: u64, len: u64, flags: ZeroFlags) -> Result<()> {
    if len == 0 { Ok(()) } else { io.write_zeroes("cow/zero", child, at, len, flags).await }
}

async fn write_back(io: &Io, node: NodeId, offset: u64, data: &mut BufList) -> Result<()> {
    let (back, result) = io.write("write/data", node, offset, std::mem::take(data), Fua::No).await;
    *data = back;
    result
}

/// Reads what the guest sees at `range`, which a copy-on-write must keep.
async fn edge(io: &Io, node: NodeId, range: std::ops::Range<u64>) -> Result<Buf> {
    let len = (range.end - range.start) as usize;
    let buf = Buf::zeroed(len);
    if len == 0 || reads_zero(io, node, range.clone()) {
        return Ok(buf);
    }
    let (data, result) = io.read("cow/read", node, range.start, buf).await;
    result.map(|()| data.into_single())
}

/// Whether memory alone says that a range reads as zeros.
fn reads_zero(io: &Io, node: NodeId, range: std::ops::Range<u64>) -> bool {
    io.shared().graph.with(|nodes| {
        let mut at = range.start;
        while at < range.end {
            match resolve(nodes, node, at, range.end - at, Access::Read) {
                Ok((len, Place::Zero)) => at += len,
                _ => return false,
            }
        }
        true
    })
}

async fn write_through(io: &Io, driver: &dyn Driver, piece: &mut Piece) -> Result<()> {
    if writes_itself(driver, piece)? {
        return own(io, driver, piece, Op::Write(Fua::Yes)).await;
    }
    let data = std::mem::take(&mut piece.data);
    let plain = Piece::new(piece.label, Verb::Write(Fua::No), piece.node, piece.offset, data);
    let (data, result) = io.request(plain).await;
    piece.data = data;
    result?;
    io.flush("write/fua", piece.node).await
}

async fn write_plainly(io: &Io, piece: &mut Piece) -> Result<()> {
    let data = std::mem::take(&mut piece.data);
    let (data, result) = io.write(piece.label, piece.node, piece.offset, data, Fua::No).await;
    piece.data = data;
    result
}

/// Writes as zeros what is nothing else, and the rest as it is.
async fn look_for_zeroes(io: &Io, node: &Node, piece: &mut Piece, fua: Fua, compressed: bool) -> Result<()> {
    let Piece { label, offset, len, .. } = *piece;
    if len > 0 && piece.data.is_zero() {
        let may_unmap = node.flags.detect_zeroes == DetectZeroes::Unmap;
        let verb = Verb::WriteZeroes(ZeroFlags { may_unmap, no_fallback: false }, fua);
        return io.request(Piece::range(label, verb, node.id, offset, len)).await.1;
    }
    let verb = if compressed { Verb::WriteCompressed } else { Verb::Write(fua) };
    let data = std::mem::take(&mut piece.data);
    let (data, result) = io.request(Piece::new(label, verb, node.id, offset, data)).await;
    piece.data = data;
    result
}

async fn zero_through(io: &Io, piece: &Piece, flags: ZeroFlags) -> Result<()> {
    let verb = Verb::WriteZeroes(flags, Fua::No);
    io.request(Piece::range(piece.label, verb, piece.node, piece.offset, piece.len)).await.1?;
    io.flush("write_zeroes/fua", piece.node).await
}

/// Writes whole units compressed, each on its own; what does not shrink, and what is no whole unit, plainly.
async fn write_compressed(io: &Io, node: &Node, driver: &dyn Driver, piece: &mut Piece) -> Result<()> {
    if writes_itself(driver, piece)? {
        return own(io, driver, piece, Op::WriteCompressed).await;
    }
    if !driver.compresses() {
        return write_plainly(io, piece).await;
    }
    let unit = driver.granularity();
    let size = io.len(node.id);
    let mut rest = std::mem::take(&mut piece.data);
    let mut at = piece.offset;
    let end = piece.offset + piece.len;
    let mut result = Ok(());
    while at < end && result.is_ok() {
        let start = at - at % unit;
        let len = (start + unit).min(end) - at;
        let mut part = rest.split_to(len as usize);
        let mut shrunk = Ok(false);
        if at == start && (len == unit || at + len == size) {
            let _claim = node.claims.take(&io.shared().tasks, start, start + unit).await;
            shrunk = driver.write_compressed(io, at, &mut part).await;
        }
        result = match shrunk {
            Ok(true) => Ok(()),
            Ok(false) => {
                let (back, result) = io.write("write_compressed/plain", node.id, at, part, Fua::No).await;
                part = back;
                result
            }
            Err(error) => Err(error),
        };
        piece.data.append(part);
        at += len;
    }
    piece.data.append(rest);
    result
}

/// Zeros and discards.
async fn clear(io: &Io, node: &Node, driver: &dyn Driver, piece: &mut Piece) -> Result<After> {
    let extent = driver.lookup(piece.offset, piece.len, Access::Zero)?;
    let done = match (extent.mapping, piece.verb) {
        (Mapping::Own { .. }, Verb::WriteZeroes(flags, _)) => {
            own(io, driver, piece, Op::WriteZeroes(flags, Fua::No)).await
        }
        (Mapping::Own { .. }, _) => own(io, driver, piece, Op::Discard).await,
        (Mapping::Allocate, Verb::WriteZeroes(flags, _)) => {
            write_zeroes(io, node, driver, piece, flags).await
        }
        (Mapping::Allocate, _) => discard(io, node, driver, piece).await,
        (Mapping::Miss(miss), _) => {
            driver.load(io, miss).await?;
            return Ok(After::Dispatch);
        }
        // What the driver cared about when the piece was placed, it passes on by now.
        _ => return Ok(After::Dispatch),
    };
    done.map(|()| After::Settle)
}

/// Makes a range read as zeros: whole units as the format does it, what is left at either end by writing zeros.
async fn write_zeroes(
    io: &Io,
    node: &Node,
    driver: &dyn Driver,
    piece: &Piece,
    flags: ZeroFlags,
) -> Result<()> {
    let (start, end) = (piece.offset, piece.offset + piece.len);
    let whole = {
        let unit = driver.granularity();
        let (claimed, until) = (start - start % unit, end.next_multiple_of(unit));
        let _claim = node.claims.take(&io.shared().tasks, claimed, until).await;
        let whole = units_to_zero(io, node.id, driver, start, end).await?;
        let done =
            !whole.is_empty() && driver.write_zeroes(io, whole.start, whole.end - whole.start, flags).await?;
        if done { whole } else { end..end }
    };
    let left = start < whole.start || whole.end < end;
    if left && flags.no_fallback {
        return Err(Box::new(crate::error::Error::Unsupported {
            node: node.name.clone(),
            driver: driver.name(),
            what: "fast zeros",
        }));
    }
    zeroes_as_data(io, node.id, start, whole.start.saturating_sub(start)).await?;
    zeroes_as_data(io, node.id, whole.end, end.saturating_sub(whole.end)).await
}

/// The whole units that zeroing `[start, end)` is to change: those within it, and one at either end of which nothing is
/// stored, and which reads as zeros beside the range. The caller has a claim on all of them.
async fn units_to_zero(
    io: &Io,
    node: NodeId,
    driver: &dyn Driver,
    start: u64,
    end: u64,
) -> Result<std::ops::Range<u64>> {
    let unit = driver.zero_granularity();
    let first = start - start % unit;
    let last = end.next_multiple_of(unit).min(io.len(node));
    let mut whole = first..last;
    if !stores_nothing(io, node, driver, first..start).await? {
        whole.start += unit;
    }
    if !stores_nothing(io, node, driver, end..last).await? {
        whole.end = end - end % unit;
    }
    Ok(whole)
}

/// Whether a part of a unit reads as zeros and is not stored, as far as metadata tells; it is loaded where it is missing.
async fn stores_nothing(
    io: &Io,
    node: NodeId,
    driver: &dyn Driver,
    part: std::ops::Range<u64>,
) -> Result<bool> {
    let mut at = part.start;
    while at < part.end {
        let extent = driver.lookup(at, part.end - at, Access::Read)?;
        match extent.mapping {
            Mapping::Miss(miss) => {
                driver.load(io, miss).await?;
                continue;
            }
            Mapping::Zero { .. } | Mapping::Backing { .. } => {}
            _ => return Ok(false),
        }
        let status = io.status(node, at, extent.len, None).await?;
        if !status.zero {
            return Ok(false);
        }
        at += status.len;
    }
    Ok(true)
}

/// The whole units within `[start, end)`; the end of the node ends a unit.
fn whole_units(start: u64, end: u64, unit: u64, size: u64) -> Option<(u64, u64)> {
    let first = start.next_multiple_of(unit);
    let last = if end == size { end } else { end - end % unit };
    (first < last).then_some((first, last))
}

async fn zeroes_as_data(io: &Io, node: NodeId, offset: u64, len: u64) -> Result<()> {
    let mut zeros = BufList::from(Buf::zeroed(len.min(ZERO_CHUNK) as usize));
    let mut at = offset;
    while at < offset + len {
        let chunk = (offset + len - at).min(ZERO_CHUNK) as usize;
        let part = zeros.split_to(chunk);
        // These are zeros already: a node that looks for zeros is not to look again. Where they are to be durable, a flush
        // follows.
        let piece = Piece::new("write_zeroes/data", Verb::Write(Fua::No), node, at, part);
        let (mut part, result) = io.request(piece).await;
        result?;
        at += chunk as u64;
        part.append(zeros);
        zeros = part;
    }
    Ok(())
}

async fn discard(io: &Io, node: &Node, driver: &dyn Driver, piece: &Piece) -> Result<()> {
    let (start, end) = (piece.offset, piece.offset + piece.len);
    let Some((first, last)) = whole_units(start, end, driver.granularity(), io.len(node.id)) else {
        return Ok(());
    };
    let _claim = node.claims.take(&io.shared().tasks, first, last).await;
    driver.discard(io, first, last - first).await
}

/// Reads from a leaf with blocks what is not whole blocks in aligned memory.
async fn leaf_read(io: &Io, leaf: &Leaf, piece: &mut Piece) -> Result<()> {
    let (start, blocks) = read_blocks(io, leaf, piece.label, piece.offset, piece.len).await?;
    piece.data.copy_in(0, &blocks[(piece.offset - start) as usize..]);
    Ok(())
}

/// Reads the whole blocks around a range; what lies beyond the end of the leaf is zero.
async fn read_blocks(io: &Io, leaf: &Leaf, label: Label, offset: u64, len: u64) -> Result<(u64, Buf)> {
    let block = u64::from(leaf.info.request_align.max(1));
    let start = offset - offset % block;
    let len_bytes = ((offset + len).next_multiple_of(block) - start) as usize;
    let align = (leaf.info.memory_align as usize).max(crate::buf::BUF_ALIGN);
    let mut done = BufList::new();
    let mut rest = BufList::from(Buf::zeroed_aligned(len_bytes, align));
    while !rest.is_empty() {
        let at = start + done.len_bytes() as u64;
        let data = rest.split_to(rest.len_bytes().min(leaf.transfer_max()));
        let action = Action::Read { leaf: leaf.info.leaf, offset: at, data };
        let (mut back, result) = io.moved(label, action).await;
        let wanted = back.len_bytes() as u64;
        let moved = result.map_err(|errno| leaf.error("read", at, wanted, errno))?;
        let whole = leaf.whole_blocks(moved);
        if whole == 0 {
            back.append(std::mem::take(&mut rest));
            back.zero_from(moved);
            done.append(back);
        } else {
            done.append(back.split_to(whole));
            back.append(rest);
            rest = back;
        }
    }
    Ok((start, done.into_single()))
}

/// Waits until no cycle of read, modify and write holds a block of the piece: it would write old bytes back over the
/// zeros.
async fn leaf_without_cycles(io: &Io, leaf: &Leaf, piece: &Piece) {
    let (start, end) = (piece.offset, piece.offset + piece.len);
    let free = || (!leaf.collides(start, end, Collision::WithCycles)).then_some(());
    leaf.settled.wait(&io.shared().tasks, free).await;
}

/// Zeros for a leaf that refused to zero the range: by a discard, where that makes zeros; else as data.
async fn leaf_zeroes_otherwise(io: &Io, leaf: &Leaf, piece: &Piece, flags: ZeroFlags) -> Result<()> {
    let Piece { node, offset, len, .. } = *piece;
    // A discard makes no leaf longer.
    if flags.may_unmap && leaf.info.discard_zeroes && offset + len <= leaf.len.get() {
        let held = Held::take(io, leaf, offset, offset + len, Collision::WithCycles).await;
        let discard = Action::Discard { leaf: leaf.info.leaf, offset, len };
        let discarded = io.done("write_zeroes/discard", discard).await;
        drop(held);
        match discarded {
            Ok(()) => {
                leaf.wrote(0);
                return Ok(());
            }
            Err(Errno::ENOTSUP | Errno::EINVAL) => {}
            Err(errno) => return Err(leaf.error("write of zeros", offset, len, errno)),
        }
    }
    match flags.no_fallback {
        true => Err(leaf.error("write of zeros", offset, len, Errno::ENOTSUP)),
        false => zeroes_as_data(io, node, offset, len).await,
    }
}

/// Blocks of a leaf that are held against the cycles of others, until this is dropped.
pub(crate) struct Held<'a> {
    shared: &'a Shared,
    leaf: &'a Leaf,
    cycle: Owner,
}

impl<'a> Held<'a> {
    /// Waits until nothing in flight `against` which this is held shares a byte of `[start, end)`.
    pub(crate) async fn take(
        io: &'a Io,
        leaf: &'a Leaf,
        start: u64,
        end: u64,
        against: Collision,
    ) -> Held<'a> {
        let shared = io.shared();
        leaf.settled.wait(&shared.tasks, || Self::try_take(shared, leaf, start, end, against)).await
    }

    pub(crate) fn try_take(
        shared: &'a Shared,
        leaf: &'a Leaf,
        start: u64,
        end: u64,
        against: Collision,
    ) -> Option<Self> {
        if leaf.collides(start, end, against) {
            return None;
        }
        let cycle = Owner::Cycle(shared.cycles.replace(shared.cycles.get() + 1));
        leaf.enter(cycle, start, end);
        Some(Self { shared, leaf, cycle })
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.leaf.leave(self.cycle);
        self.leaf.settled.notify(&self.shared.tasks);
    }
}

/// Writes to a leaf with blocks what is not whole blocks in aligned memory, or what must wait for such a write.
///
/// A cycle of read, modify and write holds its blocks against all other writes, of zeros too; a write of whole blocks
/// goes beside its like and waits for cycles only.
async fn leaf_write(io: &Io, leaf: &Leaf, piece: &mut Piece) -> Result<()> {
    let shared = io.shared();
    let (first, last, against) = leaf.blocks_of_write(piece.offset, piece.offset + piece.len);
    let aligned = against == Collision::WithCycles;
    let _held = leaf
        .settled
        .wait(&shared.tasks, || {
            // What cuts the leaf back to its length afterwards must not cut off what others append meanwhile.
            let last = if !aligned && last > leaf.len.get() { u64::MAX } else { last };
            Held::try_take(shared, leaf, first, last, against)
        })
        .await;
    rewrite_blocks(io, leaf, piece, aligned).await
}

async fn rewrite_blocks(io: &Io, leaf: &Leaf, piece: &mut Piece, aligned: bool) -> Result<()> {
    let Verb::Write(fua) = piece.verb else { unreachable!("a write") };
    let (start, blocks) = if aligned {
        let align = (leaf.info.memory_align as usize).max(crate::buf::BUF_ALIGN);
        (piece.offset, Buf::zeroed_aligned(piece.len as usize, align))
    } else {
        read_blocks(io, leaf, "write/rmw_read", piece.offset, piece.len).await?
    };
    let mut blocks = blocks;
    let at = (piece.offset - start) as usize;
    let end = at + piece.len as usize;
    piece.data.copy_out(0, &mut blocks[at..end]);
    let wanted_len = leaf.len.get().max(piece.offset + piece.len);
    let blocks_end = start + blocks.len() as u64;
    let written = write_whole(io, leaf, start, BufList::from(blocks), fua).await;
    // Only what this write added is cut off: within the end there is nothing, and beyond it others may have grown the leaf.
    if wanted_len < blocks_end && leaf.len.get() > wanted_len && leaf.len.get() <= blocks_end {
        cut_back(io, leaf, wanted_len).await?;
    }
    written
}

/// Takes off a leaf what the last block of a write added beyond the bytes that were asked for.
async fn cut_back(io: &Io, leaf: &Leaf, len: u64) -> Result<()> {
    let preallocation = Preallocation::Off;
    let cut = io.done("write/cut", Action::SetLen { leaf: leaf.info.leaf, len, preallocation }).await;
    cut.map_err(|errno| leaf.error("write", len, 0, errno))?;
    leaf.wrote(0);
    leaf.len.set(len);
    Ok(())
}

async fn write_whole(io: &Io, leaf: &Leaf, mut offset: u64, mut data: BufList, fua: Fua) -> Result<()> {
    while !data.is_empty() {
        let part = data.split_to(data.len_bytes().min(leaf.transfer_max()));
        let action = Action::Write { leaf: leaf.info.leaf, offset, data: part, fua };
        let (mut back, result) = io.moved("write/blocks", action).await;
        let len = back.len_bytes() as u64;
        let moved = match result {
            Ok(0) => Err(Errno::EIO),
            other => other,
        };
        let moved = moved.map_err(|errno| leaf.error("write", offset, len, errno))?;
        leaf.wrote(offset + moved as u64);
        drop(back.split_to(moved.min(back.len_bytes())));
        back.append(data);
        data = back;
        offset += moved as u64;
    }
    Ok(())
}

async fn flush(io: &Io, driver: &dyn Driver) -> Result<()> {
    io.event(DebugEvent::FlushToOs).await;
    driver.flush(io).await
}

/// Flushes a leaf, unless nothing was written since the last flush.
///
/// A failed flush stays failed: the host may have dropped what it could not write, and would call the next one good.
async fn flush_leaf(io: &Io, node: &Node, leaf: &Leaf, label: Label) -> Result<()> {
    if let Some(errno) = leaf.flush_failed.get() {
        return Err(leaf.error("flush", 0, 0, errno));
    }
    let written = leaf.written.get();
    if node.flags.no_flush || leaf.flushed.get() >= written {
        return Ok(());
    }
    let result = io.done(label, Action::Flush { leaf: leaf.info.leaf }).await;
    result.map_err(|errno| {
        leaf.flush_failed.set(Some(errno));
        leaf.error("flush", 0, 0, errno)
    })?;
    // One that failed meanwhile may have lost what this one covers, and left it nothing to fail with.
    if let Some(errno) = leaf.flush_failed.get() {
        return Err(leaf.error("flush", 0, 0, errno));
    }
    leaf.flushed.set(leaf.flushed.get().max(written));
    Ok(())
}
