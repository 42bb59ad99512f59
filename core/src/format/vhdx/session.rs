//! A session of writing: the headers say that it began, and which log is to be replayed if it does not end in order.
//!
//! Both headers are written, the older one first, with a barrier after each: a crash or a damaged sector leaves one that
//! says the same or what was before. A header that is written last of two has the higher sequence number.

use super::Vhdx;
use super::layout::{EntryHeader, Guid, HEADERS_AT, Header, SECTOR, encode_entry, sectors_of_entry};
use crate::buf::Buf;
use crate::engine::Io;
use crate::error::Result;
use crate::format::HostOffset;
use crate::graph::NodeId;
use crate::graph::driver::Role;
use crate::intent::{Fua, Label};

/// Bytes of the log that are used: more than this makes no commit faster.
const USED_MAX: u64 = 16 << 20;

/// Labels of the write and the barrier of each header.
pub(super) type HeaderLabels = (Label, Label);

const BEGIN: HeaderLabels = ("vhdx.begin/header", "vhdx.begin/after_header");
const LOG_BEGINS: HeaderLabels = ("vhdx.log/header", "vhdx.log/after_header");
const LOG_ENDS: HeaderLabels = ("vhdx.close/header", "vhdx.close/after_header");

/// Which header is current, and what it says.
#[derive(Clone, Debug)]
pub(super) struct Headers {
    pub(super) current: Header,
    /// The slot that it is in.
    pub(super) slot: usize,
}

/// The log as it is written.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Log {
    /// Of this session.
    pub(super) guid: Guid,
    /// Of the last entry that is durable.
    sequence: u64,
    /// Which half of the ring that entry is in.
    half: u64,
    /// Whether the headers name this log.
    pub(super) live: bool,
}

/// Writes both headers with the changes that `change` makes; durable on return.
pub(super) async fn write_headers(
    io: &Io,
    file: NodeId,
    mut headers: Headers,
    labels: HeaderLabels,
    change: impl Fn(&mut Header),
) -> Result<Headers> {
    for _ in 0..2 {
        change(&mut headers.current);
        headers.current.sequence = headers.current.sequence.wrapping_add(1);
        headers.slot ^= 1;
        let bytes = Buf::from(headers.current.encode());
        io.write(labels.0, file, HEADERS_AT[headers.slot], bytes, Fua::No).await.1?;
        io.flush(labels.1, file).await?;
    }
    Ok(headers)
}

impl Vhdx {
    /// Says in the headers that the file, and what the guest sees, are about to change. Whoever knows the image by its
    /// GUIDs then knows that it is another one: a differencing image no longer opens above it.
    pub(super) async fn begin(&self, io: &Io) -> Result<()> {
        let _one_at_a_time = self.beginning.enter(&io.shared().tasks).await;
        if self.begun.get() {
            return Ok(());
        }
        let file = io.child(Role::File);
        let [file_write, data_write, log] = guids(io, file).await?;
        let keeps = self.is_below;
        let change = |header: &mut Header| {
            header.file_write = file_write;
            if !keeps {
                header.data_write = data_write;
            }
        };
        self.change_headers(io, BEGIN, change).await?;
        self.log.set(Log { guid: log, ..Log::default() });
        self.begun.set(true);
        Ok(())
    }

    async fn change_headers(
        &self,
        io: &Io,
        labels: HeaderLabels,
        change: impl Fn(&mut Header),
    ) -> Result<()> {
        let headers = self.headers.borrow().clone();
        let written = write_headers(io, io.child(Role::File), headers, labels, change).await?;
        *self.headers.borrow_mut() = written;
        Ok(())
    }

    /// Sectors that one entry can change: two entries share the ring, so that one is whole while the next is written.
    pub(super) fn sectors_per_entry(&self) -> usize {
        let half = self.half_ring() / SECTOR as u64;
        let mut changed = half - half.div_ceil(128) - 1;
        while sectors_of_entry(changed + 1) <= half {
            changed += 1;
        }
        changed as usize
    }

    fn half_ring(&self) -> u64 {
        self.headers.borrow().current.log_len.min(USED_MAX) / 2
    }

    /// Writes an entry that changes these sectors; durable on return, and named by the headers.
    ///
    /// Order on disk: the entry, a barrier, and for the first one the headers. What they name is whole, and replaying it
    /// changes nothing until the sectors themselves are being written.
    pub(super) async fn write_entry(&self, io: &Io, sectors: &[(HostOffset, Buf)]) -> Result<()> {
        let file = io.child(Role::File);
        let mut log = self.log.get();
        let (sequence, half) = (log.sequence + 1, log.half ^ 1);
        // What the entry before this one changed is durable in its place, so that replay begins here.
        let tail = half * self.half_ring();
        let len = io.len(file);
        let header = EntryHeader {
            checksum: 0,
            len: 0,
            tail,
            sequence,
            descriptors: 0,
            log: log.guid,
            flushed_len: len,
            last_len: len,
        };
        let at = self.headers.borrow().current.log_at + tail;
        let bytes = Buf::from(encode_entry(&header, sectors));
        io.write("vhdx.log/entry", file, at, bytes, Fua::No).await.1?;
        io.flush("vhdx.log/after_entry", file).await?;
        (log.sequence, log.half) = (sequence, half);
        self.log.set(log);
        if !log.live {
            self.change_headers(io, LOG_BEGINS, |header| header.log = log.guid).await?;
            self.log.set(Log { live: true, ..log });
        }
        Ok(())
    }

    /// Ends a session in which everything is durable in its place: no log is to be replayed.
    pub(super) async fn end(&self, io: &Io) -> Result<()> {
        let log = self.log.get();
        if log.live {
            self.change_headers(io, LOG_ENDS, |header| header.log = Guid::NIL).await?;
            self.log.set(Log { live: false, ..log });
        }
        Ok(())
    }
}

/// New GUIDs.
pub(super) async fn guids<const N: usize>(io: &Io, file: NodeId) -> Result<[Guid; N]> {
    let mut guids = [Guid::NIL; N];
    for guid in &mut guids {
        *guid = Guid::random(io.entropy::<16>(file).await?);
    }
    Ok(guids)
}
