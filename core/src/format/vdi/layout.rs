//! The header of a VDI image, every field once. All fields are little-endian.

use nom::bytes::complete::take;
use nom::number::complete::{le_u32, le_u64};
use nom::{IResult, Parser};

use super::VdiError;
use crate::format::HostOffset;

/// Bytes of the header with the fields before it.
pub const HEADER_LEN: usize = 512;

/// Bytes of a block; the only size that `qemu-img` knows, and that VirtualBox makes.
pub const BLOCK_LEN: u64 = 1 << 20;

/// Blocks at the most. Source: `qemu-img`'s limit.
pub const BLOCKS_MAX: u32 = 0x1fff_ff80;

/// At byte 64.
pub const SIGNATURE: u32 = 0xbeda_107f;

/// Version 1.1.
const VERSION: u32 = 0x0001_0001;

/// A block of a differencing image, or one that was never written.
const UNALLOCATED: u32 = 0xffff_ffff;

/// A block that was given up.
const DISCARDED: u32 = 0xffff_fffe;

/// How the file holds the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageType {
    /// Blocks are added as they are written.
    Dynamic,
    /// All blocks are there from the start.
    Static,
    /// A type that needs no other treatment here.
    Other(u32),
}

impl ImageType {
    fn parse(raw: u32) -> Self {
        match raw {
            1 => Self::Dynamic,
            2 => Self::Static,
            other => Self::Other(other),
        }
    }

    fn encode(self) -> u32 {
        match self {
            Self::Dynamic => 1,
            Self::Static => 2,
            Self::Other(other) => other,
        }
    }
}

/// The header, as far as it matters here; the rest is kept as it was.
///
/// | bytes    | field             | unit, limits                                             |
/// |----------|-------------------|----------------------------------------------------------|
/// | 0..64    | text              | any; who made the image                                  |
/// | 64..68   | signature         | `0xbeda107f`                                             |
/// | 68..72   | version           | 1.1, the major number in the upper half                  |
/// | 72..76   | header_size       | bytes, from here on                                      |
/// | 76..80   | image_type        | 1 dynamic, 2 static, 3 undo, 4 differencing              |
/// | 80..84   | flags             |                                                          |
/// | 84..340  | description       | text                                                     |
/// | 340..344 | map_at            | bytes, a multiple of 512                                 |
/// | 344..348 | data_at           | bytes, a multiple of 512                                 |
/// | 348..360 | geometry          | cylinders, heads, sectors; unused                        |
/// | 360..364 | sector_size       | 512                                                      |
/// | 364..368 | reserved          |                                                          |
/// | 368..376 | size              | bytes of the disk                                        |
/// | 376..380 | block_size        | 1 MiB                                                    |
/// | 380..384 | block_extra       | bytes in front of each block: 0                          |
/// | 384..388 | blocks            | entries of the block map                                 |
/// | 388..392 | allocated         | blocks in the file                                       |
/// | 392..408 | uuid              | of the image                                             |
/// | 408..424 | snapshot_uuid     | of its last change                                       |
/// | 424..440 | link_uuid         | of the parent: zeros                                     |
/// | 440..456 | parent_uuid       | of the parent's last change: zeros                       |
/// | 456..512 | later geometry, reserved |                                                   |
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// How the file holds the disk.
    pub image_type: ImageType,
    /// Where the block map is.
    pub map_at: u64,
    /// Where the first block is.
    pub data_at: u64,
    /// Bytes of the disk: whole sectors.
    pub size: u64,
    /// Entries of the block map.
    pub blocks: u32,
    /// Blocks in the file.
    pub allocated: u32,
    /// The bytes that it was parsed from.
    bytes: Box<[u8; HEADER_LEN]>,
}

/// The fields in the order of the file, not yet looked at.
struct RawHeader {
    signature: u32,
    version: u32,
    image_type: u32,
    map_at: u32,
    data_at: u32,
    sector_size: u32,
    size: u64,
    block_size: u32,
    block_extra: u32,
    blocks: u32,
    allocated: u32,
    link_uuid: [u8; 16],
    parent_uuid: [u8; 16],
}

fn raw_header(input: &[u8]) -> IResult<&[u8], RawHeader> {
    let uuid = |bytes: &[u8]| <[u8; 16]>::try_from(bytes).expect("sixteen bytes");
    let (rest, (_text, signature, version, _header_size, image_type, _flags_description)) =
        (take(64usize), le_u32, le_u32, le_u32, le_u32, take(260usize)).parse(input)?;
    let (rest, (map_at, data_at, _geometry, sector_size, _reserved)) =
        (le_u32, le_u32, take(12usize), le_u32, le_u32).parse(rest)?;
    let (rest, (size, block_size, block_extra, blocks, allocated)) =
        (le_u64, le_u32, le_u32, le_u32, le_u32).parse(rest)?;
    let (rest, (_uuids, link_uuid, parent_uuid, _later)) =
        (take(32usize), take(16usize), take(16usize), take(56usize)).parse(rest)?;
    let (link_uuid, parent_uuid) = (uuid(link_uuid), uuid(parent_uuid));
    let header = RawHeader {
        signature,
        version,
        image_type,
        map_at,
        data_at,
        sector_size,
        size,
        block_size,
        block_extra,
        blocks,
        allocated,
        link_uuid,
        parent_uuid,
    };
    Ok((rest, header))
}

impl Header {
    /// The header of a new image of `size` bytes with the two UUIDs.
    pub(super) fn new(size: u64, image_type: ImageType, uuids: &[u8; 32]) -> Result<Self, VdiError> {
        let max = u64::from(BLOCKS_MAX) * BLOCK_LEN;
        if size > max {
            return Err(VdiError::TooLarge { size, max });
        }
        let blocks = size.div_ceil(BLOCK_LEN) as u32;
        let map_at = HEADER_LEN as u64;
        let mut bytes = Box::new([0; HEADER_LEN]);
        let text = b"<<< Drystone Virtual Disk Image >>>\n";
        bytes[..text.len()].copy_from_slice(text);
        bytes[64..68].copy_from_slice(&SIGNATURE.to_le_bytes());
        bytes[68..72].copy_from_slice(&VERSION.to_le_bytes());
        bytes[72..76].copy_from_slice(&384u32.to_le_bytes());
        bytes[360..364].copy_from_slice(&512u32.to_le_bytes());
        bytes[376..380].copy_from_slice(&(BLOCK_LEN as u32).to_le_bytes());
        bytes[392..424].copy_from_slice(uuids);
        Ok(Self {
            image_type,
            map_at,
            data_at: map_at + (u64::from(blocks) * 4).next_multiple_of(512),
            size,
            blocks,
            allocated: if image_type == ImageType::Static { blocks } else { 0 },
            bytes,
        })
    }

    /// Parses the first bytes of a file.
    ///
    /// # Errors
    /// What is damaged, or not supported.
    pub fn parse(bytes: &[u8]) -> Result<Self, VdiError> {
        let Ok((_, raw)) = raw_header(bytes) else {
            return Err(VdiError::HeaderTooShort { len: bytes.len() as u64 });
        };
        if raw.signature != SIGNATURE {
            return Err(VdiError::NotVdi { found: raw.signature });
        }
        if raw.version != VERSION {
            return Err(VdiError::Version { found: raw.version });
        }
        for (field, found) in [("block map", raw.map_at), ("data", raw.data_at)] {
            if found % 512 != 0 {
                return Err(VdiError::Unaligned { field, found });
            }
        }
        if raw.sector_size != 512 {
            return Err(VdiError::SectorSize { found: raw.sector_size });
        }
        if u64::from(raw.block_size) != BLOCK_LEN {
            return Err(VdiError::BlockSize { found: raw.block_size });
        }
        if raw.block_extra != 0 {
            return Err(VdiError::BlockExtra { found: raw.block_extra });
        }
        if raw.blocks > BLOCKS_MAX {
            return Err(VdiError::TooManyBlocks { found: raw.blocks, max: BLOCKS_MAX });
        }
        let room = u64::from(raw.blocks) * BLOCK_LEN;
        // VBoxManage makes disks of any number of bytes.
        let size = raw.size.checked_next_multiple_of(512).filter(|size| *size <= room);
        let Some(size) = size else { return Err(VdiError::Size { size: raw.size, room }) };
        for (which, uuid) in [("link", raw.link_uuid), ("parent", raw.parent_uuid)] {
            if uuid != [0; 16] {
                return Err(VdiError::Differencing { which });
            }
        }
        let (map_at, data_at) = (u64::from(raw.map_at), u64::from(raw.data_at));
        let header = Self {
            image_type: ImageType::parse(raw.image_type),
            map_at,
            data_at,
            size,
            blocks: raw.blocks,
            allocated: raw.allocated,
            bytes: Box::new(bytes[..HEADER_LEN].try_into().expect("parsed that far")),
        };
        if map_at < HEADER_LEN as u64 || header.map_end() > data_at {
            let (len, what) = (u64::from(raw.blocks) * 4, "first block");
            return Err(VdiError::MapPlace { at: map_at, len, end: data_at, what });
        }
        Ok(header)
    }

    /// The exact inverse.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = *self.bytes;
        let offset = |at: u64| u32::try_from(at).expect("offsets in the header have 32 bits").to_le_bytes();
        bytes[76..80].copy_from_slice(&self.image_type.encode().to_le_bytes());
        bytes[340..344].copy_from_slice(&offset(self.map_at));
        bytes[344..348].copy_from_slice(&offset(self.data_at));
        // A size that is no whole sectors stays what its maker wrote.
        if u64::from_le_bytes(bytes[368..376].try_into().expect("eight bytes")).next_multiple_of(512)
            != self.size
        {
            bytes[368..376].copy_from_slice(&self.size.to_le_bytes());
        }
        bytes[384..388].copy_from_slice(&self.blocks.to_le_bytes());
        bytes[388..392].copy_from_slice(&self.allocated.to_le_bytes());
        bytes
    }

    /// The end of the block map, which whole sectors hold.
    pub fn map_end(&self) -> u64 {
        self.map_at + (u64::from(self.blocks) * 4).next_multiple_of(512)
    }

    /// Where a block of the file begins.
    pub fn place_of(&self, index: u32) -> HostOffset {
        HostOffset(self.data_at + u64::from(index) * BLOCK_LEN)
    }
}

/// An entry of the block map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Nothing was ever written there, or it was given up: zeros.
    Zero,
    /// So many blocks behind the first one of the file.
    Block(u32),
}

impl Entry {
    /// Parses an entry of an image with this header; the number in it where it makes no sense.
    pub fn parse(raw: u32, header: &Header) -> Result<Self, u32> {
        match raw {
            UNALLOCATED | DISCARDED => Ok(Self::Zero),
            index if index < header.blocks => Ok(Self::Block(index)),
            index => Err(index),
        }
    }

    /// What the entry `nth` behind this one is, where they are in a row.
    pub(super) fn after(self, nth: u32) -> Self {
        match self {
            Self::Zero => Self::Zero,
            Self::Block(index) => Self::Block(index.saturating_add(nth)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(size: u64, image_type: ImageType) -> Header {
        Header::new(size, image_type, &[7; 32]).expect("a size that fits")
    }

    proptest! {
        #[test]
        fn parse_is_the_inverse_of_encode(sectors in 0u64..1 << 40, fixed: bool, allocated: u32) {
            let image_type = if fixed { ImageType::Static } else { ImageType::Dynamic };
            let header = Header { allocated, ..header(sectors * 512, image_type) };
            let bytes = header.encode();
            let parsed = Header::parse(&bytes).expect("what was encoded");
            prop_assert_eq!(parsed.encode(), bytes);
            prop_assert_eq!((parsed.size, parsed.blocks, parsed.allocated), (header.size, header.blocks, allocated));
        }

        #[test]
        fn any_bytes_are_parsed_or_refused(mut bytes: Vec<u8>, fields: [u32; 12]) {
            bytes.resize(HEADER_LEN, 0);
            for (field, at) in fields.iter().zip([76, 340, 344, 360, 368, 372, 376, 380, 384, 388, 424, 440]) {
                bytes[at..at + 4].copy_from_slice(&field.to_le_bytes());
            }
            bytes[64..72].copy_from_slice(&[0x7f, 0x10, 0xda, 0xbe, 1, 0, 1, 0]);
            if let Ok(header) = Header::parse(&bytes) {
                prop_assert_eq!(&header.encode()[..], &bytes[..]);
            }
        }
    }

    #[test]
    fn limits_are_told() {
        let good = header(5 << 20, ImageType::Dynamic).encode();
        let check = |at: usize, value: u32, expected: &str| {
            let mut bytes = good;
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
            assert_eq!(Header::parse(&bytes).expect_err("illegal").to_string(), expected);
        };
        check(64, 1, "Image not in VDI format (signature 0x00000001 at byte 64, expected 0xbeda107f)");
        check(68, 0x1_0000, "unsupported VDI image (version 1.0)");
        check(340, 513, "unsupported VDI image (unaligned block map offset 0x201)");
        check(344, 1025, "unsupported VDI image (unaligned data offset 0x401)");
        check(
            344,
            512,
            "the block map of 20 bytes at 512 does not fit in front of 512, where the first block is",
        );
        check(360, 4096, "unsupported VDI image (sector size 4096 is not 512)");
        check(368, 6 << 20, "unsupported VDI image (disk size 6291456, image bitmap has room for 5242880)");
        check(376, 2 << 20, "unsupported VDI image (block size 2097152 is not 1048576)");
        check(380, 512, "unsupported VDI image (512 extra bytes before each block)");
        check(384, 0x3fff_ffff, "unsupported VDI image (too many blocks 1073741823, max is 536870784)");
        check(424, 5, "unsupported VDI image (non-NULL link UUID)");
        check(440, 5, "unsupported VDI image (non-NULL parent UUID)");
    }
}
