//! Open: the header, and slices of the block map as they are missed.

use super::layout::{Entry, HEADER_LEN, Header, SIGNATURE};
use super::{SLICE_LEN, Space, Vdi, VdiError};
use crate::engine::Io;
use crate::error::{Error, Result};
use crate::format::HostOffset;
use crate::format::cache::SliceCache;
use crate::graph::NodeId;
use crate::graph::driver::Role;

/// Bytes of the map in memory: what 4 TiB of the disk need.
const CACHE_LEN: usize = 16 << 20;

/// Lost blocks that are remembered; each is 1 MiB of the file.
const FREE_MAX: usize = 1 << 20;

/// Bytes of the map that are read at once where all of it is.
const PIECE: u64 = 1 << 20;

/// Whether the first bytes of a file are a VDI image's.
pub fn probe(head: &[u8]) -> bool {
    head.get(64..68) == Some(&SIGNATURE.to_le_bytes())
}

/// Opens the image in `file`.
///
/// # Errors
/// When the image is damaged or not supported, or the header cannot be read.
pub async fn open(io: &Io, file: NodeId) -> Result<Vdi> {
    let name = io.title(file);
    let fail = |fault| Error::format(&*name, fault);
    let file_len = io.len(file);
    if file_len < HEADER_LEN as u64 {
        return Err(fail(VdiError::HeaderTooShort { len: file_len }));
    }
    let head = io.read_bytes("vdi.open/header", file, 0, HEADER_LEN).await?;
    let header = Header::parse(&head).map_err(fail)?;
    // What lies beyond the end would read as zeros, and every block of the disk would be the first one of the file.
    if header.blocks > 0 && header.map_at + u64::from(header.blocks) * 4 > file_len {
        let (len, what) = (u64::from(header.blocks) * 4, "end of the file");
        return Err(fail(VdiError::MapPlace { at: header.map_at, len, end: file_len, what }));
    }
    Ok(Vdi {
        header: header.into(),
        header_dirty: false.into(),
        changes: 0.into(),
        durable: 0.into(),
        map: SliceCache::new(SLICE_LEN as usize, CACHE_LEN).into(),
        space: Space::default().into(),
        commits: Default::default(),
        lengthening: Default::default(),
        loads: Default::default(),
        name,
    })
}

impl Vdi {
    /// Reads a slice of the map. Two that miss the same slice read it once.
    pub(super) async fn load_slice(&self, io: &Io, at: HostOffset) -> Result<()> {
        let read = self.read_slice(io, at);
        self.loads.once(&io.shared().tasks, at, || self.map.borrow().find(at).is_some(), read).await
    }

    async fn read_slice(&self, io: &Io, at: HostOffset) -> Result<()> {
        // The last slice ends where the map does: what is behind it belongs to blocks.
        let len = SLICE_LEN.min(self.header.borrow().map_end() - at.0) as usize;
        let bytes = io.read_bytes("vdi.load/block_map", io.child(Role::File), at.0, len).await?;
        while !self.map.borrow().has_room() {
            // All slices hold changes: writing them out makes room.
            self.commit(io).await?;
        }
        let inserted = self.map.borrow_mut().insert(at, bytes);
        inserted.map(drop).map_err(|_| self.fail(VdiError::CacheExhausted))
    }

    /// Finds the end of all blocks that the map names, and those before it that it does not. Memory: a bit for each
    /// block, at most 64 MiB. The header's count may be less, after a crash or by another writer's
    /// mistake, and a block that two names lead to would lose one of them.
    pub(super) async fn find_end(&self, io: &Io) -> Result<()> {
        let header = self.header();
        let mut end = 0;
        let mut used = vec![0u64; (header.blocks as usize).div_ceil(64)];
        let (mut at, stop) = (header.map_at, header.map_at + u64::from(header.blocks) * 4);
        while at < stop {
            let len = PIECE.min(stop - at);
            let bytes = io.read_bytes("vdi.open/block_map", io.child(Role::File), at, len as usize).await?;
            for raw in bytes.chunks_exact(4) {
                let raw = u32::from_le_bytes(raw.try_into().expect("four bytes"));
                // A damaged entry takes no block that is there.
                if let Ok(Entry::Block(index)) = Entry::parse(raw, &header) {
                    end = end.max(index + 1);
                    used[index as usize / 64] |= 1 << (index % 64);
                }
            }
            at += len;
        }
        let file = io.child(Role::File);
        let zeros_from = if io.starts_as_zeroes(file) { io.len(file) } else { u64::MAX };
        let mut space = self.space.borrow_mut();
        // Somebody who waited as well may have taken blocks meanwhile; nobody publishes any before this is known.
        if space.end.is_none() {
            space.end = Some(end);
            space.zeros_from = zeros_from;
            // What a crash lost is used again.
            let lost = (0..end).rev().filter(|index| used[*index as usize / 64] & 1 << (index % 64) == 0);
            space.free = lost.take(FREE_MAX).collect();
        }
        Ok(())
    }
}
