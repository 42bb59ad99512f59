//! Reads the snapshot table, an entry at a time.

use super::layout::{Header, SNAPSHOT_TABLE_LEN_MAX, SNAPSHOTS_MAX, Snapshot};
use super::open::fault;
use super::{Qcow2, Qcow2Error};
use crate::buf::Buf;
use crate::engine::Io;
use crate::error::Result;
use crate::graph::NodeId;

/// Bytes read at once; the longest entry is larger, and then more is read.
const WINDOW: u64 = 256 << 10;

/// Offsets from here on are no file's. Source: QEMU's limit, 2^63 less its largest alignment.
const FILE_LEN_MAX: u64 = (1 << 63) - (1 << 30);

/// What becomes of entries that the file has not, or not whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Beyond {
    /// The table is damaged.
    Refuse,
    /// They are zeros, as they are for the reference.
    Zeros,
}

/// Reads the snapshot table.
///
/// # Errors
/// When an entry is damaged, or there are more than there may be.
pub(super) async fn read_snapshots(
    io: &Io,
    file: NodeId,
    header: &Header,
    beyond: Beyond,
) -> Result<Vec<Snapshot>> {
    let (count, at) = (header.snapshot_count, header.snapshots_offset);
    if count > SNAPSHOTS_MAX {
        return Err(fault(io, file, Qcow2Error::SnapshotsOverhang { count, max: SNAPSHOTS_MAX }));
    }
    let damaged = |index, field| fault(io, file, Qcow2Error::SnapshotTable { at, index, field });
    let (file_len, limit) = (io.len(file), at.0.saturating_add(SNAPSHOT_TABLE_LEN_MAX).min(FILE_LEN_MAX));
    let end = if beyond == Beyond::Zeros { limit } else { file_len.min(limit) };
    let mut snapshots = Vec::new();
    let (mut offset, mut window, mut window_at) = (at.0, Buf::empty(), at.0);
    for index in 0..count {
        if offset >= end {
            return Err(damaged(index, "the entry"));
        }
        let entry = loop {
            let seen = &window[((offset - window_at) as usize).min(window.len())..];
            match Snapshot::parse(seen) {
                Ok(entry) => break entry,
                Err(field) if window_at == offset && !window.is_empty() => {
                    return Err(damaged(index, field));
                }
                Err(_) => {
                    window = read_padded(io, file, offset, WINDOW.min(end - offset)).await?;
                    window_at = offset;
                }
            }
        };
        offset += entry.entry_len;
        snapshots.push(entry);
    }
    Ok(snapshots)
}

/// Reads `len` bytes, of which those beyond the end of the file are zeros.
async fn read_padded(io: &Io, file: NodeId, offset: u64, len: u64) -> Result<Buf> {
    let there = io.len(file).saturating_sub(offset).min(len);
    let bytes = io.read_bytes("qcow2.snapshots", file, offset, there as usize).await?;
    if there == len {
        return Ok(bytes);
    }
    let mut padded = bytes.to_vec();
    padded.resize(len as usize, 0);
    Ok(Buf::from(padded))
}

impl Qcow2 {
    /// Reads the snapshot table.
    ///
    /// # Errors
    /// When an entry is damaged or lies beyond the end of the file.
    pub async fn snapshots(&self, io: &Io, file: NodeId) -> Result<Vec<Snapshot>> {
        let header = self.header();
        read_snapshots(io, file, &header, Beyond::Refuse).await
    }

    /// Reads the snapshot table as the reference's check does: what the file has not is zeros.
    pub(super) async fn snapshots_to_check(&self, io: &Io, file: NodeId) -> Result<Vec<Snapshot>> {
        let header = self.header();
        read_snapshots(io, file, &header, Beyond::Zeros).await
    }
}
