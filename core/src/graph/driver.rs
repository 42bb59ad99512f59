//! What a format or filter is to the data path: a translator.
//!
//! A driver answers [`lookup`](Driver::lookup) from memory and never moves guest data. What memory does not answer is
//! [`Mapping::Miss`], and [`load`](Driver::load) fetches it. Space for new data is [`reserve`](Driver::reserve)d,
//! the data path writes into it, and [`publish`](Driver::publish) makes it reachable.
//!
//! A filter that must see requests themselves (to count, copy, compare, delay or refuse them) answers
//! [`Mapping::Own`], for those kinds of access that it cares about, and carries the requests out in
//! [`serve`](Driver::serve). Whatever it answers [`Mapping::Data`] for never comes by it.

use std::borrow::Cow;

use async_trait::async_trait;

use crate::buf::BufList;
use crate::engine::{Io, LocalFuture, Request};
use crate::error::{Error, Result};
use crate::format::ImageFacts;
use crate::intent::{Permissions, Preallocation, ZeroFlags};

/// The edges of a node, by the names that QEMU gives them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// `file`: what holds the image.
    File,
    /// `backing`: what is read where the image holds nothing.
    Backing,
    /// `data-file`: what holds the guest data of an image whose metadata is in `file`.
    DataFile,
    /// `raw`: the copy that an image is compared with.
    Raw,
    /// `log`: what writes are written down in.
    Log,
    /// `header`: what holds the header of an encrypted volume that is kept apart.
    Header,
    /// The encryption between an image and what holds its data; no edge of QEMU's, which keeps that in the format.
    Crypt,
    /// `extents.N`: one of the files that hold the guest data of an image whose description is in `file`.
    Extent(u16),
}

impl Role {
    /// QEMU's word for the edge.
    pub fn name(self) -> Cow<'static, str> {
        match self {
            Self::File => "file".into(),
            Self::Backing => "backing".into(),
            Self::DataFile => "data-file".into(),
            Self::Raw => "raw".into(),
            Self::Log => "log".into(),
            Self::Header => "header".into(),
            Self::Crypt => "crypt".into(),
            Self::Extent(number) => format!("extents.{number}").into(),
        }
    }
}

/// What a lookup is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The answer says where the bytes come from.
    Read,
    /// [`Mapping::Data`] only where the bytes may be overwritten in place; else [`Mapping::Allocate`].
    Write,
    /// [`Mapping::Data`] only where the driver passes the request on to its child as it is; else
    /// [`Mapping::Allocate`], and the request goes to [`Driver::write_zeroes`] or [`Driver::discard`].
    Zero,
}

/// Where a range of a node is. Never empty, and never longer than what was asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Bytes from the offset asked about.
    pub len: u64,
    /// Where they are.
    pub mapping: Mapping,
}

/// The kinds of extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapping {
    /// At `offset` of a child.
    Data {
        /// Which child.
        child: Role,
        /// First byte there.
        offset: u64,
    },
    /// Nowhere: the range reads as zeros, whatever a backing file says.
    Zero {
        /// Where the format keeps space for it all the same.
        at: Option<u64>,
    },
    /// Not in this node: what the backing file says, or zeros without one.
    Backing {
        /// Where the format keeps space for it all the same.
        at: Option<u64>,
    },
    /// Stored in a form that [`Driver::read_special`] turns into bytes: compressed, encrypted.
    Special {
        /// Whether the form is compression.
        compressed: bool,
    },
    /// At `offset` of a child, and yet the driver carries the request out itself: it goes to [`Driver::serve`].
    Own {
        /// Which child.
        child: Role,
        /// First byte there.
        offset: u64,
    },
    /// Not writable in place.
    Allocate,
    /// Metadata must be loaded first.
    Miss(Miss),
}

/// Metadata that a driver lacks, in the driver's own terms; only good for [`Driver::load`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Miss {
    /// What kind of thing.
    pub what: u32,
    /// Which one.
    pub at: u64,
}

/// Answer of an operation that works on memory and may lack some metadata.
#[derive(Debug)]
pub enum Ready<T> {
    /// Done.
    Yes(T),
    /// [`Driver::load`] this, then ask again.
    Miss(Miss),
}

/// Space that nothing points to yet. The data path publishes it or gives it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reservation {
    /// The child that holds the space.
    pub child: Role,
    /// First byte in the child, the place of `guest_start`.
    pub host_offset: u64,
    /// First guest byte that the space is for.
    pub guest_start: u64,
    /// End of the guest range. All of it must hold the right bytes before [`Driver::publish`].
    pub guest_end: u64,
    /// Whether the space is known to read as zeros already.
    pub zeroed: bool,
    /// Whether the space is a new allocation, rather than a part of a unit that the node owns already.
    pub fresh: bool,
}

/// How space for what a longer node shows anew is reserved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preallocate {
    /// Not at all.
    #[default]
    Off,
    /// The format's metadata says where the data is; the host reserves nothing.
    Metadata,
    /// So, and the host reserves the space.
    Falloc,
    /// So, and the host's space is written with zeros.
    Full,
}

impl Preallocate {
    /// What it means for the file that holds the data.
    pub fn of_file(self) -> Preallocation {
        match self {
            Self::Off | Self::Metadata => Preallocation::Off,
            Self::Falloc => Preallocation::Falloc,
            Self::Full => Preallocation::Full,
        }
    }
}

/// How long a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// So many bytes.
    Bytes(u64),
    /// The `file` child from an offset on.
    OfFileFrom(u64),
    /// So many bytes, until a write beyond them makes it more.
    Growing(u64),
}

/// A format or filter.
///
/// Methods without a future read and change memory only. The futures emit intents through [`Io`]: `async fn`s where a node
/// is opened, changed as a whole, or closed, and futures by name where a request may come by.
#[async_trait(?Send)]
pub trait Driver {
    /// QEMU's name of the driver.
    fn name(&self) -> &'static str;

    /// Length of what the node shows, in bytes.
    fn length(&self) -> Length;

    /// Length of what a guest may ask for. It is less where the driver itself works beyond the end of its disk.
    fn guest_length(&self) -> Length {
        self.length()
    }

    /// Returns the extent at `offset`, at most `len` bytes of it; `len` is above zero.
    ///
    /// # Errors
    /// When the metadata for the range is damaged.
    fn lookup(&self, offset: u64, len: u64, access: Access) -> Result<Extent>;

    /// The child, and the place there, of a range that a guest may ask for, where [`lookup`](Self::lookup) says that all of it is
    /// data of one child, or is read in the backing file; `len` is above zero. Nothing means that there may be more to say. For
    /// one who has a shorter way to most answers.
    fn place(&self, offset: u64, len: u64, access: Access) -> Option<(Role, u64)> {
        looked_up(self, offset, len, access)
    }

    /// Fetches what a lookup or reservation missed.
    fn load<'a>(&'a self, _io: &'a Io, _miss: Miss) -> LocalFuture<'a, Result<()>> {
        unreachable!("a driver that answers `Miss` loads")
    }

    /// Whether the node shows its child's bytes as they are, so that the child's holes are its own.
    fn is_filter(&self) -> bool {
        false
    }

    /// Permissions on its file that a filter takes beyond those of the nodes above, and that it lets nobody else take.
    fn child_permissions(&self) -> (Permissions, Permissions) {
        (Permissions::NONE, Permissions::NONE)
    }

    /// Whether what nobody wrote to reads as zeros. One that decrypts whatever is there says no, and what
    /// [`resize`](Self::resize) adds is then not zeros either.
    fn starts_as_zeroes(&self) -> bool {
        true
    }

    /// What the image says of itself.
    fn facts(&self) -> ImageFacts {
        ImageFacts::default()
    }

    /// Bytes of a unit of allocation; 1 for a driver that passes everything on.
    fn granularity(&self) -> u64 {
        1
    }

    /// Bytes of the smallest unit that the format can say is zero.
    fn zero_granularity(&self) -> u64 {
        self.granularity()
    }

    /// Carries out a request whose place is [`Mapping::Own`]: a read, a write (compressed or not), zeros or a discard.
    /// Zeros that are to be durable come as zeros here and a [`flush`](Self::flush) after them. The buffers stay in the
    /// request, whatever comes of it.
    fn serve<'a>(&'a self, _io: &'a Io, _request: &'a mut Request) -> LocalFuture<'a, Result<()>> {
        unreachable!("a driver that answers `Own` serves")
    }

    /// Takes note that the node's length was changed, by way of its `file` child.
    fn resized(&self, _len: u64) {}

    /// Takes space for a write to `[offset, offset + len)`, of which at least the first byte is
    /// [`Mapping::Allocate`]. The reservation covers `offset`, and as much more as is contiguous in the child.
    ///
    /// # Errors
    /// When the metadata for the range is damaged.
    fn reserve(&self, _offset: u64, _len: u64) -> Result<Ready<Reservation>> {
        unreachable!("a driver that answers `Allocate` reserves")
    }

    /// Makes the space of a reservation reachable, once its bytes are written.
    ///
    /// # Errors
    /// When the metadata for the range is damaged.
    fn publish(&self, _reservation: &Reservation) -> Result<Ready<()>> {
        unreachable!("a driver that answers `Allocate` publishes")
    }

    /// Takes back the space of a reservation that is not published: in memory, without I/O.
    fn give_back(&self, _reservation: &Reservation) {}

    /// Reads from a [`Mapping::Special`] extent into `data`.
    fn read_special<'a>(
        &'a self,
        _io: &'a Io,
        _offset: u64,
        _data: &'a mut BufList,
    ) -> LocalFuture<'a, Result<()>> {
        unreachable!("a driver that answers `Special` reads it")
    }

    /// Writes one unit of allocation (or less, at the end of the node) in compressed form. `Ok(false)`: the data does
    /// not shrink, and nothing was written. `data` is the same afterwards.
    fn write_compressed<'a>(
        &'a self,
        _io: &'a Io,
        _offset: u64,
        _data: &'a mut BufList,
    ) -> LocalFuture<'a, Result<bool>> {
        Box::pin(async { Ok(false) })
    }

    /// Tells whether [`write_compressed`](Self::write_compressed) does anything.
    fn compresses(&self) -> bool {
        false
    }

    /// Tells whether all that is written is stored compressed, so that writes are whole units of allocation.
    fn only_compresses(&self) -> bool {
        false
    }

    /// Makes a range, whole units of allocation (or the end of the node), read as zeros.
    /// `Ok(false)`: the format has no way to say so, and zeros are to be written as data.
    fn write_zeroes<'a>(
        &'a self,
        _io: &'a Io,
        _offset: u64,
        _len: u64,
        _flags: ZeroFlags,
    ) -> LocalFuture<'a, Result<bool>> {
        unreachable!("a driver that answers `Allocate` to zeros writes them")
    }

    /// Gives up the content of a range, whole units of allocation (or the end of the node).
    fn discard<'a>(&'a self, _io: &'a Io, _offset: u64, _len: u64) -> LocalFuture<'a, Result<()>> {
        unreachable!("a driver that answers `Allocate` to zeros discards")
    }

    /// Makes the node hold nothing, durably, so that its backing file, or zeros, show through. Nobody else uses it
    /// meanwhile. One that cannot says [`Error::Unsupported`].
    async fn make_empty(&self, io: &Io) -> Result<()> {
        let (node, driver) = (io.title(io.node()), self.name());
        Err(Box::new(Error::Unsupported { node, driver, what: "emptying" }))
    }

    /// Changes the length of what the node shows; what is new reads as zeros. Durable on return.
    /// One that cannot says [`Error::Unsupported`].
    async fn resize(&self, io: &Io, _len: u64, _how: Preallocate) -> Result<()> {
        let (node, driver) = (io.title(io.node()), self.name());
        Err(Box::new(Error::Unsupported { node, driver, what: "a change of length" }))
    }

    /// Reads or writes, by `access`, the state of a machine that the format keeps beside the disk, from byte `offset` of it
    /// on. `None`: the driver has no place for it.
    fn vmstate<'a>(
        &'a self,
        _io: &'a Io,
        _access: Access,
        _offset: u64,
        _data: &'a mut BufList,
    ) -> Option<LocalFuture<'a, Result<()>>> {
        None
    }

    /// Whether no metadata waits to be written, so that a durable data write is a durable guest write.
    fn is_clean(&self) -> bool {
        true
    }

    /// Makes everything durable that completed before.
    fn flush<'a>(&'a self, io: &'a Io) -> LocalFuture<'a, Result<()>>;

    /// Writes out what must be written before the children close.
    async fn close(&self, io: &Io) -> Result<()>;

    /// Whether metadata was found broken, and [`mark_broken`](Self::mark_broken) is yet to be called.
    fn is_broken(&self) -> bool {
        false
    }

    /// Tells that metadata is broken, and marks the image, durably. Nothing is written to it from then on.
    async fn mark_broken(&self, _io: &Io) -> Result<()> {
        Ok(())
    }

    /// For jobs that work on one format.
    fn as_any(&self) -> &dyn std::any::Any;
}

/// What [`Driver::place`] says where there is no shorter way: what a lookup does.
pub(crate) fn looked_up<D: Driver + ?Sized>(
    driver: &D,
    offset: u64,
    len: u64,
    access: Access,
) -> Option<(Role, u64)> {
    if let Length::Bytes(end) | Length::Growing(end) = driver.guest_length()
        && offset.checked_add(len).is_none_or(|past| past > end)
    {
        return None;
    }
    match driver.lookup(offset, len, access) {
        Ok(Extent { len: found, mapping: Mapping::Data { child, offset } }) if found >= len => {
            Some((child, offset))
        }
        Ok(Extent { len: found, mapping: Mapping::Backing { .. } })
            if found >= len && access == Access::Read =>
        {
            Some((Role::Backing, offset))
        }
        _ => None,
    }
}
