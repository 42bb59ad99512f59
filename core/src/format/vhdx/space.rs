//! Space: where new blocks go, and the entries and bits that then lead to them.
//!
//! New blocks go behind all that the BAT names, so that what a crash lost behind them is used again. In a differencing image,
//! a write of a part of a block takes the block's space, and the sector bitmap says which sectors are in it: nothing is copied
//! but the rest of a sector.

use super::check::Survey;
use super::layout::{BitmapEntry, FILE_MAX, MIB, PayloadEntry};
use super::lookup::Block;
use super::{Missing, Vhdx, VhdxError};
use crate::engine::Io;
use crate::error::Result;
use crate::format::HostOffset;
use crate::graph::driver::{Miss, Ready, Reservation, Role};
use crate::intent::ZeroFlags;

/// Room in the file.
#[derive(Default)]
pub(super) struct Space {
    /// The byte behind all that is in use; `None` until the BAT was read through for it.
    end: Option<u64>,
    /// From here on, the file reads as zeros until it is written to.
    zeros_from: u64,
    /// Blocks that were given back.
    free: Vec<u64>,
}

impl Space {
    /// Takes `len` bytes behind everything.
    fn take(&mut self, len: u64) -> Result<u64, VhdxError> {
        let at = self.end.expect("who takes space has looked for the end");
        let end = at.checked_add(len).filter(|end| *end <= FILE_MAX);
        self.end = Some(end.ok_or(VhdxError::FileTooLarge { max: FILE_MAX })?);
        Ok(at)
    }

    pub(super) fn end(&self) -> Option<u64> {
        self.end
    }
}

impl Vhdx {
    pub(super) fn reserve_space(&self, offset: u64, len: u64) -> Result<Ready<Reservation>, VhdxError> {
        let (block_len, sector) = (self.metadata.block_len, self.metadata.sector);
        let (block, within) = (offset / block_len, offset % block_len);
        let first = match self.block(block)? {
            Ready::Yes(first) => first,
            Ready::Miss(miss) => return Ok(Ready::Miss(miss)),
        };
        // The sectors of this block that are asked for.
        let start = offset - within % sector;
        let sectors_end = (offset + len).next_multiple_of(sector).min((block + 1) * block_len);
        if let Block::Partial(at) = first {
            let (run, _) = match self.run_of_bits(block, within, sectors_end - offset)? {
                Ready::Yes(run) => run,
                Ready::Miss(miss) => return Ok(Ready::Miss(miss)),
            };
            return Ok(Ready::Yes(Reservation {
                child: Role::File,
                host_offset: at + start % block_len,
                guest_start: start,
                guest_end: offset + run,
                zeroed: false,
                fresh: false,
            }));
        }
        let wanted = (offset + len).div_ceil(block_len) - block;
        let count = match first {
            Block::Parent => 1,
            _ => match self.zero_blocks_in_a_row(block, wanted)? {
                Ready::Yes(count) => count,
                Ready::Miss(miss) => return Ok(Ready::Miss(miss)),
            },
        };
        if self.space.borrow().end.is_none() {
            return Ok(Ready::Miss(Missing::End.miss()));
        }
        let partial =
            first == Block::Parent && (start, sectors_end) != (block * block_len, (block + 1) * block_len);
        if partial {
            let chunk = block / self.chunk_ratio();
            match self.bitmap(chunk)? {
                Ready::Yes(Some(_)) => {}
                Ready::Yes(None) => return Ok(Ready::Miss(Missing::Bitmap(chunk).miss())),
                Ready::Miss(miss) => return Ok(Ready::Miss(miss)),
            }
        }
        if self.lengthening.is_under_way() {
            return Ok(Ready::Miss(Missing::Length.miss()));
        }
        let (at, count, zeroed) = {
            let mut space = self.space.borrow_mut();
            match space.free.pop() {
                Some(at) => (at, 1, false),
                None => {
                    let at = space.take(count * block_len)?;
                    (at, count, at >= space.zeros_from)
                }
            }
        };
        let (guest_start, guest_end) = match partial {
            true => (start, sectors_end),
            false => (block * block_len, ((block + count) * block_len).min(self.size.get())),
        };
        let host_offset = at + guest_start % block_len;
        Ok(Ready::Yes(Reservation {
            child: Role::File,
            host_offset,
            guest_start,
            guest_end,
            zeroed,
            fresh: true,
        }))
    }

    /// Takes a block behind everything, and says whether it reads as zeros.
    pub(super) fn take_block(&self) -> Result<(u64, bool), VhdxError> {
        let mut space = self.space.borrow_mut();
        let at = space.take(self.metadata.block_len)?;
        Ok((at, at >= space.zeros_from))
    }

    /// How many blocks from this one on, at most `max`, hold zeros.
    fn zero_blocks_in_a_row(&self, block: u64, max: u64) -> Result<Ready<u64>, VhdxError> {
        let mut count = 1;
        while count < max {
            match self.block(block + count)? {
                Ready::Yes(Block::Zeros) => count += 1,
                Ready::Yes(_) => break,
                Ready::Miss(miss) => return Ok(Ready::Miss(miss)),
            }
        }
        Ok(Ready::Yes(count))
    }

    /// The blocks of the guest that a fresh reservation is about, and their places.
    fn blocks_of(&self, space: &Reservation) -> impl Iterator<Item = (u64, u64)> + use<> {
        let block_len = self.metadata.block_len;
        let first = space.host_offset - space.guest_start % block_len;
        let (start, end) = (space.guest_start / block_len, space.guest_end.div_ceil(block_len));
        (start..end).map(move |block| (block, first + (block - start) * block_len))
    }

    pub(super) fn give_space_back(&self, reservation: &Reservation) {
        if reservation.fresh {
            self.space.borrow_mut().free.extend(self.blocks_of(reservation).map(|(_, at)| at));
        }
    }

    pub(super) fn publish_space(&self, space: &Reservation) -> Result<Ready<()>, VhdxError> {
        let block_len = self.metadata.block_len;
        let block = space.guest_start / block_len;
        let before = match self.block(block)? {
            Ready::Yes(before) => before,
            Ready::Miss(miss) => return Ok(Ready::Miss(miss)),
        };
        let (from, to) = (space.guest_start % block_len, space.guest_end - block * block_len);
        let last = space.guest_end == self.size.get();
        let whole = from == 0 && (to >= block_len || last);
        match before {
            Block::Partial(_) => self.set_bits(block, (from, to), Others::Keep),
            Block::Parent if !whole => {
                let Some(missing) = self.missing_entry(block) else {
                    let bits = self.set_bits(block, (from, to), Others::Clear)?;
                    if let Ready::Yes(()) = bits {
                        let at = HostOffset(space.host_offset - from);
                        self.set_entry(
                            self.payload_index(block),
                            PayloadEntry::PartiallyPresent(at).encode(),
                        );
                    }
                    return Ok(bits);
                };
                Ok(Ready::Miss(missing.miss()))
            }
            _ => {
                let missing = self.blocks_of(space).find_map(|(block, _)| self.missing_entry(block));
                if let Some(missing) = missing {
                    return Ok(Ready::Miss(missing.miss()));
                }
                for (block, at) in self.blocks_of(space) {
                    let entry = PayloadEntry::FullyPresent(HostOffset(at));
                    self.set_entry(self.payload_index(block), entry.encode());
                }
                Ok(Ready::Yes(()))
            }
        }
    }

    /// The slice with a block's entry, if it is not in memory.
    fn missing_entry(&self, block: u64) -> Option<Missing> {
        let (at, _) = self.slice_of(self.payload_index(block));
        self.cache.borrow().find(at).is_none().then_some(Missing::Slice(at))
    }

    /// Changes an entry in memory.
    pub(super) fn set_entry(&self, index: u64, entry: u64) {
        let (at, byte) = self.slice_of(index);
        let mut cache = self.cache.borrow_mut();
        let slot = cache.find(at).expect("whoever changes an entry has seen its slice");
        cache.bytes_mut(slot)[byte..byte + 8].copy_from_slice(&entry.to_le_bytes());
        // A place in the file is good from here on.
        if let Some(end) = self.space.borrow().end {
            self.file_len.set(self.file_len.get().max(end));
        }
        self.changed();
    }

    /// Sets the bits of the sectors of a block from byte `from` to byte `to`.
    fn set_bits(&self, block: u64, (from, to): (u64, u64), others: Others) -> Result<Ready<()>, VhdxError> {
        let chunk = block / self.chunk_ratio();
        let bitmap = match self.bitmap(chunk)? {
            Ready::Yes(bitmap) => bitmap.expect("who reserved has seen to it that there is a bitmap"),
            Ready::Miss(miss) => return Ok(Ready::Miss(miss)),
        };
        let sector = self.metadata.sector;
        let (first, last) = match others {
            Others::Keep => (from / sector, to.div_ceil(sector)),
            Others::Clear => (0, self.metadata.block_len / sector),
        };
        let places = (first..last).map(|nth| (nth, self.bit_of(bitmap, block, nth * sector)));
        let mut cache = self.cache.borrow_mut();
        let mut seen = None;
        for (_, (slice, _)) in places.clone() {
            if seen.replace(slice) != Some(slice) && cache.find(slice).is_none() {
                return Ok(Ready::Miss(Missing::Slice(slice).miss()));
            }
        }
        for (nth, (slice, bit)) in places {
            let slot = cache.find(slice).expect("found above");
            let set = (from / sector..to.div_ceil(sector)).contains(&nth);
            let byte = &mut cache.bytes_mut(slot)[bit / 8];
            *byte = *byte & !(1 << (bit % 8)) | u8::from(set) << (bit % 8);
        }
        drop(cache);
        self.changed();
        Ok(Ready::Yes(()))
    }

    /// Makes a sector bitmap block for a chunk that has none. Whatever stands there is no harm: nobody looks at the bits of a
    /// block before its entry says so, and all of them are written then.
    pub(super) async fn add_bitmap(&self, io: &Io, chunk: u64) -> Result<()> {
        // Whoever waited for the entry as well may have made it.
        while self.loaded_bitmap(io, chunk).await?.is_none() {
            if self.lengthening.is_under_way() {
                self.lengthening.settle(io).await;
                continue;
            }
            return self.take_bitmap(chunk);
        }
        Ok(())
    }

    fn take_bitmap(&self, chunk: u64) -> Result<()> {
        let at = self.space.borrow_mut().take(MIB).map_err(|fault| self.fail(fault))?;
        self.set_entry(self.bitmap_index(chunk), BitmapEntry::Present(HostOffset(at)).encode());
        Ok(())
    }

    /// Where a chunk's sector bitmap block is; its entry is in memory until the next await.
    async fn loaded_bitmap(&self, io: &Io, chunk: u64) -> Result<Option<u64>> {
        loop {
            match self.bitmap(chunk).map_err(|fault| self.fail(fault))? {
                Ready::Yes(bitmap) => return Ok(bitmap),
                Ready::Miss(miss) => self.load_missing(io, miss).await?,
            }
        }
    }

    /// Finds the end of all blocks that the BAT names. A BAT that names a place twice is not added to.
    pub(super) async fn find_end(&self, io: &Io) -> Result<()> {
        let _one_at_a_time = self.growing.enter(&io.shared().tasks).await;
        if self.space.borrow().end.is_some() {
            return Ok(());
        }
        let mut survey = Survey::default();
        self.survey(io, &mut survey).await?;
        if let Some(fault) = survey.faults.into_iter().next() {
            return Err(self.fail(fault));
        }
        let file = io.child(Role::File);
        let grows_as_zeroes = io.starts_as_zeroes(file);
        let mut space = self.space.borrow_mut();
        space.end = Some(survey.end.next_multiple_of(MIB));
        space.zeros_from = if grows_as_zeroes { io.len(file) } else { u64::MAX };
        Ok(())
    }

    /// Makes whole blocks read as zeros. Those that are in the file stay there.
    pub(super) async fn zero_blocks(&self, io: &Io, offset: u64, len: u64, flags: ZeroFlags) -> Result<()> {
        let block_len = self.metadata.block_len;
        let file = io.child(Role::File);
        let (mut at, end) = (offset, offset + len);
        while at < end {
            let (block, within) = (at / block_len, at % block_len);
            let len = (block_len - within).min(end - at);
            match self.block(block).map_err(|fault| self.fail(fault))? {
                Ready::Miss(miss) => {
                    self.load_missing(io, miss).await?;
                    continue;
                }
                Ready::Yes(Block::Zeros) => {}
                Ready::Yes(Block::Full(place)) => {
                    io.write_zeroes("vhdx.zero/block", file, place + within, len, flags).await?;
                }
                Ready::Yes(Block::Parent) => {
                    self.set_entry(self.payload_index(block), PayloadEntry::Zero.encode());
                }
                Ready::Yes(Block::Partial(place)) => {
                    // A barrier stands between these zeros and the entry that shows all of them.
                    io.write_zeroes("vhdx.zero/partial", file, place + within, len, flags).await?;
                    if self.missing_entry(block).is_some() {
                        continue;
                    }
                    let entry = PayloadEntry::FullyPresent(HostOffset(place));
                    self.set_entry(self.payload_index(block), entry.encode());
                }
            }
            at += len;
        }
        Ok(())
    }

    pub(super) async fn load_missing(&self, io: &Io, miss: Miss) -> Result<()> {
        match Missing::of(miss) {
            Missing::Slice(at) => self.load_slice(io, at).await,
            _ => unreachable!("a block is known by a slice of the BAT"),
        }
    }
}

/// What becomes of the bits of the other sectors of a block.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Others {
    Keep,
    Clear,
}
