//! Tables of two levels that say where the clusters of a disk are, without refcounts: an L1 table in memory, slices of L2
//! tables in a cache, and new clusters at the end of the file. What qcow and QED have in common.
//!
//! ```text
//!   cluster of the disk ──▶ L1 entry ──▶ L2 table's slice ──▶ entry, in the format's own terms
//! ```
//!
//! The order of a commit:
//!
//! | level | what                                | because                                                       |
//! |-------|-------------------------------------|---------------------------------------------------------------|
//! | 0     | clusters, new L2 tables of zeros    | nothing on disk points to them                                |
//! | 1     | entries of L2 tables, the L1 table  | a cluster that is pointed to holds its data, a table is one   |
//!
//! A barrier stands between. Within level 1 there is no order: where an L1 entry is there before the entries of its table, that
//! names nothing yet, as no table does. A crash leaves at most space that nothing points to.

use std::cell::{Cell, RefCell};
use std::ops::Range;

use super::HostOffset;
use super::cache::{SliceCache, SlotIndex};
use super::loads::Loads;
use crate::buf::Buf;
use crate::engine::Io;
use crate::engine::task::Gate;
use crate::error::Result;
use crate::graph::driver::{Access, Extent, Mapping, Miss, Ready, Reservation, Role};
use crate::intent::{Fua, Label, Preallocation, ZeroFlags};

/// Bytes of an entry.
const ENTRY: u64 = 8;

/// Bytes of a slice at the most.
const SLICE_LEN_MAX: u64 = 4096;

/// Bytes of slices in memory: what 128 GiB of the disk need, in clusters of 64 KiB.
const CACHE_LEN: usize = 16 << 20;

/// How the tables of an image are shaped, and what the intents for them are called.
#[derive(Clone, Copy, Debug)]
pub(in crate::format) struct Shape {
    pub cluster_len: u64,
    /// Entries of an L2 table.
    pub entries: u64,
    /// Where the L1 table is.
    pub l1_at: u64,
    /// What L2 tables begin at a multiple of.
    pub align: u64,
    pub big_endian: bool,
    /// Whether the file must hold all of a cluster; else what is missing at its end reads as zeros.
    pub whole_clusters: bool,
    /// Where the header, the L1 table and the backing file's name begin and end: nothing else lies there.
    pub metadata: [(u64, u64); 3],
    pub labels: &'static Labels,
}

/// What the intents are called.
#[derive(Debug)]
pub(in crate::format) struct Labels {
    pub load: Label,
    pub new_table: Label,
    pub before_tables: Label,
    pub l2: Label,
    pub l1: Label,
}

impl Shape {
    fn table_len(&self) -> u64 {
        self.entries * ENTRY
    }

    fn slice_len(&self) -> u64 {
        self.table_len().min(SLICE_LEN_MAX)
    }

    /// The entries in a part of a table.
    pub(in crate::format) fn decode<'a>(&'a self, bytes: &'a [u8]) -> impl Iterator<Item = u64> + 'a {
        bytes.chunks_exact(ENTRY as usize).map(|eight| {
            let eight = eight.try_into().expect("eight bytes");
            if self.big_endian { u64::from_be_bytes(eight) } else { u64::from_le_bytes(eight) }
        })
    }

    fn encode(&self, raw: u64) -> [u8; ENTRY as usize] {
        if self.big_endian { raw.to_be_bytes() } else { raw.to_le_bytes() }
    }
}

/// What an entry of an L2 table says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::format) enum Entry {
    /// What the backing file says, or zeros.
    Unallocated,
    /// Zeros.
    Zero,
    /// At this byte of the file.
    Data(u64),
    /// In a form that the format reads itself.
    Packed,
}

impl Entry {
    fn follows(self, first: Self, nth: u64, cluster_len: u64) -> bool {
        match (first, self) {
            (Self::Data(at), Self::Data(here)) => at.checked_add(nth * cluster_len) == Some(here),
            (Self::Packed, _) => false,
            (first, here) => first == here,
        }
    }
}

/// An L1 entry that names no table in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::format) struct TableFault {
    pub index: u64,
    pub at: u64,
    pub end: u64,
}

/// What is not in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::format) enum Missing {
    /// A slice of an L2 table.
    Slice(HostOffset),
    /// An L2 table that there is not.
    Table(u64),
    /// The first change is about to come; the format's own.
    Begin,
}

impl Missing {
    pub(in crate::format) fn of(miss: Miss) -> Self {
        match miss.what {
            0 => Self::Slice(HostOffset(miss.at)),
            1 => Self::Table(miss.at),
            _ => Self::Begin,
        }
    }

    pub(in crate::format) fn miss(self) -> Miss {
        match self {
            Self::Slice(at) => Miss { what: 0, at: at.0 },
            Self::Table(index) => Miss { what: 1, at: index },
            Self::Begin => Miss { what: 2, at: 0 },
        }
    }
}

/// The L1 table.
struct L1 {
    entries: Vec<u64>,
    /// Changed entries.
    dirty: Option<Range<usize>>,
}

/// The tables of an open image, and its space.
pub(in crate::format) struct TwoLevel {
    pub(in crate::format) shape: Shape,
    l1: RefCell<L1>,
    slices: RefCell<SliceCache>,
    /// Behind all that is in the file.
    end: Cell<u64>,
    /// Clusters that were given back.
    free: RefCell<Vec<u64>>,
    /// Whether what lies behind the end of the file reads as zeros once it is there.
    grows_as_zeroes: bool,
    /// Changes that were made, and that are durable.
    changes: Cell<u64>,
    durable: Cell<u64>,
    commits: Gate,
    tables: Gate,
    loads: Loads,
}

impl TwoLevel {
    /// The tables of an image whose L1 table has these bytes, in a file of `file_len`.
    pub(in crate::format) fn new(shape: Shape, l1: &[u8], file_len: u64, grows_as_zeroes: bool) -> Self {
        Self {
            l1: L1 { entries: shape.decode(l1).collect(), dirty: None }.into(),
            slices: SliceCache::new(shape.slice_len() as usize, CACHE_LEN).into(),
            end: file_len.into(),
            free: RefCell::default(),
            grows_as_zeroes,
            changes: 0.into(),
            durable: 0.into(),
            commits: Gate::default(),
            tables: Gate::default(),
            loads: Loads::default(),
            shape,
        }
    }

    /// Behind all that is in the file.
    pub(in crate::format) fn end(&self) -> u64 {
        self.end.get()
    }

    pub(in crate::format) fn is_clean(&self) -> bool {
        self.durable.get() == self.changes.get()
    }

    /// The L2 table of an entry; none where there is not.
    ///
    /// # Errors
    /// When it does not lie in the file.
    pub(in crate::format) fn table(&self, index: u64) -> Result<Option<u64>, TableFault> {
        let at = self.l1.borrow().entries[index as usize];
        let end = self.end.get();
        match at {
            0 => Ok(None),
            at if self.is_table(at) => Ok(Some(at)),
            at => Err(TableFault { index, at, end }),
        }
    }

    /// Forgets an L2 table that an entry names wrongly.
    pub(in crate::format) fn forget_table(&self, index: u64) {
        if let Some(entry) = self.l1.borrow_mut().entries.get_mut(index as usize) {
            *entry = 0;
        }
    }

    /// Forgets all slices; none of them was changed.
    pub(in crate::format) fn forget_slices(&self) {
        self.slices.borrow_mut().clear();
    }

    /// Makes the L1 table longer. What is new names nothing, whatever the file says there.
    pub(in crate::format) fn lengthen(&self, entries: u64) {
        let mut l1 = self.l1.borrow_mut();
        let old = l1.entries.len();
        if old < entries as usize {
            l1.entries.resize(entries as usize, 0);
            let dirty = l1.dirty.take();
            l1.dirty = Some(joined(dirty, old..entries as usize));
            self.changes.set(self.changes.get() + 1);
        }
    }

    /// Whether a table can be at a place.
    pub(in crate::format) fn is_table(&self, at: u64) -> bool {
        let len = self.shape.table_len();
        let in_file = at.checked_add(len).is_some_and(|end| end <= self.end.get());
        at.is_multiple_of(self.shape.align) && in_file && self.is_apart(at, len)
    }

    /// Whether a range shares no byte with the header or the L1 table.
    fn is_apart(&self, at: u64, len: u64) -> bool {
        self.shape.metadata.iter().all(|(start, end)| at >= *end || at.saturating_add(len) <= *start)
    }

    /// Whether a cluster can begin at a place.
    pub(in crate::format) fn is_cluster(&self, at: u64) -> bool {
        let Shape { align, cluster_len, whole_clusters, .. } = self.shape;
        let needed = if whole_clusters { cluster_len } else { 1 };
        let in_file = at.checked_add(needed).is_some_and(|end| end <= self.end.get());
        at.is_multiple_of(align) && in_file && self.is_apart(at, cluster_len)
    }

    fn find(&self, cluster: u64) -> Result<Result<(SlotIndex, usize), Missing>, TableFault> {
        let index = cluster / self.shape.entries;
        let Some(table) = self.table(index)? else { return Ok(Err(Missing::Table(index))) };
        let byte = cluster % self.shape.entries * ENTRY;
        let slice = HostOffset(table + byte / self.shape.slice_len() * self.shape.slice_len());
        let slot = self.slices.borrow().find(slice);
        Ok(slot.map(|slot| (slot, (byte % self.shape.slice_len()) as usize)).ok_or(Missing::Slice(slice)))
    }

    /// The raw entry of a cluster; 0 where there is no table. What is missed comes as an error.
    pub(in crate::format) fn raw(&self, cluster: u64) -> Result<Result<u64, Missing>, TableFault> {
        Ok(match self.find(cluster)? {
            Ok((slot, byte)) => {
                let slices = self.slices.borrow();
                Ok(self.shape.decode(&slices.bytes(slot)[byte..]).next().expect("within the slice"))
            }
            Err(Missing::Table(_)) => Ok(0),
            Err(missing) => Err(missing),
        })
    }

    /// How many clusters from one on, up to `wanted` and within a slice, are `alike`, by their number from there and entry.
    fn run<E: From<TableFault>>(
        &self,
        cluster: u64,
        wanted: u64,
        decode: &impl Fn(u64, u64) -> Result<Entry, E>,
        alike: impl Fn(Entry, u64, Entry) -> bool,
    ) -> Result<Result<(Entry, u64), Missing>, E> {
        let (slot, byte) = match self.find(cluster)? {
            Ok(found) => found,
            Err(Missing::Table(_)) => {
                let left = self.shape.entries - cluster % self.shape.entries;
                return Ok(Ok((Entry::Unallocated, wanted.min(left))));
            }
            Err(missing) => return Ok(Err(missing)),
        };
        let slices = self.slices.borrow();
        let mut entries = self.shape.decode(&slices.bytes(slot)[byte..]).zip(cluster..).take(wanted as usize);
        let (raw, _) = entries.next().expect("within the slice");
        let first = decode(raw, cluster)?;
        // What is damaged ends a run, and is told to who asks for it.
        let more = entries.take_while(|(raw, number)| {
            decode(*raw, *number).is_ok_and(|entry| alike(first, number - cluster, entry))
        });
        Ok(Ok((first, 1 + more.count() as u64)))
    }

    /// As [`Driver::lookup`](crate::graph::driver::Driver::lookup). `decode` reads an entry, of a cluster.
    pub(in crate::format) fn extent<E: From<TableFault>>(
        &self,
        (offset, len): (u64, u64),
        access: Access,
        decode: &impl Fn(u64, u64) -> Result<Entry, E>,
    ) -> Result<Extent, E> {
        let cluster_len = self.shape.cluster_len;
        let (cluster, within) = (offset / cluster_len, offset % cluster_len);
        let wanted = (within + len).div_ceil(cluster_len);
        let follows = |first, nth, entry: Entry| entry.follows(first, nth, cluster_len);
        let (first, run) = match self.run(cluster, wanted, decode, follows)? {
            Ok(found) => found,
            Err(missing) => return Ok(Extent { len, mapping: Mapping::Miss(missing.miss()) }),
        };
        let mapping = match (first, access) {
            (Entry::Data(at), _) => Mapping::Data { child: Role::File, offset: at + within },
            (Entry::Unallocated, Access::Read) => Mapping::Backing { at: None },
            (Entry::Zero, Access::Read) => Mapping::Zero { at: None },
            (Entry::Packed, Access::Read) => Mapping::Special { compressed: true },
            (_, Access::Write | Access::Zero) => Mapping::Allocate,
        };
        Ok(Extent { len: len.min(run * cluster_len - within), mapping })
    }

    /// As [`Driver::reserve`](crate::graph::driver::Driver::reserve).
    pub(in crate::format) fn reserve<E: From<TableFault>>(
        &self,
        (offset, len): (u64, u64),
        decode: &impl Fn(u64, u64) -> Result<Entry, E>,
    ) -> Result<Ready<Reservation>, E> {
        let cluster_len = self.shape.cluster_len;
        let cluster = offset / cluster_len;
        if let Err(missing) = self.find(cluster)? {
            return Ok(Ready::Miss(missing.miss()));
        }
        let wanted = (offset + len).div_ceil(cluster_len) - cluster;
        let fresh = |_, _, entry: Entry| !matches!(entry, Entry::Data(_));
        let run = match self.run(cluster, wanted, decode, fresh)? {
            Ok((_, run)) => run,
            Err(missing) => return Ok(Ready::Miss(missing.miss())),
        };
        let given_back = self.free.borrow_mut().pop();
        let (host_offset, count, zeroed) = match given_back {
            Some(at) => (at, 1, false),
            None => (self.take(run * cluster_len), run, self.grows_as_zeroes && !self.shape.whole_clusters),
        };
        Ok(Ready::Yes(Reservation {
            child: Role::File,
            host_offset,
            guest_start: cluster * cluster_len,
            guest_end: (cluster + count) * cluster_len,
            zeroed,
            fresh: true,
        }))
    }

    /// Takes space behind all others, from a multiple of a cluster on.
    fn take(&self, len: u64) -> u64 {
        let at = self.end.get().next_multiple_of(self.shape.cluster_len);
        self.end.set(at + len.next_multiple_of(self.shape.cluster_len));
        at
    }

    /// Takes `len` bytes right behind all others.
    pub(in crate::format) fn take_bytes(&self, len: u64) -> u64 {
        let at = self.end.get();
        self.end.set(at + len);
        at
    }

    /// As [`Driver::publish`](crate::graph::driver::Driver::publish).
    pub(in crate::format) fn publish(&self, reservation: &Reservation) -> Result<Ready<()>, TableFault> {
        let cluster_len = self.shape.cluster_len;
        let first = reservation.guest_start / cluster_len;
        let count = reservation.guest_end.div_ceil(cluster_len) - first;
        match self.set(first, count, |nth| reservation.host_offset + nth * cluster_len)? {
            Ok(()) => Ok(Ready::Yes(())),
            Err(missing) => Ok(Ready::Miss(missing.miss())),
        }
    }

    /// As [`Driver::give_back`](crate::graph::driver::Driver::give_back).
    pub(in crate::format) fn give_back(&self, reservation: &Reservation) {
        let len = reservation.guest_end - reservation.guest_start;
        let places = (0..len.div_ceil(self.shape.cluster_len))
            .map(|nth| reservation.host_offset + nth * self.shape.cluster_len);
        self.free.borrow_mut().extend(places);
    }

    /// Changes the entries of clusters in a row, all in one slice. What is missed comes as an error, and nothing changes.
    pub(in crate::format) fn set(
        &self,
        cluster: u64,
        count: u64,
        raw: impl Fn(u64) -> u64,
    ) -> Result<Result<(), Missing>, TableFault> {
        let (slot, byte) = match self.find(cluster)? {
            Ok(found) => found,
            Err(missing) => return Ok(Err(missing)),
        };
        let mut slices = self.slices.borrow_mut();
        let entries = slices.bytes_mut(slot)[byte..].chunks_exact_mut(ENTRY as usize);
        for (bytes, nth) in entries.take(count as usize).zip(0..) {
            bytes.copy_from_slice(&self.shape.encode(raw(nth)));
        }
        self.changes.set(self.changes.get() + 1);
        Ok(Ok(()))
    }

    /// How many clusters from one on hold no data, up to `wanted` and within a slice; 0 where the first one does. A table
    /// that there is not holds none.
    pub(in crate::format) fn empty_run<E: From<TableFault>>(
        &self,
        cluster: u64,
        wanted: u64,
        decode: &impl Fn(u64, u64) -> Result<Entry, E>,
    ) -> Result<Result<u64, Missing>, E> {
        let empty = |entry: Entry| matches!(entry, Entry::Unallocated | Entry::Zero);
        let found = self.run(cluster, wanted, decode, |_, _, entry| empty(entry))?;
        Ok(found.map(|(first, run)| if empty(first) { run } else { 0 }))
    }

    /// Brings into memory what was missed: reads a slice, or makes a table.
    pub(in crate::format) async fn load(&self, io: &Io, missing: Missing) -> Result<()> {
        match missing {
            Missing::Slice(at) => {
                let there = || self.slices.borrow().find(at).is_some();
                self.loads.once(&io.shared().tasks, at, there, self.read_slice(io, at)).await
            }
            Missing::Table(index) => self.make_table(io, index).await,
            Missing::Begin => unreachable!("the format's own"),
        }
    }

    async fn read_slice(&self, io: &Io, at: HostOffset) -> Result<()> {
        let len = self.shape.slice_len() as usize;
        let bytes = io.read_bytes(self.shape.labels.load, io.child(Role::File), at.0, len).await?;
        while !self.slices.borrow().has_room() {
            // All slices hold changes: writing them out makes room.
            self.commit(io).await?;
        }
        // Who else made room meanwhile may have used it up: who missed the slice misses it again.
        let _ = self.slices.borrow_mut().insert(at, bytes);
        Ok(())
    }

    /// Makes an empty L2 table. The L1 table names it in memory once it is written.
    async fn make_table(&self, io: &Io, index: u64) -> Result<()> {
        let _one_at_a_time = self.tables.enter(&io.shared().tasks).await;
        if self.l1.borrow().entries[index as usize] != 0 {
            return Ok(());
        }
        let len = self.shape.table_len();
        let at = self.take(len);
        let file = io.child(Role::File);
        io.write_zeroes(self.shape.labels.new_table, file, at, len, ZeroFlags::default()).await?;
        let mut l1 = self.l1.borrow_mut();
        l1.entries[index as usize] = at;
        let index = index as usize;
        let dirty = l1.dirty.take();
        l1.dirty = Some(joined(dirty, index..index + 1));
        self.changes.set(self.changes.get() + 1);
        Ok(())
    }

    /// Makes everything durable that completed before.
    pub(in crate::format) async fn flush(&self, io: &Io, label: Label) -> Result<()> {
        let covered = self.changes.get();
        self.commit(io).await?;
        io.flush(label, io.child(Role::File)).await?;
        self.durable.set(self.durable.get().max(covered));
        Ok(())
    }

    /// Makes the tables name nothing, durably, and gives up what lies behind the L1 table. Nobody else uses the image
    /// meanwhile.
    pub(in crate::format) async fn empty(&self, io: &Io, label: Label) -> Result<()> {
        // What waits to be written goes first, so that it cannot come after.
        self.flush(io, label).await?;
        let entries = {
            let mut l1 = self.l1.borrow_mut();
            l1.entries.fill(0);
            l1.dirty = Some(0..l1.entries.len());
            l1.entries.len() as u64
        };
        self.slices.borrow_mut().clear();
        self.free.borrow_mut().clear();
        self.changes.set(self.changes.get() + 1);
        self.flush(io, label).await?;
        let end = self.shape.l1_at + entries * ENTRY;
        io.set_len(io.child(Role::File), end, Preallocation::Off).await?;
        self.end.set(end);
        Ok(())
    }

    /// Writes all changed entries. The last level is not durable yet.
    async fn commit(&self, io: &Io) -> Result<()> {
        let _one_at_a_time = self.commits.enter(&io.shared().tasks).await;
        // Both are copied at one instant: a table that an L1 entry names was written before that entry was made.
        let l1 = self.take_l1();
        let slices = self.slices.borrow_mut().take_dirty();
        let result = self.write_levels(io, l1.as_ref(), slices).await;
        let mut cache = self.slices.borrow_mut();
        match &result {
            Ok(()) => cache.written(),
            Err(_) => {
                cache.failed();
                if let Some((range, _)) = l1 {
                    let mut l1 = self.l1.borrow_mut();
                    let dirty = l1.dirty.take();
                    l1.dirty = Some(joined(dirty, range));
                }
            }
        }
        result
    }

    /// The changed part of the L1 table, and its bytes.
    fn take_l1(&self) -> Option<(Range<usize>, Vec<u8>)> {
        let mut l1 = self.l1.borrow_mut();
        let range = l1.dirty.take()?;
        let bytes = l1.entries[range.clone()].iter().flat_map(|raw| self.shape.encode(*raw)).collect();
        Some((range, bytes))
    }

    async fn write_levels(
        &self,
        io: &Io,
        l1: Option<&(Range<usize>, Vec<u8>)>,
        slices: Vec<(HostOffset, Buf)>,
    ) -> Result<()> {
        let (file, labels) = (io.child(Role::File), self.shape.labels);
        if slices.is_empty() && l1.is_none() {
            return Ok(());
        }
        // Clusters, and new tables of zeros, are durable before an entry names them.
        io.flush(labels.before_tables, file).await?;
        for (at, bytes) in slices {
            io.write(labels.l2, file, at.0, bytes, Fua::No).await.1?;
        }
        if let Some((range, bytes)) = l1 {
            let at = self.shape.l1_at + range.start as u64 * ENTRY;
            io.write(labels.l1, file, at, Buf::from(&bytes[..]), Fua::No).await.1?;
        }
        Ok(())
    }
}

/// The range around two.
fn joined(one: Option<Range<usize>>, other: Range<usize>) -> Range<usize> {
    one.map_or(other.clone(), |one| one.start.min(other.start)..one.end.max(other.end))
}
