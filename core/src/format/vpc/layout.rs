//! The structures of a VHD file, every field once. All fields are big-endian.
//!
//! Checksums are the ones' complement of the sum of a structure's bytes, with the checksum's own taken as zeros.
//!
//! Source: \[VHD\] "Hard Disk Footer Format", "Dynamic Disk Header Format", "Block Allocation Table", "Appendix: CHS
//! Calculation".

use nom::bytes::complete::take;
use nom::number::complete::{be_u32, be_u64};
use nom::{IResult, Parser};

use super::VpcError;

/// Bytes of a sector, and of a footer.
pub const SECTOR: u64 = 512;

/// Bytes of the dynamic header.
pub const HEADER_LEN: usize = 1024;

/// At the start of a footer.
pub const COOKIE: &[u8; 8] = b"conectix";

/// At the start of a dynamic header.
const HEADER_COOKIE: &[u8; 8] = b"cxsparse";

/// An offset of nothing.
const NOWHERE: u64 = u64::MAX;

/// Sectors of a disk at the most. Source: `qemu-img`'s limit, 2040 GiB.
pub const SECTORS_MAX: u64 = 0xff00_0000;

/// Entries of a BAT at the most. Source: `qemu-img`'s limit.
pub const ENTRIES_MAX: u32 = 0x1fff_ffff;

/// A BAT entry of a block that is not in the file.
pub const UNALLOCATED: u32 = 0xffff_ffff;

/// How the file holds the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskType {
    /// As it is.
    Fixed,
    /// By blocks that are added as they are written.
    Dynamic,
    /// The same, above a parent.
    Differencing,
}

impl DiskType {
    fn encode(self) -> u32 {
        match self {
            Self::Fixed => 2,
            Self::Dynamic => 3,
            Self::Differencing => 4,
        }
    }
}

/// A disk's geometry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Cylinders.
    pub cylinders: u16,
    /// Heads.
    pub heads: u8,
    /// Sectors of a track.
    pub sectors: u8,
}

impl Geometry {
    /// The largest, which says nothing about the size of a disk.
    pub const LARGEST: Self = Self { cylinders: 65535, heads: 16, sectors: 255 };

    /// Sectors of such a disk.
    pub fn total(self) -> u64 {
        u64::from(self.cylinders) * u64::from(self.heads) * u64::from(self.sectors)
    }

    /// The geometry of a disk of so many sectors; it may have a few less. Source: \[VHD\] "Appendix: CHS Calculation".
    pub fn of(sectors: u64) -> Self {
        let total = sectors.min(Self::LARGEST.total());
        let (per_track, heads, tracks) = if total >= 65535 * 16 * 63 {
            (255, 16, total / 255)
        } else {
            let tracks = total / 17;
            let heads = tracks.div_ceil(1024).max(4);
            if tracks < heads * 1024 && heads <= 16 {
                (17, heads, tracks)
            } else if total / 31 < 16 * 1024 {
                (31, 16, total / 31)
            } else {
                (63, 16, total / 63)
            }
        };
        Self { cylinders: (tracks / heads) as u16, heads: heads as u8, sectors: per_track }
    }

    /// The smallest geometry with at least so many sectors.
    pub fn holding(sectors: u64) -> Self {
        let mut total = sectors;
        loop {
            let geometry = Self::of(total);
            if geometry.total() >= sectors.min(Self::LARGEST.total()) {
                return geometry;
            }
            total += 1;
        }
    }
}

/// Which of the two sizes in a footer counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SizeRule {
    /// By who made the image.
    #[default]
    ByCreator,
    /// The geometry.
    Chs,
    /// The current size.
    CurrentSize,
}

/// A footer: 512 bytes, at the end of the file; dynamic images have a copy at its start.
///
/// | bytes    | field           | unit, limits                                            |
/// |----------|-----------------|---------------------------------------------------------|
/// | 0..8     | cookie          | `conectix`                                              |
/// | 8..12    | features        | bit 1 is always set                                     |
/// | 12..16   | version         | 1.0                                                     |
/// | 16..24   | header_at       | bytes; all ones for a fixed disk                        |
/// | 24..28   | timestamp       | seconds since 2000-01-01 UTC                            |
/// | 28..32   | creator         | four letters                                            |
/// | 32..36   | creator_version |                                                         |
/// | 36..40   | creator_host    | four letters                                            |
/// | 40..48   | original_size   | bytes                                                   |
/// | 48..56   | current_size    | bytes                                                   |
/// | 56..60   | geometry        | cylinders u16, heads u8, sectors of a track u8          |
/// | 60..64   | disk_type       | 2 fixed, 3 dynamic, 4 differencing                      |
/// | 64..68   | checksum        |                                                         |
/// | 68..84   | uuid            |                                                         |
/// | 84..85   | saved_state     |                                                         |
/// | 85..512  | reserved        | 0                                                       |
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Footer {
    /// Where the dynamic header is.
    pub header_at: u64,
    /// Who made the image.
    pub creator: [u8; 4],
    /// Bytes of the disk.
    pub current_size: u64,
    /// Its geometry.
    pub geometry: Geometry,
    /// How the file holds it.
    pub disk_type: DiskType,
    /// Which image this is.
    pub uuid: [u8; 16],
    /// All of it.
    bytes: Box<[u8; 512]>,
}

struct RawFooter {
    header_at: u64,
    creator: [u8; 4],
    current_size: u64,
    geometry: [u8; 4],
    disk_type: u32,
    checksum: u32,
    uuid: [u8; 16],
}

fn raw_footer(input: &[u8]) -> IResult<&[u8], RawFooter> {
    let (rest, (_cookie, _features, _version, header_at)) =
        (take(8usize), be_u32, be_u32, be_u64).parse(input)?;
    let (rest, (_timestamp, creator, _creator_version, _creator_host)) =
        (be_u32, take(4usize), be_u32, take(4usize)).parse(rest)?;
    let (rest, (_original_size, current_size, geometry, disk_type)) =
        (be_u64, be_u64, take(4usize), be_u32).parse(rest)?;
    let (rest, (checksum, uuid, _rest)) = (be_u32, take(16usize), take(428usize)).parse(rest)?;
    let footer = RawFooter {
        header_at,
        creator: creator.try_into().expect("four bytes"),
        current_size,
        geometry: geometry.try_into().expect("four bytes"),
        disk_type,
        checksum,
        uuid: uuid.try_into().expect("sixteen bytes"),
    };
    Ok((rest, footer))
}

impl Footer {
    /// The footer of a new image.
    pub fn new(
        disk_type: DiskType,
        size: u64,
        (creator, geometry): ([u8; 4], Geometry),
        timestamp: u32,
        uuid: [u8; 16],
    ) -> Self {
        let header_at = if disk_type == DiskType::Fixed { NOWHERE } else { SECTOR };
        let mut bytes = Vec::with_capacity(512);
        bytes.extend(COOKIE);
        bytes.extend(2u32.to_be_bytes());
        bytes.extend(0x0001_0000u32.to_be_bytes());
        bytes.extend(header_at.to_be_bytes());
        bytes.extend(timestamp.to_be_bytes());
        bytes.extend(creator);
        bytes.extend(0x0005_0003u32.to_be_bytes());
        bytes.extend(b"Wi2k");
        bytes.extend(size.to_be_bytes());
        bytes.extend(size.to_be_bytes());
        bytes.extend(geometry.cylinders.to_be_bytes());
        bytes.extend([geometry.heads, geometry.sectors]);
        bytes.extend(disk_type.encode().to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend(uuid);
        bytes.resize(512, 0);
        let sum = checksum(&bytes, 64);
        bytes[64..68].copy_from_slice(&sum.to_be_bytes());
        let bytes = Box::new(bytes.try_into().expect("512 bytes"));
        Self { header_at, creator, current_size: size, geometry, disk_type, uuid, bytes }
    }

    /// Parses the 512 bytes of the footer at `at`.
    ///
    /// # Errors
    /// What is damaged, or not supported.
    pub fn parse(at: u64, bytes: &[u8]) -> Result<Self, VpcError> {
        let raw = raw_footer(bytes).map(|(_, raw)| raw);
        let (true, Ok(raw)) = (bytes.starts_with(COOKIE), raw) else { return Err(VpcError::NotVpc) };
        let expected = checksum(&bytes[..512], 64);
        if raw.checksum != expected {
            return Err(VpcError::Checksum { structure: "footer", at, found: raw.checksum, expected });
        }
        let disk_type = match raw.disk_type {
            2 => DiskType::Fixed,
            3 => DiskType::Dynamic,
            4 => DiskType::Differencing,
            found => {
                let expected = "2 (fixed), 3 (dynamic) or 4 (differencing)";
                return Err(VpcError::DiskType { at, found, expected });
            }
        };
        let [high, low, heads, sectors] = raw.geometry;
        Ok(Self {
            header_at: raw.header_at,
            creator: raw.creator,
            current_size: raw.current_size,
            geometry: Geometry { cylinders: u16::from_be_bytes([high, low]), heads, sectors },
            disk_type,
            uuid: raw.uuid,
            bytes: Box::new(bytes[..512].try_into().expect("parsed that far")),
        })
    }

    /// The exact inverse.
    pub fn encode(&self) -> [u8; 512] {
        *self.bytes
    }

    /// Bytes of the disk, whole sectors. Virtual PC, and QEMU as it writes images by default, mean the geometry; all others the
    /// current size. The largest geometry says nothing. Source: what `qemu-img` 10.0.2 makes of images of each creator.
    ///
    /// # Errors
    /// When there are more than the format can have.
    pub fn size(&self, rule: SizeRule) -> Result<u64, VpcError> {
        let by_geometry = match rule {
            _ if self.geometry == Geometry::LARGEST => false,
            SizeRule::Chs => true,
            SizeRule::CurrentSize => false,
            SizeRule::ByCreator => matches!(&self.creator, b"vpc " | b"qemu"),
        };
        let sectors = if by_geometry { self.geometry.total() } else { self.current_size / SECTOR };
        match sectors <= SECTORS_MAX {
            true => Ok(sectors * SECTOR),
            false => Err(VpcError::DiskTooLarge { size: self.current_size, max: SECTORS_MAX * SECTOR }),
        }
    }
}

/// Where the parent's name lies in the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Locator {
    /// What kind of name: `W2ru` relative, `W2ku` absolute, both UTF-16LE; others. Zeros: none.
    pub code: [u8; 4],
    /// Bytes that are kept for it; some writers count sectors.
    pub space: u32,
    /// Bytes of the name.
    pub len: u32,
    /// Where it is.
    pub at: u64,
}

/// The dynamic header: 1024 bytes.
///
/// | bytes     | field        | unit, limits                                                      |
/// |-----------|--------------|-------------------------------------------------------------------|
/// | 0..8      | cookie       | `cxsparse`                                                        |
/// | 8..16     | next         | all ones                                                          |
/// | 16..24    | table_at     | bytes; where the BAT is                                           |
/// | 24..28    | version      | 1.0                                                               |
/// | 28..32    | entries      | of the BAT                                                        |
/// | 32..36    | block_len    | bytes, a power of two, at least 512                               |
/// | 36..40    | checksum     |                                                                   |
/// | 40..56    | parent_uuid  |                                                                   |
/// | 56..60    | parent_time  | seconds since 2000-01-01 UTC                                      |
/// | 60..64    | reserved     | 0                                                                 |
/// | 64..576   | parent_name  | UTF-16BE                                                          |
/// | 576..768  | locators     | 8 of: code, space u32, length u32, reserved u32, offset u64       |
/// | 768..1024 | reserved     | 0                                                                 |
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DynamicHeader {
    /// Where the BAT is.
    pub table_at: u64,
    /// Entries of the BAT.
    pub entries: u32,
    /// Bytes of a block without its bitmap.
    pub block_len: u64,
    /// Which image lies below.
    pub parent_uuid: [u8; 16],
    /// The name of its file.
    pub parent_name: String,
    /// Where more names are.
    pub locators: [Locator; 8],
}

fn raw_locator(input: &[u8]) -> IResult<&[u8], Locator> {
    let (rest, (code, space, len, _reserved, at)) =
        (take(4usize), be_u32, be_u32, be_u32, be_u64).parse(input)?;
    Ok((rest, Locator { code: code.try_into().expect("four bytes"), space, len, at }))
}

type Fields<'a> = (u64, u32, u32, u32, &'a [u8], &'a [u8]);

fn raw_header(input: &[u8]) -> IResult<&[u8], (Fields<'_>, [Locator; 8])> {
    let (rest, (_cookie, _next, table_at, _version)) = (take(8usize), be_u64, be_u64, be_u32).parse(input)?;
    let (rest, (entries, block_len, sum)) = (be_u32, be_u32, be_u32).parse(rest)?;
    let (rest, (uuid, _time, _reserved, name)) =
        (take(16usize), be_u32, be_u32, take(512usize)).parse(rest)?;
    let mut locators = [Locator::default(); 8];
    let mut rest = rest;
    for locator in &mut locators {
        (rest, *locator) = raw_locator(rest)?;
    }
    let (rest, _reserved) = take(256usize).parse(rest)?;
    Ok((rest, ((table_at, entries, block_len, sum, uuid, name), locators)))
}

impl DynamicHeader {
    /// Parses the 1024 bytes of the header at `at`.
    ///
    /// # Errors
    /// What is damaged, or not supported.
    pub fn parse(at: u64, bytes: &[u8]) -> Result<Self, VpcError> {
        let raw = raw_header(bytes).map(|(_, raw)| raw);
        let (true, Ok((fields, locators))) = (bytes.starts_with(HEADER_COOKIE), raw) else {
            return Err(VpcError::HeaderMagic { at });
        };
        let (table_at, entries, block_len, found, uuid, name) = fields;
        let expected = checksum(&bytes[..HEADER_LEN], 36);
        if found != expected {
            return Err(VpcError::Checksum { structure: "dynamic header", at, found, expected });
        }
        if !block_len.is_power_of_two() || u64::from(block_len) < SECTOR {
            return Err(VpcError::BlockSize { found: block_len });
        }
        if entries > ENTRIES_MAX {
            return Err(VpcError::Entries { found: entries, max: ENTRIES_MAX });
        }
        let units = name.chunks_exact(2).map(|unit| u16::from_be_bytes([unit[0], unit[1]]));
        let units = units.take_while(|unit| *unit != 0);
        // A name that is no text names no file.
        let parent_name = char::decode_utf16(units).collect::<Result<String, _>>().unwrap_or_default();
        Ok(Self {
            table_at,
            entries,
            block_len: u64::from(block_len),
            parent_uuid: uuid.try_into().expect("sixteen bytes"),
            parent_name,
            locators,
        })
    }

    /// The exact inverse, for names of up to 255 units.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_LEN);
        bytes.extend(HEADER_COOKIE);
        bytes.extend(NOWHERE.to_be_bytes());
        bytes.extend(self.table_at.to_be_bytes());
        bytes.extend(0x0001_0000u32.to_be_bytes());
        bytes.extend(self.entries.to_be_bytes());
        bytes.extend(u32::try_from(self.block_len).expect("the field has 32 bits").to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend(self.parent_uuid);
        bytes.extend([0; 8]);
        bytes.extend(self.parent_name.encode_utf16().take(255).flat_map(u16::to_be_bytes));
        bytes.resize(576, 0);
        for locator in &self.locators {
            bytes.extend(locator.code);
            bytes.extend(locator.space.to_be_bytes());
            bytes.extend(locator.len.to_be_bytes());
            bytes.extend([0; 4]);
            bytes.extend(locator.at.to_be_bytes());
        }
        bytes.resize(HEADER_LEN, 0);
        let sum = checksum(&bytes, 36);
        bytes[36..40].copy_from_slice(&sum.to_be_bytes());
        bytes
    }

    /// Bytes of a block's bitmap, a bit for each sector, whole sectors.
    pub fn bitmap_len(&self) -> u64 {
        (self.block_len / SECTOR).div_ceil(8).next_multiple_of(SECTOR)
    }

    /// Bytes of the BAT, whole sectors.
    pub fn table_len(&self) -> u64 {
        (u64::from(self.entries) * 4).next_multiple_of(SECTOR)
    }
}

/// The checksum of a structure that has it at byte `at`.
pub fn checksum(bytes: &[u8], at: usize) -> u32 {
    let own = at..at + 4;
    let others = bytes.iter().enumerate().filter(|(place, _)| !own.contains(place));
    !others.map(|(_, byte)| u32::from(*byte)).sum::<u32>()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn footer(disk_type: DiskType, size: u64, creator: &[u8; 4], geometry: Geometry) -> Footer {
        Footer::new(disk_type, size, (*creator, geometry), 77, [5; 16])
    }

    proptest! {
        #[test]
        fn a_footer_is_parsed_as_it_is_encoded(
            which in 0usize..3, size: u64, creator: [u8; 4], chs: (u16, u8, u8), timestamp: u32, uuid: [u8; 16],
        ) {
            let disk_type = [DiskType::Fixed, DiskType::Dynamic, DiskType::Differencing][which];
            let geometry = Geometry { cylinders: chs.0, heads: chs.1, sectors: chs.2 };
            let footer = Footer::new(disk_type, size, (creator, geometry), timestamp, uuid);
            prop_assert_eq!(Footer::parse(0, &footer.encode()), Ok(footer));
        }

        #[test]
        fn a_header_is_parsed_as_it_is_encoded(
            table_at: u64, entries in 0u32..=ENTRIES_MAX, log in 9u32..32, parent_uuid: [u8; 16],
            parent_name in "[a-zA-Zäß. ]{0,60}", fields in prop::collection::vec((any::<[u8; 4]>(), any::<u32>(), any::<u32>(), any::<u64>()), 8),
        ) {
            let locators: Vec<_> = fields.into_iter().map(|(code, space, len, at)| Locator { code, space, len, at }).collect();
            let header = DynamicHeader {
                table_at, entries, block_len: 1 << log, parent_uuid, parent_name,
                locators: locators.try_into().expect("eight"),
            };
            prop_assert_eq!(DynamicHeader::parse(0, &header.encode()), Ok(header));
        }

        #[test]
        fn a_geometry_is_never_too_small(sectors in 1u64..=65535 * 16 * 255) {
            let geometry = Geometry::holding(sectors);
            prop_assert!(geometry.total() >= sectors && geometry.total() <= sectors + (1 << 15));
        }
    }

    #[test]
    fn sizes_are_those_of_the_reference() {
        for (wanted, expected) in [
            (512, 34816),
            (5120, 34816),
            (1 << 20, 1_079_296),
            (4 << 20, 4_212_736),
            (64 << 20, 67_125_248),
            (100 << 20, 104_865_792),
            (1 << 30, 1_073_995_776),
            (127 << 30, 136_365_219_840u64),
        ] {
            assert_eq!(Geometry::holding(wanted / 512).total() * 512, expected, "{wanted}");
        }
    }

    #[test]
    fn the_size_goes_by_who_made_the_image() {
        let geometry = Geometry { cylinders: 10, heads: 4, sectors: 17 };
        let by_chs = 10 * 4 * 17 * 512;
        let check = |creator, geometry, rule, expected| {
            assert_eq!(
                footer(DiskType::Dynamic, 9 << 20, creator, geometry).size(rule),
                expected,
                "{creator:?}"
            );
        };
        for creator in [b"vpc ", b"qemu"] {
            check(creator, geometry, SizeRule::ByCreator, Ok(by_chs));
            check(creator, Geometry::LARGEST, SizeRule::ByCreator, Ok(9 << 20));
            check(creator, Geometry::LARGEST, SizeRule::Chs, Ok(9 << 20));
            check(creator, geometry, SizeRule::CurrentSize, Ok(9 << 20));
        }
        for creator in [b"qem2", b"win ", b"d2v\0", b"tap\0", b"CTXS", b"wa\0\0", b"who?"] {
            check(creator, geometry, SizeRule::ByCreator, Ok(9 << 20));
            check(creator, geometry, SizeRule::Chs, Ok(by_chs));
        }
        let size = (SECTORS_MAX + 1) * 512;
        let large = footer(DiskType::Fixed, size, b"win ", geometry).size(SizeRule::ByCreator);
        assert_eq!(large, Err(VpcError::DiskTooLarge { size, max: SECTORS_MAX * 512 }));
    }

    #[test]
    fn limits_are_told() {
        let good = footer(DiskType::Dynamic, 1 << 20, b"qemu", Geometry::of(2048)).encode();
        let check = |at: usize, value: u32, sealed: bool, expected: &str| {
            let mut bytes = good;
            bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
            if sealed {
                let sum = checksum(&bytes, 64);
                bytes[64..68].copy_from_slice(&sum.to_be_bytes());
            }
            let found = Footer::parse(7, &bytes).expect_err("illegal").to_string();
            assert!(found.starts_with(expected), "{found}");
        };
        check(0, 1, true, "invalid VPC image");
        check(64, 1, false, "Incorrect header checksum (the footer at byte 7 has 0x00000001, expected 0x");
        check(60, 5, true, "the footer at byte 7 says disk type 5, expected 2 (fixed), 3 (dynamic) or 4");
    }
}
