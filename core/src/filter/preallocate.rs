//! preallocate: makes a growing file longer than it needs to be, so that the host finds space for it a few times only.
//!
//! ```text
//!   file  [ data ..................... data_end | zeros, ready for writes .......... file_end ]
//!   node  [ data ..................... data_end ]
//! ```
//!
//! The node is as long as its data. The file is cut back to that when the node closes; after a crash it ends in zeros.

use std::any::Any;
use std::cell::Cell;

use async_trait::async_trait;

use crate::engine::task::Gate;
use crate::engine::{Io, LocalFuture, Op, Request};
use crate::error::Result;
use crate::graph::driver::{Access, Driver, Extent, Length, Mapping, Role};
use crate::intent::{Preallocation, ZeroFlags};

/// How much is made ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PreallocateOptions {
    /// The file's length is made a multiple of this.
    pub align: u64,
    /// Bytes beyond the end of the write that made the file too short.
    pub size: u64,
}

impl Default for PreallocateOptions {
    fn default() -> Self {
        Self { align: 1 << 20, size: 128 << 20 }
    }
}

/// A node that grows ahead of writes.
pub struct Preallocate {
    options: PreallocateOptions,
    writable: bool,
    data_end: Cell<u64>,
    file_end: Cell<u64>,
    /// The host cannot make zeros without writing them, so that nothing is gained.
    refused: Cell<bool>,
    growing: Gate,
}

impl Preallocate {
    pub(super) fn new(options: PreallocateOptions, len: u64, writable: bool) -> Self {
        Self {
            options,
            writable,
            data_end: Cell::new(len),
            file_end: Cell::new(len),
            refused: Cell::new(false),
            growing: Gate::default(),
        }
    }

    /// Makes the file reach to `end`, and further.
    ///
    /// Whoever writes beyond the end of the file comes by here first, and one at a time: zeros never land on data.
    async fn grow(&self, io: &Io, end: u64) {
        let _one_at_a_time = self.growing.enter(&io.shared().tasks).await;
        let from = self.file_end.get();
        if end <= from {
            return;
        }
        // The caller writes up to there, whatever becomes of the rest.
        self.file_end.set(end);
        let wanted =
            end.saturating_add(self.options.size).checked_next_multiple_of(self.options.align.max(1));
        let Some(wanted) = wanted.filter(|_| !self.refused.get()) else { return };
        let flags = ZeroFlags { may_unmap: false, no_fallback: true };
        match io.write_zeroes("preallocate.grow", io.child(Role::File), from, wanted - from, flags).await {
            Ok(()) => self.file_end.set(wanted),
            // A full disk, say: the write itself will tell.
            Err(_) => self.refused.set(true),
        }
    }

    /// Carries out a change that reaches beyond the data.
    async fn change(&self, io: &Io, request: &mut Request) -> Result<()> {
        match request.op {
            Op::Discard => return Ok(()),
            Op::WriteCompressed => return Err(super::unsupported(io, self.name(), "compressed writes")),
            _ => {}
        }
        let end = request.offset + request.len;
        if end > self.file_end.get() {
            self.grow(io, end).await;
        }
        super::pass_on(io, request).await?;
        self.data_end.set(self.data_end.get().max(end));
        Ok(())
    }
}

#[async_trait(?Send)]
impl Driver for Preallocate {
    fn name(&self) -> &'static str {
        "preallocate"
    }

    fn is_filter(&self) -> bool {
        true
    }

    fn length(&self) -> Length {
        Length::Growing(self.data_end.get())
    }

    fn lookup(&self, offset: u64, len: u64, access: Access) -> Result<Extent> {
        let (child, end) = (Role::File, self.data_end.get());
        let mapping = match access {
            Access::Read if offset >= end => Mapping::Zero { at: None },
            Access::Write | Access::Zero if offset + len > end => {
                return Ok(Extent { len, mapping: Mapping::Own { child, offset } });
            }
            _ => Mapping::Data { child, offset },
        };
        let len = if offset < end { len.min(end - offset) } else { len };
        Ok(Extent { len, mapping })
    }

    fn serve<'a>(&'a self, io: &'a Io, request: &'a mut Request) -> LocalFuture<'a, Result<()>> {
        Box::pin(self.change(io, request))
    }

    fn resized(&self, len: u64) {
        self.data_end.set(len);
        self.file_end.set(len);
    }

    fn flush<'a>(&'a self, io: &'a Io) -> LocalFuture<'a, Result<()>> {
        Box::pin(async { io.flush("preallocate.flush", io.child(Role::File)).await })
    }

    async fn close(&self, io: &Io) -> Result<()> {
        let end = self.data_end.get();
        if self.writable && self.file_end.get() > end {
            io.set_len(io.child(Role::File), end, Preallocation::Off).await?;
        }
        Ok(())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
