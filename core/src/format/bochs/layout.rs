//! The header of a growing Bochs image. All fields are little-endian.

use nom::bytes::complete::take;
use nom::number::complete::{le_u32, le_u64};
use nom::{IResult, Parser};

use super::BochsError;

/// Bytes of the header as it is read; the catalog follows where it says.
pub const HEADER_LEN: usize = 512;

const MAGIC: &[u8] = b"Bochs Virtual HD Image\0";
const REDOLOG: &[u8] = b"Redolog\0";
const GROWING: &[u8] = b"Growing\0";
const VERSION_1: u32 = 0x1_0000;
const VERSION_2: u32 = 0x2_0000;

const SECTOR: u64 = 512;
/// Entries of the catalog at the most. Source: `qemu-img`'s limit.
const ENTRIES_MAX: u32 = 0x10_0000;
/// Bytes of an extent at the most. Source: `qemu-img`'s limit.
const EXTENT_LEN_MAX: u32 = 0x80_0000;

/// An extent that was never written.
pub const UNALLOCATED: u32 = u32::MAX;

/// | bytes  | field      | unit, limits                                                        |
/// |--------|------------|---------------------------------------------------------------------|
/// | 0..32  | magic      | `Bochs Virtual HD Image`                                            |
/// | 32..48 | type       | `Redolog`                                                           |
/// | 48..64 | subtype    | `Growing`                                                           |
/// | 64..68 | version    | 0x10000 or 0x20000                                                  |
/// | 68..72 | header     | bytes: where the catalog is                                         |
/// | 72..76 | entries    | of the catalog: numbers of extents in the file, 0xffffffff for none |
/// | 76..80 | bitmap_len | bytes in front of each extent: a bit for each of its sectors        |
/// | 80..84 | extent_len | bytes, a power of two                                               |
/// | 84..88 | timestamp  | version 2 only                                                      |
/// | 88..96 | size       | bytes of the disk; at 84 in version 1                               |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Whether it is of the second version.
    pub second: bool,
    /// Where the catalog is.
    pub catalog_at: u32,
    /// How many entries it has.
    pub entries: u32,
    /// Bytes of the bitmap of an extent.
    pub bitmap_len: u32,
    /// Bytes of an extent.
    pub extent_len: u32,
    /// Bytes of the disk.
    pub size: u64,
}

/// Whether the first bytes of a file are a growing Bochs image's.
pub fn probe(head: &[u8]) -> bool {
    let text = |at: usize, text: &[u8]| head.get(at..).is_some_and(|rest| rest.starts_with(text));
    let version = head.get(64..68).map(|bytes| u32::from_le_bytes(bytes.try_into().expect("four bytes")));
    let known = matches!(version, Some(VERSION_1 | VERSION_2));
    text(0, MAGIC) && text(32, REDOLOG) && text(48, GROWING) && known
}

impl Header {
    /// Parses the first bytes of a file.
    ///
    /// # Errors
    /// What is damaged, or not supported.
    pub fn parse(bytes: &[u8]) -> Result<Self, BochsError> {
        let too_short = BochsError::HeaderTooShort { len: bytes.len() as u64 };
        if bytes.len() < HEADER_LEN {
            return Err(too_short);
        }
        for (at, text) in [(0, MAGIC), (32, REDOLOG), (48, GROWING)] {
            let found = &bytes[at..at + text.len()];
            if found != text {
                let found = String::from_utf8_lossy(found).trim_end_matches('\0').to_owned();
                return Err(BochsError::NotBochs { at: at as u32, found });
            }
        }
        fn fields(input: &[u8]) -> IResult<&[u8], (u32, u32, u32, u32, u32)> {
            (le_u32, le_u32, le_u32, le_u32, le_u32).parse(input)
        }
        let Ok((rest, fields)) = fields(&bytes[64..]) else { return Err(too_short) };
        let (version, catalog_at, entries, bitmap_len, extent_len) = fields;
        let second = match version {
            VERSION_1 => false,
            VERSION_2 => true,
            found => return Err(BochsError::Version { found }),
        };
        let timestamp = if second { 4usize } else { 0 };
        let size: IResult<&[u8], (&[u8], u64)> = (take(timestamp), le_u64).parse(rest);
        let Ok((_, (_, size))) = size else { return Err(too_short) };
        // Whole sectors, as the reference counts.
        let size = size / SECTOR * SECTOR;
        Self { second, catalog_at, entries, bitmap_len, extent_len, size }.checked()
    }

    fn checked(self) -> Result<Self, BochsError> {
        let Self { entries, bitmap_len, extent_len, size, .. } = self;
        if entries > ENTRIES_MAX {
            return Err(BochsError::CatalogTooLarge { found: entries, max: ENTRIES_MAX });
        }
        match extent_len {
            found if u64::from(found) < SECTOR => return Err(BochsError::ExtentTooSmall { found }),
            found if !found.is_power_of_two() => return Err(BochsError::ExtentNoPower { found }),
            found if found > EXTENT_LEN_MAX => {
                return Err(BochsError::ExtentTooLarge { found, max: EXTENT_LEN_MAX });
            }
            _ => {}
        }
        if size.div_ceil(u64::from(extent_len)) > u64::from(entries) {
            return Err(BochsError::CatalogTooSmall { entries, extent_len, size });
        }
        if (u64::from(extent_len) / SECTOR).div_ceil(8) > u64::from(bitmap_len) {
            return Err(BochsError::Bitmap { found: bitmap_len, extent_len });
        }
        Ok(self)
    }

    /// A header that parses to this.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        for (at, text) in [(0, MAGIC), (32, REDOLOG), (48, GROWING)] {
            bytes[at..at + text.len()].copy_from_slice(text);
        }
        let version = if self.second { VERSION_2 } else { VERSION_1 };
        let words = [version, self.catalog_at, self.entries, self.bitmap_len, self.extent_len];
        for (at, word) in (64..).step_by(4).zip(words) {
            bytes[at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
        let at = if self.second { 88 } else { 84 };
        bytes[at..at + 8].copy_from_slice(&self.size.to_le_bytes());
        bytes
    }

    /// The byte behind the catalog.
    pub fn catalog_end(&self) -> u64 {
        u64::from(self.catalog_at) + 4 * u64::from(self.entries)
    }

    /// Bytes of a bitmap with what fills up its last sector.
    pub fn bitmap_space(&self) -> u64 {
        u64::from(self.bitmap_len).next_multiple_of(SECTOR)
    }

    /// Where the bitmap of an extent is, by its number in the file; the extent follows. Nothing overflows: a number and the
    /// bytes of an extent with its bitmap have 32 bits each, and some.
    pub fn bitmap_at(&self, number: u32) -> u64 {
        self.catalog_end() + u64::from(number) * (self.bitmap_space() + u64::from(self.extent_len))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sound() -> Header {
        let (entries, bitmap_len, extent_len) = (512, 1, 4096);
        Header { second: true, catalog_at: 512, entries, bitmap_len, extent_len, size: 1_032_192 }
    }

    proptest! {
        #[test]
        fn headers_survive_encoding(second: bool, catalog_at: u32, entries in 1..=ENTRIES_MAX, bits in 9..=23u32, more: u16) {
            let extent_len = 1 << bits;
            let bitmap_len = (extent_len / 4096).max(1) + u32::from(more);
            let size = u64::from(entries) * u64::from(extent_len);
            let header = Header { second, catalog_at, entries, bitmap_len, extent_len, size };
            let bytes = header.encode();
            prop_assert!(probe(&bytes));
            prop_assert_eq!(Header::parse(&bytes), Ok(header));
        }
    }

    #[test]
    fn damaged_headers_are_refused() {
        let check = |header: Header, expected| assert_eq!(Header::parse(&header.encode()), Err(expected));
        let sound = sound();
        let max = ENTRIES_MAX;
        check(Header { entries: max + 1, ..sound }, BochsError::CatalogTooLarge { found: max + 1, max });
        check(Header { extent_len: 256, ..sound }, BochsError::ExtentTooSmall { found: 256 });
        check(Header { extent_len: 0, ..sound }, BochsError::ExtentTooSmall { found: 0 });
        check(Header { extent_len: 4097, ..sound }, BochsError::ExtentNoPower { found: 4097 });
        let (found, max) = (EXTENT_LEN_MAX * 2, EXTENT_LEN_MAX);
        check(Header { extent_len: found, ..sound }, BochsError::ExtentTooLarge { found, max });
        let (entries, extent_len, size) = (251, 4096, sound.size);
        check(Header { entries, ..sound }, BochsError::CatalogTooSmall { entries, extent_len, size });
        check(Header { bitmap_len: 0, ..sound }, BochsError::Bitmap { found: 0, extent_len });
        let mut bytes = sound.encode();
        bytes[66] = 3;
        assert_eq!(Header::parse(&bytes), Err(BochsError::Version { found: 0x3_0000 }));
        assert!(!probe(&bytes));
        bytes[50] = b'x';
        assert!(matches!(Header::parse(&bytes), Err(BochsError::NotBochs { at: 48, .. })));
    }
}
