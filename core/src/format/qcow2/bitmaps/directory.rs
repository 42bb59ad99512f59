//! The bitmap directory: where each dirty bitmap is, and what it is called.
//! Source: \[qcow2\] "Bitmaps extension", "Bitmap directory".

use nom::Parser;
use nom::bytes::complete::take;
use nom::number::complete::{be_u8, be_u16, be_u32, be_u64};

use super::Bitmap;
use crate::format::qcow2::Qcow2Error;

/// Bitmaps of one image at the most. Source: QEMU's limit.
pub(in crate::format::qcow2) const BITMAPS_MAX: u32 = 65535;
/// Bytes of a directory at the most. Source: QEMU's limit.
pub(in crate::format::qcow2) const DIRECTORY_LEN_MAX: u64 = 64 << 20;
/// Bytes of a name at the most. Source: QEMU's limit.
pub(in crate::format::qcow2) const NAME_LEN_MAX: usize = 1023;
/// Flag of an entry: the bitmap was not saved.
const IN_USE: u32 = 1;
/// Flag of an entry: the bitmap counts from when the image is opened.
const AUTO: u32 = 2;

/// The header extension. All fields are big-endian.
///
/// | bytes  | field                   | unit, limits |
/// |--------|-------------------------|--------------|
/// | 0..4   | nb_bitmaps              | 1 to 65535   |
/// | 4..8   | reserved                | 0            |
/// | 8..16  | bitmap_directory_size   | bytes        |
/// | 16..24 | bitmap_directory_offset | bytes        |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extension {
    /// Bitmaps in the directory.
    pub count: u32,
    /// Bytes of the directory.
    pub len: u64,
    /// Its place in the file.
    pub at: u64,
}

impl Extension {
    /// Reads the data of the extension.
    ///
    /// # Errors
    /// When it is too short, or there are more bitmaps than there can be.
    pub fn parse(bytes: &[u8]) -> Result<Self, Qcow2Error> {
        let wrong = |problem| Qcow2Error::Bitmaps { problem };
        let parsed = (be_u32, be_u32, be_u64, be_u64::<_, ()>).parse(bytes);
        let (_, (count, _reserved, len, at)) =
            parsed.map_err(|_| wrong("the header extension is too short"))?;
        if count > BITMAPS_MAX {
            return Err(wrong("the number of bitmaps is impossible"));
        }
        Ok(Self { count, len, at })
    }

    /// The inverse of [`parse`](Self::parse).
    pub fn encode(self) -> Vec<u8> {
        let mut out = self.count.to_be_bytes().to_vec();
        out.extend([0; 4]);
        out.extend(self.len.to_be_bytes());
        out.extend(self.at.to_be_bytes());
        out
    }
}

/// An entry of the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Place of the bitmap table.
    pub table_at: u64,
    /// Entries of it.
    pub table_len: u32,
    /// What the bitmap is called, and how it counts.
    pub bitmap: Bitmap,
}

impl Entry {
    /// Reads the entry at the start of `bytes`, and returns what follows it. None in its place: an impossible granularity,
    /// or a name that is too long.
    ///
    /// | bytes  | field                 | unit, limits                |
    /// |--------|-----------------------|-----------------------------|
    /// | 0..8   | bitmap_table_offset   |                             |
    /// | 8..12  | bitmap_table_size     | entries                     |
    /// | 12..16 | flags                 | bit 0: in use, bit 1: auto  |
    /// | 16     | type                  | 1                           |
    /// | 17     | granularity_bits      | log2 bytes                  |
    /// | 18..20 | name_size             | bytes                       |
    /// | 20..24 | extra_data_size       | bytes                       |
    /// | 24..   | extra data, name      | zeros up to a multiple of 8 |
    fn parse(bytes: &[u8]) -> nom::IResult<&[u8], Option<Self>, ()> {
        let (rest, (table_at, table_len, flags)) = (be_u64, be_u32, be_u32).parse(bytes)?;
        let (rest, (_kind, bits, name_len, extra_len)) = (be_u8, be_u8, be_u16, be_u32).parse(rest)?;
        let (rest, (_extra, name)) = (take(extra_len), take(name_len)).parse(rest)?;
        let padding = (bytes.len() - rest.len()).next_multiple_of(8) - (bytes.len() - rest.len());
        let (rest, _padding) = take(padding).parse(rest)?;
        let granularity = 1u64.checked_shl(bits.into()).filter(|_| name.len() <= NAME_LEN_MAX);
        let entry = granularity.map(|granularity| Self {
            table_at,
            table_len,
            bitmap: Bitmap {
                name: String::from_utf8_lossy(name).into_owned(),
                granularity,
                in_use: flags & IN_USE != 0,
                auto: flags & AUTO != 0,
            },
        });
        Ok((rest, entry))
    }

    /// The inverse of [`parse`](Self::parse).
    fn encode(&self) -> Vec<u8> {
        let Bitmap { name, granularity, in_use, auto } = &self.bitmap;
        let flags = if *in_use { IN_USE } else { 0 } | if *auto { AUTO } else { 0 };
        let mut out = self.table_at.to_be_bytes().to_vec();
        out.extend(self.table_len.to_be_bytes());
        out.extend(flags.to_be_bytes());
        out.extend([1, granularity.trailing_zeros() as u8]);
        out.extend((name.len() as u16).to_be_bytes());
        out.extend([0; 4]);
        out.extend(name.as_bytes());
        out.resize(out.len().next_multiple_of(8), 0);
        out
    }
}

/// Reads all entries of a directory. A name that is no UTF-8 has replacement characters in it.
///
/// # Errors
/// When an entry reaches over the end, or has an impossible granularity or name.
pub fn parse(bytes: &[u8], count: u32) -> Result<Vec<Entry>, Qcow2Error> {
    let wrong = |problem| Qcow2Error::Bitmaps { problem };
    let (mut entries, mut rest) = (Vec::new(), bytes);
    while entries.len() < count as usize {
        let (after, entry) = Entry::parse(rest).map_err(|_| wrong("an entry ends beyond its directory"))?;
        entries.push(entry.ok_or_else(|| wrong("an entry has an impossible granularity or name"))?);
        rest = after;
    }
    Ok(entries)
}

/// The inverse of [`parse`].
pub fn encode<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> Vec<u8> {
    entries.into_iter().flat_map(Entry::encode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn entries_survive_encoding(table_at: u64, table_len: u32, bits in 9u32..32, in_use: bool, auto: bool, name in "[a-z]{1,30}") {
            let bitmap = Bitmap { name, granularity: 1 << bits, in_use, auto };
            let entries = [Entry { table_at, table_len, bitmap: bitmap.clone() }, Entry { table_at: 0, table_len: 1, bitmap }];
            prop_assert_eq!(parse(&encode(&entries), 2), Ok(entries.to_vec()));
        }
    }
}
