//! Filters: nodes that stand between a format and its file, or between a guest and its format, and show their child's
//! bytes as they are.
//!
//! | filter           | sees               | and                                                        |
//! |------------------|--------------------|------------------------------------------------------------|
//! | `blkdebug`       | everything, events | fails it, or holds it up                                   |
//! | `blkverify`      | everything         | does it to a copy as well, and compares what is read       |
//! | `blklogwrites`   | changes, flushes   | writes them down, in the format of dm-log-writes            |
//! | `compress`       | writes             | has the format below store them compressed                 |
//! | `copy-on-read`   | reads, writes      | keeps what was read from a backing file                    |
//! | `null`           | everything         | lets time pass                                             |
//! | `preallocate`    | writes beyond the end | makes the file longer than they need                    |
//!
//! A filter answers [`Mapping::Own`](crate::graph::Mapping::Own) for what it has to see, and
//! [`Mapping::Data`](crate::graph::Mapping::Data) for the rest, which then passes it by without a coroutine. Start at
//! [`Driver::serve`](crate::graph::Driver::serve). Opening one is in `open`.

mod blkdebug;
mod blklogwrites;
mod blkverify;
mod compress;
mod copy_on_read;
mod error;
mod event;
mod null;
mod open;
mod preallocate;

pub(crate) use blkdebug::config as rule_config;
pub use blkdebug::{Blkdebug, BlkdebugOptions, Inject, IoType, Limits, Notice, Rules, SetState};
pub use blklogwrites::layout as log_writes;
pub use blklogwrites::{Blklogwrites, LogOptions};
pub use blkverify::Blkverify;
pub use compress::Compress;
pub use copy_on_read::CopyOnRead;
pub use error::FilterError;
pub use event::DebugEvent;
pub use null::{Null, NullName};
pub use open::FilterSpec;
pub(crate) use open::open;
pub use preallocate::{Preallocate, PreallocateOptions};

use crate::buf::{Buf, BufList};
use crate::engine::{Io, Op, Request};
use crate::error::{Error, Result};
use crate::graph::Role;

/// The whole blocks around a range: first byte, and end.
fn blocks(offset: u64, len: u64, block: u64) -> (u64, u64) {
    (offset - offset % block, (offset + len).next_multiple_of(block))
}

/// Carries a request out on the file, as it is.
async fn pass_on(io: &Io, request: &mut Request) -> Result<()> {
    let (file, offset, len) = (io.child(Role::File), request.offset, request.len);
    let data = std::mem::take(&mut request.data);
    let (data, result) = match request.op {
        Op::Read => io.read("filter/read", file, offset, data).await,
        Op::Write(fua) => io.write("filter/write", file, offset, data, fua).await,
        Op::WriteCompressed => io.write_compressed("filter/write_compressed", file, offset, data).await,
        Op::WriteZeroes(flags, _) => {
            (data, io.write_zeroes("filter/write_zeroes", file, offset, len, flags).await)
        }
        Op::Discard => (data, io.discard("filter/discard", file, offset, len).await),
        Op::Flush => unreachable!("a flush goes to `flush`"),
    };
    request.data = data;
    result
}

fn unsupported(io: &Io, driver: &'static str, what: &'static str) -> Box<Error> {
    Box::new(Error::Unsupported { node: io.title(io.node()), driver, what })
}

/// The bytes of the file from `start` to `end`, where there are any.
async fn read_around(io: &Io, start: u64, end: u64) -> Result<BufList> {
    if start == end {
        return Ok(BufList::new());
    }
    let (data, result) =
        io.read("filter/around", io.child(Role::File), start, Buf::zeroed((end - start) as usize)).await;
    result.map(|()| data)
}
