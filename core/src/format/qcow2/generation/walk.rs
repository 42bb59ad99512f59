//! Walks through what L1 tables reach: counting it, and renewing the flags that say what is counted once.

use super::super::flush::merged;
use super::super::layout::{HostOffset, L1Entry, L2Entry};
use super::super::lookup::be_u64;
use super::super::{Qcow2, Qcow2Error};
use super::Next;
use super::not_counted;
use super::window::Window;
use crate::buf::Buf;
use crate::engine::Io;
use crate::engine::task::join_all;
use crate::error::Result;
use crate::graph::driver::Role;
use crate::intent::Fua;

/// Bytes of L2 tables that are read at once, unless one is larger.
const READ_LEN: u64 = 1 << 20;

/// Which way a reference counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Raise,
    Lower,
}

/// An L2 table, and which entry of the L1 table names it.
struct Table {
    l1_index: usize,
    at: HostOffset,
    bytes: Buf,
}

impl Qcow2 {
    /// Counts every reference of an L1 table, those of its L2 tables included, once more or once less.
    pub(super) async fn count_references(
        &self,
        io: &Io,
        l1: &[u64],
        window: &mut Window,
        step: Step,
    ) -> Result<()> {
        let mut next = 0;
        while let Some(tables) = self.read_tables(io, l1, &mut next).await? {
            for table in tables {
                self.count_table(&table, window, step).map_err(|fault| self.fail(fault))?;
            }
        }
        Ok(())
    }

    fn count_table(&self, table: &Table, window: &mut Window, step: Step) -> Result<(), Qcow2Error> {
        let bits = self.geometry.cluster_bits;
        window.step(table.at.0 >> bits.bits(), step)?;
        for entry in table.bytes.chunks_exact(self.geometry.l2_entry_len) {
            let raw = be_u64(entry, 0);
            if raw == 0 {
                continue;
            }
            let Some((at, len)) = L2Entry::parse(raw, &self.geometry.rules)?.reference(bits) else {
                continue;
            };
            let (first, last) = (at.0 >> bits.bits(), (at.0 + len - 1) >> bits.bits());
            for cluster in first..=last {
                window.step(cluster, step)?;
            }
        }
        Ok(())
    }

    /// Makes the flags of the next L1 table, and of the L2 tables that it names, say which clusters of the window are
    /// counted once. An L2 table that changes is written to a place of its own.
    pub(super) async fn renew_flags(&self, io: &Io, window: &mut Window, next: &mut Next) -> Result<()> {
        let bits = self.geometry.cluster_bits.bits();
        let mut index = 0;
        loop {
            let tables = self.read_tables(io, &next.l1, &mut index).await?;
            let Some(tables) = tables else { return Ok(()) };
            let mut writes = Vec::new();
            for mut table in tables {
                let own = next.layout.l2_tables();
                let replaced = own.contains(&(table.at.0 >> bits));
                if !self.renew_table(&mut table.bytes, window).map_err(|fault| self.fail(fault))? {
                    if let Some(count) = window.count(table.at.0 >> bits).filter(|_| !replaced) {
                        next.l1[table.l1_index] =
                            L1Entry::Table { at: table.at, copied: count == 1 }.encode();
                    }
                    continue;
                }
                if !replaced {
                    let place = next.layout.l2_tables().start + next.replaced.len() as u64;
                    window.use_fresh(place, next.moved_each).map_err(|fault| self.fail(fault))?;
                    next.replaced.push(table.at);
                    table.at = HostOffset(place << bits);
                    let copied = next.moved_each == 1;
                    next.l1[table.l1_index] = L1Entry::Table { at: table.at, copied }.encode();
                }
                writes.push((table.at, table.bytes));
            }
            let file = io.child(Role::File);
            let writes = merged(writes)
                .into_iter()
                .map(|(at, bytes)| io.write("qcow2.generation/l2_table", file, at.0, bytes, Fua::No));
            for (_, result) in join_all(writes).await {
                result?;
            }
        }
    }

    /// Renews the flags of one L2 table; tells whether any was wrong.
    fn renew_table(&self, bytes: &mut [u8], window: &Window) -> Result<bool, Qcow2Error> {
        let bits = self.geometry.cluster_bits.bits();
        let mut changed = false;
        for entry in bytes.chunks_exact_mut(self.geometry.l2_entry_len) {
            let raw = be_u64(entry, 0);
            if raw == 0 {
                continue;
            }
            let parsed = L2Entry::parse(raw, &self.geometry.rules)?;
            let Some(host) = parsed.host() else { continue };
            let Some(count) = window.count(host.0 >> bits) else { continue };
            if count == 0 {
                return Err(not_counted(host));
            }
            if parsed.copied() != (count == 1) {
                entry[..8].copy_from_slice(
                    &parsed.with_copied(count == 1).encode(&self.geometry.rules).to_be_bytes(),
                );
                changed = true;
            }
        }
        Ok(changed)
    }

    /// Reads the next L2 tables of an L1 table from entry `next` on; `None` at its end.
    async fn read_tables(&self, io: &Io, l1: &[u64], next: &mut usize) -> Result<Option<Vec<Table>>> {
        let (file, cluster_size) = (io.child(Role::File), self.geometry.cluster_size);
        let at_once = (READ_LEN / cluster_size).clamp(1, 64) as usize;
        let file_len = io.len(file);
        let mut places = Vec::with_capacity(at_once);
        while places.len() < at_once && *next < l1.len() {
            let entry =
                L1Entry::parse(l1[*next], self.geometry.cluster_bits).map_err(|fault| self.fail(fault))?;
            if let L1Entry::Table { at, .. } = entry {
                if at.0 >= file_len {
                    let table = "an L2 table";
                    return Err(self.fail(Qcow2Error::BeyondEnd { table, at, file_len }));
                }
                places.push((*next, at));
            }
            *next += 1;
        }
        if places.is_empty() {
            return Ok(None);
        }
        let reads = places
            .iter()
            .map(|(_, at)| io.read_bytes("qcow2.generation/l2_table", file, at.0, cluster_size as usize));
        let read = join_all(reads).await.into_iter().collect::<Result<Vec<_>>>()?;
        let tables = places.into_iter().zip(read);
        Ok(Some(tables.map(|((l1_index, at), bytes)| Table { l1_index, at, bytes }).collect()))
    }
}
