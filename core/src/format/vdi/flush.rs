//! Flush: writes changed metadata in an order that a crash cannot break.
//!
//! | level | what                                              | because                                                |
//! |-------|---------------------------------------------------|--------------------------------------------------------|
//! | 0     | blocks, the file's length, the count in the header | nothing on disk points to the blocks                   |
//! | 1     | the block map                                     | a block that is pointed to holds its data, and is counted |
//!
//! A barrier stands between the two. A crash before level 1 leaves a count that is too high, which is a leak.

use super::Vdi;
use crate::buf::Buf;
use crate::engine::Io;
use crate::error::Result;
use crate::format::HostOffset;
use crate::graph::driver::Role;
use crate::intent::{Fua, Preallocation};

impl Vdi {
    /// Writes all changed metadata. The last level is not durable yet.
    pub(super) async fn commit(&self, io: &Io) -> Result<()> {
        let _one_at_a_time = self.commits.enter(&io.shared().tasks).await;
        if self.header_dirty.get() {
            self.write_header(io).await?;
        }
        let slices = self.map.borrow_mut().take_dirty();
        if slices.is_empty() {
            return Ok(());
        }
        let result = self.write_map(io, slices).await;
        match &result {
            Ok(()) => self.map.borrow_mut().written(),
            Err(_) => self.map.borrow_mut().failed(),
        }
        result
    }

    /// Writes the header, which counts at least the blocks that the map is about to name, and has the file hold all of
    /// each: a part of a block is no block to others.
    async fn write_header(&self, io: &Io) -> Result<()> {
        let file = io.child(Role::File);
        let header = self.header();
        self.header_dirty.set(false);
        let end = header.place_of(header.allocated).0;
        let written = async {
            if io.len(file) < end {
                io.set_len(file, end, Preallocation::Off).await?;
            }
            let bytes = Buf::from(&header.encode()[..]);
            io.write("vdi.flush/header", file, 0, bytes, Fua::No).await.1
        };
        let result = written.await;
        if result.is_err() {
            self.header_dirty.set(true);
        }
        result
    }

    async fn write_map(&self, io: &Io, slices: Vec<(HostOffset, Buf)>) -> Result<()> {
        let file = io.child(Role::File);
        // Blocks and their count are durable before the map names them.
        io.flush("vdi.flush/before_block_map", file).await?;
        for (at, bytes) in slices {
            io.write("vdi.flush/block_map", file, at.0, bytes, Fua::No).await.1?;
        }
        Ok(())
    }
}

