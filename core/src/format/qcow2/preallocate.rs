//! Preallocation: space for a part of the disk, before anybody writes there.
//!
//! Order on disk: the host's space first, so that a full disk is found before anything refers to it; then entries, as of
//! any other write (`flush`): counted before they are pointed to.

use super::Qcow2;
use super::layout::{ExtendedL2Entry, GuestOffset, HostOffset, L2Entry};
use crate::engine::Io;
use crate::error::Result;
use crate::graph::driver::{Access, Mapping, Preallocate, Ready, Reservation, Role};
use crate::intent::{Preallocation, ZeroFlags};

impl Qcow2 {
    /// Allocates what is not allocated of `[start, end)`. Nobody else writes there meanwhile; it goes on reading as zeros.
    pub(super) async fn preallocate(&self, io: &Io, start: u64, end: u64, how: Preallocate) -> Result<()> {
        if how == Preallocate::Off {
            return Ok(());
        }
        let bits = self.geometry.cluster_bits;
        let file = io.child(Role::File);
        let mut at = bits.start_of(start);
        if self.geometry.data == Role::File && how.of_file() != Preallocation::Off {
            let from = io.len(file).next_multiple_of(bits.size());
            io.set_len(file, from + bits.count(end - at) * bits.size(), how.of_file()).await?;
        }
        while at < end {
            let extent = self.extent(GuestOffset(at), end - at, Access::Read)?;
            match extent.mapping {
                Mapping::Miss(miss) => self.load_missing(io, miss).await?,
                Mapping::Zero { at: None } | Mapping::Backing { at: None } => {
                    let space = self.reserve_extent(io, at, extent.len).await?;
                    let published = self.publish_zeroed(io, &space, how).await;
                    if published.is_err() {
                        self.give_back_space(&space);
                    }
                    published?;
                    at = space.guest_end;
                }
                // It has its space already.
                _ => at += extent.len,
            }
        }
        Ok(())
    }

    /// Takes space for the start of a run of clusters.
    async fn reserve_extent(&self, io: &Io, at: u64, len: u64) -> Result<Reservation> {
        let bits = self.geometry.cluster_bits;
        let start = bits.start_of(at);
        let len = (at + len).next_multiple_of(bits.size()) - start;
        loop {
            match self.reserve_space(GuestOffset(start), len)? {
                Ready::Yes(space) => return Ok(space),
                Ready::Miss(miss) => self.load_missing(io, miss).await?,
            }
        }
    }

    async fn publish_zeroed(&self, io: &Io, space: &Reservation, how: Preallocate) -> Result<()> {
        let host_end = space.host_offset + (space.guest_end - space.guest_start);
        let file = io.child(Role::File);
        if self.geometry.data == Role::File && io.len(file) < host_end {
            // A cluster is part of the file before an entry points to it; tables may have pushed it beyond what is reserved.
            io.set_len(file, host_end, how.of_file()).await?;
        }
        // With subclusters, the entries say that nothing is there yet; and a data file was zeroed as a whole.
        let shows = !self.geometry.rules.extended && self.geometry.data == Role::File;
        // What is encrypted is zeros by its entry, where there is such a one.
        let encrypted = self.geometry.is_encrypted() && !self.geometry.rules.extended;
        let by_entry = encrypted && self.geometry.version >= 3;
        if (shows || encrypted) && !space.zeroed && !by_entry {
            let (len, child) = (space.guest_end - space.guest_start, io.child(space.child));
            let flags = ZeroFlags::default();
            io.write_zeroes("qcow2.preallocate/zero", child, space.host_offset, len, flags).await?;
        }
        loop {
            match self.own_entry(GuestOffset(space.guest_start))? {
                Ready::Miss(miss) => self.load_missing(io, miss).await?,
                Ready::Yes(place) => {
                    let size = self.geometry.cluster_size;
                    for n in 0..(space.guest_end - space.guest_start) / size {
                        let place = self.nth(&place, n);
                        let old = self.read_entry(&place, GuestOffset(space.guest_start + n * size))?;
                        let host = HostOffset(space.host_offset + n * size);
                        let entry = match by_entry {
                            true => L2Entry::Zero { host: Some(host), copied: true },
                            false => L2Entry::Standard { host, copied: true },
                        };
                        self.write_entry(&place, ExtendedL2Entry { entry, ..old });
                    }
                    return Ok(());
                }
            }
        }
    }
}
