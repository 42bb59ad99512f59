//! The format extension: one cluster of features, of which dirty bitmaps are the one that is known.
//!
//! ```text
//!   magic, MD5 of the rest | feature header, data, padding to 8 bytes | … | a feature header of zeros
//! ```
//!
//! Source: \[Parallels\] "Format Extension", "Dirty bitmaps feature".

use md5::{Digest, Md5};
use nom::bytes::complete::take;
use nom::multi::count;
use nom::number::complete::{le_u32, le_u64};
use nom::{IResult, Parser};

use super::ParallelsError;
use super::layout::SECTOR;

const MAGIC: u64 = 0xab23_4cef_23dc_ea87;
const DIRTY_BITMAP: u64 = 0x2038_5fae_252c_b34a;

/// Where features begin; the checksum is of all bytes from here on.
const FEATURES_AT: usize = 24;

/// Who does not know the feature must not write to the image.
const NECESSARY: u64 = 1;
/// Who does not know the feature leaves it as it is.
const TRANSIT: u64 = 2;

/// Features in one extension at the most: more is no honest image's.
const FEATURES_MAX: usize = 1024;

/// The extension of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Extension {
    /// Where it is in the file.
    pub at: u64,
    pub features: Vec<Feature>,
}

/// A feature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Feature {
    Bitmap(StoredBitmap),
    Unknown(UnknownFeature),
}

/// A feature that this software does not know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct UnknownFeature {
    pub magic: u64,
    pub flags: u64,
    data: Vec<u8>,
}

impl UnknownFeature {
    pub fn is_necessary(&self) -> bool {
        self.flags & NECESSARY != 0
    }

    pub fn stays(&self) -> bool {
        self.flags & TRANSIT != 0
    }
}

/// A dirty bitmap as it is stored.
///
/// | bytes  | field       | unit, limits                                          |
/// |--------|-------------|-------------------------------------------------------|
/// | 0..8   | size        | sectors of the disk                                   |
/// | 8..24  | id          | for whoever makes backups                             |
/// | 24..28 | granularity | sectors that a bit stands for, a power of two         |
/// | 28..32 | table_len   | entries of the table                                  |
/// | 32..   | table       | 8 bytes for each cluster of the bitmap: [`Part`]       |
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StoredBitmap {
    pub flags: u64,
    pub sectors: u64,
    pub id: [u8; 16],
    pub granularity: u32,
    pub table: Vec<Part>,
}

/// A cluster of a bitmap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// No bit is set.
    Zeros,
    /// All bits are set.
    Ones,
    /// At this sector of the file.
    At(u64),
}

impl Part {
    fn parse(raw: u64) -> Self {
        match raw {
            0 => Self::Zeros,
            1 => Self::Ones,
            sector => Self::At(sector),
        }
    }

    fn encode(self) -> u64 {
        match self {
            Self::Zeros => 0,
            Self::Ones => 1,
            Self::At(sector) => sector,
        }
    }
}

impl StoredBitmap {
    fn parse(data: &[u8], flags: u64) -> Option<Self> {
        fn fields(input: &[u8]) -> IResult<&[u8], (u64, &[u8], u32, u32)> {
            (le_u64, take(16usize), le_u32, le_u32).parse(input)
        }
        let (rest, (sectors, id, granularity, table_len)) = fields(data).ok()?;
        // The table is bounded by the bytes that there are for it.
        let table_len = usize::try_from(table_len).ok().filter(|len| *len <= rest.len() / 8)?;
        let entries: IResult<&[u8], Vec<u64>> = count(le_u64, table_len).parse(rest);
        let table = entries.ok()?.1.into_iter().map(Part::parse).collect();
        Some(Self { flags, sectors, id: id.try_into().expect("sixteen bytes"), granularity, table })
    }

    fn encode(&self) -> Vec<u8> {
        let mut data = Vec::with_capacity(32 + 8 * self.table.len());
        data.extend(self.sectors.to_le_bytes());
        data.extend(self.id);
        data.extend(self.granularity.to_le_bytes());
        data.extend((self.table.len() as u32).to_le_bytes());
        data.extend(self.table.iter().flat_map(|part| part.encode().to_le_bytes()));
        data
    }

    /// How many bits there are.
    pub fn bit_count(&self) -> u64 {
        self.sectors.div_ceil(u64::from(self.granularity))
    }

    /// Whether it is a bitmap of a disk of so many sectors, in clusters of so many bytes.
    pub fn fits(&self, sectors: u64, cluster_len: u64) -> bool {
        self.sectors == sectors
            && self.granularity.is_power_of_two()
            && self.bit_count().div_ceil(8).div_ceil(cluster_len) == self.table.len() as u64
    }

    /// Places of its clusters in the file, in bytes; `None` where one is beyond any file.
    pub fn places(&self) -> impl Iterator<Item = Option<u64>> + '_ {
        self.table.iter().filter_map(|part| match part {
            Part::At(sector) => Some(sector.checked_mul(SECTOR)),
            Part::Zeros | Part::Ones => None,
        })
    }
}

impl Extension {
    /// Parses the cluster at `at`.
    ///
    /// # Errors
    /// What is damaged.
    pub fn parse(at: u64, bytes: &[u8]) -> Result<Self, ParallelsError> {
        let damaged = |problem| ParallelsError::Extension { at, problem };
        fn head(input: &[u8]) -> IResult<&[u8], (u64, &[u8])> {
            (le_u64, take(16usize)).parse(input)
        }
        let Ok((mut rest, (magic, checksum))) = head(bytes) else { return Err(damaged("it is too short")) };
        if magic != MAGIC {
            return Err(ParallelsError::ExtensionMagic { at, found: magic });
        }
        if Md5::digest(rest)[..] != *checksum {
            return Err(damaged("the checksum at byte 8 is not that of its bytes"));
        }
        let mut features = Vec::new();
        loop {
            let Ok((after, (magic, flags, data))) = feature(rest) else {
                return Err(damaged("a feature is longer than what there is"));
            };
            if magic == 0 {
                return Ok(Self { at, features });
            }
            if features.len() == FEATURES_MAX {
                return Err(damaged("there are too many features"));
            }
            features.push(match magic {
                DIRTY_BITMAP => match StoredBitmap::parse(data, flags) {
                    Some(bitmap) => Feature::Bitmap(bitmap),
                    None => return Err(damaged("a bitmap's table is longer than its feature")),
                },
                _ => Feature::Unknown(UnknownFeature { magic, flags, data: data.to_vec() }),
            });
            rest = after;
        }
    }

    /// The exact inverse, for a cluster of `len` bytes; `None` where it does not fit.
    pub fn encode(&self, len: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; FEATURES_AT];
        for one in &self.features {
            let (magic, flags, data) = match one {
                Feature::Bitmap(bitmap) => (DIRTY_BITMAP, bitmap.flags, bitmap.encode()),
                Feature::Unknown(unknown) => (unknown.magic, unknown.flags, unknown.data.clone()),
            };
            bytes.extend(magic.to_le_bytes());
            bytes.extend(flags.to_le_bytes());
            bytes.extend((data.len() as u32).to_le_bytes());
            bytes.extend([0; 4]);
            bytes.extend(data);
            bytes.resize(bytes.len().next_multiple_of(8), 0);
        }
        // The feature of zeros that ends them.
        if bytes.len() + 24 > len {
            return None;
        }
        bytes.resize(len, 0);
        bytes[..8].copy_from_slice(&MAGIC.to_le_bytes());
        let checksum = Md5::digest(&bytes[FEATURES_AT..]);
        bytes[8..FEATURES_AT].copy_from_slice(&checksum);
        Some(bytes)
    }
}

/// A feature's magic, flags and data, with the padding behind it.
fn feature(input: &[u8]) -> IResult<&[u8], (u64, u64, &[u8])> {
    let (rest, (magic, flags, len, _unused)) = (le_u64, le_u64, le_u32, le_u32).parse(input)?;
    let (rest, data) = take(len as usize).parse(rest)?;
    // The last feature may end with the cluster.
    let padding = (data.len().next_multiple_of(8) - data.len()).min(rest.len());
    Ok((&rest[padding..], (magic, flags, data)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn features() -> impl Strategy<Value = Vec<Feature>> {
        let table = prop::collection::vec(any::<u64>().prop_map(Part::parse), 0..5);
        let bitmap = (any::<(u64, u64, [u8; 16], u32)>(), table).prop_map(|(fields, table)| {
            let (flags, sectors, id, granularity) = fields;
            Feature::Bitmap(StoredBitmap { flags, sectors, id, granularity, table })
        });
        let unknown = (2..1000u64, any::<u64>(), prop::collection::vec(any::<u8>(), 0..30))
            .prop_map(|(magic, flags, data)| Feature::Unknown(UnknownFeature { magic, flags, data }));
        prop::collection::vec(prop_oneof![bitmap, unknown], 0..4)
    }

    proptest! {
        #[test]
        fn extensions_survive_encoding(features in features(), flip in 0..4096usize) {
            let extension = Extension { at: 7, features };
            let mut bytes = extension.encode(4096).expect("small");
            prop_assert_eq!(Extension::parse(7, &bytes), Ok(extension));
            bytes[flip] ^= 4;
            prop_assert!(Extension::parse(7, &bytes).is_err(), "byte {} is damaged", flip);
        }
    }

    #[test]
    fn what_does_not_fit_is_not_encoded() {
        let data = vec![1; 400];
        let unknown = Feature::Unknown(UnknownFeature { magic: 5, flags: 0, data });
        let extension = Extension { at: 0, features: vec![unknown] };
        assert_eq!(extension.encode(471), None);
        assert_eq!(Extension::parse(0, &extension.encode(472).expect("fits")), Ok(extension));
        assert!(Extension::parse(0, &[1; 20]).is_err());
    }
}
