//! Compare: where two nodes first show different bytes.

use super::{Doing, Progress, Statuses, Stopped};
use crate::buf::{Buf, BufList, is_zero};
use crate::engine::task::join;
use crate::engine::{Io, Status};
use crate::error::Result;
use crate::graph::{NodeId, Role};

/// Bytes read at once from each node.
const CHUNK: u64 = 2 << 20;

/// What a comparison found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// Alike; what only the longer one has is zeros.
    Identical,
    /// The first byte that differs.
    ContentDiffers(u64),
    /// The first byte that is allocated in one and not in the other, when that counts.
    StatusDiffers(u64),
}

/// What two stretches have in common when the comparison is strict.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Likeness {
    allocated: bool,
    zero: bool,
    data: bool,
    compressed: bool,
    /// The host keeps it as it is, or keeps space for it.
    placed: bool,
    /// It ends with its image, or with a backing file that holds nothing there.
    ends: bool,
}

/// Two nodes to compare.
pub struct Compare<'a> {
    /// The nodes.
    pub nodes: (NodeId, NodeId),
    /// Whether allocation counts too.
    pub strict: bool,
    /// Who answers where data and holes are.
    pub statuses: &'a Statuses,
    /// Called before the part is looked at that only the longer node has.
    pub longer: &'a dyn Fn(),
}

/// Compares.
///
/// # Errors
/// When one of them cannot be read.
pub async fn compare(io: &Io, work: &Compare<'_>, progress: Progress) -> Result<Comparison, Stopped> {
    let (a, b) = work.nodes;
    let (a_len, b_len) = (io.len(a), io.len(b));
    let (common, all) = (a_len.min(b_len), a_len.max(b_len));
    let (mut a_buf, mut b_buf) = (io.buffer(&[a], CHUNK as usize), io.buffer(&[b], CHUNK as usize));
    let mut at = 0;
    progress(0, all.max(1));
    while at < common {
        let (a_status, b_status) = join(
            work.statuses.status(io, a, at, common - at, None),
            work.statuses.status(io, b, at, common - at, None),
        )
        .await;
        let a_status = a_status.map_err(Doing::Status.failed(0, at))?;
        let b_status = b_status.map_err(Doing::Status.failed(1, at))?;
        if work.strict && likeness(io, a, &a_status, at) != likeness(io, b, &b_status, at) {
            return Ok(Comparison::StatusDiffers(at));
        }
        let mut len = a_status.len.min(b_status.len);
        if !(a_status.zero && b_status.zero) {
            len = len.min(CHUNK);
            let (a_read, b_read) = join(
                content(io, a, &a_status, at, len, &mut a_buf),
                content(io, b, &b_status, at, len, &mut b_buf),
            )
            .await;
            a_read.map_err(Doing::Read.failed(0, at))?;
            b_read.map_err(Doing::Read.failed(1, at))?;
            let (a_bytes, b_bytes) = (&a_buf[..len as usize], &b_buf[..len as usize]);
            if a_bytes != b_bytes {
                let same = a_bytes.iter().zip(b_bytes).take_while(|(x, y)| x == y).count() as u64;
                return Ok(Comparison::ContentDiffers(at + same));
            }
        }
        at += len;
        progress(at, all);
    }
    if a_len == b_len {
        return Ok(Comparison::Identical);
    }
    (work.longer)();
    let (node, index) = if a_len > b_len { (a, 0) } else { (b, 1) };
    while at < all {
        let status = work.statuses.status(io, node, at, all - at, None).await;
        let status = status.map_err(Doing::Status.failed(index, at))?;
        let len = if status.zero { status.len } else { status.len.min(CHUNK) };
        if !status.zero {
            let read = content(io, node, &status, at, len, &mut a_buf).await;
            read.map_err(Doing::Read.failed(index, at))?;
            let bytes = &a_buf[..len as usize];
            if !is_zero(bytes) {
                let zeros = bytes.iter().take_while(|byte| **byte == 0).count() as u64;
                return Ok(Comparison::ContentDiffers(at + zeros));
            }
        }
        at += len;
        progress(at, all);
    }
    Ok(Comparison::Identical)
}

fn likeness(io: &Io, node: NodeId, status: &Status, at: u64) -> Likeness {
    let end = at + status.len;
    let mut ends = end == io.len(node);
    let mut image = node;
    for depth in 0..status.depth {
        let Some(backing) = io.edge(image, Role::Backing) else { break };
        image = backing;
        // What decides is not what ends; what it deferred to is.
        let decides = depth + 1 == status.depth && status.allocated;
        ends |= !decides && end == io.len(image);
    }
    // Beyond the end of a backing file, the image above it decides that there are zeros.
    let beyond = !status.allocated && io.edge(image, Role::Backing).is_some();
    Likeness {
        allocated: status.allocated || beyond,
        zero: status.zero,
        data: status.data,
        compressed: status.compressed,
        placed: status.place.is_some() && !beyond,
        ends,
    }
}

async fn content(io: &Io, node: NodeId, status: &Status, at: u64, len: u64, buf: &mut Buf) -> Result<()> {
    if status.zero {
        buf[..len as usize].fill(0);
        return Ok(());
    }
    let mut whole = std::mem::take(buf);
    let spare = whole.split_off(len as usize);
    let (mut data, result) = io.read("compare/read", node, at, whole).await;
    data.append(BufList::from(spare));
    *buf = data.into_single();
    result
}
