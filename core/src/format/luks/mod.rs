//! LUKS, the encrypted volume of Linux: a header with keyslots, each of which gives the volume's key for a passphrase,
//! and a payload whose sectors that key encrypts.
//!
//! ```text
//!   ┌────────┬────────┬────────┬ ─ ┬──────────────────────────┐
//!   │ header │ slot 0 │ slot 1 │ … │ payload, encrypted       │
//!   └────────┴────────┴────────┴ ─ ┴──────────────────────────┘
//!   0        4096                  payload offset
//! ```
//!
//! `layout` has the header of version 1, `layout2` and `metadata` that of version 2, of which there are two `copies`. `volume`
//! reads a header and unlocks it, for a node of its own as well as for the volume that a qcow2 image holds; `keyslot` is the way
//! from a passphrase to the key, and `costs` says how long that is. `sectors` is the way of data.
//! The header may be kept in another file, the `header` child.
//!
//! Nothing here prints or keeps a passphrase; keys leave memory when they are done with.

mod amend;
mod copies;
mod costs;
mod create;
mod create2;
mod error;
pub mod keyslot;
pub mod layout;
pub mod layout2;
pub mod metadata;
mod sectors;
mod volume;

use std::any::Any;
use std::cell::{Cell, RefCell};

use async_trait::async_trait;
use serde_json::{Map, Value, json};

pub use amend::AmendKeyslots;
pub use copies::Header2Copies;
pub use costs::{KdfChoice, MEMORY_KIB};
pub(in crate::format) use create::write_volume;
pub use create::{CreateOptions, NewVersion, create};
pub use create2::Options2;
pub use error::LuksError;
pub(in crate::format) use keyslot::Place;
pub(crate) use sectors::Sectors;
pub use volume::Volume;
pub(in crate::format) use volume::key_of;

use super::ImageFacts;
use crate::buf::BufList;
use crate::engine::{Io, LocalFuture, Op, Request};
use crate::error::{Error, Result};
use crate::graph::driver::{Access, Driver, Extent, Length, Mapping, Preallocate, Role};
use crate::graph::open::NodeSpec;
use crate::graph::opening::Opening;
use crate::intent::ZeroFlags;

/// How a volume is opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LuksOptions {
    /// The id of the secret that holds the passphrase (`key-secret`).
    pub key_secret: Option<String>,
    /// What holds the header, where that is another file.
    pub header: Option<Box<NodeSpec>>,
}

/// Tells whether the first bytes of a file are those of a volume.
pub fn probe(head: &[u8]) -> bool {
    matches!(layout::version(head), Ok(1 | 2))
}

/// An open volume.
pub struct Luks {
    name: String,
    volume: RefCell<Volume>,
    /// The id of the secret that opened it.
    key_secret: Option<String>,
    /// Whether the header is in a file of its own.
    detached: bool,
    /// Nothing, where only the metadata is looked at.
    sectors: Option<Sectors>,
    /// First byte of the payload.
    offset: u64,
    /// Bytes of the payload that can be used.
    len: Cell<u64>,
    /// Whether the payload ends where its file does.
    dynamic: bool,
}

/// Opens the volume in the file of a node to be.
///
/// # Errors
/// When the header is damaged or asks for what there is not, and when the passphrase opens no keyslot.
pub(crate) async fn open(opening: &Opening<'_>, options: &LuksOptions) -> Result<Luks> {
    let io = opening.io;
    let key_secret = options.key_secret.as_deref();
    if !opening.metadata_only {
        // What is missing is told before anything is read, as in the reference.
        match key_secret {
            Some(id) => drop(io.secret(id)?),
            None => return Err(Place { node: opening.file, base: 0 }.fail(io, LuksError::NoSecret(""))),
        }
    }
    let header = match &options.header {
        None => opening.file,
        Some(spec) => opening.open_child(Role::Header, spec).await?,
    };
    let place = Place { node: header, base: 0 };
    let volume = Volume::load(io, place).await?;
    let sectors = match opening.metadata_only {
        true => None,
        false => {
            // Before any key is tried: what cannot be used costs nothing.
            volume.admit().map_err(|fault| place.fail(io, fault))?;
            let key = key_of(io, place, &volume, (key_secret, "")).await?;
            let sectors = volume.sectors(&key).map_err(|fault| place.fail(io, fault))?;
            if opening.writable() {
                volume.recover(io, place).await?;
            }
            Some(sectors)
        }
    };
    let (offset, size) = volume.payload();
    let there = io.len(opening.file);
    let unit = volume.sector_len();
    if offset == 0 && options.header.is_none() {
        return Err(place.fail(io, LuksError::PayloadInHeader));
    }
    if offset > there {
        return Err(place.fail(io, LuksError::Payload { offset, len: there }));
    }
    let rest = there - offset;
    let len = size.map_or(rest, |size| size.min(rest));
    Ok(Luks {
        name: io.title(opening.file),
        detached: options.header.is_some(),
        key_secret: options.key_secret.clone(),
        sectors,
        offset,
        len: (len - len % unit).into(),
        dynamic: size.is_none(),
        volume: volume.into(),
    })
}

impl Luks {
    /// The header, as it is on the disk.
    pub fn volume(&self) -> Volume {
        self.volume.borrow().clone()
    }

    /// Adds or erases keyslots. Durable on return.
    ///
    /// # Errors
    /// What does not go together, and what would lose a key.
    pub(crate) async fn amend(&self, io: &Io, change: &AmendKeyslots) -> Result<()> {
        if io.flags(io.node()).read_only {
            return Err(Box::new(Error::ReadOnly { node: self.name.clone() }));
        }
        let header = io.try_child(Role::Header).unwrap_or_else(|| io.child(Role::File));
        let place = Place { node: header, base: 0 };
        // A change that failed may have reached the disk in part: what counts is there.
        let volume = Volume::load(io, place).await?;
        let changed = change.apply(io, place, &volume, self.key_secret.as_deref()).await?;
        *self.volume.borrow_mut() = changed;
        Ok(())
    }

    fn sectors(&self) -> Result<&Sectors> {
        self.sectors.as_ref().ok_or_else(|| self.fail(LuksError::NoSecret("")))
    }

    fn fail(&self, fault: LuksError) -> Box<Error> {
        Error::format(&*self.name, fault)
    }

    /// What only this format has, under the reference's names and in its order.
    fn specific(&self) -> Map<String, Value> {
        let mut data = self.volume.borrow().facts();
        if let Some(detached) = data.get_mut("detached-header") {
            *detached = json!(self.detached);
        }
        data
    }
}

#[async_trait(?Send)]
impl Driver for Luks {
    fn name(&self) -> &'static str {
        "luks"
    }

    fn length(&self) -> Length {
        Length::Bytes(self.len.get())
    }

    fn lookup(&self, offset: u64, len: u64, access: Access) -> Result<Extent> {
        Ok(Extent { len, mapping: encrypted(self.offset, offset, access) })
    }

    /// A new volume holds whatever its file's zeros decrypt to.
    fn starts_as_zeroes(&self) -> bool {
        false
    }

    fn facts(&self) -> ImageFacts {
        ImageFacts { encrypted: true, specific: Some(self.specific()), ..ImageFacts::default() }
    }

    fn read_special<'a>(
        &'a self,
        io: &'a Io,
        offset: u64,
        data: &'a mut BufList,
    ) -> LocalFuture<'a, Result<()>> {
        Box::pin(async move { self.sectors()?.read(io, io.child(Role::File), offset, data).await })
    }

    fn serve<'a>(&'a self, io: &'a Io, request: &'a mut Request) -> LocalFuture<'a, Result<()>> {
        Box::pin(async move { serve(self.sectors()?, io, request).await })
    }

    /// Zeros look like any other data once they are encrypted.
    fn write_zeroes<'a>(&'a self, _: &'a Io, _: u64, _: u64, _: ZeroFlags) -> LocalFuture<'a, Result<bool>> {
        Box::pin(async { Ok(false) })
    }

    /// A hole would tell what is in use.
    fn discard<'a>(&'a self, _: &'a Io, _: u64, _: u64) -> LocalFuture<'a, Result<()>> {
        Box::pin(async { Ok(()) })
    }

    async fn resize(&self, io: &Io, len: u64, how: Preallocate) -> Result<()> {
        if !self.dynamic {
            let what = "a change of a fixed length";
            return Err(Box::new(Error::Unsupported { node: self.name.clone(), driver: "luks", what }));
        }
        let end = self.offset.checked_add(len).filter(|end| *end <= i64::MAX as u64);
        let end =
            end.ok_or_else(|| self.fail(LuksError::Option("The requested file size is too large".into())))?;
        let file = io.child(Role::File);
        io.resize(file, end, how).await?;
        self.len.set(len);
        io.flush("luks.resize", file).await
    }

    fn flush<'a>(&'a self, io: &'a Io) -> LocalFuture<'a, Result<()>> {
        Box::pin(async { io.flush("luks.flush", io.child(Role::File)).await })
    }

    async fn close(&self, _: &Io) -> Result<()> {
        Ok(())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Where a range is whose bytes are encrypted in the child from `base` on.
pub(in crate::format) fn encrypted(base: u64, offset: u64, access: Access) -> Mapping {
    match access {
        Access::Read => Mapping::Special { compressed: false },
        Access::Write => Mapping::Own { child: Role::File, offset: base + offset },
        Access::Zero => Mapping::Allocate,
    }
}

/// Carries out what a node above `sectors` is asked to write.
pub(in crate::format) async fn serve(sectors: &Sectors, io: &Io, request: &mut Request) -> Result<()> {
    let fua = match request.op {
        Op::Write(fua) => fua,
        Op::WriteCompressed => crate::intent::Fua::No,
        Op::Read | Op::WriteZeroes(..) | Op::Discard | Op::Flush => {
            unreachable!("only writes are the node's own")
        }
    };
    sectors.write(io, io.child(Role::File), request.offset, &mut request.data, fua).await
}
