//! What goes wrong with a controller, and with one command.

use std::fmt;
use std::time::Duration;

use drystone_core::intent::Errno;

use super::layout::Status;

/// Why a controller or a namespace cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NvmeError {
    /// Reads give all ones: the device was pulled out, or does not answer on its bus.
    #[error("the controller is gone: its registers read as all ones")]
    Removed,
    /// CSTS.CFS.
    #[error("the controller reports a fatal status (CSTS.CFS)")]
    Fatal,
    /// A register says what this driver cannot work with.
    #[error("register {register}, field {field}: found {found:#x}, expected {expected}")]
    Register {
        /// Which register.
        register: &'static str,
        /// Which field of it.
        field: &'static str,
        /// What it holds.
        found: u64,
        /// What it may hold.
        expected: &'static str,
    },
    /// The controller's identity says what this driver cannot work with.
    #[error("Identify Controller, field {field} at byte {at}: found {found}, expected {expected}")]
    Identify {
        /// Which field.
        field: &'static str,
        /// Its first byte.
        at: usize,
        /// What it holds.
        found: u64,
        /// What it may hold.
        expected: &'static str,
    },
    /// A namespace is formatted in a way that this driver cannot work with.
    #[error("namespace {id}, field {field}: found {found}, expected {expected}")]
    Namespace {
        /// Its NSID.
        id: u32,
        /// Which field.
        field: &'static str,
        /// What it holds.
        found: u64,
        /// What it may hold.
        expected: &'static str,
    },
    /// No such namespace.
    #[error("the controller has no active namespace {id}")]
    NoNamespace {
        /// The NSID asked for.
        id: u32,
    },
    /// The controller did not become what it was told to in the time that CAP.TO allows.
    #[error("the controller did not {what} within {within:?}")]
    Stuck {
        /// What it should have done.
        what: &'static str,
        /// The time it had.
        within: Duration,
    },
    /// An admin command failed.
    #[error("{what}: {status}")]
    Admin {
        /// The command.
        what: &'static str,
        /// Its status.
        status: Status,
    },
    /// An admin command was lost in a reset of the controller.
    #[error("{what}: lost when the controller was reset")]
    Lost {
        /// The command.
        what: &'static str,
    },
    /// A completion that no command asked for.
    #[error(
        "queue pair {queue}: completion queue entry {index}, field {field}: found {found}, expected {expected}"
    )]
    Completion {
        /// The queue pair.
        queue: u16,
        /// Place in the queue.
        index: u16,
        /// Which field.
        field: &'static str,
        /// What it holds.
        found: u16,
        /// What it may hold.
        expected: &'static str,
    },
    /// All queue pairs that the controller grants are in use.
    #[error("all {granted} queue pairs of the controller are in use: close an image or use fewer threads")]
    NoQueue {
        /// How many there are.
        granted: u16,
    },
    /// The register window is too small for the queue's doorbells.
    #[error("the doorbells of queue pair {queue} lie beyond the {len} bytes of registers that are mapped")]
    NoDoorbell {
        /// The queue pair.
        queue: u16,
        /// Bytes of registers.
        len: usize,
    },
    /// The host refused something.
    #[error("{what}: {errno}{hint}")]
    Host {
        /// What was attempted.
        what: String,
        /// The host's answer.
        errno: Errno,
        /// What to do about it, from the punctuation on; may be empty.
        hint: &'static str,
    },
    /// The device cannot be used as it is.
    #[error("{0}")]
    Unusable(String),
}

impl NvmeError {
    /// The error of the host that says the same.
    pub fn errno(&self) -> Errno {
        match self {
            Self::Removed => Errno::ENODEV,
            Self::NoNamespace { .. } => Errno::ENXIO,
            Self::Register { .. } | Self::Identify { .. } | Self::Namespace { .. } => Errno::ENOTSUP,
            Self::Stuck { .. } => Errno::ETIMEDOUT,
            Self::NoQueue { .. } => Errno::EBUSY,
            Self::Host { errno, .. } => *errno,
            Self::Unusable(_) => Errno::EINVAL,
            _ => Errno::EIO,
        }
    }
}

/// Why one request failed. Small, because it travels with every completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RequestError {
    /// The controller's answer.
    Status(Status),
    /// The controller did not answer, was reset, and did not answer again.
    TimedOut,
    /// The controller is gone, or was given up.
    Removed,
    /// The range is not whole blocks, or lies beyond the namespace.
    OutOfRange,
    /// The controller has no such command.
    Unsupported,
}

impl RequestError {
    /// The error of the host that says the same.
    pub fn errno(self) -> Errno {
        match self {
            Self::Status(status) => status.errno(),
            Self::TimedOut => Errno::ETIMEDOUT,
            Self::Removed => Errno::ENODEV,
            Self::OutOfRange => Errno::EINVAL,
            Self::Unsupported => Errno::ENOTSUP,
        }
    }
}

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(f, "{status}"),
            Self::TimedOut => f.write_str("the controller did not answer, not even after a reset"),
            Self::Removed => f.write_str("the controller is gone"),
            Self::OutOfRange => f.write_str("not whole blocks within the namespace"),
            Self::Unsupported => f.write_str("the controller has no such command"),
        }
    }
}

impl std::error::Error for RequestError {}
