//! Lookup: where a range of the disk is, by the BAT and the bitmaps in memory.

use super::layout::{SECTOR, UNALLOCATED};
use super::{Missing, Vpc, VpcError};
use crate::format::HostOffset;
use crate::format::sector_bits::{FirstBit, run_of_bits};
use crate::graph::driver::{Access, Extent, Mapping, Ready, Role};

impl Vpc {
    /// Where a block begins in the file, with its bitmap.
    pub(super) fn place(&self, block: u64) -> Result<Ready<Option<u64>>, VpcError> {
        let (at, byte) = self.slice_of(block);
        let bat = self.bat.borrow();
        let Some(slot) = bat.find(at) else { return Ok(Ready::Miss(Missing::Slice(at).miss())) };
        let raw = u32::from_be_bytes(bat.bytes(slot)[byte..byte + 4].try_into().expect("four bytes"));
        self.parse_entry(block, raw).map(Ready::Yes)
    }

    /// What an entry says.
    pub(super) fn parse_entry(&self, block: u64, found: u32) -> Result<Option<u64>, VpcError> {
        if found == UNALLOCATED {
            return Ok(None);
        }
        let at = u64::from(found) * SECTOR;
        let fail = |expected| Err(VpcError::BatEntry { block, found, expected });
        let end = at + self.block_space();
        let next = self.taken.partition_point(|(_, taken_end)| *taken_end <= at);
        match self.taken.get(next) {
            _ if end > self.file_len.get() => fail("a block within the file"),
            Some((taken, _)) if *taken < end => fail("a block apart from footer, header, BAT and names"),
            _ => Ok(Some(at)),
        }
    }

    /// Bytes of a block with its bitmap.
    pub(super) fn block_space(&self) -> u64 {
        self.header.bitmap_len() + self.header.block_len
    }

    pub(super) fn extent(&self, offset: u64, len: u64, access: Access) -> Result<Extent, VpcError> {
        let block_len = self.header.block_len;
        let (block, within) = (offset / block_len, offset % block_len);
        let first = match self.place(block)? {
            Ready::Yes(first) => first,
            Ready::Miss(miss) => return Ok(Extent { len, mapping: Mapping::Miss(miss) }),
        };
        if let Some(at) = first {
            let len = len.min(block_len - within);
            let (len, set) = match access == Access::Read && !self.is_differencing() {
                true => (len, true),
                false => match self.run_of_bits(at, within, len) {
                    Ready::Yes(run) => run,
                    Ready::Miss(miss) => return Ok(Extent { len, mapping: Mapping::Miss(miss) }),
                },
            };
            let offset = at + self.header.bitmap_len() + within;
            let mapping = match (set, access) {
                (true, _) => Mapping::Data { child: Role::File, offset },
                (false, Access::Read) => Mapping::Backing { at: None },
                (false, Access::Write | Access::Zero) => Mapping::Allocate,
            };
            return Ok(Extent { len, mapping });
        }
        let mut covered = block_len - within;
        let mut next = block + 1;
        while covered < len && matches!(self.place(next), Ok(Ready::Yes(None))) {
            covered += block_len;
            next += 1;
        }
        let mapping = match access {
            Access::Read if self.is_differencing() => Mapping::Backing { at: None },
            Access::Read => Mapping::Zero { at: None },
            Access::Write | Access::Zero => Mapping::Allocate,
        };
        Ok(Extent { len: len.min(covered), mapping })
    }

    /// How many of `len` bytes of the block at `at` are in sectors with the same bit, and whether it is set.
    pub(super) fn run_of_bits(&self, at: u64, within: u64, len: u64) -> Ready<(u64, bool)> {
        let at = HostOffset(at);
        let bitmaps = self.bitmaps.borrow();
        let Some(slot) = bitmaps.find(at) else { return Ready::Miss(Missing::Bitmap(at).miss()) };
        let first = (within / SECTOR) as usize;
        let sectors = (within % SECTOR + len).div_ceil(SECTOR) as usize;
        let (run, set) = run_of_bits(bitmaps.bytes(slot), FirstBit::Highest, first, sectors);
        Ready::Yes((len.min(run as u64 * SECTOR - within % SECTOR), set))
    }
}
