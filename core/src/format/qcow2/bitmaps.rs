//! Dirty bitmaps, as far as their directory tells. Source: \[qcow2\] "Bitmaps extension", "Bitmap directory".

use nom::Parser;
use nom::bytes::complete::take;
use nom::number::complete::{be_u8, be_u16, be_u32, be_u64};

use super::layout::{Autoclear, extension_kind};
use super::{Qcow2, Qcow2Error};
use crate::engine::Io;
use crate::error::Result;
use crate::graph::NodeId;

/// Bitmaps of one image at the most. Source: QEMU's limit.
const BITMAPS_MAX: u32 = 65535;
/// Bytes of a directory at the most. Source: QEMU's limit.
const DIRECTORY_LEN_MAX: u64 = 64 << 20;
/// Flag of an entry: the bitmap was not saved.
const IN_USE: u32 = 1;
/// Flag of an entry: the bitmap counts from when the image is opened.
const AUTO: u32 = 2;

/// A bitmap in the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bitmap {
    /// Its name.
    pub name: String,
    /// Bytes of the disk that one bit stands for.
    pub granularity: u64,
    /// Whether it was not saved properly, and cannot be trusted.
    pub in_use: bool,
    /// Whether it counts from when the image is opened.
    pub auto: bool,
}

impl Qcow2 {
    /// The dirty bitmaps of the image that `file` holds; none where somebody changed it who knows none.
    ///
    /// # Errors
    /// When the directory is damaged or cannot be read.
    pub async fn bitmaps(&self, io: &Io, file: NodeId) -> Result<Vec<Bitmap>> {
        let header = self.header();
        let Some(extension) = header.extension(extension_kind::BITMAPS) else { return Ok(Vec::new()) };
        if header.autoclear & Autoclear::BITMAPS == 0 {
            return Ok(Vec::new());
        }
        let wrong = |problem| self.fail(Qcow2Error::Bitmaps { problem });
        let parsed = (be_u32, be_u32, be_u64, be_u64::<_, ()>).parse(extension);
        let (_, (count, _reserved, len, at)) =
            parsed.map_err(|_| wrong("the header extension is too short"))?;
        if count > BITMAPS_MAX {
            return Err(wrong("the number of bitmaps is impossible"));
        }
        let inside = at.checked_add(len).is_some_and(|end| end <= io.len(file));
        if len > DIRECTORY_LEN_MAX || !inside {
            return Err(wrong("the place or length of the bitmap directory is impossible"));
        }
        let bytes = io.read_bytes("qcow2/bitmaps", file, at, len as usize).await?;
        let (mut bitmaps, mut rest) = (Vec::new(), &bytes[..]);
        while bitmaps.len() < count as usize {
            let (after, bitmap) = entry(rest).map_err(|_| wrong("an entry ends beyond its directory"))?;
            bitmaps.push(bitmap.ok_or_else(|| wrong("an entry has an impossible granularity"))?);
            rest = after;
        }
        Ok(bitmaps)
    }
}

/// | bytes  | field                 | unit, limits                |
/// |--------|-----------------------|-----------------------------|
/// | 0..8   | bitmap_table_offset   |                             |
/// | 8..12  | bitmap_table_size     |                             |
/// | 12..16 | flags                 | bit 0: in use, bit 1: auto  |
/// | 16     | type                  | 1                           |
/// | 17     | granularity_bits      | log2 bytes                  |
/// | 18..20 | name_size             | bytes                       |
/// | 20..24 | extra_data_size       | bytes                       |
/// | 24..   | extra data, name      | zeros up to a multiple of 8 |
fn entry(bytes: &[u8]) -> nom::IResult<&[u8], Option<Bitmap>, ()> {
    let (rest, (_table, _table_len, flags)) = (be_u64, be_u32, be_u32).parse(bytes)?;
    let (rest, (_kind, bits, name_len, extra_len)) = (be_u8, be_u8, be_u16, be_u32).parse(rest)?;
    let (rest, (_extra, name)) = (take(extra_len), take(name_len)).parse(rest)?;
    let padding = (bytes.len() - rest.len()).next_multiple_of(8) - (bytes.len() - rest.len());
    let (rest, _padding) = take(padding).parse(rest)?;
    let bitmap = 1u64.checked_shl(bits.into()).map(|granularity| Bitmap {
        name: String::from_utf8_lossy(name).into_owned(),
        granularity,
        in_use: flags & IN_USE != 0,
        auto: flags & AUTO != 0,
    });
    Ok((rest, bitmap))
}
