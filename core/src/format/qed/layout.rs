//! The header of a QED image, every field once. All fields are little-endian. Source: QEMU's `docs/interop/qed_spec.rst`.

use nom::number::complete::{le_u32, le_u64};
use nom::{IResult, Parser};

use super::QedError;

/// Bytes of the header.
pub const HEADER_LEN: usize = 64;

/// What an image begins with: `QED`, 0.
pub const MAGIC: u32 = 0x0044_4551;

/// The feature bits that a reader must know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features(pub u64);

impl Features {
    /// There is a backing file.
    pub const BACKING: u64 = 1;
    /// The tables must be checked before they are used.
    pub const NEED_CHECK: u64 = 2;
    /// The backing file is raw, whatever it begins with.
    pub const BACKING_RAW: u64 = 4;
    const KNOWN: u64 = Self::BACKING | Self::NEED_CHECK | Self::BACKING_RAW;

    /// Whether a bit is set.
    pub fn has(self, bit: u64) -> bool {
        self.0 & bit != 0
    }

    /// With a bit set or cleared.
    #[must_use]
    pub fn with(self, bit: u64, set: bool) -> Self {
        Self(if set { self.0 | bit } else { self.0 & !bit })
    }
}

/// The header.
///
/// | bytes  | field              | unit, limits                                        |
/// |--------|--------------------|-----------------------------------------------------|
/// | 0..4   | magic              | `QED\0`                                             |
/// | 4..8   | cluster_size       | bytes, a power of two from 2^12 to 2^26             |
/// | 8..12  | table_size         | clusters of a table, a power of two up to 16        |
/// | 12..16 | header_size        | clusters before regular ones                        |
/// | 16..24 | features           | unknown bits: the image is not opened               |
/// | 24..32 | compat_features    | unknown bits are ignored                            |
/// | 32..40 | autoclear_features | unknown bits are cleared by a writer                |
/// | 40..48 | l1_table_offset    | bytes, a multiple of a cluster                      |
/// | 48..56 | image_size         | bytes of the disk, whole sectors                    |
/// | 56..60 | backing_at         | bytes in the header, where there is a backing file  |
/// | 60..64 | backing_len        | bytes of its name                                   |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes of a cluster.
    pub cluster_size: u32,
    /// Clusters of a table.
    pub table_size: u32,
    /// Clusters of the header.
    pub header_size: u32,
    /// Known bits only.
    pub features: Features,
    /// As they are.
    pub compat_features: u64,
    /// As they are.
    pub autoclear_features: u64,
    /// Where the L1 table is.
    pub l1_at: u64,
    /// Bytes of the disk.
    pub size: u64,
    /// Where the name of the backing file is.
    pub backing_at: u32,
    /// Its bytes.
    pub backing_len: u32,
}

fn raw_header(input: &[u8]) -> IResult<&[u8], (u32, Header)> {
    let (rest, (magic, cluster_size, table_size, header_size)) =
        (le_u32, le_u32, le_u32, le_u32).parse(input)?;
    let (rest, (features, compat_features, autoclear_features)) = (le_u64, le_u64, le_u64).parse(rest)?;
    let (rest, (l1_at, size, backing_at, backing_len)) = (le_u64, le_u64, le_u32, le_u32).parse(rest)?;
    let features = Features(features);
    let header = Header {
        cluster_size,
        table_size,
        header_size,
        features,
        compat_features,
        autoclear_features,
        l1_at,
        size,
        backing_at,
        backing_len,
    };
    Ok((rest, (magic, header)))
}

impl Header {
    /// Parses the first bytes of a file.
    ///
    /// # Errors
    /// What is damaged, or not supported.
    pub fn parse(bytes: &[u8]) -> Result<Self, QedError> {
        let Ok((_, (magic, header))) = raw_header(bytes) else {
            return Err(QedError::HeaderTooShort { len: bytes.len() as u64 });
        };
        if magic != MAGIC {
            return Err(QedError::NotQed { found: magic });
        }
        if header.features.0 & !Features::KNOWN != 0 {
            return Err(QedError::Features { found: header.features.0 & !Features::KNOWN });
        }
        if !legal_cluster_size(header.cluster_size.into()) {
            return Err(QedError::ClusterSize { found: header.cluster_size });
        }
        if !legal_table_size(header.table_size.into()) {
            return Err(QedError::TableSize { found: header.table_size });
        }
        let max = header.size_max();
        if !header.size.is_multiple_of(512) || header.size > max {
            return Err(QedError::Size { found: header.size, max });
        }
        Ok(header)
    }

    /// The exact inverse.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        let words = [MAGIC, self.cluster_size, self.table_size, self.header_size];
        for (word, nth) in words.into_iter().zip(0..) {
            bytes[nth * 4..nth * 4 + 4].copy_from_slice(&word.to_le_bytes());
        }
        let longs = [self.features.0, self.compat_features, self.autoclear_features, self.l1_at, self.size];
        for (long, nth) in longs.into_iter().zip(2..) {
            bytes[nth * 8..nth * 8 + 8].copy_from_slice(&long.to_le_bytes());
        }
        bytes[56..60].copy_from_slice(&self.backing_at.to_le_bytes());
        bytes[60..64].copy_from_slice(&self.backing_len.to_le_bytes());
        bytes
    }

    /// Bytes of a cluster.
    pub fn cluster_len(&self) -> u64 {
        self.cluster_size.into()
    }

    /// Bytes of a table.
    pub fn table_len(&self) -> u64 {
        self.cluster_len() * u64::from(self.table_size)
    }

    /// Bytes of the header's clusters.
    pub fn header_len(&self) -> u64 {
        self.cluster_len() * u64::from(self.header_size)
    }

    /// Bytes of a disk at the most.
    pub fn size_max(&self) -> u64 {
        let entries = self.table_len() / 8;
        (entries * entries).saturating_mul(self.cluster_len()).min(i64::MAX as u64 / 512 * 512)
    }

    /// Entries of the L1 table that the disk needs.
    pub fn l1_entries(&self) -> u64 {
        self.size.div_ceil(self.table_len() / 8 * self.cluster_len())
    }
}

/// Whether clusters can have so many bytes.
pub(super) fn legal_cluster_size(size: u64) -> bool {
    (1 << 12..=1 << 26).contains(&size) && size.is_power_of_two()
}

/// Whether tables can have so many clusters.
pub(super) fn legal_table_size(size: u64) -> bool {
    (1..=16).contains(&size) && size.is_power_of_two()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: Header = Header {
        cluster_size: 1 << 16,
        table_size: 4,
        header_size: 1,
        features: Features(0),
        compat_features: 0,
        autoclear_features: 0,
        l1_at: 1 << 16,
        size: 100 << 20,
        backing_at: 64,
        backing_len: 5,
    };

    proptest! {
        #[test]
        fn parse_is_the_inverse_of_encode(bits in 12u32..27, tables in 0u32..5, features in 0u64..8, more: [u64; 3],
                                          sectors in 0u64..1 << 33, words: [u32; 3]) {
            let header = Header {
                cluster_size: 1 << bits,
                table_size: 1 << tables,
                header_size: words[0],
                features: Features(features),
                compat_features: more[0],
                autoclear_features: more[1],
                l1_at: more[2],
                size: sectors * 512,
                backing_at: words[1],
                backing_len: words[2],
            };
            match Header::parse(&header.encode()) {
                Ok(parsed) => prop_assert_eq!(parsed, header),
                Err(_) => prop_assert!(header.size > header.size_max()),
            }
        }

        #[test]
        fn any_bytes_are_parsed_or_refused(mut bytes: Vec<u8>) {
            bytes.resize(HEADER_LEN, 0);
            bytes[..4].copy_from_slice(b"QED\0");
            if let Ok(header) = Header::parse(&bytes) {
                prop_assert_eq!(&header.encode()[..], &bytes[..]);
            }
        }
    }

    #[test]
    fn limits_are_told() {
        let check = |header: Header, expected: &str| {
            let said = Header::parse(&header.encode()).expect_err("illegal").to_string();
            assert!(said.starts_with(expected), "{said}");
        };
        check(Header { cluster_size: 5000, ..GOOD }, "QED cluster size is invalid");
        check(Header { table_size: 3, ..GOOD }, "QED table size is invalid");
        check(Header { size: 513, ..GOOD }, "QED image size is invalid");
        check(Header { size: 1 << 60, ..GOOD }, "QED image size is invalid");
        check(Header { features: Features(9), ..GOOD }, "Unsupported QED features: 8");
    }
}
