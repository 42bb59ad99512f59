//! Chunks of an image that is stored compressed: unpacked where the executor chooses, and the last ones kept.
//!
//! Several chunks are unpacked at once; one that several ask for is unpacked once.

use std::cell::RefCell;
use std::collections::VecDeque;

use super::HostOffset;
use super::loads::Loads;
use crate::buf::{Buf, BufList};
use crate::compute::{Compute, Form};
use crate::engine::Io;
use crate::engine::task::Gate;
use crate::error::{Error, Result};
use crate::graph::driver::Role;
use crate::intent::Label;

/// Bytes of unpacked chunks that are kept.
const KEPT_MAX: usize = 32 << 20;

/// Chunks of more bytes than this are unpacked one after the other, so that memory stays bounded.
const LARGE: usize = 4 << 20;

/// A chunk as it lies in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::format) struct Packed {
    pub form: Form,
    /// First byte in the file.
    pub at: u64,
    pub len: usize,
    /// Bytes that it holds when it is unpacked.
    pub plain_len: usize,
}

/// Unpacked chunks, by their number.
#[derive(Default)]
pub(in crate::format) struct Chunks {
    kept: RefCell<VecDeque<(u64, Buf)>>,
    loads: Loads,
    large: Gate,
}

impl Chunks {
    /// Reads from byte `within` of chunk `number`. `damaged` is the error for a chunk that does not unpack.
    pub async fn read(
        &self,
        io: &Io,
        label: Label,
        (number, packed): (u64, Packed),
        (within, data): (usize, &mut BufList),
        damaged: impl Fn() -> Box<Error>,
    ) -> Result<()> {
        // Another one may have taken the chunk's place before the one who waited for it looks.
        while !self.copy(number, within, data) {
            let unpacked = self.unpack(io, label, number, packed, &damaged);
            self.loads.once(&io.shared().tasks, HostOffset(number), || self.has(number), unpacked).await?;
        }
        Ok(())
    }

    fn has(&self, number: u64) -> bool {
        self.kept.borrow().iter().any(|(kept, _)| *kept == number)
    }

    fn copy(&self, number: u64, within: usize, data: &mut BufList) -> bool {
        let kept = self.kept.borrow();
        let Some((_, plain)) = kept.iter().find(|(kept, _)| *kept == number) else { return false };
        let len = data.len_bytes();
        data.copy_in(0, &plain[within..within + len]);
        true
    }

    async fn unpack(
        &self,
        io: &Io,
        label: Label,
        number: u64,
        packed: Packed,
        damaged: &impl Fn() -> Box<Error>,
    ) -> Result<()> {
        let _turn = match packed.plain_len.max(packed.len) > LARGE {
            true => Some(self.large.enter(&io.shared().tasks).await),
            false => None,
        };
        let bytes = io.read_bytes(label, io.child(Role::File), packed.at, packed.len).await?;
        let work = Compute::Unpack { form: packed.form, packed: bytes, plain: Buf::zeroed(packed.plain_len) };
        let computed = io.compute(label, work).await;
        computed.result.map_err(|_| damaged())?;
        let mut kept = self.kept.borrow_mut();
        kept.push_back((number, computed.output));
        let mut held: usize = kept.iter().map(|(_, plain)| plain.len()).sum();
        while held > KEPT_MAX && kept.len() > 1 {
            held -= kept.pop_front().map_or(0, |(_, plain)| plain.len());
        }
        Ok(())
    }
}
