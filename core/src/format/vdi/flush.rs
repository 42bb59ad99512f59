//! Flush: writes changed metadata in an order that a crash cannot break.
//!
//! | level | what                                              | because                                                |
//! |-------|---------------------------------------------------|--------------------------------------------------------|
//! | 0     | blocks, the file's length, the count in the header | nothing on disk points to the blocks                   |
//! | 1     | the block map                                     | a block that is pointed to holds its data, and is counted |
//!
//! A barrier stands between the two. A crash before level 1 leaves a count that is too high, which is a leak.

use super::Vdi;
use super::layout::Header;
use crate::buf::Buf;
use crate::engine::Io;
use crate::error::Result;
use crate::format::HostOffset;
use crate::graph::driver::Role;
use crate::intent::Fua;

impl Vdi {
    /// Makes everything durable that completed before.
    pub(super) async fn flush_all(&self, io: &Io) -> Result<()> {
        let covered = self.changes.get();
        self.commit(io).await?;
        io.flush("vdi.flush", io.child(Role::File)).await?;
        self.durable.set(self.durable.get().max(covered));
        Ok(())
    }

    /// Writes all changed metadata. The last level is not durable yet.
    pub(super) async fn commit(&self, io: &Io) -> Result<()> {
        let _one_at_a_time = self.commits.enter(&io.shared().tasks).await;
        // Both are copied at one instant: what the map names is counted by this header.
        let header = self.header_dirty.replace(false).then(|| self.header());
        let slices = self.map.borrow_mut().take_dirty();
        let result = self.write_levels(io, header.as_ref(), slices).await;
        let mut map = self.map.borrow_mut();
        match &result {
            Ok(()) => map.written(),
            Err(_) => {
                map.failed();
                self.header_dirty.set(self.header_dirty.get() || header.is_some());
            }
        }
        result
    }

    async fn write_levels(
        &self,
        io: &Io,
        header: Option<&Header>,
        slices: Vec<(HostOffset, Buf)>,
    ) -> Result<()> {
        let file = io.child(Role::File);
        if let Some(header) = header {
            // The file holds all of each block: a part of a block is no block to others.
            if io.len(file) < header.place_of(header.allocated).0 {
                let taken = || header.place_of(self.space.borrow().end.unwrap_or(0)).0;
                self.lengthening.cover(io, file, taken).await?;
            }
            let bytes = Buf::from(&header.encode()[..]);
            io.write("vdi.flush/header", file, 0, bytes, Fua::No).await.1?;
        }
        if slices.is_empty() {
            return Ok(());
        }
        // Blocks and their count are durable before the map names them.
        io.flush("vdi.flush/before_block_map", file).await?;
        for (at, bytes) in slices {
            io.write("vdi.flush/block_map", file, at.0, bytes, Fua::No).await.1?;
        }
        Ok(())
    }
}
