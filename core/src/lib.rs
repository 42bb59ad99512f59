//! Drystone's block layer without I/O: image formats, filters and jobs as state machines that take bytes in and
//! emit intents.
#![deny(unsafe_code)]

pub mod buf;
pub mod compute;
pub mod crypto;
pub mod engine;
pub mod error;
pub mod filter;
pub mod format;
pub mod graph;
pub mod intent;
pub mod job;
pub mod trace;
