//! Load: fetches what a lookup or a reservation missed, and lets go of what nobody looks up any more.

use std::rc::Rc;
use std::time::Duration;

use super::layout::{HostOffset, L1Entry};
use super::{Missing, Qcow2, Qcow2Error};
use crate::buf::Buf;
use crate::engine::Io;
use crate::error::Result;
use crate::filter::DebugEvent;
use crate::graph::driver::{Miss, Role};
use crate::intent::Fua;

/// Bytes at the end of a new table that are written where the rest is zero of itself: a block of any host.
const TABLE_TAIL: usize = 4096;

/// Drops the slices from memory that nobody used for an `interval`, until the image is closed (`cache-clean-interval`).
pub(crate) fn clean_caches(io: &Io, image: &Rc<Qcow2>, interval: Duration) {
    let (image, timer) = (Rc::downgrade(image), io.clone());
    io.spawn(Box::pin(async move {
        loop {
            timer.sleep(interval).await;
            let Some(image) = image.upgrade().filter(|image| !image.closing.get()) else { return };
            image.l2.borrow_mut().clean();
            image.refcounts.borrow_mut().cache.clean();
        }
    }));
}

impl Qcow2 {
    pub(super) async fn load_missing(&self, io: &Io, miss: Miss) -> Result<()> {
        match Missing::of(miss) {
            kind @ (Missing::L2Slice | Missing::RefcountSlice) => {
                self.load_slice(io, kind, HostOffset(miss.at)).await
            }
            Missing::OwnTable => self.own_table(io, miss.at as usize).await,
            Missing::RefcountBlock => self.add_refcount_block(io, miss.at).await,
        }
    }

    fn has_slice(&self, kind: Missing, at: HostOffset) -> bool {
        match kind {
            Missing::RefcountSlice => self.refcounts.borrow().cache.find(at).is_some(),
            _ => self.l2.borrow().find(at).is_some(),
        }
    }

    /// Reads a slice into its cache. Two that miss the same slice read it once.
    async fn load_slice(&self, io: &Io, kind: Missing, at: HostOffset) -> Result<()> {
        let read = self.read_slice(io, kind, at);
        self.loads.once(&io.shared().tasks, at, || self.has_slice(kind, at), read).await
    }

    async fn read_slice(&self, io: &Io, kind: Missing, at: HostOffset) -> Result<()> {
        let (len, label) = match kind {
            Missing::RefcountSlice => {
                (self.refcounts.borrow().cache.slice_len(), "qcow2.load/refcount_block")
            }
            _ => (self.geometry.l2_slice_len, "qcow2.load/l2_table"),
        };
        io.event(if kind == Missing::RefcountSlice { DebugEvent::RefblockLoad } else { DebugEvent::L2Load })
            .await;
        let mut bytes = io.read_bytes(label, io.child(Role::File), at.0, len).await?;
        loop {
            let has_room = match kind {
                Missing::RefcountSlice => self.refcounts.borrow().cache.has_room(),
                _ => self.l2.borrow().has_room(),
            };
            if has_room {
                break;
            }
            // All slices hold changes: writing them out makes room.
            self.commit(io).await?;
        }
        let mut bytes = std::mem::take(&mut bytes);
        if kind == Missing::L2Slice {
            self.disown_overlapping(&mut bytes);
        }
        let inserted = match kind {
            Missing::RefcountSlice => self.refcounts.borrow_mut().cache.insert(at, bytes),
            _ => self.l2.borrow_mut().insert(at, bytes),
        };
        inserted.map(|_| ()).map_err(|_| self.fail(Qcow2Error::CacheExhausted))
    }

    /// Makes sure that the L2 table at `index` of the L1 table exists and belongs to the active image alone: makes an
    /// empty one, or copies the one that a snapshot shares.
    ///
    /// Order on disk: the refcount of the new table, then its content, then the L1 entry (`flush`). The old table is
    /// given up once the L1 entry is durable. A crash between any two leaves a table that nothing points to.
    async fn own_table(&self, io: &Io, index: usize) -> Result<()> {
        let tasks = &io.shared().tasks;
        let _one_at_a_time = self.tables.enter(tasks).await;
        let old = match self.l1_entry(index)? {
            L1Entry::Table { copied: true, .. } => return Ok(()),
            L1Entry::Table { at, .. } => Some(at),
            L1Entry::Unallocated => None,
        };
        let fresh = self.reserve_cluster(io).await?;
        let result = self.fill_table(io, old, fresh.at, fresh.zeroed).await;
        if let Err(error) = result {
            self.refcounts.borrow_mut().give_back(fresh.at, 1);
            return Err(error);
        }
        let entry = L1Entry::Table { at: fresh.at, copied: true };
        self.l1.borrow_mut().set(index, entry.encode());
        let cluster = fresh.at.0 >> self.geometry.cluster_bits.bits();
        let mut refcounts = self.refcounts.borrow_mut();
        let protected = refcounts.protect.active_l2;
        refcounts.hold_metadata(protected, [cluster]);
        drop(refcounts);
        if let Some(old) = old {
            self.free_later(old, 1, super::refcount::Freed::Other);
        }
        Ok(())
    }

    async fn fill_table(&self, io: &Io, old: Option<HostOffset>, at: HostOffset, zeroed: bool) -> Result<()> {
        let file = io.child(Role::File);
        let len = self.geometry.cluster_size as usize;
        let mut place = at.0;
        let content = match old {
            Some(old) => {
                io.event(DebugEvent::L2AllocCowRead).await;
                let mut content = io.read_bytes("qcow2.own_table/read", file, old.0, len).await?;
                // What a shared table points to is shared too, whatever a damaged table says of it.
                for entry in content.chunks_exact_mut(self.geometry.l2_entry_len) {
                    if entry[0] & 0x40 == 0 && self.geometry.data == Role::File {
                        entry[0] &= 0x7f;
                    }
                }
                content
            }
            // All zeros beyond the end of the file: the last of them make it part of the file. Nothing else may ever be
            // written to the table, when there is no room for the data that its entries would be about.
            None if zeroed => {
                let tail = len.min(TABLE_TAIL);
                place += (len - tail) as u64;
                Buf::zeroed(tail)
            }
            None => Buf::zeroed(len),
        };
        io.event(DebugEvent::L2AllocWrite).await;
        io.write("qcow2.own_table/write", file, place, content, Fua::No).await.1
    }
}
