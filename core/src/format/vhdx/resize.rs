//! Resize: a longer disk. What is new reads as zeros.
//!
//! Order on disk: entries and zeros of what is new, as every commit writes them; then one log entry with the sector that
//! holds the size, which makes all of it visible at once.

use super::layout::{DISK_MAX, PayloadEntry, SECTOR};
use super::lookup::Block;
use super::open::read_through;
use super::{Vhdx, VhdxError};
use crate::engine::Io;
use crate::error::{Error, Result};
use crate::format::HostOffset;
use crate::graph::driver::{Preallocate, Ready, Role};
use crate::intent::ZeroFlags;

impl Vhdx {
    pub(super) async fn grow(&self, io: &Io, len: u64, how: Preallocate) -> Result<()> {
        if how != Preallocate::Off {
            let (node, driver) = (self.name.clone(), "vhdx");
            return Err(Box::new(Error::Unsupported { node, driver, what: "preallocation" }));
        }
        let size = self.size.get();
        self.may_grow(io, len).map_err(|fault| self.fail(fault))?;
        if len == size {
            return Ok(());
        }
        self.begin(io).await?;
        self.zero_behind(io, size).await?;
        self.add_blocks(io, size, len).await?;
        self.commit(io).await?;
        let file = io.child(Role::File);
        let sector = self.size_at / SECTOR as u64 * SECTOR as u64;
        let within = (self.size_at - sector) as usize;
        // The eight bytes may cross into the next sector.
        let sectors = if within + 8 > SECTOR { 2 } else { 1 };
        let mut bytes =
            read_through(io, "vhdx.resize/metadata", file, &self.overlay, sector, sectors * SECTOR).await?;
        bytes[within..within + 8].copy_from_slice(&len.to_le_bytes());
        let parts = bytes.chunks_exact(SECTOR).zip((sector..).step_by(SECTOR));
        let parts = parts.map(|(part, at)| (HostOffset(at), part.into())).collect();
        {
            let _one_at_a_time = self.commits.enter(&io.shared().tasks).await;
            self.write_logged(io, parts).await?;
        }
        self.size.set(len);
        io.flush("vhdx.resize/after", file).await
    }

    /// Whether the disk can have this length.
    fn may_grow(&self, io: &Io, len: u64) -> Result<(), VhdxError> {
        let (size, sector) = (self.size.get(), self.metadata.sector);
        if len < size {
            return Err(VhdxError::Shrink { size, wanted: len });
        }
        if len > DISK_MAX {
            return Err(VhdxError::DiskTooLarge { size: len });
        }
        if !len.is_multiple_of(sector) {
            return Err(VhdxError::Sectors { wanted: len, sector });
        }
        let (room, needed) = (self.bat.len / 8, self.entries_for(len));
        if needed > room {
            return Err(VhdxError::BatRoom { room, needed });
        }
        match io.try_child(Role::Backing).map(|parent| io.len(parent)) {
            Some(parent) if parent > size => Err(VhdxError::ParentLonger { parent, size }),
            _ => Ok(()),
        }
    }

    /// Zeros what the last block holds behind the old end.
    async fn zero_behind(&self, io: &Io, size: u64) -> Result<()> {
        let block_len = self.metadata.block_len;
        let (block, within) = (size / block_len, size % block_len);
        if within == 0 {
            return Ok(());
        }
        let place = loop {
            match self.block(block).map_err(|fault| self.fail(fault))? {
                Ready::Yes(Block::Full(at) | Block::Partial(at)) => break at,
                Ready::Yes(_) => return Ok(()),
                Ready::Miss(miss) => self.load_missing(io, miss).await?,
            }
        };
        let file = io.child(Role::File);
        let flags = ZeroFlags::default();
        io.write_zeroes("vhdx.resize/zeros", file, place + within, block_len - within, flags).await
    }

    /// Writes the entries of new blocks: what stands there is nobody's. Those of a fixed disk are in the file.
    async fn add_blocks(&self, io: &Io, size: u64, len: u64) -> Result<()> {
        let block_len = self.metadata.block_len;
        let fixed = self.metadata.leave_allocated;
        if fixed {
            self.find_end(io).await?;
        }
        let ratio = self.chunk_ratio();
        let first = self.payload_index(size.div_ceil(block_len));
        for index in first..self.entries_for(len) {
            let entry = match index % (ratio + 1) == ratio {
                true if index < self.entries_for(size) => continue,
                false if fixed => {
                    self.lengthening.settle(io).await;
                    let (at, zeroed) = self.take_block().map_err(|fault| self.fail(fault))?;
                    if !zeroed {
                        let file = io.child(Role::File);
                        let flags = ZeroFlags::default();
                        io.write_zeroes("vhdx.resize/zeros", file, at, block_len, flags).await?;
                    }
                    PayloadEntry::FullyPresent(HostOffset(at)).encode()
                }
                _ => PayloadEntry::NotPresent.encode(),
            };
            let (slice, _) = self.slice_of(index);
            while self.cache.borrow().find(slice).is_none() {
                self.load_slice(io, slice).await?;
            }
            self.set_entry(index, entry);
        }
        Ok(())
    }
}
