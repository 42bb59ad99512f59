//! Requests and their replies.
//!
//! ```text
//!   Header ─▶ Data           into the buffers of a write
//!     ▲   ├─▶ Skipping       data of a write that is refused; the reply follows it
//!     │   ├─▶ Contexts       which contexts a request for block status is about
//!     └───┴─▶ Leaving        nothing more is taken; what is in flight is still answered
//! ```
//!
//! Each order that [`feed`](Transmission::feed) gives is [answered](Transmission::answer) once, in any order. While too
//! much is in flight or waits to be sent, nothing is taken: a client that does not read is not listened to.

use slab::Slab;

use super::Chosen;
use crate::buf::BufList;
use crate::intent::{Errno, Fua, ZeroFlags};
use crate::protocol::nbd::layout::{
    BlockSizes, Chunk, ChunkKind, CommandCode, CommandFlags, Extent, Fields, Request, SimpleReply, WireErrno,
    error_payload, parse_request, request_len, status_payload,
};
use crate::protocol::nbd::limits::{
    ANNOUNCED_MAX, CACHE_STEP, COMPACT_MAX, EXTENTS_MAX, PAYLOAD_MAX, REQUEST_BYTES_MAX, REQUESTS_MAX,
};
use crate::protocol::nbd::payload::{collect, copy_front, windows_between};
use crate::protocol::nbd::server::Export;
use crate::protocol::nbd::{Mode, NbdError, Outgoing};

/// Bytes that one request counts for at least: its header, its reply, and its books.
const REQUEST_COST: u64 = 512;

/// Names an order until it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OrderId(pub usize);

/// What a client asks for. Ranges lie in the export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Read `len` bytes.
    Read,
    /// Write the data of the order.
    Write(Fua),
    /// Make durable what was answered before, through any connection.
    Flush,
    /// Give up the content of a range.
    Trim(Fua),
    /// Read ahead.
    Cache,
    /// Make a range read as zeros.
    WriteZeroes(ZeroFlags, Fua),
    /// Tell the states of the range in these contexts.
    Status {
        /// Their numbers.
        contexts: Vec<u32>,
        /// One extent is enough.
        one: bool,
    },
}

/// One thing that a client asks for.
#[derive(Debug)]
pub struct Order {
    /// To be given with the answer.
    pub id: OrderId,
    /// What.
    pub command: Command,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// What is to be written.
    pub data: BufList,
}

/// What became of an order.
#[derive(Debug)]
pub enum Answer {
    /// It worked.
    Done,
    /// What was read.
    Data(BufList),
    /// What was to be read is sent from [elsewhere](Outgoing::elsewhere), under this key.
    Elsewhere(u64),
    /// States, each context's in a list that begins at the order's offset, is not empty, and has no empty extent.
    Status(Vec<(u32, Vec<Extent>)>),
    /// It did not work.
    Failed(Errno, String),
}

/// A connection in transmission.
#[derive(Debug)]
pub struct Transmission {
    len: u64,
    read_only: bool,
    sizes: BlockSizes,
    mode: Mode,
    contexts: Vec<u32>,
    state: State,
    /// The front of what the state waits for.
    partial: Vec<u8>,
    pending: Slab<Pending>,
    /// What all that is pending counts for.
    bytes: u64,
    out: Outgoing,
}

#[derive(Debug)]
enum State {
    Header,
    /// `data` has room for what came so far, and for as much again.
    Data {
        id: OrderId,
        fua: Fua,
        data: BufList,
        at: usize,
    },
    Skipping {
        left: u64,
        refused: (Request, Errno, &'static str),
    },
    Contexts {
        request: Request,
    },
    Leaving,
}

/// A request that is not answered yet.
#[derive(Debug)]
struct Pending {
    cookie: u64,
    offset: u64,
    len: u64,
    read: bool,
    /// One chunk of data, as the client wants it.
    whole: bool,
    cost: u64,
}

impl Transmission {
    /// Begins transmission with what the client has chosen; `out` is what the negotiation left to be sent.
    pub fn new(export: &Export, chosen: Chosen, out: Outgoing) -> Self {
        Self {
            len: export.len,
            read_only: export.read_only,
            sizes: export.sizes,
            mode: chosen.mode,
            contexts: chosen.contexts,
            state: State::Header,
            partial: Vec::new(),
            pending: Slab::new(),
            bytes: 0,
            out,
        }
    }

    /// What is to be sent.
    pub fn out(&self) -> &Outgoing {
        &self.out
    }

    /// Takes note that the first `count` bytes of [`out`](Self::out) are sent; buffers that are sent whole go to `done`.
    pub fn sent(&mut self, count: usize, mut done: impl FnMut(BufList)) {
        self.out.advance(count, |_, data| done(data));
    }

    /// Whether an order is a read.
    ///
    /// # Panics
    /// When it was answered.
    pub fn reads(&self, id: OrderId) -> bool {
        self.pending[id.0].read
    }

    /// Whether further bytes are taken: the rest of a request is, and new ones while there is not too much in flight.
    pub fn has_room(&self) -> bool {
        if !matches!(self.state, State::Header) {
            return true;
        }
        self.pending.len() < REQUESTS_MAX && self.bytes + (self.out.len() as u64) < REQUEST_BYTES_MAX
    }

    /// Whether the client is leaving, and nothing more is received.
    pub fn is_leaving(&self) -> bool {
        matches!(self.state, State::Leaving)
    }

    /// Whether every order is answered.
    pub fn is_idle(&self) -> bool {
        self.pending.is_empty()
    }

    /// Takes nothing more; what is in flight is still answered.
    pub fn leave(&mut self) {
        if let State::Data { id, .. } = self.state {
            self.forget(id);
        }
        self.state = State::Leaving;
    }

    /// The memory that the next bytes from the client belong to; none where they are for [`feed`](Self::feed).
    pub fn payload(&mut self) -> impl Iterator<Item = &mut [u8]> {
        let place = match &mut self.state {
            State::Data { data, at, .. } => {
                let to = data.len_bytes();
                Some((data, *at, to))
            }
            _ => None,
        };
        place.into_iter().flat_map(|(data, at, to)| windows_between(data, at, to))
    }

    /// Takes note that `count` bytes were put where [`payload`](Self::payload) said; gives the order that they complete.
    /// `room` gives buffers for more, as for [`feed`](Self::feed).
    pub fn received(&mut self, count: usize, mut room: impl FnMut(usize) -> BufList) -> Option<Order> {
        let State::Data { id, data, at, .. } = &mut self.state else {
            assert_eq!(count, 0, "there was no memory for any");
            return None;
        };
        *at += count;
        let there = data.len_bytes();
        assert!(*at <= there, "no more is received than there was room for");
        if *at < there {
            return None;
        }
        let len = self.pending[id.0].len as usize;
        if there < len {
            data.append(room(there.min(len - there)));
            return None;
        }
        let State::Data { id, fua, data, .. } = std::mem::replace(&mut self.state, State::Header) else {
            unreachable!("looked at above")
        };
        let Pending { offset, len, .. } = self.pending[id.0];
        Some(Order { id, command: Command::Write(fua), offset, len, data })
    }

    /// Takes bytes from the front of `input`, up to the next order; with none, `input` is used up, or there is no
    /// [room](Self::has_room), or the client is [leaving](Self::is_leaving). `room` gives buffers for what is to be written,
    /// as it comes: announcing it takes no memory.
    ///
    /// # Errors
    /// What the client did wrong; the connection is of no further use then.
    pub fn feed(
        &mut self,
        input: &mut &[u8],
        mut room: impl FnMut(usize) -> BufList,
    ) -> Result<Option<Order>, NbdError> {
        while !input.is_empty() {
            let full = self.partial.is_empty() && !self.has_room();
            let order = match &mut self.state {
                State::Leaving => return Ok(None),
                State::Header if full => return Ok(None),
                State::Header => {
                    if !collect(&mut self.partial, request_len(self.mode), input) {
                        return Ok(None);
                    }
                    let request = parse_request(self.mode, &self.partial)?;
                    self.partial.clear();
                    self.request(request, &mut room)?
                }
                State::Data { data, at, .. } => {
                    let to = data.len_bytes();
                    let count = copy_front(data, *at, to, input);
                    self.received(count, &mut room)
                }
                State::Skipping { left, refused } => {
                    let count = (input.len() as u64).min(*left);
                    *input = &input[count as usize..];
                    *left -= count;
                    if *left == 0 {
                        let (request, errno, message) = *refused;
                        self.state = State::Header;
                        self.refuse(request, errno, message);
                    }
                    None
                }
                State::Contexts { request } => {
                    let request = *request;
                    if !collect(&mut self.partial, request.len as usize, input) {
                        return Ok(None);
                    }
                    let payload = std::mem::take(&mut self.partial);
                    self.state = State::Header;
                    self.status_of_contexts(request, &payload)
                }
            };
            if order.is_some() {
                return Ok(order);
            }
        }
        Ok(None)
    }

    fn request(
        &mut self,
        request: Request,
        room: &mut impl FnMut(usize) -> BufList,
    ) -> Result<Option<Order>, NbdError> {
        let Request { flags, command, len, .. } = request;
        let extended = self.mode == Mode::Extended;
        let has_payload = command == CommandCode::WRITE || extended && flags.has(CommandFlags::PAYLOAD_LEN);
        if has_payload && len > PAYLOAD_MAX.into() {
            // Nobody reads through all of it to find the next request.
            let (found, max) = (len, PAYLOAD_MAX.into());
            return Err(NbdError::TooMuch { what: "bytes of data in a request", found, max });
        }
        if command == CommandCode::DISC {
            self.state = State::Leaving;
            return Ok(None);
        }
        if command == CommandCode::BLOCK_STATUS && has_payload {
            // A range, and as many numbers as there are contexts.
            let fits = len >= 8 && len <= 8 + 4 * self.contexts.len().max(1) as u64 && len.is_multiple_of(4);
            self.state = match fits {
                true => State::Contexts { request },
                false => {
                    let refused = (request, Errno::EINVAL, "the payload does not fit the contexts");
                    State::Skipping { left: len, refused }
                }
            };
            if len == 0 {
                self.state = State::Header;
                self.refuse(request, Errno::EINVAL, "the payload does not fit the contexts");
            }
            return Ok(None);
        }
        if let Err((errno, message)) = self.check(request) {
            match has_payload && len > 0 {
                true => self.state = State::Skipping { left: len, refused: (request, errno, message) },
                false => self.refuse(request, errno, message),
            }
            return Ok(None);
        }
        let fua = if flags.has(CommandFlags::FUA) { Fua::Yes } else { Fua::No };
        let command = match command {
            CommandCode::READ => Command::Read,
            CommandCode::WRITE => {
                let id = self.admit(request);
                if len == 0 {
                    self.answer(id, Answer::Done);
                    return Ok(None);
                }
                self.state = State::Data { id, fua, data: room(ANNOUNCED_MAX.min(len as usize)), at: 0 };
                return Ok(None);
            }
            CommandCode::FLUSH => Command::Flush,
            CommandCode::TRIM => Command::Trim(fua),
            CommandCode::CACHE => Command::Cache,
            CommandCode::WRITE_ZEROES => {
                let may_unmap = !flags.has(CommandFlags::NO_HOLE);
                let no_fallback = flags.has(CommandFlags::FAST_ZERO);
                Command::WriteZeroes(ZeroFlags { may_unmap, no_fallback }, fua)
            }
            _ => Command::Status { contexts: self.contexts.clone(), one: flags.has(CommandFlags::REQ_ONE) },
        };
        let id = self.admit(request);
        if len == 0 && command != Command::Flush {
            let nothing = if command == Command::Read { Answer::Data(BufList::new()) } else { Answer::Done };
            self.answer(id, nothing);
            return Ok(None);
        }
        // A flush has no range, whatever it says.
        let (offset, len) = if command == Command::Flush { (0, 0) } else { (request.offset, len) };
        Ok(Some(Order { id, command, offset, len, data: BufList::new() }))
    }

    /// Whether a request may be done at all.
    fn check(&self, request: Request) -> Result<(), (Errno, &'static str)> {
        let Request { flags, command, offset, len, .. } = request;
        let extended = self.mode == Mode::Extended;
        let durable = CommandFlags::FUA;
        let (legal, writes) = match command {
            CommandCode::READ => (durable.with_if(self.mode != Mode::Simple, CommandFlags::DF), false),
            CommandCode::WRITE => (durable.with_if(extended, CommandFlags::PAYLOAD_LEN), true),
            CommandCode::FLUSH | CommandCode::CACHE => (durable, false),
            CommandCode::TRIM => (durable, true),
            CommandCode::WRITE_ZEROES => {
                (durable.with(CommandFlags::NO_HOLE).with(CommandFlags::FAST_ZERO), true)
            }
            CommandCode::BLOCK_STATUS => (durable.with(CommandFlags::REQ_ONE), false),
            _ => return Err((Errno::EINVAL, "there is no such command")),
        };
        if flags.without(legal) != CommandFlags::NONE {
            return Err((Errno::EINVAL, "the command has no such flag"));
        }
        if writes && self.read_only {
            return Err((Errno::EPERM, "the export is read-only"));
        }
        if command == CommandCode::FLUSH {
            return Ok(());
        }
        if offset.checked_add(len).is_none_or(|end| end > self.len) {
            let grows = matches!(command, CommandCode::WRITE | CommandCode::WRITE_ZEROES);
            let errno = if grows { Errno::ENOSPC } else { Errno::EINVAL };
            return Err((errno, "the range lies beyond the end of the export"));
        }
        if !(offset | len).is_multiple_of(self.sizes.min.into()) {
            return Err((Errno::EINVAL, "the range is no whole blocks"));
        }
        // The reference refuses to read more than that ahead, too.
        if matches!(command, CommandCode::READ | CommandCode::CACHE) && len > PAYLOAD_MAX.into() {
            return Err((Errno::EINVAL, "more than 32 MiB cannot be read at once"));
        }
        if command == CommandCode::BLOCK_STATUS && (len == 0 || self.contexts.is_empty()) {
            return Err((Errno::EINVAL, "there is no range, or no context was chosen"));
        }
        Ok(())
    }

    /// Reads the payload of a request for block status: the range's length, and numbers of contexts.
    fn status_of_contexts(&mut self, request: Request, payload: &[u8]) -> Option<Order> {
        let mut fields = Fields::new("payload of a request for block status", payload);
        let len = fields.be_u64().expect("its length was looked at");
        let mut contexts: Vec<u32> =
            (0..fields.left() / 4).map(|_| fields.be_u32().expect("as many as there are")).collect();
        contexts.sort_unstable();
        let known = contexts.iter().all(|id| self.contexts.contains(id));
        let once = contexts.windows(2).all(|pair| pair[0] != pair[1]);
        let request = Request { len, flags: request.flags.without(CommandFlags::PAYLOAD_LEN), ..request };
        let checked = self.check(request);
        if let Err((errno, message)) = checked {
            self.refuse(request, errno, message);
            return None;
        }
        if !known || !once || contexts.is_empty() {
            self.refuse(request, Errno::EINVAL, "these contexts were not chosen");
            return None;
        }
        let one = request.flags.has(CommandFlags::REQ_ONE);
        let id = self.admit(request);
        let command = Command::Status { contexts, one };
        Some(Order { id, command, offset: request.offset, len, data: BufList::new() })
    }

    fn admit(&mut self, request: Request) -> OrderId {
        let Request { flags, command, cookie, offset, len } = request;
        let read = command == CommandCode::READ;
        // What is longer is refused, and moves nothing; its length is any number of 64 bits.
        let moved = match command {
            CommandCode::READ | CommandCode::WRITE => len.min(PAYLOAD_MAX.into()),
            CommandCode::CACHE => len.min(CACHE_STEP),
            _ => 0,
        };
        let cost = REQUEST_COST + moved;
        self.bytes += cost;
        let whole = flags.has(CommandFlags::DF);
        OrderId(self.pending.insert(Pending { cookie, offset, len, read, whole, cost }))
    }

    fn forget(&mut self, id: OrderId) -> Pending {
        let pending = self.pending.remove(id.0);
        self.bytes -= pending.cost;
        pending
    }

    fn refuse(&mut self, request: Request, errno: Errno, message: &str) {
        let id = self.admit(request);
        self.answer(id, Answer::Failed(errno, message.into()));
    }

    /// Answers an order. Buffers that need not be sent, because they hold nothing but zeros, come back.
    ///
    /// # Panics
    /// When it was answered before.
    pub fn answer(&mut self, id: OrderId, answer: Answer) -> BufList {
        let pending = self.forget(id);
        match (self.mode, answer) {
            (Mode::Simple, Answer::Failed(errno, _)) => self.simple(pending.cookie, WireErrno::of(errno)),
            (Mode::Simple, Answer::Data(data)) => {
                self.simple(pending.cookie, WireErrno::NONE);
                self.data(data);
            }
            (Mode::Simple, Answer::Elsewhere(key)) => {
                self.simple(pending.cookie, WireErrno::NONE);
                self.elsewhere(&pending, key);
            }
            (Mode::Simple, _) => self.simple(pending.cookie, WireErrno::NONE),
            (_, Answer::Failed(errno, message)) => {
                let payload = error_payload(WireErrno::of(errno), &message);
                self.chunk(&pending, ChunkKind::ERROR, true, payload.len() as u64);
                self.out.push(&payload);
            }
            (_, Answer::Data(data)) => return self.read_chunk(&pending, data),
            (_, Answer::Elsewhere(key)) => {
                self.data_chunk(&pending, pending.len);
                self.elsewhere(&pending, key);
            }
            (_, Answer::Status(states)) => self.status(&pending, &states),
            (Mode::Structured, Answer::Done) => self.simple(pending.cookie, WireErrno::NONE),
            (Mode::Extended, Answer::Done) => self.chunk(&pending, ChunkKind::NONE, true, 0),
        }
        BufList::new()
    }

    fn simple(&mut self, cookie: u64, error: WireErrno) {
        self.out.push(&SimpleReply { error, cookie }.encode());
    }

    fn chunk(&mut self, pending: &Pending, kind: ChunkKind, last: bool, len: u64) {
        let chunk = Chunk { last, kind, cookie: pending.cookie, offset: pending.offset, len };
        let (bytes, count) = chunk.encode(self.mode);
        self.out.push(&bytes[..count]);
    }

    fn data(&mut self, data: BufList) {
        if !data.is_empty() {
            self.out.push_data(0, data);
        }
    }

    fn elsewhere(&mut self, pending: &Pending, key: u64) {
        assert!(pending.read, "only a read is answered with data");
        self.out.push_elsewhere(key, pending.len as usize);
    }

    /// The front of a chunk of data.
    fn data_chunk(&mut self, pending: &Pending, len: u64) {
        self.chunk(pending, ChunkKind::OFFSET_DATA, true, 8 + len);
        self.out.push(&pending.offset.to_be_bytes());
    }

    fn read_chunk(&mut self, pending: &Pending, data: BufList) -> BufList {
        assert!(pending.read, "only a read is answered with data");
        let len = data.len_bytes() as u64;
        if len == 0 {
            self.chunk(pending, ChunkKind::NONE, true, 0);
            return data;
        }
        if !pending.whole && data.is_zero() {
            self.chunk(pending, ChunkKind::OFFSET_HOLE, true, 12);
            self.out.push(&pending.offset.to_be_bytes());
            self.out.push(&(len as u32).to_be_bytes());
            return data;
        }
        self.data_chunk(pending, len);
        self.data(data);
        BufList::new()
    }

    fn status(&mut self, pending: &Pending, states: &[(u32, Vec<Extent>)]) {
        let kind = match self.mode {
            Mode::Extended => ChunkKind::BLOCK_STATUS_EXT,
            _ => ChunkKind::BLOCK_STATUS,
        };
        for (index, (context, extents)) in states.iter().enumerate() {
            let extents = self.cut(pending.len, extents);
            let payload = status_payload(*context, &extents, self.mode);
            self.chunk(pending, kind, index + 1 == states.len(), payload.len() as u64);
            self.out.push(&payload);
        }
    }

    /// The extents within a range, as far as they can be said.
    fn cut(&self, len: u64, extents: &[Extent]) -> Vec<Extent> {
        let most = if self.mode == Mode::Extended { u64::MAX } else { COMPACT_MAX };
        let mut left = len;
        let mut cut = Vec::with_capacity(extents.len().min(EXTENTS_MAX));
        for extent in extents.iter().take(EXTENTS_MAX) {
            let len = extent.len.min(left).min(most);
            if len == 0 {
                break;
            }
            cut.push(Extent { len, flags: extent.flags });
            left -= len;
            // What comes after a shortened one would be said of the wrong place.
            if len < extent.len {
                break;
            }
        }
        assert!(!cut.is_empty(), "an answer about block status has an extent");
        cut
    }
}
