//! Commit: what the images above a base hold goes into the base.
//!
//! Order on disk: the base is as long as the image, then it holds all of the data, durably; only then is the image
//! emptied. A crash at any point leaves the image as it was, over a base that differs from the old one only where the
//! image hides it, or empty over the whole result. Guests see the same disk throughout.

use super::above::{Above, above};
use super::convert::{Convert, Count, convert};
use super::{Doing, Progress, Stopped};
use crate::engine::Io;
use crate::error::Error;
use crate::graph::NodeId;
use crate::graph::Preallocate;
use crate::intent::ZeroFlags;

/// Bytes of a sector.
const SECTOR: u64 = 512;

/// Chunks in flight.
const WORKERS: usize = 8;

/// What to commit. Nobody else may write to any of the nodes meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Commit {
    /// The image.
    pub image: NodeId,
    /// The image of its backing chain that gets the data; it is open for writing.
    pub base: NodeId,
    /// Whether the image is emptied afterwards. With images between the two, these would show what they hold where the
    /// image hid it: then it must not be.
    pub empty: bool,
    /// Bytes a second at the most; 0 for no limit.
    pub rate: u64,
    /// What the progress counts. [`Count::Data`] is as near as it goes to the reference, which tells how much it finished
    /// whenever it has waited for something: two of its runs on the same images print different steps. Ours tell each piece of
    /// data as a worker takes it on, so that two runs are alike.
    pub count: Count,
}

/// Commits. Once `stop` says so, what is in flight is finished and nothing more is begun; what was copied by then is in
/// the base, and the image is as it was.
///
/// # Errors
/// The first failure. The image is as it was, or, when emptying it was what failed, holds data that is in the base too.
pub async fn commit(
    io: &Io,
    plan: &Commit,
    progress: Progress,
    stop: &dyn Fn() -> bool,
) -> Result<(), Stopped> {
    let (len, old) = (io.len(plan.image), io.len(plan.base));
    // A disk is whole sectors; a raw base may lack some of its last one, and grows only where that is held above.
    let grows = old.next_multiple_of(SECTOR) < len
        || old < len && {
            let rest = above(io, plan.image, plan.base, old, len - old).await;
            rest.map_err(Doing::Status.failed(0, old))?.1 != Above::Nothing
        };
    if grows {
        let grown = io.resize(plan.base, len, Preallocate::Off).await;
        grown.map_err(Doing::Write.failed(0, len))?;
        if !io.starts_as_zeroes(plan.base) {
            let flags = ZeroFlags::default();
            let zeroed = io.write_zeroes("commit/new_part", plan.base, old, len - old, flags).await;
            zeroed.map_err(Doing::Write.failed(0, old))?;
        }
    }
    let copy = Convert {
        sources: vec![plan.image],
        target: plan.base,
        above: Some(plan.base),
        compress: false,
        sparse: 0,
        workers: WORKERS,
        out_of_order: false,
        target_is_zero: false,
        target_has_backing: false,
        backing_len: 0,
        copy_range: false,
        salvage: false,
        rate: plan.rate,
        count: plan.count,
    };
    // Ends with a flush: all of the data is durable in the base before the image is emptied of it.
    convert(io, &copy, progress, stop, &|_| {}).await?;
    if !plan.empty {
        return Ok(());
    }
    match io.make_empty(plan.image).await {
        // As for the reference: an image of a format that cannot be emptied goes on holding what the base holds too.
        Err(error) if matches!(*error, Error::Unsupported { .. }) => Ok(()),
        done => done.map_err(Doing::Empty.failed(0, 0)),
    }
}
