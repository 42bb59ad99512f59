//! Drystone's block layer without I/O: image formats, filters and jobs as state machines that take bytes in and
//! emit intents.
#![deny(unsafe_code)]
#![expect(dead_code, reason = "the parts that the first format with metadata uses")]

pub mod buf;
pub mod compute;
pub mod engine;
pub mod error;
pub mod format;
pub mod graph;
pub mod intent;
