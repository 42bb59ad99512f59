//! qcow, the format before qcow2: a header, an L1 table, L2 tables and clusters in the order in which they were first
//! written, some of them compressed.
//!
//! ```text
//!   ┌────────┬──────────────┬──────────┬──────────┬─────────┬──
//!   │ header │ backing name │ L1 table │ L2 table │ cluster │ …
//!   └────────┴──────────────┴──────────┴──────────┴─────────┴──
//! ```
//!
//! The tables, their cache and the order on disk are `two_level`'s. `layout` has the header
//! and the entries, `pack` is for compressed clusters. Encrypted images are refused.

mod create;
mod error;
pub mod layout;
mod open;
mod pack;

use std::any::Any;

use async_trait::async_trait;

pub use create::CreateOptions;
pub(crate) use create::create;
pub use error::QcowError;
pub(crate) use open::open;
pub use open::probe;

use super::two_level::{Entry, Missing, TwoLevel};
use super::{Backing, ImageFacts};
use crate::buf::BufList;
use crate::engine::{Io, LocalFuture};
use crate::error::{Error, Result};
use crate::graph::driver::{Access, Driver, Extent, Length, Miss, Ready, Reservation, Role};
use crate::intent::ZeroFlags;
use layout::{Header, RawEntry};

/// An open image.
pub struct Qcow {
    name: String,
    header: Header,
    backing: Option<String>,
    tables: TwoLevel,
}

impl Qcow {
    fn fail(&self, fault: QcowError) -> Box<Error> {
        Error::format(&*self.name, fault)
    }

    /// What an entry says.
    fn decode(&self) -> impl Fn(u64, u64) -> Result<Entry, QcowError> {
        move |raw, cluster| {
            let end = self.tables.end();
            match self.header.entry(raw) {
                RawEntry::Unallocated => Ok(Entry::Unallocated),
                RawEntry::Data(at) if self.tables.is_cluster(at) => Ok(Entry::Data(at)),
                RawEntry::Packed { at, .. } if at < end => Ok(Entry::Packed),
                RawEntry::Data(at) | RawEntry::Packed { at, .. } => {
                    Err(QcowError::Cluster { cluster, at, end })
                }
            }
        }
    }

    /// Whether a range that holds nothing reads as zeros. There is no way to say that it does.
    async fn reads_zero(&self, io: &Io, offset: u64, len: u64) -> Result<bool> {
        if io.try_child(Role::Backing).is_some() {
            return Ok(false);
        }
        let (mut cluster, end) =
            (offset / self.header.cluster_len(), (offset + len).div_ceil(self.header.cluster_len()));
        while cluster < end {
            let found = self.tables.empty_run(cluster, end - cluster, &self.decode());
            match found.map_err(|fault| self.fail(fault))? {
                Ok(0) => return Ok(false),
                Ok(run) => cluster += run,
                Err(missing) => self.tables.load(io, missing).await?,
            }
        }
        Ok(true)
    }
}

#[async_trait(?Send)]
impl Driver for Qcow {
    fn name(&self) -> &'static str {
        "qcow"
    }

    /// The reference leaves out the rest of a size that is no whole sectors.
    fn length(&self) -> Length {
        Length::Bytes(self.header.size - self.header.size % 512)
    }

    fn lookup(&self, offset: u64, len: u64, access: Access) -> Result<Extent> {
        self.tables.extent((offset, len), access, &self.decode()).map_err(|fault| self.fail(fault))
    }

    fn load<'a>(&'a self, io: &'a Io, miss: Miss) -> LocalFuture<'a, Result<()>> {
        Box::pin(self.tables.load(io, Missing::of(miss)))
    }

    fn facts(&self) -> ImageFacts {
        ImageFacts {
            cluster_size: Some(self.header.cluster_len()),
            encrypted: self.header.encrypted,
            backing: self.backing.clone().map(|name| Backing { name, format: None }),
            ..ImageFacts::default()
        }
    }

    fn granularity(&self) -> u64 {
        self.header.cluster_len()
    }

    fn reserve(&self, offset: u64, len: u64) -> Result<Ready<Reservation>> {
        self.tables.reserve((offset, len), &self.decode()).map_err(|fault| self.fail(fault))
    }

    fn publish(&self, reservation: &Reservation) -> Result<Ready<()>> {
        self.tables.publish(reservation).map_err(|fault| self.fail(fault.into()))
    }

    fn give_back(&self, reservation: &Reservation) {
        self.tables.give_back(reservation);
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
        true
    }

    fn write_compressed<'a>(
        &'a self,
        io: &'a Io,
        offset: u64,
        data: &'a mut BufList,
    ) -> LocalFuture<'a, Result<bool>> {
        Box::pin(self.write_packed(io, offset, data))
    }

    fn write_zeroes<'a>(
        &'a self,
        io: &'a Io,
        offset: u64,
        len: u64,
        _: ZeroFlags,
    ) -> LocalFuture<'a, Result<bool>> {
        Box::pin(self.reads_zero(io, offset, len))
    }

    fn discard<'a>(&'a self, _: &'a Io, _: u64, _: u64) -> LocalFuture<'a, Result<()>> {
        Box::pin(async { Ok(()) })
    }

    async fn make_empty(&self, io: &Io) -> Result<()> {
        self.tables.empty(io, "qcow.flush").await
    }

    fn is_clean(&self) -> bool {
        self.tables.is_clean()
    }

    fn flush<'a>(&'a self, io: &'a Io) -> LocalFuture<'a, Result<()>> {
        Box::pin(self.tables.flush(io, "qcow.flush"))
    }

    async fn close(&self, io: &Io) -> Result<()> {
        // Data too, of clusters that were there before: a closed image is durable.
        self.tables.flush(io, "qcow.flush").await
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
