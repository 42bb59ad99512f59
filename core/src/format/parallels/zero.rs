//! Zeros and discards: a cluster that the BAT does not name reads as zeros, and its space is used again.

use super::Parallels;
use super::layout::{ClusterIndex, Entry, Fit};
use crate::engine::Io;
use crate::error::Result;
use crate::graph::driver::{Driver, Ready, Role};

impl Parallels {
    /// Takes the names off the clusters of a range, which the caller holds a claim on.
    pub(super) async fn free_clusters(&self, io: &Io, offset: u64, len: u64) -> Result<()> {
        let cluster_len = self.geometry.cluster_len;
        let (mut cluster, end) = (offset / cluster_len, (offset + len).div_ceil(cluster_len));
        while cluster < end {
            match self.run_at(cluster, end - cluster).map_err(|fault| self.fail(fault))? {
                Ready::Miss(miss) => self.load(io, miss).await?,
                Ready::Yes((Entry::Unallocated, count)) => cluster += count,
                Ready::Yes((Entry::At(host), count)) => {
                    self.clear_entries(cluster, host, count);
                    cluster += count;
                }
            }
        }
        Ok(())
    }

    /// Clears entries of one slice, which is in memory.
    fn clear_entries(&self, cluster: u64, host: u64, count: u64) {
        let (at, byte) = self.slice_of(cluster);
        let mut bat = self.bat.borrow_mut();
        let slot = bat.find(at).expect("the run was found in it");
        bat.bytes_mut(slot)[byte..byte + 4 * count as usize].fill(0);
        let places = (0..count).map(|nth| host + nth * self.geometry.cluster_len);
        let index = |place| match self.geometry.fit(place, self.file_len.get()) {
            Fit::Whole(index) | Fit::Cut(index) => Some(index),
            Fit::Misaligned | Fit::Outside => None,
        };
        self.freed.borrow_mut().extend(places.filter_map(index));
        self.changes.set(self.changes.get() + 1);
    }

    /// Gives back clusters that nothing on disk names.
    pub(super) fn start_reclaim(&self, io: &Io, clusters: Vec<ClusterIndex>) {
        let driver = io.driver(io.node()).expect("a format is a driver");
        let io = io.clone();
        self.reclaiming.set(self.reclaiming.get() + 1);
        io.clone().spawn(Box::pin(async move {
            let image = driver.as_any().downcast_ref::<Self>().expect("the driver of this node");
            // A request that looked a cluster up before it lost its name may still read or write it.
            io.quiesce().await;
            image.punch(&io, &clusters).await;
            clusters.iter().for_each(|index| image.space.borrow_mut().free(*index));
            image.reclaiming.set(image.reclaiming.get() - 1);
            image.reclaimed.notify(&io.shared().tasks);
        }));
    }

    /// Has the host give up the space, before anybody else can be given it.
    async fn punch(&self, io: &Io, clusters: &[ClusterIndex]) {
        let neighbours = clusters.chunk_by(|a, b| a + 1 == *b);
        for run in neighbours {
            let (at, len) = (self.geometry.place_of(run[0]), run.len() as u64 * self.geometry.cluster_len);
            // A host that keeps the bytes does no harm.
            let _ = io.discard("parallels.reclaim/discard", io.child(Role::File), at, len).await;
        }
    }
}
