//! Flush: writes changed entries and bits in an order that a crash cannot break.
//!
//! | level | what                                            | because                                              |
//! |-------|-------------------------------------------------|------------------------------------------------------|
//! | 0     | blocks, zeros, the file's length                | nothing on disk points to them                       |
//! | 1     | a log entry with the sectors of level 3         | what is pointed to is durable                        |
//! | 2     | for the first entry, the headers that name the log | the entry is whole                                |
//! | 3     | sectors of sector bitmaps and of the BAT        | replay makes whole what a crash tears                |
//!
//! A barrier stands between two levels, and before the next entry: until then this one must be there. What does not fit in
//! one entry takes several rounds, bitmaps first: no bit is looked at before the entry of its block says so. A crash before
//! level 3 leaves blocks that nothing points to, or a log that is replayed.

use super::Vhdx;
use crate::buf::Buf;
use crate::engine::Io;
use crate::error::Result;
use crate::format::HostOffset;
use crate::graph::driver::Role;
use crate::intent::Fua;

impl Vhdx {
    /// Makes everything durable that completed before.
    pub(super) async fn flush_all(&self, io: &Io) -> Result<()> {
        let covered = self.changes.get();
        self.commit(io).await?;
        io.flush("vhdx.flush", io.child(Role::File)).await?;
        self.durable.set(self.durable.get().max(covered));
        Ok(())
    }

    /// Writes all changed sectors. The last level is not durable yet.
    pub(super) async fn commit(&self, io: &Io) -> Result<()> {
        let _one_at_a_time = self.commits.enter(&io.shared().tasks).await;
        let mut slices = self.cache.borrow_mut().take_dirty();
        let in_bat = |at: HostOffset| (self.bat.at..self.bat.end()).contains(&at.0);
        slices.sort_by_key(|(at, _)| (in_bat(*at), *at));
        let result = self.write_logged(io, slices).await;
        let mut cache = self.cache.borrow_mut();
        match &result {
            Ok(()) => cache.written(),
            Err(_) => cache.failed(),
        }
        result
    }

    /// Writes sectors of metadata, each with what was there before or what is to be there whenever the power fails.
    pub(super) async fn write_logged(&self, io: &Io, mut sectors: Vec<(HostOffset, Buf)>) -> Result<()> {
        let file = io.child(Role::File);
        // The file holds all of each block: a part of a block is no block to others.
        if !sectors.is_empty() {
            self.lengthening.cover(io, file, || self.space.borrow().end().unwrap_or(0)).await?;
        }
        while !sectors.is_empty() {
            let rest = sectors.split_off(sectors.len().min(self.sectors_per_entry()));
            // What these sectors point to is durable, and what the entry before changed is in its place.
            io.flush("vhdx.flush/before_entry", file).await?;
            self.write_entry(io, &sectors).await?;
            for (at, bytes) in sectors {
                io.write("vhdx.flush/in_place", file, at.0, bytes, Fua::No).await.1?;
            }
            sectors = rest;
        }
        Ok(())
    }
}
