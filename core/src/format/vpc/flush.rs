//! Flush: writes changed metadata in an order that a crash cannot break.
//!
//! | level | what                                       | because                                                     |
//! |-------|--------------------------------------------|-------------------------------------------------------------|
//! | 0     | blocks, the footer behind them             | nothing on disk points to the blocks                        |
//! | 1     | bitmaps                                    | a sector that a bitmap calls there holds its data           |
//! | 2     | the BAT                                    | a block that is pointed to holds its data and has its bitmap |
//!
//! A barrier stands between two levels that both have something to write. A crash before the last leaves blocks that nothing
//! points to. New blocks are written over the footer at the end: until the next one is there, the copy at the start of the
//! file is the only one, and all readers look there first.

use super::Vpc;
use crate::buf::Buf;
use crate::engine::Io;
use crate::error::Result;
use crate::format::HostOffset;
use crate::graph::driver::Role;
use crate::intent::Fua;

impl Vpc {
    /// Makes everything durable that completed before.
    pub(super) async fn flush_all(&self, io: &Io) -> Result<()> {
        let covered = self.changes.get();
        self.commit(io).await?;
        io.flush("vpc.flush", io.child(Role::File)).await?;
        self.durable.set(self.durable.get().max(covered));
        Ok(())
    }

    /// Writes all changed metadata. The last level is not durable yet.
    pub(super) async fn commit(&self, io: &Io) -> Result<()> {
        let _one_at_a_time = self.commits.enter(&io.shared().tasks).await;
        // Both are copied at one instant: each block that the BAT names has its bitmap.
        let bitmaps = self.bitmaps.borrow_mut().take_dirty();
        let bat = self.bat.borrow_mut().take_dirty();
        let result = self.write_levels(io, bitmaps, bat).await;
        for cache in [&self.bitmaps, &self.bat] {
            match &result {
                Ok(()) => cache.borrow_mut().written(),
                Err(_) => cache.borrow_mut().failed(),
            }
        }
        result
    }

    async fn write_levels(
        &self,
        io: &Io,
        bitmaps: Vec<(HostOffset, Buf)>,
        bat: Vec<(HostOffset, Buf)>,
    ) -> Result<()> {
        let file = io.child(Role::File);
        let end = self.space.borrow().end().filter(|_| !bat.is_empty());
        if let Some(end) = end {
            let footer = Buf::from(&self.footer.encode()[..]);
            io.write("vpc.flush/footer", file, end, footer, Fua::No).await.1?;
        }
        if !bitmaps.is_empty() {
            io.flush("vpc.flush/before_bitmaps", file).await?;
        }
        for (at, bytes) in bitmaps {
            io.write("vpc.flush/bitmap", file, at.0, bytes, Fua::No).await.1?;
        }
        if !bat.is_empty() {
            io.flush("vpc.flush/before_bat", file).await?;
        }
        for (at, bytes) in bat {
            io.write("vpc.flush/bat", file, at.0, bytes, Fua::No).await.1?;
        }
        Ok(())
    }
}
