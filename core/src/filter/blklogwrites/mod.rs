//! blklogwrites: writes down every change of its file, in the format of dm-log-writes, so that each state in which a crash
//! could have left the file can be made again.
//!
//! A request is written down when it has been carried out; requests are in the log in the order of their ends, which is an
//! order in which they may have reached the disk. The `log` child is flushed with the file, after the superblock says how
//! many entries there are.

pub mod layout;

use std::any::Any;
use std::cell::Cell;

use async_trait::async_trait;

use super::FilterError;
use crate::buf::{Buf, BufList};
use crate::engine::task::Gate;
use crate::engine::{Io, LocalFuture, Op, Request};
use crate::error::{Error, Result};
use crate::graph::NodeId;
use crate::graph::driver::{Access, Driver, Extent, Length, Mapping, Role};
use crate::intent::{Errno, Fua, ZeroFlags};
use layout::{Entry, HEAD_LEN, Superblock, flag};

/// How a log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogOptions {
    /// Bytes of a sector of a new log.
    pub sector_size: u64,
    /// Go on with the log that is there.
    pub append: bool,
    /// The superblock is written after so many entries at the latest.
    pub super_update_interval: u64,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self { sector_size: layout::SECTOR_MIN, append: false, super_update_interval: 4096 }
    }
}

/// A node that writes down what changes its file.
pub struct Blklogwrites {
    sector_size: u64,
    super_update_interval: u64,
    /// Sector of the log where the next entry goes.
    next: Cell<u64>,
    entries: Cell<u64>,
    /// Something was written down since the last flush.
    unflushed: Cell<bool>,
    /// Something could not be written down: the log is not whole any more, and every flush says so. Sticky.
    failed: Cell<Option<Errno>>,
    /// One superblock is written at a time, or an old one could land last.
    superblocks: Gate,
}

/// What follows an entry in the log.
enum Payload<'a> {
    Data(&'a BufList),
    Zeros,
    Nothing,
}

impl Blklogwrites {
    pub(super) async fn open(io: &Io, log: NodeId, options: &LogOptions) -> Result<Self> {
        let fail = |fault| Error::format(io.title(log), fault);
        let (sector_size, next, entries) = match options.append {
            false => {
                layout::check_sector_size(options.sector_size).map_err(fail)?;
                (options.sector_size, 1, 0)
            }
            true => find_end(io, log, options, fail).await?,
        };
        Ok(Self {
            sector_size,
            super_update_interval: options.super_update_interval,
            next: Cell::new(next),
            entries: Cell::new(entries),
            unflushed: Cell::new(false),
            failed: Cell::new(None),
            superblocks: Gate::default(),
        })
    }

    /// Writes an entry down, and what follows it. A failure is the request's, and that of every flush from here on: who
    /// asked may not care, as for a discard.
    async fn note(&self, io: &Io, entry: Entry, payload: Payload<'_>) -> Result<()> {
        let noted = self.write_entry(io, entry, payload).await;
        if let Err(error) = &noted {
            self.failed.set(Some(error.errno()));
        }
        noted
    }

    async fn write_entry(&self, io: &Io, entry: Entry, payload: Payload<'_>) -> Result<()> {
        let log = io.child(Role::Log);
        // The place is taken before anything is awaited: nobody else writes there.
        let at = self.next.get() * self.sector_size;
        self.next.set(self.next.get() + 1 + entry.data_sectors());
        let mut bytes = Buf::zeroed(self.sector_size as usize);
        bytes[..HEAD_LEN].copy_from_slice(&entry.encode());
        let data_at = at + self.sector_size;
        match payload {
            Payload::Nothing => {}
            Payload::Zeros => {
                let len = entry.sectors * self.sector_size;
                io.write_zeroes("blklogwrites.log/zeros", log, data_at, len, ZeroFlags::default()).await?;
            }
            Payload::Data(data) => {
                let mut copy = Buf::zeroed(data.len_bytes());
                data.copy_out(0, &mut copy);
                io.write("blklogwrites.log/data", log, data_at, copy, Fua::No).await.1?;
            }
        }
        io.write("blklogwrites.log/entry", log, at, bytes, Fua::No).await.1?;
        self.entries.set(self.entries.get() + 1);
        self.unflushed.set(true);
        if self.entries.get().is_multiple_of(self.super_update_interval) {
            self.write_superblock(io).await?;
        }
        Ok(())
    }

    async fn write_superblock(&self, io: &Io) -> Result<()> {
        let _one_at_a_time = self.superblocks.enter(&io.shared().tasks).await;
        let superblock = Superblock { entries: self.entries.get(), sector_size: self.sector_size };
        let mut bytes = Buf::zeroed(self.sector_size as usize);
        bytes[..HEAD_LEN].copy_from_slice(&superblock.encode());
        io.write("blklogwrites.log/superblock", io.child(Role::Log), 0, bytes, Fua::No).await.1
    }

    fn entry(&self, offset: u64, len: u64, flags: u64) -> Entry {
        Entry { sector: offset / self.sector_size, sectors: len / self.sector_size, flags }
    }

    /// Writes whole sectors; what a sector holds beside the request is read and written with it.
    async fn write(&self, io: &Io, offset: u64, data: &mut BufList) -> Result<()> {
        let (file, len) = (io.child(Role::File), data.len_bytes() as u64);
        let (start, end) = super::blocks(offset, len, self.sector_size);
        let mut whole = super::read_around(io, start, offset).await?;
        let tail = super::read_around(io, offset + len, end).await?;
        whole.append(std::mem::take(data));
        whole.append(tail);
        // The file grows no longer than the request makes it; the log has whole sectors.
        let kept = (end.min(io.len(file).max(offset + len)) - start) as usize;
        let mut beyond = whole;
        let part = beyond.split_to(kept);
        let (mut back, result) = io.write("blklogwrites.write", file, start, part, Fua::No).await;
        back.append(beyond);
        let result = match result {
            Ok(()) => self.note(io, self.entry(start, end - start, 0), Payload::Data(&back)).await,
            Err(error) => Err(error),
        };
        drop(back.split_to((offset - start) as usize));
        *data = back.split_to(len as usize);
        result
    }

    /// Writes zeros: whole sectors as such, what is left at either end as data.
    async fn write_zeroes(&self, io: &Io, offset: u64, len: u64, flags: ZeroFlags) -> Result<()> {
        let (unit, end) = (self.sector_size, offset + len);
        let (first, last) = (offset.next_multiple_of(unit).min(end), end - end % unit);
        if first >= last {
            return self.write(io, offset, &mut Buf::zeroed(len as usize).into()).await;
        }
        if offset < first {
            self.write(io, offset, &mut Buf::zeroed((first - offset) as usize).into()).await?;
        }
        let file = io.child(Role::File);
        io.write_zeroes("blklogwrites.write_zeroes", file, first, last - first, flags).await?;
        self.note(io, self.entry(first, last - first, 0), Payload::Zeros).await?;
        if last < end {
            self.write(io, last, &mut Buf::zeroed((end - last) as usize).into()).await?;
        }
        Ok(())
    }

    /// Discards whole sectors; what is left at either end stays.
    async fn discard(&self, io: &Io, offset: u64, len: u64) -> Result<()> {
        let unit = self.sector_size;
        let (first, last) = (offset.next_multiple_of(unit), (offset + len) / unit * unit);
        if first >= last {
            return Ok(());
        }
        io.discard("blklogwrites.discard", io.child(Role::File), first, last - first).await?;
        self.note(io, self.entry(first, last - first, flag::DISCARD), Payload::Nothing).await
    }
}

/// Walks over the entries of a log to where the next one goes: sector size, sector, and number of entries.
async fn find_end(
    io: &Io,
    log: NodeId,
    options: &LogOptions,
    fail: impl Fn(FilterError) -> Box<Error>,
) -> Result<(u64, u64, u64)> {
    let len = io.len(log);
    if len == 0 {
        layout::check_sector_size(options.sector_size).map_err(fail)?;
        return Ok((options.sector_size, 1, 0));
    }
    let superblock = Superblock::parse(&read_head(io, log, 0).await?).map_err(&fail)?;
    let (size, entries) = (superblock.sector_size, superblock.entries);
    let mut next = 1u64;
    for entry in 0..entries {
        let at = next.saturating_mul(size);
        let beyond = || fail(FilterError::LogTooShort { entries, entry, at, len });
        if at >= len {
            return Err(beyond());
        }
        let number = entry;
        let entry = Entry::parse(&read_head(io, log, at).await?);
        // A hole of the host holds as many of these as it likes.
        if entry.sectors == 0 && entry.flags == 0 {
            return Err(fail(FilterError::LogEntry { entry: number, at }));
        }
        let end = next.checked_add(1).and_then(|next| next.checked_add(entry.data_sectors()));
        let within = |end: &u64| end.checked_mul(size).is_some_and(|end| end <= len.next_multiple_of(size));
        next = end.filter(within).ok_or_else(beyond)?;
    }
    Ok((size, next, entries))
}

async fn read_head(io: &Io, log: NodeId, at: u64) -> Result<[u8; HEAD_LEN]> {
    let bytes = io.read_bytes("blklogwrites.open", log, at, HEAD_LEN).await?;
    Ok(bytes[..].try_into().expect("as many bytes as were asked for"))
}

#[async_trait(?Send)]
impl Driver for Blklogwrites {
    fn name(&self) -> &'static str {
        "blklogwrites"
    }

    fn is_filter(&self) -> bool {
        true
    }

    fn length(&self) -> Length {
        Length::OfFileFrom(0)
    }

    fn lookup(&self, offset: u64, len: u64, access: Access) -> Result<Extent> {
        let child = Role::File;
        let mapping = match access {
            Access::Read => Mapping::Data { child, offset },
            Access::Write | Access::Zero => Mapping::Own { child, offset },
        };
        Ok(Extent { len, mapping })
    }

    fn serve<'a>(&'a self, io: &'a Io, request: &'a mut Request) -> LocalFuture<'a, Result<()>> {
        Box::pin(async move {
            let here = io.shared().graph.node(io.node());
            let (offset, len) = (request.offset, request.len);
            let (start, end) = super::blocks(offset, len, self.sector_size);
            // Overlapping changes are in the log in the order in which they took effect.
            let _claim = here.claims.take(&io.shared().tasks, start, end).await;
            match request.op {
                // As the reference writes it down: a write, and a flush.
                Op::Write(fua) => {
                    self.write(io, offset, &mut request.data).await?;
                    if fua == Fua::Yes { self.flush(io).await } else { Ok(()) }
                }
                Op::WriteZeroes(flags, _) => self.write_zeroes(io, offset, len, flags).await,
                Op::Discard => self.discard(io, offset, len).await,
                Op::WriteCompressed => Err(super::unsupported(io, self.name(), "compressed writes")),
                Op::Read | Op::Flush => unreachable!("neither changes anything"),
            }
        })
    }

    fn flush<'a>(&'a self, io: &'a Io) -> LocalFuture<'a, Result<()>> {
        Box::pin(async {
            io.flush("blklogwrites.flush", io.child(Role::File)).await?;
            if let Some(errno) = self.failed.get() {
                let location = io.title(io.child(Role::Log));
                let operation = "write to the log";
                return Err(Box::new(Error::Leaf { location, operation, offset: 0, len: 0, errno }));
            }
            // A flush with nothing before it says nothing.
            if self.unflushed.get() {
                self.note(io, self.entry(0, 0, flag::FLUSH), Payload::Nothing).await?;
                self.write_superblock(io).await?;
                self.unflushed.set(false);
            }
            io.flush("blklogwrites.log/flush", io.child(Role::Log)).await
        })
    }

    async fn close(&self, io: &Io) -> Result<()> {
        match self.unflushed.get() || self.failed.get().is_some() {
            true => self.flush(io).await,
            false => Ok(()),
        }
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
