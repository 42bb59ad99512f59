//! compress: has the format below store every write compressed.

use std::any::Any;

use async_trait::async_trait;

use crate::buf::BufList;
use crate::engine::{Io, LocalFuture, Op, Request};
use crate::error::Result;
use crate::graph::driver::{Access, Driver, Extent, Length, Mapping, Role};
use crate::intent::Fua;

/// A node whose writes are stored compressed.
#[derive(Debug)]
pub struct Compress {
    /// Bytes that the format compresses at once.
    unit: u64,
}

impl Compress {
    pub(super) fn new(unit: u64) -> Self {
        Self { unit }
    }

    /// Writes whole units. What a unit holds beside the request is read and written with it, while nobody else writes to
    /// it through this node.
    async fn write(&self, io: &Io, offset: u64, data: &mut BufList) -> Result<()> {
        let (file, len) = (io.child(Role::File), data.len_bytes() as u64);
        let (start, end) = super::blocks(offset, len, self.unit);
        let here = io.shared().graph.node(io.node());
        let _claim = here.claims.take(&io.shared().tasks, start, end).await;
        let end = end.min(io.len(file).max(offset + len));
        let mut whole = super::read_around(io, start, offset).await?;
        let tail = super::read_around(io, offset + len, end).await?;
        whole.append(std::mem::take(data));
        whole.append(tail);
        let (mut whole, result) = io.write_compressed("compress.write", file, start, whole).await;
        drop(whole.split_to((offset - start) as usize));
        *data = whole.split_to(len as usize);
        result
    }
}

impl Compress {
    /// Passes zeros and discards on, while nobody writes to their units.
    async fn clear(&self, io: &Io, request: &mut Request) -> Result<()> {
        let (start, end) = super::blocks(request.offset, request.len, self.unit);
        let here = io.shared().graph.node(io.node());
        let _claim = here.claims.take(&io.shared().tasks, start, end).await;
        super::pass_on(io, request).await
    }
}

#[async_trait(?Send)]
impl Driver for Compress {
    fn name(&self) -> &'static str {
        "compress"
    }

    fn is_filter(&self) -> bool {
        true
    }

    fn length(&self) -> Length {
        Length::OfFileFrom(0)
    }

    fn granularity(&self) -> u64 {
        self.unit
    }

    fn compresses(&self) -> bool {
        true
    }

    fn lookup(&self, offset: u64, len: u64, access: Access) -> Result<Extent> {
        let child = Role::File;
        let mapping = match access {
            // Zeros too: a write must not bring back what it read around itself before they came.
            Access::Write | Access::Zero => Mapping::Own { child, offset },
            Access::Read => Mapping::Data { child, offset },
        };
        Ok(Extent { len, mapping })
    }

    fn serve<'a>(&'a self, io: &'a Io, request: &'a mut Request) -> LocalFuture<'a, Result<()>> {
        Box::pin(async move {
            match request.op {
                Op::Write(fua) => {
                    self.write(io, request.offset, &mut request.data).await?;
                    if fua == Fua::Yes { self.flush(io).await } else { Ok(()) }
                }
                Op::WriteCompressed => self.write(io, request.offset, &mut request.data).await,
                Op::WriteZeroes(..) | Op::Discard => self.clear(io, request).await,
                Op::Read | Op::Flush => unreachable!("both pass by"),
            }
        })
    }

    fn flush<'a>(&'a self, io: &'a Io) -> LocalFuture<'a, Result<()>> {
        Box::pin(async { io.flush("compress.flush", io.child(Role::File)).await })
    }

    async fn close(&self, _: &Io) -> Result<()> {
        Ok(())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
