//! Buffers of requests, for the next ones: fresh memory costs the kernel more than reading into it.

use drystone_core::buf::{Buf, BufList};

/// Bytes that are kept.
const KEPT: usize = 32 << 20;

/// Buffers that are kept, however small.
const KEPT_MAX: usize = 1024;

/// Buffers that nobody uses.
#[derive(Default)]
pub(super) struct Buffers {
    free: Vec<Buf>,
    bytes: usize,
}

impl Buffers {
    /// A buffer of that length, which holds anything.
    pub(super) fn take(&mut self, len: usize) -> BufList {
        // Requests of a client are mostly of one length, and the one that was given back last is still in the cache.
        match self.free.iter().rposition(|buf| buf.len() == len) {
            Some(index) => {
                self.bytes -= len;
                self.free.swap_remove(index).into()
            }
            None => Buf::zeroed(len).into(),
        }
    }

    /// Takes buffers back.
    pub(super) fn put(&mut self, mut data: BufList) {
        data.windows_mut().iter_mut().for_each(|buf| self.keep(std::mem::take(buf)));
    }

    fn keep(&mut self, buf: Buf) {
        if !buf.is_whole() || buf.len() > KEPT {
            return;
        }
        self.bytes += buf.len();
        self.free.push(buf);
        while self.bytes > KEPT || self.free.len() > KEPT_MAX {
            let oldest = self.free.swap_remove(0);
            self.bytes -= oldest.len();
        }
    }
}
