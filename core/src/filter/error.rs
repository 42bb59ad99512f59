//! What filters find wrong.

use crate::error::{FaultKind, FormatError};

/// The errors of filters.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the messages say it")]
pub enum FilterError {
    #[error("blkverify: {operation} offset={offset} bytes={len} contents mismatch at offset {at}")]
    Mismatch { operation: &'static str, offset: u64, len: u64, at: u64 },
    #[error(
        "blkverify: {operation} offset={offset} bytes={len} return value mismatch: raw {raw}, test {test}"
    )]
    Outcomes { operation: &'static str, offset: u64, len: u64, raw: String, test: String },

    #[error("Could not read blkdebug config file: {0}")]
    ConfigUnreadable(String),
    #[error("the blkdebug config file has {len} bytes, and {max} are the most")]
    ConfigTooLong { len: u64, max: u64 },
    #[error("line {line} of the blkdebug config file: {problem}")]
    Config { line: usize, problem: String },
    #[error("Missing event name for rule")]
    NoEvent,

    #[error("Invalid log superblock magic")]
    LogMagic,
    #[error("Unsupported log version {0}")]
    LogVersion(u64),
    #[error("Invalid log sector size {0}")]
    LogSectorSize(u64),
    #[error(
        "the log says it has {entries} entries, and entry {entry} at byte {at} lies beyond its end at {len}"
    )]
    LogTooShort { entries: u64, entry: u64, at: u64, len: u64 },
    #[error("entry {entry} of the log, at byte {at}, is about nothing")]
    LogEntry { entry: u64, at: u64 },

    #[error("Compression is not supported for underlying format: {0}")]
    CannotCompress(&'static str),
    #[error("Bottom node '{0}' not found")]
    NoBottom(String),
    #[error("Bottom node '{0}' is not a backing file of the node above")]
    BottomElsewhere(String),
}

impl FormatError for FilterError {
    fn kind(&self) -> FaultKind {
        match self {
            Self::Mismatch { .. } | Self::Outcomes { .. } | Self::ConfigUnreadable(_) => FaultKind::Io,
            Self::LogMagic
            | Self::LogVersion(_)
            | Self::LogSectorSize(_)
            | Self::LogTooShort { .. }
            | Self::LogEntry { .. } => FaultKind::Corrupt,
            _ => FaultKind::Misuse,
        }
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}
