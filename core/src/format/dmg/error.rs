//! What can be wrong with a dmg image.

use crate::error::{FaultKind, FormatError};

/// An error of the dmg format.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the message beside each variant says what its fields are")]
pub enum DmgError {
    #[error("no dmg image: no trailer 'koly' in the last 1024 of {len} bytes")]
    NoTrailer { len: u64 },
    #[error("the trailer's field {field} names {len} bytes at {at}, in a file of {file_len}")]
    Place { field: &'static str, at: u64, len: u64, file_len: u64 },
    #[error("the trailer's {field} has {found} bytes, more than {max}")]
    TooLong { field: &'static str, found: u64, max: u64 },
    #[error("the trailer counts {found} sectors, more than a disk can have")]
    Size { found: u64 },
    #[error("the trailer names neither a resource fork nor a property list")]
    NoTables,
    #[error("the {what} names no block table")]
    NoBlocks { what: &'static str },
    #[error("block table {table} is damaged: {problem}")]
    Table { table: usize, problem: &'static str },
    #[error("chunk {chunk} of block table {table} has {found} sectors, at most {max}")]
    ChunkSectors { table: usize, chunk: usize, found: u64, max: u64 },
    #[error(
        "chunk {chunk} of block table {table} names {len} bytes at {at}, at most {max} in a file of {file_len}"
    )]
    ChunkPlace { table: usize, chunk: usize, at: u64, len: u64, max: u64, file_len: u64 },
    #[error("two chunks say what sector {sector} is")]
    Overlap { sector: u64 },
    #[error("no chunk says what sector {sector} is")]
    Gap { sector: u64 },
    #[error("the chunk at sector {sector} has the type {kind:#010x}, which is not supported")]
    ChunkType { sector: u64, kind: u32 },
    #[error("the chunk of {len} bytes at {at} does not unpack to {sectors} sectors")]
    Damaged { at: u64, len: u64, sectors: u64 },
}

impl FormatError for DmgError {
    fn kind(&self) -> FaultKind {
        match self {
            Self::TooLong { .. } | Self::ChunkSectors { .. } | Self::ChunkType { .. } => {
                FaultKind::Unsupported
            }
            _ => FaultKind::Corrupt,
        }
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}
