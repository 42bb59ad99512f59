//! Reclaim: gives clusters back once nothing on disk points to them, beside the requests that come meanwhile.
//!
//! The references of one commit are dropped slice by slice of the refcount blocks that count them:
//!
//! ```text
//!   clusters that keep other references: their refcounts drop ─▶ clusters that become free: holes are punched, one for
//!   neighbours ─▶ their refcounts drop, all at one instant ─▶ the next commit writes the slice
//! ```
//!
//! A hole comes before the refcount drops: while that still says that the cluster is in use, nobody can be given it.

use std::ops::Range;

use super::flush::WRITES_MAX;
use super::layout::HostOffset;
use super::refcount::{Freed, FreedRun, Refcounts};
use super::{Discards, Qcow2, Qcow2Error};
use crate::engine::Io;
use crate::engine::task::join_all;
use crate::filter::DebugEvent;
use crate::graph::driver::{Ready, Role};

impl Qcow2 {
    /// Gives back clusters that nothing on disk points to.
    pub(super) fn start_reclaim(&self, io: &Io, freed: Vec<FreedRun>) {
        let Some(driver) = io.driver(io.node()) else { unreachable!("a format is a driver") };
        let io = io.clone();
        self.reclaiming.set(self.reclaiming.get() + 1);
        io.clone().spawn(Box::pin(async move {
            let qcow2 = driver.as_any().downcast_ref::<Self>().expect("the driver of this node");
            // A request that looked a cluster up before it was freed may still read or write it.
            io.quiesce().await;
            // A new generation of metadata counts what is in use, and must not see half of a change.
            let _one_at_a_time = qcow2.reclaims.enter(&io.shared().tasks).await;
            let per_slice = qcow2.refcounts.borrow().per_slice();
            let pieces = by_slice(&freed, per_slice);
            for slice in pieces.chunk_by(|a, b| a.first / per_slice == b.first / per_slice) {
                qcow2.drop_references(&io, slice).await;
            }
            qcow2.reclaiming.set(qcow2.reclaiming.get() - 1);
            qcow2.reclaimed.notify(&io.shared().tasks);
        }));
    }

    /// Drops references to clusters that one slice counts. A cluster whose refcount cannot be lowered stays counted,
    /// which leaks it until `check` finds it, and loses nothing. Closing the image says so.
    async fn drop_references(&self, io: &Io, runs: &[FreedRun]) {
        io.event(DebugEvent::ClusterFree).await;
        let mut holes: Vec<Range<u64>> = Vec::new();
        for run in runs {
            self.with_slice(io, run.first, |refcounts| self.drop_shared(refcounts, *run, &mut holes)).await;
        }
        for some in holes.chunks(WRITES_MAX) {
            let punched = join_all(some.iter().map(|hole| self.punch(io, hole)));
            punched.await;
        }
        for hole in holes {
            self.with_slice(io, hole.start, |refcounts| {
                let each = hole.clone().map(|cluster| self.lower(refcounts, cluster));
                each.fold(Ok(()), Result::and)
            })
            .await;
        }
    }

    /// Changes refcounts with the slice that counts `cluster` in memory. A failure is kept for the end.
    async fn with_slice(
        &self,
        io: &Io,
        cluster: u64,
        mut change: impl FnMut(&mut Refcounts) -> Result<(), Qcow2Error>,
    ) {
        loop {
            let changed = {
                let mut refcounts = self.refcounts.borrow_mut();
                match refcounts.count(cluster) {
                    Ok(Ready::Yes(_)) => Ok(Ready::Yes(change(&mut refcounts))),
                    Ok(Ready::Miss(miss)) => Ok(Ready::Miss(miss)),
                    Err(fault) => Err(fault),
                }
            };
            let failure = match changed {
                Ok(Ready::Yes(Ok(()))) => return,
                Ok(Ready::Yes(Err(fault))) | Err(fault) => self.fail(fault),
                Ok(Ready::Miss(miss)) => match self.load_missing(io, miss).await {
                    Ok(()) => continue,
                    Err(error) => error,
                },
            };
            self.reclaim_error.borrow_mut().get_or_insert(failure);
            return;
        }
    }

    /// Lowers the refcounts of clusters of a run that need no hole, and adds the others to `holes`.
    fn drop_shared(
        &self,
        refcounts: &mut Refcounts,
        run: FreedRun,
        holes: &mut Vec<Range<u64>>,
    ) -> Result<(), Qcow2Error> {
        let mut result = Ok(());
        for cluster in run.first..run.first + run.count {
            let last = matches!(refcounts.count(cluster), Ok(Ready::Yes(1)));
            if !last || !self.discards.covers(run.why) {
                result = result.and(self.lower(refcounts, cluster));
                continue;
            }
            // Nothing is packed into the cluster from here on, or the hole would swallow it.
            self.forget_cluster(refcounts, cluster);
            match holes.last_mut() {
                Some(hole) if hole.end == cluster => hole.end += 1,
                _ => holes.push(cluster..cluster + 1),
            }
        }
        result
    }

    /// Lowers the refcount of a cluster by one; its slice is in memory.
    fn lower(&self, refcounts: &mut Refcounts, cluster: u64) -> Result<(), Qcow2Error> {
        let Ready::Yes(count) = refcounts.count(cluster)? else { unreachable!("the slice is in memory") };
        if count == 0 {
            let at = HostOffset(cluster << self.geometry.cluster_bits.bits());
            return Err(Qcow2Error::RefcountUnderflow { at });
        }
        if count == 1 {
            self.forget_cluster(refcounts, cluster);
        }
        refcounts.set(cluster, count - 1).map(drop)
    }

    pub(super) async fn punch(&self, io: &Io, hole: &Range<u64>) {
        let (at, len) = (hole.start, hole.end - hole.start);
        let bits = self.geometry.cluster_bits.bits();
        // A host that keeps the bytes does no harm.
        let _ = io.discard("qcow2.reclaim/discard", io.child(Role::File), at << bits, len << bits).await;
    }

    /// Drops what memory knows of a cluster that is about to become free.
    pub(super) fn forget_cluster(&self, refcounts: &mut Refcounts, cluster: u64) {
        let bits = self.geometry.cluster_bits;
        if refcounts.next_packed >> bits.bits() == cluster {
            refcounts.next_packed = 0;
        }
        refcounts.unprotected.remove(&cluster);
        if refcounts.metadata.remove(&cluster) {
            self.l2.borrow_mut().forget(HostOffset(cluster << bits.bits()), bits.size());
        }
    }
}

impl Discards {
    fn covers(self, why: Freed) -> bool {
        match why {
            Freed::Request => self.request,
            Freed::Snapshot => self.snapshot,
            Freed::Other => self.other,
        }
    }
}

/// The runs in the order of the file, cut where a slice ends.
fn by_slice(freed: &[FreedRun], per_slice: u64) -> Vec<FreedRun> {
    let mut pieces = Vec::with_capacity(freed.len());
    for run in freed {
        let (mut first, end) = (run.first, run.first + run.count);
        while first < end {
            let cut = end.min((first / per_slice + 1) * per_slice);
            pieces.push(FreedRun { first, count: cut - first, why: run.why });
            first = cut;
        }
    }
    pieces.sort_by_key(|run| run.first);
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_cut_where_slices_end() {
        let run = |first, count| FreedRun { first, count, why: Freed::Other };
        let freed = [run(30, 3), run(6, 12), run(8, 1)];
        let expected = [run(6, 2), run(8, 8), run(8, 1), run(16, 2), run(30, 2), run(32, 1)];
        assert_eq!(by_slice(&freed, 8), expected);
    }
}
