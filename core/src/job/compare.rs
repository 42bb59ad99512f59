//! Compare: where two nodes first show different bytes.

use super::Progress;
use crate::buf::{Buf, BufList, is_zero};
use crate::engine::task::join;
use crate::engine::{Io, Status};
use crate::error::Result;
use crate::graph::NodeId;

/// Bytes read at once from each node.
const CHUNK: u64 = 1 << 20;

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

/// Compares; `strict` holds allocation against them too. `longer` is called before the part is looked at that only one
/// node has.
///
/// # Errors
/// When one of them cannot be read.
pub async fn compare(
    io: &Io,
    (a, b): (NodeId, NodeId),
    strict: bool,
    longer: &dyn Fn(),
    progress: Progress,
) -> Result<Comparison> {
    let (a_len, b_len) = (io.len(a), io.len(b));
    let (common, all) = (a_len.min(b_len), a_len.max(b_len));
    let (mut a_buf, mut b_buf) = (Buf::zeroed(CHUNK as usize), Buf::zeroed(CHUNK as usize));
    let mut at = 0;
    while at < common {
        progress(at, all);
        let (a_status, b_status) =
            join(io.status(a, at, common - at, None), io.status(b, at, common - at, None)).await;
        let (a_status, b_status) = (a_status?, b_status?);
        if strict && a_status.allocated != b_status.allocated {
            return Ok(Comparison::StatusDiffers(at));
        }
        let len = a_status.len.min(b_status.len);
        if a_status.zero && b_status.zero {
            at += len;
            continue;
        }
        let len = len.min(CHUNK);
        let (a_read, b_read) = join(
            content(io, a, &a_status, at, len, &mut a_buf),
            content(io, b, &b_status, at, len, &mut b_buf),
        )
        .await;
        a_read?;
        b_read?;
        let (a_bytes, b_bytes) = (&a_buf[..len as usize], &b_buf[..len as usize]);
        if a_bytes != b_bytes {
            let same = a_bytes.iter().zip(b_bytes).take_while(|(x, y)| x == y).count() as u64;
            return Ok(Comparison::ContentDiffers(at + same));
        }
        at += len;
    }
    if a_len == b_len {
        progress(all, all);
        return Ok(Comparison::Identical);
    }
    longer();
    let node = if a_len > b_len { a } else { b };
    while at < all {
        progress(at, all);
        let status = io.status(node, at, all - at, None).await?;
        if strict && status.allocated {
            return Ok(Comparison::StatusDiffers(at));
        }
        let len = if status.zero { status.len } else { status.len.min(CHUNK) };
        if !status.zero {
            content(io, node, &status, at, len, &mut a_buf).await?;
            let bytes = &a_buf[..len as usize];
            if !is_zero(bytes) {
                let zeros = bytes.iter().take_while(|byte| **byte == 0).count() as u64;
                return Ok(Comparison::ContentDiffers(at + zeros));
            }
        }
        at += len;
    }
    progress(all, all);
    Ok(Comparison::Identical)
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
