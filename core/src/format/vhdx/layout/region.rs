//! The region table, of which there are two copies. Source: \[VHDX\] 2.2.3.

use nom::bytes::complete::take;
use nom::number::complete::{le_u32, le_u64};
use nom::{IResult, Parser};

use super::{Guid, MIB, seal, sealed};
use crate::format::vhdx::VhdxError;

/// Bytes of a region table.
pub const REGION_TABLE_LEN: usize = 64 << 10;

/// Where the two copies are.
pub const REGION_TABLES_AT: [u64; 2] = [192 << 10, 256 << 10];

const SIGNATURE: &[u8; 4] = b"regi";

/// What fits in a table.
const ENTRIES_MAX: u32 = 2047;

const BAT: Guid = Guid::new(0x2dc2_7766, 0xf623, 0x4200, 0x9d64_115e_9bfd_4a08);
const METADATA: Guid = Guid::new(0x8b7c_a206, 0x4790, 0x4b9a, 0xb8fe_575f_050f_886e);

/// A part of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// First byte.
    pub at: u64,
    /// Bytes.
    pub len: u64,
}

impl Region {
    /// The byte behind it.
    pub fn end(self) -> u64 {
        self.at + self.len
    }
}

/// A region table: header and entries.
///
/// | bytes         | field    | unit, limits                     |
/// |---------------|----------|----------------------------------|
/// | 0..4          | signature | `regi`                          |
/// | 4..8          | checksum | CRC-32C of the 64 KiB            |
/// | 8..12         | count    | at most 2047                     |
/// | 12..16        | reserved | 0                                |
/// | 16 + 32 i ..  | entry    | GUID, offset u64, length u32, flags u32 (bit 0: required) |
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionTable(pub Vec<(Guid, Region, u32)>);

/// The regions that are known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Regions {
    /// The block allocation table.
    pub bat: Region,
    /// The metadata.
    pub metadata: Region,
    /// Those that may be ignored.
    pub others: Vec<Region>,
}

fn raw_entry(input: &[u8]) -> IResult<&[u8], (Guid, u64, u32, u32)> {
    let (rest, (guid, at, len, flags)) = (take(16usize), le_u64, le_u32, le_u32).parse(input)?;
    Ok((rest, (Guid(guid.try_into().expect("sixteen bytes")), at, len, flags)))
}

impl RegionTable {
    /// The table of a new file.
    pub fn new(bat: Region, metadata: Region) -> Self {
        Self(vec![(BAT, bat, 1), (METADATA, metadata, 1)])
    }

    /// Parses the 64 KiB of the copy at `at`.
    ///
    /// # Errors
    /// What is damaged.
    pub fn parse(at: u64, bytes: &[u8]) -> Result<Self, VhdxError> {
        const TABLE: &str = "region table";
        let field =
            |field, found, expected| Err(VhdxError::Field { structure: TABLE, at, field, found, expected });
        if bytes.len() != REGION_TABLE_LEN {
            return field("length", bytes.len() as u64, "65536 bytes");
        }
        if bytes[..4] != *SIGNATURE {
            let found = u32::from_be_bytes(bytes[..4].try_into().expect("four bytes"));
            return field("signature", u64::from(found), "'regi'");
        }
        sealed(TABLE, at, bytes)?;
        let count = super::u32_at(bytes, 8);
        if count > ENTRIES_MAX {
            return field("entry count", u64::from(count), "at most 2047");
        }
        let mut entries = Vec::with_capacity(count as usize);
        let mut rest = &bytes[16..];
        for _ in 0..count {
            let Ok((next, (guid, region_at, len, flags))) = raw_entry(rest) else {
                return field("entry count", u64::from(count), "what fits in 64 KiB");
            };
            rest = next;
            if region_at < MIB || !region_at.is_multiple_of(MIB) || region_at > super::FILE_MAX {
                return field("region offset", region_at, "whole MiB, at least one, and at most 128 TiB");
            }
            let len = u64::from(len);
            if len == 0 || !len.is_multiple_of(MIB) {
                return field("region length", len, "whole MiB, and at least one");
            }
            entries.push((guid, Region { at: region_at, len }, flags));
        }
        Ok(Self(entries))
    }

    /// The exact inverse.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(REGION_TABLE_LEN);
        bytes.extend(SIGNATURE);
        bytes.extend([0; 4]);
        bytes.extend((self.0.len() as u32).to_le_bytes());
        bytes.extend([0; 4]);
        for (guid, region, flags) in &self.0 {
            bytes.extend(guid.0);
            bytes.extend(region.at.to_le_bytes());
            bytes.extend(u32::try_from(region.len).expect("the field has 32 bits").to_le_bytes());
            bytes.extend(flags.to_le_bytes());
        }
        bytes.resize(REGION_TABLE_LEN, 0);
        seal(&mut bytes);
        bytes
    }

    /// Finds the regions that a reader needs.
    ///
    /// # Errors
    /// When one is missing, there twice, or required and not known.
    pub fn regions(&self) -> Result<Regions, VhdxError> {
        let (mut bat, mut metadata, mut others) = (None, None, Vec::new());
        for (guid, region, flags) in &self.0 {
            let known = match *guid {
                BAT => Some((&mut bat, "BAT region")),
                METADATA => Some((&mut metadata, "metadata region")),
                _ => None,
            };
            match known {
                Some((slot, what)) => {
                    if slot.replace(*region).is_some() {
                        return Err(VhdxError::Twice { what });
                    }
                }
                None if flags & 1 != 0 => {
                    return Err(VhdxError::Unknown { what: "region", guid: *guid });
                }
                None => others.push(*region),
            }
        }
        let bat = bat.ok_or(VhdxError::Missing { what: "BAT region" })?;
        let metadata = metadata.ok_or(VhdxError::Missing { what: "metadata region" })?;
        Ok(Regions { bat, metadata, others })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn parse_is_the_inverse_of_encode(entries in prop::collection::vec((any::<[u8; 16]>(), 1u64..1 << 20, 1u64..4096, any::<u32>()), 0..20)) {
            let entry = |(guid, at, len, flags)| (Guid(guid), Region { at: at * MIB, len: len * MIB }, flags);
            let table = RegionTable(entries.into_iter().map(entry).collect());
            prop_assert_eq!(RegionTable::parse(0, &table.encode()), Ok(table));
        }
    }

    #[test]
    fn what_a_reader_needs_must_be_there_once() {
        let region = |at| Region { at: at * MIB, len: MIB };
        let (bat, metadata) = ((BAT, region(2), 0), (METADATA, region(3), 1));
        let other = |flags| (Guid([1; 16]), region(4), flags);
        let check = |entries: &[_], expected: &str| {
            let found = RegionTable(entries.to_vec()).regions();
            assert_eq!(found.expect_err("illegal").to_string(), expected);
        };
        check(&[bat], "the metadata region is missing");
        check(&[metadata], "the BAT region is missing");
        check(&[bat, metadata, bat], "the BAT region is there twice");
        check(
            &[bat, metadata, other(1)],
            "region 01010101-0101-0101-0101-010101010101 is required, and not known",
        );
        let found = RegionTable(vec![bat, other(0), metadata]).regions().expect("legal");
        assert_eq!(found, Regions { bat: region(2), metadata: region(3), others: vec![region(4)] });
    }

    #[test]
    fn limits_are_told() {
        let good = RegionTable::new(Region { at: MIB, len: MIB }, Region { at: 2 * MIB, len: MIB }).encode();
        let check = |at: usize, value: u32, expected: &str| {
            let mut bytes = good.clone();
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
            seal(&mut bytes);
            let found = RegionTable::parse(196_608, &bytes).expect_err("illegal").to_string();
            assert_eq!(found, format!("region table at byte 196608: {expected}"));
        };
        check(8, 2048, "entry count is 0x800, expected at most 2047");
        check(32, 512, "region offset is 0x200, expected whole MiB, at least one, and at most 128 TiB");
        check(40, 0, "region length is 0x0, expected whole MiB, and at least one");
    }
}
