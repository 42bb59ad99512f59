//! What lies in the files of a VMDK image beside its descriptor, every field once. All fields are little-endian, places
//! and lengths are in sectors of 512 bytes.
//!
//! Source: "Virtual Disk Format 5.0", VMware's technical note, sections "Hosted Sparse Extent" and "Stream-Optimized
//! Compressed Sparse Extents".

use nom::bytes::complete::take;
use nom::number::complete::{le_u8, le_u16, le_u32, le_u64};
use nom::{IResult, Parser};

use super::VmdkError;

/// Bytes of a sector.
pub const SECTOR: u64 = 512;

/// Bytes of the header, of the footer and of a marker of metadata.
pub const HEADER_LEN: usize = 512;

/// What a hosted sparse extent begins with.
pub const MAGIC: [u8; 4] = *b"KDMV";

/// Sectors of a grain at the most. Copy-on-write and compression keep a whole grain in memory.
pub const GRAIN_SECTORS_MAX: u64 = 32768;

/// Entries of a grain table at the most.
pub const TABLE_ENTRIES_MAX: u32 = 512;

/// Entries of a grain directory at the most. Source: `qemu-img`'s limit.
pub const DIRECTORY_ENTRIES_MAX: u64 = 32 << 20;

/// The place of a grain directory that is said by the footer.
const DIRECTORY_IN_FOOTER: u64 = u64::MAX;

/// What tells that nobody took the file for text.
const NEWLINES: [u8; 4] = [b'\n', b' ', b'\r', b'\n'];

/// The flags of a sparse header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flags(pub u32);

impl Flags {
    /// The newline characters are those of [`SparseHeader`].
    pub const NEWLINES: u32 = 1;
    /// There is a redundant grain directory.
    pub const REDUNDANT: u32 = 1 << 1;
    /// A grain table entry of 1 is a grain of zeros.
    pub const ZEROED_GRAINS: u32 = 1 << 2;
    /// Grains are compressed.
    pub const COMPRESSED: u32 = 1 << 16;
    /// Markers stand before grains and metadata.
    pub const MARKERS: u32 = 1 << 17;

    /// Whether a flag is set.
    pub fn has(self, flag: u32) -> bool {
        self.0 & flag != 0
    }
}

/// Header of a hosted sparse extent; the footer is the same.
///
/// | bytes    | field              | unit, limits                                                  |
/// |----------|--------------------|---------------------------------------------------------------|
/// | 0..4     | magic              | `KDMV`                                                        |
/// | 4..8     | version            | 1; 2 with zeroed grains; 3 stream-optimized                   |
/// | 8..12    | flags              |                                                               |
/// | 12..20   | capacity           | sectors of the disk                                           |
/// | 20..28   | grain_sectors      | a power of two                                                |
/// | 28..36   | descriptor_at      | sector, 0 without one                                         |
/// | 36..44   | descriptor_sectors |                                                               |
/// | 44..48   | table_entries      | of a grain table, 512 at the most                             |
/// | 48..56   | redundant_at       | sector of the redundant grain directory                       |
/// | 56..64   | directory_at       | sector of the grain directory; all ones: the footer says it   |
/// | 64..72   | overhead           | sectors before the first grain                                |
/// | 72..73   | unclean            | 1 while somebody writes                                       |
/// | 73..77   | newlines           | `\n \r\n`                                                     |
/// | 77..79   | compression        | 0 none, 1 deflate                                             |
/// | 79..512  | reserved           |                                                               |
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SparseHeader {
    /// 0 to 3.
    pub version: u32,
    /// As they are.
    pub flags: Flags,
    /// Sectors of the disk.
    pub capacity: u64,
    /// Sectors of a grain.
    pub grain_sectors: u64,
    /// Sector of the embedded descriptor; 0 without one.
    pub descriptor_at: u64,
    /// Its sectors.
    pub descriptor_sectors: u64,
    /// Entries of a grain table.
    pub table_entries: u32,
    /// Sector of the redundant grain directory.
    pub redundant_at: u64,
    /// Sector of the grain directory; none where the footer says it.
    pub directory_at: Option<u64>,
    /// Sectors before the first grain.
    pub overhead: u64,
    /// Whether somebody writes, or did and went away.
    pub unclean: bool,
    /// Whether grains are compressed.
    pub compressed: bool,
    /// The bytes that it was parsed from.
    bytes: Box<[u8; HEADER_LEN]>,
}

/// The fields in the order of the file, not yet looked at.
struct RawHeader {
    magic: [u8; 4],
    version: u32,
    flags: u32,
    sectors: [u64; 4],
    table_entries: u32,
    places: [u64; 3],
    unclean: u8,
    newlines: [u8; 4],
    compression: u16,
}

fn raw_header(input: &[u8]) -> IResult<&[u8], RawHeader> {
    let four = |bytes: &[u8]| <[u8; 4]>::try_from(bytes).expect("four bytes");
    let (rest, (magic, version, flags)) = (take(4usize), le_u32, le_u32).parse(input)?;
    let (rest, (capacity, grain, descriptor_at, descriptor_len, table_entries)) =
        (le_u64, le_u64, le_u64, le_u64, le_u32).parse(rest)?;
    let (rest, (redundant_at, directory_at, overhead)) = (le_u64, le_u64, le_u64).parse(rest)?;
    let (rest, (unclean, newlines, compression, _reserved)) =
        (le_u8, take(4usize), le_u16, take(433usize)).parse(rest)?;
    let (magic, newlines) = (four(magic), four(newlines));
    let sectors = [capacity, grain, descriptor_at, descriptor_len];
    let places = [redundant_at, directory_at, overhead];
    Ok((
        rest,
        RawHeader { magic, version, flags, sectors, table_entries, places, unclean, newlines, compression },
    ))
}

impl SparseHeader {
    /// The header of a new extent of `capacity` sectors, in grains of 64 KiB and full grain tables.
    pub(super) fn new(capacity: u64, version: u32, flags: Flags) -> Self {
        Self {
            version,
            flags,
            capacity,
            grain_sectors: 128,
            descriptor_at: 1,
            descriptor_sectors: 20,
            table_entries: TABLE_ENTRIES_MAX,
            redundant_at: 21,
            directory_at: None,
            overhead: 0,
            unclean: false,
            compressed: flags.has(Flags::COMPRESSED),
            bytes: Box::new([0; HEADER_LEN]),
        }
    }

    /// Parses the first bytes of an extent, or a footer.
    ///
    /// # Errors
    /// What is damaged, or not supported.
    pub fn parse(bytes: &[u8]) -> Result<Self, VmdkError> {
        let Ok((_, raw)) = raw_header(bytes) else {
            let (found, expected) = (bytes.len() as u64, HEADER_LEN as u64);
            return Err(VmdkError::TooShort { what: "sparse header", found, expected });
        };
        if raw.magic != MAGIC {
            let found = u64::from(u32::from_be_bytes(raw.magic));
            let expected = u64::from(u32::from_be_bytes(MAGIC));
            return Err(VmdkError::Magic { what: "signature", at: 0, found, expected });
        }
        if raw.version > 3 {
            return Err(VmdkError::Version { found: raw.version.into() });
        }
        let flags = Flags(raw.flags);
        if flags.has(Flags::NEWLINES) && raw.newlines != NEWLINES {
            return Err(VmdkError::Newlines { found: raw.newlines });
        }
        if raw.compression > 1 {
            return Err(VmdkError::Compression { found: raw.compression });
        }
        let [capacity, grain_sectors, descriptor_at, descriptor_sectors] = raw.sectors;
        let [redundant_at, directory_at, overhead] = raw.places;
        check_shape(raw.table_entries.into(), TABLE_ENTRIES_MAX.into(), grain_sectors)?;
        let header = Self {
            version: raw.version,
            flags,
            capacity,
            grain_sectors,
            descriptor_at,
            descriptor_sectors,
            table_entries: raw.table_entries,
            redundant_at,
            directory_at: (directory_at != DIRECTORY_IN_FOOTER).then_some(directory_at),
            overhead,
            unclean: raw.unclean != 0,
            compressed: raw.compression == 1,
            bytes: Box::new(bytes[..HEADER_LEN].try_into().expect("parsed that far")),
        };
        check_directory(header.tables())?;
        Ok(header)
    }

    /// The exact inverse.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = *self.bytes;
        bytes[0..4].copy_from_slice(&MAGIC);
        bytes[4..8].copy_from_slice(&self.version.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.flags.0.to_le_bytes());
        bytes[12..20].copy_from_slice(&self.capacity.to_le_bytes());
        bytes[20..28].copy_from_slice(&self.grain_sectors.to_le_bytes());
        bytes[28..36].copy_from_slice(&self.descriptor_at.to_le_bytes());
        bytes[36..44].copy_from_slice(&self.descriptor_sectors.to_le_bytes());
        bytes[44..48].copy_from_slice(&self.table_entries.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.redundant_at.to_le_bytes());
        bytes[56..64].copy_from_slice(&self.directory_at.unwrap_or(DIRECTORY_IN_FOOTER).to_le_bytes());
        bytes[64..72].copy_from_slice(&self.overhead.to_le_bytes());
        if (bytes[72] != 0) != self.unclean {
            bytes[72] = self.unclean.into();
        }
        if self.flags.has(Flags::NEWLINES) {
            bytes[73..77].copy_from_slice(&NEWLINES);
        }
        bytes[77..79].copy_from_slice(&u16::from(self.compressed).to_le_bytes());
        bytes
    }

    /// Grain tables that the disk needs.
    pub fn tables(&self) -> u64 {
        self.capacity.div_ceil(u64::from(self.table_entries) * self.grain_sectors)
    }
}

/// Grains and tables of lengths that can be worked with.
pub(super) fn check_shape(entries: u64, entries_max: u64, grain_sectors: u64) -> Result<(), VmdkError> {
    if entries > entries_max {
        return Err(VmdkError::TableLen { found: entries, max: entries_max });
    }
    if entries == 0 || grain_sectors == 0 {
        return Err(VmdkError::NoEntries { entries, grain: grain_sectors });
    }
    if grain_sectors > GRAIN_SECTORS_MAX || !grain_sectors.is_power_of_two() {
        return Err(VmdkError::GrainSize { found: grain_sectors, max: GRAIN_SECTORS_MAX });
    }
    Ok(())
}

/// A grain directory of a length that is held in memory.
pub(super) fn check_directory(tables: u64) -> Result<(), VmdkError> {
    if tables > DIRECTORY_ENTRIES_MAX {
        return Err(VmdkError::DirectoryLen { found: tables, max: DIRECTORY_ENTRIES_MAX });
    }
    Ok(())
}

/// Header of a `COWD` extent (`vmfsSparse`).
///
/// | bytes  | field         | unit, limits                     |
/// |--------|---------------|----------------------------------|
/// | 0..4   | magic         | `COWD`                           |
/// | 4..8   | version       | 1                                |
/// | 8..12  | flags         |                                  |
/// | 12..16 | capacity      | sectors of the disk              |
/// | 16..20 | grain_sectors | a power of two                   |
/// | 20..24 | directory_at  | sector of the grain directory    |
/// | 24..28 | tables        | entries of the grain directory   |
/// | 28..32 | free          | the next free sector             |
/// | 32..44 | geometry      | cylinders, heads, sectors        |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CowdHeader {
    /// Sectors of the disk.
    pub capacity: u64,
    /// Sectors of a grain.
    pub grain_sectors: u64,
    /// Sector of the grain directory.
    pub directory_at: u64,
    /// Its entries.
    pub tables: u64,
}

impl CowdHeader {
    /// What it begins with.
    pub const MAGIC: [u8; 4] = *b"COWD";
    /// Entries of a grain table.
    pub const TABLE_ENTRIES: u32 = 4096;

    /// Parses the first bytes of an extent.
    ///
    /// # Errors
    /// What is damaged, or not supported.
    pub fn parse(bytes: &[u8]) -> Result<Self, VmdkError> {
        let word = |at: usize| {
            let four = bytes.get(at..at + 4).map(|four| four.try_into().expect("four bytes"));
            four.map(u32::from_le_bytes).ok_or(VmdkError::TooShort {
                what: "COWD header",
                found: bytes.len() as u64,
                expected: 44,
            })
        };
        let magic = u32::from_le_bytes(Self::MAGIC);
        if word(0)? != magic {
            let (found, expected) = (word(0)?.swap_bytes().into(), magic.swap_bytes().into());
            return Err(VmdkError::Magic { what: "signature", at: 0, found, expected });
        }
        if word(4)? != 1 {
            return Err(VmdkError::Version { found: word(4)?.into() });
        }
        word(40)?;
        let header = Self {
            capacity: word(12)?.into(),
            grain_sectors: word(16)?.into(),
            directory_at: word(20)?.into(),
            tables: word(24)?.into(),
        };
        check_shape(Self::TABLE_ENTRIES.into(), Self::TABLE_ENTRIES.into(), header.grain_sectors)?;
        check_directory(header.tables)?;
        let needed = header.capacity.div_ceil(u64::from(Self::TABLE_ENTRIES) * header.grain_sectors);
        if header.tables < needed {
            let expected = "as many grain tables as the disk needs";
            return Err(VmdkError::Field { field: "tables", at: 24, found: header.tables, expected });
        }
        Ok(header)
    }
}

/// Headers of an `seSparse` extent, as far as they matter for reading. All fields are u64.
///
/// | bytes    | field               | unit, limits                                       |
/// |----------|---------------------|----------------------------------------------------|
/// | 0..8     | magic               | `0xcafebabe`                                       |
/// | 8..16    | version             | `0x2_0000_0001`                                    |
/// | 16..24   | capacity            | sectors of the disk                                |
/// | 24..32   | grain_sectors       | 8                                                  |
/// | 32..40   | table_sectors       | 64                                                 |
/// | 40..48   | flags               | 0                                                  |
/// | 48..80   | reserved            |                                                    |
/// | 80..96   | volatile header     | sector, sectors                                    |
/// | 96..128  | journal             | header, then the journal: sector, sectors          |
/// | 128..144 | grain directory     | sector, sectors                                    |
/// | 144..160 | grain tables        | sector, sectors                                    |
/// | 160..192 | free bitmap, backmap | sector, sectors each                              |
/// | 192..208 | grains              | sector, sectors                                    |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeSparseHeader {
    /// Sectors of the disk.
    pub capacity: u64,
    /// Sector of the volatile header.
    pub volatile_at: u64,
    /// Sector of the grain directory.
    pub directory_at: u64,
    /// Sector of the first grain table.
    pub tables_at: u64,
    /// Sectors of all grain tables.
    pub tables_sectors: u64,
    /// Sector of the first grain.
    pub grains_at: u64,
}

impl SeSparseHeader {
    /// What it begins with.
    pub const MAGIC: u64 = 0xcafe_babe;
    /// What the volatile header begins with.
    pub const VOLATILE_MAGIC: u64 = 0xcafe_cafe;
    /// Sectors of a grain.
    pub const GRAIN_SECTORS: u64 = 8;
    /// Entries of a grain table, of eight bytes each.
    pub const TABLE_ENTRIES: u32 = 4096;

    /// Parses the first 512 bytes of an extent.
    ///
    /// # Errors
    /// What is damaged, or not supported.
    pub fn parse(bytes: &[u8; HEADER_LEN]) -> Result<Self, VmdkError> {
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        if word(0) != Self::MAGIC {
            return Err(VmdkError::Magic { what: "signature", at: 0, found: word(0), expected: Self::MAGIC });
        }
        if word(8) != 0x2_0000_0001 {
            return Err(VmdkError::Version { found: word(8) });
        }
        for (field, at, legal, expected) in
            [("grain_sectors", 24, 8, "8"), ("table_sectors", 32, 64, "64"), ("flags", 40, 0, "0")]
        {
            if word(at) != legal {
                return Err(VmdkError::Field { field, at: at as u64, found: word(at), expected });
            }
        }
        let header = Self {
            capacity: word(16),
            volatile_at: word(80),
            directory_at: word(128),
            tables_at: word(144),
            tables_sectors: word(152),
            grains_at: word(192),
        };
        check_directory(header.tables())?;
        Ok(header)
    }

    /// Whether the journal must be replayed before the tables are right, by the volatile header's first 32 bytes.
    ///
    /// # Errors
    /// When it is none.
    pub fn replays_journal(volatile: &[u8]) -> Result<bool, VmdkError> {
        let word = |at: usize| {
            let eight = volatile.get(at..at + 8).map(|eight| eight.try_into().expect("eight bytes"));
            eight.map_or(0, u64::from_le_bytes)
        };
        if word(0) != Self::VOLATILE_MAGIC {
            let (found, expected) = (word(0), Self::VOLATILE_MAGIC);
            return Err(VmdkError::Magic { what: "volatile header", at: 0, found, expected });
        }
        Ok(word(24) != 0)
    }

    /// Grain tables that the disk needs.
    pub fn tables(&self) -> u64 {
        self.capacity.div_ceil(u64::from(Self::TABLE_ENTRIES) * Self::GRAIN_SECTORS)
    }
}

/// Bytes of the marker before a grain: its first sector in the extent, then the bytes of packed data.
pub const GRAIN_MARKER_LEN: usize = 12;

/// What stands before a packed grain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrainMarker {
    /// The grain's first sector in the extent.
    pub sector: u64,
    /// Bytes of packed data.
    pub len: u32,
}

impl GrainMarker {
    /// Parses the first bytes of a packed grain; `None` where there are too few.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (sector, rest) = bytes.split_first_chunk()?;
        let len = rest.first_chunk()?;
        Some(Self { sector: u64::from_le_bytes(*sector), len: u32::from_le_bytes(*len) })
    }

    /// The exact inverse.
    pub fn encode(self) -> [u8; GRAIN_MARKER_LEN] {
        let mut bytes = [0; GRAIN_MARKER_LEN];
        bytes[..8].copy_from_slice(&self.sector.to_le_bytes());
        bytes[8..].copy_from_slice(&self.len.to_le_bytes());
        bytes
    }
}

/// Bytes at the end of a file that hold a footer: its marker, the footer, and the marker of the end.
pub const FOOTER_LEN: usize = 3 * HEADER_LEN;

/// Parses the last bytes of a file whose header leaves the grain directory to the footer.
///
/// # Errors
/// When there is no footer, or it is damaged.
pub fn parse_footer(bytes: &[u8; FOOTER_LEN]) -> Result<SparseHeader, VmdkError> {
    /// Sectors that follow, bytes of a grain, type.
    type Marker = (u64, u32, u32);
    let marker = |at: usize| -> Marker {
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        (u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes")), word(at + 8), word(at + 12))
    };
    const FOOTER: Marker = (1, 0, 3);
    const END: Marker = (0, 0, 0);
    if marker(0) != FOOTER {
        return Err(VmdkError::Footer { problem: "no marker before it" });
    }
    if marker(2 * HEADER_LEN) != END {
        return Err(VmdkError::Footer { problem: "no marker of the end behind it" });
    }
    let header = SparseHeader::parse(&bytes[HEADER_LEN..2 * HEADER_LEN])?;
    if header.directory_at.is_none() {
        return Err(VmdkError::Footer { problem: "it does not say where the grain directory is either" });
    }
    Ok(header)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header() -> SparseHeader {
        let header = SparseHeader::new(10 << 11, 1, Flags(Flags::NEWLINES | Flags::REDUNDANT));
        SparseHeader { directory_at: Some(26), overhead: 128, ..header }
    }

    proptest! {
        #[test]
        fn parse_is_the_inverse_of_encode(capacity in 0u64..1 << 40, grain in 0u32..16, unclean: bool, flags: u32) {
            let header = SparseHeader {
                capacity, grain_sectors: 1 << grain, unclean, flags: Flags(flags), ..header()
            };
            let bytes = header.encode();
            if let Ok(parsed) = SparseHeader::parse(&bytes) {
                prop_assert_eq!(parsed.encode(), bytes);
                prop_assert_eq!((parsed.capacity, parsed.unclean), (capacity, unclean));
            } else {
                prop_assert!(header.tables() > DIRECTORY_ENTRIES_MAX);
            }
        }

        #[test]
        fn any_bytes_are_parsed_or_refused(mut bytes: Vec<u8>, start in 0usize..3) {
            bytes.resize(HEADER_LEN, 0);
            let starts: [&[u8]; 3] = [b"KDMV\x01\0\0\0", b"COWD\x01\0\0\0", b"\xbe\xba\xfe\xca\0\0\0\0\x01\0\0\0\x02\0\0\0"];
            bytes[..starts[start].len()].copy_from_slice(starts[start]);
            if let Ok(header) = SparseHeader::parse(&bytes) {
                prop_assert_eq!(&header.encode()[..], &bytes[..]);
            }
            let _ = CowdHeader::parse(&bytes);
            let _ = SeSparseHeader::parse(&bytes[..].try_into().expect("512 bytes"));
        }

        #[test]
        fn markers_are_what_they_were(sector: u64, len: u32) {
            let marker = GrainMarker { sector, len };
            prop_assert_eq!(GrainMarker::parse(&marker.encode()), Some(marker));
        }
    }

    #[test]
    fn limits_are_told() {
        let check = |at: usize, value: &[u8], expected: &str| {
            let mut bytes = header().encode();
            bytes[at..at + value.len()].copy_from_slice(value);
            assert_eq!(SparseHeader::parse(&bytes).expect_err("illegal").to_string(), expected);
        };
        let magic = "Image not in VMDK format (signature at byte 0: found 0x58444d56, expected 0x4b444d56)";
        check(0, b"X", magic);
        check(4, &[4], "Unsupported VMDK version 4");
        check(17, &[0xff], "L1 size too big: 4278190081 grain tables, at most 33554432");
        let grain = "Invalid granularity, image may be corrupt: 129 sectors a grain, expected a power of two up to 32768";
        check(20, &[0x81], grain);
        check(20, &[0], "L1 entry size is invalid: 512 entries in a grain table of grains of 0 sectors");
        check(44, &[0, 4], "L2 table size too big: 1024 entries in a grain table, at most 512");
        let text = "the newline characters at byte 73 are [78, 20, 0d, 0a]: the file was changed by a transfer as text";
        check(73, b"x", text);
        check(77, &[2], "compression algorithm 2 is not supported, only 1 (deflate)");
    }
}
