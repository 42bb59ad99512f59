//! Every structure on the wire, once: numbers, widths, and both directions between bytes and types. All numbers are
//! big-endian.
//!
//! `flags` has the words of bits, `handshake` what is said before transmission, `transmission` what is said in it.

mod fields;
mod flags;
mod handshake;
mod transmission;

pub use fields::{Fields, text};
pub use flags::{ClientFlags, CommandFlags, HandshakeFlags, StateFlags, TransmissionFlags};
pub use handshake::{
    BlockSizes, EXPORT_NAME_PADDING, GREETING_LEN, InfoReply, InfoRequest, MetaQuery, OLD_GREETING_LEN,
    OPTION_HEADER_LEN, OPTION_REPLY_LEN, OldGreeting, OptionCode, OptionHeader, OptionReply, ReplyCode,
    export_answer, greeting, meta_context, parse_export_answer, parse_greeting, parse_meta_context,
    parse_server, server,
};
pub use transmission::{
    Chunk, ChunkKind, CommandCode, Extent, LAST_CHUNK, REQUEST_LEN_MAX, Reply, ReplyKind, Request,
    SimpleReply, WireErrno, error_payload, parse_error, parse_request, parse_status, request_len,
    status_payload,
};

#[cfg(test)]
mod tests;
