//! The header of a Parallels image and its BAT, every field once. All fields are little-endian.
//!
//! Source: \[Parallels\] "Header", "BAT".

use nom::bytes::complete::take;
use nom::number::complete::{le_u32, le_u64};
use nom::{IResult, Parser};

use super::ParallelsError;

/// Bytes of the header; the BAT follows.
pub const HEADER_LEN: usize = 64;

/// Bytes of a sector, the unit of the header's fields.
pub const SECTOR: u64 = 512;

/// BAT entries at the most. Source: `qemu-img`'s limit.
pub const ENTRIES_MAX: u32 = 0x1fff_ffff;

/// Sectors of a cluster at the most. Source: `qemu-img`'s limit.
pub const CLUSTER_SECTORS_MAX: u32 = 0x7fff_ffff / 513;

/// What `qemu-img` writes for heads, whatever the disk.
const HEADS: u32 = 16;
/// Sectors of a track, as far as `qemu-img` counts cylinders.
const TRACK_SECTORS: u64 = 32;

/// Bytes of a page of memory where `qemu-img` runs.
const PAGE: u64 = 4096;

/// The unit in which BAT entries count, which is what the two magics tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatUnit {
    /// `WithoutFreeSpace`: sectors.
    Sectors,
    /// `WithouFreSpacExt`: clusters.
    Clusters,
}

impl BatUnit {
    const fn magic(self) -> &'static [u8; 16] {
        match self {
            Self::Sectors => b"WithoutFreeSpace",
            Self::Clusters => b"WithouFreSpacExt",
        }
    }
}

/// Whether somebody writes to the image (`in_use`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InUse {
    /// Somebody does, or did not close it.
    Open,
    /// It was closed by software that keeps the format extension in step.
    Closed,
    /// It was closed by software that knows no format extension, which writes 0. `qemu-img` takes other values for that
    /// too.
    Old(u32),
}

impl InUse {
    const OPEN: u32 = 0x746f_6e59;
    const CLOSED: u32 = 0x312e_3276;

    fn parse(raw: u32) -> Self {
        match raw {
            Self::OPEN => Self::Open,
            Self::CLOSED => Self::Closed,
            other => Self::Old(other),
        }
    }

    fn encode(self) -> u32 {
        match self {
            Self::Open => Self::OPEN,
            Self::Closed => Self::CLOSED,
            Self::Old(other) => other,
        }
    }
}

/// The header. Source: \[Parallels\] "Header".
///
/// | bytes  | field           | unit, limits                                                           |
/// |--------|-----------------|------------------------------------------------------------------------|
/// | 0..16  | magic           | `WithoutFreeSpace` or `WithouFreSpacExt`: the [unit](BatUnit) of the BAT |
/// | 16..20 | version         | 2                                                                      |
/// | 20..24 | heads           | geometry, not used                                                     |
/// | 24..28 | cylinders       | geometry, not used                                                     |
/// | 28..32 | cluster_sectors | "tracks": sectors of a cluster, above 0                                |
/// | 32..36 | entries         | entries of the BAT                                                     |
/// | 36..44 | sectors         | of the disk; only the lower half counts with `WithoutFreeSpace`        |
/// | 44..48 | in_use          | [`InUse`]                                                              |
/// | 48..52 | data_off        | sectors; where the first cluster is                                    |
/// | 52..56 | flags           | bit 0: the image is empty; a hint that is not used                     |
/// | 56..64 | ext_off         | sectors; where the format extension is, 0: there is none               |
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// What BAT entries count in.
    pub unit: BatUnit,
    /// Sectors of a cluster.
    pub cluster_sectors: u32,
    /// Entries of the BAT.
    pub entries: u32,
    /// Sectors of the disk.
    pub sectors: u64,
    /// Whether somebody writes to it.
    pub in_use: InUse,
    /// Where the first cluster is, in sectors, as the file says.
    pub data_off: u32,
    /// Where the format extension is, in sectors.
    pub ext_off: u64,
    heads: u32,
    cylinders: u32,
    flags: u32,
}

/// The fields in the order of the file, not yet looked at.
struct RawHeader<'a> {
    magic: &'a [u8],
    version: u32,
    heads: u32,
    cylinders: u32,
    cluster_sectors: u32,
    entries: u32,
    sectors: u64,
    in_use: u32,
    data_off: u32,
    flags: u32,
    ext_off: u64,
}

fn raw_header(input: &[u8]) -> IResult<&[u8], RawHeader<'_>> {
    let (rest, (magic, version, heads, cylinders, cluster_sectors)) =
        (take(16usize), le_u32, le_u32, le_u32, le_u32).parse(input)?;
    let (rest, (entries, sectors, in_use, data_off, flags, ext_off)) =
        (le_u32, le_u64, le_u32, le_u32, le_u32, le_u64).parse(rest)?;
    let header = RawHeader {
        magic,
        version,
        heads,
        cylinders,
        cluster_sectors,
        entries,
        sectors,
        in_use,
        data_off,
        flags,
        ext_off,
    };
    Ok((rest, header))
}

/// Whether the first bytes of a file are a Parallels image's.
pub fn probe(head: &[u8]) -> bool {
    unit_of(head).is_some() && head.get(16..20) == Some(&2u32.to_le_bytes())
}

fn unit_of(head: &[u8]) -> Option<BatUnit> {
    [BatUnit::Sectors, BatUnit::Clusters].into_iter().find(|unit| head.starts_with(unit.magic()))
}

impl Header {
    /// The header of a new image of `size` bytes, whole sectors.
    pub(super) fn new(size: u64, cluster_sectors: u32) -> Result<Self, ParallelsError> {
        let sectors = size / SECTOR;
        let entries = sectors.div_ceil(u64::from(cluster_sectors));
        if entries > u64::from(ENTRIES_MAX) {
            return Err(ParallelsError::SizeForCluster);
        }
        let mut header = Self {
            unit: BatUnit::Clusters,
            cluster_sectors,
            entries: entries as u32,
            sectors,
            in_use: InUse::Old(0),
            data_off: 0,
            ext_off: 0,
            heads: HEADS,
            cylinders: u32::try_from(sectors / (u64::from(HEADS) * TRACK_SECTORS)).unwrap_or(u32::MAX),
            flags: 0,
        };
        // Where clusters begin before the next page behind the BAT, `qemu-img` 10.0.2 calls the field wrong, moves it, and takes
        // clusters for others.
        let end = header.bat_end().next_multiple_of(PAGE).next_multiple_of(header.cluster_len());
        header.data_off = (end / SECTOR) as u32;
        Ok(header)
    }

    /// Parses the first bytes of a file.
    ///
    /// # Errors
    /// What is damaged, or not supported.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParallelsError> {
        let Ok((_, raw)) = raw_header(bytes) else {
            return Err(ParallelsError::HeaderTooShort { len: bytes.len() as u64 });
        };
        let Some(unit) = unit_of(raw.magic) else { return Err(ParallelsError::NotParallels) };
        if raw.version != 2 {
            return Err(ParallelsError::Version { found: raw.version });
        }
        match raw.cluster_sectors {
            0 => return Err(ParallelsError::NoClusterSize),
            found if found > CLUSTER_SECTORS_MAX => {
                return Err(ParallelsError::ClusterTooLarge { found, max: CLUSTER_SECTORS_MAX });
            }
            _ => {}
        }
        if raw.entries > ENTRIES_MAX {
            return Err(ParallelsError::BatTooLarge { found: raw.entries, max: ENTRIES_MAX });
        }
        let sectors = match unit {
            BatUnit::Sectors => raw.sectors & u64::from(u32::MAX),
            BatUnit::Clusters => raw.sectors,
        };
        let header = Self {
            unit,
            cluster_sectors: raw.cluster_sectors,
            entries: raw.entries,
            sectors,
            in_use: InUse::parse(raw.in_use),
            data_off: raw.data_off,
            ext_off: raw.ext_off,
            heads: raw.heads,
            cylinders: raw.cylinders,
            flags: raw.flags,
        };
        // Both limits are below 2^30, so that this is far from overflowing.
        if sectors > u64::from(raw.entries) * u64::from(raw.cluster_sectors) {
            let Self { entries, cluster_sectors, .. } = header;
            return Err(ParallelsError::BatTooShort { entries, cluster_sectors, sectors });
        }
        Ok(header)
    }

    /// The exact inverse.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[..16].copy_from_slice(self.unit.magic());
        let words = [2, self.heads, self.cylinders, self.cluster_sectors, self.entries];
        for (at, word) in (16..).step_by(4).zip(words) {
            bytes[at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
        bytes[36..44].copy_from_slice(&self.sectors.to_le_bytes());
        bytes[44..48].copy_from_slice(&self.in_use.encode().to_le_bytes());
        bytes[48..52].copy_from_slice(&self.data_off.to_le_bytes());
        bytes[52..56].copy_from_slice(&self.flags.to_le_bytes());
        bytes[56..64].copy_from_slice(&self.ext_off.to_le_bytes());
        bytes
    }

    /// The same while we write to the image.
    pub(super) fn in_use_by_us(self) -> Self {
        Self { in_use: InUse::Open, ..self }
    }

    /// Bytes of a cluster.
    pub fn cluster_len(&self) -> u64 {
        u64::from(self.cluster_sectors) * SECTOR
    }

    /// The byte behind the BAT.
    pub fn bat_end(&self) -> u64 {
        HEADER_LEN as u64 + u64::from(self.entries) * 4
    }

    /// The first place behind the BAT that the first cluster can have, in sectors.
    pub(super) fn usual_data_off(&self) -> u32 {
        let align = match self.unit {
            BatUnit::Sectors => SECTOR,
            BatUnit::Clusters => self.cluster_len(),
        };
        let sectors = self.bat_end().next_multiple_of(align) / SECTOR;
        u32::try_from(sectors).expect("a BAT is shorter than 2^31 bytes, and so is a cluster")
    }

    /// Whether `data_off` can be what it says, in a file of `file_len` bytes.
    pub(super) fn data_off_is_sound(&self, file_len: u64) -> bool {
        let at = u64::from(self.data_off) * SECTOR;
        let aligned = match self.unit {
            BatUnit::Sectors if self.data_off == 0 => return true,
            BatUnit::Sectors => true,
            BatUnit::Clusters => at.is_multiple_of(self.cluster_len()),
        };
        aligned && at >= self.bat_end() && at <= file_len
    }

    /// Where things are, in a file of `file_len` bytes. A `data_off` that is not sound is taken for the usual one, as
    /// `qemu-img` does.
    pub(super) fn geometry(&self, file_len: u64) -> Geometry {
        let data_off = match self.data_off {
            0 => self.usual_data_off(),
            said if self.data_off_is_sound(file_len) => said,
            _ => self.usual_data_off(),
        };
        Geometry {
            cluster_len: self.cluster_len(),
            unit_len: match self.unit {
                BatUnit::Sectors => SECTOR,
                BatUnit::Clusters => self.cluster_len(),
            },
            data_at: u64::from(data_off) * SECTOR,
            entries: self.entries,
            size: self.sectors * SECTOR,
            bat_end: self.bat_end(),
        }
    }
}

/// Where things are; the same as long as the image is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    pub cluster_len: u64,
    /// Bytes that a BAT entry counts in.
    pub unit_len: u64,
    /// Where the first cluster is.
    pub data_at: u64,
    pub entries: u32,
    /// Bytes of the disk.
    pub size: u64,
    pub bat_end: u64,
}

/// Where a cluster of the file is, by its number in the data area.
pub(super) type ClusterIndex = u32;

/// What a BAT entry says of its cluster of the disk. Source: \[Parallels\] "BAT".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// It reads as zeros.
    Unallocated,
    /// It begins at this byte of the file.
    At(u64),
}

/// How the place of a cluster goes with the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fit {
    /// As it must be.
    Whole(ClusterIndex),
    /// The file ends within it.
    Cut(ClusterIndex),
    /// It is not a whole number of clusters behind the first one.
    Misaligned,
    /// None of it is in the data area.
    Outside,
}

impl Geometry {
    pub fn entry(&self, raw: u32) -> Entry {
        match raw {
            0 => Entry::Unallocated,
            raw => Entry::At(u64::from(raw) * self.unit_len),
        }
    }

    /// The entry for a cluster of the file; `None` where no entry can say it.
    pub fn raw_entry(&self, index: ClusterIndex) -> Option<u32> {
        u32::try_from(self.place_of(index) / self.unit_len).ok()
    }

    pub fn place_of(&self, index: ClusterIndex) -> u64 {
        self.data_at + u64::from(index) * self.cluster_len
    }

    /// How a place goes with a file of `file_len` bytes.
    pub fn fit(&self, host: u64, file_len: u64) -> Fit {
        if host < self.data_at || host >= file_len {
            return Fit::Outside;
        }
        let behind = host - self.data_at;
        let index = ClusterIndex::try_from(behind / self.cluster_len);
        match index {
            _ if !behind.is_multiple_of(self.cluster_len) => Fit::Misaligned,
            Err(_) => Fit::Outside,
            Ok(index) if host + self.cluster_len > file_len => Fit::Cut(index),
            Ok(index) => Fit::Whole(index),
        }
    }

    /// Clusters that a file of `file_len` bytes holds, a last part of one too.
    pub fn clusters_in(&self, file_len: u64) -> u64 {
        file_len.saturating_sub(self.data_at).div_ceil(self.cluster_len)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn headers_survive_encoding(
            ext: bool,
            cluster_sectors in 1..=CLUSTER_SECTORS_MAX,
            entries in 1..=ENTRIES_MAX,
            rest: (u32, u32, u32, u32, u32, u64),
        ) {
            let (heads, cylinders, flags, in_use, data_off, ext_off) = rest;
            let header = Header {
                unit: if ext { BatUnit::Clusters } else { BatUnit::Sectors },
                cluster_sectors,
                entries,
                sectors: (u64::from(entries) * u64::from(cluster_sectors)).min(u64::from(u32::MAX)),
                in_use: InUse::parse(in_use),
                data_off,
                ext_off,
                heads,
                cylinders,
                flags,
            };
            prop_assert_eq!(Header::parse(&header.encode()), Ok(header));
        }

        #[test]
        fn places_survive_encoding(index in 0..1000u32, ext: bool, cluster_sectors in 1..5000u32) {
            let header = Header::new(u64::from(cluster_sectors) * SECTOR * 1000, cluster_sectors).expect("small");
            let unit = if ext { BatUnit::Clusters } else { BatUnit::Sectors };
            let geometry = Header { unit, ..header }.geometry(1 << 40);
            let raw = geometry.raw_entry(index).expect("small");
            let host = geometry.place_of(index);
            prop_assert_eq!(geometry.entry(raw), Entry::At(host));
            prop_assert_eq!(geometry.fit(host, host + geometry.cluster_len), Fit::Whole(index));
            prop_assert_eq!(geometry.fit(host, host + 1), Fit::Cut(index).or_whole(geometry.cluster_len, index));
            prop_assert_eq!(geometry.fit(host, host), Fit::Outside);
        }
    }

    impl Fit {
        /// A cluster of one byte is never cut.
        fn or_whole(self, cluster_len: u64, index: u32) -> Self {
            if cluster_len == 1 { Self::Whole(index) } else { self }
        }
    }

    fn sound() -> [u8; HEADER_LEN] {
        Header::new(10 << 20, 2048).expect("small").encode()
    }

    fn check(at: usize, value: u32, expected: ParallelsError) {
        let mut bytes = sound();
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        assert_eq!(Header::parse(&bytes), Err(expected));
    }

    #[test]
    fn damaged_headers_are_refused() {
        check(0, 1, ParallelsError::NotParallels);
        check(16, 3, ParallelsError::Version { found: 3 });
        check(28, 0, ParallelsError::NoClusterSize);
        let (found, max) = (CLUSTER_SECTORS_MAX + 1, CLUSTER_SECTORS_MAX);
        check(28, found, ParallelsError::ClusterTooLarge { found, max });
        let (found, max) = (ENTRIES_MAX + 1, ENTRIES_MAX);
        check(32, found, ParallelsError::BatTooLarge { found, max });
        let sectors = 20480;
        check(32, 0, ParallelsError::BatTooShort { entries: 0, cluster_sectors: 2048, sectors });
        check(32, 9, ParallelsError::BatTooShort { entries: 9, cluster_sectors: 2048, sectors });
        let sectors = 20480 | 0xffff_ffff << 32;
        check(40, u32::MAX, ParallelsError::BatTooShort { entries: 10, cluster_sectors: 2048, sectors });
        assert_eq!(Header::parse(&sound()[..63]), Err(ParallelsError::HeaderTooShort { len: 63 }));
    }

    #[test]
    fn data_that_begins_where_it_cannot_is_taken_to_begin_at_the_usual_place() {
        let header = Header::parse(&sound()).expect("sound");
        for (data_off, expected) in [(2048, true), (4096, true), (0, false), (1, false), (2049, false)] {
            let header = Header { data_off, ..header.clone() };
            assert_eq!(header.data_off_is_sound(10 << 20), expected, "{data_off}");
            let data_at = if expected { u64::from(data_off) * SECTOR } else { 1 << 20 };
            assert_eq!(header.geometry(10 << 20).data_at, data_at);
        }
        let old = Header { unit: BatUnit::Sectors, data_off: 0, ..header };
        assert!(old.data_off_is_sound(10 << 20));
        assert_eq!(old.geometry(10 << 20).data_at, SECTOR, "the end of the BAT, in whole sectors");
    }

    #[test]
    fn small_clusters_begin_behind_the_page_that_the_bat_ends_in() {
        for (cluster_sectors, data_off) in [(1, 24), (7, 14), (6, 12), (8, 8), (126, 126)] {
            let header = Header::new(1 << 20, cluster_sectors).expect("small");
            assert_eq!(header.data_off, data_off, "{cluster_sectors}");
            assert!(header.data_off_is_sound(1 << 20));
        }
    }
}
