//! What is said before transmission. Source: \[NBD\] "Handshake", "Option types", "Option reply types".

use super::{Fields, HandshakeFlags, TransmissionFlags};
use crate::protocol::nbd::NbdError;
use crate::protocol::nbd::limits::{CONTEXTS_MAX, LEN_MAX, PAYLOAD_MAX, STRING_MAX};

const NBDMAGIC: u64 = 0x4e42_444d_4147_4943;
const IHAVEOPT: u64 = 0x4948_4156_454f_5054;
const CLISERV: u64 = 0x0000_4202_8186_1253;
const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;

/// Bytes of a [`greeting`], without the flags' successor.
pub const GREETING_LEN: usize = 18;

/// Bytes that an old server says before transmission: two magics, size, flags, padding.
pub const OLD_GREETING_LEN: usize = 152;

/// Bytes before an option's data.
pub const OPTION_HEADER_LEN: usize = 16;

/// Bytes before the data of a reply to an option.
pub const OPTION_REPLY_LEN: usize = 20;

/// Bytes of padding after the answer to `EXPORT_NAME`, unless both sides agreed to leave them out.
pub const EXPORT_NAME_PADDING: usize = 124;

/// What a server says first.
pub fn greeting(flags: HandshakeFlags) -> [u8; GREETING_LEN] {
    let mut bytes = [0; GREETING_LEN];
    bytes[0..8].copy_from_slice(&NBDMAGIC.to_be_bytes());
    bytes[8..16].copy_from_slice(&IHAVEOPT.to_be_bytes());
    bytes[16..18].copy_from_slice(&flags.0.to_be_bytes());
    bytes
}

/// Reads the first 16 bytes of a server: whether options follow, after the flags; else an [`OldGreeting`] does.
///
/// # Errors
/// [`NbdError::Magic`] for what is no NBD server.
pub fn parse_greeting(bytes: &[u8]) -> Result<bool, NbdError> {
    let mut fields = Fields::new("greeting", bytes);
    let found = fields.be_u64()?;
    if found != NBDMAGIC {
        return Err(NbdError::Magic { what: "greeting", found, expected: NBDMAGIC });
    }
    match fields.be_u64()? {
        IHAVEOPT => Ok(true),
        CLISERV => Ok(false),
        found => Err(NbdError::Magic { what: "greeting", found, expected: IHAVEOPT }),
    }
}

/// What an old server says of its only export, after the magics and before 124 bytes of padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OldGreeting {
    /// Bytes of the export.
    pub len: u64,
    /// What it can do.
    pub flags: TransmissionFlags,
}

impl OldGreeting {
    /// All that the server says, from the first magic on.
    pub fn encode(self) -> [u8; OLD_GREETING_LEN] {
        let mut bytes = [0; OLD_GREETING_LEN];
        bytes[0..8].copy_from_slice(&NBDMAGIC.to_be_bytes());
        bytes[8..16].copy_from_slice(&CLISERV.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.len.to_be_bytes());
        bytes[24..28].copy_from_slice(&u32::from(self.flags.0).to_be_bytes());
        bytes
    }

    /// Reads what follows the magics.
    ///
    /// # Errors
    /// [`NbdError::Value`] for a length beyond any disk.
    pub fn parse(bytes: &[u8]) -> Result<Self, NbdError> {
        let mut fields = Fields::new("old greeting", bytes);
        let len = export_len(fields.be_u64()?)?;
        // The upper half is for the handshake, and was never used.
        let flags = TransmissionFlags(fields.be_u32()? as u16);
        Ok(Self { len, flags })
    }
}

macro_rules! codes {
    ($(#[$doc:meta])* $name:ident { $($(#[$code_doc:meta])* $code:ident = $number:expr, $word:literal;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub struct $name(pub u32);

        impl $name {
            $($(#[$code_doc])* pub const $code: Self = Self($number);)*

            /// The specification's word for it.
            pub const fn name(self) -> &'static str {
                match self.0 {
                    $(number if number == $number => $word,)*
                    _ => "unknown",
                }
            }
        }
    };
}

codes! {
    /// An option. Source: \[NBD\] "Option types".
    OptionCode {
        /// Choose an export, without an answer when there is none.
        EXPORT_NAME = 1, "export name";
        /// Leave.
        ABORT = 2, "abort";
        /// Name the exports.
        LIST = 3, "list";
        /// Go on encrypted.
        STARTTLS = 5, "starttls";
        /// Describe an export.
        INFO = 6, "info";
        /// Describe an export, and begin transmission.
        GO = 7, "go";
        /// Replies in chunks.
        STRUCTURED_REPLY = 8, "structured reply";
        /// Name meta contexts.
        LIST_META_CONTEXT = 9, "list meta context";
        /// Choose meta contexts.
        SET_META_CONTEXT = 10, "set meta context";
        /// 64-bit lengths.
        EXTENDED_HEADERS = 11, "extended headers";
    }
}

const ERROR: u32 = 1 << 31;

codes! {
    /// What a reply to an option says. Source: \[NBD\] "Option reply types".
    ReplyCode {
        /// Done.
        ACK = 1, "ack";
        /// An export.
        SERVER = 2, "server";
        /// A fact about an export.
        INFO = 3, "info";
        /// A meta context.
        META_CONTEXT = 4, "meta context";
        /// No such option.
        ERR_UNSUP = ERROR + 1, "unsupported";
        /// The server does not want to.
        ERR_POLICY = ERROR + 2, "denied by server policy";
        /// The option's data makes no sense, or it may not come here.
        ERR_INVALID = ERROR + 3, "invalid";
        /// Not on this platform.
        ERR_PLATFORM = ERROR + 4, "not supported on platform";
        /// Encryption first.
        ERR_TLS_REQD = ERROR + 5, "TLS required";
        /// No such export.
        ERR_UNKNOWN = ERROR + 6, "export unknown";
        /// The server is leaving.
        ERR_SHUTDOWN = ERROR + 7, "server shutting down";
        /// The client must ask for block sizes.
        ERR_BLOCK_SIZE_REQD = ERROR + 8, "block size required";
        /// Too long.
        ERR_TOO_BIG = ERROR + 9, "option payload too big";
        /// 64-bit headers first.
        ERR_EXT_HEADER_REQD = ERROR + 10, "extended headers required";
    }
}

impl ReplyCode {
    /// Whether it says why an option failed.
    pub const fn is_error(self) -> bool {
        self.0 & ERROR != 0
    }
}

/// What stands before the data of an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionHeader {
    /// Which option.
    pub option: OptionCode,
    /// Bytes of data.
    pub len: u32,
}

impl OptionHeader {
    /// The bytes.
    pub fn encode(self) -> [u8; OPTION_HEADER_LEN] {
        let mut bytes = [0; OPTION_HEADER_LEN];
        bytes[0..8].copy_from_slice(&IHAVEOPT.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.option.0.to_be_bytes());
        bytes[12..16].copy_from_slice(&self.len.to_be_bytes());
        bytes
    }

    /// Reads the bytes.
    ///
    /// # Errors
    /// [`NbdError::Magic`] for what is no option.
    pub fn parse(bytes: &[u8]) -> Result<Self, NbdError> {
        let mut fields = Fields::new("option", bytes);
        let found = fields.be_u64()?;
        if found != IHAVEOPT {
            return Err(NbdError::Magic { what: "option", found, expected: IHAVEOPT });
        }
        Ok(Self { option: OptionCode(fields.be_u32()?), len: fields.be_u32()? })
    }
}

/// What stands before the data of a reply to an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionReply {
    /// The option that it answers.
    pub option: OptionCode,
    /// What it says.
    pub code: ReplyCode,
    /// Bytes of data.
    pub len: u32,
}

impl OptionReply {
    /// The bytes.
    pub fn encode(self) -> [u8; OPTION_REPLY_LEN] {
        let mut bytes = [0; OPTION_REPLY_LEN];
        bytes[0..8].copy_from_slice(&OPTION_REPLY.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.option.0.to_be_bytes());
        bytes[12..16].copy_from_slice(&self.code.0.to_be_bytes());
        bytes[16..20].copy_from_slice(&self.len.to_be_bytes());
        bytes
    }

    /// Reads the bytes.
    ///
    /// # Errors
    /// [`NbdError::Magic`] for what is no reply.
    pub fn parse(bytes: &[u8]) -> Result<Self, NbdError> {
        let mut fields = Fields::new("option reply", bytes);
        let found = fields.be_u64()?;
        if found != OPTION_REPLY {
            return Err(NbdError::Magic { what: "option reply", found, expected: OPTION_REPLY });
        }
        let (option, code) = (OptionCode(fields.be_u32()?), ReplyCode(fields.be_u32()?));
        Ok(Self { option, code, len: fields.be_u32()? })
    }
}

/// Bytes of an export, as a disk may have.
fn export_len(found: u64) -> Result<u64, NbdError> {
    match found <= LEN_MAX {
        true => Ok(found),
        false => Err(NbdError::Value { what: "size of the export", found, expected: "at most 2^63 - 1" }),
    }
}

/// The answer to `EXPORT_NAME`, with its padding.
pub fn export_answer(len: u64, flags: TransmissionFlags) -> [u8; 10 + EXPORT_NAME_PADDING] {
    let mut bytes = [0; 10 + EXPORT_NAME_PADDING];
    bytes[0..8].copy_from_slice(&len.to_be_bytes());
    bytes[8..10].copy_from_slice(&flags.0.to_be_bytes());
    bytes
}

/// Reads the answer to `EXPORT_NAME`: bytes of the export, and what it can do. Padding may follow.
///
/// # Errors
/// [`NbdError::Value`] for a length beyond any disk.
pub fn parse_export_answer(bytes: &[u8]) -> Result<(u64, TransmissionFlags), NbdError> {
    let mut fields = Fields::new("answer to the name of an export", bytes);
    Ok((export_len(fields.be_u64()?)?, TransmissionFlags(fields.be_u16()?)))
}

/// Which sizes requests to an export must have. Source: \[NBD\] "Block size constraints".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSizes {
    /// Offsets and lengths are multiples of this; a power of two.
    pub min: u32,
    /// What works best; a power of two.
    pub preferred: u32,
    /// Bytes of data in one request at the most.
    pub max: u32,
}

impl BlockSizes {
    /// What holds when nothing was said.
    pub const UNSAID: Self = Self { min: 1, preferred: 4096, max: PAYLOAD_MAX };

    fn checked(self) -> Result<Self, NbdError> {
        let Self { min, preferred, max } = self;
        let bad = |what, found: u32, expected| Err(NbdError::Value { what, found: found.into(), expected });
        if !min.is_power_of_two() || min > 64 << 10 {
            return bad("minimum block size", min, "a power of two up to 64 KiB");
        }
        if !preferred.is_power_of_two() || preferred < min {
            return bad("preferred block size", preferred, "a power of two, at least the minimum block size");
        }
        if max < min || (max != u32::MAX && !max.is_multiple_of(min)) {
            return bad("maximum block size", max, "a multiple of the minimum block size");
        }
        Ok(self)
    }
}

/// A fact about an export. Source: \[NBD\] "`NBD_REP_INFO`".
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InfoReply {
    /// Size and abilities.
    Export {
        /// Bytes.
        len: u64,
        /// What it can do.
        flags: TransmissionFlags,
    },
    /// Its name.
    Name(String),
    /// Words for people.
    Description(String),
    /// Sizes of requests.
    BlockSize(BlockSizes),
    /// Something that we do not know.
    Unknown(u16),
}

/// What a client may ask to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InfoRequest(pub u16);

impl InfoRequest {
    /// Size and abilities.
    pub const EXPORT: Self = Self(0);
    /// The name.
    pub const NAME: Self = Self(1);
    /// Words for people.
    pub const DESCRIPTION: Self = Self(2);
    /// Sizes of requests.
    pub const BLOCK_SIZE: Self = Self(3);

    /// The data of `INFO` and `GO`.
    pub fn encode(name: &str, requests: &[Self]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(6 + name.len() + 2 * requests.len());
        bytes.extend((name.len() as u32).to_be_bytes());
        bytes.extend(name.as_bytes());
        bytes.extend((requests.len() as u16).to_be_bytes());
        requests.iter().for_each(|request| bytes.extend(request.0.to_be_bytes()));
        bytes
    }

    /// Reads the data of `INFO` and `GO`: the name of an export, and what is asked about it.
    ///
    /// # Errors
    /// When the lengths do not fit.
    pub fn parse(bytes: &[u8]) -> Result<(String, Vec<Self>), NbdError> {
        let mut fields = Fields::new("request for information", bytes);
        let len = fields.be_u32()?;
        let name = fields.string(len)?;
        let count = fields.be_u16()?;
        if fields.left() != 2 * usize::from(count) {
            return Err(NbdError::Shape { what: "request for information" });
        }
        let requests = (0..count).map(|_| fields.be_u16().map(Self)).collect::<Result<_, _>>()?;
        Ok((name, requests))
    }
}

impl InfoReply {
    /// The data of the reply.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        match self {
            Self::Export { len, flags } => {
                bytes.extend(InfoRequest::EXPORT.0.to_be_bytes());
                bytes.extend(len.to_be_bytes());
                bytes.extend(flags.0.to_be_bytes());
            }
            Self::Name(name) => {
                bytes.extend(InfoRequest::NAME.0.to_be_bytes());
                bytes.extend(name.as_bytes());
            }
            Self::Description(text) => {
                bytes.extend(InfoRequest::DESCRIPTION.0.to_be_bytes());
                bytes.extend(text.as_bytes());
            }
            Self::BlockSize(BlockSizes { min, preferred, max }) => {
                bytes.extend(InfoRequest::BLOCK_SIZE.0.to_be_bytes());
                for size in [min, preferred, max] {
                    bytes.extend(size.to_be_bytes());
                }
            }
            Self::Unknown(kind) => bytes.extend(kind.to_be_bytes()),
        }
        bytes
    }

    /// Reads the data of the reply.
    ///
    /// # Errors
    /// When its length or its numbers make no sense.
    pub fn parse(bytes: &[u8]) -> Result<Self, NbdError> {
        let mut fields = Fields::new("information about the export", bytes);
        let reply = match InfoRequest(fields.be_u16()?) {
            InfoRequest::EXPORT => Self::Export {
                len: export_len(fields.be_u64()?)?,
                flags: TransmissionFlags(fields.be_u16()?),
            },
            InfoRequest::NAME => Self::Name(fields.rest_as_string()?),
            InfoRequest::DESCRIPTION => Self::Description(fields.rest_as_string()?),
            InfoRequest::BLOCK_SIZE => {
                let (min, preferred, max) = (fields.be_u32()?, fields.be_u32()?, fields.be_u32()?);
                Self::BlockSize(BlockSizes { min, preferred, max }.checked()?)
            }
            InfoRequest(kind) => return Ok(Self::Unknown(kind)),
        };
        fields.end()?;
        Ok(reply)
    }
}

/// The data of `LIST_META_CONTEXT` and `SET_META_CONTEXT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetaQuery {
    /// Of which export.
    pub export: String,
    /// Names of contexts, or beginnings of them.
    pub queries: Vec<String>,
}

impl MetaQuery {
    /// The bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend((self.export.len() as u32).to_be_bytes());
        bytes.extend(self.export.as_bytes());
        bytes.extend((self.queries.len() as u32).to_be_bytes());
        for query in &self.queries {
            bytes.extend((query.len() as u32).to_be_bytes());
            bytes.extend(query.as_bytes());
        }
        bytes
    }

    /// Reads the bytes.
    ///
    /// # Errors
    /// When the lengths do not fit, or there are too many queries.
    pub fn parse(bytes: &[u8]) -> Result<Self, NbdError> {
        let mut fields = Fields::new("query for meta contexts", bytes);
        let len = fields.be_u32()?;
        let export = fields.string(len)?;
        let count = fields.be_u32()?;
        if count as usize > CONTEXTS_MAX {
            let (found, max) = (count.into(), CONTEXTS_MAX as u64);
            return Err(NbdError::TooMuch { what: "queries for meta contexts", found, max });
        }
        let mut queries = Vec::new();
        for _ in 0..count {
            let len = fields.be_u32()?;
            queries.push(fields.string(len)?);
        }
        fields.end()?;
        Ok(Self { export, queries })
    }
}

/// The data of a `META_CONTEXT` reply.
pub fn meta_context(id: u32, name: &str) -> Vec<u8> {
    [&id.to_be_bytes()[..], name.as_bytes()].concat()
}

/// Reads the data of a `META_CONTEXT` reply.
///
/// # Errors
/// When it is too short, or the name is none.
pub fn parse_meta_context(bytes: &[u8]) -> Result<(u32, String), NbdError> {
    let mut fields = Fields::new("meta context", bytes);
    Ok((fields.be_u32()?, fields.rest_as_string()?))
}

/// The data of a `SERVER` reply: an export's name, and words about it.
pub fn server(name: &str, description: &str) -> Vec<u8> {
    [&(name.len() as u32).to_be_bytes()[..], name.as_bytes(), description.as_bytes()].concat()
}

/// Reads the data of a `SERVER` reply.
///
/// # Errors
/// When the lengths do not fit.
pub fn parse_server(bytes: &[u8]) -> Result<(String, String), NbdError> {
    let mut fields = Fields::new("listed export", bytes);
    let len = fields.be_u32()?;
    let name = fields.string(len)?;
    let left = fields.left().min(STRING_MAX);
    let description = super::text("description of a listed export", fields.take(left)?)?;
    Ok((name, description))
}
