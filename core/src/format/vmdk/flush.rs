//! Flush: writes changed grain tables in an order that a crash cannot break.
//!
//! Order on disk:
//!
//! | level | what                                        | because                                                     |
//! |-------|---------------------------------------------|-------------------------------------------------------------|
//! | 0     | grains, the mark of a writer (`begin`)      | nothing on disk points to the grains                        |
//! | 1     | grain tables                                | a grain that is pointed to holds its data                   |
//! | 2     | their copies in the redundant directory     | a copy is never newer than its table                        |
//!
//! A barrier stands between two levels. A crash before level 1 leaves grains that nothing points to. Within it, each entry is
//! the old or the new one. From then on until level 2 is durable, the mark says that tables and copies may differ, and the next
//! writer takes the table for right (`begin`).
//!
//! A flush is answered once the tables are durable: the copies have to be only before the mark goes.

use super::sparse::Sparse;
use super::{Part, Vmdk};
use crate::buf::Buf;
use crate::engine::Io;
use crate::error::Result;
use crate::format::HostOffset;
use crate::graph::driver::Role;
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
        let flushed = self.commit(io).await?;
        for part in self.parts.iter().filter(|part| !flushed.contains(&part.role)) {
            if let Some(file) = io.try_child(part.role) {
                io.flush("vmdk.flush", file).await?;
            }
        }
        self.durable.set(self.durable.get().max(covered));
        Ok(())
    }

    /// Writes all changed tables and their copies. Returns whose tables are durable; the others' are not yet, and no copy is.
    pub(super) async fn commit(&self, io: &Io) -> Result<Vec<Role>> {
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
                Ok(_) => tables.written(),
                Err(_) => tables.failed(),
            }
        }
        result
    }

    async fn write_levels(&self, io: &Io, changed: &[Changed<'_>]) -> Result<Vec<Role>> {
        for Changed { sparse, .. } in changed {
            // Grains are durable before a table points to them, and the mark is before a table differs from its copy.
            io.flush("vmdk.flush/before_grain_tables", io.child(sparse.role)).await?;
        }
        let mut copies = Vec::new();
        for Changed { sparse, tables } in changed {
            let file = io.child(sparse.role);
            for (at, bytes) in tables {
                let (bytes, copy) = (Buf::from(&bytes[..]), self.copy_place(sparse, *at)?);
                let (bytes, written) = io.write("vmdk.flush/grain_table", file, at.0, bytes, Fua::No).await;
                written?;
                copies.extend(copy.map(|copy| (file, copy, bytes)));
            }
        }
        let mut flushed = Vec::new();
        for Changed { sparse, .. } in changed.iter().filter(|changed| !changed.sparse.copies.is_empty()) {
            // A table is durable before its copy changes.
            io.flush("vmdk.flush/before_redundant_tables", io.child(sparse.role)).await?;
            flushed.push(sparse.role);
        }
        for (file, copy, bytes) in copies {
            io.write("vmdk.flush/redundant_table", file, copy.0, bytes, Fua::No).await.1?;
        }
        Ok(flushed)
    }
}
