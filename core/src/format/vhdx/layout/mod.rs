//! The structures of a VHDX file, every field once. All fields are little-endian.
//!
//! ```text
//!   0        64K       128K      192K            256K            1M
//!   │ file   │ header  │ header  │ region table  │ region table  │ log, BAT, metadata region, blocks,
//!   │ type   │ 1       │ 2       │ 1             │ 2             │ in any order, each at whole MiB
//! ```
//!
//! Checksums are CRC-32C of the whole structure with the checksum's own four bytes, 4..8 of it, taken as zeros.
//!
//! Source: \[VHDX\] 2, and files of Hyper-V and `qemu-img` 10.0.2.

mod bat;
mod guid;
mod header;
mod log;
mod metadata;
mod region;

pub use bat::{BitmapEntry, PayloadEntry};
pub use guid::Guid;
pub use header::{HEADER_LEN, HEADERS_AT, Header, current};
pub use log::{DESCRIPTORS_AT, Descriptor, EntryHeader, SECTOR, data_sector, encode_entry, sectors_of_entry};
pub use metadata::{Item, Locator, METADATA_TABLE_LEN, Metadata, MetadataTable, TableEntry};
pub use region::{REGION_TABLE_LEN, REGION_TABLES_AT, Region, RegionTable, Regions};

use super::VhdxError;

/// All places and lengths in the file are whole ones of these.
pub const MIB: u64 = 1 << 20;

/// At byte 0. Source: \[VHDX\] 2.2.1.
pub const SIGNATURE: &[u8; 8] = b"vhdxfile";

/// Sectors whose bits are in one sector bitmap block. Source: \[VHDX\] 2.4.
pub const CHUNK_SECTORS: u64 = 1 << 23;

/// Bytes of a disk at the most. Source: \[VHDX\] 2.6.2.2.
pub const DISK_MAX: u64 = 64 << 40;

/// Bytes of a file at the most: twice the largest disk.
pub const FILE_MAX: u64 = 128 << 40;

/// The checksum of a structure that has it at bytes 4..8.
pub fn checksum(bytes: &[u8]) -> u32 {
    let sum = crc32c::crc32c(&bytes[..4]);
    crc32c::crc32c_append(crc32c::crc32c_append(sum, &[0; 4]), &bytes[8..])
}

/// Writes the checksum into a structure.
fn seal(bytes: &mut [u8]) {
    let sum = checksum(bytes);
    bytes[4..8].copy_from_slice(&sum.to_le_bytes());
}

/// Wants the right checksum in a structure.
fn sealed(structure: &'static str, at: u64, bytes: &[u8]) -> Result<(), VhdxError> {
    let found = u32_at(bytes, 4);
    let expected = checksum(bytes);
    if found == expected { Ok(()) } else { Err(VhdxError::Checksum { structure, at, found, expected }) }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

/// Bytes of the file type identifier that are used. Source: \[VHDX\] 2.2.1.
pub fn encode_file_type() -> Vec<u8> {
    let mut bytes = SIGNATURE.to_vec();
    bytes.extend("Drystone".encode_utf16().flat_map(u16::to_le_bytes));
    bytes.resize(4096, 0);
    bytes
}
