//! Entries of the log: a ring of sectors of 4096 bytes. Source: \[VHDX\] 2.3.
//!
//! ```text
//!   ┌─────────────────────────────┬───────────────────┬─────────────┬─────────────┬──
//!   │ entry header, 126 descriptors │ 128 descriptors … │ data sector │ data sector │ …
//!   └─────────────────────────────┴───────────────────┴─────────────┴─────────────┴──
//! ```
//!
//! A data descriptor keeps the first 8 and the last 4 bytes of its sector, where the data sector has its signature and
//! sequence number.

use nom::bytes::complete::take;
use nom::number::complete::{le_u32, le_u64};
use nom::{IResult, Parser};

use super::{Guid, seal};
use crate::buf::Buf;
use crate::format::HostOffset;

/// Bytes of a sector of the log, and of what a data descriptor changes.
pub const SECTOR: usize = 4096;

/// Where the descriptors of an entry begin.
pub const DESCRIPTORS_AT: usize = 64;

/// Bytes of a descriptor.
const DESCRIPTOR_LEN: usize = 32;

const SIGNATURE: &[u8; 4] = b"loge";
const DATA: &[u8; 4] = b"data";

/// The header of an entry: 64 bytes.
///
/// | bytes  | field    | unit, limits                                                       |
/// |--------|----------|--------------------------------------------------------------------|
/// | 0..4   | signature | `loge`                                                            |
/// | 4..8   | checksum | CRC-32C of the whole entry                                         |
/// | 8..12  | len      | bytes, whole sectors                                               |
/// | 12..16 | tail     | place in the ring of the first entry that is to be replayed         |
/// | 16..24 | sequence | that of the entry before, and one                                  |
/// | 24..28 | descriptors | how many follow                                                 |
/// | 28..32 | reserved | 0                                                                  |
/// | 32..48 | log      | GUID, as in the header                                             |
/// | 48..56 | flushed_len | bytes of the file that were durable before                       |
/// | 56..64 | last_len | bytes that the file must have afterwards                            |
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryHeader {
    /// CRC-32C of the whole entry.
    pub checksum: u32,
    /// Bytes of the entry.
    pub len: u64,
    /// Place in the ring of the first entry that is to be replayed.
    pub tail: u64,
    /// One more than that of the entry before.
    pub sequence: u64,
    /// How many descriptors follow.
    pub descriptors: u32,
    /// Which log this is a part of.
    pub log: Guid,
    /// Bytes of the file that were durable before.
    pub flushed_len: u64,
    /// Bytes that the file must have afterwards.
    pub last_len: u64,
}

fn raw_header(input: &[u8]) -> IResult<&[u8], (&[u8], EntryHeader)> {
    let (rest, (signature, checksum, len, tail)) = (take(4usize), le_u32, le_u32, le_u32).parse(input)?;
    let (rest, (sequence, descriptors, _reserved, log)) =
        (le_u64, le_u32, le_u32, take(16usize)).parse(rest)?;
    let (rest, (flushed_len, last_len)) = (le_u64, le_u64).parse(rest)?;
    let log = Guid(log.try_into().expect("sixteen bytes"));
    let (len, tail) = (u64::from(len), u64::from(tail));
    let header = EntryHeader { checksum, len, tail, sequence, descriptors, log, flushed_len, last_len };
    Ok((rest, (signature, header)))
}

impl EntryHeader {
    /// Parses the first bytes of a sector of a ring of `ring_len` bytes; none where no entry can begin so.
    pub fn parse(bytes: &[u8], ring_len: u64) -> Option<Self> {
        let (_, (signature, header)) = raw_header(bytes).ok()?;
        let sectors = |len: u64| len.is_multiple_of(SECTOR as u64);
        let legal = signature == SIGNATURE
            && sectors(header.len)
            && sectors(header.tail)
            && header.tail < ring_len
            && header.sequence > 0
            && (descriptor_sectors(u64::from(header.descriptors)) * SECTOR as u64..=ring_len)
                .contains(&header.len);
        legal.then_some(header)
    }
}

/// What an entry changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Descriptor {
    /// A sector: `desc`, the last 4 bytes of the sector, its first 8, its place, the sequence number.
    Data {
        /// The first bytes of the sector.
        leading: [u8; 8],
        /// The last bytes of the sector.
        trailing: [u8; 4],
        /// Where it is.
        at: HostOffset,
        /// That of the entry.
        sequence: u64,
    },
    /// Zeros: `zero`, reserved u32, length u64, place u64, the sequence number.
    Zero {
        /// Bytes, whole sectors.
        len: u64,
        /// Where they are.
        at: HostOffset,
        /// That of the entry.
        sequence: u64,
    },
}

impl Descriptor {
    /// Parses 32 bytes; none where they are no descriptor.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let fields: IResult<&[u8], _> =
            (take(4usize), take(4usize), take(8usize), le_u64, le_u64).parse(bytes);
        let (_, (signature, trailing, leading, at, sequence)) = fields.ok()?;
        let leading: [u8; 8] = leading.try_into().expect("eight bytes");
        if !at.is_multiple_of(SECTOR as u64) {
            return None;
        }
        let at = HostOffset(at);
        match signature {
            b"desc" => {
                let trailing = trailing.try_into().expect("four bytes");
                Some(Self::Data { leading, trailing, at, sequence })
            }
            b"zero" => {
                let len = u64::from_le_bytes(leading);
                len.is_multiple_of(SECTOR as u64).then_some(Self::Zero { len, at, sequence })
            }
            _ => None,
        }
    }

    /// The exact inverse.
    pub fn encode(&self) -> [u8; DESCRIPTOR_LEN] {
        let mut bytes = [0; DESCRIPTOR_LEN];
        let (signature, trailing, leading, at, sequence) = match *self {
            Self::Data { leading, trailing, at, sequence } => (b"desc", trailing, leading, at, sequence),
            Self::Zero { len, at, sequence } => (b"zero", [0; 4], len.to_le_bytes(), at, sequence),
        };
        bytes[..4].copy_from_slice(signature);
        bytes[4..8].copy_from_slice(&trailing);
        bytes[8..16].copy_from_slice(&leading);
        bytes[16..24].copy_from_slice(&at.0.to_le_bytes());
        bytes[24..].copy_from_slice(&sequence.to_le_bytes());
        bytes
    }

    /// That of the entry.
    pub fn sequence(&self) -> u64 {
        match self {
            Self::Data { sequence, .. } | Self::Zero { sequence, .. } => *sequence,
        }
    }
}

/// What a data descriptor and its data sector make of a sector of the file; none where the data sector is not whole.
pub fn data_sector(sector: &[u8], leading: [u8; 8], trailing: [u8; 4], sequence: u64) -> Option<Buf> {
    let (high, low) = ((sequence >> 32) as u32, sequence as u32);
    let whole = sector.len() == SECTOR
        && sector[..4] == *DATA
        && sector[4..8] == high.to_le_bytes()
        && sector[SECTOR - 4..] == low.to_le_bytes();
    whole.then(|| {
        let mut bytes = Buf::from(sector);
        bytes[..8].copy_from_slice(&leading);
        bytes[SECTOR - 4..].copy_from_slice(&trailing);
        bytes
    })
}

/// Sectors of an entry header and its descriptors.
fn descriptor_sectors(descriptors: u64) -> u64 {
    (DESCRIPTORS_AT as u64 + descriptors * DESCRIPTOR_LEN as u64).div_ceil(SECTOR as u64)
}

/// Sectors of an entry that changes so many sectors.
pub fn sectors_of_entry(changed: u64) -> u64 {
    descriptor_sectors(changed) + changed
}

/// The bytes of an entry that changes these sectors of the file. Length, checksum and count of descriptors follow from them.
pub fn encode_entry(header: &EntryHeader, sectors: &[(HostOffset, Buf)]) -> Vec<u8> {
    let count = sectors.len() as u64;
    let len = sectors_of_entry(count) as usize * SECTOR;
    let mut bytes = Vec::with_capacity(len);
    bytes.extend(SIGNATURE);
    bytes.extend([0; 4]);
    bytes.extend((len as u32).to_le_bytes());
    bytes.extend(u32::try_from(header.tail).expect("a place in a ring of 32 bits").to_le_bytes());
    bytes.extend(header.sequence.to_le_bytes());
    bytes.extend((count as u32).to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend(header.log.0);
    bytes.extend(header.flushed_len.to_le_bytes());
    bytes.extend(header.last_len.to_le_bytes());
    for (at, sector) in sectors {
        let leading = sector[..8].try_into().expect("eight bytes");
        let trailing = sector[SECTOR - 4..].try_into().expect("four bytes");
        bytes.extend(Descriptor::Data { leading, trailing, at: *at, sequence: header.sequence }.encode());
    }
    bytes.resize(descriptor_sectors(count) as usize * SECTOR, 0);
    for (_, sector) in sectors {
        bytes.extend(DATA);
        bytes.extend(((header.sequence >> 32) as u32).to_le_bytes());
        bytes.extend(&sector[8..SECTOR - 4]);
        bytes.extend((header.sequence as u32).to_le_bytes());
    }
    seal(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::format::vhdx::layout::checksum;

    proptest! {
        #[test]
        fn an_entry_says_what_was_put_in(
            sequence in 1u64.., tail in 0u64..256, guid: [u8; 16], lens: (u64, u64),
            sectors in prop::collection::vec((0u64..1 << 40, any::<u8>()), 0..200),
        ) {
            let sector = |(at, fill): (u64, u8)| {
                let bytes: Vec<u8> = (0..SECTOR).map(|byte| fill.wrapping_add((byte * 31 / 7) as u8)).collect();
                (HostOffset(at * SECTOR as u64), Buf::from(bytes))
            };
            let sectors: Vec<_> = sectors.into_iter().map(sector).collect();
            let header = EntryHeader {
                checksum: 0,
                len: sectors_of_entry(sectors.len() as u64) * SECTOR as u64,
                tail: tail * SECTOR as u64,
                sequence,
                descriptors: sectors.len() as u32,
                log: Guid(guid),
                flushed_len: lens.0,
                last_len: lens.1,
            };
            let bytes = encode_entry(&header, &sectors);
            let parsed = EntryHeader::parse(&bytes, 1 << 20).expect("what was encoded");
            prop_assert_eq!(parsed.checksum, checksum(&bytes));
            prop_assert_eq!(&EntryHeader { checksum: 0, ..parsed }, &header);
            let mut data_at = descriptor_sectors(sectors.len() as u64) as usize * SECTOR;
            for (nth, (at, sector)) in sectors.iter().enumerate() {
                let raw = &bytes[DESCRIPTORS_AT + nth * DESCRIPTOR_LEN..][..DESCRIPTOR_LEN];
                let Some(Descriptor::Data { leading, trailing, at: found, sequence }) = Descriptor::parse(raw) else {
                    panic!("no data descriptor");
                };
                prop_assert_eq!(found, *at);
                let data = data_sector(&bytes[data_at..data_at + SECTOR], leading, trailing, sequence);
                prop_assert_eq!(&data.expect("whole")[..], &sector[..]);
                data_at += SECTOR;
            }
        }

        #[test]
        fn a_descriptor_is_parsed_as_it_is_encoded(len in 0u64..1 << 50, at in 0u64..1 << 50, sequence: u64) {
            let zero = Descriptor::Zero { len: len * 4096, at: HostOffset(at * 4096), sequence };
            prop_assert_eq!(Descriptor::parse(&zero.encode()), Some(zero));
            prop_assert_eq!(zero.sequence(), sequence);
        }
    }

    #[test]
    fn what_cannot_begin_an_entry_is_none() {
        let header = EntryHeader {
            checksum: 0,
            len: 4096,
            tail: 0,
            sequence: 1,
            descriptors: 0,
            log: Guid::NIL,
            flushed_len: 0,
            last_len: 0,
        };
        let good = encode_entry(&header, &[]);
        assert!(EntryHeader::parse(&good, 4096).is_some());
        for (at, value) in [(0, 1u32), (8, 0), (8, 513), (8, 8192), (12, 4096), (12, 1), (16, 0), (24, 127)] {
            let mut bytes = good.clone();
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
            assert!(EntryHeader::parse(&bytes, 4096).is_none(), "{value} at {at}");
        }
    }
}
