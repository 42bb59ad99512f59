//! Dd: copies a range of a node as data, zeros included, the next piece being read while one is written.

use super::{Doing, Progress, Stopped};
use crate::buf::{Buf, BufList};
use crate::engine::Io;
use crate::engine::task::join;
use crate::error::{Error, Result};
use crate::graph::NodeId;
use crate::intent::Fua;

/// Bytes of a piece.
const PIECE: u64 = 1 << 20;

/// What to copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dd {
    /// Where from.
    pub source: NodeId,
    /// First byte there.
    pub from: u64,
    /// Bytes.
    pub len: u64,
    /// Where to; the first byte goes to the start.
    pub target: NodeId,
}

/// Copies; the target is not flushed. Once `stop` says so, nothing more is begun.
///
/// # Errors
/// The first failure, and where it was in the source or the target.
pub async fn dd(io: &Io, plan: &Dd, progress: Progress, stop: &dyn Fn() -> bool) -> Result<(), Stopped> {
    let piece_at = |at: u64| PIECE.min(plan.len - at) as usize;
    let nodes = [plan.source, plan.target];
    let (mut at, mut spare) = (0, io.buffer(&nodes, PIECE as usize));
    let (mut data, read) = read(io, plan, 0, io.buffer(&nodes, piece_at(0))).await;
    read.map_err(Doing::Read.failed(0, plan.from))?;
    progress(0, plan.len.max(1));
    while at < plan.len {
        if stop() {
            return Err(Doing::Write.failed(0, at)(Box::new(Error::Cancelled)));
        }
        let next = at + data.len_bytes() as u64;
        drop(spare.split_off(piece_at(next).min(spare.len())));
        let ((back, written), (read_next, read)) =
            join(io.write("dd/write", plan.target, at, data, Fua::No), self::read(io, plan, next, spare))
                .await;
        written.map_err(Doing::Write.failed(0, at))?;
        read.map_err(Doing::Read.failed(0, plan.from + next))?;
        (data, spare, at) = (read_next, back.into_single(), next);
        progress(at, plan.len);
    }
    Ok(())
}

async fn read(io: &Io, plan: &Dd, at: u64, buf: Buf) -> (BufList, Result<()>) {
    if buf.is_empty() {
        return (BufList::new(), Ok(()));
    }
    io.read("dd/read", plan.source, plan.from + at, buf).await
}
