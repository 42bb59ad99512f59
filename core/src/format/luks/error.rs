//! What can be wrong with a LUKS volume, or with what is asked of one.

use crate::crypto::CipherError;
use crate::error::{FaultKind, FormatError};

/// An error of LUKS. Texts that scripts know from `qemu-img` begin with its words.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the message beside each variant says what its fields are")]
pub enum LuksError {
    #[error("Volume is not in LUKS format")]
    NotLuks,
    #[error("LUKS version {found} is not supported; 1 and 2 are")]
    Version { found: u16 },
    #[error("the header needs {needed} bytes, the file has {len}")]
    TooShort { needed: u64, len: u64 },
    #[error("LUKS header {field} at byte {at} is not NUL terminated")]
    Unterminated { field: &'static str, at: u64 },
    #[error("LUKS header {field} at byte {at} is no text")]
    NoText { field: &'static str, at: u64 },
    #[error("Unexpected cipher mode string format '{found}'")]
    CipherMode { found: String },
    #[error("header field {field} at byte {at}: found {found}, expected {expected}")]
    Field { field: &'static str, at: u64, found: u64, expected: String },
    #[error(
        "Keyslot {slot} state {found:#010x} at byte {at} is corrupt: it is neither 0x00ac71f3 nor 0x0000dead"
    )]
    SlotState { slot: usize, at: u64, found: u32 },
    #[error("Keyslot {slot} is corrupted (stripes count {found} != 4000)")]
    Stripes { slot: usize, found: u32 },
    #[error("Keyslot {slot} iteration count is zero")]
    NoIterations { slot: usize },
    #[error("Keyslot {slot} (sectors {start} to {end}) is overlapping with the LUKS header")]
    SlotInHeader { slot: usize, start: u64, end: u64 },
    #[error(
        "Keyslot {slot} (sectors {start} to {end}) is overlapping with the encrypted payload at {payload}"
    )]
    SlotInPayload { slot: usize, start: u64, end: u64, payload: u64 },
    #[error("Keyslots {first} and {second} are overlapping in the header")]
    SlotsOverlap { first: usize, second: usize },
    #[error("keyslot {slot}: its key material ends at byte {end}, and the file at {len}")]
    SlotBeyondEnd { slot: usize, end: u64, len: u64 },
    #[error("{what} asks for {found} iterations, and {max} are the most that are done")]
    Iterations { what: &'static str, found: u32, max: u32 },
    #[error(
        "keyslot {slot} asks for {asks}, a cost of {cost}; with {spent} spent on the slots before it, that is more than the {max} \
         that are spent on opening a volume"
    )]
    Work { slot: u32, asks: String, cost: u64, spent: u64, max: u64 },
    #[error(
        "the first copy of the LUKS2 header was overwritten with something else, and changing keyslots would overwrite that; \
         restore it from the second copy if it is not needed"
    )]
    ForeignPrimary,
    #[error("the Argon2 parameters ask for {found} {what}, and {max} are the most that are taken")]
    Argon2 { what: &'static str, found: u64, max: u64 },
    #[error(
        "Argon2 made no key with {memory_kib} KiB of memory, {passes} passes and {lanes} lanes: they do not go together, or there \
         is not that much memory"
    )]
    Argon2Failed { memory_kib: u32, passes: u32, lanes: u32 },
    #[error("Hash algorithm '{0}' is not supported")]
    Hash(String),
    #[error(transparent)]
    Cipher(#[from] CipherError),
    #[error("Invalid password, cannot unlock any keyslot")]
    Password,
    #[error("Parameter '{0}key-secret' is required for cipher")]
    NoSecret(&'static str),
    #[error("LUKS payload is overlapping with the header")]
    PayloadInHeader,
    #[error("the volume begins at byte {offset}, behind the end of the file at {len}")]
    Payload { offset: u64, len: u64 },
    #[error("both copies of the LUKS2 header are damaged; at 0: {first}; the second: {second}")]
    BothCopies { first: String, second: String },
    #[error("LUKS2 header at byte {at}: checksum {found} does not match its content, {expected} would")]
    Checksum { at: u64, found: String, expected: String },
    #[error("LUKS2 metadata: {place}: found {found}, expected {expected}")]
    Json { place: String, found: String, expected: &'static str },
    #[error("LUKS2 metadata is too long: {len} bytes, and the header has room for {room}")]
    JsonTooLong { len: usize, room: u64 },
    #[error("keyslot {slot} cannot be used: {why}")]
    Unusable { slot: u32, why: String },
    #[error("the payload cannot be used: {0}")]
    Segments(String),
    #[error("the volume requires '{0}', which is not supported; only its metadata can be looked at")]
    Requirement(String),
    #[error("{0}")]
    Option(String),
}

impl FormatError for LuksError {
    fn kind(&self) -> FaultKind {
        match self {
            Self::Version { .. }
            | Self::Hash(_)
            | Self::Cipher(_)
            | Self::Iterations { .. }
            | Self::Work { .. }
            | Self::ForeignPrimary
            | Self::Argon2 { .. }
            | Self::Unusable { .. }
            | Self::Segments(_)
            | Self::Requirement(_) => FaultKind::Unsupported,
            Self::Password | Self::NoSecret(_) | Self::Option(_) | Self::JsonTooLong { .. } => {
                FaultKind::Misuse
            }
            _ => FaultKind::Corrupt,
        }
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}
