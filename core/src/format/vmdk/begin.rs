//! What happens before the first write to an image, and after the last.
//!
//! Order on disk: the content ID, a barrier, then whatever is written. So who reads the parent of a disk sees that it has
//! changed, before anything has. The mark of a writer comes before the barrier in front of the first grain table (`flush`): without
//! it, a table and its copy in the redundant grain directory are the same. Copies that a writer left behind when it went away are
//! brought in step first. The mark goes when the image is closed, once everything is durable.

use super::layout::SECTOR;
use super::sparse::{Packing, Sparse};
use super::{Vmdk, VmdkError, whole_sectors};
use crate::buf::Buf;
use crate::engine::Io;
use crate::error::Result;
use crate::format::HostOffset;
use crate::graph::driver::Role;
use crate::intent::{Fua, Preallocation};

impl Vmdk {
    /// Makes a part ready for its first write.
    pub(super) async fn begin(&self, io: &Io, part: usize) -> Result<()> {
        let _one_at_a_time = self.begins.enter(&io.shared().tasks).await;
        let part = &self.parts[part];
        if self.has_begun(part) {
            return Ok(());
        }
        if !self.cid_changed.get() {
            self.change_cid(io).await?;
        }
        if let Some(sparse) = part.sparse().filter(|sparse| !sparse.begun.get()) {
            if sparse.header.as_ref().is_some_and(|header| header.unclean) {
                self.step_copies(io, sparse).await?;
            }
            write_mark(io, sparse, true).await?;
            sparse.begun.set(true);
        }
        self.cid_changed.set(true);
        Ok(())
    }

    /// Writes a new content ID over the old one. Nothing but its sector changes, if it was written with all digits.
    async fn change_cid(&self, io: &Io) -> Result<()> {
        let file = io.child(Role::File);
        let old = self.descriptor();
        let random = u32::from_le_bytes(io.entropy::<4>(file).await?);
        // All ones stand for no parent.
        let cid = if random == old.cid || random == u32::MAX {
            old.cid.wrapping_add(1) & 0x7fff_ffff
        } else {
            random
        };
        let new = old.with_cid(cid);
        let len = new.text().len() as u64;
        if len > self.descriptor_max {
            return Err(self.fail(VmdkError::DescriptorFull { found: len, max: self.descriptor_max }));
        }
        let differs = |at: &u64| old.text().get(*at as usize) != new.text().get(*at as usize);
        let first = (0..len).find(differs).unwrap_or(0) / SECTOR * SECTOR;
        let end = (0..len).rev().find(differs).map_or(0, |last| whole_sectors(last + 1)).min(len);
        let bytes = Buf::from(&new.text()[first as usize..end as usize]);
        io.write("vmdk.begin/cid", file, self.descriptor_at + first, bytes, Fua::No).await.1?;
        io.flush("vmdk.begin/cid_barrier", file).await?;
        self.descriptor.replace(new);
        Ok(())
    }

    /// Makes the copies of grain tables equal to the tables, which were written first.
    async fn step_copies(&self, io: &Io, sparse: &Sparse) -> Result<()> {
        let (file, len) = (io.child(sparse.role), sparse.table_len());
        for (table, copy) in &sparse.copies {
            let at = |sector: &u32| u64::from(*sector) * SECTOR;
            if at(table).max(at(copy)) + len as u64 > sparse.file_len {
                // A read or write there is told.
                continue;
            }
            let right = io.read_bytes("vmdk.begin/grain_table", file, at(table), len).await?;
            let copied = io.read_bytes("vmdk.begin/redundant_table", file, at(copy), len).await?;
            if right[..] != copied[..] {
                io.write("vmdk.begin/step", file, at(copy), right, Fua::No).await.1?;
            }
        }
        Ok(())
    }

    /// Makes everything durable and takes the mark away, if there was a write.
    pub(super) async fn end(&self, io: &Io) -> Result<()> {
        if !self.cid_changed.get() {
            return Ok(());
        }
        self.flush_all(io).await?;
        for sparse in self.parts.iter().filter_map(|part| part.sparse()) {
            if sparse.begun.get() {
                // The file holds all of its last grain: others may take one that is cut off for damaged.
                let (file, end) = (io.child(sparse.role), sparse.space.end.get());
                if sparse.packing == Packing::None && io.len(file) < end {
                    io.set_len(file, end, Preallocation::Off).await?;
                }
                write_mark(io, sparse, false).await?;
                io.flush("vmdk.close", io.child(sparse.role)).await?;
            }
        }
        Ok(())
    }

    /// Where the copy of a changed grain table goes.
    pub(super) fn copy_place(&self, sparse: &Sparse, table: HostOffset) -> Result<Option<HostOffset>> {
        let Some(copy) = sparse.copy_of(table) else { return Ok(None) };
        if copy.0 + sparse.table_len() as u64 > sparse.file_len {
            let what = "redundant grain table";
            let (at, len, file_len) = (copy.0, sparse.table_len() as u64, sparse.file_len);
            return Err(self.fail(VmdkError::Outside { what, at, len, file_len }));
        }
        Ok(Some(copy))
    }
}

/// Writes the header, and in it whether somebody writes.
async fn write_mark(io: &Io, sparse: &Sparse, unclean: bool) -> Result<()> {
    let Some(header) = &sparse.header else { return Ok(()) };
    let mut header = header.clone();
    header.unclean = unclean;
    let bytes = Buf::from(&header.encode()[..]);
    io.write("vmdk.begin/mark", io.child(sparse.role), 0, bytes, Fua::No).await.1
}
