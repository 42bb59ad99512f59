//! Requests and their replies.
//!
//! ```text
//!   Header ─▶ Data          the request's own buffers          (simple reply to a read)
//!     ▲   ├─▶ DataOffset ─▶ Data                               (chunk of data)
//!     │   └─▶ Payload       small: errors, holes, block status
//!     └─────────┘
//! ```
//!
//! An order is one request, or several one after the other: a long range in pieces that the header can say, a flush where
//! the server has no FUA. Each is answered once, by an [`Ended`], or comes back from
//! [`take_orders`](Transmission::take_orders) when the connection is lost.

use std::collections::VecDeque;

use slab::Slab;

use super::Negotiated;
use super::chunks::Fragments;
use crate::buf::BufList;
use crate::intent::{Errno, Fua, ZeroFlags};
use crate::protocol::nbd::layout::{
    Chunk, ChunkKind, CommandCode, CommandFlags, Extent, Reply, ReplyKind, Request, SimpleReply,
    TransmissionFlags, WireErrno, parse_error, parse_status,
};
use crate::protocol::nbd::limits::{CLIENT_REQUESTS_MAX, COMPACT_MAX, ERROR_LEN_MAX, STATUS_LEN_MAX};
use crate::protocol::nbd::payload::{collect, copy_front, windows_between, zero_between};
use crate::protocol::nbd::{Mode, NbdError, Outgoing};

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Fill the buffers.
    Read,
    /// Write the buffers.
    Write(Fua),
    /// Make durable what was written.
    Flush,
    /// Give up the content of a range.
    Trim,
    /// Make a range read as zeros.
    WriteZeroes(ZeroFlags),
    /// Tell the state of the first extent of a range, in the context that was negotiated.
    Status,
}

/// One thing that a client asks for.
#[derive(Debug)]
pub struct Order {
    /// The caller's own number for it.
    pub tag: u64,
    /// What.
    pub command: Command,
    /// First byte.
    pub offset: u64,
    /// Bytes; reads and writes take the length of `data`.
    pub len: u64,
    /// Room for what is read, or what is written.
    pub data: BufList,
}

/// What became of an order.
#[derive(Debug)]
pub struct Ended {
    /// The order, with its buffers.
    pub order: Order,
    /// Whether it worked.
    pub result: Result<(), Errno>,
    /// The state of the first extent, after [`Command::Status`].
    pub extent: Option<Extent>,
}

/// A connection in transmission.
#[derive(Debug)]
pub struct Transmission {
    export: Negotiated,
    state: State,
    /// The front of what the state waits for.
    partial: Vec<u8>,
    flights: Slab<Flight>,
    generation: u32,
    ended: VecDeque<Ended>,
    out: Outgoing,
}

#[derive(Debug)]
enum State {
    Header,
    DataOffset { key: usize, chunk: Chunk },
    Data { key: usize, at: usize, to: usize, last: bool },
    Payload { key: usize, chunk: Chunk },
}

/// An order that the server has.
#[derive(Debug)]
struct Flight {
    /// Tells it from earlier ones at the same place.
    generation: u32,
    order: Order,
    /// Which of its requests is at the server.
    step: Step,
    /// The buffers are in the queue of what is to be sent.
    lent: bool,
    /// All replies came.
    answered: bool,
    error: Option<Errno>,
    fragments: Fragments,
    extent: Option<Extent>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The piece of a range from there on, and its length.
    Piece { done: u64, len: u64 },
    /// The flush after a write to a server without FUA.
    Flush,
}

impl Transmission {
    /// Begins transmission.
    pub fn new(export: Negotiated) -> Self {
        Self {
            export,
            state: State::Header,
            partial: Vec::with_capacity(ReplyKind::Extended.header_len()),
            flights: Slab::new(),
            generation: 0,
            ended: VecDeque::new(),
            out: Outgoing::new(),
        }
    }

    /// What was negotiated.
    pub fn export(&self) -> &Negotiated {
        &self.export
    }

    /// What is to be sent.
    pub fn out(&self) -> &Outgoing {
        &self.out
    }

    /// Whether another order may be given.
    pub fn has_room(&self) -> bool {
        self.flights.len() < CLIENT_REQUESTS_MAX
    }

    /// Orders that the server has.
    pub fn in_flight(&self) -> usize {
        self.flights.len()
    }

    /// Whether the server owes nothing.
    pub fn is_idle(&self) -> bool {
        self.flights.is_empty() && self.ended.is_empty()
    }

    /// The next order that ended.
    pub fn next_ended(&mut self) -> Option<Ended> {
        self.ended.pop_front()
    }

    /// Asks the server to leave, once what is in flight has been answered.
    pub fn disconnect(&mut self) {
        self.request(CommandCode::DISC, CommandFlags::NONE, 0, (0, 0));
    }

    /// Gives an order. There must be [room](Self::has_room).
    pub fn submit(&mut self, order: Order) {
        let flags = self.export.flags;
        let lacks = |flag| !flags.has(TransmissionFlags::HAS_FLAGS.with(flag));
        let read_only = flags.has(TransmissionFlags::READ_ONLY);
        let aligned = (order.offset | order.len).is_multiple_of(self.export.sizes.min.into());
        let refused = match order.command {
            Command::Write(_) | Command::WriteZeroes(_) | Command::Trim if read_only => Err(Errno::EPERM),
            Command::Flush if lacks(TransmissionFlags::SEND_FLUSH) => Ok(()),
            Command::Trim if lacks(TransmissionFlags::SEND_TRIM) => Err(Errno::ENOTSUP),
            Command::WriteZeroes(_) if lacks(TransmissionFlags::SEND_WRITE_ZEROES) => Err(Errno::ENOTSUP),
            Command::WriteZeroes(ZeroFlags { no_fallback: true, .. })
                if lacks(TransmissionFlags::SEND_FAST_ZERO) =>
            {
                Err(Errno::ENOTSUP)
            }
            Command::WriteZeroes(_) if !aligned => Err(Errno::EINVAL),
            _ => return self.begin(order),
        };
        self.ended.push_back(Ended { order, result: refused, extent: None });
    }

    fn begin(&mut self, mut order: Order) {
        let min = u64::from(self.export.sizes.min);
        match order.command {
            Command::Read | Command::Write(_) => order.len = order.data.len_bytes() as u64,
            // Whole blocks of it: a discard is a hint.
            Command::Trim => {
                let end = order.offset.saturating_add(order.len) / min * min;
                order.offset = order.offset.next_multiple_of(min);
                order.len = end.saturating_sub(order.offset);
            }
            Command::Flush | Command::WriteZeroes(_) | Command::Status => {}
        }
        let unknown = order.command == Command::Status && self.export.context.is_none();
        if unknown || order.len == 0 && order.command != Command::Flush {
            // Without a context everything is data.
            let extent = unknown.then_some(Extent { len: order.len, flags: 0 });
            return self.ended.push_back(Ended { order, result: Ok(()), extent });
        }
        self.generation = self.generation.wrapping_add(1);
        let key = self.flights.insert(Flight {
            generation: self.generation,
            order,
            step: Step::Flush,
            lent: false,
            answered: false,
            error: None,
            fragments: Fragments::default(),
            extent: None,
        });
        self.send_piece(key, 0);
    }

    /// Sends the request for what is left of an order.
    fn send_piece(&mut self, key: usize, done: u64) {
        let extended = self.export.mode == Mode::Extended;
        let has_fua = self.export.flags.has(TransmissionFlags::SEND_FUA);
        let min = u64::from(self.export.sizes.min);
        let flight = &mut self.flights[key];
        let Order { command, offset, len, .. } = flight.order;
        let (mut offset, mut len) = (offset + done, len - done);
        if command == Command::Status {
            let end = (offset + len).next_multiple_of(min);
            offset -= offset % min;
            len = end - offset;
        }
        if !extended {
            len = len.min(COMPACT_MAX);
        }
        flight.step = Step::Piece { done, len };
        let (code, flags) = match command {
            Command::Read => (CommandCode::READ, CommandFlags::NONE),
            Command::Write(fua) => {
                let fua = fua == Fua::Yes && has_fua;
                let flags = CommandFlags::NONE.with_if(fua, CommandFlags::FUA);
                (CommandCode::WRITE, flags.with_if(extended, CommandFlags::PAYLOAD_LEN))
            }
            Command::Flush => (CommandCode::FLUSH, CommandFlags::NONE),
            Command::Trim => (CommandCode::TRIM, CommandFlags::NONE),
            Command::WriteZeroes(how) => {
                let flags = CommandFlags::NONE.with_if(!how.may_unmap, CommandFlags::NO_HOLE);
                (CommandCode::WRITE_ZEROES, flags.with_if(how.no_fallback, CommandFlags::FAST_ZERO))
            }
            Command::Status => (CommandCode::BLOCK_STATUS, CommandFlags::REQ_ONE),
        };
        let cookie = u64::from(flight.generation) << 32 | key as u64;
        let range = if command == Command::Flush { (0, 0) } else { (offset, len) };
        let write = matches!(command, Command::Write(_));
        if write {
            flight.lent = true;
        }
        let data = if write { std::mem::take(&mut flight.order.data) } else { BufList::new() };
        self.request(code, flags, cookie, range);
        if write {
            self.out.push_data(cookie, data);
        }
    }

    fn request(&mut self, command: CommandCode, flags: CommandFlags, cookie: u64, (offset, len): (u64, u64)) {
        let (bytes, count) = Request { flags, command, cookie, offset, len }.encode(self.export.mode);
        self.out.push(&bytes[..count]);
    }

    /// Takes note that the first `count` bytes of [`out`](Self::out) are sent.
    pub fn sent(&mut self, count: usize) {
        let flights = &mut self.flights;
        let mut waited = None;
        self.out.advance(count, |cookie, data| {
            let flight = &mut flights[key_of(cookie)];
            (flight.order.data, flight.lent) = (data, false);
            if flight.answered {
                waited.get_or_insert_with(Vec::new).push(key_of(cookie));
            }
        });
        for key in waited.into_iter().flatten() {
            self.finish(key);
        }
    }

    /// The memory that the next bytes from the server belong to; none where they are for [`feed`](Self::feed).
    pub fn payload(&mut self) -> impl Iterator<Item = &mut [u8]> {
        let place = match self.state {
            State::Data { key, at, to, .. } => Some((&mut self.flights[key].order.data, at, to)),
            _ => None,
        };
        place.into_iter().flat_map(|(data, at, to)| windows_between(data, at, to))
    }

    /// Takes note that `count` bytes were put where [`payload`](Self::payload) said.
    ///
    /// # Errors
    /// What the server did wrong.
    pub fn received(&mut self, count: usize) -> Result<(), NbdError> {
        let State::Data { key, at, to, last } = &mut self.state else {
            assert_eq!(count, 0, "there was no memory for any");
            return Ok(());
        };
        *at += count;
        assert!(*at <= *to, "no more is received than there was room for");
        if at < to {
            return Ok(());
        }
        let (key, last) = (*key, *last);
        self.end_chunk(key, last)
    }

    /// Takes all of `input`.
    ///
    /// # Errors
    /// What the server did wrong; the connection is of no further use then.
    pub fn feed(&mut self, input: &mut &[u8]) -> Result<(), NbdError> {
        while !input.is_empty() {
            match self.state {
                State::Header => {
                    if !collect(&mut self.partial, ReplyKind::MAGIC_LEN, input) {
                        break;
                    }
                    let magic = self.partial[..ReplyKind::MAGIC_LEN].try_into().expect("collected");
                    let kind = ReplyKind::parse(self.export.mode, magic)?;
                    if collect(&mut self.partial, kind.header_len(), input) {
                        let reply = Reply::parse(kind, &self.partial)?;
                        self.partial.clear();
                        self.reply(reply)?;
                    }
                }
                State::DataOffset { key, chunk } => {
                    if collect(&mut self.partial, 8, input) {
                        let offset = u64::from_be_bytes(self.partial[..].try_into().expect("collected"));
                        self.partial.clear();
                        let range = self.place(key, offset, chunk.len - 8)?;
                        self.state = State::Data { key, at: range.start, to: range.end, last: chunk.last };
                    }
                }
                State::Data { key, at, to, .. } => {
                    let count = copy_front(&mut self.flights[key].order.data, at, to, input);
                    self.received(count)?;
                }
                State::Payload { key, chunk } => {
                    if collect(&mut self.partial, chunk.len as usize, input) {
                        let payload = std::mem::take(&mut self.partial);
                        self.small_payload(key, chunk, &payload)?;
                        self.end_chunk(key, chunk.last)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn reply(&mut self, reply: Reply) -> Result<(), NbdError> {
        let cookie = match reply {
            Reply::Simple(SimpleReply { cookie, .. }) | Reply::Chunk(Chunk { cookie, .. }) => cookie,
        };
        let key = key_of(cookie);
        let flight = self.flights.get_mut(key);
        let known = flight.filter(|flight| u64::from(flight.generation) == cookie >> 32 && !flight.answered);
        let Some(flight) = known else {
            return Err(NbdError::Value {
                what: "cookie of a reply",
                found: cookie,
                expected: "one in flight",
            });
        };
        let command = flight.order.command;
        match reply {
            Reply::Simple(SimpleReply { error: WireErrno::NONE, .. }) => match (command, self.export.mode) {
                (Command::Read, Mode::Simple) => {
                    let to = flight.order.data.len_bytes();
                    flight.fragments.add(0, to as u64, to)?;
                    self.state = State::Data { key, at: 0, to, last: true };
                    Ok(())
                }
                (Command::Read | Command::Status, _) => {
                    Err(NbdError::Unsupported("the server gave a simple reply where chunks were agreed on"))
                }
                _ => self.end_chunk(key, true),
            },
            Reply::Simple(SimpleReply { error, .. }) => {
                if command == Command::Read && self.export.mode != Mode::Simple {
                    let text = "the server gave a simple reply where chunks were agreed on";
                    return Err(NbdError::Unsupported(text));
                }
                flight.error = Some(error.errno());
                self.end_chunk(key, true)
            }
            Reply::Chunk(chunk) => self.chunk(key, command, chunk),
        }
    }

    fn chunk(&mut self, key: usize, command: Command, chunk: Chunk) -> Result<(), NbdError> {
        let length = |max: u64| match chunk.len <= max {
            true => Ok(()),
            false => Err(NbdError::TooMuch { what: "bytes of a chunk", found: chunk.len, max }),
        };
        match (chunk.kind, command) {
            (ChunkKind::NONE, _) if chunk.len == 0 && chunk.last => return self.end_chunk(key, true),
            (ChunkKind::OFFSET_DATA, Command::Read) if chunk.len > 8 => {
                self.state = State::DataOffset { key, chunk };
                return Ok(());
            }
            (ChunkKind::OFFSET_HOLE, Command::Read) if chunk.len == 12 => {}
            (ChunkKind::BLOCK_STATUS, Command::Status) if self.export.mode == Mode::Structured => {
                length(STATUS_LEN_MAX)?;
            }
            (ChunkKind::BLOCK_STATUS_EXT, Command::Status) if self.export.mode == Mode::Extended => {
                length(STATUS_LEN_MAX)?;
            }
            (kind, _) if kind.is_error() => length(ERROR_LEN_MAX)?,
            (kind, _) => {
                let (found, expected) = (kind.0.into(), "one that fits the request and its length");
                return Err(NbdError::Value { what: "type of a chunk", found, expected });
            }
        }
        if chunk.len == 0 {
            return Err(NbdError::Shape { what: "chunk of a reply" });
        }
        self.state = State::Payload { key, chunk };
        Ok(())
    }

    /// Where in the buffers of a read a chunk belongs.
    fn place(&mut self, key: usize, offset: u64, len: u64) -> Result<std::ops::Range<usize>, NbdError> {
        let Flight { order, fragments, .. } = &mut self.flights[key];
        let Some(at) = offset.checked_sub(order.offset) else {
            let expected = "a chunk that lies in the request";
            return Err(NbdError::Value { what: "offset of a chunk", found: offset, expected });
        };
        fragments.add(at, len, order.data.len_bytes())
    }

    fn small_payload(&mut self, key: usize, chunk: Chunk, payload: &[u8]) -> Result<(), NbdError> {
        match chunk.kind {
            ChunkKind::OFFSET_HOLE => {
                let (offset, len) = payload.split_at(8);
                let offset = u64::from_be_bytes(offset.try_into().expect("eight"));
                let len = u32::from_be_bytes(len.try_into().expect("a hole's chunk has twelve bytes"));
                let range = self.place(key, offset, len.into())?;
                zero_between(&mut self.flights[key].order.data, range.start, range.end);
            }
            ChunkKind::BLOCK_STATUS | ChunkKind::BLOCK_STATUS_EXT => {
                let (context, extents) = parse_status(chunk.kind, payload)?;
                if Some(context) != self.export.context || self.flights[key].extent.is_some() {
                    let (found, expected) = (context.into(), "the one that was chosen, once");
                    return Err(NbdError::Value { what: "meta context of a chunk", found, expected });
                }
                self.flights[key].extent = extents.first().copied();
            }
            kind => {
                let (error, at) = parse_error(kind, payload)?;
                let Order { offset, len, .. } = self.flights[key].order;
                if at.is_some_and(|at| at < offset || at - offset >= len.max(1)) {
                    let (found, expected) = (at.unwrap_or(0), "within the request");
                    return Err(NbdError::Value { what: "offset of an error", found, expected });
                }
                self.flights[key].error.get_or_insert(error.errno());
            }
        }
        Ok(())
    }

    /// Is done with a chunk, and with the request if it was the last.
    fn end_chunk(&mut self, key: usize, last: bool) -> Result<(), NbdError> {
        self.state = State::Header;
        if !last {
            return Ok(());
        }
        let flight = &mut self.flights[key];
        let Order { command, len, .. } = flight.order;
        if flight.error.is_none() {
            let missing = match command {
                Command::Read => !flight.fragments.cover(flight.order.data.len_bytes()),
                Command::Status => flight.extent.is_none(),
                _ => flight.lent,
            };
            if missing {
                return Err(NbdError::Unsupported(
                    "the server says that it is done, and did not do all of it",
                ));
            }
            let wants_flush = command == Command::Write(Fua::Yes)
                && !self.export.flags.has(TransmissionFlags::SEND_FUA)
                && self.export.flags.has(TransmissionFlags::SEND_FLUSH);
            match flight.step {
                Step::Piece { done, len: piece } if command != Command::Status && done + piece < len => {
                    self.send_piece(key, done + piece);
                    return Ok(());
                }
                Step::Piece { .. } if wants_flush => {
                    flight.step = Step::Flush;
                    let cookie = u64::from(flight.generation) << 32 | key as u64;
                    self.request(CommandCode::FLUSH, CommandFlags::NONE, cookie, (0, 0));
                    return Ok(());
                }
                Step::Piece { .. } | Step::Flush => {}
            }
        }
        flight.answered = true;
        if !flight.lent {
            self.finish(key);
        }
        Ok(())
    }

    fn finish(&mut self, key: usize) {
        let Flight { order, error, extent, .. } = self.flights.remove(key);
        let min = u64::from(self.export.sizes.min);
        // The answer is about whole blocks, from the beginning of the first.
        let skipped = order.offset % min;
        let extent = extent.map(|extent| Extent {
            len: extent.len.saturating_sub(skipped).clamp(1, order.len.max(1)),
            flags: extent.flags,
        });
        self.ended.push_back(Ended { order, result: error.map_or(Ok(()), Err), extent });
    }

    /// Gives up the connection, and gives back every order that was not answered, in the order in which they were given.
    pub fn take_orders(&mut self) -> Vec<Order> {
        let flights = &mut self.flights;
        self.out.clear(|cookie, data| flights[key_of(cookie)].order.data = data);
        self.state = State::Header;
        self.partial.clear();
        let mut flights: Vec<_> = self.flights.drain().collect();
        flights.sort_by_key(|flight| flight.generation.wrapping_sub(self.generation).wrapping_sub(1));
        flights.into_iter().map(|flight| flight.order).collect()
    }
}

fn key_of(cookie: u64) -> usize {
    (cookie & 0xffff_ffff) as usize
}
