//! Registers and structures of the specification, each field once.
//!
//! Source: \[NVMe\], the NVM Express Base Specification 1.4 of 2019; sections are cited by number. Everything is
//! little-endian.

mod command;
mod completion;
mod identify;
mod log;
mod registers;

pub use command::{
    Arbitration, BlockRange, Command, DATASET_RANGE_LEN, DataPointer, Priority, Prp, SGL_DESCRIPTOR_LEN, Sgl,
    SglKind, dataset_range, opcode,
};
pub use completion::{AsyncEvent, Completion, Status};
pub use identify::{ControllerIdentity, IDENTIFY_LEN, Namespace, SglSupport, active_namespaces};
pub use log::{ErrorEntry, Health, LOG_LEN, changed_namespaces, log_page};
pub use registers::{
    Capabilities, ControllerStatus, Shutdown, admin_queue_attributes, configuration, doorbells, offset,
};

/// Bytes of a submission queue entry.
pub const SUBMISSION_ENTRY_LEN: usize = 64;

/// Bytes of a completion queue entry.
pub const COMPLETION_ENTRY_LEN: usize = 16;
