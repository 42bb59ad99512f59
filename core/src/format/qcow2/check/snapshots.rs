//! Repair of the snapshot table: entries that lack fields of version 3, that have more extra data than anybody reads, or
//! that are more than there can be, or than the file has.
//!
//! Works on bytes, so that what it does not know of an entry stays as it is.

use crate::buf::Buf;
use crate::engine::Io;
use crate::error::{Error, Result};
use crate::format::qcow2::layout::{HostOffset, SNAPSHOT_TABLE_LEN_MAX, SNAPSHOTS_MAX, Snapshot};
use crate::format::qcow2::refcount::Freed;
use crate::format::qcow2::{Qcow2, Qcow2Error};
use crate::graph::NodeId;
use crate::graph::driver::{Ready, Role};
use crate::intent::Fua;

/// Bytes before an entry's extra data. Source: \[qcow2\] "Snapshots".
const FIXED_LEN: usize = 40;
/// Bytes of extra data that version 3 asks for: length of the machine's state, length of the disk.
const EXTRA_MIN: usize = 16;
/// Bytes of extra data at the most. Source: QEMU's limit.
const EXTRA_MAX: usize = 1024;

/// A snapshot table as it is to be written.
pub(in crate::format::qcow2) struct Table {
    pub(super) entries: Vec<Snapshot>,
    bytes: Vec<u8>,
    /// Bytes of the table in the file.
    pub(super) old_len: u64,
    /// Entries that differ from those in the file.
    pub(super) changes: u64,
}

/// One entry: where its parts are.
struct Parts<'a> {
    fixed: &'a [u8],
    extra: &'a [u8],
    names: &'a [u8],
    len: usize,
}

impl<'a> Parts<'a> {
    /// None where `bytes` end within the entry.
    fn of(bytes: &'a [u8]) -> Option<Self> {
        let fixed = bytes.get(..FIXED_LEN)?;
        let half = |at: usize| usize::from(u16::from_be_bytes([fixed[at], fixed[at + 1]]));
        let extra_len = u32::from_be_bytes(fixed[36..40].try_into().expect("four bytes")) as usize;
        let names_at = FIXED_LEN.checked_add(extra_len)?;
        let end = names_at.checked_add(half(12) + half(14))?;
        let (extra, names) = (bytes.get(FIXED_LEN..names_at)?, bytes.get(names_at..end)?);
        Some(Self { fixed, extra, names, len: end.next_multiple_of(8) })
    }

    /// The entry with extra data that is neither too short nor too long.
    fn repaired(&self, version: u32, disk_size: u64) -> Vec<u8> {
        let mut extra = self.extra[..self.extra.len().min(EXTRA_MAX)].to_vec();
        if version >= 3 && extra.len() < EXTRA_MIN {
            if extra.len() < 8 {
                let state_len = u32::from_be_bytes(self.fixed[32..36].try_into().expect("four bytes"));
                extra = u64::from(state_len).to_be_bytes().to_vec();
            }
            extra.truncate(8);
            extra.extend(disk_size.to_be_bytes());
        }
        let mut entry = self.fixed.to_vec();
        entry[36..40].copy_from_slice(&(extra.len() as u32).to_be_bytes());
        entry.extend(extra);
        entry.extend(self.names);
        entry.resize(entry.len().next_multiple_of(8), 0);
        entry
    }
}

impl Table {
    /// Reads the table, and tells what is wrong with it. None where the image has no snapshots.
    pub(super) async fn read(
        io: &Io,
        file: NodeId,
        image: &Qcow2,
        say: &mut dyn FnMut(String),
    ) -> Result<Option<Self>> {
        let header = image.header();
        let (at, count) = (header.snapshots_offset.0, header.snapshot_count.min(SNAPSHOTS_MAX));
        if count == 0 {
            return Ok(None);
        }
        let mut table = Self { entries: Vec::new(), bytes: Vec::new(), old_len: 0, changes: 0 };
        let too_many = u64::from(header.snapshot_count - count);
        if too_many > 0 {
            say(format!("Discarding {too_many} overhanging snapshots"));
            table.changes += too_many;
        }
        let (mut seen, mut start) = (Vec::new(), 0);
        for index in 0..count {
            let damaged = |field| image.fail(Qcow2Error::SnapshotTable { at: HostOffset(at), index, field });
            let whole = loop {
                let rest: &[u8] = seen.get(start..).unwrap_or_default();
                let whole = Parts::of(rest).is_some();
                if whole || !read_more(io, file, at, &mut seen).await? {
                    break whole;
                }
            };
            if !whole && at.saturating_add(seen.len() as u64) < io.len(file) {
                return Err(damaged("the entry"));
            }
            if start >= seen.len() {
                // The reference keeps them, as snapshots without a name, a time or a disk.
                let beyond = u64::from(count - index);
                say(format!("Discarding {beyond} snapshots beyond the end of the file"));
                table.changes += beyond;
                break;
            }
            if !whole {
                cut_off(&mut seen, start);
            }
            let parts = Parts::of(&seen[start..]).expect("it is complete");
            let extra_len = parts.extra.len();
            if extra_len > EXTRA_MAX {
                table.changes += 1;
                say(format!(
                    "Discarding too much extra metadata in snapshot table entry {index} ({extra_len} > {EXTRA_MAX})"
                ));
            }
            if !whole || (header.version >= 3 && extra_len < EXTRA_MIN) {
                table.changes += 1;
                say(format!("Repairing snapshot table entry {index} is incomplete"));
            }
            let entry = parts.repaired(header.version, header.size);
            table.entries.push(Snapshot::parse(&entry).map_err(damaged)?);
            table.bytes.extend(entry);
            start += parts.len;
        }
        table.old_len = (start as u64).min(io.len(file).saturating_sub(at));
        Ok(Some(table))
    }
}

/// Reads on where `seen` ends; false at the end of the file, and where no table may go on.
async fn read_more(io: &Io, file: NodeId, at: u64, seen: &mut Vec<u8>) -> Result<bool> {
    /// Bytes read at first; from then on, as many as there are already.
    const FIRST: u64 = 256 << 10;
    let end = io.len(file).min(at.saturating_add(SNAPSHOT_TABLE_LEN_MAX));
    let there = at.saturating_add(seen.len() as u64);
    let len = (seen.len() as u64).max(FIRST).min(end.saturating_sub(there));
    seen.extend_from_slice(&io.read_bytes("qcow2.repair/snapshots", file, there, len as usize).await?);
    Ok(len > 0)
}

/// Makes a whole entry of the one at `start` of which the file has only a part: what is not there are zeros, extra data and
/// names are as long as they are there.
fn cut_off(seen: &mut Vec<u8>, start: usize) {
    seen.resize(seen.len().max(start + FIXED_LEN), 0);
    let (fixed, rest) = seen[start..].split_at_mut(FIXED_LEN);
    let mut left = rest.len();
    let mut at_most_there = |said: usize| {
        let there = said.min(left);
        left -= there;
        there
    };
    let extra_len = u32::from_be_bytes(fixed[36..40].try_into().expect("four bytes")) as usize;
    let extra_len = at_most_there(extra_len) as u32;
    fixed[36..40].copy_from_slice(&extra_len.to_be_bytes());
    for at in [12, 14] {
        let len = usize::from(u16::from_be_bytes([fixed[at], fixed[at + 1]]));
        let len = at_most_there(len) as u16;
        fixed[at..at + 2].copy_from_slice(&len.to_be_bytes());
    }
}

impl Qcow2 {
    /// Puts a snapshot table in the place of the one in the file.
    ///
    /// Order on disk: the refcounts of the new table and its bytes, a barrier, the header that names it, a barrier, the
    /// refcounts of the old one. A crash between two leaves one of the tables as a leak.
    pub(super) async fn replace_snapshot_table(&self, io: &Io, table: &Table) -> Result<()> {
        let bits = self.geometry.cluster_bits;
        let old = (self.header().snapshots_offset, bits.count(table.old_len));
        let clusters = bits.count(table.bytes.len() as u64);
        let at = match clusters {
            0 => HostOffset(0),
            _ => self.write_snapshot_table(io, table, clusters).await?,
        };
        // From here on, nobody knows which table the file names until it is read again.
        self.change_header(io, |header| {
            header.snapshots_offset = at;
            header.snapshot_count = table.entries.len() as u32;
        })
        .await?;
        if old.1 > 0 {
            self.free_later(old.0, old.1, Freed::Other);
        }
        // The old table is free, and nothing is held back, when the image is checked again.
        self.close_image(io).await
    }

    async fn write_snapshot_table(&self, io: &Io, table: &Table, clusters: u64) -> Result<HostOffset> {
        let at = self.reserve_run(io, clusters).await?;
        let (file, bytes) = (io.child(Role::File), Buf::from(&table.bytes[..]));
        let written = match io.write("qcow2.repair/snapshot_table", file, at.0, bytes, Fua::No).await.1 {
            Ok(()) => self.commit(io).await,
            Err(error) => Err(error),
        };
        if let Err(error) = written {
            self.refcounts.borrow_mut().give_back(at, clusters);
            return Err(error);
        }
        Ok(at)
    }

    /// Takes neighbouring clusters.
    pub(in crate::format::qcow2) async fn reserve_run(&self, io: &Io, count: u64) -> Result<HostOffset> {
        let bits = self.geometry.cluster_bits.bits();
        let mut short: Vec<(HostOffset, u64)> = Vec::new();
        let mut run: Option<(u64, u64)> = None;
        let result = loop {
            if let Some((first, _)) = run.filter(|(_, have)| *have == count) {
                break Ok(HostOffset(first << bits));
            }
            let wanted = count - run.map_or(0, |(_, have)| have);
            let taken = self.refcounts.borrow_mut().take(wanted);
            let taken: Result<_, Box<Error>> = match taken {
                Ok(Ready::Yes(taken)) => Ok(taken),
                Ok(Ready::Miss(miss)) => match self.load_missing(io, miss).await {
                    Ok(()) => continue,
                    Err(error) => Err(error),
                },
                Err(fault) => Err(self.fail(fault)),
            };
            let taken = match taken {
                Ok(taken) => taken,
                Err(error) => break Err(error),
            };
            let first = taken.at.0 >> bits;
            run = match run {
                Some((start, have)) if start + have == first => Some((start, have + taken.count)),
                other => {
                    short.extend(other.map(|(start, have)| (HostOffset(start << bits), have)));
                    Some((first, taken.count))
                }
            };
        };
        if result.is_err() {
            short.extend(run.map(|(start, have)| (HostOffset(start << bits), have)));
        }
        let mut refcounts = self.refcounts.borrow_mut();
        for (at, count) in short {
            refcounts.give_back(at, count);
        }
        result
    }
}
