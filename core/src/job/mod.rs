//! Jobs: long work on nodes, as coroutines that an engine runs (`Engine::run`).
//!
//! A job holds no node open beyond its own end, moves data only through [`Io`](crate::engine::Io), and says how far it
//! is through a [`Progress`]. Dropping the engine drops its jobs.

mod bench;
mod compare;
mod convert;
mod create;
mod status;

use std::rc::Rc;

pub use bench::{Bench, bench};
pub use compare::{Compare, Comparison, compare};
pub use convert::{Convert, Count, convert};
pub use create::{ImageSpec, create};
pub use status::Statuses;

/// Is told how much of how much is done, in bytes or whatever the job counts.
pub type Progress = Rc<dyn Fn(u64, u64)>;
