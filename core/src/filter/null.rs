//! null: a leaf without storage that takes its time (`latency-ns`), and `null-aio`, which is the same under another name.

use std::any::Any;
use std::time::Duration;

use async_trait::async_trait;

use crate::engine::{Io, LocalFuture, Request};
use crate::error::Result;
use crate::graph::driver::{Access, Driver, Extent, Length, Mapping, Role};

/// A node that answers late.
#[derive(Debug)]
pub struct Null {
    name: &'static str,
    latency: Duration,
}

/// Which of the two names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NullName {
    /// `null-co`.
    Co,
    /// `null-aio`.
    Aio,
}

impl NullName {
    /// The driver of that name.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Co, Self::Aio].into_iter().find(|known| known.text() == name)
    }

    pub(crate) const fn text(self) -> &'static str {
        match self {
            Self::Co => "null-co",
            Self::Aio => "null-aio",
        }
    }
}

impl Null {
    pub(super) fn new(name: NullName, latency: Duration) -> Self {
        Self { name: name.text(), latency }
    }

    async fn wait(&self, io: &Io) {
        if !self.latency.is_zero() {
            io.sleep(self.latency).await;
        }
    }
}

#[async_trait(?Send)]
impl Driver for Null {
    fn name(&self) -> &'static str {
        self.name
    }

    fn is_filter(&self) -> bool {
        true
    }

    fn length(&self) -> Length {
        Length::OfFileFrom(0)
    }

    fn lookup(&self, offset: u64, len: u64, _: Access) -> Result<Extent> {
        let child = Role::File;
        let mapping = match self.latency.is_zero() {
            true => Mapping::Data { child, offset },
            false => Mapping::Own { child, offset },
        };
        Ok(Extent { len, mapping })
    }

    fn serve<'a>(&'a self, io: &'a Io, request: &'a mut Request) -> LocalFuture<'a, Result<()>> {
        Box::pin(async move {
            self.wait(io).await;
            super::pass_on(io, request).await
        })
    }

    fn flush<'a>(&'a self, io: &'a Io) -> LocalFuture<'a, Result<()>> {
        Box::pin(async {
            self.wait(io).await;
            io.flush("null.flush", io.child(Role::File)).await
        })
    }

    async fn close(&self, _: &Io) -> Result<()> {
        Ok(())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
