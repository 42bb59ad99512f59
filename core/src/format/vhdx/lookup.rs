//! Lookup: where a range of the disk is, by the BAT and the sector bitmaps in memory.

use super::layout::{BitmapEntry, CHUNK_SECTORS, MIB, PayloadEntry, SECTOR};
use super::{Missing, Vhdx, VhdxError};
use crate::format::HostOffset;
use crate::format::sector_bits::{FirstBit, run_of_bits};
use crate::graph::driver::{Access, Extent, Mapping, Ready, Role};

/// What a payload block is to a reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Block {
    /// The parent's.
    Parent,
    /// Zeros.
    Zeros,
    /// In the file.
    Full(u64),
    /// In the file, as far as the sector bitmap says.
    Partial(u64),
}

impl Block {
    /// What the block `nth` behind this one is, where they are in a row.
    fn after(self, nth: u64, block_len: u64) -> Option<Self> {
        match self {
            Self::Parent | Self::Zeros => Some(self),
            Self::Full(at) => Some(Self::Full(at + nth * block_len)),
            // Each has its own bits.
            Self::Partial(_) => None,
        }
    }
}

impl Vhdx {
    /// Payload blocks whose sectors share a sector bitmap block.
    pub(super) fn chunk_ratio(&self) -> u64 {
        CHUNK_SECTORS * self.metadata.sector / self.metadata.block_len
    }

    /// The BAT's index of a payload block.
    pub(super) fn payload_index(&self, block: u64) -> u64 {
        block + block / self.chunk_ratio()
    }

    /// The BAT's index of a chunk's sector bitmap block.
    pub(super) fn bitmap_index(&self, chunk: u64) -> u64 {
        chunk * (self.chunk_ratio() + 1) + self.chunk_ratio()
    }

    /// The slice that holds a BAT entry, and the entry's first byte in it.
    pub(super) fn slice_of(&self, index: u64) -> (HostOffset, usize) {
        let (slice, byte) = (index * 8 / SECTOR as u64, index * 8 % SECTOR as u64);
        (HostOffset(self.bat.at + slice * SECTOR as u64), byte as usize)
    }

    /// The slice that holds a sector's bit, and the bit's number in it.
    pub(super) fn bit_of(&self, bitmap: u64, block: u64, within: u64) -> (HostOffset, usize) {
        let sector = self.metadata.sector;
        let bit = block % self.chunk_ratio() * (self.metadata.block_len / sector) + within / sector;
        let (slice, bit) = (bit / (8 * SECTOR as u64), bit % (8 * SECTOR as u64));
        (HostOffset(bitmap + slice * SECTOR as u64), bit as usize)
    }

    fn raw_entry(&self, index: u64) -> Ready<u64> {
        let (at, byte) = self.slice_of(index);
        let cache = self.cache.borrow();
        match cache.find(at) {
            None => Ready::Miss(Missing::Slice(at).miss()),
            Some(slot) => {
                let bytes = &cache.bytes(slot)[byte..byte + 8];
                Ready::Yes(u64::from_le_bytes(bytes.try_into().expect("eight bytes")))
            }
        }
    }

    /// What a payload block is.
    pub(super) fn block(&self, block: u64) -> Result<Ready<Block>, VhdxError> {
        let index = self.payload_index(block);
        match self.raw_entry(index) {
            Ready::Miss(miss) => Ok(Ready::Miss(miss)),
            Ready::Yes(raw) => self.parse_block(index, raw).map(Ready::Yes),
        }
    }

    /// What an entry makes of its payload block.
    pub(super) fn parse_block(&self, index: u64, found: u64) -> Result<Block, VhdxError> {
        let fail = |expected| Err(VhdxError::BatEntry { index, found, expected });
        let parent = self.metadata.parent.is_some();
        match PayloadEntry::parse(found) {
            None => fail("a known state"),
            Some(PayloadEntry::NotPresent) if parent => Ok(Block::Parent),
            Some(PayloadEntry::PartiallyPresent(_)) if !parent => {
                fail("a parent for what is partially present")
            }
            Some(PayloadEntry::FullyPresent(at)) => self.placed(index, found, at).map(Block::Full),
            Some(PayloadEntry::PartiallyPresent(at)) => self.placed(index, found, at).map(Block::Partial),
            Some(_) => Ok(Block::Zeros),
        }
    }

    fn placed(&self, index: u64, found: u64, at: HostOffset) -> Result<u64, VhdxError> {
        let legal = self.may_hold(at.0, self.metadata.block_len);
        legal.map(|()| at.0).map_err(|expected| VhdxError::BatEntry { index, found, expected })
    }

    /// Whether a place in the file can be a block's. The last one of a file may be cut off.
    fn may_hold(&self, at: u64, len: u64) -> Result<(), &'static str> {
        if at >= self.file_len.get() {
            return Err("a block within the file");
        }
        let next = self.taken.partition_point(|region| region.end() <= at);
        match self.taken.get(next) {
            Some(region) if region.at < at + len => Err("a block apart from headers, log and regions"),
            _ => Ok(()),
        }
    }

    /// Where a chunk's sector bitmap block is.
    pub(super) fn bitmap(&self, chunk: u64) -> Result<Ready<Option<u64>>, VhdxError> {
        let index = self.bitmap_index(chunk);
        match self.raw_entry(index) {
            Ready::Miss(miss) => Ok(Ready::Miss(miss)),
            Ready::Yes(raw) => self.parse_bitmap(index, raw).map(Ready::Yes),
        }
    }

    /// What an entry makes of its sector bitmap block.
    pub(super) fn parse_bitmap(&self, index: u64, found: u64) -> Result<Option<u64>, VhdxError> {
        let fail = |expected| VhdxError::BatEntry { index, found, expected };
        match BitmapEntry::parse(found) {
            None => Err(fail("a state of a sector bitmap block")),
            Some(BitmapEntry::NotPresent) => Ok(None),
            Some(BitmapEntry::Present(at)) => {
                self.may_hold(at.0, MIB).map_err(fail)?;
                Ok(Some(at.0))
            }
        }
    }

    /// Where the bytes at an offset are in the file, as far as they are there.
    pub(super) fn place_of(&self, offset: u64) -> Result<Option<u64>, VhdxError> {
        let (block, within) = (offset / self.metadata.block_len, offset % self.metadata.block_len);
        Ok(match self.block(block)? {
            Ready::Yes(Block::Full(at) | Block::Partial(at)) => Some(at + within),
            _ => None,
        })
    }

    pub(super) fn extent(&self, offset: u64, len: u64, access: Access) -> Result<Extent, VhdxError> {
        let miss = |miss| Ok(Extent { len, mapping: Mapping::Miss(miss) });
        if access != Access::Read && !self.begun.get() {
            return miss(Missing::Session.miss());
        }
        let block_len = self.metadata.block_len;
        let (block, within) = (offset / block_len, offset % block_len);
        let first = match self.block(block)? {
            Ready::Yes(first) => first,
            Ready::Miss(what) => return miss(what),
        };
        if let Block::Partial(at) = first {
            let len = len.min(block_len - within);
            return self.sectors(block, at, within, len, access);
        }
        let mut covered = block_len - within;
        let mut nth = 1;
        while covered < len {
            // What is damaged ends a run, and is told to who asks for it.
            match (self.block(block + nth), first.after(nth, block_len)) {
                (Ok(Ready::Yes(next)), Some(wanted)) if next == wanted => covered += block_len,
                _ => break,
            }
            nth += 1;
        }
        let len = len.min(covered);
        Ok(match (first, access) {
            (Block::Full(at), _) => self.data(at + within, len),
            (Block::Parent, Access::Read) => Extent { len, mapping: Mapping::Backing { at: None } },
            (_, Access::Read) => Extent { len, mapping: Mapping::Zero { at: None } },
            (_, Access::Write | Access::Zero) => Extent { len, mapping: Mapping::Allocate },
        })
    }

    /// Bytes in the file, as far as the log leaves them alone.
    fn data(&self, at: u64, len: u64) -> Extent {
        let (len, logged) = self.overlay.run(at, len);
        match logged {
            false => Extent { len, mapping: Mapping::Data { child: Role::File, offset: at } },
            true => Extent { len, mapping: Mapping::Special { compressed: false } },
        }
    }

    /// The extent of sectors that are all there, or all not, in a block of which only some are.
    fn sectors(
        &self,
        block: u64,
        at: u64,
        within: u64,
        len: u64,
        access: Access,
    ) -> Result<Extent, VhdxError> {
        let (run, there) = match self.run_of_bits(block, within, len)? {
            Ready::Yes(run) => run,
            Ready::Miss(miss) => return Ok(Extent { len, mapping: Mapping::Miss(miss) }),
        };
        Ok(match (there, access) {
            (true, _) => self.data(at + within, run),
            (false, Access::Read) => Extent { len: run, mapping: Mapping::Backing { at: None } },
            (false, Access::Write | Access::Zero) => Extent { len: run, mapping: Mapping::Allocate },
        })
    }

    /// How many of `len` bytes are in sectors with the same bit, and whether it is set.
    pub(super) fn run_of_bits(
        &self,
        block: u64,
        within: u64,
        len: u64,
    ) -> Result<Ready<(u64, bool)>, VhdxError> {
        let chunk = block / self.chunk_ratio();
        let bitmap = match self.bitmap(chunk)? {
            Ready::Yes(bitmap) => bitmap,
            Ready::Miss(miss) => return Ok(Ready::Miss(miss)),
        };
        let (index, expected) =
            (self.bitmap_index(chunk), "a sector bitmap block, for what is partially present");
        let bitmap = bitmap.ok_or(VhdxError::BatEntry { index, found: 0, expected })?;
        let (slice, bit) = self.bit_of(bitmap, block, within);
        let cache = self.cache.borrow();
        let Some(slot) = cache.find(slice) else { return Ok(Ready::Miss(Missing::Slice(slice).miss())) };
        let sector = self.metadata.sector;
        let sectors = (within % sector + len).div_ceil(sector) as usize;
        let (run, set) = run_of_bits(cache.bytes(slot), FirstBit::Lowest, bit, sectors);
        Ok(Ready::Yes((len.min(run as u64 * sector - within % sector), set)))
    }
}
