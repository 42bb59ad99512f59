//! Registers and structures of the specification, each field once.
//!
//! Source: \[NVMe\], the NVM Express Base Specification 1.4 of 2019; sections are cited by number. Everything is
//! little-endian.

mod command;
mod completion;
mod identify;
mod registers;

pub use command::{Command, DATASET_RANGE_LEN, Prp, dataset_range, opcode};
pub use completion::{AsyncEvent, Completion, Status};
pub use identify::{ControllerIdentity, IDENTIFY_LEN, Namespace, active_namespaces};
pub use registers::{
    Capabilities, ControllerStatus, Shutdown, admin_queue_attributes, configuration, doorbells, offset,
};

/// Bytes of a submission queue entry.
pub const SUBMISSION_ENTRY_LEN: usize = 64;

/// Bytes of a completion queue entry.
pub const COMPLETION_ENTRY_LEN: usize = 16;
