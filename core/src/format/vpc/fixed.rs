//! A fixed disk: the file, without its footer.

use std::any::Any;

use async_trait::async_trait;

use super::layout::Footer;
use crate::engine::{Io, LocalFuture};
use crate::error::Result;
use crate::format::ImageFacts;
use crate::graph::driver::{Access, Driver, Extent, Length, Mapping, Role};

/// An open image of a fixed disk.
pub struct Fixed {
    pub(super) footer: Footer,
    /// Bytes of the disk.
    pub(super) size: u64,
}

#[async_trait(?Send)]
impl Driver for Fixed {
    fn name(&self) -> &'static str {
        "vpc"
    }

    fn length(&self) -> Length {
        Length::Bytes(self.size)
    }

    fn lookup(&self, offset: u64, len: u64, _: Access) -> Result<Extent> {
        Ok(Extent { len, mapping: Mapping::Data { child: Role::File, offset } })
    }

    fn facts(&self) -> ImageFacts {
        ImageFacts { preallocated: true, ..ImageFacts::default() }
    }

    fn flush<'a>(&'a self, io: &'a Io) -> LocalFuture<'a, Result<()>> {
        Box::pin(async { io.flush("vpc.flush", io.child(Role::File)).await })
    }

    async fn close(&self, io: &Io) -> Result<()> {
        // A closed image is durable.
        self.flush(io).await
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
