//! raw: a window on a file, and the driver of files that are no image.
//!
//! Owns no metadata: every lookup is an addition. Its options are QEMU's `offset` and `size`.
//!
//! Where the format was not said but guessed, a guest could write the header of another format, whose names the next guess
//! would follow. So its first sector never becomes one (`guard`).

mod guard;

use std::any::Any;

use async_trait::async_trait;

use crate::engine::{Io, LocalFuture, Request};
use crate::error::Result;
use crate::filter::DebugEvent;
use crate::graph::driver::{Access, Driver, Extent, Length, Mapping, Role};
use crate::intent::Permissions;

/// A window of the `file` child.
#[derive(Debug)]
pub struct Raw {
    offset: u64,
    size: Option<u64>,
    /// Whether the format was guessed.
    guessed: bool,
}

impl Raw {
    /// Shows `size` bytes (all that there are, without one) of the child from `offset` on.
    pub fn new(offset: u64, size: Option<u64>) -> Self {
        Self { offset, size, guessed: false }
    }

    /// The same, of a file that was guessed to be no image.
    #[must_use]
    pub fn guessed(self) -> Self {
        Self { guessed: true, ..self }
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

    /// A window must stay within its file.
    fn child_permissions(&self) -> (Permissions, Permissions) {
        match self {
            Self { offset: 0, size: None, .. } => (Permissions::NONE, Permissions::NONE),
            _ => (Permissions::NONE, Permissions::RESIZE),
        }
    }

    fn length(&self) -> Length {
        match self.size {
            Some(size) => Length::Bytes(size),
            None => Length::OfFileFrom(self.offset),
        }
    }

    fn lookup(&self, offset: u64, len: u64, access: Access) -> Result<Extent> {
        if self.guessed && guard::concerns(offset, len, access) {
            let mapping = Mapping::Own { child: Role::File, offset };
            return Ok(Extent { len: len.min(guard::LEN - offset), mapping });
        }
        Ok(Extent { len, mapping: Mapping::Data { child: Role::File, offset: self.offset + offset } })
    }

    fn serve<'a>(&'a self, io: &'a Io, request: &'a mut Request) -> LocalFuture<'a, Result<()>> {
        Box::pin(guard::write(io, request, self.offset))
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
