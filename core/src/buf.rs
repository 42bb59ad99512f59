//! The buffer that carries guest data from its source to a leaf and back without copying.
//!
//! Owns: memory, and the right to touch one window of it. Refuses to know what the bytes mean.
//! Start at [`Buf`]; a vectored request is a [`BufList`].
//!
//! ```text
//!   Region  [........................................]   supplied by the heap, a driver's DMA arena, a guest
//!   Buf      ^------------- a ------------^              one exclusive window
//!   split    ^---- a ----^^------ b ------^              two exclusive windows, same region
//!   unsplit  ^------------- a ------------^              neighbours grow together again
//! ```
//!
//! Beside `crypto/wide.rs`, which is about instructions, this is the only module of core with `unsafe`. Its invariant:
//! **no two live `Buf`s overlap**, so whoever holds one may read and write its window from any thread, and the region lives as
//! long as any window of it.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;

use smallvec::SmallVec;

/// Alignment of buffers from [`Buf::zeroed`], in bytes: the largest that direct I/O asks for in practice.
pub const BUF_ALIGN: usize = 4096;

/// Bytes from which a buffer is aligned by hand: an allocator that is asked for more than its own alignment writes the zeros
/// that it could have left to the host, and all of the memory is taken before anything is in it.
const UNTOUCHED_MIN: usize = 64 << 10;

/// Memory that buffers are windows of.
///
/// The heap is one ([`Buf::zeroed`]); an executor or driver supplies others: registered buffers, huge pages,
/// memory mapped for a device.
///
/// # Safety
/// [`bytes`](Region::bytes) returns the same valid, writable memory for the whole life of the region, and nobody
/// but windows made of it touches that memory (a device does only while a window is lent to it).
pub unsafe trait Region: Send + Sync + 'static {
    /// Returns the start and length in bytes of the memory.
    fn bytes(&self) -> (NonNull<u8>, usize);
}

struct Heap {
    memory: NonNull<u8>,
    layout: Layout,
    /// Bytes of the window that all others are made of.
    len: usize,
}

// SAFETY: the memory is owned by this value, and handed out only as disjoint windows.
unsafe impl Send for Heap {}
// SAFETY: as above; no method gives access through a shared reference.
unsafe impl Sync for Heap {}

/// Who keeps a window's memory. One word in every window: requests move through the engine by value.
enum Owner {
    Heap(Heap),
    Region(Arc<dyn Region>),
}

impl Owner {
    fn len(&self) -> usize {
        match self {
            Self::Heap(heap) => heap.len,
            Self::Region(region) => region.bytes().1,
        }
    }
}

impl Drop for Heap {
    fn drop(&mut self) {
        // SAFETY: allocated in `Buf::zeroed_aligned` with this very layout; windows hold the region alive.
        unsafe { dealloc(self.memory.as_ptr(), self.layout) }
    }
}

/// An exclusive window of reference-counted memory.
///
/// Dereferences to `[u8]`. It is `Send`: a window may be filled on another thread, by the kernel or by a device.
///
/// ```
/// use drystone_core::buf::Buf;
/// let mut head = Buf::zeroed(8192);
/// let mut tail = head.split_off(4096);
/// tail.fill(7);
/// head.unsplit(tail).expect("neighbours of one region");
/// assert_eq!(head.len(), 8192);
/// assert_eq!(head[4096], 7);
/// ```
pub struct Buf {
    start: NonNull<u8>,
    len: usize,
    owner: Option<Arc<Owner>>,
}

// SAFETY: a `Buf` is the only access to its window (the invariant of this module), like a `Box<[u8]>`.
unsafe impl Send for Buf {}
// SAFETY: shared references only read.
unsafe impl Sync for Buf {}

impl Buf {
    /// Returns a buffer of no bytes; allocates nothing.
    pub const fn empty() -> Self {
        Self { start: NonNull::dangling(), len: 0, owner: None }
    }

    /// Allocates `len` zero bytes, aligned for direct I/O.
    pub fn zeroed(len: usize) -> Self {
        Self::zeroed_aligned(len, BUF_ALIGN)
    }

    /// Allocates `len` zero bytes at a multiple of `align`, a power of two.
    pub fn zeroed_aligned(len: usize, align: usize) -> Self {
        if len == 0 {
            return Self::empty();
        }
        let layout = match len < UNTOUCHED_MIN {
            true => Layout::from_size_align(len, align),
            false => Layout::from_size_align(len.saturating_add(align), 1),
        };
        let layout = layout.expect("a buffer length fits in the address space");
        // SAFETY: the layout has a size above zero.
        let memory = unsafe { alloc_zeroed(layout) };
        let Some(memory) = NonNull::new(memory) else { handle_alloc_error(layout) };
        let before = memory.as_ptr().align_offset(align);
        assert!(before <= layout.size() - len, "there is room for the alignment");
        // SAFETY: within the allocation, as was just asked.
        let start = unsafe { memory.add(before) };
        Self { start, len, owner: Some(Arc::new(Owner::Heap(Heap { memory, layout, len }))) }
    }

    /// Wraps the whole of `region` in one window.
    ///
    /// # Safety
    /// No other window of this region exists or will be made.
    pub unsafe fn from_region(region: Arc<dyn Region>) -> Self {
        let (start, len) = region.bytes();
        Self { start, len, owner: Some(Arc::new(Owner::Region(region))) }
    }

    /// Length of the window in bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Tells whether the window holds no bytes.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Address of the first byte, for alignment checks and for handing the window to a kernel or device.
    #[inline]
    pub fn as_ptr(&self) -> *const u8 {
        self.start.as_ptr()
    }

    /// Address of the first byte, writable for as long as the caller holds the window.
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Splits the window at `at`: `self` keeps `[0, at)`, the result holds `[at, len)`.
    ///
    /// # Panics
    /// When `at` is beyond the window.
    #[must_use]
    pub fn split_off(&mut self, at: usize) -> Self {
        assert!(at <= self.len, "split at {at} of a window of {} bytes", self.len);
        // SAFETY: `at` is within the window, so the address stays inside (or one past) the region.
        let start = unsafe { self.start.add(at) };
        let tail = Self { start, len: self.len - at, owner: self.owner.clone() };
        self.len = at;
        tail
    }

    /// Splits the window at `at`: `self` keeps `[at, len)`, the result holds `[0, at)`.
    #[must_use]
    pub fn split_to(&mut self, at: usize) -> Self {
        let tail = self.split_off(at);
        std::mem::replace(self, tail)
    }

    /// Appends the window `next`, which must begin where this one ends in the same region.
    ///
    /// # Errors
    /// Gives `next` back when the two are not neighbours. An empty window is everyone's neighbour.
    pub fn unsplit(&mut self, next: Self) -> Result<(), Self> {
        if next.is_empty() {
            return Ok(());
        }
        if self.is_empty() {
            *self = next;
            return Ok(());
        }
        if !self.precedes(&next) {
            return Err(next);
        }
        self.len += next.len;
        Ok(())
    }

    fn precedes(&self, next: &Self) -> bool {
        match (&self.owner, &next.owner) {
            (Some(mine), Some(theirs)) => {
                Arc::ptr_eq(mine, theirs) && self.start.as_ptr().wrapping_add(self.len) == next.start.as_ptr()
            }
            _ => false,
        }
    }

    /// Tells whether this window is the only one left of its region, and all of it.
    pub fn is_whole(&self) -> bool {
        self.owner.as_ref().is_some_and(|owner| Arc::strong_count(owner) == 1 && owner.len() == self.len)
    }
}

impl Default for Buf {
    fn default() -> Self {
        Self::empty()
    }
}

impl Deref for Buf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the window is initialised memory of the region, exclusive to this value.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for Buf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl From<&[u8]> for Buf {
    fn from(bytes: &[u8]) -> Self {
        let mut buf = Self::zeroed(bytes.len());
        buf.copy_from_slice(bytes);
        buf
    }
}

impl From<Vec<u8>> for Buf {
    fn from(bytes: Vec<u8>) -> Self {
        Self::from(bytes.as_slice())
    }
}

impl fmt::Debug for Buf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buf({} bytes)", self.len)
    }
}

/// The buffers of one vectored request, in guest order.
///
/// One window lives inline, and the list is no larger than that: requests move through the engine by value, and every
/// word of them is copied several times. A longer list is on the heap.
pub struct BufList(Windows);

enum Windows {
    /// One window, or none where it is empty.
    One(Buf),
    /// Several.
    Many(Box<SmallVec<[Buf; 4]>>),
}

const _: () = assert!(size_of::<BufList>() == size_of::<Buf>(), "a list costs no more than its window");

impl BufList {
    /// Returns a list of no buffers.
    #[inline]
    pub const fn new() -> Self {
        Self(Windows::One(Buf::empty()))
    }

    /// Number of bytes in all windows together.
    #[inline]
    pub fn len_bytes(&self) -> usize {
        match &self.0 {
            Windows::One(buf) => buf.len,
            Windows::Many(bufs) => bufs.iter().map(Buf::len).sum(),
        }
    }

    /// Tells whether the list holds no bytes.
    #[inline]
    pub fn is_empty(&self) -> bool {
        match &self.0 {
            Windows::One(buf) => buf.is_empty(),
            Windows::Many(bufs) => bufs.iter().all(Buf::is_empty),
        }
    }

    /// The only window, unless there are several or none.
    #[inline]
    pub fn only(&self) -> Option<&Buf> {
        match &self.0 {
            Windows::One(buf) if !buf.is_empty() => Some(buf),
            _ => None,
        }
    }

    /// The windows in guest order.
    #[inline]
    pub fn windows(&self) -> &[Buf] {
        match &self.0 {
            Windows::One(buf) if buf.is_empty() => &[],
            Windows::One(buf) => std::slice::from_ref(buf),
            Windows::Many(bufs) => bufs,
        }
    }

    /// The windows in guest order, writable.
    #[inline]
    pub fn windows_mut(&mut self) -> &mut [Buf] {
        match &mut self.0 {
            Windows::One(buf) if buf.is_empty() => &mut [],
            Windows::One(buf) => std::slice::from_mut(buf),
            Windows::Many(bufs) => bufs,
        }
    }

    /// Appends a window; it grows together with the last one where they are neighbours.
    pub fn push(&mut self, buf: Buf) {
        if buf.is_empty() {
            return;
        }
        let last = match &mut self.0 {
            Windows::One(only) => Some(only),
            Windows::Many(bufs) => bufs.last_mut(),
        };
        let rest = match last {
            Some(last) => last.unsplit(buf),
            None => Err(buf),
        };
        let Err(buf) = rest else { return };
        match &mut self.0 {
            Windows::One(only) => {
                let windows = [std::mem::take(only), buf];
                self.0 = Windows::Many(Box::new(windows.into_iter().collect()));
            }
            Windows::Many(bufs) => bufs.push(buf),
        }
    }

    /// Appends the windows of `next`.
    pub fn append(&mut self, next: Self) {
        match next.0 {
            Windows::One(buf) => self.push(buf),
            Windows::Many(bufs) => bufs.into_iter().for_each(|buf| self.push(buf)),
        }
    }

    /// Splits off the first `at` bytes: the result holds them, `self` the rest.
    ///
    /// # Panics
    /// When the list holds fewer than `at` bytes.
    #[must_use]
    pub fn split_to(&mut self, at: usize) -> Self {
        if at == self.len_bytes() {
            return std::mem::take(self);
        }
        let bufs = match &mut self.0 {
            Windows::One(buf) => return buf.split_to(at).into(),
            Windows::Many(bufs) => bufs,
        };
        let mut front = Self::new();
        let mut left = at;
        while left > 0 {
            let first = bufs.first_mut().expect("the list holds at least `at` bytes");
            if first.len() <= left {
                left -= first.len();
                front.push(bufs.remove(0));
            } else {
                front.push(first.split_to(left));
                left = 0;
            }
        }
        front
    }

    /// Fills `[from, len)` with zeros.
    pub fn zero_from(&mut self, from: usize) {
        let mut at = 0;
        for buf in self.windows_mut() {
            let skip = from.saturating_sub(at).min(buf.len());
            at += buf.len();
            buf[skip..].fill(0);
        }
    }

    /// Copies `bytes` into the list at `at`; what does not fit is left out.
    pub fn copy_in(&mut self, at: usize, mut bytes: &[u8]) {
        let mut skip = at;
        for buf in self.windows_mut() {
            if skip >= buf.len() {
                skip -= buf.len();
                continue;
            }
            let room = (buf.len() - skip).min(bytes.len());
            buf[skip..skip + room].copy_from_slice(&bytes[..room]);
            bytes = &bytes[room..];
            skip = 0;
        }
    }

    /// Copies the list from `at` on into `out`; what lies beyond the list is left alone.
    pub fn copy_out(&self, at: usize, mut out: &mut [u8]) {
        let mut skip = at;
        for buf in self.windows() {
            if skip >= buf.len() {
                skip -= buf.len();
                continue;
            }
            let room = (buf.len() - skip).min(out.len());
            out[..room].copy_from_slice(&buf[skip..skip + room]);
            out = &mut out[room..];
            skip = 0;
        }
    }

    /// Tells whether every byte is zero.
    pub fn is_zero(&self) -> bool {
        self.windows().iter().all(|buf| is_zero(buf))
    }

    /// Takes the only window out, or copies several into one.
    pub fn into_single(self) -> Buf {
        match self.0 {
            Windows::One(buf) => return buf,
            Windows::Many(mut bufs) if bufs.len() == 1 => return bufs.pop().unwrap_or_default(),
            Windows::Many(_) => {}
        }
        let mut whole = Buf::zeroed(self.len_bytes());
        self.copy_out(0, &mut whole);
        whole
    }
}

impl Default for BufList {
    #[inline]
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for BufList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("BufList").field(&self.windows()).finish()
    }
}

/// Tells whether every byte is zero; reads 64 bytes a step, and stops at the first that is not.
pub fn is_zero(bytes: &[u8]) -> bool {
    let mut blocks = bytes.chunks_exact(64);
    blocks.by_ref().all(|block| block.iter().fold(0, |any, byte| any | byte) == 0)
        && blocks.remainder().iter().all(|byte| *byte == 0)
}

impl From<Buf> for BufList {
    #[inline]
    fn from(buf: Buf) -> Self {
        Self(Windows::One(buf))
    }
}

impl FromIterator<Buf> for BufList {
    /// Unlike with [`push`](BufList::push), neighbours stay windows of their own.
    fn from_iter<I: IntoIterator<Item = Buf>>(bufs: I) -> Self {
        let mut bufs: SmallVec<[Buf; 4]> = bufs.into_iter().filter(|buf| !buf.is_empty()).collect();
        match bufs.len() {
            0 | 1 => bufs.pop().unwrap_or_default().into(),
            _ => Self(Windows::Many(Box::new(bufs))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_split_and_grow_together_in_order() {
        let mut a = Buf::zeroed(100);
        let mut b = a.split_off(30);
        let c = b.split_off(50);
        b.fill(1);
        assert_eq!((a.len(), b.len(), c.len()), (30, 50, 20));
        let c = a.unsplit(c).expect_err("a and c are not neighbours");
        assert!(!a.is_whole());
        a.unsplit(b).expect("neighbours");
        a.unsplit(c).expect("neighbours");
        assert!(a.is_whole());
        assert_eq!(a.iter().map(|byte| u32::from(*byte)).sum::<u32>(), 50);
    }

    #[test]
    fn windows_of_two_regions_never_merge() {
        let mut a = Buf::zeroed(16);
        assert!(a.unsplit(Buf::zeroed(16)).is_err());
        a.unsplit(Buf::empty()).expect("an empty window is a neighbour");
    }

    #[test]
    fn a_region_outlives_its_first_window() {
        let mut a = Buf::from(&b"stones without mortar"[..]);
        let b = a.split_off(6);
        drop(a);
        assert_eq!(&*b, b" without mortar");
    }

    #[test]
    fn lists_split_at_any_byte() {
        let bytes: Vec<u8> = (0..40).collect();
        for at in 0..=40 {
            let mut list: BufList =
                [&bytes[..7], &bytes[7..8], &bytes[8..40]].into_iter().map(Buf::from).collect();
            let front = list.split_to(at);
            assert_eq!((front.len_bytes(), list.len_bytes()), (at, 40 - at));
            assert_eq!(front.only().map(|buf| buf.len()), (1..8).contains(&at).then_some(at));
            let mut copy = [0xff; 40];
            front.copy_out(0, &mut copy[..at]);
            list.copy_out(0, &mut copy[at..]);
            assert_eq!(copy[..], bytes[..]);
        }
    }

    #[test]
    fn zeroing_and_copying_cross_windows() {
        let mut list: BufList = [vec![1u8; 5], vec![2; 5]].into_iter().map(Buf::from).collect();
        list.zero_from(4);
        let mut out = [9; 10];
        list.copy_out(0, &mut out);
        assert_eq!(out, [1, 1, 1, 1, 0, 0, 0, 0, 0, 0]);
        list.copy_in(3, &[7; 4]);
        assert!(!list.is_zero());
        assert_eq!(&*list.into_single(), [1, 1, 1, 7, 7, 7, 7, 0, 0, 0]);
    }

    #[test]
    fn memory_moves_between_threads() {
        let mut a = Buf::zeroed(64);
        let mut b = a.split_off(32);
        let b = std::thread::spawn(move || {
            b.fill(3);
            b
        });
        a.fill(2);
        a.unsplit(b.join().expect("the thread only fills")).expect("neighbours");
        assert_eq!((a[31], a[32]), (2, 3));
    }
}
