//! Physical region pages. Source: \[NVMe\] 4.3.
//!
//! ```text
//!   windows   [..aaaa][bbbbbbbb][cc..]    every boundary inside lies between two pages
//!   PRP1 ───────▲      ▲         ▲
//!   PRP2 ──▶ list page [ b's page, c's page, … ]
//! ```

use std::sync::atomic::Ordering;

use super::layout::Prp;
use super::memory::DmaMemory;

/// PRP entries while they are put together.
pub(super) struct Pages {
    page: u64,
    /// The command's page, for a list.
    list: DmaMemory,
    first: Option<u64>,
    /// Where what was named ends.
    end: u64,
    second: u64,
    /// Entries after the first one.
    more: usize,
}

impl Pages {
    pub(super) fn new(page: u64, list: DmaMemory) -> Self {
        Self { page, list, first: None, end: 0, second: 0, more: 0 }
    }

    /// Names `len` bytes at `iova` too. Tells whether that was possible.
    pub(super) fn append(&mut self, iova: u64, len: u64) -> bool {
        let within = self.page - 1;
        let mut next = match self.first {
            // The offset into the first page is a multiple of 4.
            None if iova & 3 != 0 => return false,
            None => {
                self.first = Some(iova);
                (iova & !within) + self.page
            }
            Some(_) if iova == self.end => (iova + within) & !within,
            Some(_) if iova & within != 0 || self.end & within != 0 => return false,
            Some(_) => iova,
        };
        self.end = iova + len;
        while next < self.end {
            match self.more {
                0 => self.second = next,
                1 => {
                    self.entry(0, self.second);
                    self.entry(1, next);
                }
                more => self.entry(more, next),
            }
            self.more += 1;
            next += self.page;
        }
        true
    }

    /// What the command says.
    pub(super) fn prp(&self) -> Prp {
        let second = if self.more > 1 { self.list.iova() } else { self.second };
        Prp { first: self.first.unwrap_or(0), second }
    }

    fn entry(&self, index: usize, page: u64) {
        self.list.words()[index].store(page.to_le(), Ordering::Relaxed);
    }
}
