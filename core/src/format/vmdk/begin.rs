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
        let behind = self.descriptor_at.saturating_add(self.descriptor_max).min(io.len(file));
        let (first, bytes) = changed(old.text(), new.text(), self.descriptor_at + len < behind);
        let (first, bytes) = (first as u64, Buf::from(bytes));
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
        // The copies of what a commit writes are durable with the flush behind it, and before the mark goes.
        self.commit(io).await?;
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

/// The first byte to write and what, whole sectors of text, where one text replaces another. One of another length gets a NUL
/// byte of its own where something follows: that would be text else.
fn changed(old: &[u8], new: &[u8], something_follows: bool) -> (usize, Vec<u8>) {
    let differs = |at: &usize| old.get(*at) != new.get(*at);
    let first = (0..new.len()).find(differs).unwrap_or(0) / SECTOR as usize * SECTOR as usize;
    let last = match new.len() == old.len() {
        true => (0..new.len()).rev().find(differs),
        false => new.len().checked_sub(1),
    };
    let end = last.map_or(0, |last| whole_sectors(last as u64 + 1) as usize).min(new.len());
    let mut bytes = new[first..end].to_vec();
    if new.len() != old.len() && something_follows {
        bytes.push(0);
    }
    (first, bytes)
}

/// Writes the header, and in it whether somebody writes.
async fn write_mark(io: &Io, sparse: &Sparse, unclean: bool) -> Result<()> {
    let Some(header) = &sparse.header else { return Ok(()) };
    let mut header = header.clone();
    header.unclean = unclean;
    let bytes = Buf::from(&header.encode()[..]);
    io.write("vmdk.begin/mark", io.child(sparse.role), 0, bytes, Fua::No).await.1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(old: &[u8], new: &[u8], follows: bool, first: usize, bytes: &[u8]) {
        assert_eq!(changed(old, new, follows), (first, bytes.to_vec()));
    }

    #[test]
    fn only_sectors_that_change_are_written() {
        let text = |digits: &[u8]| [&[b'#'; 600][..], digits, &[b'#'; 600]].concat();
        let (old, new) = (text(b"11111111"), text(b"22222222"));
        check(&old, &new, true, 512, &new[512..1024]);
        check(&old, &old, true, 0, b"");
    }

    #[test]
    fn a_text_of_another_length_has_a_new_end() {
        let (old, new) = (b"CID=1\n", b"CID=00000002\n");
        check(old, new, true, 0, b"CID=00000002\n\0");
        check(old, new, false, 0, new);
        check(b"CID=0000000003\n\n\n", b"CID=00000002\n\n\n", true, 0, b"CID=00000002\n\n\n\0");
    }
}
