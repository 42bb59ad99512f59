//! Compressed clusters: packed byte after byte, read and written with one codec call each.
//! Source: \[qcow2\] "Compressed Clusters Descriptor".
//!
//! Order on disk of a compressed write: the bytes, then the refcounts of the clusters that they touch, then the L2
//! entry (`flush`). Several packed clusters share a host cluster, whose refcount counts them.

use super::layout::{ExtendedL2Entry, GuestOffset, HostOffset, L2Entry};
use super::refcount::{Freed, Refcounts};
use super::{Lock, Qcow2, Qcow2Error};
use crate::buf::{Buf, BufList};
use crate::compute::{Compute, ComputeError};
use crate::engine::Io;
use crate::error::Result;
use crate::filter::DebugEvent;
use crate::graph::driver::{Access, Mapping, Ready, Role};
use crate::intent::Fua;

impl Refcounts {
    /// Takes `len` bytes, at most a cluster, behind what was packed before where that fits.
    fn take_bytes(&mut self, len: u64) -> Result<Ready<HostOffset>, Qcow2Error> {
        let cluster_size = self.cluster_bits.size();
        let at = self.next_packed;
        let cluster = at >> self.cluster_bits.bits();
        let mut room = 0;
        if self.cluster_bits.offset_in(at) != 0 {
            match self.count(cluster)? {
                // A full count, or a cluster that was freed meanwhile, takes no more.
                Ready::Yes(count) if count == 0 || count >= self.width.max() => {}
                Ready::Yes(count) => {
                    room = cluster_size - self.cluster_bits.offset_in(at);
                    if room >= len {
                        let _ = self.set(cluster, count + 1)?;
                        self.next_packed = at + len;
                        return Ok(Ready::Yes(HostOffset(at)));
                    }
                }
                Ready::Miss(miss) => return Ok(Ready::Miss(miss)),
            }
        }
        let fresh = match self.take(1)? {
            Ready::Yes(taken) => taken.at.0,
            Ready::Miss(miss) => return Ok(Ready::Miss(miss)),
        };
        let start = if room > 0 && fresh == at + room {
            let Ready::Yes(count) = self.count(cluster)? else { unreachable!("counted above") };
            let _ = self.set(cluster, count + 1)?;
            at
        } else {
            fresh
        };
        self.next_packed = start + len;
        Ok(Ready::Yes(HostOffset(start)))
    }
}

impl Qcow2 {
    /// Reads a part of one compressed cluster.
    pub(super) async fn read_compressed(
        &self,
        io: &Io,
        offset: GuestOffset,
        data: &mut BufList,
    ) -> Result<()> {
        let (host, len) = loop {
            match self.compressed_at(offset)? {
                Ready::Yes(found) => break found,
                Ready::Miss(miss) => self.load_missing(io, miss).await?,
            }
        };
        let file = io.child(Role::File);
        io.event(DebugEvent::ReadCompressed).await;
        let packed = io.read_bytes("qcow2.decompress/read", file, host.0, len as usize).await?;
        let codec = self.header.borrow().compression;
        let cluster_size = self.geometry.cluster_size as usize;
        let in_cluster = self.geometry.cluster_bits.offset_in(offset.0) as usize;
        // A read of the whole cluster is decompressed where it is wanted.
        let whole = data.len_bytes() == cluster_size && data.windows().len() == 1;
        let plain = if whole { std::mem::take(data).into_single() } else { Buf::zeroed(cluster_size) };
        let work = Compute::Decompress { codec, packed, plain };
        let computed = io.compute("qcow2.decompress", work).await;
        match whole {
            true => *data = computed.output.into(),
            false => data.copy_in(0, &computed.output[in_cluster..]),
        }
        computed.result.map_err(|error| {
            let problem = format!("{error} ({codec:?})");
            self.fail(Qcow2Error::CompressedCluster { guest: offset, host, len, problem })
        })
    }

    fn compressed_at(&self, offset: GuestOffset) -> Result<Ready<(HostOffset, u32)>> {
        let super::layout::L1Entry::Table { at, .. } = self.l1_entry(self.l1_index(offset))? else {
            unreachable!("a compressed cluster has an L2 table")
        };
        let (slice, byte) = self.slice_of(at, self.l2_index(offset));
        if self.l2.borrow().find(slice).is_none() {
            return Ok(Ready::Miss(super::Missing::L2Slice.at(slice.0)));
        }
        let entry = self.read_entry(&super::write::EntryPlace { slice, byte }, offset)?;
        match entry.entry {
            L2Entry::Compressed { host, len } => Ok(Ready::Yes((host, len))),
            other => {
                let problem = format!("the entry changed to {other:?} while it was read");
                Err(self.fail(Qcow2Error::CompressedCluster {
                    guest: offset,
                    host: HostOffset(0),
                    len: 0,
                    problem,
                }))
            }
        }
    }

    /// Writes one cluster, or what there is of it at the end of the disk, in compressed form.
    pub(super) async fn write_cluster_compressed(
        &self,
        io: &Io,
        offset: GuestOffset,
        data: &mut BufList,
    ) -> Result<bool> {
        let cluster_size = self.geometry.cluster_size as usize;
        let mut plain = std::mem::take(data).into_single();
        let plain_len = plain.len();
        if plain_len < cluster_size {
            let mut padded = Buf::zeroed(cluster_size);
            padded[..plain_len].copy_from_slice(&plain);
            plain = padded;
        }
        let codec = self.header.borrow().compression;
        let work = Compute::Compress { codec, plain, limit: cluster_size };
        let mut computed = io.compute("qcow2.compress", work).await;
        drop(computed.input.split_off(plain_len));
        *data = computed.input.into();
        if let Err(ComputeError::Incompressible | ComputeError::Damaged) = computed.result {
            return Ok(false);
        }
        if self.pack_fresh_only && self.is_allocated(io, offset).await? {
            return Err(self.fail(Qcow2Error::Occupied { guest: offset }));
        }
        if self.locked.get() == Some(Lock::Watched) {
            self.dirty(offset.0, plain_len as u64);
        }
        let packed = computed.output;
        let len = packed.len();
        let host = loop {
            let taken = self.refcounts.borrow_mut().take_bytes(len as u64);
            match taken.map_err(|fault| self.fail(fault))? {
                Ready::Yes(host) => {
                    io.event(DebugEvent::ClusterAllocBytes).await;
                    break host;
                }
                Ready::Miss(miss) => self.load_missing(io, miss).await?,
            }
        };
        let entry = L2Entry::Compressed { host, len: len as u32 };
        let file = io.child(Role::File);
        io.event(DebugEvent::WriteCompressed).await;
        let result = match io.write("qcow2.compress/write", file, host.0, packed, Fua::No).await.1 {
            Ok(()) => self.publish_compressed(io, offset, entry).await,
            Err(error) => Err(error),
        };
        if result.is_err() {
            self.free_reference(entry, Freed::Other);
        }
        result.map(|()| true)
    }

    /// Whether the image keeps space for a cluster.
    async fn is_allocated(&self, io: &Io, offset: GuestOffset) -> Result<bool> {
        loop {
            match self.extent(offset, 1, Access::Read)?.mapping {
                Mapping::Miss(miss) => self.load_missing(io, miss).await?,
                mapping => {
                    return Ok(!matches!(
                        mapping,
                        Mapping::Zero { at: None } | Mapping::Backing { at: None }
                    ));
                }
            }
        }
    }

    async fn publish_compressed(&self, io: &Io, offset: GuestOffset, entry: L2Entry) -> Result<()> {
        io.event(DebugEvent::L2UpdateCompressed).await;
        loop {
            match self.own_entry(offset)? {
                Ready::Miss(miss) => self.load_missing(io, miss).await?,
                Ready::Yes(place) => {
                    let old = self.read_entry(&place, offset)?;
                    self.write_entry(&place, ExtendedL2Entry { entry, allocated: 0, zero: 0 });
                    self.free_reference(old.entry, Freed::Other);
                    return Ok(());
                }
            }
        }
    }
}
