//! raw: a window on a file, and the driver of files that are no image.
//!
//! Owns no metadata: every lookup is an addition. Its options are QEMU's `offset` and `size`.

use std::any::Any;

use async_trait::async_trait;

use crate::engine::{Io, LocalFuture};
use crate::error::Result;
use crate::filter::DebugEvent;
use crate::graph::driver::{Access, Driver, Extent, Length, Mapping, Miss, Role};

/// A window of the `file` child.
#[derive(Debug)]
pub struct Raw {
    offset: u64,
    size: Option<u64>,
}

impl Raw {
    /// Shows `size` bytes (all that there are, without one) of the child from `offset` on.
    pub fn new(offset: u64, size: Option<u64>) -> Self {
        Self { offset, size }
    }
}

#[async_trait(?Send)]
impl Driver for Raw {
    fn name(&self) -> &'static str {
        "raw"
    }

    fn is_filter(&self) -> bool {
        true
    }

    fn length(&self) -> Length {
        match self.size {
            Some(size) => Length::Bytes(size),
            None => Length::OfFileFrom(self.offset),
        }
    }

    fn lookup(&self, offset: u64, len: u64, _: Access) -> Result<Extent> {
        Ok(Extent { len, mapping: Mapping::Data { child: Role::File, offset: self.offset + offset } })
    }

    fn load<'a>(&'a self, _: &'a Io, miss: Miss) -> LocalFuture<'a, Result<()>> {
        unreachable!("raw misses nothing, not even {miss:?}")
    }

    fn flush<'a>(&'a self, io: &'a Io) -> LocalFuture<'a, Result<()>> {
        Box::pin(async {
            io.event(DebugEvent::FlushToDisk).await;
            io.flush("raw.flush", io.child(Role::File)).await
        })
    }

    async fn close(&self, _: &Io) -> Result<()> {
        Ok(())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
