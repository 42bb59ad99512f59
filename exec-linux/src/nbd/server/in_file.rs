//! Payloads of reads that the kernel sends out of the page cache, so that nobody copies them.
//!
//! A client may see what is written to the file between the reply's header and the moment at which it takes the bytes.
//! That is as good as what it asked for: its read has not ended before it has them.

use std::sync::Arc;

use drystone_core::protocol::nbd::Elsewhere;
use smallvec::SmallVec;

use crate::leaf::OpenLeaf;
use crate::nbd::stream::{Stream, Stuck};

/// A payload from which on that is worth the calls.
pub(super) const WORTHWHILE: u64 = 32 << 10;

/// The parts of files that make up a payload: offset and length.
pub(crate) type InFile = SmallVec<[(Arc<OpenLeaf>, u64, u64); 2]>;

/// Sends what is left of a payload, as far as the socket takes it; says how much that was.
///
/// # Errors
/// The socket's; [`Stuck::Ended`] where a file has become too short for what the client was promised.
pub(super) fn send(stream: &Stream, payload: &InFile, place: Elsewhere) -> Result<usize, Stuck> {
    let mut skip = place.sent as u64;
    for (leaf, offset, len) in payload {
        if skip < *len {
            let fd = leaf.fd().ok_or(Stuck::Ended)?;
            return stream.send_file(fd, offset + skip, (len - skip) as usize);
        }
        skip -= len;
    }
    unreachable!("a payload is as long as it was announced to be")
}
