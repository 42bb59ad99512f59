//! The trailer of a dmg image and its block tables. All fields are big-endian.

use nom::bytes::complete::{tag, take};
use nom::number::complete::{be_u32, be_u64};
use nom::{IResult, Parser};

use super::DmgError;
use crate::compute::Form;

/// Bytes of a sector.
pub const SECTOR: u64 = 512;
/// Bytes of the trailer, at the end of the file.
pub const TRAILER_LEN: usize = 512;
const KOLY: &[u8] = b"koly";

/// Bytes of a property list or resource fork at the most: two million chunks and more. Source: `qemu-img`'s limit.
const TABLES_LEN_MAX: u64 = 16 << 20;
/// Bytes of a chunk at the most, packed or not. Source: `qemu-img`'s limit.
const CHUNK_LEN_MAX: u64 = 64 << 20;

/// Bytes in front of the chunks of a block table.
const TABLE_HEAD_LEN: usize = 204;
/// Bytes of a chunk.
const CHUNK_LEN: usize = 40;

/// | bytes    | field          | unit, limits                                      |
/// |----------|----------------|---------------------------------------------------|
/// | 0..4     | magic          | `koly`                                            |
/// | 4..24    | version, header size, flags, running data offset |                 |
/// | 24..40   | data fork      | offset and length: what chunks are in             |
/// | 40..56   | resource fork  | offset and length: block tables, in older images  |
/// | 56..216  | segment, checksum of the data fork |                               |
/// | 216..232 | property list  | offset and length: block tables                   |
/// | 232..492 | reserved, checksum of the image, variant |                         |
/// | 492..500 | sectors        | of the disk                                       |
/// | 500..512 | reserved       |                                                   |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trailer {
    /// First byte of the data fork.
    pub data_at: u64,
    /// Offset and length of the resource fork; empty where there is none.
    pub resources: (u64, u64),
    /// Offset and length of the property list; empty where there is none.
    pub plist: (u64, u64),
    /// Sectors of the disk.
    pub sectors: u64,
}

type RawTrailer = (u64, (u64, u64), (u64, u64), u64);

fn raw_trailer(input: &[u8]) -> IResult<&[u8], RawTrailer> {
    let (rest, (_magic, _head, data_at, _data_len)) =
        (tag(KOLY), take(20usize), be_u64, be_u64).parse(input)?;
    let (rest, (resources, _segment, plist)) =
        ((be_u64, be_u64), take(160usize), (be_u64, be_u64)).parse(rest)?;
    let (rest, (_reserved, sectors, _end)) = (take(260usize), be_u64, take(12usize)).parse(rest)?;
    Ok((rest, (data_at, resources, plist, sectors)))
}

impl Trailer {
    /// Finds the trailer in the last bytes of a file of `len`; something may have filled up its last sector.
    ///
    /// # Errors
    /// When there is none, or it names what cannot be.
    pub fn find(tail: &[u8], len: u64) -> Result<Self, DmgError> {
        let starts = (0..=tail.len().saturating_sub(TRAILER_LEN)).rev();
        let found = starts.filter_map(|at| raw_trailer(tail.get(at..)?).ok()).next();
        let Some((_, (data_at, resources, plist, sectors))) = found else {
            return Err(DmgError::NoTrailer { len });
        };
        for (field, (at, bytes)) in [("resource fork", resources), ("property list", plist)] {
            if at.checked_add(bytes).is_none_or(|end| end > len) {
                return Err(DmgError::Place { field, at, len: bytes, file_len: len });
            }
            if bytes > TABLES_LEN_MAX {
                return Err(DmgError::TooLong { field, found: bytes, max: TABLES_LEN_MAX });
            }
        }
        if sectors > i64::MAX as u64 / SECTOR {
            return Err(DmgError::Size { found: sectors });
        }
        Ok(Self { data_at, resources, plist, sectors })
    }

    /// A trailer that parses to this.
    pub fn encode(&self) -> [u8; TRAILER_LEN] {
        let mut bytes = [0; TRAILER_LEN];
        bytes[..4].copy_from_slice(KOLY);
        let fields = [
            (24, self.data_at),
            (40, self.resources.0),
            (48, self.resources.1),
            (216, self.plist.0),
            (224, self.plist.1),
            (492, self.sectors),
        ];
        for (at, field) in fields {
            bytes[at..at + 8].copy_from_slice(&field.to_be_bytes());
        }
        bytes
    }
}

/// How a chunk is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// As zeros that are nowhere.
    Zeros,
    /// As it is.
    Plain,
    /// Packed.
    Packed(Form),
    /// In a way that is not known here.
    Unknown(u32),
}

impl Store {
    fn parse(kind: u32) -> Option<Self> {
        Some(match kind {
            0 | 2 => Self::Zeros,
            1 => Self::Plain,
            0x8000_0004 => Self::Packed(Form::Adc),
            0x8000_0005 => Self::Packed(Form::Zlib),
            0x8000_0006 => Self::Packed(Form::Bzip2),
            0x8000_0007 => Self::Packed(Form::Lzfse),
            0x8000_0008 => Self::Packed(Form::Xz),
            // A comment, and the end of the table.
            0x7fff_fffe | 0xffff_ffff => return None,
            other => Self::Unknown(other),
        })
    }
}

/// A run of sectors of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// First sector of the disk.
    pub sector: u64,
    /// How many.
    pub sectors: u64,
    /// First byte in the file.
    pub at: u64,
    /// Bytes in the file.
    pub len: u64,
    /// How it is stored.
    pub store: Store,
}

/// | bytes    | field        | unit, limits                                                     |
/// |----------|--------------|------------------------------------------------------------------|
/// | 0..4     | magic        | `mish`                                                           |
/// | 4..8     | version      |                                                                  |
/// | 8..16    | first        | sector of the disk that chunks count from                        |
/// | 16..24   | sectors      |                                                                  |
/// | 24..32   | data offset  | bytes in the data fork that chunks count from                    |
/// | 32..200  | buffers, number, reserved, checksum |                                           |
/// | 200..204 | count        | of chunks                                                        |
/// | 204..    | chunks       | type u32, comment u32, sector, sectors, offset, length: u64 each |
///
/// # Errors
/// What is damaged, with the number of the table.
pub fn parse_table(table: usize, bytes: &[u8], data_at: u64, file_len: u64) -> Result<Vec<Chunk>, DmgError> {
    type Head = (u64, u64, u32);
    fn head(input: &[u8]) -> IResult<&[u8], Head> {
        let (rest, (_magic, _version, first)) = (tag(&b"mish"[..]), be_u32, be_u64).parse(input)?;
        let (rest, (_sectors, offset, _more, count)) =
            (be_u64, be_u64, take(168usize), be_u32).parse(rest)?;
        Ok((rest, (first, offset, count)))
    }
    type Fields = (u32, u32, u64, u64, u64, u64);
    fn chunk(input: &[u8]) -> IResult<&[u8], Fields> {
        (be_u32, be_u32, be_u64, be_u64, be_u64, be_u64).parse(input)
    }
    let damaged = |problem| DmgError::Table { table, problem };
    let Ok((rest, (first, offset, count))) = head(bytes) else {
        return Err(damaged("it does not begin with 'mish', or is too short"));
    };
    if count as usize > rest.len() / CHUNK_LEN {
        return Err(damaged("it counts more chunks at byte 200 than it has room for"));
    }
    let mut chunks = Vec::new();
    for (number, bytes) in rest.chunks_exact(CHUNK_LEN).take(count as usize).enumerate() {
        let (_, (kind, _comment, sector, sectors, at, len)) = chunk(bytes).expect("as long as a chunk");
        let Some(store) = Store::parse(kind).filter(|_| sectors > 0) else { continue };
        let place = |a: u64, b: u64| a.checked_add(b);
        let sector = place(first, sector).filter(|sector| place(*sector, sectors).is_some());
        let Some(sector) = sector else { return Err(damaged("a chunk is behind the end of any disk")) };
        let at = place(data_at, offset).and_then(|start| place(start, at)).unwrap_or(u64::MAX);
        let (max, found) = (CHUNK_LEN_MAX, sectors);
        if store != Store::Zeros && found > max / SECTOR {
            return Err(DmgError::ChunkSectors { table, chunk: number, found, max: max / SECTOR });
        }
        if store != Store::Zeros && (len > max || place(at, len).is_none_or(|end| end > file_len)) {
            return Err(DmgError::ChunkPlace { table, chunk: number, at, len, max, file_len });
        }
        if store == Store::Plain && len < sectors * SECTOR {
            return Err(damaged("a chunk that is stored as it is has fewer bytes than sectors"));
        }
        chunks.push(Chunk { sector, sectors, at, len, store });
    }
    Ok(chunks)
}

/// A table that parses to these chunks, which count from `data_at` of the file.
pub fn encode_table(chunks: &[Chunk], data_at: u64) -> Vec<u8> {
    let mut bytes = vec![0; TABLE_HEAD_LEN];
    bytes[..4].copy_from_slice(b"mish");
    bytes[7] = 1;
    bytes[200..].copy_from_slice(&(chunks.len() as u32).to_be_bytes());
    for chunk in chunks {
        let kind: u32 = match chunk.store {
            Store::Zeros => 0,
            Store::Plain => 1,
            Store::Packed(Form::Adc) => 0x8000_0004,
            Store::Packed(Form::Zlib) => 0x8000_0005,
            Store::Packed(Form::Bzip2) => 0x8000_0006,
            Store::Packed(Form::Lzfse) => 0x8000_0007,
            Store::Packed(Form::Xz) => 0x8000_0008,
            Store::Unknown(kind) => kind,
        };
        bytes.extend(kind.to_be_bytes());
        bytes.extend([0; 4]);
        let fields = [chunk.sector, chunk.sectors, chunk.at - data_at, chunk.len];
        bytes.extend(fields.iter().flat_map(|field| field.to_be_bytes()));
    }
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FILE_LEN: u64 = 1 << 40;

    proptest! {
        #[test]
        fn trailers_survive_encoding(
            data_at: u64,
            resources in (0..FILE_LEN / 2, 0..TABLES_LEN_MAX),
            plist in (0..FILE_LEN / 2, 0..TABLES_LEN_MAX),
            sectors in 0..i64::MAX as u64 / SECTOR,
            padding in 0..512usize,
        ) {
            let trailer = Trailer { data_at, resources, plist, sectors };
            let mut tail = vec![3; 512 - padding];
            tail.extend(trailer.encode());
            tail.resize(1024, 0);
            prop_assert_eq!(Trailer::find(&tail, FILE_LEN), Ok(trailer));
        }

        #[test]
        fn tables_survive_encoding(
            chunks in prop::collection::vec((0..1u64 << 40, 1..131_072u64, 0..1u64 << 39, 0..4u8), 0..9),
            data_at in 0..1000u64,
        ) {
            let chunk = |(sector, sectors, at, store)| {
                let store = match store {
                    0 => Store::Zeros,
                    1 => Store::Plain,
                    2 => Store::Packed(Form::Bzip2),
                    3 => Store::Packed(Form::Xz),
                    _ => Store::Unknown(0x8000_0009),
                };
                Chunk { sector, sectors, at: at + data_at, len: sectors * SECTOR, store }
            };
            let chunks: Vec<_> = chunks.into_iter().map(chunk).collect();
            let bytes = encode_table(&chunks, data_at);
            prop_assert_eq!(parse_table(0, &bytes, data_at, FILE_LEN), Ok(chunks));
        }
    }

    #[test]
    fn chunks_that_cannot_be_are_refused() {
        let sound = Chunk { sector: 0, sectors: 8, at: 100, len: 50, store: Store::Packed(Form::Zlib) };
        let parsed = |chunk, file_len| parse_table(3, &encode_table(&[chunk], 0), 0, file_len);
        assert_eq!(parsed(sound, 150), Ok(vec![sound]));
        assert!(matches!(parsed(sound, 149), Err(DmgError::ChunkPlace { table: 3, chunk: 0, .. })));
        let large = Chunk { sectors: 131_073, ..sound };
        assert!(matches!(parsed(large, 150), Err(DmgError::ChunkSectors { found: 131_073, .. })));
        assert!(parsed(Chunk { store: Store::Zeros, ..large }, 150).is_ok(), "zeros are nowhere");
        assert!(parsed(Chunk { sector: u64::MAX, ..sound }, 150).is_err());
        assert!(parsed(Chunk { store: Store::Plain, ..sound }, 150).is_err());
        assert!(parsed(Chunk { len: u64::MAX, ..sound }, 150).is_err());
        let mut bytes = encode_table(&[sound], 0);
        bytes[203] = 2;
        assert!(matches!(parse_table(0, &bytes, 0, 150), Err(DmgError::Table { .. })));
        assert!(matches!(parse_table(0, b"mish", 0, 150), Err(DmgError::Table { .. })));
        assert_eq!(Trailer::find(&[0; 1024], 5), Err(DmgError::NoTrailer { len: 5 }));
        assert_eq!(Trailer::find(&[0; 7], 5), Err(DmgError::NoTrailer { len: 5 }));
    }
}
