//! Replay: what the log of an image that was not closed in order changes.
//!
//! The last whole entry says where the first one is that counts; from there to the last, each follows the one before.
//! An image that is open for reading keeps the changes in memory. Order on disk, for one that is open for writing: the
//! changes and the file's length, a barrier, the headers, which then name no log. A crash before that leaves a log that is
//! replayed again, to the same end.
//!
//! Source: \[VHDX\] 2.3.3.

use super::VhdxError;
use super::layout::{DESCRIPTORS_AT, Descriptor, EntryHeader, FILE_MAX, Header, MIB, SECTOR, data_sector};
use super::overlay::{Overlay, Piece};
use crate::buf::Buf;
use crate::engine::Io;
use crate::error::{Error, Result};
use crate::graph::NodeId;
use crate::intent::{Fua, Preallocation, ZeroFlags};

/// Bytes of a ring that is replayed: changes are kept in memory. Others write rings of a few MiB.
const RING_MAX: u64 = 256 * MIB;

/// How often the bytes of a ring may be looked at for entries. Those of an honest one do not overlap.
const LOOKS_MAX: u64 = 4;

/// Bytes that are read at once.
const PIECE: u64 = MIB;

/// What a log changes.
pub(super) struct Replay {
    pub(super) overlay: Overlay,
    /// Bytes that the file has afterwards.
    pub(super) file_len: u64,
}

/// The ring, read in order.
struct Ring<'a> {
    io: &'a Io,
    file: NodeId,
    header: &'a Header,
    /// Bytes that may still be looked at.
    budget: u64,
}

/// Reads the log that the header names.
///
/// # Errors
/// When it cannot be read, has no entry that is whole, or changes what it must not.
pub(super) async fn read(io: &Io, file: NodeId, header: &Header) -> Result<Replay> {
    let fail = |fault| Error::format(io.title(file), fault);
    if header.log_len > RING_MAX {
        return Err(fail(VhdxError::LogTooLong { len: header.log_len, max: RING_MAX }));
    }
    let mut ring = Ring { io, file, header, budget: LOOKS_MAX * header.log_len };
    let candidates = ring.candidates().await?;
    let sequence =
        ring.sequence(candidates).await?.ok_or_else(|| fail(VhdxError::NoLogEntry { guid: header.log }))?;
    let mut replay = Replay { overlay: Overlay::default(), file_len: io.len(file) };
    for (place, entry) in sequence {
        if entry.flushed_len > replay.file_len {
            let (sequence, flushed) = (entry.sequence, entry.flushed_len);
            return Err(fail(VhdxError::FileCut { sequence, flushed, len: replay.file_len }));
        }
        if entry.last_len > FILE_MAX {
            let (sequence, len) = (entry.sequence, entry.last_len);
            return Err(fail(VhdxError::LogLength { sequence, len, max: FILE_MAX }));
        }
        replay.file_len = replay.file_len.max(entry.last_len);
        ring.put_entry(place, &entry, &mut replay).await?;
    }
    Ok(replay)
}

impl Ring<'_> {
    fn fail(&self, fault: VhdxError) -> Box<Error> {
        Error::format(self.io.title(self.file), fault)
    }

    /// Reads from a place in the ring on, beyond its end from its start.
    async fn bytes(&self, place: u64, len: u64) -> Result<Buf> {
        let ring = self.header.log_len;
        let place = place % ring;
        let front = len.min(ring - place);
        let at = self.header.log_at;
        let mut bytes = Buf::zeroed(len as usize);
        let read = self.io.read_bytes("vhdx.replay/log", self.file, at + place, front as usize).await?;
        bytes[..front as usize].copy_from_slice(&read);
        if front < len {
            let read = self.io.read_bytes("vhdx.replay/log", self.file, at, (len - front) as usize).await?;
            bytes[front as usize..].copy_from_slice(&read);
        }
        Ok(bytes)
    }

    /// Sectors that could begin an entry of this log.
    async fn candidates(&self) -> Result<Vec<(u64, EntryHeader)>> {
        let ring = self.header.log_len;
        let mut found = Vec::new();
        let mut place = 0;
        while place < ring {
            let bytes = self.bytes(place, PIECE.min(ring - place)).await?;
            for (sector, at) in bytes.chunks_exact(SECTOR).zip((place..).step_by(SECTOR)) {
                let entry = EntryHeader::parse(sector, ring).filter(|entry| entry.log == self.header.log);
                found.extend(entry.map(|entry| (at, entry)));
            }
            place += bytes.len() as u64;
        }
        Ok(found)
    }

    /// The entries that count, in order.
    async fn sequence(
        &mut self,
        mut candidates: Vec<(u64, EntryHeader)>,
    ) -> Result<Option<Vec<(u64, EntryHeader)>>> {
        candidates.sort_by_key(|(place, entry)| (std::cmp::Reverse(entry.sequence), *place));
        let mut newest = None;
        for (place, entry) in &candidates {
            if self.is_whole(*place, entry).await? {
                newest = Some((*place, entry.clone()));
                break;
            }
        }
        let Some((last_place, last)) = newest else { return Ok(None) };
        let mut place = last.tail;
        let mut sequence: Vec<(u64, EntryHeader)> = Vec::new();
        loop {
            if place == last_place {
                let follows = sequence
                    .last()
                    .is_none_or(|(_, entry)| entry.sequence.checked_add(1) == Some(last.sequence));
                sequence.push((last_place, last));
                return Ok(follows.then_some(sequence));
            }
            let before = sequence.last().map(|(_, entry)| entry.sequence);
            let fits = |entry: &EntryHeader| match before {
                Some(before) => before.checked_add(1) == Some(entry.sequence),
                None => entry.sequence < last.sequence,
            };
            let next = candidates.iter().find(|(at, entry)| *at == place && fits(entry));
            let Some((_, entry)) = next else { return Ok(None) };
            // Each is older than the last, so that this ends.
            if entry.sequence >= last.sequence || !self.is_whole(place, entry).await? {
                return Ok(None);
            }
            sequence.push((place, entry.clone()));
            place = (place + entry.len) % self.header.log_len;
        }
    }

    /// Whether an entry has the checksum that its header says.
    async fn is_whole(&mut self, place: u64, entry: &EntryHeader) -> Result<bool> {
        let max = LOOKS_MAX * self.header.log_len;
        self.budget =
            self.budget.checked_sub(entry.len).ok_or_else(|| self.fail(VhdxError::LogTangled { max }))?;
        let (mut sum, mut done) = (0, 0);
        while done < entry.len {
            let mut bytes = self.bytes(place + done, PIECE.min(entry.len - done)).await?;
            if done == 0 {
                bytes[4..8].fill(0);
            }
            sum = crc32c::crc32c_append(sum, &bytes);
            done += bytes.len() as u64;
        }
        Ok(sum == entry.checksum)
    }

    /// Puts what an entry changes above what those before changed.
    async fn put_entry(&self, place: u64, entry: &EntryHeader, replay: &mut Replay) -> Result<()> {
        let count = u64::from(entry.descriptors);
        let head_len = (DESCRIPTORS_AT as u64 + count * 32).next_multiple_of(SECTOR as u64);
        let head = self.bytes(place, head_len).await?;
        let mut data_at = head_len;
        for (raw, index) in head[DESCRIPTORS_AT..].chunks_exact(32).take(count as usize).zip(0..) {
            let fail = |at, len, expected| {
                self.fail(VhdxError::LogTarget { sequence: entry.sequence, index, at, len, expected })
            };
            let descriptor = Descriptor::parse(raw).filter(|found| found.sequence() == entry.sequence);
            match descriptor {
                None => return Err(fail(0, 0, "a descriptor of this entry, about whole sectors")),
                Some(Descriptor::Data { leading, trailing, at, sequence }) => {
                    self.permit(at.0, SECTOR as u64, replay.file_len)
                        .map_err(|text| fail(at.0, SECTOR as u64, text))?;
                    if data_at + SECTOR as u64 > entry.len {
                        return Err(fail(at.0, SECTOR as u64, "a data sector in the entry"));
                    }
                    let sector = self.bytes(place + data_at, SECTOR as u64).await?;
                    let sector = data_sector(&sector, leading, trailing, sequence);
                    let sector = sector.ok_or_else(|| fail(at.0, SECTOR as u64, "a whole data sector"))?;
                    replay.overlay.put(at.0, Piece::Sector(sector));
                    data_at += SECTOR as u64;
                }
                Some(Descriptor::Zero { len, at, .. }) => {
                    self.permit(at.0, len, replay.file_len).map_err(|text| fail(at.0, len, text))?;
                    replay.overlay.put(at.0, Piece::Zeros(len));
                }
            }
        }
        Ok(())
    }

    /// Whether a log may change a range: not the headers, nor itself, nor what is beyond the end of the file.
    fn permit(&self, at: u64, len: u64, file_len: u64) -> Result<(), &'static str> {
        let (log, log_end) = (self.header.log_at, self.header.log_at + self.header.log_len);
        match at.checked_add(len) {
            Some(end) if end > file_len => Err("a range within the file"),
            None => Err("a range within the file"),
            Some(_) if at < MIB => Err("a range behind the headers"),
            Some(end) if at < log_end && end > log => Err("a range outside the log"),
            Some(_) => Ok(()),
        }
    }
}

/// Writes what a log changes into the file; durable on return.
pub(super) async fn apply(io: &Io, file: NodeId, overlay: &Overlay, file_len: u64) -> Result<()> {
    let there = io.len(file);
    for (at, piece) in overlay.pieces() {
        match piece {
            Piece::Sector(sector) => {
                let sector = Buf::from(&sector[..]);
                io.write("vhdx.replay/sector", file, at, sector, Fua::No).await.1?;
            }
            // What is beyond the end becomes zeros as the file becomes longer.
            Piece::Zeros(len) if at < there => {
                let len = (*len).min(there - at);
                io.write_zeroes("vhdx.replay/zeros", file, at, len, ZeroFlags::default()).await?;
            }
            Piece::Zeros(_) => {}
        }
    }
    if io.len(file) < file_len {
        io.set_len(file, file_len, Preallocation::Off).await?;
    }
    io.flush("vhdx.replay/before_header", file).await
}
