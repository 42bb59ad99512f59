//! Parallels, the expanding disk image of Parallels Desktop and Virtuozzo: a header, a BAT, and clusters.
//!
//! ```text
//!   ┌────────┬───────────────────────────┬───────────┬───────────┬──
//!   │ header │ BAT: u32 each             │ cluster 0 │ cluster 1 │ …
//!   └────────┴───────────────────────────┴───────────┴───────────┴──
//!   0        64                          data_at
//! ```
//!
//! The BAT is read and written by slices, in a bounded cache; the first one begins with the header. `layout` has both,
//! `flush` the order on disk, `space` which clusters are taken. `extension` has the layout of dirty bitmaps, `bitmaps` keeps them
//! in step with the disk. The format knows no backing files: chains of Parallels disks are described by a file beside them.
//!
//! Source: \[Parallels\], and what `qemu-img` 10.0.2 makes and accepts.

mod bitmaps;
mod check;
mod create;
mod error;
mod extension;
mod flush;
pub mod layout;
mod open;
mod space;
mod zero;

use std::any::Any;
use std::cell::{Cell, RefCell};

use async_trait::async_trait;

pub use bitmaps::DirtyBitmap;
pub use check::{check, repair};
pub use create::{CreateOptions, create};
pub use error::ParallelsError;
pub use layout::probe;
pub(super) use open::open;
pub use open::{ParallelsOptions, PreallocMode};

use super::cache::SliceCache;
use super::loads::Loads;
use super::qcow2::check::Repair;
use super::{CheckReport, HostOffset, ImageFacts};
use crate::engine::task::{Gate, WaitList};
use crate::engine::{Io, LocalFuture};
use crate::error::{Error, Result};
use crate::graph::driver::{Access, Driver, Extent, Length, Mapping, Miss, Ready, Reservation, Role};
use crate::intent::ZeroFlags;
use bitmaps::Bitmaps;
use layout::{ClusterIndex, Entry, Fit, Geometry, HEADER_LEN, Header};
use space::Space;

/// Bytes of the BAT that are read and written at once: what 1 GiB of the disk needs, with clusters of 1 MiB.
const SLICE_LEN: u64 = 4096;

/// An open image.
pub struct Parallels {
    name: String,
    geometry: Geometry,
    /// What the file will say when the image is closed.
    header: RefCell<Header>,
    options: ParallelsOptions,
    /// Whether the file says, durably, that somebody writes to it.
    marked: Cell<bool>,
    marks: Gate,
    bat: RefCell<SliceCache>,
    space: RefCell<Space>,
    /// One at a time makes the file longer.
    growth: Gate,
    /// Bytes of the file, as far as clusters reach.
    file_len: Cell<u64>,
    bitmaps: RefCell<Bitmaps>,
    /// Changes of the BAT that were made, and that are durable.
    changes: Cell<u64>,
    durable: Cell<u64>,
    commits: Gate,
    loads: Loads,
    /// Clusters whose entries were cleared in memory; then those of which the file says so, not yet durably.
    freed: RefCell<Vec<ClusterIndex>>,
    unnamed: RefCell<Vec<ClusterIndex>>,
    /// Batches of clusters that wait until nobody uses them any more.
    reclaiming: Cell<u32>,
    reclaimed: WaitList,
}

/// What [`Driver::load`] is asked for.
#[derive(Clone, Copy)]
enum Missing {
    /// A slice of the BAT.
    Slice(HostOffset),
    /// That the image is marked as in use.
    Mark,
    /// Room for so many clusters.
    Room(u64),
}

impl Missing {
    fn of(miss: Miss) -> Self {
        match miss.what {
            0 => Self::Slice(HostOffset(miss.at)),
            1 => Self::Mark,
            _ => Self::Room(miss.at),
        }
    }

    fn miss(self) -> Miss {
        match self {
            Self::Slice(at) => Miss { what: 0, at: at.0 },
            Self::Mark => Miss { what: 1, at: 0 },
            Self::Room(clusters) => Miss { what: 2, at: clusters },
        }
    }
}

impl Parallels {
    /// The header as the file will have it when the image is closed.
    pub fn header(&self) -> Header {
        self.header.borrow().clone()
    }

    fn fail(&self, fault: ParallelsError) -> Box<Error> {
        Error::format(&*self.name, fault)
    }

    /// The slice that holds the BAT entry of a cluster of the disk, and the entry's first byte in it.
    fn slice_of(&self, cluster: u64) -> (HostOffset, usize) {
        let byte = HEADER_LEN as u64 + cluster * 4;
        (HostOffset(byte / SLICE_LEN * SLICE_LEN), (byte % SLICE_LEN) as usize)
    }

    /// Whether a place may be read and written: the file holds at least the beginning of the cluster.
    fn sound(&self, raw: u32, cluster: u64) -> Result<Entry, ParallelsError> {
        let entry = self.geometry.entry(raw);
        if let Entry::At(host) = entry
            && self.geometry.fit(host, self.file_len.get()) == Fit::Outside
        {
            let (start, end) = (self.geometry.data_at, self.file_len.get());
            return Err(ParallelsError::Entry { cluster, host, start, end });
        }
        Ok(entry)
    }

    /// What the BAT says of a cluster of the disk, and how many behind it go on alike, as far as the slice and `wanted` go.
    fn run_at(&self, cluster: u64, wanted: u64) -> Result<Ready<(Entry, u64)>, ParallelsError> {
        let (at, byte) = self.slice_of(cluster);
        let bat = self.bat.borrow();
        let Some(slot) = bat.find(at) else { return Ok(Ready::Miss(Missing::Slice(at).miss())) };
        let raw = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().expect("four bytes"));
        let mut entries = bat.bytes(slot)[byte..].chunks_exact(4).map(raw);
        let first = entries.next().expect("a slice holds the entries that it is asked for");
        let first = self.sound(first, cluster)?;
        let mut count = 1;
        for raw in entries.take(wanted.saturating_sub(1) as usize) {
            let next = match first {
                Entry::Unallocated => Entry::Unallocated,
                Entry::At(host) => Entry::At(host + count * self.geometry.cluster_len),
            };
            // What is damaged ends a run, and is told to who asks for it.
            if self.sound(raw, cluster + count) != Ok(next) {
                break;
            }
            count += 1;
        }
        Ok(Ready::Yes((first, count)))
    }

    fn extent(&self, offset: u64, len: u64, access: Access) -> Result<Extent, ParallelsError> {
        let miss = |miss| Ok(Extent { len, mapping: Mapping::Miss(miss) });
        if access != Access::Read && !self.marked.get() {
            return miss(Missing::Mark.miss());
        }
        let cluster_len = self.geometry.cluster_len;
        let (cluster, within) = (offset / cluster_len, offset % cluster_len);
        let (entry, count) = match self.run_at(cluster, (within + len).div_ceil(cluster_len))? {
            Ready::Yes(run) => run,
            Ready::Miss(what) => return miss(what),
        };
        let len = len.min(count * cluster_len - within);
        if access != Access::Read {
            self.bitmaps.borrow_mut().changed(offset, len);
        }
        let mapping = match (entry, access) {
            (Entry::At(host), Access::Read | Access::Write) => {
                Mapping::Data { child: Role::File, offset: host + within }
            }
            // Space that nothing is written to is given back, so that zeros are for the format.
            (Entry::At(_), Access::Zero) => Mapping::Allocate,
            (Entry::Unallocated, Access::Read) => Mapping::Backing { at: None },
            (Entry::Unallocated, Access::Write | Access::Zero) => Mapping::Allocate,
        };
        Ok(Extent { len, mapping })
    }

    /// Takes clusters for neighbours on the disk that have none.
    fn reserve_clusters(&self, offset: u64, len: u64) -> Result<Ready<Reservation>, ParallelsError> {
        let cluster_len = self.geometry.cluster_len;
        let cluster = offset / cluster_len;
        let wanted = (offset + len).div_ceil(cluster_len) - cluster;
        let count = match self.run_at(cluster, wanted)? {
            Ready::Yes((Entry::Unallocated, count)) => count,
            Ready::Yes(_) => unreachable!("only what is not allocated is reserved"),
            Ready::Miss(miss) => return Ok(Ready::Miss(miss)),
        };
        let taken = self.space.borrow_mut().take(count as u32);
        let Some(taken) = taken else { return Ok(Ready::Miss(Missing::Room(count).miss())) };
        let guest_end = ((cluster + u64::from(taken.count)) * cluster_len).min(self.geometry.size);
        Ok(Ready::Yes(Reservation {
            child: Role::File,
            host_offset: self.geometry.place_of(taken.first),
            guest_start: cluster * cluster_len,
            guest_end,
            zeroed: taken.fresh,
            fresh: true,
        }))
    }

    /// The clusters of the disk and of the file that a reservation is about.
    fn clusters_of(&self, reservation: &Reservation) -> impl Iterator<Item = (u64, ClusterIndex)> + use<> {
        let Geometry { cluster_len, data_at, .. } = self.geometry;
        let first = reservation.guest_start / cluster_len;
        let index = ((reservation.host_offset - data_at) / cluster_len) as ClusterIndex;
        (first..reservation.guest_end.div_ceil(cluster_len)).zip(index..)
    }

    fn publish_clusters(&self, reservation: &Reservation) -> Result<Ready<()>, ParallelsError> {
        let mut bat = self.bat.borrow_mut();
        for (cluster, _) in self.clusters_of(reservation) {
            let (at, _) = self.slice_of(cluster);
            if bat.find(at).is_none() {
                return Ok(Ready::Miss(Missing::Slice(at).miss()));
            }
        }
        for (cluster, index) in self.clusters_of(reservation) {
            let (at, byte) = self.slice_of(cluster);
            let slot = bat.find(at).expect("found above");
            let raw =
                self.geometry.raw_entry(index).expect("the file does not grow beyond what entries can name");
            bat.bytes_mut(slot)[byte..byte + 4].copy_from_slice(&raw.to_le_bytes());
        }
        self.changes.set(self.changes.get() + 1);
        Ok(Ready::Yes(()))
    }
}

#[async_trait(?Send)]
impl Driver for Parallels {
    fn name(&self) -> &'static str {
        "parallels"
    }

    fn length(&self) -> Length {
        Length::Bytes(self.geometry.size)
    }

    fn lookup(&self, offset: u64, len: u64, access: Access) -> Result<Extent> {
        self.extent(offset, len, access).map_err(|fault| self.fail(fault))
    }

    fn load<'a>(&'a self, io: &'a Io, miss: Miss) -> LocalFuture<'a, Result<()>> {
        Box::pin(async move {
            match Missing::of(miss) {
                Missing::Slice(at) => self.load_slice(io, at).await,
                Missing::Mark => self.mark(io).await,
                Missing::Room(clusters) => self.make_room(io, clusters).await,
            }
        })
    }

    fn facts(&self) -> ImageFacts {
        ImageFacts { tells_no_state: true, ..ImageFacts::default() }
    }

    fn granularity(&self) -> u64 {
        self.geometry.cluster_len
    }

    fn reserve(&self, offset: u64, len: u64) -> Result<Ready<Reservation>> {
        self.reserve_clusters(offset, len).map_err(|fault| self.fail(fault))
    }

    fn publish(&self, reservation: &Reservation) -> Result<Ready<()>> {
        self.publish_clusters(reservation).map_err(|fault| self.fail(fault))
    }

    fn give_back(&self, reservation: &Reservation) {
        let mut space = self.space.borrow_mut();
        self.clusters_of(reservation).for_each(|(_, index)| space.free(index));
    }

    fn write_zeroes<'a>(
        &'a self,
        io: &'a Io,
        offset: u64,
        len: u64,
        _: ZeroFlags,
    ) -> LocalFuture<'a, Result<bool>> {
        Box::pin(async move { self.free_clusters(io, offset, len).await.map(|()| true) })
    }

    fn discard<'a>(&'a self, io: &'a Io, offset: u64, len: u64) -> LocalFuture<'a, Result<()>> {
        Box::pin(self.free_clusters(io, offset, len))
    }

    fn is_clean(&self) -> bool {
        self.durable.get() == self.changes.get()
    }

    fn flush<'a>(&'a self, io: &'a Io) -> LocalFuture<'a, Result<()>> {
        Box::pin(self.flush_all(io))
    }

    async fn close(&self, io: &Io) -> Result<()> {
        if self.bitmaps.borrow().is_new() {
            self.mark(io).await?;
        }
        if self.marked.get() { self.close_marked(io).await } else { Ok(()) }
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// The image of a node.
fn of_node(io: &Io, node: crate::graph::NodeId) -> Result<(std::rc::Rc<dyn Driver>, crate::graph::NodeId)> {
    let driver = io.driver(node).filter(|driver| driver.as_any().is::<Parallels>());
    match driver.zip(io.edge(node, Role::File)) {
        Some(found) => Ok(found),
        None => {
            let (node, driver) = (io.title(node), io.driver_name(node));
            Err(Box::new(Error::Unsupported { node, driver, what: "a Parallels check" }))
        }
    }
}
