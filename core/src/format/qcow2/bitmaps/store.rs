//! Storing bitmaps when the image is closed.
//!
//! Order on disk: refcounts of the new clusters, bits, tables and the new directory, in which nothing is in use; a barrier;
//! the header that names the directory; a barrier; then the old directory, tables and bits are given back. A crash before
//! the header is written leaves the old directory, whose bitmaps are in use and count as inconsistent; after it, the new.

use super::directory::{self, Entry, Extension};
use super::{Bitmaps, DirtyBitmap};
use crate::buf::Buf;
use crate::engine::Io;
use crate::error::Result;
use crate::format::qcow2::layout::{Autoclear, Extension as HeaderExtension, HostOffset, extension_kind};
use crate::format::qcow2::lookup::be_u64;
use crate::format::qcow2::refcount::Freed;
use crate::format::qcow2::{Qcow2, Qcow2Error};
use crate::graph::driver::Role;
use crate::intent::Fua;

/// Bits 9 to 55 of a bitmap table entry: the place of a cluster.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Entry of a table: all bits of the cluster are set.
const ALL_ONES: u64 = 1;

impl Qcow2 {
    /// Writes the bitmaps that differ from those in the file, and a directory in which none is in use.
    pub(in crate::format::qcow2) async fn store_bitmaps(&self, io: &Io) -> Result<()> {
        let Bitmaps { mut all, directory, removed } = std::mem::take(&mut *self.dirty_bitmaps.borrow_mut());
        if all.is_empty() && directory.is_none() {
            return Ok(());
        }
        // Clusters that only the old directory leads to.
        let mut old: Vec<(u64, u64)> = directory.into_iter().collect();
        let mut tables = removed;
        for bitmap in &mut all {
            if bitmap.changed {
                tables.extend(bitmap.stored.take());
                bitmap.stored = Some(self.store_bits(io, bitmap).await?);
            }
        }
        for (at, len) in tables {
            old.extend(self.clusters_of_table(io, at, len).await?);
        }
        let entries: Vec<Entry> = all
            .iter()
            .map(|bitmap| {
                let (table_at, table_len) = bitmap.stored.expect("it is stored");
                Entry { table_at, table_len, bitmap: bitmap.about.clone() }
            })
            .collect();
        let bytes = directory::encode(&entries);
        let extension = match entries.len() {
            0 => None,
            count => {
                let at = self.write_new(io, &bytes).await?;
                Some(Extension { count: count as u32, len: bytes.len() as u64, at: at.0 })
            }
        };
        self.commit(io).await?;
        self.change_header(io, |header| {
            header.extensions.retain(|extension| extension.kind != extension_kind::BITMAPS);
            header.autoclear &= !Autoclear::BITMAPS;
            if let Some(extension) = extension {
                let data = extension.encode();
                header.extensions.push(HeaderExtension { kind: extension_kind::BITMAPS, data });
                header.autoclear |= Autoclear::BITMAPS;
            }
        })
        .await?;
        let bits = self.geometry.cluster_bits;
        for (at, len) in old {
            self.free_later(HostOffset(at), bits.count(len), Freed::Other);
        }
        Ok(())
    }

    /// Writes the bits of one bitmap and its table: its place and length.
    async fn store_bits(&self, io: &Io, bitmap: &DirtyBitmap) -> Result<(u64, u32)> {
        let bits = bitmap.usable().map_err(|fault| self.fail(fault))?;
        let (cluster, total) = (self.geometry.cluster_size, bits.count().div_ceil(8));
        let mut table = Vec::new();
        let mut bytes = vec![0; cluster as usize];
        for first in (0..total).step_by(cluster as usize) {
            let entry = match bits.alike(first * 8..(first + cluster) * 8) {
                Some(false) => 0,
                Some(true) => ALL_ONES,
                None => {
                    bits.copy_out(first, &mut bytes);
                    self.write_new(io, &bytes).await?.0
                }
            };
            table.extend(entry.to_be_bytes());
        }
        let len = (table.len() / 8) as u32;
        match len {
            0 => Err(self.fail(Qcow2Error::Bitmaps { problem: "a disk without length has no bitmaps" })),
            _ => Ok((self.write_new(io, &table).await?.0, len)),
        }
    }

    /// Writes bytes to clusters that nothing points to yet.
    async fn write_new(&self, io: &Io, bytes: &[u8]) -> Result<HostOffset> {
        let bits = self.geometry.cluster_bits;
        let at = self.reserve_run(io, bits.count(bytes.len() as u64)).await?;
        // Whole clusters, so that the file holds all that is counted.
        let mut whole = Buf::zeroed((bits.count(bytes.len() as u64) << bits.bits()) as usize);
        whole[..bytes.len()].copy_from_slice(bytes);
        io.write("qcow2.bitmaps/store", io.child(Role::File), at.0, whole, Fua::No).await.1?;
        Ok(at)
    }

    /// The clusters of a table in the file, and those that it names.
    async fn clusters_of_table(&self, io: &Io, at: u64, len: u32) -> Result<Vec<(u64, u64)>> {
        let file = io.child(Role::File);
        let cluster = self.geometry.cluster_size;
        let bytes = u64::from(len) * 8;
        if bytes > super::BITMAP_LEN_MAX
            || at.checked_add(bytes).is_none_or(|end| end > io.len(file) + cluster)
        {
            // An inconsistent bitmap whose table is nowhere leaks nothing.
            return Ok(Vec::new());
        }
        let table = io.read_bytes("qcow2.bitmaps/old_table", file, at, bytes as usize).await?;
        let entries = table.chunks_exact(8).map(|raw| be_u64(raw, 0) & OFFSET).filter(|at| *at != 0);
        let mut clusters: Vec<_> = entries.map(|at| (at, cluster)).collect();
        clusters.push((at, bytes));
        Ok(clusters)
    }
}
