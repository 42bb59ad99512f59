//! Measure: how much data a node holds, in whole clusters of an image that it might be converted to.

use super::{Doing, Progress, Statuses, Stopped};
use crate::engine::Io;
use crate::graph::NodeId;

/// Extents between two looks at how far the walk is.
const TELL_EVERY: u32 = 4096;

/// Bytes of the clusters that a copy of `node` fills, each of `cluster_size` bytes: those with any data in them. Reads
/// metadata alone, one extent after the other, and remembers none of them.
///
/// # Errors
/// When the metadata is damaged or cannot be read.
pub async fn measure(
    io: &Io,
    statuses: &Statuses,
    node: NodeId,
    cluster_size: u64,
    progress: Progress,
) -> Result<u64, Stopped> {
    // The reference counts whole sectors.
    let end = io.len(node);
    let (mut at, mut len) = (0, 0);
    let mut until_told = TELL_EVERY;
    while at < end {
        let status = statuses.status(io, node, at, end - at, None).await;
        let status = status.map_err(Doing::Status.failed(0, at))?;
        let mut next = at + status.len;
        if status.data && status.allocated && !status.zero {
            next = next.next_multiple_of(cluster_size);
            len += next - (at - at % cluster_size);
        }
        at = next;
        until_told -= 1;
        if until_told == 0 {
            progress(at.min(end), end);
            until_told = TELL_EVERY;
        }
    }
    Ok(len)
}
