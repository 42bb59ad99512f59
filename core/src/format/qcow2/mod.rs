//! qcow2: QEMU's copy-on-write image, versions 2 and 3. Source: \[qcow2\], QEMU's `docs/interop/qcow2.rst`.
//!
//! ```text
//!   guest offset ──▶ L1 table ──▶ L2 table ──▶ cluster in `file` (or in `data-file`), compressed, zero, or backing
//!                    in memory    slices in a cache
//!   host cluster ──▶ refcount table ──▶ refcount block ──▶ how many L1, L2, snapshot… entries point to it
//!                    in memory          slices in a cache
//! ```
//!
//! Owns the metadata of one image. Refuses to move guest data: it says where data is (`lookup`), takes space and
//! makes it reachable (`write`), and writes its metadata in an order that a crash cannot break (`flush`).
//! Start reading at [`lookup`](Qcow2), then `write`, then `flush`; what is on disk is in `layout`.

mod amend;
mod backing;
mod bitmaps;
pub mod check;
mod compressed;
mod corrupt;
mod create;
mod crypt;
mod downgrade;
mod empty;
mod error;
mod flush;
mod generation;
pub mod layout;
mod load;
mod lookup;
mod measure;
mod open;
mod preallocate;
mod preallocated;
mod reclaim;
mod refcount;
mod resize;
mod snapshot_table;
mod snapshots;
mod stages;
mod vmstate;
mod write;
mod zero;

use std::any::Any;
use std::cell::{Cell, RefCell};

pub use amend::Amend;
use bitmaps::Bitmaps;
pub use bitmaps::directory as bitmap_directory;
pub use bitmaps::{Bitmap, DirtyBitmap, find_bitmap};
use corrupt::Corruption;
pub use create::{CreateOptions, create, preallocate};
pub use crypt::EncryptOptions;
pub(crate) use crypt::{CryptNode, Key, unlock};
pub use error::Qcow2Error;
use layout::{ClusterBits, Crypt, EntryRules, GuestOffset, Header, HostOffset, Incompatible, L1Entry};
pub(crate) use load::clean_caches;
pub use measure::Shape;
pub(crate) use open::open;
pub use open::{Protect, Qcow2Options, SnapshotChoice, probe, read_header};
use refcount::Refcounts;
pub use snapshots::{NewSnapshot, SNAPSHOT_NAME_LEN_MAX};

use async_trait::async_trait;

use crate::buf::BufList;
use crate::crypto::Cipher;
use crate::engine::task::{Gate, WaitList};
use crate::engine::{Io, LocalFuture};
use crate::error::{Error, Result};
use crate::format::cache::SliceCache;
use crate::format::loads::Loads;
use crate::format::{Backing, ImageFacts, OutsideName};
use crate::graph::driver::{
    Access, Driver, Extent, Length, Miss, Preallocate, Ready, Reservation, Role, looked_up,
};
use crate::intent::ZeroFlags;

/// An open qcow2 image.
pub struct Qcow2 {
    /// The node's name, for errors.
    name: String,
    header: RefCell<Header>,
    geometry: Geometry,
    l1: RefCell<L1Table>,
    /// Slices of L2 tables.
    l2: RefCell<SliceCache>,
    refcounts: RefCell<Refcounts>,
    /// Slices that are being read, so that each is read once.
    loads: Loads,
    /// One table is made, copied or moved at a time.
    tables: Gate,
    /// One refcount block is added at a time.
    blocks: Gate,
    /// One change of the header at a time.
    headers: Gate,
    /// One change of the length at a time.
    resizes: Gate,
    /// What the node shows while it becomes longer than the header says.
    shown_len: Cell<Option<u64>>,
    /// One commit at a time.
    commits: Gate,
    /// Freed clusters are given back by one at a time, and not while a new generation of metadata is written.
    reclaims: Gate,
    committing: Cell<bool>,
    /// Commits that were written, and how many of them a barrier has made durable.
    written: Cell<u64>,
    durable: Cell<u64>,
    /// Coroutines that give freed clusters back; closing waits for them.
    reclaiming: Cell<u32>,
    reclaimed: WaitList,
    /// The first reason why a freed cluster stays counted.
    reclaim_error: RefCell<Option<Box<Error>>>,
    discards: Discards,
    pack_fresh_only: bool,
    /// The version whose readers must understand what is written; below the header's while that goes down.
    writes_version: Cell<u32>,
    discard_no_unref: bool,
    /// Whether the image may be changed.
    writable: bool,
    /// Whether it is being closed.
    closing: Cell<bool>,
    /// The cipher of an image that is encrypted with AES alone.
    aes: Option<Box<Cipher>>,
    /// The id of the secret that opened it.
    key_secret: Option<String>,
    /// What is special about access to guest data, if anything.
    locked: Cell<Option<Lock>>,
    /// The first sign that the image is corrupt.
    corruption: RefCell<Corruption>,
    dirty_bitmaps: RefCell<Bitmaps>,
}

/// Numbers of an image that never change while it is open.
#[derive(Clone, Copy, Debug)]
struct Geometry {
    cluster_bits: ClusterBits,
    cluster_size: u64,
    /// Bytes of one L2 entry: 8, or 16 with subclusters.
    l2_entry_len: usize,
    /// log2 of the entries in an L2 table.
    l2_bits: u32,
    /// Bytes of a slice of an L2 table.
    l2_slice_len: usize,
    /// Bytes of a subcluster, or of a cluster where there are none.
    subcluster_size: u64,
    rules: EntryRules,
    /// Which child holds the guest data.
    data: Role,
    /// Which child it is written to and read from: that one, or what encrypts it on the way.
    guest: Role,
    /// Whether the data is encrypted with AES alone.
    aes: bool,
    /// Whether an entry of eight bytes says all about a cluster's place.
    direct: bool,
    /// What such an entry does not have where it is nothing but a place.
    unusual: u64,
    version: u32,
}

/// What is special about access to guest data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lock {
    /// Opened for the metadata alone, without a key.
    Encrypted,
    /// Opened for the metadata alone, without the data file.
    NoDataFile,
    /// Metadata was found broken: nothing is written any more.
    Corrupt,
    /// Nobody is kept out, but dirty bitmaps take note of what is written.
    Watched,
}

/// The active L1 table.
struct L1Table {
    at: HostOffset,
    /// Entries as they are in the file, decoded where they are used.
    entries: Vec<u64>,
    /// Changed entries: the range that the next commit writes.
    dirty: Option<(usize, usize)>,
    writing: Option<(usize, usize)>,
}

/// Which freed clusters are given back to the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Discards {
    /// Clusters that a guest's discard freed (`pass-discard-request`).
    pub request: bool,
    /// Clusters that a snapshot's deletion freed (`pass-discard-snapshot`).
    pub snapshot: bool,
    /// Clusters that anything else freed (`pass-discard-other`).
    pub other: bool,
}

/// What a [`Miss`] of this driver names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Missing {
    /// A slice of an L2 table, by its place in the file.
    L2Slice = 0,
    /// A slice of a refcount block, by its place in the file.
    RefcountSlice = 1,
    /// An L2 table that the image owns alone, by its place in the L1 table.
    OwnTable = 2,
    /// The refcount block for a host cluster, by the cluster's number.
    RefcountBlock = 3,
}

impl Missing {
    fn at(self, at: u64) -> Miss {
        Miss { what: self as u32, at }
    }

    fn of(miss: Miss) -> Self {
        match miss.what {
            0 => Self::L2Slice,
            1 => Self::RefcountSlice,
            2 => Self::OwnTable,
            _ => Self::RefcountBlock,
        }
    }
}

impl Geometry {
    /// Whether data is encrypted on its way.
    fn is_encrypted(&self) -> bool {
        self.aes || self.guest != self.data
    }
}

impl L1Table {
    /// Changes an entry, in memory.
    fn set(&mut self, index: usize, raw: u64) {
        self.entries[index] = raw;
        let (first, end) = self.dirty.unwrap_or((index, index + 1));
        self.dirty = Some((first.min(index), end.max(index + 1)));
    }
}

impl Qcow2 {
    /// Reads what is stored in another form.
    async fn read_special_cluster(&self, io: &Io, offset: GuestOffset, data: &mut BufList) -> Result<()> {
        let Some(cipher) = &self.aes else { return self.read_compressed(io, offset, data).await };
        match self.aes_place(offset)? {
            Ready::Miss(miss) => self.load_missing(io, miss).await?,
            Ready::Yes(Some(host)) => return self.read_aes(io, cipher, (offset, host), data).await,
            Ready::Yes(None) => return self.read_compressed(io, offset, data).await,
        }
        Box::pin(self.read_special_cluster(io, offset, data)).await
    }

    /// Bytes of the disk that one slice of an L2 table covers.
    pub(crate) fn slice_covers(&self) -> u64 {
        let geometry = &self.geometry;
        geometry.cluster_size * (geometry.l2_slice_len / geometry.l2_entry_len) as u64
    }

    /// The header as it is in the file, or will be after the next flush.
    pub fn header(&self) -> Header {
        self.header.borrow().clone()
    }

    fn fail(&self, fault: Qcow2Error) -> Box<Error> {
        self.take_note(&fault);
        Error::format(&*self.name, fault)
    }

    #[inline]
    fn l1_index(&self, offset: GuestOffset) -> usize {
        let shift = self.geometry.cluster_bits.bits() + self.geometry.l2_bits;
        usize::try_from(offset.0 >> shift).expect("an L1 table is at most 32 MiB")
    }

    /// Out of the way, so that the short way needs none of the registers that a call saves.
    #[inline(never)]
    fn looked_up(&self, offset: u64, len: u64, access: Access) -> Option<(Role, u64)> {
        looked_up(self, offset, len, access)
    }

    /// What there is to see of the disk, in bytes.
    #[inline]
    fn shown_bytes(&self) -> u64 {
        self.shown_len.get().map_or_else(|| self.guest_len(), |size| size & !511)
    }

    /// What there is to see of it for a guest.
    #[inline]
    fn guest_len(&self) -> u64 {
        self.header.borrow().size & !511
    }

    #[inline]
    fn l1_entry(&self, index: usize) -> Result<L1Entry> {
        let raw = self.l1.borrow().entries[index];
        L1Entry::parse(raw, self.geometry.cluster_bits)
            .map_err(|fault| self.fail(Qcow2Error::InL1Table { index, problem: Box::new(fault) }))
    }

    /// Number of an L2 entry within its table.
    #[inline]
    fn l2_index(&self, offset: GuestOffset) -> usize {
        let index = (offset.0 >> self.geometry.cluster_bits.bits()) & ((1 << self.geometry.l2_bits) - 1);
        index as usize
    }

    /// Place of the slice that holds an L2 entry, and the entry's first byte within the slice.
    #[inline]
    fn slice_of(&self, table: HostOffset, l2_index: usize) -> (HostOffset, usize) {
        let byte = l2_index * self.geometry.l2_entry_len;
        // Slices are a power of two long, and a division would cost as much as the rest of a lookup.
        let in_slice = byte & (self.geometry.l2_slice_len - 1);
        (HostOffset(table.0 + (byte - in_slice) as u64), in_slice)
    }
}

#[async_trait(?Send)]
impl Driver for Qcow2 {
    fn name(&self) -> &'static str {
        "qcow2"
    }

    /// Disks are whole sectors; QEMU 10.0.2 leaves out the rest of a size that is not.
    fn length(&self) -> Length {
        Length::Bytes(self.shown_bytes())
    }

    /// What a longer disk will show, and the state of a machine behind the disk, is not yet the guest's, or never.
    fn guest_length(&self) -> Length {
        Length::Bytes(self.guest_len())
    }

    fn lookup(&self, offset: u64, len: u64, access: Access) -> Result<Extent> {
        self.extent(GuestOffset(offset), len, access)
    }

    fn place(&self, offset: u64, len: u64, access: Access) -> Option<(Role, u64)> {
        match self.data_at(GuestOffset(offset), len, access) {
            Some(place) => Some((self.geometry.guest, place)),
            None => self.looked_up(offset, len, access),
        }
    }

    fn load<'a>(&'a self, io: &'a Io, miss: Miss) -> LocalFuture<'a, Result<()>> {
        Box::pin(self.load_missing(io, miss))
    }

    /// What needs no more than the header; the rest of what is shown of qcow2 is in the image.
    fn facts(&self) -> ImageFacts {
        let header = self.header.borrow();
        let backing = header.backing_file.clone();
        let data_file = header.data_file.clone();
        ImageFacts {
            cluster_size: Some(header.cluster_bits.size()),
            dirty: header.has(Incompatible::DIRTY),
            encrypted: header.crypt != Crypt::None,
            backing: backing.map(|name| Backing { name, format: header.backing_format.clone() }),
            names: data_file.map(|name| OutsideName { what: "data file", name }).into_iter().collect(),
            ..ImageFacts::default()
        }
    }

    fn granularity(&self) -> u64 {
        self.geometry.cluster_size
    }

    fn zero_granularity(&self) -> u64 {
        self.geometry.subcluster_size
    }

    fn reserve(&self, offset: u64, len: u64) -> Result<Ready<Reservation>> {
        self.reserve_space(GuestOffset(offset), len)
    }

    fn publish(&self, reservation: &Reservation) -> Result<Ready<()>> {
        self.publish_space(reservation)
    }

    fn give_back(&self, reservation: &Reservation) {
        self.give_back_space(reservation);
    }

    fn read_special<'a>(
        &'a self,
        io: &'a Io,
        offset: u64,
        data: &'a mut BufList,
    ) -> LocalFuture<'a, Result<()>> {
        Box::pin(self.read_special_cluster(io, GuestOffset(offset), data))
    }

    fn compresses(&self) -> bool {
        self.geometry.data == Role::File && !self.geometry.is_encrypted()
    }

    fn write_compressed<'a>(
        &'a self,
        io: &'a Io,
        offset: u64,
        data: &'a mut BufList,
    ) -> LocalFuture<'a, Result<bool>> {
        Box::pin(self.write_cluster_compressed(io, GuestOffset(offset), data))
    }

    fn write_zeroes<'a>(
        &'a self,
        io: &'a Io,
        offset: u64,
        len: u64,
        flags: ZeroFlags,
    ) -> LocalFuture<'a, Result<bool>> {
        Box::pin(self.zero_range(io, GuestOffset(offset), len, flags))
    }

    fn discard<'a>(&'a self, io: &'a Io, offset: u64, len: u64) -> LocalFuture<'a, Result<()>> {
        Box::pin(self.discard_range(io, GuestOffset(offset), len))
    }

    async fn make_empty(&self, io: &Io) -> Result<()> {
        self.empty_image(io).await
    }

    async fn resize(&self, io: &Io, len: u64, how: Preallocate) -> Result<()> {
        self.change_len(io, len, how).await
    }

    fn vmstate<'a>(
        &'a self,
        io: &'a Io,
        access: Access,
        offset: u64,
        data: &'a mut BufList,
    ) -> Option<LocalFuture<'a, Result<()>>> {
        Some(Box::pin(self.transfer_vmstate(io, access, offset, data)))
    }

    fn is_clean(&self) -> bool {
        !self.committing.get() && !self.holds_changes() && self.durable.get() == self.written.get()
    }

    fn flush<'a>(&'a self, io: &'a Io) -> LocalFuture<'a, Result<()>> {
        Box::pin(self.flush_all(io))
    }

    async fn close(&self, io: &Io) -> Result<()> {
        self.closing.set(true);

        match self.locked.get() {
            Some(Lock::Corrupt) => self.mark_corrupt(io).await,
            _ => self.close_image(io).await,
        }
    }

    fn is_broken(&self) -> bool {
        self.corruption.borrow().is_new()
    }

    async fn mark_broken(&self, io: &Io) -> Result<()> {
        self.mark_corrupt(io).await
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
