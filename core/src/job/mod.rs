//! Jobs: long work on nodes, as coroutines that an engine runs (`Engine::run`).
//!
//! A job holds no node open beyond its own end, moves data only through [`Io`](crate::engine::Io), and says how far it
//! is through a [`Progress`]. Dropping the engine drops its jobs.

mod above;
mod amend;
mod bench;
mod commit;
mod compare;
mod compared;
mod convert;
mod create;
mod dd;
mod measure;
mod rebase;
mod snapshot;
mod status;

use std::rc::Rc;

use crate::error::Error;

pub use amend::{amend, amend_keyslots};
pub use bench::{Bench, bench};
pub use commit::{Commit, commit};
pub use compare::{Compare, Comparison, compare};
pub use convert::{Convert, Count, convert};
pub use create::{ImageSpec, create};
pub use dd::{Dd, dd};
pub use measure::measure;
pub use rebase::{Rebase, change_backing, rebase};
pub use snapshot::{apply_snapshot, create_snapshot, delete_snapshot};
pub use status::Statuses;

/// Is told how much of how much is done, in bytes or whatever the job counts.
pub type Progress = Rc<dyn Fn(u64, u64)>;

/// Why a job that walks over disks ended early, and where it was.
#[derive(Debug, thiserror::Error)]
#[error("{doing} at {at}: {source}")]
pub struct Stopped {
    /// What failed.
    pub doing: Doing,
    /// Which of the sources, counted from 0; of no meaning for a target.
    pub source_index: usize,
    /// First byte on the disk of what was being done; where a conversion asks for a status, or tells of what it salvages,
    /// the byte of the source.
    pub at: u64,
    /// Why.
    #[source]
    pub source: Box<Error>,
}

/// What a job was doing when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Doing {
    /// Asking where data is.
    #[error("block status")]
    Status,
    /// Reading a source.
    #[error("read")]
    Read,
    /// Writing, or zeroing, the target.
    #[error("write")]
    Write,
    /// Making the target durable.
    #[error("flush")]
    Flush,
    /// Emptying a committed image.
    #[error("emptying")]
    Empty,
}

impl Doing {
    fn failed(self, source_index: usize, at: u64) -> impl Fn(Box<Error>) -> Stopped + Copy {
        move |source| Stopped { doing: self, source_index, at, source }
    }
}
