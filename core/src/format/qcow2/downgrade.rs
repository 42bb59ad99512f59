//! Downgrade: a version 3 image becomes a version 2 one. Source: \[qcow2\] "Header", "Standard Cluster Descriptor".
//!
//! Version 2 has no entry that says zero. Where nothing is below, an entry that says nothing reads the same; above a
//! backing file, a cluster of zeros takes its place. The disk's entries change as a guest's writes change them. Those of
//! snapshots are written where they are, in tables that several snapshots may share:
//!
//! Order on disk: clusters of zeros and their refcounts, a barrier, the L2 tables of snapshots, a barrier, the header; what
//! the old entries kept is given up like any freed cluster. All that a crash in between leaves is a version 3 image that
//! reads as before, and leaked clusters.

use std::collections::BTreeMap;

use super::layout::{
    COMPRESSED, GuestOffset, HostOffset, Incompatible, L1Entry, L2Entry, Snapshot, extension_kind,
};
use super::lookup::be_u64;
use super::open::metadata_clusters;
use super::refcount::Freed;
use super::stages::Stages;
use super::{Qcow2, Qcow2Error};
use crate::buf::Buf;
use crate::compute::Codec;
use crate::engine::Io;
use crate::error::Result;
use crate::graph::driver::{Access, Mapping, Ready, Role};
use crate::intent::{Fua, ZeroFlags};

/// Bytes of zeros that are written at once.
const ZEROS_LEN: u64 = 1 << 20;

/// L2 tables of snapshots that are changed between two barriers.
const TABLES_MAX: usize = 64;

/// An L2 table that snapshots name.
struct Named {
    l1_index: usize,
    /// L1 tables that name it, the active one included.
    times: u64,
}

/// An L2 table as it is to be written.
struct Expanded {
    at: HostOffset,
    bytes: Buf,
    times: u64,
    /// Clusters of zeros that its entries name from then on.
    fresh: Vec<HostOffset>,
    /// Clusters that its entries name no longer.
    freed: Vec<HostOffset>,
}

impl Qcow2 {
    pub(super) async fn downgrade(&self, io: &Io, stages: &Stages) -> Result<()> {
        let header = self.header();
        let refuse = |text: &str| Err(self.fail(Qcow2Error::Option(text.into())));
        if header.refcount_width.bits() != 16 {
            return refuse("compat=0.10 requires refcount_bits=16");
        }
        if header.has(Incompatible::DATA_FILE) {
            return refuse("Cannot downgrade an image with a data file");
        }
        let snapshots = self.snapshots(io, io.child(Role::File)).await?;
        for snapshot in &snapshots {
            let other_size = snapshot.disk_size.is_some_and(|size| size != header.size);
            if snapshot.vm_state_len != 0 || other_size {
                return refuse("Internal snapshots prevent downgrade of image");
            }
        }
        let incompatible = header.incompatible & !(Incompatible::DIRTY | Incompatible::COMPRESSION);
        if incompatible != 0 {
            let text = format!("Cannot downgrade an image with incompatible features {incompatible:#x} set");
            return refuse(&text);
        }
        if header.extension(extension_kind::BITMAPS).is_some() {
            return refuse("Cannot downgrade an image with dirty bitmaps");
        }
        if header.compression != Codec::Zlib && self.holds_compressed(io, &snapshots).await? {
            return refuse(
                "Cannot downgrade an image with zstd compression type and existing compressed clusters",
            );
        }
        // From here on nothing new is said that version 2 cannot say.
        self.writes_version.set(2);
        let active = self.l1.borrow().entries.len() as u64;
        let all = active + snapshots.iter().map(|snapshot| u64::from(snapshot.l1_entries)).sum::<u64>();
        self.expand_zeros(io, &|table| stages.tell(table..=table, all)).await?;
        self.flush_all(io).await?;
        self.expand_snapshots(io, &snapshots).await?;
        stages.tell(active + 1..=all, all);
        self.change_header(io, |header| {
            header.version = 2;
            (header.incompatible, header.compatible, header.autoclear) = (0, 0, 0);
            header.compression = Codec::Zlib;
            header.more.clear();
            header.extensions.retain(|extension| extension.kind != extension_kind::FEATURE_NAMES);
        })
        .await
    }

    /// Whether the disk, or a snapshot, has a compressed cluster: version 2 knows zlib alone. The reference looks at the disk
    /// alone, and makes a snapshot's clusters unreadable.
    async fn holds_compressed(&self, io: &Io, snapshots: &[Snapshot]) -> Result<bool> {
        let (end, mut at) = (self.header.borrow().size, 0);
        while at < end {
            let extent = self.extent(GuestOffset(at), end - at, Access::Read)?;
            match extent.mapping {
                Mapping::Miss(miss) => self.load_missing(io, miss).await?,
                Mapping::Special { compressed: true } => return Ok(true),
                _ => at += extent.len,
            }
        }
        let (file, len) = (io.child(Role::File), self.geometry.cluster_size as usize);
        for table in self.tables_of_snapshots(io, snapshots).await?.into_keys() {
            let bytes = io.read_bytes("qcow2.downgrade/l2_table", file, table, len).await?;
            if bytes.chunks_exact(self.geometry.l2_entry_len).any(|entry| be_u64(entry, 0) & COMPRESSED != 0)
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Replaces clusters of zeros by nothing where nothing reads as zeros, and by zeros elsewhere.
    ///
    /// Calls `tell` with the number of each entry of the L1 table that is done with, counted from 1.
    async fn expand_zeros(&self, io: &Io, tell: &dyn Fn(u64)) -> Result<()> {
        let end = self.header.borrow().size;
        let (entries, covered) =
            (self.l1.borrow().entries.len() as u64, self.geometry.cluster_size << self.geometry.l2_bits);
        let mut told = 0;
        let below = self.end_of_backing(io);
        let unit = self.geometry.cluster_size;
        let mut at = 0;
        while at < end {
            let extent = self.extent(GuestOffset(at), end - at, Access::Read)?;
            match extent.mapping {
                Mapping::Miss(miss) => self.load_missing(io, miss).await?,
                Mapping::Zero { .. } => {
                    let until = at + extent.len;
                    let shows = below.clamp(at, until);
                    self.zeros_as_data(io, at, shows).await?;
                    if shows < until {
                        let node = io.shared().graph.node(io.node());
                        let tasks = &io.shared().tasks;
                        let _claim = node.claims.take(tasks, shows, until.next_multiple_of(unit)).await;
                        self.forget_zeros(io, GuestOffset(shows), until - shows).await?;
                    }
                    at = until;
                }
                _ => at += extent.len,
            }
            if at < end {
                (told + 1..=at / covered).for_each(tell);
                told = at / covered;
            }
        }
        (told + 1..=entries).for_each(tell);
        Ok(())
    }

    async fn zeros_as_data(&self, io: &Io, start: u64, end: u64) -> Result<()> {
        let mut at = start;
        while at < end {
            let len = (end - at).min(ZEROS_LEN) as usize;
            io.write("qcow2.downgrade/data", io.node(), at, Buf::zeroed(len), Fua::No).await.1?;
            at += len as u64;
        }
        Ok(())
    }

    /// From this guest offset on, a whole cluster, nothing shows where an entry says nothing.
    fn end_of_backing(&self, io: &Io) -> u64 {
        let len = io.try_child(Role::Backing).map_or(0, |backing| io.len(backing));
        len.next_multiple_of(self.geometry.cluster_size)
    }

    /// The same for snapshots.
    async fn expand_snapshots(&self, io: &Io, snapshots: &[Snapshot]) -> Result<()> {
        if snapshots.is_empty() {
            return Ok(());
        }
        let node = io.shared().graph.node(io.node());
        let _still = self.stand_still(io, &node).await?;
        let tables = self.tables_of_snapshots(io, snapshots).await?;
        let mut batch = Vec::new();
        for (at, named) in &tables {
            match self.expand_table(io, HostOffset(*at), named).await {
                Ok(None) => {}
                Ok(Some(table)) => batch.push(table),
                Err(error) => {
                    self.let_go(&batch);
                    return Err(error);
                }
            }
            if batch.len() == TABLES_MAX {
                self.write_expanded(io, std::mem::take(&mut batch)).await?;
            }
        }
        self.write_expanded(io, batch).await
    }

    /// The L2 tables that snapshots name, in the order of the file, and how often.
    async fn tables_of_snapshots(&self, io: &Io, snapshots: &[Snapshot]) -> Result<BTreeMap<u64, Named>> {
        let bits = self.geometry.cluster_bits;
        let mut tables: BTreeMap<u64, Named> = BTreeMap::new();
        let mut other = {
            let (header, refcounts) = (self.header.borrow(), self.refcounts.borrow());
            metadata_clusters(&header, &[], &refcounts.table).map_err(|fault| self.fail(fault))?
        };
        for snapshot in snapshots {
            let first = snapshot.l1_offset.0 >> bits.bits();
            other.extend(first..first + bits.count(u64::from(snapshot.l1_entries) * 8));
        }
        for snapshot in snapshots {
            let l1 = self.snapshot_l1(io, snapshot).await?;
            for (l1_index, raw) in l1.into_iter().enumerate() {
                let L1Entry::Table { at, .. } =
                    L1Entry::parse(raw, bits).map_err(|fault| self.fail(fault))?
                else {
                    continue;
                };
                let named = tables.entry(at.0).or_insert(Named { l1_index, times: 0 });
                // What an entry is about must be one place of the disk.
                if named.l1_index != l1_index || other.contains(&(at.0 >> bits.bits())) {
                    let l1 = snapshot.l1_offset;
                    return Err(self.fail(Qcow2Error::L2TableShared { l1, at }));
                }
                named.times += 1;
            }
        }
        for raw in &self.l1.borrow().entries {
            if let Ok(L1Entry::Table { at, .. }) = L1Entry::parse(*raw, bits)
                && let Some(named) = tables.get_mut(&at.0)
            {
                named.times += 1;
            }
        }
        Ok(tables)
    }

    /// An L2 table without entries that say zero; none where it has none. The zeros that it needs are written, and counted
    /// in memory.
    async fn expand_table(&self, io: &Io, at: HostOffset, named: &Named) -> Result<Option<Expanded>> {
        let (file, len) = (io.child(Role::File), self.geometry.cluster_size);
        if at.0 >= io.len(file) {
            let table = "an L2 table";
            return Err(self.fail(Qcow2Error::BeyondEnd { table, at, file_len: io.len(file) }));
        }
        let bytes = io.read_bytes("qcow2.downgrade/l2_table", file, at.0, len as usize).await?;
        let entries = len / self.geometry.l2_entry_len as u64;
        let first = named.l1_index as u64 * entries * len;
        let below = self.end_of_backing(io);
        let mut table = Expanded { at, bytes, times: named.times, fresh: Vec::new(), freed: Vec::new() };
        let mut changed = false;
        for index in 0..entries {
            let place = index as usize * self.geometry.l2_entry_len;
            let guest = GuestOffset(first + index * len);
            let old = L2Entry::parse(be_u64(&table.bytes, place), &self.geometry.rules)
                .map_err(|fault| self.fail(fault.in_l2_slice(at, guest)))?;
            let L2Entry::Zero { host, .. } = old else { continue };
            if !changed {
                self.check_counted(io, at, named.times).await?;
            }
            changed = true;
            let new = match guest.0 < below {
                false => L2Entry::Unallocated,
                true => match self.cluster_of_zeros(io, named.times).await {
                    Ok(host) => {
                        table.fresh.push(host);
                        L2Entry::Standard { host, copied: false }
                    }
                    Err(error) => {
                        self.let_go(&[table]);
                        return Err(error);
                    }
                },
            };
            table.bytes[place..place + 8].copy_from_slice(&new.encode(&self.geometry.rules).to_be_bytes());
            table.freed.extend(host);
        }
        Ok(changed.then_some(table))
    }

    /// A table that counts as free, or as less often used than it is named, may be given to the zeros that it needs.
    async fn check_counted(&self, io: &Io, table: HostOffset, times: u64) -> Result<()> {
        let cluster = table.0 >> self.geometry.cluster_bits.bits();
        loop {
            let count = self.refcounts.borrow().count(cluster);
            match count.map_err(|fault| self.fail(fault))? {
                Ready::Yes(count) if count >= times => return Ok(()),
                Ready::Yes(_) => {
                    let what = "is an L2 table of as many snapshots as there are references,";
                    return Err(self.fail(Qcow2Error::NotCounted { at: table, what }));
                }
                Ready::Miss(miss) => self.load_missing(io, miss).await?,
            }
        }
    }

    /// A new cluster of zeros that counts as often as the table that is to name it.
    async fn cluster_of_zeros(&self, io: &Io, times: u64) -> Result<HostOffset> {
        let bits = self.geometry.cluster_bits;
        let at = self.reserve_cluster(io).await?.at;
        let child = io.child(self.geometry.data);
        let flags = ZeroFlags::default();
        let zeroed = io.write_zeroes("qcow2.downgrade/zeros", child, at.0, bits.size(), flags).await;
        let counted = match zeroed {
            Ok(()) => self.set_count(io, at, times).await,
            Err(error) => Err(error),
        };
        if counted.is_err() {
            self.refcounts.borrow_mut().give_back(at, 1);
        }
        counted.map(|()| at)
    }

    async fn set_count(&self, io: &Io, at: HostOffset, count: u64) -> Result<()> {
        let (cluster, bits) = (at.0 >> self.geometry.cluster_bits.bits(), self.header().refcount_width);
        if count > bits.max() {
            return Err(self.fail(Qcow2Error::RefcountFull { at, bits: bits.bits() }));
        }
        loop {
            let set = self.refcounts.borrow_mut().set(cluster, count);
            match set.map_err(|fault| self.fail(fault))? {
                Ready::Yes(()) => return Ok(()),
                Ready::Miss(miss) => self.load_missing(io, miss).await?,
            }
        }
    }

    /// Gives back the zeros of tables that were not written. Where their refcounts are out of reach, they are leaked.
    fn let_go(&self, tables: &[Expanded]) {
        let mut refcounts = self.refcounts.borrow_mut();
        for at in tables.iter().flat_map(|table| &table.fresh) {
            let cluster = at.0 >> self.geometry.cluster_bits.bits();
            if matches!(refcounts.set(cluster, 1), Ok(Ready::Yes(()))) {
                refcounts.give_back(*at, 1);
            }
        }
    }

    async fn write_expanded(&self, io: &Io, tables: Vec<Expanded>) -> Result<()> {
        if tables.is_empty() {
            return Ok(());
        }
        // Zeros are there and counted before an entry points to them.
        let ready = match self.commit(io).await {
            Ok(()) => self.barrier_for(io, "qcow2.downgrade/before_l2_tables").await,
            Err(error) => Err(error),
        };
        if ready.is_err() {
            self.let_go(&tables);
            return ready;
        }
        let (file, size) = (io.child(Role::File), self.geometry.cluster_size);
        for Expanded { at, bytes, times, freed, .. } in tables {
            io.write("qcow2.downgrade/l2_table", file, at.0, bytes, Fua::No).await.1?;
            // It was read when all that it held was on the disk.
            self.l2.borrow_mut().forget(at, size);
            // What the entries kept is given back behind a barrier, as all that is freed (`flush`).
            for _ in 0..times {
                freed.iter().for_each(|host| self.free_later(*host, 1, Freed::Other));
            }
        }
        Ok(())
    }
}
