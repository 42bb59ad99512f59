//! The header of a qcow image, every field once, and the entries of its L2 tables. All fields are big-endian.
//!
//! Source: the first qcow format as `qemu-img` 10.0.2 makes it; \[qcow2\] describes its successor.

use nom::bytes::complete::take;
use nom::number::complete::{be_u8, be_u32, be_u64};
use nom::{IResult, Parser};

use super::QcowError;

/// Bytes of the header.
pub const HEADER_LEN: usize = 48;

/// What an image begins with: `QFI`, 0xfb.
pub const MAGIC: u32 = 0x5146_49fb;

/// Bytes of a backing file's name at the most.
pub const BACKING_LEN_MAX: u32 = 1023;

/// Entries of an L1 table at the most: it is held in memory.
pub const L1_ENTRIES_MAX: u64 = 8 << 20;

/// The bit of an entry whose cluster is compressed.
const COMPRESSED: u64 = 1 << 63;

/// The header.
///
/// | bytes  | field        | unit, limits                                    |
/// |--------|--------------|-------------------------------------------------|
/// | 0..4   | magic        | `QFI\xfb`                                       |
/// | 4..8   | version      | 1                                               |
/// | 8..16  | backing_at   | bytes, 0 without a backing file                 |
/// | 16..20 | backing_len  | bytes of its name                               |
/// | 20..24 | mtime        | of the backing file: 0                          |
/// | 24..32 | size         | bytes of the disk                               |
/// | 32..33 | cluster_bits | log2 bytes, 9 to 16                             |
/// | 33..34 | l2_bits      | log2 entries of an L2 table, 6 to 13            |
/// | 34..36 | padding      |                                                 |
/// | 36..40 | crypt_method | 0 none, 1 AES                                   |
/// | 40..48 | l1_at        | bytes                                           |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Where the name of the backing file is, and its bytes; none without one.
    pub backing: Option<(u64, u32)>,
    /// Of the backing file.
    pub mtime: u32,
    /// Bytes of the disk.
    pub size: u64,
    /// log2 bytes of a cluster.
    pub cluster_bits: u8,
    /// log2 entries of an L2 table.
    pub l2_bits: u8,
    /// Unused.
    pub padding: u16,
    /// Whether the data is encrypted.
    pub encrypted: bool,
    /// Where the L1 table is.
    pub l1_at: u64,
}

type Raw = (u32, u32, u64, u32, u32, u64, u8, u8, u16, u32, u64);

fn raw_header(input: &[u8]) -> IResult<&[u8], Raw> {
    let (rest, (magic, version, backing_at, backing_len, mtime)) =
        (be_u32, be_u32, be_u64, be_u32, be_u32).parse(input)?;
    let (rest, (size, cluster_bits, l2_bits, padding)) = (be_u64, be_u8, be_u8, take(2usize)).parse(rest)?;
    let (rest, (crypt, l1_at)) = (be_u32, be_u64).parse(rest)?;
    let padding = u16::from_be_bytes(padding.try_into().expect("two bytes"));
    let raw =
        (magic, version, backing_at, backing_len, mtime, size, cluster_bits, l2_bits, padding, crypt, l1_at);
    Ok((rest, raw))
}

impl Header {
    /// Parses the first bytes of a file.
    ///
    /// # Errors
    /// What is damaged, or not supported.
    pub fn parse(bytes: &[u8]) -> Result<Self, QcowError> {
        let Ok((_, raw)) = raw_header(bytes) else {
            return Err(QcowError::HeaderTooShort { len: bytes.len() as u64 });
        };
        let (
            magic,
            version,
            backing_at,
            backing_len,
            mtime,
            size,
            cluster_bits,
            l2_bits,
            padding,
            crypt,
            l1_at,
        ) = raw;
        if magic != MAGIC {
            return Err(QcowError::NotQcow { found: magic });
        }
        if version != 1 {
            return Err(QcowError::Version { found: version });
        }
        if size <= 1 {
            return Err(QcowError::TooSmall { found: size });
        }
        if !(9..=16).contains(&cluster_bits) {
            return Err(QcowError::ClusterBits { found: cluster_bits });
        }
        if !(6..=13).contains(&l2_bits) {
            return Err(QcowError::TableBits { found: l2_bits });
        }
        if crypt > 1 {
            return Err(QcowError::Crypt { found: crypt });
        }
        let backing = (backing_at != 0).then_some((backing_at, backing_len));
        if let Some((_, len @ BACKING_LEN_MAX..)) = backing
            && len > BACKING_LEN_MAX
        {
            return Err(QcowError::BackingLen { len: len.into(), max: BACKING_LEN_MAX.into() });
        }
        let encrypted = crypt == 1;
        let header = Self { backing, mtime, size, cluster_bits, l2_bits, padding, encrypted, l1_at };
        let entries = header.l1_entries();
        if entries > L1_ENTRIES_MAX || size > i64::MAX as u64 {
            return Err(QcowError::TooLarge { size, entries, max: L1_ENTRIES_MAX });
        }
        Ok(header)
    }

    /// The exact inverse, but for the length of a name that is nowhere.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        let (backing_at, backing_len) = self.backing.unwrap_or_default();
        bytes[0..4].copy_from_slice(&MAGIC.to_be_bytes());
        bytes[4..8].copy_from_slice(&1u32.to_be_bytes());
        bytes[8..16].copy_from_slice(&backing_at.to_be_bytes());
        bytes[16..20].copy_from_slice(&backing_len.to_be_bytes());
        bytes[20..24].copy_from_slice(&self.mtime.to_be_bytes());
        bytes[24..32].copy_from_slice(&self.size.to_be_bytes());
        bytes[32] = self.cluster_bits;
        bytes[33] = self.l2_bits;
        bytes[34..36].copy_from_slice(&self.padding.to_be_bytes());
        bytes[36..40].copy_from_slice(&u32::from(self.encrypted).to_be_bytes());
        bytes[40..48].copy_from_slice(&self.l1_at.to_be_bytes());
        bytes
    }

    /// Bytes of a cluster.
    pub fn cluster_len(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Entries of the L1 table.
    pub fn l1_entries(&self) -> u64 {
        self.size.div_ceil(1 << (self.cluster_bits + self.l2_bits))
    }

    /// What an L2 entry says.
    pub(super) fn entry(&self, raw: u64) -> RawEntry {
        // The length of what is compressed stands above its place.
        let bits = 63 - u32::from(self.cluster_bits);
        match raw {
            0 => RawEntry::Unallocated,
            raw if raw & COMPRESSED == 0 => RawEntry::Data(raw),
            raw => RawEntry::Packed { at: raw & ((1 << bits) - 1), len: (raw & !COMPRESSED) >> bits },
        }
    }

    /// The entry of a compressed cluster; none where place or length do not fit.
    pub(super) fn packed_entry(&self, at: u64, len: u64) -> Option<u64> {
        let bits = 63 - u32::from(self.cluster_bits);
        (at < 1 << bits && len < self.cluster_len()).then_some(COMPRESSED | len << bits | at)
    }
}

/// An entry of an L2 table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RawEntry {
    Unallocated,
    Data(u64),
    Packed { at: u64, len: u64 },
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: Header = Header {
        backing: None,
        mtime: 0,
        size: 100 << 20,
        cluster_bits: 12,
        l2_bits: 9,
        padding: 0,
        encrypted: false,
        l1_at: 48,
    };

    proptest! {
        #[test]
        fn parse_is_the_inverse_of_encode(size in 2u64..1 << 44, cluster_bits in 9u8..17, l2_bits in 6u8..14,
                                          at in 1u64.., len in 0u32..1024, named: bool, mtime: u32) {
            let backing = named.then_some((at, len));
            let header = Header { backing, size, cluster_bits, l2_bits, mtime, ..GOOD };
            match Header::parse(&header.encode()) {
                Ok(parsed) => prop_assert_eq!(parsed, header),
                Err(_) => prop_assert!(header.l1_entries() > L1_ENTRIES_MAX),
            }
        }

        #[test]
        fn any_bytes_are_parsed_or_refused(mut bytes: Vec<u8>) {
            bytes.resize(HEADER_LEN, 0);
            bytes[..8].copy_from_slice(b"QFI\xfb\0\0\0\x01");
            let _ = Header::parse(&bytes);
        }

        #[test]
        fn an_entry_is_what_it_was(at in 0u64..1 << 47, len in 0u64..512, cluster_bits in 9u8..17) {
            let header = Header { cluster_bits, ..GOOD };
            let entry = header.packed_entry(at, len).map(|raw| header.entry(raw));
            prop_assert_eq!(entry, (at < 1 << (63 - u32::from(cluster_bits))).then_some(RawEntry::Packed { at, len }));
        }
    }

    #[test]
    fn limits_are_told() {
        let check = |header: Header, expected: &str| {
            let said = Header::parse(&header.encode()).expect_err("illegal").to_string();
            assert!(said.starts_with(expected), "{said}");
        };
        check(Header { size: 1, ..GOOD }, "Image size is too small (must be at least 2 bytes)");
        check(Header { size: u64::MAX, ..GOOD }, "Image too large");
        check(Header { cluster_bits: 17, ..GOOD }, "Cluster size must be between 512 and 64k");
        check(Header { l2_bits: 5, ..GOOD }, "L2 table size must be between 512 and 64k");
        check(Header { backing: Some((48, 1024)), ..GOOD }, "Backing file name too long");
    }
}
