//! What is said in transmission. Source: \[NBD\] "Transmission".

use super::{CommandFlags, Fields};
use crate::intent::Errno;
use crate::protocol::nbd::limits::STRING_MAX;
use crate::protocol::nbd::{Mode, NbdError};

const REQUEST: u32 = 0x2560_9513;
const EXTENDED_REQUEST: u32 = 0x21e4_1c71;
const SIMPLE_REPLY: u32 = 0x6744_6698;
const STRUCTURED_REPLY: u32 = 0x668e_33ef;
const EXTENDED_REPLY: u32 = 0x6e8a_278c;

/// Bytes of a request before its payload at the most.
pub const REQUEST_LEN_MAX: usize = 32;

/// Flag of the last chunk of a reply.
pub const LAST_CHUNK: u16 = 1;

/// A command's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommandCode(pub u16);

impl CommandCode {
    /// Read.
    pub const READ: Self = Self(0);
    /// Write.
    pub const WRITE: Self = Self(1);
    /// Leave.
    pub const DISC: Self = Self(2);
    /// Make everything durable.
    pub const FLUSH: Self = Self(3);
    /// Give up the content of a range.
    pub const TRIM: Self = Self(4);
    /// Read ahead.
    pub const CACHE: Self = Self(5);
    /// Write zeros.
    pub const WRITE_ZEROES: Self = Self(6);
    /// Tell the state of extents.
    pub const BLOCK_STATUS: Self = Self(7);
}

/// A request's header.
///
/// | bytes, compact | extended | field  |
/// |----------------|----------|--------|
/// | 0..4           | 0..4     | magic  |
/// | 4..6           | 4..6     | flags  |
/// | 6..8           | 6..8     | type   |
/// | 8..16          | 8..16    | cookie |
/// | 16..24         | 16..24   | offset |
/// | 24..28         | 24..32   | length |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// How.
    pub flags: CommandFlags,
    /// What.
    pub command: CommandCode,
    /// Names the request in its replies.
    pub cookie: u64,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

impl Request {
    /// The bytes.
    ///
    /// # Panics
    /// When the length does not fit a compact header.
    pub fn encode(self, mode: Mode) -> ([u8; REQUEST_LEN_MAX], usize) {
        let mut bytes = [0; REQUEST_LEN_MAX];
        let magic = if mode == Mode::Extended { EXTENDED_REQUEST } else { REQUEST };
        bytes[0..4].copy_from_slice(&magic.to_be_bytes());
        bytes[4..6].copy_from_slice(&self.flags.0.to_be_bytes());
        bytes[6..8].copy_from_slice(&self.command.0.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_be_bytes());
        match mode {
            Mode::Extended => bytes[24..32].copy_from_slice(&self.len.to_be_bytes()),
            _ => {
                let len =
                    u32::try_from(self.len).expect("who asks in compact headers asks for less than 4 GiB");
                bytes[24..28].copy_from_slice(&len.to_be_bytes());
            }
        }
        (bytes, request_len(mode))
    }
}

/// Bytes of a request before its payload.
pub const fn request_len(mode: Mode) -> usize {
    match mode {
        Mode::Simple | Mode::Structured => 28,
        Mode::Extended => 32,
    }
}

/// Reads a request's header.
///
/// # Errors
/// [`NbdError::Magic`] for what is none, or one of the other kind.
pub fn parse_request(mode: Mode, bytes: &[u8]) -> Result<Request, NbdError> {
    let mut fields = Fields::new("request", bytes);
    let expected = if mode == Mode::Extended { EXTENDED_REQUEST } else { REQUEST };
    let found = fields.be_u32()?;
    if found != expected {
        return Err(NbdError::Magic { what: "request", found: found.into(), expected: expected.into() });
    }
    let (flags, command) = (CommandFlags(fields.be_u16()?), CommandCode(fields.be_u16()?));
    let (cookie, offset) = (fields.be_u64()?, fields.be_u64()?);
    let len = match mode {
        Mode::Extended => fields.be_u64()?,
        _ => fields.be_u32()?.into(),
    };
    Ok(Request { flags, command, cookie, offset, len })
}

/// The header of a simple reply; the data of a read follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SimpleReply {
    /// 0, or why it failed.
    pub error: WireErrno,
    /// Of which request.
    pub cookie: u64,
}

/// What a chunk of a reply is. Source: \[NBD\] "Structured reply types".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkKind(pub u16);

impl ChunkKind {
    /// No payload.
    pub const NONE: Self = Self(0);
    /// An offset, and data.
    pub const OFFSET_DATA: Self = Self(1);
    /// An offset, and a length of zeros.
    pub const OFFSET_HOLE: Self = Self(2);
    /// A context, and extents of 32 bits.
    pub const BLOCK_STATUS: Self = Self(5);
    /// A context, and extents of 64 bits.
    pub const BLOCK_STATUS_EXT: Self = Self(6);
    /// An error.
    pub const ERROR: Self = Self(1 << 15 | 1);
    /// An error at an offset.
    pub const ERROR_OFFSET: Self = Self(1 << 15 | 2);

    /// Whether it says that the request failed.
    pub const fn is_error(self) -> bool {
        self.0 & 1 << 15 != 0
    }
}

/// The header of a chunk.
///
/// | bytes, structured | extended | field  |
/// |-------------------|----------|--------|
/// | 0..4              | 0..4     | magic  |
/// | 4..6              | 4..6     | flags  |
/// | 6..8              | 6..8     | type   |
/// | 8..16             | 8..16    | cookie |
/// | -                 | 16..24   | offset of the request |
/// | 16..20            | 24..32   | length of the payload |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Whether no further chunk follows.
    pub last: bool,
    /// What it is.
    pub kind: ChunkKind,
    /// Of which request.
    pub cookie: u64,
    /// Offset of the request, where the header has one.
    pub offset: u64,
    /// Bytes of payload.
    pub len: u64,
}

/// The header of any reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// A simple one.
    Simple(SimpleReply),
    /// A chunk.
    Chunk(Chunk),
}

/// Which header a reply's first bytes announce.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyKind {
    /// [`SimpleReply`].
    Simple,
    /// [`Chunk`] with 32-bit lengths.
    Structured,
    /// [`Chunk`] with 64-bit lengths.
    Extended,
}

impl ReplyKind {
    /// Bytes of a magic.
    pub const MAGIC_LEN: usize = 4;

    /// Reads a magic; what was not agreed on is none.
    ///
    /// # Errors
    /// [`NbdError::Magic`].
    pub fn parse(mode: Mode, magic: [u8; Self::MAGIC_LEN]) -> Result<Self, NbdError> {
        let magic = u32::from_be_bytes(magic);
        match (magic, mode) {
            (SIMPLE_REPLY, Mode::Simple | Mode::Structured) => Ok(Self::Simple),
            (STRUCTURED_REPLY, Mode::Structured) => Ok(Self::Structured),
            (EXTENDED_REPLY, Mode::Extended) => Ok(Self::Extended),
            _ => {
                let expected = match mode {
                    Mode::Simple => SIMPLE_REPLY,
                    Mode::Structured => STRUCTURED_REPLY,
                    Mode::Extended => EXTENDED_REPLY,
                };
                Err(NbdError::Magic { what: "reply", found: magic.into(), expected: expected.into() })
            }
        }
    }

    /// Bytes of the header, with its magic.
    pub const fn header_len(self) -> usize {
        match self {
            Self::Simple => 16,
            Self::Structured => 20,
            Self::Extended => 32,
        }
    }
}

impl Reply {
    /// Reads a header, its magic included.
    ///
    /// # Errors
    /// [`NbdError::Shape`] for fewer bytes than [`ReplyKind::header_len`].
    pub fn parse(kind: ReplyKind, bytes: &[u8]) -> Result<Self, NbdError> {
        let mut fields = Fields::new("reply", bytes);
        fields.take(ReplyKind::MAGIC_LEN)?;
        if kind == ReplyKind::Simple {
            let (error, cookie) = (WireErrno(fields.be_u32()?), fields.be_u64()?);
            return Ok(Self::Simple(SimpleReply { error, cookie }));
        }
        let (flags, kind_of_chunk) = (fields.be_u16()?, ChunkKind(fields.be_u16()?));
        let cookie = fields.be_u64()?;
        let (offset, len) = match kind {
            ReplyKind::Extended => (fields.be_u64()?, fields.be_u64()?),
            _ => (0, fields.be_u32()?.into()),
        };
        let last = flags & LAST_CHUNK != 0;
        Ok(Self::Chunk(Chunk { last, kind: kind_of_chunk, cookie, offset, len }))
    }
}

impl SimpleReply {
    /// The bytes.
    pub fn encode(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[0..4].copy_from_slice(&SIMPLE_REPLY.to_be_bytes());
        bytes[4..8].copy_from_slice(&self.error.0.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        bytes
    }
}

impl Chunk {
    /// The bytes; the mode is not [`Mode::Simple`].
    ///
    /// # Panics
    /// When the length does not fit a structured header.
    pub fn encode(self, mode: Mode) -> ([u8; 32], usize) {
        let mut bytes = [0; 32];
        let flags = if self.last { LAST_CHUNK } else { 0 };
        bytes[4..6].copy_from_slice(&flags.to_be_bytes());
        bytes[6..8].copy_from_slice(&self.kind.0.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        if mode == Mode::Extended {
            bytes[0..4].copy_from_slice(&EXTENDED_REPLY.to_be_bytes());
            bytes[16..24].copy_from_slice(&self.offset.to_be_bytes());
            bytes[24..32].copy_from_slice(&self.len.to_be_bytes());
            return (bytes, 32);
        }
        let len = u32::try_from(self.len).expect("a payload is bounded far below 4 GiB");
        bytes[0..4].copy_from_slice(&STRUCTURED_REPLY.to_be_bytes());
        bytes[16..20].copy_from_slice(&len.to_be_bytes());
        (bytes, 20)
    }
}

/// An error number on the wire: one of the few that the protocol has. Source: \[NBD\] "Error values".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WireErrno(pub u32);

impl WireErrno {
    /// No error.
    pub const NONE: Self = Self(0);

    /// What the client of a server is told about an error of the host.
    pub fn of(errno: Errno) -> Self {
        Self(match errno {
            Errno::EPERM | Errno::EROFS => 1,
            Errno::EIO => 5,
            Errno::ENOMEM => 12,
            Errno::EFBIG | Errno::ENOSPC | Errno::EDQUOT => 28,
            Errno::EOVERFLOW => 75,
            Errno::ENOTSUP => 95,
            Errno::ESHUTDOWN => 108,
            _ => 22,
        })
    }

    /// The number as the host has it; any that the protocol does not have means a bad request.
    pub fn errno(self) -> Errno {
        match self.0 {
            1 => Errno::EPERM,
            5 => Errno::EIO,
            12 => Errno::ENOMEM,
            28 => Errno::ENOSPC,
            75 => Errno::EOVERFLOW,
            95 => Errno::ENOTSUP,
            108 => Errno::ESHUTDOWN,
            _ => Errno::EINVAL,
        }
    }
}

/// The payload of an error chunk without an offset.
pub fn error_payload(error: WireErrno, message: &str) -> Vec<u8> {
    let mut end = message.len().min(STRING_MAX);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    let mut bytes = error.0.to_be_bytes().to_vec();
    bytes.extend((end as u16).to_be_bytes());
    bytes.extend(&message.as_bytes()[..end]);
    bytes
}

/// Reads the payload of an error chunk: what went wrong, and at which offset if it says so.
///
/// # Errors
/// When it is too short, or says that nothing went wrong.
pub fn parse_error(kind: ChunkKind, bytes: &[u8]) -> Result<(WireErrno, Option<u64>), NbdError> {
    let mut fields = Fields::new("error reply", bytes);
    let error = WireErrno(fields.be_u32()?);
    if error == WireErrno::NONE {
        return Err(NbdError::Value { what: "number of an error reply", found: 0, expected: "above zero" });
    }
    let len = fields.be_u16()?;
    fields.take(len.into())?;
    let offset = match kind {
        ChunkKind::ERROR_OFFSET => Some(fields.be_u64()?),
        _ => None,
    };
    Ok((error, offset))
}

/// A range of one state. Source: \[NBD\] "`NBD_REPLY_TYPE_BLOCK_STATUS`".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Bytes; above zero.
    pub len: u64,
    /// The state, whose meaning its context says.
    pub flags: u64,
}

/// The payload of a chunk of block status, with 32-bit fields or with 64-bit ones.
pub fn status_payload(context: u32, extents: &[Extent], mode: Mode) -> Vec<u8> {
    let mut bytes = context.to_be_bytes().to_vec();
    if mode == Mode::Extended {
        bytes.extend((extents.len() as u32).to_be_bytes());
    }
    for extent in extents {
        match mode {
            Mode::Extended => {
                bytes.extend(extent.len.to_be_bytes());
                bytes.extend(extent.flags.to_be_bytes());
            }
            _ => {
                let len =
                    u32::try_from(extent.len).expect("who answers in compact fields has cut the extents");
                bytes.extend(len.to_be_bytes());
                bytes.extend((extent.flags as u32).to_be_bytes());
            }
        }
    }
    bytes
}

/// Reads the payload of a chunk of block status.
///
/// # Errors
/// When its length does not fit, there is no extent, or one is empty.
pub fn parse_status(kind: ChunkKind, bytes: &[u8]) -> Result<(u32, Vec<Extent>), NbdError> {
    const WHAT: &str = "block status";
    let mut fields = Fields::new(WHAT, bytes);
    let context = fields.be_u32()?;
    let wide = kind == ChunkKind::BLOCK_STATUS_EXT;
    let each = if wide { 16 } else { 8 };
    let count = if wide { fields.be_u32()? as usize } else { fields.left() / each };
    if count == 0 || fields.left() / each != count || !fields.left().is_multiple_of(each) {
        return Err(NbdError::Shape { what: WHAT });
    }
    let mut extents = Vec::with_capacity(count);
    for _ in 0..count {
        let (len, flags) = match wide {
            true => (fields.be_u64()?, fields.be_u64()?),
            false => (fields.be_u32()?.into(), fields.be_u32()?.into()),
        };
        if len == 0 {
            return Err(NbdError::Value { what: "length of an extent", found: 0, expected: "above zero" });
        }
        extents.push(Extent { len, flags });
    }
    Ok((context, extents))
}
