//! blkverify: does everything to an image and to a raw copy of it, and compares what is read.
//!
//! The image is the `file` child, whose length is the node's; the copy is the `raw` child. A difference fails the request
//! with [`FilterError::Mismatch`]; what the two say when they fail must go together too.

use std::any::Any;

use async_trait::async_trait;

use super::FilterError;
use crate::buf::{Buf, BufList};
use crate::engine::task::join;
use crate::engine::{Io, LocalFuture, Op, Request};
use crate::error::{Error, Result};
use crate::graph::driver::{Access, Driver, Extent, Length, Mapping, Role};
use crate::intent::{Fua, ZeroFlags};

/// A node that compares an image with a copy.
#[derive(Debug)]
pub struct Blkverify;

/// A request, for messages about it.
#[derive(Clone, Copy)]
struct About {
    operation: &'static str,
    offset: u64,
    len: u64,
}

impl About {
    fn fail(self, io: &Io, fault: FilterError) -> Box<Error> {
        Error::format(io.title(io.node()), fault)
    }

    /// What both said, which must be the same.
    fn outcome(self, io: &Io, test: Result<()>, raw: Result<()>) -> Result<()> {
        let word = |result: &Result<()>| match result {
            Ok(()) => "success".to_owned(),
            Err(error) => error.errno().to_string(),
        };
        if word(&test) == word(&raw) {
            return test;
        }
        let Self { operation, offset, len } = self;
        Err(self
            .fail(io, FilterError::Outcomes { operation, offset, len, raw: word(&raw), test: word(&test) }))
    }
}

async fn read(io: &Io, offset: u64, data: &mut BufList) -> Result<()> {
    let len = data.len_bytes();
    let about = About { operation: "read", offset, len: len as u64 };
    let ((tested, test), (copied, raw)) = join(
        io.read("blkverify.read/test", io.child(Role::File), offset, std::mem::take(data)),
        io.read("blkverify.read/raw", io.child(Role::Raw), offset, Buf::zeroed(len)),
    )
    .await;
    *data = tested;
    about.outcome(io, test, raw)?;
    match first_difference(data, &copied.into_single()) {
        None => Ok(()),
        Some(at) => {
            let at = offset + at as u64;
            let About { operation, offset, len } = about;
            Err(about.fail(io, FilterError::Mismatch { operation, offset, len, at }))
        }
    }
}

/// The first byte in which the two differ.
fn first_difference(data: &BufList, copy: &[u8]) -> Option<usize> {
    let mut from = 0;
    for window in data.windows() {
        let there = &copy[from..from + window.len()];
        if window[..] != *there {
            let differs = window.iter().zip(there).position(|(a, b)| a != b);
            return Some(from + differs.expect("the windows differ"));
        }
        from += window.len();
    }
    None
}

async fn write(io: &Io, offset: u64, data: &mut BufList, fua: Fua) -> Result<()> {
    let len = data.len_bytes();
    let mut copy = Buf::zeroed(len);
    data.copy_out(0, &mut copy);
    let ((back, test), (_, raw)) = join(
        io.write("blkverify.write/test", io.child(Role::File), offset, std::mem::take(data), fua),
        io.write("blkverify.write/raw", io.child(Role::Raw), offset, copy, fua),
    )
    .await;
    *data = back;
    About { operation: "write", offset, len: len as u64 }.outcome(io, test, raw)
}

async fn write_zeroes(io: &Io, offset: u64, len: u64, flags: ZeroFlags) -> Result<()> {
    // Both can always write zeros as data, and only one of them faster.
    let flags = ZeroFlags { no_fallback: false, ..flags };
    let (test, raw) = join(
        io.write_zeroes("blkverify.write_zeroes/test", io.child(Role::File), offset, len, flags),
        io.write_zeroes("blkverify.write_zeroes/raw", io.child(Role::Raw), offset, len, flags),
    )
    .await;
    About { operation: "write of zeros", offset, len }.outcome(io, test, raw)
}

#[async_trait(?Send)]
impl Driver for Blkverify {
    fn name(&self) -> &'static str {
        "blkverify"
    }

    fn is_filter(&self) -> bool {
        true
    }

    fn length(&self) -> Length {
        Length::OfFileFrom(0)
    }

    /// Tells of the copy what is stored where, as the reference does; requests go to both.
    fn lookup(&self, offset: u64, len: u64, _: Access) -> Result<Extent> {
        Ok(Extent { len, mapping: Mapping::Own { child: Role::Raw, offset } })
    }

    fn serve<'a>(&'a self, io: &'a Io, request: &'a mut Request) -> LocalFuture<'a, Result<()>> {
        Box::pin(async move {
            let here = io.shared().graph.node(io.node());
            let (offset, len) = (request.offset, request.len);
            // The two must see changes in the same order, and a read must see none halfway.
            let _claim = here.claims.take(&io.shared().tasks, offset, offset + len).await;
            match request.op {
                Op::Read => read(io, offset, &mut request.data).await,
                Op::Write(fua) => write(io, offset, &mut request.data, fua).await,
                Op::WriteZeroes(flags, _) => write_zeroes(io, offset, len, flags).await,
                // What a discarded range reads as is each one's own business, so there would be nothing to compare.
                Op::Discard => Ok(()),
                Op::WriteCompressed => Err(super::unsupported(io, self.name(), "compressed writes")),
                Op::Flush => unreachable!("a flush goes to `flush`"),
            }
        })
    }

    fn flush<'a>(&'a self, io: &'a Io) -> LocalFuture<'a, Result<()>> {
        Box::pin(async {
            let (test, raw) = join(
                io.flush("blkverify.flush/test", io.child(Role::File)),
                io.flush("blkverify.flush/raw", io.child(Role::Raw)),
            )
            .await;
            test.and(raw)
        })
    }

    async fn close(&self, _: &Io) -> Result<()> {
        Ok(())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
