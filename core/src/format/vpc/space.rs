//! Space: where new blocks go, and the entries and bits that then lead to them.
//!
//! A new block goes where the footer is, behind all that the BAT names, so that what a crash lost behind them is used again.
//! In a differencing image, a write of a part of a block takes the block's space, and its bitmap says which sectors are there.

use super::layout::{SECTOR, UNALLOCATED};
use super::{Missing, Vpc, VpcError};
use crate::buf::Buf;
use crate::engine::Io;
use crate::error::Result;
use crate::format::HostOffset;
use crate::graph::driver::{Ready, Reservation, Role};
use crate::intent::{Fua, Preallocation};

/// Bytes of the BAT that are read at once where all of it is.
const PIECE: u64 = 1 << 20;

/// Room in the file.
#[derive(Default)]
pub(super) struct Space {
    /// The byte behind all blocks; `None` until the BAT was read through for it.
    end: Option<u64>,
    /// From here on, the file reads as zeros until it is written to.
    zeros_from: u64,
    /// Blocks that were given back.
    free: Vec<u64>,
}

impl Space {
    pub(super) fn end(&self) -> Option<u64> {
        self.end
    }
}

impl Vpc {
    pub(super) fn reserve_space(&self, offset: u64, len: u64) -> Result<Ready<Reservation>, VpcError> {
        let (block_len, bitmap_len) = (self.header.block_len, self.header.bitmap_len());
        let (block, within) = (offset / block_len, offset % block_len);
        let block_end = ((block + 1) * block_len).min(self.size);
        let start = offset - offset % SECTOR;
        let sectors_end = (offset + len).next_multiple_of(SECTOR).min(block_end);
        match self.place(block)? {
            Ready::Miss(miss) => return Ok(Ready::Miss(miss)),
            Ready::Yes(None) => {}
            Ready::Yes(Some(at)) => {
                let (run, _) = match self.run_of_bits(at, within, sectors_end - offset) {
                    Ready::Yes(run) => run,
                    Ready::Miss(miss) => return Ok(Ready::Miss(miss)),
                };
                return Ok(Ready::Yes(Reservation {
                    child: Role::File,
                    host_offset: at + bitmap_len + start % block_len,
                    guest_start: start,
                    guest_end: offset + run,
                    zeroed: false,
                    fresh: false,
                }));
            }
        }
        let mut space = self.space.borrow_mut();
        let Some(end) = space.end else { return Ok(Ready::Miss(Missing::End.miss())) };
        let (at, zeroed) = match space.free.pop() {
            Some(at) => (at, false),
            None => {
                // The place of the next footer is a sector that an entry can name, too.
                let max = u64::from(UNALLOCATED) * SECTOR;
                let next = Some(end + self.block_space()).filter(|next| *next < max);
                space.end = Some(next.ok_or(VpcError::Full { max })?);
                (end, end + bitmap_len >= space.zeros_from)
            }
        };
        let (guest_start, guest_end) = match self.is_differencing() {
            true => (start, sectors_end),
            false => (block * block_len, block_end),
        };
        let host_offset = at + bitmap_len + guest_start % block_len;
        Ok(Ready::Yes(Reservation {
            child: Role::File,
            host_offset,
            guest_start,
            guest_end,
            zeroed,
            fresh: true,
        }))
    }

    /// Where the block of a reservation begins, with its bitmap.
    fn start_of(&self, space: &Reservation) -> u64 {
        space.host_offset - space.guest_start % self.header.block_len - self.header.bitmap_len()
    }

    pub(super) fn give_space_back(&self, reservation: &Reservation) {
        if reservation.fresh {
            self.space.borrow_mut().free.push(self.start_of(reservation));
        }
    }

    pub(super) fn publish_space(&self, space: &Reservation) -> Result<Ready<()>, VpcError> {
        let block_len = self.header.block_len;
        let block = space.guest_start / block_len;
        let at = HostOffset(self.start_of(space));
        let (slice, byte) = self.slice_of(block);
        let mut bat = self.bat.borrow_mut();
        let Some(entry) = bat.find(slice) else { return Ok(Ready::Miss(Missing::Slice(slice).miss())) };
        let mut bitmaps = self.bitmaps.borrow_mut();
        let bitmap = match (bitmaps.find(at), space.fresh) {
            (Some(bitmap), _) => bitmap,
            (None, false) => return Ok(Ready::Miss(Missing::Bitmap(at).miss())),
            // Nothing of it is in the file yet.
            (None, true) => {
                let bits = if self.is_differencing() { 0 } else { 0xff };
                let bytes = vec![bits; self.header.bitmap_len() as usize];
                match bitmaps.insert(at, Buf::from(bytes)) {
                    Ok(bitmap) => bitmap,
                    Err(_) => return Ok(Ready::Miss(Missing::Room.miss())),
                }
            }
        };
        let sectors =
            space.guest_start % block_len / SECTOR..(space.guest_end - block * block_len).div_ceil(SECTOR);
        let bits = bitmaps.bytes_mut(bitmap);
        for sector in sectors {
            bits[(sector / 8) as usize] |= 0x80 >> (sector % 8);
        }
        if space.fresh {
            let sector =
                u32::try_from(at.0 / SECTOR).expect("who reserved has seen that an entry reaches there");
            bat.bytes_mut(entry)[byte..byte + 4].copy_from_slice(&sector.to_be_bytes());
            let end = self.space.borrow().end.expect("who reserved has read the BAT through");
            self.file_len.set(self.file_len.get().max(end));
        }
        self.changes.set(self.changes.get() + 1);
        Ok(Ready::Yes(()))
    }

    /// Finds the end of all blocks that the BAT names. A BAT that names a place twice is not added to. Memory: four bytes for
    /// each block that the file has room for.
    pub(super) async fn find_end(&self, io: &Io) -> Result<()> {
        let _one_at_a_time = self.growing.enter(&io.shared().tasks).await;
        if self.space.borrow().end.is_some() {
            return Ok(());
        }
        let file = io.child(Role::File);
        let file_len = io.len(file);
        let room = file_len / self.block_space();
        let mut places: Vec<u32> = Vec::new();
        let (mut block, blocks) = (0, u64::from(self.header.entries));
        while block < blocks {
            let count = (blocks - block).min(PIECE / 4);
            let at = self.header.table_at + block * 4;
            let bytes = io.read_bytes("vpc.open/bat", file, at, (count * 4) as usize).await?;
            for (raw, block) in bytes.chunks_exact(4).zip(block..) {
                let raw = u32::from_be_bytes(raw.try_into().expect("four bytes"));
                if self.parse_entry(block, raw).map_err(|fault| self.fail(fault))?.is_some() {
                    places.push(raw);
                }
            }
            if places.len() as u64 > room {
                let at = places.last().map_or(0, |place| u64::from(*place) * SECTOR);
                return Err(self.fail(VpcError::Overlap { at }));
            }
            block += count;
        }
        places.sort_unstable();
        let space_of = |place: u32| u64::from(place) * SECTOR + self.block_space();
        let shared = places.windows(2).find(|pair| space_of(pair[0]) > u64::from(pair[1]) * SECTOR);
        if let Some(pair) = shared {
            return Err(self.fail(VpcError::Overlap { at: u64::from(pair[1]) * SECTOR }));
        }
        let blocks_end = places.last().map_or(0, |place| space_of(*place));
        let taken_end = self.taken.iter().map(|(_, end)| *end).max().unwrap_or(SECTOR);
        let end = blocks_end.max(taken_end.next_multiple_of(SECTOR));
        let grows_as_zeroes = io.starts_as_zeroes(file);
        if grows_as_zeroes && file_len != end + SECTOR {
            // Others look for the footer at the end, where a crash left something else. Nobody has taken space yet.
            io.set_len(file, end, Preallocation::Off).await?;
            let footer = Buf::from(&self.footer.encode()[..]);
            io.write("vpc.cut/footer", file, end, footer, Fua::No).await.1?;
        }
        let mut space = self.space.borrow_mut();
        space.end = Some(end);
        space.zeros_from = if grows_as_zeroes { end + SECTOR } else { u64::MAX };
        Ok(())
    }
}
