//! QED, QEMU's enhanced disk format: a header, an L1 table, L2 tables and clusters in the order in which they were first
//! written. Source: \[qed\], QEMU's `docs/interop/qed_spec.rst`.
//!
//! ```text
//!   ┌────────┬──────────┬──────────┬─────────┬──
//!   │ header │ L1 table │ L2 table │ cluster │ …
//!   └────────┴──────────┴──────────┴─────────┴──
//! ```
//!
//! The tables, their cache and the order on disk are `two_level`'s. `begin` marks an image
//! that is written to, `check` finds what a crash left, `change` is for its length and its backing file.

mod begin;
mod change;
mod check;
mod create;
mod error;
pub mod layout;
mod open;

use std::any::Any;
use std::cell::{Cell, RefCell};

use async_trait::async_trait;

pub use check::{check, repair};
pub use create::CreateOptions;
pub(crate) use create::create;
pub use error::QedError;
pub(crate) use open::open;
pub use open::probe;

use super::two_level::{Entry, Missing, TwoLevel};
use super::{Backing, CheckReport, ImageFacts};
use crate::engine::task::Gate;
use crate::engine::{Io, LocalFuture};
use crate::error::{Error, Result};
use crate::graph::driver::{Access, Driver, Extent, Length, Miss, Preallocate, Ready, Reservation};
use crate::intent::ZeroFlags;
use layout::{Features, Header};

/// The entry of a cluster of zeros.
const ZERO: u64 = 1;

/// An open image.
pub struct Qed {
    name: String,
    /// As it is in the file.
    header: Cell<Header>,
    backing: RefCell<Option<String>>,
    /// What the node shows while it becomes longer than the header says.
    shown_len: Cell<Option<u64>>,
    tables: TwoLevel,
    /// Whether tables may be changed: the header says that somebody does.
    begun: Cell<bool>,
    begins: Gate,
    headers: Gate,
}

impl Qed {
    /// The header as it is in the file.
    pub fn header(&self) -> Header {
        self.header.get()
    }

    fn fail(&self, fault: QedError) -> Box<Error> {
        Error::format(&*self.name, fault)
    }

    /// Whether a cluster of the disk can be at a place.
    fn is_cluster(&self, at: u64) -> bool {
        self.tables.is_cluster(at)
    }

    /// What an entry says.
    fn decode(&self) -> impl Fn(u64, u64) -> Result<Entry, QedError> {
        move |raw, cluster| match raw {
            0 => Ok(Entry::Unallocated),
            ZERO => Ok(Entry::Zero),
            at if self.is_cluster(at) => Ok(Entry::Data(at)),
            found => Err(QedError::Cluster { cluster, found, end: self.tables.end() }),
        }
    }

    /// Makes clusters that hold nothing read as zeros; `false` where somebody took one.
    async fn zero_clusters(&self, io: &Io, offset: u64, len: u64) -> Result<bool> {
        self.begin(io).await?;
        let cluster_len = self.header.get().cluster_len();
        let (mut cluster, end) = (offset / cluster_len, (offset + len).div_ceil(cluster_len));
        while cluster < end {
            let found = self.tables.empty_run(cluster, end - cluster, &self.decode());
            let missing = match found.map_err(|fault| self.fail(fault))? {
                Ok(0) => return Ok(false),
                // Nothing was awaited since they were seen to be empty.
                Ok(run) => match self.tables.set(cluster, run, |_| ZERO) {
                    Ok(Ok(())) => {
                        cluster += run;
                        continue;
                    }
                    Ok(Err(missing)) => missing,
                    Err(fault) => return Err(self.fail(fault.into())),
                },
                Err(missing) => missing,
            };
            self.tables.load(io, missing).await?;
        }
        Ok(true)
    }
}

#[async_trait(?Send)]
impl Driver for Qed {
    fn name(&self) -> &'static str {
        "qed"
    }

    fn length(&self) -> Length {
        Length::Bytes(self.shown_len.get().unwrap_or(self.header.get().size))
    }

    fn lookup(&self, offset: u64, len: u64, access: Access) -> Result<Extent> {
        self.tables.extent((offset, len), access, &self.decode()).map_err(|fault| self.fail(fault))
    }

    fn load<'a>(&'a self, io: &'a Io, miss: Miss) -> LocalFuture<'a, Result<()>> {
        Box::pin(async move {
            match Missing::of(miss) {
                Missing::Begin => self.begin(io).await,
                missing => self.tables.load(io, missing).await,
            }
        })
    }

    fn facts(&self) -> ImageFacts {
        let header = self.header.get();
        let format = header.features.has(Features::BACKING_RAW).then(|| "raw".to_owned());
        ImageFacts {
            cluster_size: Some(header.cluster_len()),
            backing: self.backing.borrow().clone().map(|name| Backing { name, format }),
            ..ImageFacts::default()
        }
    }

    fn granularity(&self) -> u64 {
        self.header.get().cluster_len()
    }

    fn reserve(&self, offset: u64, len: u64) -> Result<Ready<Reservation>> {
        if !self.begun.get() {
            return Ok(Ready::Miss(Missing::Begin.miss()));
        }
        self.tables.reserve((offset, len), &self.decode()).map_err(|fault| self.fail(fault))
    }

    fn publish(&self, reservation: &Reservation) -> Result<Ready<()>> {
        self.tables.publish(reservation).map_err(|fault| self.fail(fault.into()))
    }

    fn give_back(&self, reservation: &Reservation) {
        self.tables.give_back(reservation);
    }

    fn write_zeroes<'a>(
        &'a self,
        io: &'a Io,
        offset: u64,
        len: u64,
        _: ZeroFlags,
    ) -> LocalFuture<'a, Result<bool>> {
        Box::pin(self.zero_clusters(io, offset, len))
    }

    /// There is no way to say that a cluster is given up.
    fn discard<'a>(&'a self, _: &'a Io, _: u64, _: u64) -> LocalFuture<'a, Result<()>> {
        Box::pin(async { Ok(()) })
    }

    async fn resize(&self, io: &Io, len: u64, how: Preallocate) -> Result<()> {
        self.change_len(io, len, how).await
    }

    fn is_clean(&self) -> bool {
        self.tables.is_clean()
    }

    fn flush<'a>(&'a self, io: &'a Io) -> LocalFuture<'a, Result<()>> {
        Box::pin(self.tables.flush(io, "qed.flush"))
    }

    async fn close(&self, io: &Io) -> Result<()> {
        self.end(io).await
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
