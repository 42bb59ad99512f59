//! A sparse extent: a grain directory in memory, grain tables in a cache, and grains.
//!
//! ```text
//!   byte of the extent ──▶ grain directory ──▶ grain table ──▶ grain in the file, zeros, or nothing
//!                          in memory           in a cache
//! ```
//!
//! A grain that is compressed is written once. Others are written in place.

use std::cell::{Cell, RefCell};

use super::VmdkError;
use super::layout::{SECTOR, SeSparseHeader, SparseHeader};
use crate::format::HostOffset;
use crate::format::cache::{SliceCache, SlotIndex};
use crate::graph::driver::{Access, Mapping, Role};

/// How a grain table is written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    /// u32 sectors of the file; 1 is a grain of zeros where `zeroed` says so. Grains do not lie before `overhead`.
    Sectors { zeroed: bool, overhead: u64 },
    /// u64 numbers of grains, and of tables, behind the first one's sector.
    SeSparse { grains_at: u64, tables_at: u64 },
}

impl Encoding {
    /// Bytes of an entry.
    pub(super) fn entry_len(self) -> usize {
        match self {
            Self::Sectors { .. } => 4,
            Self::SeSparse { .. } => 8,
        }
    }
}

/// How grains are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Packing {
    /// They are not.
    None,
    /// Compressed, behind a marker each.
    Marked,
    /// Compressed.
    Bare,
}

/// What a grain table's entry says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// The parent's bytes, or zeros.
    Unallocated,
    /// Zeros.
    Zero,
    /// At this byte of the file.
    Grain(u64),
}

impl Entry {
    /// What the entry `nth` behind this one is, where they are in a row.
    fn after(self, nth: u64, grain_len: u64) -> Self {
        match self {
            Self::Grain(at) => Self::Grain(at.saturating_add(nth * grain_len)),
            other => other,
        }
    }
}

/// Space of the file that a grain table does not point to.
pub(super) struct Space {
    /// Behind all that is in the file.
    pub(super) end: Cell<u64>,
    /// Places of grains that were given back.
    pub(super) free: RefCell<Vec<u64>>,
    /// Whether what lies behind the end of the file reads as zeros once it is there.
    pub(super) grows_as_zeroes: bool,
}

/// An open sparse extent.
pub(super) struct Sparse {
    /// The file's name, for messages.
    pub(super) file: String,
    pub(super) role: Role,
    /// Bytes of the disk.
    pub(super) len: u64,
    pub(super) grain_len: u64,
    pub(super) table_entries: u64,
    pub(super) encoding: Encoding,
    pub(super) packing: Packing,
    /// Bytes of the file when it was opened: tables lie within.
    pub(super) file_len: u64,
    /// The header, of a kind that is written to.
    pub(super) header: Option<SparseHeader>,
    /// Where the grain tables are: sectors, or one more than their numbers; 0 for one that is not there.
    pub(super) directory: Vec<u32>,
    /// Sectors of grain tables, in order, and of their copies; empty where no copies are kept in step.
    pub(super) copies: Vec<(u32, u32)>,
    pub(super) tables: RefCell<SliceCache>,
    pub(super) space: Space,
    /// Whether the extent may be written to; until then a write misses that.
    pub(super) begun: Cell<bool>,
}

/// Where the entry of a grain is.
pub(super) enum Found {
    /// In a table that is in memory: the table, and the entry's number in it.
    At(SlotIndex, usize),
    /// In a table that is not.
    Miss(HostOffset),
    /// In a table that there is not.
    NoTable,
}

impl Sparse {
    pub(super) fn table_len(&self) -> usize {
        self.table_entries as usize * self.encoding.entry_len()
    }

    /// Where the table of a grain is.
    pub(super) fn table_of(&self, grain: u64) -> Result<Option<HostOffset>, VmdkError> {
        let index = grain / self.table_entries;
        let at = match (self.directory[index as usize], self.encoding) {
            (0, _) => return Ok(None),
            (sector, Encoding::Sectors { .. }) => u64::from(sector) * SECTOR,
            (next, Encoding::SeSparse { tables_at, .. }) => {
                let behind = u64::from(next - 1) * self.table_len() as u64;
                tables_at.saturating_mul(SECTOR).saturating_add(behind)
            }
        };
        if at.saturating_add(self.table_len() as u64) > self.file_len {
            let (file, file_len) = (self.file.clone(), self.file_len);
            return Err(VmdkError::TablePlace { file, index, at, file_len });
        }
        Ok(Some(HostOffset(at)))
    }

    pub(super) fn find(&self, grain: u64) -> Result<Found, VmdkError> {
        let Some(table) = self.table_of(grain)? else { return Ok(Found::NoTable) };
        let slot = self.tables.borrow().find(table);
        Ok(slot.map_or(Found::Miss(table), |slot| Found::At(slot, (grain % self.table_entries) as usize)))
    }

    /// The entry of a grain, from its table.
    pub(super) fn entry(&self, table: &[u8], index: usize, grain: u64) -> Result<Entry, VmdkError> {
        let refused =
            |found, expected| Err(VmdkError::Entry { file: self.file.clone(), grain, found, expected });
        let at = match self.encoding {
            Encoding::Sectors { zeroed, overhead } => {
                let bytes = table[index * 4..index * 4 + 4].try_into().expect("four bytes");
                match u32::from_le_bytes(bytes) {
                    0 => return Ok(Entry::Unallocated),
                    1 if zeroed => return Ok(Entry::Zero),
                    raw if u64::from(raw) < overhead => {
                        return refused(raw.into(), "a sector behind the extent's metadata");
                    }
                    raw => u64::from(raw) * SECTOR,
                }
            }
            Encoding::SeSparse { grains_at, .. } => {
                let bytes = table[index * 8..index * 8 + 8].try_into().expect("eight bytes");
                let raw = u64::from_le_bytes(bytes);
                match raw >> 60 {
                    0 if raw == 0 => return Ok(Entry::Unallocated),
                    1 | 2 => return Ok(Entry::Zero),
                    3 => {
                        let number = (raw & 0x0fff_0000_0000_0000) >> 48 | (raw & 0xffff_ffff_ffff) << 12;
                        let sector = number.checked_mul(SeSparseHeader::GRAIN_SECTORS);
                        let sector = sector.and_then(|sector| sector.checked_add(grains_at));
                        match sector.and_then(|sector| sector.checked_mul(SECTOR)) {
                            Some(at) => at,
                            None => return refused(raw, "a grain within the file"),
                        }
                    }
                    _ => return refused(raw, "an entry of type 0 to 3"),
                }
            }
        };
        // Behind the end is nothing yet, and a new grain would be written there.
        let end = self.space.end.get();
        if at >= end {
            let (file, sector) = (self.file.clone(), grain * (self.grain_len / SECTOR));
            return Err(VmdkError::AfterEnd { file, sector, grain, at, end });
        }
        Ok(Entry::Grain(at))
    }

    /// Says where a range is, and how much of it that is good for; a table that is missed as an error.
    pub(super) fn lookup(
        &self,
        offset: u64,
        len: u64,
        access: Access,
    ) -> Result<Result<(u64, Mapping), HostOffset>, VmdkError> {
        let (grain, within) = (offset / self.grain_len, offset % self.grain_len);
        let left = self.table_entries - grain % self.table_entries;
        let (slot, index) = match self.find(grain)? {
            Found::At(slot, index) => (slot, index),
            Found::Miss(table) => return Ok(Err(table)),
            Found::NoTable => {
                let run = len.min(left * self.grain_len - within);
                return Ok(Ok((run, self.mapping(Entry::Unallocated, within, access))));
            }
        };
        let tables = self.tables.borrow();
        let table = tables.bytes(slot);
        let first = self.entry(table, index, grain)?;
        let wanted = (within + len).div_ceil(self.grain_len).min(left);
        let mut run = 1;
        // A packed grain is read on its own.
        let alone = self.packing != Packing::None && matches!(first, Entry::Grain(_));
        while run < wanted && !alone {
            // What is damaged ends a run, and is told to who asks for it.
            match self.entry(table, index + run as usize, grain + run) {
                Ok(next) if next == first.after(run, self.grain_len) => run += 1,
                _ => break,
            }
        }
        Ok(Ok((len.min(run * self.grain_len - within), self.mapping(first, within, access))))
    }

    fn mapping(&self, entry: Entry, within: u64, access: Access) -> Mapping {
        let packed = self.packing != Packing::None;
        match (entry, access) {
            // What is stored compressed is written by the extent itself.
            (_, Access::Write | Access::Zero) if packed => Mapping::Own { child: self.role, offset: 0 },
            (Entry::Grain(_), Access::Read) if packed => Mapping::Special { compressed: true },
            (Entry::Grain(at), _) => Mapping::Data { child: self.role, offset: at + within },
            (Entry::Zero, Access::Read) => Mapping::Zero { at: None },
            (Entry::Unallocated, Access::Read) => Mapping::Backing { at: None },
            (_, Access::Write | Access::Zero) => Mapping::Allocate,
        }
    }

    /// Takes `len` bytes behind all others, a multiple of a sector.
    pub(super) fn take(&self, len: u64) -> Result<u64, VmdkError> {
        /// Sectors have 32 bits in a grain table.
        const MAX: u64 = u32::MAX as u64 * SECTOR;
        let at = self.space.end.get();
        if at + len > MAX {
            return Err(VmdkError::Full { file: self.file.clone(), max: MAX });
        }
        self.space.end.set(at + len);
        Ok(at)
    }

    /// Takes space for up to `grains` grains in a row; the place, how many, and whether it reads as zeros.
    pub(super) fn take_grains(&self, grains: u64) -> Result<(u64, u64, bool), VmdkError> {
        if let Some(at) = self.space.free.borrow_mut().pop() {
            return Ok((at, 1, false));
        }
        Ok((self.take(grains * self.grain_len)?, grains, self.space.grows_as_zeroes))
    }

    /// How many of the `wanted` grains from one on hold nothing, in a row and in one table.
    pub(super) fn empty_run(&self, grain: u64, wanted: u64) -> Result<Result<u64, HostOffset>, VmdkError> {
        let (slot, index) = match self.find(grain)? {
            Found::At(slot, index) => (slot, index),
            Found::Miss(table) => return Ok(Err(table)),
            Found::NoTable => return Err(self.no_table(grain)),
        };
        let tables = self.tables.borrow();
        let table = tables.bytes(slot);
        let wanted = wanted.min(self.table_entries - grain % self.table_entries);
        let mut run = 0;
        while run < wanted
            && !matches!(self.entry(table, index + run as usize, grain + run)?, Entry::Grain(_))
        {
            run += 1;
        }
        Ok(Ok(run))
    }

    fn no_table(&self, grain: u64) -> VmdkError {
        VmdkError::NoTable { file: self.file.clone(), index: grain / self.table_entries }
    }

    /// Makes grains in a row, all in one table, zeros or space from `at` on. The table that is not in memory, if so.
    pub(super) fn set(
        &self,
        grain: u64,
        count: u64,
        entry: Entry,
    ) -> Result<Result<(), HostOffset>, VmdkError> {
        let (slot, index) = match self.find(grain)? {
            Found::At(slot, index) => (slot, index),
            Found::Miss(table) => return Ok(Err(table)),
            Found::NoTable => return Err(self.no_table(grain)),
        };
        let mut tables = self.tables.borrow_mut();
        let table = tables.bytes_mut(slot);
        let entries = table[index * 4..].chunks_exact_mut(4).take(count as usize);
        for (bytes, nth) in entries.zip(0..) {
            let raw = match entry.after(nth, self.grain_len) {
                Entry::Unallocated => 0,
                Entry::Zero => 1,
                Entry::Grain(at) => u32::try_from(at / SECTOR).expect("space was taken below 2^32 sectors"),
            };
            bytes.copy_from_slice(&raw.to_le_bytes());
        }
        Ok(Ok(()))
    }
}

impl Sparse {
    /// Where the copy of a grain table is.
    pub(super) fn copy_of(&self, table: HostOffset) -> Option<HostOffset> {
        let sector = u32::try_from(table.0 / SECTOR).ok()?;
        let place = self.copies.binary_search_by_key(&sector, |(table, _)| *table).ok()?;
        Some(HostOffset(u64::from(self.copies[place].1) * SECTOR))
    }
}
