//! The log of dm-log-writes, all fields little-endian. Source: Linux, `Documentation/admin-guide/device-mapper/log-writes.rst`
//! and the structures of `drivers/md/dm-log-writes.c`.
//!
//! ```text
//!   sector 0    superblock
//!   sector 1    entry 0, its data in the sectors that follow; then entry 1, …
//! ```
//!
//! Entries and data begin at sectors of the log's own size, in which offsets and lengths count too.

use crate::filter::FilterError;

/// Spells `jsfwshr` backwards.
const MAGIC: u64 = 0x006a_7366_7773_6872;

/// The only version.
const VERSION: u64 = 1;

/// Bytes of a superblock, and of an entry, at the start of their sectors.
pub const HEAD_LEN: usize = 32;

/// Bytes of a sector of a log at the least.
pub(super) const SECTOR_MIN: u64 = 512;

/// At the most. Source: the reference's limit.
pub(super) const SECTOR_MAX: u64 = 8 << 20;

/// Start of the log.
///
/// | bytes  | field       |                          |
/// |--------|-------------|--------------------------|
/// | 0..8   | magic       | `0x6a736677736872`       |
/// | 8..16  | version     | 1                        |
/// | 16..24 | nr_entries  |                          |
/// | 24..28 | sectorsize  | bytes                    |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Entries that follow.
    pub entries: u64,
    /// Bytes of a sector of the log: a power of two.
    pub sector_size: u64,
}

/// What is written down of one request.
///
/// | bytes  | field      |                                           |
/// |--------|------------|-------------------------------------------|
/// | 0..8   | sector     | where the request begins                  |
/// | 8..16  | nr_sectors | how long it is                            |
/// | 16..24 | flags      | see [`flag`]                              |
/// | 24..32 | data_len   | bytes of a mark's name; 0 for all others  |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where the request begins.
    pub sector: u64,
    /// How long it is.
    pub sectors: u64,
    /// See [`flag`].
    pub flags: u64,
}

/// Bits of an entry's flags. The fourth, a mark made by hand, never comes from a request, and what is to be durable is a
/// write and a flush here.
pub mod flag {
    /// All that completed before is durable.
    pub const FLUSH: u64 = 1;
    /// The range's content is given up; no data follows.
    pub const DISCARD: u64 = 4;
}

fn le_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

impl Superblock {
    /// The bytes that [`parse`](Self::parse) reads.
    pub fn encode(&self) -> [u8; HEAD_LEN] {
        let mut bytes = [0; HEAD_LEN];
        bytes[0..8].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[8..16].copy_from_slice(&VERSION.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.entries.to_le_bytes());
        bytes[24..28].copy_from_slice(&(self.sector_size as u32).to_le_bytes());
        bytes
    }

    /// Parses the start of a log.
    ///
    /// # Errors
    /// What is no log, or one of another kind.
    pub fn parse(bytes: &[u8; HEAD_LEN]) -> Result<Self, FilterError> {
        if le_u64(bytes, 0) != MAGIC {
            return Err(FilterError::LogMagic);
        }
        match le_u64(bytes, 8) {
            VERSION => {}
            other => return Err(FilterError::LogVersion(other)),
        }
        let sector_size = le_u64(bytes, 24) & u64::from(u32::MAX);
        check_sector_size(sector_size)?;
        Ok(Self { entries: le_u64(bytes, 16), sector_size })
    }
}

/// Refuses a size that no log has.
pub(super) fn check_sector_size(size: u64) -> Result<(), FilterError> {
    match size.is_power_of_two() && (SECTOR_MIN..SECTOR_MAX).contains(&size) {
        true => Ok(()),
        false => Err(FilterError::LogSectorSize(size)),
    }
}

impl Entry {
    /// The bytes that [`parse`](Self::parse) reads.
    pub fn encode(&self) -> [u8; HEAD_LEN] {
        let mut bytes = [0; HEAD_LEN];
        bytes[0..8].copy_from_slice(&self.sector.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.sectors.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.flags.to_le_bytes());
        bytes
    }

    /// Parses an entry; all bytes are one.
    pub fn parse(bytes: &[u8; HEAD_LEN]) -> Self {
        Self { sector: le_u64(bytes, 0), sectors: le_u64(bytes, 8), flags: le_u64(bytes, 16) }
    }

    /// Sectors of data that follow.
    pub fn data_sectors(&self) -> u64 {
        if self.flags & flag::DISCARD != 0 { 0 } else { self.sectors }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_encoded_is_parsed(entries: u64, bits in 9u32..23, sector: u64, sectors: u64, flags in 0u64..16) {
            let superblock = Superblock { entries, sector_size: 1 << bits };
            prop_assert_eq!(Superblock::parse(&superblock.encode()).expect("legal"), superblock);
            let entry = Entry { sector, sectors, flags };
            prop_assert_eq!(Entry::parse(&entry.encode()), entry);
        }
    }

    #[test]
    fn what_is_no_log_is_refused() {
        let good = Superblock { entries: 1, sector_size: 512 }.encode();
        for (at, value) in [(0, 0), (8, 2), (25, 0), (25, 3), (27, 1)] {
            let mut bad = good;
            bad[at] = value;
            assert!(Superblock::parse(&bad).is_err(), "byte {at} is {value}");
        }
    }
}
