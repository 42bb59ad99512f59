//! Telling the controller where the windows of a request are.
//!
//! ```text
//!   one window, two pages at most ──▶ PRPs, in the command itself
//!   else, where there are SGLs ─────▶ one data block in the command, or several in the command's page (`sgl`)
//!   else ───────────────────────────▶ a PRP list in the command's page, as far as PRPs can name the windows (`prp`)
//! ```
//!
//! Memory outside of the arena is unknown to the device: its bytes go through pages of our own, and are counted.

use drystone_core::buf::Buf;

use super::layout::{DataPointer, Prp, SglSupport};
use super::memory::DmaMemory;
use super::prp::Pages;
use super::sgl::Blocks;

/// The largest command, in bytes: where larger ones gain nothing any more, and one list page suffices.
pub(super) const TRANSFER_MAX: usize = 1 << 20;

/// Bytes of pages for what has to be copied.
const BOUNCE_LEN: usize = 2 << 20;

/// Translates addresses for one queue pair.
pub(super) struct Mapper {
    /// Our address of the arena, its bytes, and the device's address.
    arena: (usize, usize, u64),
    page: usize,
    sgl: SglSupport,
    /// One page a command.
    lists: DmaMemory,
    bounce: DmaMemory,
    /// Pages of `bounce` that no command uses.
    free: Vec<u32>,
}

/// What a command was told.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Described {
    pub(super) data: DataPointer,
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

    pub(super) fn new(
        memory: &DmaMemory,
        commands: u16,
        page: usize,
        sgl: SglSupport,
        arena: (usize, usize, u64),
    ) -> Self {
        let lists_len = usize::from(commands) * page;
        let bounce = memory.part(lists_len, BOUNCE_LEN);
        let free = (0..(BOUNCE_LEN / page) as u32).rev().collect();
        Self { arena, page, sgl, lists: memory.part(0, lists_len), bounce, free }
    }

    /// The page that belongs to a command, for its PRP list or a little data.
    pub(super) fn page_of(&self, cid: u16) -> DmaMemory {
        self.lists.part(usize::from(cid) * self.page, self.page)
    }

    /// The device's address of a window, if the device knows it.
    #[inline]
    fn translate(&self, window: &[u8]) -> Option<u64> {
        let (start, len, iova) = self.arena;
        let at = (window.as_ptr() as usize).wrapping_sub(start);
        // The arena's last address is no more than a device address can be.
        (at < len).then(|| iova.wrapping_add(at as u64))
    }

    /// Describes a window in the command itself, without copying: one that the device knows, and of two pages at most.
    #[inline(always)]
    pub(super) fn describe_small(&self, window: &Buf) -> Option<Prp> {
        let iova = self.translate(window)?;
        let within = (self.page as u64).wrapping_sub(1);
        let next_page = (iova | within).wrapping_add(1);
        let end = iova.wrapping_add(window.len() as u64);
        if iova & 3 != 0 || end > next_page.wrapping_add(self.page as u64) {
            return None;
        }
        Some(Prp { first: iova, second: if end <= next_page { 0 } else { next_page } })
    }

    /// Describes as much of the range as one command can name without copying; nothing, if that is not even a block.
    pub(super) fn describe(&self, cid: u16, windows: &[Buf], range: Range) -> Option<Described> {
        if let [window] = windows
            && range.at == 0
            && range.len == window.len()
            && let Some(prp) = self.describe_small(window)
        {
            return Some(Described { data: DataPointer::Prp(prp), len: range.len });
        }
        match self.sgl {
            SglSupport::None => {
                let mut pages = Pages::new(self.page as u64, self.page_of(cid));
                let len = self.name(windows, range, |iova, len| pages.append(iova, len))?;
                if len < range.len {
                    // How many pages there are decides what PRP2 means, so they are counted again.
                    pages = Pages::new(self.page as u64, self.page_of(cid));
                    self.name(windows, Range { len, ..range }, |iova, len| pages.append(iova, len))?;
                }
                Some(Described { data: DataPointer::Prp(pages.prp()), len })
            }
            SglSupport::Bytes | SglSupport::Dwords => {
                let aligned = self.sgl == SglSupport::Dwords;
                let mut blocks = Blocks::new(aligned, self.page_of(cid));
                let len = self.name(windows, range, |iova, len| blocks.append(iova, len))?;
                if len < range.len {
                    // The blocks of an SGL are as long as the command's data, to the byte.
                    blocks = Blocks::new(aligned, self.page_of(cid));
                    self.name(windows, Range { len, ..range }, |iova, len| blocks.append(iova, len))?;
                }
                Some(Described { data: DataPointer::Sgl(blocks.sgl()), len })
            }
        }
    }

    /// Has the parts of windows that the range covers named one after the other, as far as the device knows them and
    /// `append` can name them; tells how many bytes of whole blocks that are, unless it is not even one.
    fn name(&self, windows: &[Buf], range: Range, mut append: impl FnMut(u64, u64) -> bool) -> Option<usize> {
        let mut named = 0;
        for part in parts(windows, range).filter(|part| !part.is_empty()) {
            let Some(iova) = self.translate(part) else { break };
            if !append(iova, part.len() as u64) {
                break;
            }
            named += part.len();
        }
        named -= named % range.block;
        (named > 0).then_some(named)
    }

    /// Takes pages for as much of the range as there are; nothing while there are too few for a block.
    pub(super) fn bounce(&mut self, cid: u16, range: Range, pages: &mut Vec<u32>) -> Option<Described> {
        let room = self.free.len() * self.page;
        let len = range.len.min(room - room % range.block);
        if len == 0 {
            return None;
        }
        let list = self.page_of(cid);
        let mut named = Pages::new(self.page as u64, list);
        pages.extend(self.free.drain(self.free.len() - len.div_ceil(self.page)..));
        for page in pages.iter() {
            let iova = self.bounce.iova() + u64::from(*page) * self.page as u64;
            let whole = named.append(iova, self.page as u64);
            assert!(whole, "whole pages follow whole pages");
        }
        Some(Described { data: DataPointer::Prp(named.prp()), len })
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
