//! The metadata region: a table of items, and the items. Source: \[VHDX\] 2.6.

use nom::bytes::complete::take;
use nom::number::complete::{le_u16, le_u32};
use nom::{IResult, Parser};

use super::{DISK_MAX, Guid, MIB};
use crate::format::vhdx::VhdxError;

/// Bytes of the table; items come behind it.
pub const METADATA_TABLE_LEN: usize = 64 << 10;

const SIGNATURE: &[u8; 8] = b"metadata";

/// What fits in the table.
const ENTRIES_MAX: u16 = 2047;

/// The items that are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Item {
    /// u32 block size, a power of two from 1 to 256 MiB; u32 flags: bit 0, blocks stay allocated; bit 1, has a parent.
    FileParameters,
    /// u64 bytes, whole sectors, at most 64 TiB.
    VirtualDiskSize,
    /// GUID of the disk, for SCSI.
    Page83Data,
    /// u32, 512 or 4096.
    LogicalSectorSize,
    /// u32, 512 or 4096.
    PhysicalSectorSize,
    /// Where the parent is, and which state of it.
    ParentLocator,
}

impl Item {
    /// All, with GUID and name.
    const ALL: [(Self, Guid, &'static str); 6] = [
        (
            Self::FileParameters,
            Guid::new(0xcaa1_6737, 0xfa36, 0x4d43, 0xb3b6_33f0_aa44_e76b),
            "file parameters",
        ),
        (
            Self::VirtualDiskSize,
            Guid::new(0x2fa5_4224, 0xcd1b, 0x4876, 0xb211_5dbe_d83b_f4b8),
            "virtual disk size",
        ),
        (Self::Page83Data, Guid::new(0xbeca_12ab, 0xb2e6, 0x4523, 0x93ef_c309_e000_c746), "page 83 data"),
        (
            Self::LogicalSectorSize,
            Guid::new(0x8141_bf1d, 0xa96f, 0x4709, 0xba47_f233_a8fa_ab5f),
            "logical sector size",
        ),
        (
            Self::PhysicalSectorSize,
            Guid::new(0xcda3_48c7, 0x445d, 0x4471, 0x9cc9_e988_5251_c556),
            "physical sector size",
        ),
        (
            Self::ParentLocator,
            Guid::new(0xa8d3_5f2d, 0xb30b, 0x454d, 0xabf7_d3d8_4834_ab0c),
            "parent locator",
        ),
    ];

    fn of(guid: Guid) -> Option<Self> {
        Self::ALL.iter().find(|(_, known, _)| *known == guid).map(|(item, ..)| *item)
    }

    fn guid(self) -> Guid {
        Self::ALL[self as usize].1
    }

    /// What it is called.
    pub fn name(self) -> &'static str {
        Self::ALL[self as usize].2
    }

    /// Flags of a new item: bit 1, of the disk and not the file; bit 2, required.
    fn flags(self) -> u32 {
        match self {
            Self::FileParameters | Self::ParentLocator => 4,
            _ => 6,
        }
    }
}

/// An entry of the table: 32 bytes.
///
/// | bytes  | field    | unit, limits                                                    |
/// |--------|----------|-----------------------------------------------------------------|
/// | 0..16  | item     | GUID                                                            |
/// | 16..20 | offset   | bytes in the region, at least 64 KiB                            |
/// | 20..24 | length   | bytes, at most 1 MiB                                            |
/// | 24..28 | flags    | bit 0, a user's; bit 1, of the disk; bit 2, required            |
/// | 28..32 | reserved | 0                                                               |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableEntry {
    /// Which item.
    pub guid: Guid,
    /// Bytes from the start of the region.
    pub offset: u32,
    /// Bytes.
    pub len: u32,
    /// Who needs it.
    pub flags: u32,
}

/// The table: `metadata`, u16 reserved, u16 count, 20 reserved bytes, entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetadataTable(pub Vec<TableEntry>);

fn raw_entry(input: &[u8]) -> IResult<&[u8], TableEntry> {
    let (rest, (guid, offset, len, flags, _reserved)) =
        (take(16usize), le_u32, le_u32, le_u32, le_u32).parse(input)?;
    Ok((rest, TableEntry { guid: Guid(guid.try_into().expect("sixteen bytes")), offset, len, flags }))
}

impl MetadataTable {
    /// Parses the table of the metadata region at `at`, which has `region_len` bytes.
    ///
    /// # Errors
    /// What is damaged.
    pub fn parse(at: u64, region_len: u64, bytes: &[u8]) -> Result<Self, VhdxError> {
        let field = |field, found, expected| {
            Err(VhdxError::Field { structure: "metadata table", at, field, found, expected })
        };
        if bytes.len() != METADATA_TABLE_LEN {
            return field("length", bytes.len() as u64, "65536 bytes");
        }
        if bytes[..8] != *SIGNATURE {
            let found = u64::from_be_bytes(bytes[..8].try_into().expect("eight bytes"));
            return field("signature", found, "'metadata'");
        }
        let count = u16::from_le_bytes([bytes[10], bytes[11]]);
        if count > ENTRIES_MAX {
            return field("entry count", u64::from(count), "at most 2047");
        }
        let mut entries = Vec::with_capacity(usize::from(count));
        let mut rest = &bytes[32..];
        for _ in 0..count {
            let Ok((next, entry)) = raw_entry(rest) else {
                return field("entry count", u64::from(count), "what fits in 64 KiB");
            };
            rest = next;
            if u64::from(entry.len) > MIB {
                return field("item length", u64::from(entry.len), "at most 1 MiB");
            }
            let fits = u64::from(entry.offset) + u64::from(entry.len) <= region_len;
            let behind = entry.offset as usize >= METADATA_TABLE_LEN;
            if entry.len > 0 && !(fits && behind) {
                return field("item offset", u64::from(entry.offset), "behind the table, within the region");
            }
            entries.push(entry);
        }
        Ok(Self(entries))
    }

    /// The exact inverse.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(METADATA_TABLE_LEN);
        bytes.extend(SIGNATURE);
        bytes.extend([0; 2]);
        bytes.extend((self.0.len() as u16).to_le_bytes());
        bytes.extend([0; 20]);
        for entry in &self.0 {
            bytes.extend(entry.guid.0);
            for field in [entry.offset, entry.len, entry.flags, 0] {
                bytes.extend(field.to_le_bytes());
            }
        }
        bytes.resize(METADATA_TABLE_LEN, 0);
        bytes
    }

    /// The items that are known, and where they are.
    ///
    /// # Errors
    /// When one is there twice, too long to be one, or required and not known.
    pub fn items(&self) -> Result<Vec<(Item, TableEntry)>, VhdxError> {
        let mut items: Vec<(Item, TableEntry)> = Vec::new();
        for entry in &self.0 {
            match Item::of(entry.guid) {
                Some(item) if items.iter().any(|(other, _)| *other == item) => {
                    return Err(VhdxError::Twice { what: item.name() });
                }
                Some(item) => items.push((item, *entry)),
                None if entry.flags & 4 != 0 => {
                    return Err(VhdxError::Unknown { what: "metadata item", guid: entry.guid });
                }
                None => {}
            }
        }
        Ok(items)
    }
}

/// What the items say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// Bytes of a payload block.
    pub block_len: u64,
    /// Whether blocks stay allocated: a fixed disk.
    pub leave_allocated: bool,
    /// Bytes of the disk.
    pub size: u64,
    /// Bytes of a sector.
    pub sector: u64,
    /// Bytes of a sector of the hardware.
    pub physical_sector: u64,
    /// GUID of the disk.
    pub page83: Guid,
    /// What lies below, where there is something.
    pub parent: Option<Locator>,
}

impl Metadata {
    /// Reads the bytes of the items.
    ///
    /// # Errors
    /// When one is missing, or says what cannot be.
    pub fn parse(items: &[(Item, Vec<u8>)]) -> Result<Self, VhdxError> {
        let bytes = |item: Item, len: usize| {
            let found = items.iter().find(|(other, _)| *other == item);
            let (_, bytes) = found.ok_or(VhdxError::Missing { what: item.name() })?;
            match bytes.get(..len) {
                Some(bytes) => Ok(bytes),
                None => Err(VhdxError::Item {
                    item: item.name(),
                    found: bytes.len() as u64,
                    expected: "all its bytes",
                }),
            }
        };
        let number = |item: Item, found: u64, expected, legal: bool| match legal {
            true => Ok(found),
            false => Err(VhdxError::Item { item: item.name(), found, expected }),
        };
        let parameters = bytes(Item::FileParameters, 8)?;
        let block_len = u64::from(super::u32_at(parameters, 0));
        let legal = block_len.is_power_of_two() && (MIB..=256 * MIB).contains(&block_len);
        number(Item::FileParameters, block_len, "a block size of 2^n bytes, 1 to 256 MiB", legal)?;
        let flags = super::u32_at(parameters, 4);
        let sector_of = |item| {
            let found = u64::from(super::u32_at(bytes(item, 4)?, 0));
            number(item, found, "512 or 4096", matches!(found, 512 | 4096))
        };
        let sector = sector_of(Item::LogicalSectorSize)?;
        let physical_sector = sector_of(Item::PhysicalSectorSize)?;
        let raw = bytes(Item::VirtualDiskSize, 8)?;
        let size = u64::from_le_bytes(raw.try_into().expect("eight bytes"));
        let legal = size <= DISK_MAX && size.is_multiple_of(sector);
        number(Item::VirtualDiskSize, size, "whole sectors, and at most 64 TiB", legal)?;
        let page83 = Guid(bytes(Item::Page83Data, 16)?.try_into().expect("sixteen bytes"));
        let parent = match flags & 2 {
            0 => None,
            _ => Some(Locator::parse(bytes(Item::ParentLocator, 20).map(|_| {
                let locator = items.iter().find(|(item, _)| *item == Item::ParentLocator);
                &*locator.expect("it was found above").1
            })?)?),
        };
        let leave_allocated = flags & 1 != 0;
        Ok(Self { block_len, leave_allocated, size, sector, physical_sector, page83, parent })
    }

    /// The table and the items of a new file, one behind the other.
    pub fn encode(&self) -> Vec<u8> {
        let flags = u32::from(self.leave_allocated) | u32::from(self.parent.is_some()) << 1;
        let mut parameters = (self.block_len as u32).to_le_bytes().to_vec();
        parameters.extend(flags.to_le_bytes());
        let mut items = vec![
            (Item::FileParameters, parameters),
            (Item::VirtualDiskSize, self.size.to_le_bytes().to_vec()),
            (Item::Page83Data, self.page83.0.to_vec()),
            (Item::LogicalSectorSize, (self.sector as u32).to_le_bytes().to_vec()),
            (Item::PhysicalSectorSize, (self.physical_sector as u32).to_le_bytes().to_vec()),
        ];
        items.extend(self.parent.as_ref().map(|parent| (Item::ParentLocator, parent.encode())));
        let mut entries = Vec::new();
        let mut data = Vec::new();
        for (item, bytes) in items {
            let (offset, len) = ((METADATA_TABLE_LEN + data.len()) as u32, bytes.len() as u32);
            entries.push(TableEntry { guid: item.guid(), offset, len, flags: item.flags() });
            data.extend(bytes);
        }
        let mut bytes = MetadataTable(entries).encode();
        bytes.extend(data);
        bytes.resize(bytes.len().next_multiple_of(4096), 0);
        bytes
    }
}

/// Where the parent of a differencing disk is: keys and values. Source: \[VHDX\] 2.6.2.6.
///
/// | bytes        | field | unit, limits                                                            |
/// |--------------|-------|-------------------------------------------------------------------------|
/// | 0..16        | type  | `b04aefb7-d19e-4a81-b789-25b8e9445913`                                   |
/// | 16..18       | reserved | 0                                                                    |
/// | 18..20       | count |                                                                         |
/// | 20 + 12 i .. | entry | key offset u32, value offset u32, key length u16, value length u16, bytes from here; UTF-16LE |
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Locator(pub Vec<(String, String)>);

const LOCATOR_TYPE: Guid = Guid::new(0xb04a_efb7, 0xd19e, 0x4a81, 0xb789_25b8_e944_5913);

impl Locator {
    /// Parses the item.
    ///
    /// # Errors
    /// What is damaged.
    pub fn parse(bytes: &[u8]) -> Result<Self, VhdxError> {
        let fail = |found, expected| VhdxError::Item { item: "parent locator", found, expected };
        if bytes.len() < 20 {
            return Err(fail(bytes.len() as u64, "at least 20 bytes"));
        }
        if bytes[..16] != LOCATOR_TYPE.0 {
            let found = u64::from_be_bytes(bytes[..8].try_into().expect("eight bytes"));
            return Err(fail(found, "the type of VHDX parents"));
        }
        let count = u16::from_le_bytes([bytes[18], bytes[19]]);
        let text = |offset: u32, len: u16| {
            let start = offset as usize;
            let end = start.checked_add(usize::from(len)).filter(|_| len.is_multiple_of(2));
            let text = end
                .and_then(|end| bytes.get(start..end))
                .ok_or(fail(u64::from(offset), "text within the item"))?;
            let units = text.chunks_exact(2).map(|unit| u16::from_le_bytes([unit[0], unit[1]]));
            let text: Result<String, _> = char::decode_utf16(units).collect();
            text.map_err(|_| fail(u64::from(offset), "UTF-16"))
        };
        let mut pairs = Vec::new();
        let mut rest = &bytes[20..];
        for _ in 0..count {
            let entry: IResult<&[u8], _> = (le_u32, le_u32, le_u16, le_u16).parse(rest);
            let Ok((next, (key, value, key_len, value_len))) = entry else {
                return Err(fail(u64::from(count), "a count of entries that are there"));
            };
            rest = next;
            pairs.push((text(key, key_len)?, text(value, value_len)?));
        }
        Ok(Self(pairs))
    }

    /// The exact inverse, texts one behind the other.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = LOCATOR_TYPE.0.to_vec();
        bytes.extend([0; 2]);
        bytes.extend((self.0.len() as u16).to_le_bytes());
        let mut texts: Vec<u8> = Vec::new();
        let texts_at = 20 + 12 * self.0.len();
        for (key, value) in &self.0 {
            let [key, value] =
                [key, value].map(|text| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>());
            bytes.extend(((texts_at + texts.len()) as u32).to_le_bytes());
            bytes.extend(((texts_at + texts.len() + key.len()) as u32).to_le_bytes());
            bytes.extend((key.len() as u16).to_le_bytes());
            bytes.extend((value.len() as u16).to_le_bytes());
            texts.extend(key);
            texts.extend(value);
        }
        bytes.extend(texts);
        bytes
    }

    /// The value of a key.
    pub fn value(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == key).map(|(_, value)| &**value)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn items_of(bytes: &[u8]) -> Vec<(Item, Vec<u8>)> {
        let table = MetadataTable::parse(0, MIB, &bytes[..METADATA_TABLE_LEN]).expect("a table");
        let items = table.items().expect("known items").into_iter();
        let bytes_of = |entry: TableEntry| bytes[entry.offset as usize..][..entry.len as usize].to_vec();
        items.map(|(item, entry)| (item, bytes_of(entry))).collect()
    }

    fn metadata() -> Metadata {
        Metadata {
            block_len: MIB,
            leave_allocated: false,
            size: 5 * MIB,
            sector: 512,
            physical_sector: 4096,
            page83: Guid([3; 16]),
            parent: None,
        }
    }

    proptest! {
        #[test]
        fn parse_is_the_inverse_of_encode(
            log in 20u32..29, leave_allocated: bool, sectors in 0u64..1 << 34, large: bool, page83: [u8; 16],
            parent in prop::option::of(prop::collection::vec(("[a-z]{1,9}", "\\PC{0,40}"), 0..5)),
        ) {
            let metadata = Metadata {
                block_len: 1 << log,
                leave_allocated,
                size: sectors * 4096,
                sector: if large { 4096 } else { 512 },
                page83: Guid(page83),
                parent: parent.map(Locator),
                ..metadata()
            };
            prop_assert_eq!(Metadata::parse(&items_of(&metadata.encode())), Ok(metadata));
        }

        #[test]
        fn any_locator_is_parsed_or_refused(mut bytes in prop::collection::vec(any::<u8>(), 20..200), count in 0u16..5) {
            bytes[..16].copy_from_slice(&LOCATOR_TYPE.0);
            bytes[18..20].copy_from_slice(&count.to_le_bytes());
            if let Ok(locator) = Locator::parse(&bytes) {
                prop_assert_eq!(Locator::parse(&locator.encode()), Ok(locator));
            }
        }
    }

    #[test]
    fn limits_are_told() {
        let check = |item: Item, bytes: &[u8], expected: &str| {
            let mut items = items_of(&metadata().encode());
            let found = items.iter_mut().find(|(other, _)| *other == item).expect("there");
            found.1 = bytes.to_vec();
            assert_eq!(Metadata::parse(&items).expect_err("illegal").to_string(), expected);
        };
        check(
            Item::FileParameters,
            &[0; 8],
            "the file parameters say 0x0, expected a block size of 2^n bytes, 1 to 256 MiB",
        );
        check(Item::FileParameters, &[0, 0, 16, 0, 2, 0, 0, 0], "the parent locator is missing");
        check(
            Item::LogicalSectorSize,
            &[1, 2, 0, 0],
            "the logical sector size says 0x201, expected 512 or 4096",
        );
        check(
            Item::VirtualDiskSize,
            &[1, 0, 0, 0, 0, 0, 0, 0],
            "the virtual disk size says 0x1, expected whole sectors, and at most 64 TiB",
        );
        check(Item::Page83Data, &[1], "the page 83 data say 0x1, expected all its bytes");
    }
}
