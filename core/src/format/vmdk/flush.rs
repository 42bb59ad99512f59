//! Flush: writes changed grain tables in an order that a crash cannot break.
//!
//! | level | what                                   | because                                                 |
//! |-------|----------------------------------------|---------------------------------------------------------|
//! | 0     | grains                                 | nothing on disk points to the grains                    |
//! | 1     | grain tables                           | a grain that is pointed to holds its data               |
//! | 2     | the copies of the redundant directory  | of two tables that differ, the first one is right       |
//!
//! A barrier stands between two levels. A crash before level 1 leaves grains that nothing points to; one before level 2
//! leaves copies that the next writer brings in step (`begin`).

use super::sparse::Sparse;
use super::{Part, Vmdk};
use crate::buf::Buf;
use crate::engine::Io;
use crate::error::Result;
use crate::format::HostOffset;
use crate::intent::Fua;

/// Changed grain tables of one extent.
struct Changed<'a> {
    sparse: &'a Sparse,
    tables: Vec<(HostOffset, Buf)>,
}

impl Vmdk {
    /// Makes everything durable that completed before.
    pub(super) async fn flush_all(&self, io: &Io) -> Result<()> {
        let covered = self.changes.get();
        self.commit(io).await?;
        for part in &self.parts {
            if let Some(file) = io.try_child(part.role) {
                io.flush("vmdk.flush", file).await?;
            }
        }
        self.durable.set(self.durable.get().max(covered));
        Ok(())
    }

    /// Writes all changed tables. The last level is not durable yet.
    pub(super) async fn commit(&self, io: &Io) -> Result<()> {
        let _one_at_a_time = self.commits.enter(&io.shared().tasks).await;
        let mut changed = Vec::new();
        for sparse in self.parts.iter().filter_map(Part::sparse) {
            let tables = sparse.tables.borrow_mut().take_dirty();
            if !tables.is_empty() {
                changed.push(Changed { sparse, tables });
            }
        }
        let result = self.write_levels(io, &changed).await;
        for Changed { sparse, .. } in &changed {
            let mut tables = sparse.tables.borrow_mut();
            match &result {
                Ok(()) => tables.written(),
                Err(_) => tables.failed(),
            }
        }
        result
    }

    async fn write_levels(&self, io: &Io, changed: &[Changed<'_>]) -> Result<()> {
        for Changed { sparse, .. } in changed {
            let file = io.child(sparse.role);
            // Grains are durable before a table points to them.
            io.flush("vmdk.flush/before_grain_tables", file).await?;
        }
        for Changed { sparse, tables } in changed {
            for (at, bytes) in tables {
                let bytes = Buf::from(&bytes[..]);
                io.write("vmdk.flush/grain_table", io.child(sparse.role), at.0, bytes, Fua::No).await.1?;
            }
        }
        for Changed { sparse, tables } in changed.iter().filter(|changed| !changed.sparse.copies.is_empty()) {
            let file = io.child(sparse.role);
            // Tables are durable before their copies say the same.
            io.flush("vmdk.flush/before_redundant_tables", file).await?;
            for (at, bytes) in tables {
                if let Some(copy) = self.copy_place(sparse, *at)? {
                    let bytes = Buf::from(&bytes[..]);
                    io.write("vmdk.flush/redundant_table", file, copy.0, bytes, Fua::No).await.1?;
                }
            }
        }
        Ok(())
    }
}
