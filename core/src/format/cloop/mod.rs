//! cloop, a disk compressed block by block, to be mounted and never written: reading only.
//!
//! ```text
//!   ┌────────┬─────────────────────────────┬─────────┬─────────┬──
//!   │ header │ table: u64 each, one behind │ block 0 │ block 1 │ …   zlib streams
//!   └────────┴─────────────────────────────┴─────────┴─────────┴──
//!   0        136
//! ```
//!
//! The table is looked through when the image is opened, and not kept: a block that is read looks up its place.
//!
//! Source: what `create_compressed_fs` makes, and what `qemu-img` 10.0.2 accepts.

mod error;
pub mod layout;

use std::any::Any;

use async_trait::async_trait;

pub use error::CloopError;
pub use layout::probe;

use super::chunks::{Chunks, Packed};
use super::{ImageFacts, read_only};
use crate::buf::BufList;
use crate::compute::Form;
use crate::engine::{Io, LocalFuture};
use crate::error::{Error, Result};
use crate::graph::driver::{Access, Driver, Extent, Length, Mapping, Role};
use crate::graph::opening::Opening;
use layout::{HEADER_LEN, Header};

/// Bytes of the table that are looked through at once.
const PIECE: u64 = 1 << 20;

/// An open image.
pub struct Cloop {
    name: String,
    header: Header,
    file_len: u64,
    chunks: Chunks,
}

/// Opens an image whose file is open.
///
/// # Errors
/// When it is to be written to, or is damaged, or cannot be read.
pub(in crate::format) async fn open(opening: &Opening<'_>) -> Result<Cloop> {
    read_only(opening)?;
    let (io, file) = (opening.io, opening.file);
    let name = io.title(file);
    let fail = |fault| Error::format(&*name, fault);
    let file_len = io.len(file);
    let head = io.read_bytes("cloop.open/header", file, 0, file_len.min(HEADER_LEN as u64) as usize).await?;
    let header = Header::parse(&head).map_err(fail)?;
    let end = Header::entry_at(u64::from(header.blocks) + 1);
    if end > file_len {
        return Err(fail(CloopError::Table { blocks: header.blocks, end, len: file_len }));
    }
    let (mut index, mut before) = (0, end);
    while index <= u64::from(header.blocks) {
        let count = (u64::from(header.blocks) + 1 - index).min(PIECE / 8);
        let at = Header::entry_at(index);
        let bytes = io.read_bytes("cloop.open/table", file, at, 8 * count as usize).await?;
        for (bytes, index) in bytes.chunks_exact(8).zip(index..) {
            let found = number(bytes);
            place(&header, index, (before, found), file_len).map_err(fail)?;
            before = found;
        }
        index += count;
    }
    Ok(Cloop { header, file_len, chunks: Chunks::default(), name })
}

/// Checks that a block which ends where block `index` begins lies in the file; the first entry ends none.
fn place(header: &Header, index: u64, (before, found): (u64, u64), file_len: u64) -> Result<(), CloopError> {
    if found < before {
        return Err(CloopError::NotIncreasing { index, found, before });
    }
    let (len, max) = (found - before, header.packed_len_max());
    if index > 0 && len > max {
        return Err(CloopError::BlockLen { index, found: len, max });
    }
    if found > file_len {
        return Err(CloopError::BlockOutside { index, at: found, len: file_len });
    }
    Ok(())
}

fn number(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(bytes.try_into().expect("eight bytes"))
}

impl Cloop {
    fn fail(&self, fault: CloopError) -> Box<Error> {
        Error::format(&*self.name, fault)
    }

    async fn read_block(&self, io: &Io, offset: u64, data: &mut BufList) -> Result<()> {
        let block_len = u64::from(self.header.block_len);
        let (index, within) = (offset / block_len, (offset % block_len) as usize);
        let at = Header::entry_at(index);
        let entries = io.read_bytes("cloop.read/table", io.child(Role::File), at, 16).await?;
        let (start, end) = (number(&entries[..8]), number(&entries[8..]));
        // The file may have changed since it was looked through.
        place(&self.header, index + 1, (start, end), self.file_len).map_err(|fault| self.fail(fault))?;
        let (len, plain_len) = (end - start, self.header.block_len);
        let packed = Packed { form: Form::Zlib, at: start, len: len as usize, plain_len: plain_len as usize };
        let damaged = || self.fail(CloopError::Damaged { index, at: start, len, plain_len });
        self.chunks.read(io, "cloop.read/block", (index, packed), (within, data), damaged).await
    }
}

#[async_trait(?Send)]
impl Driver for Cloop {
    fn name(&self) -> &'static str {
        "cloop"
    }

    fn length(&self) -> Length {
        Length::Bytes(self.header.size())
    }

    fn lookup(&self, offset: u64, len: u64, _: Access) -> Result<Extent> {
        let block_len = u64::from(self.header.block_len);
        let len = len.min(block_len - offset % block_len);
        // The reference does not say of this format that it is compressed.
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
        Box::pin(self.read_block(io, offset, data))
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
