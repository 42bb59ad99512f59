//! The state of a machine: bytes behind the end of the disk that the same tables map. Source: \[qcow2\] "Snapshots".
//!
//! ```text
//!   L1 table   [ disk ][ disk ][ disk, its end ][ state ][ state ]
//!                                               ^ the first entry that the disk does not need
//! ```
//!
//! A snapshot holds the state along with the disk, because it shares the L1 table; one that is said to have a state takes it
//! over. A write of state is a write like any other, in the same order on disk: a crash leaves the state as it was, or a part
//! of it new, and leaked clusters at most. While it is written or read the node is longer than its disk, but not for a guest
//! (`Driver::guest_length`).

use super::layout::{GuestOffset, Header, L1_LEN_MAX};
use super::resize::Shown;
use super::{Qcow2, Qcow2Error};
use crate::buf::BufList;
use crate::engine::Io;
use crate::error::{Error, Result};
use crate::filter::DebugEvent;
use crate::graph::driver::Access;
use crate::intent::Fua;

impl Header {
    /// Place of the machine's state: the first byte behind the disk that no L2 table of the disk maps.
    #[must_use]
    pub fn vmstate_offset(&self) -> u64 {
        self.size.div_ceil(self.table_span()).saturating_mul(self.table_span())
    }

    /// Bytes of the disk that one L2 table maps.
    fn table_span(&self) -> u64 {
        let cluster = self.cluster_bits.size();
        cluster * (cluster / self.l2_entry_len() as u64)
    }
}

impl Qcow2 {
    /// Reads or writes state from byte `offset` of it on. What was never written reads as zeros.
    pub(super) async fn transfer_vmstate(
        &self,
        io: &Io,
        access: Access,
        offset: u64,
        data: &mut BufList,
    ) -> Result<()> {
        // The length does not change meanwhile, and with it the place of the state.
        let _one_at_a_time = self.resizes.enter(&io.shared().tasks).await;
        let (start, span) = (self.header.borrow().vmstate_offset(), self.header.borrow().table_span());
        let len = data.len_bytes() as u64;
        if access == Access::Read {
            io.event(DebugEvent::VmstateLoad).await;
            let mapped = (self.l1.borrow().entries.len() as u64).saturating_mul(span);
            let at = start.saturating_add(offset);
            let within = mapped.saturating_sub(at).min(len);
            let mut front = data.split_to(within as usize);
            data.zero_from(0);
            let mut result = Ok(());
            if within > 0 {
                let _shown = self.show(at + within);
                (front, result) = io.read("qcow2.vmstate/read", io.node(), at, front).await;
            }
            front.append(std::mem::take(data));
            *data = front;
            return result;
        }
        io.event(DebugEvent::VmstateSave).await;
        let end = start.checked_add(offset).and_then(|at| at.checked_add(len));
        let fits = |end: &u64| *end <= i64::MAX as u64 && end.div_ceil(span) <= L1_LEN_MAX / 8;
        let Some(end) = end.filter(fits) else {
            return Err(self.fail(Qcow2Error::VmstateTooFar { offset, len }));
        };
        let needed = end.div_ceil(span) as usize;
        if needed > self.l1.borrow().entries.len() {
            let size = self.header.borrow().size;
            self.grow_l1(io, needed, size).await?;
        }
        let _shown = self.show(end);
        let (back, result) =
            io.write("qcow2.vmstate/write", io.node(), end - len, std::mem::take(data), Fua::No).await;
        *data = back;
        result
    }

    /// Gives up the disk's hold on the first `len` bytes of state: a snapshot has them, and every write to them would copy.
    pub(super) async fn forget_vmstate(&self, io: &Io, len: u64) -> Result<()> {
        let _one_at_a_time = self.resizes.enter(&io.shared().tasks).await;
        let (start, span) = (self.header.borrow().vmstate_offset(), self.header.borrow().table_span());
        let mapped = (self.l1.borrow().entries.len() as u64).saturating_mul(span);
        let len = len.next_multiple_of(self.geometry.cluster_size).min(mapped.saturating_sub(start));
        if len == 0 {
            return Ok(());
        }
        self.forget_range(io, GuestOffset(start), len).await?;
        self.commit(io).await
    }

    /// Has the node show all up to `end`, in whole sectors, until what is returned is dropped.
    fn show(&self, end: u64) -> Shown<'_> {
        self.shown_len.set(Some(end.next_multiple_of(512)));
        Shown(&self.shown_len)
    }
}

impl Io {
    /// Reads or writes the state of a machine that an image keeps beside its disk. A node without a place for it asks the
    /// one at the end of its `file` edge.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where no node below has a place for it; [`Error::ReadOnly`]; else the image's.
    pub async fn vmstate(
        &self,
        node: crate::graph::NodeId,
        access: Access,
        offset: u64,
        mut data: BufList,
    ) -> (BufList, Result<()>) {
        let mut at = node;
        loop {
            if let Some(driver) = self.driver(at) {
                if access == Access::Write && self.flags(at).read_only {
                    return (data, Err(Box::new(Error::ReadOnly { node: self.title(at) })));
                }
                let here = self.for_node(at);
                let transfer = async move {
                    let result = match driver.vmstate(&here, access, offset, &mut data) {
                        Some(transfer) => Some(transfer.await),
                        None => None,
                    };
                    (data, result)
                };
                // A longer L1 table is a new generation of metadata.
                let (back, done) = self.to_end(transfer).await;
                data = back;
                if let Some(result) = done {
                    return (data, result);
                }
            }
            match self.edge(at, crate::graph::Role::File) {
                Some(file) => at = file,
                None => {
                    let (node, driver) = (self.title(at), self.driver_name(at));
                    let what = "the state of a machine";
                    return (data, Err(Box::new(Error::Unsupported { node, driver, what })));
                }
            }
        }
    }
}
