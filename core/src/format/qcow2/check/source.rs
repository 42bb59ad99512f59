//! Reads of metadata: large, and many at once.

use crate::buf::Buf;
use crate::engine::Io;
use crate::engine::task::join_all;
use crate::error::{Error, Result};
use crate::format::qcow2::Qcow2Error;
use crate::graph::NodeId;
use crate::intent::{Fua, Label};

/// Bytes of one read.
pub(super) const READ_LEN: u64 = 1 << 20;

/// Bytes that are in flight at once.
pub(super) const BATCH_LEN: u64 = 16 << 20;

/// Reads that are in flight at once.
const BATCH_COUNT: usize = 64;

/// Neighbours that are no further apart than this are read together.
const GAP: u64 = 16 << 10;

/// The file that holds an image.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub(super) io: &'a Io,
    pub(super) file: NodeId,
    /// Bytes, in whole sectors.
    pub(super) len: u64,
}

/// A piece of a file in memory.
pub(super) struct Piece {
    pub(super) at: u64,
    pub(super) bytes: Buf,
}

impl Source<'_> {
    /// What is wrong with the image in the file.
    pub(super) fn fail(&self, fault: Qcow2Error) -> Box<Error> {
        Error::format(self.io.title(self.file), fault)
    }

    /// Reads a short range.
    pub(super) async fn read(&self, at: u64, len: u64) -> Result<Buf> {
        self.io.read_bytes("qcow2.check/read", self.file, at, len as usize).await
    }

    /// Reads several ranges at once.
    pub(super) async fn read_all(&self, ranges: &[(u64, u64)]) -> Vec<Result<Piece>> {
        let reads = ranges
            .iter()
            .map(|(at, len)| async move { self.read(*at, *len).await.map(|bytes| Piece { at: *at, bytes }) });
        join_all(reads).await
    }

    /// Writes several ranges at once.
    pub(super) async fn write_all(&self, label: Label, writes: Vec<(u64, Buf)>) -> Result<()> {
        for some in chunks_of(writes, BATCH_COUNT) {
            let writes =
                some.into_iter().map(|(at, bytes)| self.io.write(label, self.file, at, bytes, Fua::No));
            for (_, result) in join_all(writes).await {
                result?;
            }
        }
        Ok(())
    }

    /// Makes durable what was written; the label says of which step.
    pub(super) async fn barrier(&self, label: Label) -> Result<()> {
        self.io.flush(label, self.file).await
    }

    /// Groups tables of `len` bytes, whose places ascend, into reads: returns the reads to begin with, and how many
    /// tables are in them.
    pub(super) fn group(places: impl Iterator<Item = u64>, len: u64) -> (Vec<(u64, u64)>, usize) {
        let (mut reads, mut count, mut total) = (Vec::<(u64, u64)>::new(), 0, 0);
        for at in places {
            let end = at + len;
            let full = reads.len() == BATCH_COUNT || total >= BATCH_LEN;
            match reads.last_mut() {
                Some((start, read_len))
                    if at <= *start + *read_len + GAP && end - *start <= READ_LEN.max(len) =>
                {
                    let longer = (*read_len).max(end - *start);
                    total += longer - *read_len;
                    *read_len = longer;
                }
                _ if full => break,
                _ => {
                    reads.push((at, len));
                    total += len;
                }
            }
            count += 1;
        }
        (reads, count)
    }
}

fn chunks_of<T>(all: Vec<T>, len: usize) -> impl Iterator<Item = Vec<T>> {
    let mut all = all.into_iter();
    std::iter::from_fn(move || {
        Some(all.by_ref().take(len).collect::<Vec<_>>()).filter(|some| !some.is_empty())
    })
}

/// Finds the holes of a file, so that tables of zeros are not read.
pub(super) struct Holes<'a> {
    source: Source<'a>,
    /// The last answer: range, and whether it is a hole.
    known: (u64, u64, bool),
}

impl<'a> Holes<'a> {
    pub(super) fn of(source: Source<'a>) -> Self {
        Self { source, known: (0, 0, false) }
    }

    /// The end of the hole at `at`, or `at` itself where there is data.
    pub(super) async fn end(&mut self, at: u64) -> u64 {
        if at >= self.source.len {
            return u64::MAX;
        }
        let (start, end, _) = self.known;
        if !(start..end).contains(&at) {
            let Source { io, file, len } = self.source;
            self.known = match io.status(file, at, len - at, None).await {
                Ok(status) => (at, at + status.len, status.zero),
                // What cannot be told is read.
                Err(_) => (at, len, false),
            };
        }
        let (_, end, hole) = self.known;
        if hole { end } else { at }
    }
}
