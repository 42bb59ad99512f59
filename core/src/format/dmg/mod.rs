//! dmg, the disk image of macOS (UDIF): reading only.
//!
//! ```text
//!   ┌───────────┬───────────────────────────────────┬─────────┐
//!   │ data fork │ property list, with block tables  │ trailer │
//!   └───────────┴───────────────────────────────────┴─────────┘
//! ```
//!
//! A block table lists chunks: runs of sectors that are zeros, stored as they are, or packed by zlib, bzip2, LZFSE, LZMA (an xz
//! stream) or ADC. All of them are in memory while the image is open, in proportion to the tables, which have at most 16 MiB.
//!
//! Source: what macOS's `hdiutil` makes, and what `qemu-img` 10.0.2 accepts, which does not read the last two.

mod error;
pub mod layout;
mod tables;

use std::any::Any;

use async_trait::async_trait;

pub use error::DmgError;

use super::chunks::{Chunks, Packed};
use super::{ImageFacts, read_only};
use crate::buf::BufList;
use crate::engine::{Io, LocalFuture};
use crate::error::{Error, Result};
use crate::graph::driver::{Access, Driver, Extent, Length, Mapping, Role};
use crate::graph::opening::Opening;
use layout::{Chunk, SECTOR, Store, TRAILER_LEN, Trailer, parse_table};

/// An open image.
pub struct Dmg {
    name: String,
    /// In the order of the disk, and none over another.
    chunks: Vec<Chunk>,
    sectors: u64,
    unpacked: Chunks,
}

/// Whether a file is an image by its name, which is all that the reference goes by: the trailer is at the end.
pub fn probe_name(name: &str) -> bool {
    name.len() > 4 && name.ends_with(".dmg")
}

/// Opens an image whose file is open.
///
/// # Errors
/// When it is to be written to, or is damaged, or cannot be read.
pub(in crate::format) async fn open(opening: &Opening<'_>) -> Result<Dmg> {
    read_only(opening)?;
    let (io, file) = (opening.io, opening.file);
    let name = io.title(file);
    let fail = |fault| Error::format(&*name, fault);
    let file_len = io.len(file);
    let tail_len = file_len.min(2 * TRAILER_LEN as u64);
    let tail = io.read_bytes("dmg.open/trailer", file, file_len - tail_len, tail_len as usize).await?;
    let trailer = Trailer::find(&tail, file_len).map_err(fail)?;
    let tables = match (trailer.resources, trailer.plist) {
        ((_, 0), (_, 0)) => return Err(fail(DmgError::NoTables)),
        ((_, 0), (at, len)) => {
            let text = io.read_bytes("dmg.open/property_list", file, at, len as usize).await?;
            tables::in_plist(&text).map_err(fail)?
        }
        ((at, len), _) => {
            let fork = io.read_bytes("dmg.open/resource_fork", file, at, len as usize).await?;
            tables::in_resources(&fork).map_err(fail)?
        }
    };
    let mut chunks = Vec::new();
    for (number, table) in tables.iter().enumerate() {
        chunks.extend(parse_table(number, table, trailer.data_at, file_len).map_err(fail)?);
    }
    chunks.sort_by_key(|chunk| chunk.sector);
    let overlap = chunks.windows(2).find(|pair| pair[0].sector + pair[0].sectors > pair[1].sector);
    if let Some(pair) = overlap {
        return Err(fail(DmgError::Overlap { sector: pair[1].sector }));
    }
    Ok(Dmg { chunks, sectors: trailer.sectors, unpacked: Chunks::default(), name })
}

impl Dmg {
    fn fail(&self, fault: DmgError) -> Box<Error> {
        Error::format(&*self.name, fault)
    }

    /// The number of the chunk that holds a sector, or where the next one begins.
    fn chunk_at(&self, sector: u64) -> std::result::Result<usize, u64> {
        let next = self.chunks.partition_point(|chunk| chunk.sector <= sector);
        match next.checked_sub(1).map(|number| (number, &self.chunks[number])) {
            Some((number, chunk)) if sector < chunk.sector + chunk.sectors => Ok(number),
            _ => Err(self.chunks.get(next).map_or(u64::MAX, |chunk| chunk.sector)),
        }
    }

    /// Reads a part of one chunk.
    async fn read_chunk(&self, io: &Io, offset: u64, data: &mut BufList) -> Result<()> {
        let sector = offset / SECTOR;
        let Ok(number) = self.chunk_at(sector) else { return Err(self.fail(DmgError::Gap { sector })) };
        let chunk = self.chunks[number];
        let within = offset - chunk.sector * SECTOR;
        match chunk.store {
            Store::Zeros => {
                data.zero_from(0);
                Ok(())
            }
            Store::Plain => {
                let file = io.child(Role::File);
                let (back, result) =
                    io.read("dmg.read/chunk", file, chunk.at + within, std::mem::take(data)).await;
                *data = back;
                result
            }
            Store::Packed(form) => {
                let (at, len, sectors) = (chunk.at, chunk.len, chunk.sectors);
                let plain_len = (sectors * SECTOR) as usize;
                let packed = Packed { form, at, len: len as usize, plain_len };
                let damaged = || self.fail(DmgError::Damaged { at, len, sectors });
                let wanted = (within as usize, data);
                self.unpacked.read(io, "dmg.read/chunk", (number as u64, packed), wanted, damaged).await
            }
            Store::Unknown(kind) => Err(self.fail(DmgError::ChunkType { sector: chunk.sector, kind })),
        }
    }
}

#[async_trait(?Send)]
impl Driver for Dmg {
    fn name(&self) -> &'static str {
        "dmg"
    }

    fn length(&self) -> Length {
        Length::Bytes(self.sectors * SECTOR)
    }

    fn lookup(&self, offset: u64, len: u64, _: Access) -> Result<Extent> {
        let sector = offset / SECTOR;
        let end = match self.chunk_at(sector) {
            Ok(number) => self.chunks[number].sector + self.chunks[number].sectors,
            Err(next) => next,
        };
        let len = len.min(end.saturating_mul(SECTOR) - offset);
        // The reference does not say of this format that it is compressed, nor which chunks are zeros.
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
        Box::pin(self.read_chunk(io, offset, data))
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
