//! VDI, VirtualBox's disk image: a header, a block map, and blocks of 1 MiB in the order in which they were first written.
//!
//! ```text
//!   ┌────────┬───────────────────────────┬─────────┬─────────┬──
//!   │ header │ block map: u32 each       │ block 0 │ block 1 │ …
//!   └────────┴───────────────────────────┴─────────┴─────────┴──
//!   0        map_at                      data_at
//! ```
//!
//! The map is read and written by slices, in a bounded cache. `layout` has the header, `flush` the order on disk.
//! A differencing image needs a parent that nothing in it names, and is refused.
//!
//! Source: the annotated header of VirtualBox's own files, and what `qemu-img` 10.0.2 makes and accepts.

mod check;
mod create;
mod error;
mod flush;
pub mod layout;
mod open;

use std::any::Any;
use std::cell::{Cell, RefCell};

use async_trait::async_trait;

pub use check::check;
pub use create::{CreateOptions, create};
pub use error::VdiError;
pub use open::{open, probe};

use super::cache::SliceCache;
use super::lengthening::Lengthening;
use super::loads::Loads;
use super::{CheckReport, HostOffset, ImageFacts};
use crate::engine::task::Gate;
use crate::engine::{Io, LocalFuture};
use crate::error::{Error, Result};
use crate::graph::driver::{Access, Driver, Extent, Length, Mapping, Miss, Ready, Reservation, Role};
use crate::intent::ZeroFlags;
use layout::{BLOCK_LEN, Entry, Header, ImageType};

/// Bytes of the map that are read and written at once: what 1 GiB of the disk needs.
const SLICE_LEN: u64 = 4096;

/// An open image.
pub struct Vdi {
    name: String,
    header: RefCell<Header>,
    /// Whether the header in the file says less than the one in memory.
    header_dirty: Cell<bool>,
    map: RefCell<SliceCache>,
    space: RefCell<Space>,
    /// Changes of the map that were made, and that are durable.
    changes: Cell<u64>,
    durable: Cell<u64>,
    commits: Gate,
    lengthening: Lengthening,
    loads: Loads,
}

/// Blocks of the file that nothing points to.
#[derive(Default)]
struct Space {
    /// The first block behind all that the map names; `None` until the map was read through for it.
    end: Option<u32>,
    /// From this byte on, the file reads as zeros until it is written to.
    zeros_from: u64,
    /// Blocks that were given back.
    free: Vec<u32>,
}

/// What [`Driver::load`] is asked for.
enum Missing {
    Slice(HostOffset),
    End,
    /// The file's new length.
    Length,
}

impl Missing {
    fn of(miss: Miss) -> Self {
        match miss.what {
            0 => Self::Slice(HostOffset(miss.at)),
            1 => Self::End,
            _ => Self::Length,
        }
    }

    fn miss(&self) -> Miss {
        match self {
            Self::Slice(at) => Miss { what: 0, at: at.0 },
            Self::End => Miss { what: 1, at: 0 },
            Self::Length => Miss { what: 2, at: 0 },
        }
    }
}

impl Vdi {
    /// The header as it will be in the file after the next flush.
    pub fn header(&self) -> Header {
        self.header.borrow().clone()
    }

    fn fail(&self, fault: VdiError) -> Box<Error> {
        Error::format(&*self.name, fault)
    }

    /// The slice that holds the entry of a block, and the entry's first byte in it.
    fn slice_of(&self, block: u64) -> (HostOffset, usize) {
        let byte = block * 4;
        (HostOffset(self.header.borrow().map_at + byte / SLICE_LEN * SLICE_LEN), (byte % SLICE_LEN) as usize)
    }

    /// The entries of a block and of those behind it in the same slice, as far as `blocks` go.
    fn entries(&self, block: u64, blocks: u64) -> Result<Ready<Vec<Entry>>, VdiError> {
        let (at, byte) = self.slice_of(block);
        let map = self.map.borrow();
        let Some(slot) = map.find(at) else { return Ok(Ready::Miss(Missing::Slice(at).miss())) };
        let header = self.header.borrow();
        let entries = map.bytes(slot)[byte..].chunks_exact(4).take(blocks as usize);
        let parsed = entries.zip(block..).map(|(bytes, block)| {
            let raw = u32::from_le_bytes(bytes.try_into().expect("four bytes"));
            Entry::parse(raw, &header).map_err(|found| VdiError::Entry {
                block,
                found,
                blocks: header.blocks,
            })
        });
        // What is damaged ends a run, and is told to who asks for it.
        let mut run = Vec::new();
        for entry in parsed {
            match entry {
                Ok(entry) => run.push(entry),
                Err(fault) if run.is_empty() => return Err(fault),
                Err(_) => break,
            }
        }
        Ok(Ready::Yes(run))
    }

    fn extent(&self, offset: u64, len: u64, access: Access) -> Result<Extent, VdiError> {
        let (block, within) = (offset / BLOCK_LEN, offset % BLOCK_LEN);
        let blocks = (within + len).div_ceil(BLOCK_LEN);
        let entries = match self.entries(block, blocks)? {
            Ready::Yes(entries) => entries,
            Ready::Miss(miss) => return Ok(Extent { len, mapping: Mapping::Miss(miss) }),
        };
        let first = entries[0];
        let run =
            entries.iter().zip(0..).take_while(|(entry, nth)| **entry == first.after(*nth)).count() as u64;
        let mapping = match (first, access) {
            (Entry::Block(index), _) => {
                let offset = self.header.borrow().place_of(index).0 + within;
                Mapping::Data { child: Role::File, offset }
            }
            (Entry::Zero, Access::Read) => Mapping::Zero { at: None },
            (Entry::Zero, Access::Write | Access::Zero) => Mapping::Allocate,
        };
        Ok(Extent { len: len.min(run * BLOCK_LEN - within), mapping })
    }

    /// Takes blocks behind all others, one behind the other; or one that was given back.
    fn reserve_blocks(&self, offset: u64, len: u64) -> Result<Ready<Reservation>, VdiError> {
        let block = offset / BLOCK_LEN;
        let wanted = (offset + len).div_ceil(BLOCK_LEN) - block;
        let entries = match self.entries(block, wanted)? {
            Ready::Yes(entries) => entries,
            Ready::Miss(miss) => return Ok(Ready::Miss(miss)),
        };
        let run = entries.iter().take_while(|entry| **entry == Entry::Zero).count() as u32;
        if self.lengthening.is_under_way() {
            return Ok(Ready::Miss(Missing::Length.miss()));
        }
        let mut space = self.space.borrow_mut();
        let Some(end) = space.end else { return Ok(Ready::Miss(Missing::End.miss())) };
        let header = self.header.borrow();
        let (index, count, zeroed) = match space.free.pop() {
            Some(index) => (index, 1, false),
            // Leaks may have used up what the map has room for.
            None if end >= header.blocks => return Err(VdiError::Full { blocks: header.blocks }),
            None => {
                let count = run.min(header.blocks - end);
                space.end = Some(end + count);
                (end, count, header.place_of(end).0 >= space.zeros_from)
            }
        };
        let guest_end = ((block + u64::from(count)) * BLOCK_LEN).min(header.size);
        Ok(Ready::Yes(Reservation {
            child: Role::File,
            host_offset: header.place_of(index).0,
            guest_start: block * BLOCK_LEN,
            guest_end,
            zeroed,
            fresh: true,
        }))
    }

    /// The blocks of the guest and of the file that a reservation is about.
    fn blocks_of(&self, reservation: &Reservation) -> impl Iterator<Item = (u64, u32)> + use<> {
        let header = self.header.borrow();
        let first = reservation.guest_start / BLOCK_LEN;
        let index = ((reservation.host_offset - header.data_at) / BLOCK_LEN) as u32;
        (first..reservation.guest_end.div_ceil(BLOCK_LEN)).zip(index..)
    }

    fn publish_blocks(&self, reservation: &Reservation) -> Ready<()> {
        let mut map = self.map.borrow_mut();
        for (block, _) in self.blocks_of(reservation) {
            let (at, _) = self.slice_of(block);
            if map.find(at).is_none() {
                return Ready::Miss(Missing::Slice(at).miss());
            }
        }
        for (block, index) in self.blocks_of(reservation) {
            let (at, byte) = self.slice_of(block);
            let slot = map.find(at).expect("found above");
            map.bytes_mut(slot)[byte..byte + 4].copy_from_slice(&index.to_le_bytes());
        }
        self.changes.set(self.changes.get() + 1);
        let end = self.space.borrow().end.expect("who reserved has read the map through");
        let mut header = self.header.borrow_mut();
        if header.allocated != end {
            header.allocated = end;
            self.header_dirty.set(true);
        }
        Ready::Yes(())
    }
}

#[async_trait(?Send)]
impl Driver for Vdi {
    fn name(&self) -> &'static str {
        "vdi"
    }

    fn length(&self) -> Length {
        Length::Bytes(self.header.borrow().size)
    }

    fn lookup(&self, offset: u64, len: u64, access: Access) -> Result<Extent> {
        self.extent(offset, len, access).map_err(|fault| self.fail(fault))
    }

    fn load<'a>(&'a self, io: &'a Io, miss: Miss) -> LocalFuture<'a, Result<()>> {
        Box::pin(async move {
            match Missing::of(miss) {
                Missing::Slice(at) => self.load_slice(io, at).await,
                Missing::End => self.find_end(io).await,
                Missing::Length => {
                    self.lengthening.settle(io).await;
                    Ok(())
                }
            }
        })
    }

    fn facts(&self) -> ImageFacts {
        let preallocated = self.header.borrow().image_type == ImageType::Static;
        ImageFacts { cluster_size: Some(BLOCK_LEN), preallocated, ..ImageFacts::default() }
    }

    fn granularity(&self) -> u64 {
        BLOCK_LEN
    }

    fn reserve(&self, offset: u64, len: u64) -> Result<Ready<Reservation>> {
        self.reserve_blocks(offset, len).map_err(|fault| self.fail(fault))
    }

    fn publish(&self, reservation: &Reservation) -> Result<Ready<()>> {
        Ok(self.publish_blocks(reservation))
    }

    fn give_back(&self, reservation: &Reservation) {
        let mut space = self.space.borrow_mut();
        space.free.extend(self.blocks_of(reservation).map(|(_, index)| index));
    }

    /// Blocks that are not there read as zeros. One that somebody took meanwhile gets them as data.
    fn write_zeroes<'a>(
        &'a self,
        io: &'a Io,
        offset: u64,
        len: u64,
        _: ZeroFlags,
    ) -> LocalFuture<'a, Result<bool>> {
        Box::pin(async move {
            let (mut block, end) = (offset / BLOCK_LEN, (offset + len).div_ceil(BLOCK_LEN));
            while block < end {
                match self.entries(block, end - block).map_err(|fault| self.fail(fault))? {
                    Ready::Miss(miss) => self.load(io, miss).await?,
                    Ready::Yes(entries) if entries.iter().any(|entry| *entry != Entry::Zero) => {
                        return Ok(false);
                    }
                    Ready::Yes(entries) => block += entries.len() as u64,
                }
            }
            Ok(true)
        })
    }

    fn discard<'a>(&'a self, _: &'a Io, _: u64, _: u64) -> LocalFuture<'a, Result<()>> {
        Box::pin(async { Ok(()) })
    }

    fn is_clean(&self) -> bool {
        self.durable.get() == self.changes.get()
    }

    fn flush<'a>(&'a self, io: &'a Io) -> LocalFuture<'a, Result<()>> {
        Box::pin(self.flush_all(io))
    }

    async fn close(&self, io: &Io) -> Result<()> {
        // Data too, of blocks that were there before: a closed image is durable.
        self.flush_all(io).await
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
