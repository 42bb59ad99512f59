//! Transfers: what reads, writes, flushes, zeros, copies and their like do with a disk, and what a fault makes of them.

use drystone_core::buf::BufList;
use drystone_core::intent::{Errno, Fua, LeafId, LeafKind, LeafStatus, Outcome, Preallocation};
use fastrand::Rng;

use super::{Consequence, Leaf, Moment, Storage, World};
use crate::disk::{Change, DiscardEffect, Disk, GARBAGE};
use crate::fault::{Effect, mutate};

impl World {
    pub(super) fn leaf(&self, id: LeafId) -> &Leaf {
        self.leaves.get(&id).expect("contract: an intent names an open leaf")
    }

    pub(super) fn writable(&self, id: LeafId) -> &Leaf {
        let leaf = self.leaf(id);
        assert!(leaf.access.writable, "contract: {id:?} is open for reading only");
        leaf
    }

    pub(super) fn align(&self, leaf: &Leaf) -> (u64, usize, u32) {
        match leaf.storage {
            Storage::Disk(disk) => {
                let config = &self.disks[disk].config;
                let direct = leaf.access.direct;
                let request = if direct { u64::from(config.request_align) } else { 1 };
                let memory = if direct { config.memory_align as usize } else { 1 };
                (request, memory, config.transfer_max)
            }
            Storage::Null { .. } => (1, 1, 0),
        }
    }

    /// Holds a transfer against what the leaf said when it was opened; returns the request alignment.
    pub(super) fn check_transfer(&self, leaf: &Leaf, offset: u64, data: &BufList) -> u64 {
        let (request, memory, transfer_max) = self.align(leaf);
        let len = data.len_bytes();
        assert!(len > 0, "contract: a transfer moves something");
        assert!(
            offset.checked_add(len as u64).is_some_and(|end| end <= i64::MAX as u64),
            "contract: end of offsets"
        );
        assert!(offset.is_multiple_of(request), "contract: offset {offset} is no multiple of {request}");
        assert!(
            transfer_max == 0 || len <= transfer_max as usize,
            "contract: {len} bytes are more than the {transfer_max} of one transfer"
        );
        for window in data.windows() {
            let (at, len) = (window.as_ptr() as usize, window.len() as u64);
            assert!(
                len.is_multiple_of(request),
                "contract: a window of {len} bytes is no multiple of {request}"
            );
            assert!(at.is_multiple_of(memory), "contract: a window at {at:#x} is no multiple of {memory}");
        }
        request
    }

    pub(super) fn read(
        &self,
        id: LeafId,
        offset: u64,
        mut data: BufList,
        moment: Moment<'_>,
    ) -> (Outcome, Consequence) {
        let leaf = self.leaf(id);
        let align = self.check_transfer(leaf, offset, &data);
        let wanted = data.len_bytes();
        let result = match (moment.fault, leaf.storage) {
            (Some(Effect::Fail(errno)), _) => {
                // What a failed read leaves in the buffer means nothing.
                data.copy_in(0, &vec![GARBAGE; moment.rng.usize(..=wanted)]);
                Err(errno)
            }
            (_, Storage::Null { len, read_zeroes }) => {
                if read_zeroes {
                    data.zero_from(0);
                }
                Ok(len.saturating_sub(offset).min(wanted as u64) as usize)
            }
            (fault, Storage::Disk(disk)) => {
                let view = self.disks[disk].view();
                let there = view.len().saturating_sub(offset).min(wanted as u64) as usize;
                let short = fault == Some(Effect::Short);
                let moved = if short { shortened(there, align, moment.rng) } else { there };
                let mut bytes = view.bytes(offset, moved);
                if fault == Some(Effect::Mutated) {
                    mutate(&mut bytes, moment.rng);
                }
                data.copy_in(0, &bytes);
                Ok(moved)
            }
        };
        (Outcome::Moved { data, result }, Consequence::Nothing)
    }

    pub(super) fn write(
        &mut self,
        id: LeafId,
        offset: u64,
        data: BufList,
        fua: Fua,
        moment: Moment<'_>,
    ) -> (Outcome, Consequence) {
        let leaf = self.writable(id);
        let align = self.check_transfer(leaf, offset, &data);
        let mut bytes = vec![0; data.len_bytes()];
        data.copy_out(0, &mut bytes);
        let Storage::Disk(index) = leaf.storage else {
            return (Outcome::Moved { data, result: Ok(bytes.len()) }, Consequence::Nothing);
        };
        let disk = &mut self.disks[index];
        let over =
            disk.config.kind == LeafKind::HostDevice && offset + bytes.len() as u64 > disk.view().len();
        let full = over || disk.is_full_after(bytes.len() as u64) && !is_stored(disk, offset, bytes.len());
        let failure = match moment.fault {
            Some(Effect::Fail(errno)) => Some(errno),
            _ => full.then_some(Errno::ENOSPC),
        };
        if let Some(errno) = failure {
            // A file that may not become so long takes nothing of what is beyond.
            if !full && errno != Errno::EFBIG {
                disk.begin_torn(offset, &bytes, moment.rng);
            }
            return (Outcome::Moved { data, result: Err(errno) }, Consequence::Nothing);
        }
        if moment.fault == Some(Effect::Nothing) {
            return (Outcome::Moved { data, result: Ok(0) }, Consequence::Nothing);
        }
        if moment.fault == Some(Effect::Short) {
            // A sector is written whole or not at all: what a short write tore would be torn by a crash too, and no order
            // of writes can mend that.
            let end = offset + shortened(bytes.len(), align, moment.rng) as u64;
            let end = end - end % disk.config.sector;
            bytes.truncate(if end > offset { (end - offset) as usize } else { bytes.len() });
        }
        let result = Ok(bytes.len());
        let change = disk.begin(Change::Write(offset, bytes));
        (Outcome::Moved { data, result }, Consequence::Completes(index, vec![change], fua))
    }

    pub(super) fn flush(&self, id: LeafId, failure: Result<(), Errno>) -> (Outcome, Consequence) {
        let consequence = match (self.leaf(id).storage, failure) {
            (Storage::Null { .. }, _) => Consequence::Nothing,
            (Storage::Disk(disk), Ok(())) => Consequence::Flushes(disk),
            (Storage::Disk(disk), Err(_)) => Consequence::LosesFlush(disk),
        };
        (Outcome::Done(failure), consequence)
    }

    pub(super) fn discard(
        &mut self,
        id: LeafId,
        offset: u64,
        len: u64,
        moment: Moment<'_>,
    ) -> (Outcome, Consequence) {
        let Storage::Disk(index) = self.writable(id).storage else { return done(Ok(())) };
        let disk = &mut self.disks[index];
        if let Some(Effect::Fail(errno)) = moment.fault {
            return done(Err(errno));
        }
        let end = (offset + len).min(disk.view().len());
        let start = offset.min(end);
        let change = match disk.config.discard {
            DiscardEffect::Unsupported => return done(Err(Errno::ENOTSUP)),
            DiscardEffect::Zeroes => Change::Zero(start..end, true),
            DiscardEffect::Anything => match moment.rng.u8(..3) {
                0 => return done(Ok(())),
                1 => Change::Zero(start..end, true),
                _ => Change::Write(start, vec![GARBAGE; (end - start) as usize]),
            },
        };
        let change = disk.begin(change);
        (Outcome::Done(Ok(())), Consequence::Completes(index, vec![change], Fua::No))
    }

    pub(super) fn write_zeroes(
        &mut self,
        id: LeafId,
        offset: u64,
        len: u64,
        unmap: bool,
        moment: Moment<'_>,
    ) -> (Outcome, Consequence) {
        let Storage::Disk(index) = self.writable(id).storage else { return done(Ok(())) };
        let disk = &mut self.disks[index];
        let change = Change::Zero(offset..offset + len, unmap);
        if let Some(Effect::Fail(errno)) = moment.fault {
            let refused = matches!(errno, Errno::ENOTSUP | Errno::EINVAL);
            if !refused && moment.rng.bool() {
                disk.begin(change);
            }
            return done(Err(errno));
        }
        match disk.config.zeroes_align {
            None => return done(Err(Errno::ENOTSUP)),
            Some(align) if !(offset | len).is_multiple_of(align) => return done(Err(Errno::EINVAL)),
            Some(_) => {}
        }
        let beyond = disk.config.kind == LeafKind::HostDevice && offset + len > disk.view().len();
        if beyond || (!unmap && disk.is_full_after(len)) {
            return done(Err(Errno::ENOSPC));
        }
        let change = disk.begin(change);
        (Outcome::Done(Ok(())), Consequence::Completes(index, vec![change], Fua::No))
    }

    pub(super) fn set_len(
        &mut self,
        id: LeafId,
        len: u64,
        preallocation: Preallocation,
        failure: Result<(), Errno>,
    ) -> (Outcome, Consequence) {
        let Storage::Disk(index) = self.writable(id).storage else { return done(Err(Errno::EINVAL)) };
        let disk = &mut self.disks[index];
        let old = disk.view().len();
        if let Err(errno) = failure {
            return done(Err(errno));
        }
        if disk.config.kind == LeafKind::HostDevice {
            return done(if len > old { Err(Errno::EINVAL) } else { Ok(()) });
        }
        if preallocation != Preallocation::Off && disk.is_full_after(len.saturating_sub(old)) {
            return done(Err(Errno::ENOSPC));
        }
        let mut changes = vec![disk.begin(Change::SetLen(len))];
        if preallocation == Preallocation::Full && len > old {
            changes.push(disk.begin(Change::Zero(old..len, false)));
        }
        (Outcome::Done(Ok(())), Consequence::Completes(index, changes, Fua::No))
    }

    pub(super) fn block_status(&self, id: LeafId, offset: u64, len: u64, rng: &mut Rng) -> LeafStatus {
        let leaf = self.leaf(id);
        let Storage::Disk(disk) = leaf.storage else { return LeafStatus::of(len, false) };
        let view = self.disks[disk].view();
        if self.changed_under && offset >= view.len() {
            return LeafStatus::of(len, true);
        }
        assert!(offset < view.len() && len > 0, "contract: status of {offset}+{len} in {} bytes", view.len());
        let (there, hole) = view.status(offset, len);
        // An answer may always cover less.
        LeafStatus::of(if rng.u8(..8) == 0 { rng.u64(1..=there) } else { there }, hole)
    }

    pub(super) fn copy(
        &mut self,
        (from, from_offset): (LeafId, u64),
        (to, to_offset): (LeafId, u64),
        len: u64,
        moment: Moment<'_>,
    ) -> (Outcome, Consequence) {
        let moved = |result| Outcome::Moved { data: BufList::new(), result };
        let (Storage::Disk(source), Storage::Disk(target)) =
            (self.leaf(from).storage, self.writable(to).storage)
        else {
            return (moved(Err(Errno::EXDEV)), Consequence::Nothing);
        };
        let able = self.disks[source].config.copies && self.disks[target].config.copies;
        let failure = match moment.fault {
            Some(Effect::Fail(errno)) => Some(errno),
            _ => (!able).then_some(Errno::ENOTSUP),
        };
        if let Some(errno) = failure {
            return (moved(Err(errno)), Consequence::Nothing);
        }
        let view = self.disks[source].view();
        let mut there = view.len().saturating_sub(from_offset).min(len) as usize;
        if moment.fault == Some(Effect::Short) {
            there = shortened(there, 1, moment.rng);
        }
        if there == 0 {
            return (moved(Ok(0)), Consequence::Nothing);
        }
        let bytes = view.bytes(from_offset, there);
        let change = self.disks[target].begin(Change::Write(to_offset, bytes));
        (moved(Ok(there)), Consequence::Completes(target, vec![change], Fua::No))
    }
}

pub(super) fn done(result: Result<(), Errno>) -> (Outcome, Consequence) {
    (Outcome::Done(result), Consequence::Nothing)
}

/// Fewer bytes, though some, and whole blocks.
fn shortened(len: usize, align: u64, rng: &mut Rng) -> usize {
    let blocks = len / align as usize;
    if blocks < 2 { len } else { rng.usize(1..blocks) * align as usize }
}

/// Whether a write there needs no more space.
fn is_stored(disk: &Disk, offset: u64, len: usize) -> bool {
    let view = disk.view();
    offset + len as u64 <= view.len() && {
        let (there, hole) = view.status(offset, len as u64);
        !hole && there >= len as u64
    }
}
