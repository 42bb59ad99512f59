//! What can be wrong with a VHDX image, or with what is asked of one.

use super::layout::Guid;
use crate::error::{FaultKind, FormatError};

/// An error of the VHDX format.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the message beside each variant says what its fields are")]
pub enum VhdxError {
    #[error("Image not in VHDX format (no 'vhdxfile' at byte 0)")]
    NotVhdx,
    #[error("a VHDX file has at least 1 MiB of headers, this one {len} bytes")]
    TooShort { len: u64 },
    #[error("{structure} at byte {at}: {field} is {found:#x}, expected {expected}")]
    Field { structure: &'static str, at: u64, field: &'static str, found: u64, expected: &'static str },
    #[error("{structure} at byte {at}: checksum {found:#010x}, expected {expected:#010x}")]
    Checksum { structure: &'static str, at: u64, found: u32, expected: u32 },
    #[error("no valid {structure}: {first}; {second}")]
    Both { structure: &'static str, first: Box<VhdxError>, second: Box<VhdxError> },
    #[error("two different headers have the sequence number {sequence}")]
    TwoHeaders { sequence: u64 },
    #[error("the {what} is there twice")]
    Twice { what: &'static str },
    #[error("the {what} is missing")]
    Missing { what: &'static str },
    #[error("{what} {guid} is required, and not known")]
    Unknown { what: &'static str, guid: Guid },
    #[error("the {item} {} {found:#x}, expected {expected}", says(.item))]
    Item { item: &'static str, found: u64, expected: &'static str },
    #[error("the {what} at byte {at}, {len} bytes, overlaps what ends at byte {end}")]
    RegionOverlap { what: &'static str, at: u64, len: u64, end: u64 },
    #[error("the {what} at byte {at}, {len} bytes, does not lie in the file, which has {file_len}")]
    Outside { what: &'static str, at: u64, len: u64, file_len: u64 },
    #[error("the BAT region has room for {room} entries, the disk needs {needed}")]
    BatRoom { room: u64, needed: u64 },
    #[error("BAT entry {index}: {found:#x}, expected {expected}")]
    BatEntry { index: u64, found: u64, expected: &'static str },
    #[error("BAT entry {index}: the block at byte {at} overlaps another one; run `check`")]
    Overlap { index: u64, at: u64 },
    #[error("the header names the log {guid}, of which there is no whole entry: the image is corrupt")]
    NoLogEntry { guid: Guid },
    #[error("a log of {len} bytes that is to be replayed is longer than {max}")]
    LogTooLong { len: u64, max: u64 },
    #[error("the log has more that could be entries than {max} bytes of them: the image is corrupt")]
    LogTangled { max: u64 },
    #[error(
        "log entry {sequence} was written when the file had {flushed} bytes, it has {len}: it was cut off"
    )]
    FileCut { sequence: u64, flushed: u64, len: u64 },
    #[error("log entry {sequence}, descriptor {index}: {len} bytes at byte {at}, expected {expected}")]
    LogTarget { sequence: u64, index: u32, at: u64, len: u64, expected: &'static str },
    #[error("log entry {sequence}: the file is to have {len} bytes, at most {max} can be")]
    LogLength { sequence: u64, len: u64, max: u64 },
    #[error("the parent locator names no file: no relative_path or absolute_win32_path")]
    NoParentName,
    #[error("the parent locator has no parent_linkage")]
    NoLinkage,
    #[error("the parent was changed since: its data are in state {found}, expected {expected}")]
    ParentChanged { found: Guid, expected: Guid },
    #[error("all slices of the BAT in memory hold changes that could not be written")]
    CacheExhausted,
    #[error("a file of more than {max} bytes is not supported")]
    FileTooLarge { max: u64 },
    #[error("Block size must be a power of two")]
    BlockSize { found: u64 },
    #[error("Image size too large; max of 64TB")]
    DiskTooLarge { size: u64 },
    #[error("a log of {len} bytes is longer than {max}")]
    LogSize { len: u64, max: u64 },
    #[error("a VHDX image cannot become shorter: it has {size} bytes, {wanted} are wanted")]
    Shrink { size: u64, wanted: u64 },
    #[error("{wanted} bytes are no whole sectors of {sector}")]
    Sectors { wanted: u64, sector: u64 },
    #[error(
        "the parent has {parent} bytes, more than the {size} of the disk: what is behind them would show in a longer one"
    )]
    ParentLonger { parent: u64, size: u64 },
}

/// The verb that goes with a name.
fn says(item: &str) -> &'static str {
    match item {
        "file parameters" | "page 83 data" => "say",
        _ => "says",
    }
}

impl FormatError for VhdxError {
    fn kind(&self) -> FaultKind {
        match self {
            Self::BlockSize { .. }
            | Self::DiskTooLarge { .. }
            | Self::LogSize { .. }
            | Self::Shrink { .. }
            | Self::Sectors { .. }
            | Self::ParentLonger { .. }
            | Self::ParentChanged { .. } => FaultKind::Misuse,
            Self::Unknown { .. } | Self::LogTooLong { .. } | Self::FileTooLarge { .. } => {
                FaultKind::Unsupported
            }
            Self::CacheExhausted => FaultKind::Io,
            _ => FaultKind::Corrupt,
        }
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}
