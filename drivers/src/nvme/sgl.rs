//! Scatter gather lists. Source: \[NVMe\] 4.4.
//!
//! ```text
//!   windows   [aaaaa][bb][ccccccc]        wherever they begin and end
//!   SGL1 ──▶ a data block, if there is one window
//!   SGL1 ──▶ the last segment, the command's page [ a's data block, b's, c's, … ]
//! ```
//!
//! Unlike PRPs, data blocks need not begin and end with pages; and one names any length.

use std::sync::atomic::Ordering;

use super::layout::{SGL_DESCRIPTOR_LEN, Sgl};
use super::memory::DmaMemory;

/// Data blocks while they are put together.
pub(super) struct Blocks {
    /// Addresses and lengths have to be multiples of 4.
    aligned: bool,
    /// The command's page, for a segment.
    segment: DmaMemory,
    /// The last block, which may still grow.
    last: Sgl,
    /// How many there are, with the last one.
    count: usize,
}

impl Blocks {
    pub(super) fn new(aligned: bool, segment: DmaMemory) -> Self {
        Self { aligned, segment, last: Sgl::block(0, 0), count: 0 }
    }

    /// Names `len` bytes at `iova` too. Tells whether that was possible.
    pub(super) fn append(&mut self, iova: u64, len: u64) -> bool {
        let Ok(len) = u32::try_from(len) else { return false };
        if self.aligned && (iova | u64::from(len)) & 3 != 0 {
            return false;
        }
        if self.count > 0
            && self.last.address + u64::from(self.last.len) == iova
            && let Some(both) = self.last.len.checked_add(len)
        {
            self.last.len = both;
            return true;
        }
        if self.count == self.segment.len() / SGL_DESCRIPTOR_LEN {
            return false;
        }
        if self.count > 0 {
            self.put(self.count - 1);
        }
        self.last = Sgl::block(iova, len);
        self.count += 1;
        true
    }

    /// What the command says.
    pub(super) fn sgl(&self) -> Sgl {
        if self.count <= 1 {
            return self.last;
        }
        self.put(self.count - 1);
        Sgl::last_segment(self.segment.iova(), (self.count * SGL_DESCRIPTOR_LEN) as u32)
    }

    fn put(&self, index: usize) {
        for (place, word) in self.segment.words()[2 * index..].iter().zip(self.last.words()) {
            place.store(word.to_le(), Ordering::Relaxed);
        }
    }
}
