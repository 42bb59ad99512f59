//! copy-on-read: keeps what was read from a backing file in the image above it.
//!
//! A copy must not replace what a guest writes meanwhile. So everything that changes the image takes a claim on its range
//! here, whole units of the image, and a read that copies holds one from before it reads until the copy is written.

use std::any::Any;

use async_trait::async_trait;

use crate::buf::{Buf, BufList};
use crate::engine::{Io, LocalFuture, Op, Request};
use crate::error::Result;
use crate::filter::DebugEvent;
use crate::graph::NodeId;
use crate::graph::driver::{Access, Driver, Extent, Length, Mapping, Role};
use crate::intent::{Fua, Permissions, ZeroFlags};

/// Bytes copied at once.
const COPY_MAX: u64 = 1 << 20;

/// A node that fills the image below it from that image's backing files.
#[derive(Debug)]
pub struct CopyOnRead {
    /// What is below this image stays there: the backing file of `bottom`.
    below_bottom: Option<NodeId>,
    has_bottom: bool,
    /// Bytes of the image's unit of allocation.
    unit: u64,
    /// Whether the image can store writes compressed.
    compresses: bool,
}

impl CopyOnRead {
    pub(super) fn new(io: &Io, file: NodeId, bottom: Option<NodeId>) -> Self {
        Self {
            below_bottom: bottom.and_then(|bottom| io.edge(bottom, Role::Backing)),
            has_bottom: bottom.is_some(),
            unit: io.granularity(file).max(1),
            compresses: io.driver(file).is_some_and(|driver| driver.compresses()),
        }
    }

    /// Bytes from `offset` on that are alike, and whether they are to be copied: they are not in the image itself, and,
    /// where there is a bottom, down to it something says what they are.
    async fn misses(&self, io: &Io, offset: u64, len: u64) -> Result<(u64, bool)> {
        let file = io.child(Role::File);
        let status = io.status(file, offset, len, self.below_bottom).await?;
        let elsewhere = status.depth > 0 || !status.allocated;
        Ok((status.len, elsewhere && (status.allocated || !self.has_bottom)))
    }

    /// Whether any of a range is to be copied.
    async fn is_missing(&self, io: &Io, start: u64, end: u64) -> Result<bool> {
        let mut at = start;
        while at < end {
            let (len, copies) = self.misses(io, at, end - at).await?;
            if copies {
                return Ok(true);
            }
            at += len;
        }
        Ok(false)
    }

    async fn read(&self, io: &Io, request: &mut Request) -> Result<()> {
        let end = (request.offset + request.len).min(io.len(io.child(Role::File)));
        let mut at = request.offset;
        while at < end {
            let (len, copies) = self.misses(io, at, end - at).await?;
            if copies {
                self.copy(io, at, at + len).await?;
            }
            at += len;
        }
        super::pass_on(io, request).await
    }

    /// Copies the units around a range into the image.
    ///
    /// Copies are not flushed: one that a crash undoes is read from the backing file again.
    async fn copy(&self, io: &Io, from: u64, to: u64) -> Result<()> {
        let file = io.child(Role::File);
        let (mut at, end) = super::blocks(from, to - from, self.unit);
        let end = end.min(io.len(file));
        let here = io.shared().graph.node(io.node());
        while at < end {
            let next = (at + COPY_MAX.max(self.unit)).min(end);
            let _claim = here.claims.take(&io.shared().tasks, at, next.next_multiple_of(self.unit)).await;
            // Whoever held the claim before may have written or copied.
            if self.is_missing(io, at, next).await? {
                let data = Buf::zeroed((next - at) as usize);
                let (data, read) = io.read("copy_on_read.copy/read", file, at, data).await;
                read?;
                io.event_at(file, DebugEvent::CorWrite).await;
                self.keep(io, at, data).await?;
            }
            at = next;
        }
        Ok(())
    }

    /// Writes what was read, zeros as such.
    async fn keep(&self, io: &Io, at: u64, data: BufList) -> Result<()> {
        let file = io.child(Role::File);
        if data.is_zero() {
            let len = data.len_bytes() as u64;
            return io.write_zeroes("copy_on_read.copy/zero", file, at, len, ZeroFlags::default()).await;
        }
        io.write("copy_on_read.copy/write", file, at, data, Fua::No).await.1
    }

    /// Passes a change on, while nothing is copied to its range.
    async fn change(&self, io: &Io, request: &mut Request) -> Result<()> {
        let (start, end) = super::blocks(request.offset, request.len, self.unit);
        let here = io.shared().graph.node(io.node());
        let _claim = here.claims.take(&io.shared().tasks, start, end).await;
        super::pass_on(io, request).await
    }
}

#[async_trait(?Send)]
impl Driver for CopyOnRead {
    fn name(&self) -> &'static str {
        "copy-on-read"
    }

    fn is_filter(&self) -> bool {
        true
    }

    /// What it stores reads as before.
    fn child_permissions(&self) -> (Permissions, Permissions) {
        (Permissions::WRITE_UNCHANGED, Permissions::NONE)
    }

    fn length(&self) -> Length {
        Length::OfFileFrom(0)
    }

    fn granularity(&self) -> u64 {
        self.unit
    }

    fn compresses(&self) -> bool {
        self.compresses
    }

    fn lookup(&self, offset: u64, len: u64, _: Access) -> Result<Extent> {
        Ok(Extent { len, mapping: Mapping::Own { child: Role::File, offset } })
    }

    fn serve<'a>(&'a self, io: &'a Io, request: &'a mut Request) -> LocalFuture<'a, Result<()>> {
        Box::pin(async move {
            match request.op {
                Op::Read => self.read(io, request).await,
                _ => self.change(io, request).await,
            }
        })
    }

    fn flush<'a>(&'a self, io: &'a Io) -> LocalFuture<'a, Result<()>> {
        Box::pin(async { io.flush("copy_on_read.flush", io.child(Role::File)).await })
    }

    async fn close(&self, _: &Io) -> Result<()> {
        Ok(())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
