//! Flush: writes changed metadata in an order that a crash cannot break. Order on disk:
//!
//! | level | what                                     | because                                                       |
//! |-------|------------------------------------------|---------------------------------------------------------------|
//! | 0     | the mark in the header (`mark`)          | what a crash leaves is looked through before it is written to |
//! | 1     | clusters, the file's length              | nothing on disk points to the clusters                        |
//! | 2     | the BAT                                  | a cluster that is pointed to holds its data                   |
//! | 3     | clusters that no entry names any more    | whoever takes one of them is not overwritten by its old owner |
//! | 4     | bitmaps, the mark taken back (`close`)   | an image without the mark is in order                         |
//!
//! A barrier stands between each two. A crash before level 2 leaves clusters that nothing names, which is a leak.

use super::Parallels;
use super::layout::{Header, InUse};
use crate::buf::Buf;
use crate::engine::Io;
use crate::error::Result;
use crate::format::HostOffset;
use crate::graph::driver::Role;
use crate::intent::{Fua, Label, Preallocation};

impl Parallels {
    /// Makes everything durable that completed before.
    pub(super) async fn flush_all(&self, io: &Io) -> Result<()> {
        let covered = self.changes.get();
        self.commit(io).await?;
        let unnamed = self.unnamed.take();
        let flushed = io.flush("parallels.flush", io.child(Role::File)).await;
        if let Err(error) = flushed {
            self.unnamed.borrow_mut().extend(unnamed);
            return Err(error);
        }
        self.durable.set(self.durable.get().max(covered));
        if !unnamed.is_empty() {
            self.start_reclaim(io, unnamed);
        }
        Ok(())
    }

    /// Writes all changed slices. They are not durable yet.
    pub(super) async fn commit(&self, io: &Io) -> Result<()> {
        let _one_at_a_time = self.commits.enter(&io.shared().tasks).await;
        // Both are taken at one instant: these slices no longer name these clusters.
        let slices = self.bat.borrow_mut().take_dirty();
        let freed = self.freed.take();
        let result = self.write_slices(io, slices).await;
        let mut bat = self.bat.borrow_mut();
        match &result {
            Ok(()) => {
                bat.written();
                self.unnamed.borrow_mut().extend(freed);
            }
            Err(_) => {
                bat.failed();
                self.freed.borrow_mut().extend(freed);
            }
        }
        result
    }

    async fn write_slices(&self, io: &Io, slices: Vec<(HostOffset, Buf)>) -> Result<()> {
        let file = io.child(Role::File);
        if slices.is_empty() {
            return Ok(());
        }
        // Clusters hold their data durably before the BAT names them.
        io.flush("parallels.flush/before_bat", file).await?;
        for (at, mut bytes) in slices {
            if at == HostOffset(0) {
                // The first slice begins with the header.
                let header = self.header().in_use_by_us().encode();
                bytes[..header.len()].copy_from_slice(&header);
            }
            io.write("parallels.flush/bat", file, at.0, bytes, Fua::No).await.1?;
        }
        Ok(())
    }

    pub(super) async fn write_header(&self, io: &Io, label: Label, header: &Header) -> Result<()> {
        let bytes = Buf::from(&header.encode()[..]);
        io.write(label, io.child(Role::File), 0, bytes, Fua::No).await.1
    }

    /// Writes out everything, and takes back the mark.
    pub(super) async fn close_marked(&self, io: &Io) -> Result<()> {
        let flushed = self.flush_all(io).await;
        // Whatever came of it: who punches holes needs the file.
        let none_left = || (self.reclaiming.get() == 0).then_some(());
        self.reclaimed.wait(&io.shared().tasks, none_left).await;
        flushed?;
        let kept = self.store_bitmaps(io).await?;
        let mut header = self.header();
        header.in_use = match (kept, header.in_use) {
            (true, _) | (false, InUse::Closed) => InUse::Closed,
            // As `qemu-img`, which keeps no extension in step: 0 says so.
            (false, _) => InUse::Old(0),
        };
        header.ext_off = if kept { header.ext_off } else { 0 };
        let file = io.child(Role::File);
        let end = self.geometry.place_of(self.space.borrow().end());
        // The file ends with its last cluster, and holds all of it. A device has its length.
        if io.len(file) != end && io.starts_as_zeroes(file) {
            io.set_len(file, end, Preallocation::Off).await?;
        }
        io.flush("parallels.close/before_header", file).await?;
        self.write_header(io, "parallels.close/header", &header).await?;
        io.flush("parallels.close", file).await
    }
}
