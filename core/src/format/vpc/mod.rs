//! VHD, Virtual PC's disk image, which QEMU calls vpc: fixed, or blocks of 2 MiB in the order in which they were first written.
//!
//! ```text
//!   ┌────────┬─────────┬─────┬────────────────┬────────────────┬──────┬────────┐     ┌──────────────────────┬────────┐
//!   │ footer │ dynamic │ BAT │ bitmap │ block │ bitmap │ block │ …    │ footer │     │ the disk as it is    │ footer │
//!   │ (copy) │ header  │     │                │                │      │        │     │                      │        │
//!   └────────┴─────────┴─────┴────────────────┴────────────────┴──────┴────────┘     └──────────────────────┴────────┘
//!   dynamic and differencing                                                         fixed
//! ```
//!
//! A block's bitmap has a bit for each sector. In a differencing image, a sector whose bit is not set is the parent's. In a
//! dynamic one, what is in the file is read whatever its bit says, as by the reference; a write sets the bits, which other
//! readers go by. BAT and bitmaps are read and written by slices, in bounded caches. `layout` has the structures, `lookup` and
//! `space` translate, `flush` has the order on disk.
//!
//! Source: \[VHD\], images of Virtual PC and Hyper-V, and what `qemu-img` 10.0.2 makes and accepts.

mod create;
mod error;
mod fixed;
mod flush;
pub mod layout;
mod lookup;
mod open;
mod space;

use std::any::Any;
use std::cell::{Cell, RefCell};

use async_trait::async_trait;

pub use create::{CreateOptions, Parent, create};
pub use error::VpcError;
pub use fixed::Fixed;
pub use layout::SizeRule;
pub(in crate::format) use open::open;
pub use open::{probe, uuid_of};

use super::cache::SliceCache;
use super::loads::Loads;
use super::{Backing, HostOffset, ImageFacts};
use crate::engine::task::Gate;
use crate::engine::{Io, LocalFuture};
use crate::error::{Error, Result};
use crate::graph::driver::{Access, Driver, Extent, Length, Miss, Ready, Reservation};
use crate::intent::ZeroFlags;
use layout::{DynamicHeader, Footer};
use space::Space;

/// An open dynamic or differencing image.
pub struct Vpc {
    name: String,
    footer: Footer,
    header: DynamicHeader,
    /// Bytes of the disk.
    size: u64,
    /// The parent's name, where the disk has one.
    parent: Option<Option<String>>,
    /// Places that hold no blocks, in order: first byte and the one behind.
    taken: Vec<(u64, u64)>,
    /// Bytes of the file in which blocks can be.
    file_len: Cell<u64>,
    bat: RefCell<SliceCache>,
    bitmaps: RefCell<SliceCache>,
    space: RefCell<Space>,
    /// Changes of BAT and bitmaps that were made, and that are durable.
    changes: Cell<u64>,
    durable: Cell<u64>,
    commits: Gate,
    loads: Loads,
    bitmap_loads: Loads,
    growing: Gate,
}

/// What [`Driver::load`] is asked for.
enum Missing {
    /// A slice of the BAT.
    Slice(HostOffset),
    /// A block's bitmap.
    Bitmap(HostOffset),
    /// The end of all blocks.
    End,
    /// Room for one more bitmap in memory.
    Room,
}

impl Missing {
    fn of(miss: Miss) -> Self {
        match miss.what {
            0 => Self::Slice(HostOffset(miss.at)),
            1 => Self::Bitmap(HostOffset(miss.at)),
            2 => Self::End,
            _ => Self::Room,
        }
    }

    fn miss(&self) -> Miss {
        match self {
            Self::Slice(at) => Miss { what: 0, at: at.0 },
            Self::Bitmap(at) => Miss { what: 1, at: at.0 },
            Self::End => Miss { what: 2, at: 0 },
            Self::Room => Miss { what: 3, at: 0 },
        }
    }
}

impl Vpc {
    fn fail(&self, fault: VpcError) -> Box<Error> {
        Error::format(&*self.name, fault)
    }

    fn is_differencing(&self) -> bool {
        self.parent.is_some()
    }
}

#[async_trait(?Send)]
impl Driver for Vpc {
    fn name(&self) -> &'static str {
        "vpc"
    }

    fn length(&self) -> Length {
        Length::Bytes(self.size)
    }

    fn lookup(&self, offset: u64, len: u64, access: Access) -> Result<Extent> {
        self.extent(offset, len, access).map_err(|fault| self.fail(fault))
    }

    fn load<'a>(&'a self, io: &'a Io, miss: Miss) -> LocalFuture<'a, Result<()>> {
        Box::pin(async move {
            match Missing::of(miss) {
                Missing::Slice(at) => self.load_slice(io, at).await,
                Missing::Bitmap(at) => self.load_bitmap(io, at).await,
                Missing::End => self.find_end(io).await,
                Missing::Room => self.commit(io).await,
            }
        })
    }

    fn facts(&self) -> ImageFacts {
        let name = self.parent.as_ref().map(|name| name.clone().unwrap_or_default());
        ImageFacts {
            cluster_size: Some(self.header.block_len),
            backing: name.map(|name| Backing { name, format: Some("vpc".into()) }),
            ..ImageFacts::default()
        }
    }

    fn granularity(&self) -> u64 {
        self.header.block_len
    }

    fn reserve(&self, offset: u64, len: u64) -> Result<Ready<Reservation>> {
        self.reserve_space(offset, len).map_err(|fault| self.fail(fault))
    }

    fn publish(&self, reservation: &Reservation) -> Result<Ready<()>> {
        self.publish_space(reservation).map_err(|fault| self.fail(fault))
    }

    fn give_back(&self, reservation: &Reservation) {
        self.give_space_back(reservation);
    }

    /// Blocks that are not there read as zeros, unless there is a parent. The format has no other way to say so.
    fn write_zeroes<'a>(
        &'a self,
        io: &'a Io,
        offset: u64,
        len: u64,
        _: ZeroFlags,
    ) -> LocalFuture<'a, Result<bool>> {
        Box::pin(async move {
            let block_len = self.header.block_len;
            let (mut block, end) = (offset / block_len, (offset + len).div_ceil(block_len));
            while block < end && !self.is_differencing() {
                match self.place(block).map_err(|fault| self.fail(fault))? {
                    Ready::Miss(miss) => self.load(io, miss).await?,
                    Ready::Yes(Some(_)) => return Ok(false),
                    Ready::Yes(None) => block += 1,
                }
            }
            Ok(!self.is_differencing())
        })
    }

    /// What is in the file goes to the file; what is not reads as zeros or as the parent, and goes on doing so.
    fn discard<'a>(&'a self, _: &'a Io, _: u64, _: u64) -> LocalFuture<'a, Result<()>> {
        Box::pin(async { Ok(()) })
    }

    async fn make_empty(&self, io: &Io) -> Result<()> {
        self.take_all_out(io).await
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
