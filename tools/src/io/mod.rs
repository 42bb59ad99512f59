//! `drystone-io`: reads and writes an image by hand, for tests and scripts.
//!
//! ```text
//!   argv ─▶ args ─▶ how to open        a line ─▶ words ─▶ command::parse ─▶ Command ─▶ (the engine) ─▶ report ─▶ text
//! ```
//!
//! Pure, as all of this library: what commands there are and what they take ([`command`]), and what is shown
//! ([`report`]). The binary connects them to the engine.

pub mod args;
pub mod command;
mod flags;
pub mod help;
pub mod info;
mod number;
pub mod report;
mod transfer;
mod zones;

pub use transfer::{DiscardArgs, Pattern, ReadArgs, Source, Vectored, WriteArgs};
