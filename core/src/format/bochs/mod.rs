//! Bochs, the growing disk image of the emulator of that name: reading only.
//!
//! ```text
//!   ┌────────┬────────────────────┬────────┬──────────┬────────┬──────────┬──
//!   │ header │ catalog: u32 each  │ bitmap │ extent 0 │ bitmap │ extent 1 │ …
//!   └────────┴────────────────────┴────────┴──────────┴────────┴──────────┴──
//!   0        catalog_at
//! ```
//!
//! The catalog says which extent of the file holds an extent of the disk, the bitmap in front of it which of its sectors were
//! ever written; others read as zeros.
//!
//! Source: what `bximage` makes, and what `qemu-img` 10.0.2 accepts.

mod error;
pub mod layout;

use std::any::Any;

use async_trait::async_trait;

pub use error::BochsError;
pub use layout::probe;

use super::{ImageFacts, read_only};
use crate::buf::{Buf, BufList};
use crate::engine::{Io, LocalFuture};
use crate::error::{Error, Result};
use crate::graph::driver::{Access, Driver, Extent, Length, Mapping, Role};
use crate::graph::opening::Opening;
use layout::{HEADER_LEN, Header, UNALLOCATED};

const SECTOR: u64 = 512;

/// An open image.
pub struct Bochs {
    name: String,
    header: Header,
    /// The catalog as it stands in the file: at most 4 MiB.
    catalog: Buf,
    file_len: u64,
}

/// Opens an image whose file is open.
///
/// # Errors
/// When it is to be written to, or is damaged, or cannot be read.
pub(in crate::format) async fn open(opening: &Opening<'_>) -> Result<Bochs> {
    read_only(opening)?;
    let (io, file) = (opening.io, opening.file);
    let name = io.title(file);
    let fail = |fault| Error::format(&*name, fault);
    let file_len = io.len(file);
    let head = io.read_bytes("bochs.open/header", file, 0, file_len.min(HEADER_LEN as u64) as usize).await?;
    let header = Header::parse(&head).map_err(fail)?;
    let (entries, at) = (header.entries, u64::from(header.catalog_at));
    if header.catalog_end() > file_len {
        return Err(fail(BochsError::CatalogOutside { entries, at, len: file_len }));
    }
    let catalog = io.read_bytes("bochs.open/catalog", file, at, 4 * entries as usize).await?;
    Ok(Bochs { header, catalog, file_len, name })
}

impl Bochs {
    fn fail(&self, fault: BochsError) -> Box<Error> {
        Error::format(&*self.name, fault)
    }

    /// Reads a part of one extent.
    async fn read_extent(&self, io: &Io, offset: u64, data: &mut BufList) -> Result<()> {
        let extent_len = u64::from(self.header.extent_len);
        let (index, within) = (offset / extent_len, offset % extent_len);
        let entry = index as usize * 4;
        let found = self.catalog[entry..entry + 4].try_into().map(u32::from_le_bytes).expect("four bytes");
        if found == UNALLOCATED {
            data.zero_from(0);
            return Ok(());
        }
        let at = self.header.bitmap_at(found);
        if at >= self.file_len {
            let len = self.file_len;
            return Err(self.fail(BochsError::ExtentOutside { index, found, at, len }));
        }
        let (first, end) = (within / SECTOR, (within + data.len_bytes() as u64).div_ceil(SECTOR));
        let file = io.child(Role::File);
        let bits_len = (end.div_ceil(8) - first / 8) as usize;
        let bits = io.read_bytes("bochs.read/bitmap", file, at + first / 8, bits_len).await?;
        let is_set = |sector: u64| bits[(sector / 8 - first / 8) as usize] >> (sector % 8) & 1 == 1;
        let data_at = at + self.header.bitmap_space();
        let (mut rest, mut place) = (std::mem::take(data), within);
        while !rest.is_empty() {
            let sector = place / SECTOR;
            let set = is_set(sector);
            let run_end = (sector + 1..end).find(|next| is_set(*next) != set).unwrap_or(end) * SECTOR;
            let mut part = rest.split_to((run_end - place).min(rest.len_bytes() as u64) as usize);
            let len = part.len_bytes() as u64;
            if set {
                let (read, result) = io.read("bochs.read/extent", file, data_at + place, part).await;
                part = read;
                if let Err(error) = result {
                    data.append(part);
                    data.append(rest);
                    return Err(error);
                }
            } else {
                part.zero_from(0);
            }
            data.append(part);
            place += len;
        }
        Ok(())
    }
}

#[async_trait(?Send)]
impl Driver for Bochs {
    fn name(&self) -> &'static str {
        "bochs"
    }

    fn length(&self) -> Length {
        Length::Bytes(self.header.size)
    }

    fn lookup(&self, offset: u64, len: u64, _: Access) -> Result<Extent> {
        let extent_len = u64::from(self.header.extent_len);
        let len = len.min(extent_len - offset % extent_len);
        // The bitmaps stay in the file, so that nothing is known here but which extent it is.
        Ok(Extent { len, mapping: Mapping::Special { compressed: false } })
    }

    fn facts(&self) -> ImageFacts {
        ImageFacts { tells_no_state: true, ..ImageFacts::default() }
    }

    fn read_special<'a>(
        &'a self,
        io: &'a Io,
        offset: u64,
        data: &'a mut BufList,
    ) -> LocalFuture<'a, Result<()>> {
        Box::pin(self.read_extent(io, offset, data))
    }

    fn flush<'a>(&'a self, _: &'a Io) -> LocalFuture<'a, Result<()>> {
        Box::pin(async { Ok(()) })
    }

    async fn close(&self, _: &Io) -> Result<()> {
        Ok(())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
