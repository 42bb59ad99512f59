//! The engine's errors: each says which node, what was attempted where, and what was found.

use crate::intent::{Errno, LockRefused, Permissions};

/// What went wrong with a request, an open, or a job.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A leaf answered a request with an error.
    #[error("{location}: {operation} of {len} bytes at offset {offset} failed: {errno}")]
    Leaf {
        /// Name of the file or device.
        location: String,
        /// What was attempted.
        operation: &'static str,
        /// First byte in the leaf.
        offset: u64,
        /// Bytes.
        len: u64,
        /// The host's answer.
        errno: Errno,
    },
    /// A leaf could not be opened, created or removed.
    #[error("Could not open '{location}': {errno}")]
    Open {
        /// Name of the file or device.
        location: String,
        /// The host's answer.
        errno: Errno,
    },
    /// A device cannot be used as it is.
    #[error("Could not open '{location}': {reason}")]
    Device {
        /// Name of the device.
        location: String,
        /// The number that says the same.
        errno: Errno,
        /// Why, and what to do.
        reason: Box<str>,
    },
    /// A server cannot be reached, or does not give what is asked for.
    #[error("{reason}")]
    Server {
        /// Name of what was asked for.
        location: String,
        /// The number that says the same.
        errno: Errno,
        /// Why, and what to do.
        reason: Box<str>,
    },
    /// `aio=io_uring` was asked for, and there is none.
    #[error("Unable to use linux io_uring: failed to init linux io_uring ring: {errno}")]
    NoIoUring {
        /// Name of the file or device.
        location: String,
        /// The host's answer.
        errno: Errno,
    },
    /// What cannot be made, but used as it is, cannot be used either.
    #[error(
        "Protocol driver '{protocol}' does not support creating new images, so an existing image must be selected as \
         the target; however, opening the given target as an existing image failed: {reason}"
    )]
    Fixed {
        /// The protocol's name.
        protocol: &'static str,
        /// The number that says the same.
        errno: Errno,
        /// Why, and what to do.
        reason: Box<str>,
    },
    /// A file could not be created.
    #[error("Could not create '{location}': {errno}")]
    Create {
        /// Name of the file.
        location: String,
        /// The host's answer.
        errno: Errno,
    },
    /// Another process uses the image in a way that does not go with ours.
    #[error("{}\nIs another process using the image [{location}]?", lock_message(*.refused))]
    Locked {
        /// Name of the file.
        location: String,
        /// Which permission.
        refused: LockRefused,
    },
    /// The image's content or options are not what the format allows.
    #[error("{fault}")]
    Format {
        /// Name of the node.
        node: String,
        /// What the format says.
        fault: Box<dyn FormatError>,
    },
    /// A request does not fit the node.
    #[error(
        "{node}: {operation} of {len} bytes at offset {offset} lies outside the {size} bytes of the node"
    )]
    OutOfRange {
        /// Name of the node.
        node: String,
        /// What was attempted.
        operation: &'static str,
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// Length of the node.
        size: u64,
    },
    /// A write to a node that was opened for reading.
    #[error("Block node is read-only")]
    ReadOnly {
        /// Name of the node.
        node: String,
    },
    /// A write to an image whose format was guessed to be raw, after which it would no longer be.
    #[error(
        "the write would make the raw image '{node}' look like {format}, and its format was guessed; say 'raw' to allow it"
    )]
    Restricted {
        /// Name of the file.
        node: String,
        /// The format that would be guessed next time.
        format: &'static str,
    },
    /// No such node in the graph.
    #[error("Cannot find device='{0}' nor node-name='{0}'")]
    NoSuchNode(String),
    /// A node name that is taken or malformed.
    #[error("{0}")]
    NodeName(String),
    /// The node cannot do what was asked of it.
    #[error("{node}: driver '{driver}' does not support {what}")]
    Unsupported {
        /// Name of the node.
        node: String,
        /// Its driver.
        driver: &'static str,
        /// The operation.
        what: &'static str,
    },
    /// A backing chain that is longer than any honest one, or returns to itself. Each image below costs every read a step,
    /// and a chain without an end would be opened without an end.
    #[error(
        "'{location}': the chain of images is more than {max} deep, which is as far as one is followed, or returns to \
         itself; `rebase` or `commit` make a chain shorter"
    )]
    ChainTooDeep {
        /// The image that would have been opened next.
        location: String,
        /// The bound.
        max: usize,
    },
    /// A child of an image could not be opened.
    #[error("Could not open {what}: {}", .source.with_file())]
    Child {
        /// Which child.
        what: &'static str,
        /// Why.
        #[source]
        source: Box<Error>,
    },
    /// An option, or a name that an image holds, was refused.
    #[error("{0}")]
    Options(String),
    /// A driver does not have an option that it was given.
    #[error("{0}")]
    UnknownOption(String),
    /// The host has no random bytes.
    #[error("{location}: no random bytes for identifiers: {errno}")]
    Entropy {
        /// Name of the file or device that they are for.
        location: String,
        /// The host's answer.
        errno: Errno,
    },
    /// The job was cancelled.
    #[error("cancelled")]
    Cancelled,
}

/// What an [`Error::Format`] wraps: the typed error of one format.
pub trait FormatError: std::error::Error + Send + Sync + 'static {
    /// Which of the four kinds of failure this is.
    fn kind(&self) -> FaultKind;
    /// The error number that a guest would see, where its kind does not say.
    fn errno(&self) -> Option<Errno> {
        None
    }
    /// The error itself, for matching by type.
    fn as_any(&self) -> &dyn std::any::Any;
}

/// The kinds of failure that tools turn into different messages and exit codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// The image breaks its format's rules.
    Corrupt,
    /// The image uses something that is not supported.
    Unsupported,
    /// The host failed.
    Io,
    /// The caller asked for something impossible.
    Misuse,
}

impl Error {
    /// The error with the name of the file that it is about, which errors of formats leave to their caller.
    pub fn with_file(&self) -> String {
        match self {
            Self::Format { node, fault } => format!("Could not open '{node}': {fault}"),
            other => other.to_string(),
        }
    }

    /// What a format, or a filter, says of a node.
    pub(crate) fn format(node: impl Into<String>, fault: impl FormatError) -> Box<Self> {
        Box::new(Self::Format { node: node.into(), fault: Box::new(fault) })
    }

    /// Says of which child an error is; of a chain without an end once, not once for each image of it.
    pub(crate) fn child(what: &'static str, source: Box<Self>) -> Box<Self> {
        if let Self::Child { source: below, .. } = &*source
            && let Self::ChainTooDeep { .. } = **below
        {
            return source;
        }
        Box::new(Self::Child { what, source })
    }

    /// Which of the four kinds of failure this is.
    pub fn kind(&self) -> FaultKind {
        match self {
            Self::Leaf { .. }
            | Self::Open { .. }
            | Self::Device { .. }
            | Self::Server { .. }
            | Self::NoIoUring { .. }
            | Self::Create { .. }
            | Self::Fixed { .. }
            | Self::Locked { .. } => FaultKind::Io,
            Self::Format { fault, .. } => fault.kind(),
            Self::Unsupported { .. } => FaultKind::Unsupported,
            Self::Child { source, .. } => source.kind(),
            _ => FaultKind::Misuse,
        }
    }

    /// The host's error number where there is one, else the one that a guest would see.
    pub fn errno(&self) -> Errno {
        match self {
            Self::Leaf { errno, .. }
            | Self::Open { errno, .. }
            | Self::Device { errno, .. }
            | Self::Server { errno, .. }
            | Self::NoIoUring { errno, .. }
            | Self::Create { errno, .. }
            | Self::Fixed { errno, .. } => *errno,
            Self::Locked { .. } => Errno::EAGAIN,
            Self::Child { source, .. } => source.errno(),
            Self::Format { fault, .. } if fault.errno().is_some() => {
                fault.errno().expect("looked at in the same step")
            }
            Self::Format { fault, .. } if matches!(fault.kind(), FaultKind::Corrupt | FaultKind::Io) => {
                Errno::EIO
            }
            Self::Unsupported { .. } => Errno::ENOTSUP,
            Self::OutOfRange { .. } => Errno::EIO,
            Self::ReadOnly { .. } | Self::Restricted { .. } => Errno::EPERM,
            Self::Cancelled => Errno::ECANCELED,
            _ => Errno::EINVAL,
        }
    }
}

fn lock_message(refused: LockRefused) -> String {
    match refused {
        LockRefused::Conflict { permission, shared } => {
            let kind = if shared { "shared " } else { "" };
            format!("Failed to get {kind}\"{}\" lock", permission_name(permission))
        }
        LockRefused::Failed(errno) => format!("Failed to lock byte range: {errno}"),
    }
}

fn permission_name(permission: Permissions) -> &'static str {
    permission.name()
}

/// Results of the engine; errors are boxed, because they are large and rare.
pub type Result<T, E = Box<Error>> = std::result::Result<T, E>;
