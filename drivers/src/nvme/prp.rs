//! Physical region pages: telling the controller where the windows of a request are. Source: \[NVMe\] 4.3.
//!
//! ```text
//!   windows   [..aaaa][bbbbbbbb][cc..]    every boundary inside lies between two pages
//!   PRP1 ───────▲      ▲         ▲
//!   PRP2 ──▶ list page [ b's page, c's page, … ]
//! ```
//!
//! Memory outside of the arena is unknown to the device: its bytes go through pages of our own, and are counted.

use drystone_core::buf::Buf;

use super::layout::Prp;
use super::memory::DmaMemory;

/// The largest command, in bytes: where larger ones gain nothing any more, and one list page suffices.
pub(super) const TRANSFER_MAX: usize = 1 << 20;

/// Bytes of pages for what has to be copied.
const BOUNCE_LEN: usize = 2 << 20;

/// Translates addresses for one queue pair.
pub(super) struct Mapper {
    /// Our address of the arena, its bytes, and the device's address.
    arena: (usize, usize, u64),
    page: usize,
    /// One page a command.
    lists: DmaMemory,
    bounce: DmaMemory,
    /// Pages of `bounce` that no command uses.
    free: Vec<u32>,
}

/// What a command was told.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Described {
    pub(super) prp: Prp,
    /// Bytes, from the start of what was to be described.
    pub(super) len: usize,
}

/// A part of a request's windows.
#[derive(Clone, Copy)]
pub(super) struct Range {
    /// First byte, counted through all windows.
    pub(super) at: usize,
    /// Bytes; above zero.
    pub(super) len: usize,
    /// Commands are multiples of so many bytes, and so is `len`.
    pub(super) block: usize,
}

impl Mapper {
    /// Bytes of DMA memory for a queue pair of so many commands.
    pub(super) fn memory_len(commands: u16, page: usize) -> usize {
        usize::from(commands) * page + BOUNCE_LEN
    }

    pub(super) fn new(memory: &DmaMemory, commands: u16, page: usize, arena: (usize, usize, u64)) -> Self {
        let lists_len = usize::from(commands) * page;
        let bounce = memory.part(lists_len, BOUNCE_LEN);
        let free = (0..(BOUNCE_LEN / page) as u32).rev().collect();
        Self { arena, page, lists: memory.part(0, lists_len), bounce, free }
    }

    /// The page that belongs to a command, for its PRP list or a little data.
    pub(super) fn page_of(&self, cid: u16) -> DmaMemory {
        self.lists.part(usize::from(cid) * self.page, self.page)
    }

    /// The device's address of a window, if the device knows it.
    #[inline]
    fn translate(&self, window: &Buf) -> Option<u64> {
        let (start, len, iova) = self.arena;
        let at = (window.as_ptr() as usize).wrapping_sub(start);
        (at < len).then(|| iova + at as u64)
    }

    /// Describes as much of the range as one command can name without copying; nothing, if that is not even a block.
    #[inline]
    pub(super) fn describe(&self, cid: u16, windows: &[Buf], range: Range) -> Option<Described> {
        // One window of at most two pages: most requests.
        if let [window] = windows
            && let Some(iova) = self.translate(window)
        {
            let iova = iova + range.at as u64;
            let in_first = self.page - (iova as usize & (self.page - 1));
            if iova & 3 == 0 && range.len <= in_first + self.page {
                let second = if range.len <= in_first { 0 } else { iova + in_first as u64 };
                return Some(Described { prp: Prp { first: iova, second }, len: range.len });
            }
        }
        self.describe_list(cid, windows, range)
    }

    fn describe_list(&self, cid: u16, windows: &[Buf], range: Range) -> Option<Described> {
        let mut pages = Pages::new(self.page as u64);
        let (mut skip, mut left) = (range.at, range.len);
        for window in windows {
            if skip >= window.len() {
                skip -= window.len();
                continue;
            }
            let Some(iova) = self.translate(window) else { break };
            let len = (window.len() - skip).min(left);
            if left == 0 || !pages.append(iova + skip as u64, len as u64, &self.page_of(cid)) {
                break;
            }
            left -= len;
            skip = 0;
        }
        let len = range.len - left;
        match len % range.block {
            0 if len == 0 => None,
            0 => Some(Described { prp: pages.prp(&self.page_of(cid)), len }),
            // Whole blocks of it; how many pages there are decides what PRP2 means, so they are counted again.
            over if over < len => self.describe_list(cid, windows, Range { len: len - over, ..range }),
            _ => None,
        }
    }

    /// Takes pages for as much of the range as there are; nothing while there are too few for a block.
    pub(super) fn bounce(&mut self, cid: u16, range: Range, pages: &mut Vec<u32>) -> Option<Described> {
        let room = self.free.len() * self.page;
        let len = range.len.min(room - room % range.block);
        if len == 0 {
            return None;
        }
        let list = self.page_of(cid);
        let mut named = Pages::new(self.page as u64);
        pages.extend(self.free.drain(self.free.len() - len.div_ceil(self.page)..));
        for page in pages.iter() {
            let iova = self.bounce.iova() + u64::from(*page) * self.page as u64;
            let whole = named.append(iova, self.page as u64, &list);
            assert!(whole, "whole pages follow whole pages");
        }
        Some(Described { prp: named.prp(&list), len })
    }

    /// Copies a range of windows into the pages taken for it.
    pub(super) fn copy_in(&self, pages: &[u32], windows: &[Buf], range: Range) {
        let mut done = 0;
        for window in parts(windows, range) {
            let mut bytes = window;
            while !bytes.is_empty() {
                let (page, at) = (pages[done / self.page], done % self.page);
                let (now, rest) = bytes.split_at(bytes.len().min(self.page - at));
                self.bounce.put(page as usize * self.page + at, now);
                done += now.len();
                bytes = rest;
            }
        }
    }

    /// Copies the pages taken for a range into its windows.
    pub(super) fn copy_out(&self, pages: &[u32], windows: &mut [Buf], range: Range) {
        let (mut skip, mut done) = (range.at, 0);
        for window in windows {
            if skip >= window.len() {
                skip -= window.len();
                continue;
            }
            let len = (window.len() - skip).min(range.len - done);
            let mut bytes = &mut window[skip..skip + len];
            while !bytes.is_empty() {
                let (page, at) = (pages[done / self.page], done % self.page);
                let room = bytes.len().min(self.page - at);
                let (now, rest) = bytes.split_at_mut(room);
                self.bounce.take(page as usize * self.page + at, now);
                done += room;
                bytes = rest;
            }
            skip = 0;
        }
    }

    /// Gives pages back.
    pub(super) fn release(&mut self, pages: &mut Vec<u32>) {
        self.free.append(pages);
    }
}

/// The parts of windows that a range covers.
fn parts(windows: &[Buf], range: Range) -> impl Iterator<Item = &[u8]> {
    let (mut skip, mut left) = (range.at, range.len);
    windows.iter().map(move |window| {
        let from = skip.min(window.len());
        let len = (window.len() - from).min(left);
        skip -= from;
        left -= len;
        &window[from..from + len]
    })
}

/// PRP entries while they are put together.
struct Pages {
    page: u64,
    first: Option<u64>,
    /// Where what was named ends.
    end: u64,
    second: u64,
    /// Entries after the first one.
    more: usize,
}

impl Pages {
    fn new(page: u64) -> Self {
        Self { page, first: None, end: 0, second: 0, more: 0 }
    }

    /// Names `len` bytes at `iova` too. Tells whether that was possible.
    fn append(&mut self, iova: u64, len: u64, list: &DmaMemory) -> bool {
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
                    entry(list, 0, self.second);
                    entry(list, 1, next);
                }
                more => entry(list, more, next),
            }
            self.more += 1;
            next += self.page;
        }
        true
    }

    fn prp(&self, list: &DmaMemory) -> Prp {
        let second = if self.more > 1 { list.iova() } else { self.second };
        Prp { first: self.first.unwrap_or(0), second }
    }
}

fn entry(list: &DmaMemory, index: usize, page: u64) {
    list.words()[index].store(page.to_le(), std::sync::atomic::Ordering::Relaxed);
}
