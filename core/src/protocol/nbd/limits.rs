//! Bounds on everything that a peer names, each with its reason.

use std::time::Duration;

/// Bytes of any string. Source: \[NBD\] "Values", strings.
pub const STRING_MAX: usize = 4096;

/// Bytes of one option's data that a server takes: a name, and a dozen queries of the greatest length. Longer ones are
/// skipped and answered with an error.
pub const OPTION_LEN_MAX: usize = 64 << 10;

/// Options before transmission: a client that lists and asks for everything needs a few for each export.
pub const OPTIONS_MAX: u32 = 1000;

/// Bytes before transmission, in either direction; a list of some thousand exports fits.
pub const HANDSHAKE_BYTES_MAX: u64 = 8 << 20;

/// Time before transmission, as the reference gives.
pub const HANDSHAKE_MAX: Duration = Duration::from_secs(10);

/// Bytes of data in one request. Source: \[NBD\] "Block size constraints"; every peer in practice takes that much.
pub const PAYLOAD_MAX: u32 = 32 << 20;

/// Bytes that are read ahead in one step, and are in memory for it.
pub const CACHE_STEP: u64 = 1 << 20;

/// Requests in flight for one client: a queue of 64 on two threads. Further ones stay in the socket.
pub const REQUESTS_MAX: usize = 128;

/// Bytes of data in flight for one client, received, being read, or waiting to be sent: two requests of the greatest
/// length. Beyond them, nothing more is received.
pub const REQUEST_BYTES_MAX: u64 = 2 * PAYLOAD_MAX as u64;

/// Bytes of memory that a write gets before any of its data has come; further memory follows as what is there is filled, as
/// much again. A client that announces more than it sends holds at most twice what it has sent, and this; the requests of
/// most clients are no longer and stay in one piece.
pub const ANNOUNCED_MAX: usize = 256 << 10;

/// Requests that a client has in flight on one connection.
pub const CLIENT_REQUESTS_MAX: usize = 256;

/// Connections of one leaf: what the kernel's client opens in practice; each costs the server one of its clients.
pub const CONNECTIONS_MAX: usize = 16;

/// Bytes of an extent, or of a request, in compact fields: what 32 bits hold, in whole blocks of any size.
pub(super) const COMPACT_MAX: u64 = 1 << 31;

/// Extents in one answer about block status: enough for most images in one answer, and 16 KiB on the wire.
pub const EXTENTS_MAX: usize = 1024;

/// Bytes of a chunk that is neither data nor an error: twice what a server that answers with 128 Ki extents sends.
pub const STATUS_LEN_MAX: u64 = 4 << 20;

/// Bytes of an error chunk: the longest string, and what stands around it.
pub const ERROR_LEN_MAX: u64 = STRING_MAX as u64 + 64;

/// Ranges that a read was answered in and that do not touch each other: servers answer from front to back.
pub const FRAGMENTS_MAX: usize = 1024;

/// Exports that a client lists.
pub const EXPORTS_MAX: usize = 10_000;

/// Meta contexts that a server may name for one export.
pub const CONTEXTS_MAX: usize = 1000;

/// Bytes of a disk: offsets of files are signed.
pub const LEN_MAX: u64 = i64::MAX as u64;
