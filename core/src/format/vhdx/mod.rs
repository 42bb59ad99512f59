//! VHDX, Hyper-V's disk image: payload blocks of 1 to 256 MiB, a table that says where each is (the BAT), and a log that makes
//! changes of the table atomic.
//!
//! ```text
//!   block of the guest ──▶ BAT entry ──┬─ fully present ──────────▶ block in the file
//!                                      ├─ partially present ──▶ sector bitmap ──┬─ 1 ─▶ block in the file
//!                                      │                                        └─ 0 ─▶ parent
//!                                      ├─ not present ────────────▶ parent, or zeros without one
//!                                      └─ zero, unmapped, undefined ─▶ zeros
//! ```
//!
//! BAT and sector bitmaps are read and written by sectors of 4096 bytes, in one bounded cache, because the log knows nothing
//! smaller. `layout` has the structures, `open` reads them, `replay` what the log adds; `lookup` says where a range is, `space`
//! finds room for what is new, `flush` has the order on disk, `session` the headers and the writing of the log.
//!
//! Blocks that are there stay where they are: zeros and discards of them are passed on to the file, which keeps no space
//! for them then. Space that a crash lost behind all blocks is used again.
//!
//! Source: \[VHDX\] 2, files of Hyper-V, and what `qemu-img` 10.0.2 makes and accepts.

mod check;
mod create;
mod empty;
mod error;
mod flush;
pub mod layout;
mod lookup;
mod open;
mod overlay;
mod replay;
mod resize;
mod session;
mod space;

use std::any::Any;
use std::cell::{Cell, RefCell};

use async_trait::async_trait;

pub use check::check;
pub use create::{CreateOptions, Parent, create};
pub use error::VhdxError;
pub(in crate::format) use open::open;
pub use open::probe;

use super::cache::SliceCache;
use super::lengthening::Lengthening;
use super::loads::Loads;
use super::{Backing, CheckReport, HostOffset, ImageFacts};
use crate::buf::BufList;
use crate::engine::task::Gate;
use crate::engine::{Io, LocalFuture};
use crate::error::{Error, Result};
use crate::graph::driver::{Access, Driver, Extent, Length, Miss, Preallocate, Ready, Reservation, Role};
use crate::intent::ZeroFlags;
use layout::{Guid, Metadata, Region};
use overlay::Overlay;
use session::{Headers, Log};
use space::Space;

/// An open image.
pub struct Vhdx {
    name: String,
    metadata: Metadata,
    /// Bytes of the disk: the metadata's, until it is made longer.
    size: Cell<u64>,
    /// Where in the file the size of the disk stands.
    size_at: u64,
    bat: Region,
    /// Places that hold no blocks, in order: headers, log, regions.
    taken: Vec<Region>,
    /// What the log changes of a file that is not written to.
    overlay: Overlay,
    /// Bytes of the file in which blocks can be.
    file_len: Cell<u64>,
    /// Whether a log was replayed.
    replayed: Cell<bool>,
    /// Whether the image is written to below another one, by a commit. What it holds then is what the images above it
    /// showed already, so that they are to go on knowing it.
    is_below: bool,
    headers: RefCell<Headers>,
    /// Whether the headers say that this session writes.
    begun: Cell<bool>,
    beginning: Gate,
    log: Cell<Log>,
    cache: RefCell<SliceCache>,
    space: RefCell<Space>,
    growing: Gate,
    /// Changes of BAT and bitmaps that were made, and that are durable.
    changes: Cell<u64>,
    durable: Cell<u64>,
    commits: Gate,
    lengthening: Lengthening,
    loads: Loads,
}

/// What [`Driver::load`] is asked for.
enum Missing {
    /// A sector of the BAT or of a sector bitmap.
    Slice(HostOffset),
    /// The end of all blocks.
    End,
    /// The sector bitmap block of a chunk that has none.
    Bitmap(u64),
    /// The right to write: headers that say so.
    Session,
    /// The file's new length.
    Length,
}

impl Missing {
    fn of(miss: Miss) -> Self {
        match miss.what {
            0 => Self::Slice(HostOffset(miss.at)),
            1 => Self::End,
            2 => Self::Bitmap(miss.at),
            3 => Self::Session,
            _ => Self::Length,
        }
    }

    fn miss(&self) -> Miss {
        match self {
            Self::Slice(at) => Miss { what: 0, at: at.0 },
            Self::End => Miss { what: 1, at: 0 },
            Self::Bitmap(chunk) => Miss { what: 2, at: *chunk },
            Self::Session => Miss { what: 3, at: 0 },
            Self::Length => Miss { what: 4, at: 0 },
        }
    }
}

impl Vhdx {
    /// What the metadata region says.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Changes with each session that changes what the guest sees.
    pub fn data_write(&self) -> Guid {
        self.headers.borrow().current.data_write
    }

    fn fail(&self, fault: VhdxError) -> Box<Error> {
        Error::format(&*self.name, fault)
    }

    fn changed(&self) {
        self.changes.set(self.changes.get() + 1);
    }
}

#[async_trait(?Send)]
impl Driver for Vhdx {
    fn name(&self) -> &'static str {
        "vhdx"
    }

    fn length(&self) -> Length {
        Length::Bytes(self.size.get())
    }

    fn lookup(&self, offset: u64, len: u64, access: Access) -> Result<Extent> {
        self.extent(offset, len, access).map_err(|fault| self.fail(fault))
    }

    fn load<'a>(&'a self, io: &'a Io, miss: Miss) -> LocalFuture<'a, Result<()>> {
        Box::pin(async move {
            match Missing::of(miss) {
                Missing::Slice(at) => self.load_slice(io, at).await,
                Missing::End => self.find_end(io).await,
                Missing::Bitmap(chunk) => self.add_bitmap(io, chunk).await,
                Missing::Session => self.begin(io).await,
                Missing::Length => {
                    self.lengthening.settle(io).await;
                    Ok(())
                }
            }
        })
    }

    fn facts(&self) -> ImageFacts {
        let backing = self.metadata.parent.as_ref().map(|parent| Backing {
            name: open::parent_name(parent).unwrap_or_default(),
            format: Some("vhdx".into()),
        });
        ImageFacts {
            cluster_size: Some(self.metadata.block_len),
            dirty: !self.headers.borrow().current.log.is_nil(),
            preallocated: self.metadata.leave_allocated,
            backing,
            ..ImageFacts::default()
        }
    }

    fn granularity(&self) -> u64 {
        self.metadata.block_len
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

    /// Only where the log changes a block, which no honest one does.
    fn read_special<'a>(
        &'a self,
        io: &'a Io,
        offset: u64,
        data: &'a mut BufList,
    ) -> LocalFuture<'a, Result<()>> {
        Box::pin(async move {
            let len = data.len_bytes();
            let Some(at) = self.place_of(offset).map_err(|fault| self.fail(fault))? else {
                unreachable!("what is special has a place, and an image with an overlay does not change");
            };
            let bytes =
                open::read_through(io, "vhdx.read/logged", io.child(Role::File), &self.overlay, at, len);
            data.copy_in(0, &bytes.await?);
            Ok(())
        })
    }

    fn write_zeroes<'a>(
        &'a self,
        io: &'a Io,
        offset: u64,
        len: u64,
        flags: ZeroFlags,
    ) -> LocalFuture<'a, Result<bool>> {
        Box::pin(async move { self.zero_blocks(io, offset, len, flags).await.map(|()| true) })
    }

    /// What is in the file goes to the file; what is not reads as zeros or as the parent, and goes on doing so.
    fn discard<'a>(&'a self, _: &'a Io, _: u64, _: u64) -> LocalFuture<'a, Result<()>> {
        Box::pin(async { Ok(()) })
    }

    async fn make_empty(&self, io: &Io) -> Result<()> {
        self.take_all_out(io).await
    }

    async fn resize(&self, io: &Io, len: u64, how: Preallocate) -> Result<()> {
        self.grow(io, len, how).await
    }

    fn is_clean(&self) -> bool {
        self.durable.get() == self.changes.get()
    }

    fn flush<'a>(&'a self, io: &'a Io) -> LocalFuture<'a, Result<()>> {
        Box::pin(self.flush_all(io))
    }

    async fn close(&self, io: &Io) -> Result<()> {
        if self.begun.get() {
            self.flush_all(io).await?;
            self.end(io).await?;
        }
        Ok(())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
