//! VMDK, VMware's disk images: a descriptor that names extents, and extents that hold the disk one behind the other.
//!
//! ```text
//!   file ──▶ descriptor: CID, parent, extents                          `descriptor`
//!   extents.0, extents.1, … ──▶ flat: the disk's bytes
//!                            '─▶ sparse: header, grain directory, grain tables, grains    `layout`, `sparse`
//! ```
//!
//! A `monolithicSparse` image is one sparse extent with the descriptor in it, and both are `file`. `open` decides what is
//! opened, `begin` is what happens before the first write, `flush` has the order on disk, `pack` is for compressed grains.
//!
//! Extents of the kinds that ESX makes (`VMFSSPARSE`, `SESPARSE`) are read only; so is what a writer could damage: a disk
//! whose extents begin inside a grain, or whose grain directory lies behind its grains. A redundant grain directory is
//! kept in step, and brought in step after a crash. Descriptors name files beneath their own folder, whatever
//! `qemu-img` 10.0.2 would open.
//!
//! Source: "Virtual Disk Format 5.0", VMware's technical note; what `qemu-img` makes and accepts.

mod begin;
mod check;
mod create;
pub mod descriptor;
mod error;
mod flush;
pub mod layout;
mod open;
mod pack;
mod sparse;

use std::any::Any;
use std::cell::{Cell, RefCell};

use async_trait::async_trait;
use serde_json::{Map, Value, json};

pub use check::check;
pub(crate) use create::create;
pub use create::{Adapter, CreateOptions, Subformat};
use descriptor::{Descriptor, ExtentLine};
pub use error::VmdkError;
pub(crate) use open::open;
pub use open::probe;
use sparse::{Entry, Packing, Sparse};

use super::loads::Loads;
use super::{Backing, CheckReport, HostOffset, ImageFacts, OutsideName};
use crate::buf::BufList;
use crate::engine::task::Gate;
use crate::engine::{Io, LocalFuture, Op, Request};
use crate::error::{Error, Result};
use crate::graph::driver::{Access, Driver, Extent, Length, Mapping, Miss, Ready, Reservation, Role};
use crate::intent::ZeroFlags;
use layout::SECTOR;

/// An open image.
pub struct Vmdk {
    name: String,
    descriptor: RefCell<Descriptor>,
    /// Where the descriptor is in `file`, and how long it may become.
    descriptor_at: u64,
    descriptor_max: u64,
    parts: Vec<Part>,
    len: u64,
    /// Bytes of the largest grain, of which each part begins at a multiple where the image is written to.
    grain_len: u64,
    /// Whether the image has a new content ID since it was opened.
    cid_changed: Cell<bool>,
    /// Changes of grain tables that were made, and that are durable.
    changes: Cell<u64>,
    durable: Cell<u64>,
    begins: Gate,
    commits: Gate,
}

/// A part of the disk, and what holds it.
struct Part {
    start: u64,
    len: u64,
    role: Role,
    /// How it is shown: name and kind.
    name: String,
    kind: &'static str,
    body: Body,
    loads: Loads,
}

enum Body {
    /// From this byte of the file on.
    Flat(u64),
    Zero,
    Sparse(Box<Sparse>),
    /// Not opened: only the metadata is looked at.
    Closed,
}

impl Part {
    fn sparse(&self) -> Option<&Sparse> {
        match &self.body {
            Body::Sparse(sparse) => Some(sparse),
            _ => None,
        }
    }
}

/// What [`Driver::load`] is asked for, of a part of the disk.
enum Missing {
    Table(HostOffset),
    /// The first write is about to come.
    Begin,
}

impl Missing {
    fn of(miss: Miss) -> (usize, Self) {
        let part = (miss.what >> 1) as usize;
        (part, if miss.what & 1 == 0 { Self::Table(HostOffset(miss.at)) } else { Self::Begin })
    }

    fn miss(&self, part: usize) -> Miss {
        let part = u32::try_from(part).expect("a disk has few parts") << 1;
        match self {
            Self::Table(at) => Miss { what: part, at: at.0 },
            Self::Begin => Miss { what: part | 1, at: 0 },
        }
    }
}

impl Vmdk {
    /// The descriptor as it is in the file.
    pub fn descriptor(&self) -> Descriptor {
        self.descriptor.borrow().clone()
    }

    fn fail(&self, fault: VmdkError) -> Box<Error> {
        Error::format(&*self.name, fault)
    }

    /// The number of the part that holds a byte of the disk.
    fn part_at(&self, offset: u64) -> usize {
        self.parts.partition_point(|part| part.start <= offset) - 1
    }

    fn extent(&self, offset: u64, len: u64, access: Access) -> Result<Extent, VmdkError> {
        let number = self.part_at(offset);
        let part = &self.parts[number];
        let within = offset - part.start;
        let len = len.min(part.len - within);
        if access != Access::Read && !self.has_begun(part) {
            return Ok(Extent { len, mapping: Mapping::Miss(Missing::Begin.miss(number)) });
        }
        let (len, mapping) = match &part.body {
            Body::Flat(at) => (len, Mapping::Data { child: part.role, offset: at + within }),
            Body::Zero => (len, Mapping::Zero { at: None }),
            Body::Closed => return Err(VmdkError::Closed { name: part.name.clone() }),
            Body::Sparse(sparse) => match sparse.lookup(within, len, access)? {
                Ok(found) => found,
                Err(table) => (len, Mapping::Miss(Missing::Table(table).miss(number))),
            },
        };
        Ok(Extent { len, mapping })
    }

    fn has_begun(&self, part: &Part) -> bool {
        self.cid_changed.get() && part.sparse().is_none_or(|sparse| sparse.begun.get())
    }

    /// The sparse part that holds a byte of the disk: its number, and the byte in it.
    fn sparse_at(&self, offset: u64) -> (usize, &Sparse, u64) {
        let number = self.part_at(offset);
        let part = &self.parts[number];
        let sparse = part.sparse().expect("only sparse extents have grains");
        (number, sparse, offset - part.start)
    }

    /// Takes grains behind all others, one behind the other; or one that was given back.
    fn reserve_grains(&self, offset: u64, len: u64) -> Result<Ready<Reservation>, VmdkError> {
        let (number, sparse, within) = self.sparse_at(offset);
        let grain = within / sparse.grain_len;
        let end = (within + len).min(sparse.len);
        let run = match sparse.empty_run(grain, end.div_ceil(sparse.grain_len) - grain)? {
            Ok(run) => run,
            Err(table) => return Ok(Ready::Miss(Missing::Table(table).miss(number))),
        };
        let (host_offset, count, zeroed) = sparse.take_grains(run)?;
        let start = offset - within;
        Ok(Ready::Yes(Reservation {
            child: sparse.role,
            host_offset,
            guest_start: start + grain * sparse.grain_len,
            guest_end: start + ((grain + count) * sparse.grain_len).min(sparse.len),
            zeroed,
            fresh: true,
        }))
    }

    /// The first grain of a reservation, and how many there are.
    fn grains_of(&self, reservation: &Reservation) -> (u64, u64) {
        let (_, sparse, within) = self.sparse_at(reservation.guest_start);
        let len = reservation.guest_end - reservation.guest_start;
        (within / sparse.grain_len, len.div_ceil(sparse.grain_len))
    }

    fn publish_grains(&self, reservation: &Reservation) -> Result<Ready<()>, VmdkError> {
        let (number, sparse, _) = self.sparse_at(reservation.guest_start);
        let (grain, count) = self.grains_of(reservation);
        match sparse.set(grain, count, Entry::Grain(reservation.host_offset))? {
            Err(table) => Ok(Ready::Miss(Missing::Table(table).miss(number))),
            Ok(()) => {
                self.changes.set(self.changes.get() + 1);
                Ok(Ready::Yes(()))
            }
        }
    }

    /// Makes grains that hold nothing read as zeros; `false` where the format cannot say so, or somebody took one.
    async fn zero_grains(&self, io: &Io, offset: u64, len: u64) -> Result<bool> {
        let (mut at, end) = (offset, offset + len);
        while at < end {
            let (number, sparse, within) = self.sparse_at(at);
            let grain = within / sparse.grain_len;
            let left = (end - at).min(sparse.len - within).div_ceil(sparse.grain_len);
            let run = match sparse.empty_run(grain, left).map_err(|fault| self.fail(fault))? {
                Ok(0) => return Ok(false),
                Ok(run) => run,
                Err(table) => {
                    self.load(io, Missing::Table(table).miss(number)).await?;
                    continue;
                }
            };
            match sparse.encoding {
                sparse::Encoding::Sectors { zeroed: true, .. } => {
                    // Nothing was awaited since the table was seen in memory.
                    let set = sparse.set(grain, run, Entry::Zero).map_err(|fault| self.fail(fault))?;
                    set.expect("a table that is in memory");
                    self.changes.set(self.changes.get() + 1);
                }
                _ if io.try_child(Role::Backing).is_some() => return Ok(false),
                _ => {}
            }
            at += run * sparse.grain_len;
        }
        Ok(true)
    }

    /// What is shown of the extents, in the reference's order.
    fn extents_shown(&self) -> Value {
        let shown = |part: &Part| {
            let mut extent = Map::new();
            if part.sparse().is_some_and(|sparse| sparse.packing != Packing::None) {
                extent.insert("compressed".into(), json!(true));
            }
            extent.insert("virtual-size".into(), json!(part.len));
            extent.insert("filename".into(), json!(part.name));
            if let Some(sparse) = part.sparse() {
                extent.insert("cluster-size".into(), json!(sparse.grain_len));
            }
            extent.insert("format".into(), json!(part.kind));
            Value::Object(extent)
        };
        self.parts.iter().map(shown).collect()
    }
}

#[async_trait(?Send)]
impl Driver for Vmdk {
    fn name(&self) -> &'static str {
        "vmdk"
    }

    fn length(&self) -> Length {
        Length::Bytes(self.len)
    }

    fn lookup(&self, offset: u64, len: u64, access: Access) -> Result<Extent> {
        self.extent(offset, len, access).map_err(|fault| self.fail(fault))
    }

    fn load<'a>(&'a self, io: &'a Io, miss: Miss) -> LocalFuture<'a, Result<()>> {
        Box::pin(async move {
            match Missing::of(miss) {
                (part, Missing::Table(at)) => self.load_table(io, part, at).await,
                (part, Missing::Begin) => self.begin(io, part).await,
            }
        })
    }

    fn facts(&self) -> ImageFacts {
        let descriptor = self.descriptor.borrow();
        let sparse = || self.parts.iter().map(|part| part.sparse().map(|sparse| sparse.grain_len));
        let alike = sparse().next().flatten().filter(|first| sparse().all(|len| len == Some(*first)));
        let mut specific = Map::new();
        specific.insert("cid".into(), json!(descriptor.cid));
        specific.insert("parent-cid".into(), json!(descriptor.parent_cid));
        specific.insert("create-type".into(), json!(descriptor.create_type));
        specific.insert("extents".into(), self.extents_shown());
        let name = |line: &ExtentLine| OutsideName { what: "extent", name: line.name.clone() };
        let outside = |part: &&Part| part.role != Role::File;
        let named = if self.parts.iter().any(|part| outside(&part)) { &descriptor.extents[..] } else { &[] };
        ImageFacts {
            cluster_size: alike,
            // What is flat has no word for holes but its file's.
            preallocated: self.parts.iter().any(|part| matches!(part.body, Body::Flat(_))),
            backing: descriptor
                .parent
                .clone()
                .filter(|_| descriptor.has_parent())
                .map(|name| Backing { name, format: Some("vmdk".into()) }),
            names: named.iter().filter(|line| !line.name.is_empty()).map(name).collect(),
            specific: Some(specific),
            ..ImageFacts::default()
        }
    }

    fn granularity(&self) -> u64 {
        self.grain_len
    }

    fn reserve(&self, offset: u64, len: u64) -> Result<Ready<Reservation>> {
        self.reserve_grains(offset, len).map_err(|fault| self.fail(fault))
    }

    fn publish(&self, reservation: &Reservation) -> Result<Ready<()>> {
        self.publish_grains(reservation).map_err(|fault| self.fail(fault))
    }

    fn give_back(&self, reservation: &Reservation) {
        let (_, sparse, _) = self.sparse_at(reservation.guest_start);
        let (_, count) = self.grains_of(reservation);
        let places = (0..count).map(|nth| reservation.host_offset + nth * sparse.grain_len);
        sparse.space.free.borrow_mut().extend(places);
    }

    fn read_special<'a>(
        &'a self,
        io: &'a Io,
        offset: u64,
        data: &'a mut BufList,
    ) -> LocalFuture<'a, Result<()>> {
        Box::pin(self.read_packed(io, offset, data))
    }

    fn compresses(&self) -> bool {
        // Other images take such a write as any other.
        true
    }

    fn only_compresses(&self) -> bool {
        self.parts.iter().any(|part| part.sparse().is_some_and(|sparse| sparse.packing != Packing::None))
    }

    /// Carries out what goes to an extent of compressed grains.
    fn serve<'a>(&'a self, io: &'a Io, request: &'a mut Request) -> LocalFuture<'a, Result<()>> {
        Box::pin(async move {
            match request.op {
                Op::Write(_) | Op::WriteCompressed => {
                    self.write_packed(io, request.offset, &mut request.data).await?
                }
                Op::WriteZeroes(..) => self.zero_packed(io, request.offset, request.len).await?,
                _ => return Ok(()),
            }
            match request.op {
                Op::Write(crate::intent::Fua::Yes) => self.flush_all(io).await,
                _ => Ok(()),
            }
        })
    }

    fn write_zeroes<'a>(
        &'a self,
        io: &'a Io,
        offset: u64,
        len: u64,
        _: ZeroFlags,
    ) -> LocalFuture<'a, Result<bool>> {
        Box::pin(self.zero_grains(io, offset, len))
    }

    /// There is no way to say that a grain is given up.
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
        self.end(io).await
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Whole sectors that hold so many bytes.
fn whole_sectors(len: u64) -> u64 {
    len.next_multiple_of(SECTOR)
}
