//! What can be wrong with a VMDK image, or with what is asked of one.

use crate::error::{FaultKind, FormatError};

/// An error of the VMDK format. Texts that scripts know from `qemu-img` begin with its words.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the message beside each variant says what its fields are")]
pub enum VmdkError {
    #[error("invalid VMDK image descriptor: {problem}")]
    NotDescriptor { problem: &'static str },
    #[error("the descriptor at byte {at} has {found} bytes, at most {max} are read")]
    DescriptorLen { at: u64, found: u64, max: u64 },
    #[error("line {line} of the descriptor: '{key}' is '{found}', expected {expected}")]
    Value { line: usize, key: &'static str, found: String, expected: &'static str },
    #[error("Invalid extent line: line {line} of the descriptor: {problem}: {text}")]
    ExtentLine { line: usize, problem: &'static str, text: String },
    #[error("Unsupported image type '{found}'")]
    CreateType { found: String },
    #[error("the descriptor names no extent that holds data")]
    NoExtent,
    #[error("the descriptor names more than {max} extents")]
    TooManyExtents { max: usize },
    #[error("the disk that the descriptor's extents add up to is larger than {max} bytes")]
    TooLarge { max: u64 },
    #[error("extent '{name}' has an absolute name; only files beneath the descriptor's folder are opened")]
    AbsoluteName { name: String },
    #[error("extent '{name}' leads out of the descriptor's folder by '..'")]
    NameLeavesFolder { name: String },
    #[error("extent '{name}' is not open: only the metadata is looked at")]
    Closed { name: String },
    #[error("extent '{name}' is no regular file")]
    NotAFile { name: String },
    #[error("extent '{name}' has {found} bytes, the descriptor says that {expected} are in use")]
    ExtentShort { name: String, found: u64, expected: u64 },
    #[error("extent '{name}' cannot be written to: its kind is {kind}")]
    ReadOnlyExtent { name: String, kind: &'static str },
    #[error(
        "extent '{name}' begins at byte {start} of the disk, inside a grain of {grain}: such an image is read only"
    )]
    Unaligned { name: String, start: u64, grain: u64 },

    #[error("Image not in VMDK format ({what} at byte {at}: found {found:#x}, expected {expected:#x})")]
    Magic { what: &'static str, at: u64, found: u64, expected: u64 },
    #[error("the {what} needs {expected} bytes, the file has {found}")]
    TooShort { what: &'static str, found: u64, expected: u64 },
    #[error("Unsupported VMDK version {found}")]
    Version { found: u64 },
    #[error("VMDK version 3 must be read only, unless its grains are compressed")]
    Version3ReadOnly,
    #[error("the newline characters at byte 73 are {found:02x?}: the file was changed by a transfer as text")]
    Newlines { found: [u8; 4] },
    #[error("compression algorithm {found} is not supported, only 1 (deflate)")]
    Compression { found: u16 },
    #[error(
        "Invalid granularity, image may be corrupt: {found} sectors a grain, expected a power of two up to {max}"
    )]
    GrainSize { found: u64, max: u64 },
    #[error("L1 entry size is invalid: {entries} entries in a grain table of grains of {grain} sectors")]
    NoEntries { entries: u64, grain: u64 },
    #[error("L2 table size too big: {found} entries in a grain table, at most {max}")]
    TableLen { found: u64, max: u64 },
    #[error("L1 size too big: {found} grain tables, at most {max}")]
    DirectoryLen { found: u64, max: u64 },
    #[error("the {what} of {len} bytes at byte {at} does not lie in the {file_len} bytes of the file")]
    Outside { what: &'static str, at: u64, len: u64, file_len: u64 },
    #[error("File truncated, expecting at least {expected} bytes; it has {found}")]
    Truncated { expected: u64, found: u64 },
    #[error("Invalid footer: {problem}")]
    Footer { problem: &'static str },
    #[error("header field {field} at byte {at}: found {found:#x}, expected {expected}")]
    Field { field: &'static str, at: u64, found: u64, expected: &'static str },
    #[error("the log of the seSparse extent '{name}' has to be replayed first, which only its maker can")]
    Journal { name: String },

    #[error(
        "grain directory entry {index} of '{file}': a grain table at byte {at}, where the file has {file_len} bytes"
    )]
    TablePlace { file: String, index: u64, at: u64, file_len: u64 },
    #[error("the grain directory of '{file}' has no grain table {index}, and only its maker adds one")]
    NoTable { file: String, index: u64 },
    #[error(
        "the redundant grain directory of '{file}' has no grain table {index}: such an image is read only"
    )]
    NoRedundantTable { file: String, index: u64 },
    #[error("grain table entry of grain {grain} of '{file}': found {found:#x}, expected {expected}")]
    Entry { file: String, grain: u64, found: u64, expected: &'static str },
    #[error(
        "cluster offset for sector {sector} points after EOF: grain {grain} of '{file}' at byte {at}, of {end}"
    )]
    AfterEnd { file: String, sector: u64, grain: u64, at: u64, end: u64 },
    #[error("grain {grain} of '{file}' at byte {at}: the marker says {field} {found}, expected {expected}")]
    Marker { file: String, grain: u64, at: u64, field: &'static str, found: u64, expected: u64 },
    #[error("grain {grain} of '{file}', packed at byte {at}: {problem}")]
    Packed { file: String, grain: u64, at: u64, problem: String },
    #[error(
        "the {what} at byte {at} does not end within the {overhead} bytes that the header keeps for metadata: such an image is \
         read only"
    )]
    BehindOverhead { what: &'static str, at: u64, overhead: u64 },
    #[error(
        "the {table} at byte {table_at} shares bytes with the {what} at byte {at}: such an image is read only"
    )]
    Shared { table: &'static str, table_at: u64, what: &'static str, at: u64 },
    #[error("'{file}' is full: a grain table cannot point beyond byte {max}")]
    Full { file: String, max: u64 },
    #[error("all grain tables in memory hold changes that could not be written")]
    CacheExhausted,

    #[error(
        "Could not write to allocated cluster for streamOptimized: grain {grain} of '{file}' is there already"
    )]
    Occupied { file: String, grain: u64 },
    #[error("streamOptimized images take whole grains of {grain} bytes; {len} bytes at {offset} are none")]
    PartOfGrain { grain: u64, len: u64, offset: u64 },
    #[error("the grain directory of '{file}' is at its end, behind all grains: such an image is read only")]
    FooterReadOnly { file: String },
    #[error("the backing file '{name}' is no VMDK image, and so has no content ID")]
    ParentFormat { name: String },
    #[error(
        "the backing file '{name}' was changed since the image was made: its content ID is {found:08x}, the image \
         expects {expected:08x}"
    )]
    ParentChanged { name: String, found: u32, expected: u32 },
    #[error("the descriptor has no room for a new content ID: {found} bytes of {max}")]
    DescriptorFull { found: u64, max: u64 },

    #[error("{0}")]
    Option(&'static str),
    #[error("the extents of an image cannot be named after '{name}': a descriptor has no way to write that")]
    CannotName { name: String },
}

impl FormatError for VmdkError {
    fn kind(&self) -> FaultKind {
        match self {
            Self::CreateType { .. }
            | Self::TooManyExtents { .. }
            | Self::TooLarge { .. }
            | Self::ReadOnlyExtent { .. }
            | Self::Unaligned { .. }
            | Self::Version { .. }
            | Self::Version3ReadOnly
            | Self::Compression { .. }
            | Self::Journal { .. }
            | Self::NoTable { .. }
            | Self::BehindOverhead { .. }
            | Self::Closed { .. }
            | Self::FooterReadOnly { .. } => FaultKind::Unsupported,
            Self::PartOfGrain { .. } | Self::Full { .. } | Self::Option(_) | Self::CannotName { .. } => {
                FaultKind::Misuse
            }
            Self::Occupied { .. } | Self::CacheExhausted => FaultKind::Io,
            _ => FaultKind::Corrupt,
        }
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}
