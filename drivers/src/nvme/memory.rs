//! Memory that a controller shares with us: its registers, and what it reaches by DMA.
//!
//! The lowest module of the driver, and the one with `unsafe`. Its invariant: **memory that the device may change at
//! any time is touched through atomics alone**; buffers of requests are touched by one side at a time, and a completion,
//! read with acquire ordering, hands them back.
#![allow(unsafe_code)]

use std::any::Any;
use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Whoever keeps memory mapped; unmaps it when dropped.
pub type Keeper = Arc<dyn Any + Send + Sync>;

/// A window of device registers.
#[derive(Clone)]
pub struct Registers {
    start: NonNull<u8>,
    len: usize,
    _keeper: Keeper,
}

// SAFETY: registers are touched through atomics alone (the module's invariant).
unsafe impl Send for Registers {}
// SAFETY: as above.
unsafe impl Sync for Registers {}

impl Registers {
    /// Wraps mapped registers.
    ///
    /// # Safety
    /// `start` is a multiple of 8, and the `len` bytes from it on are mapped, readable and writable for as long as
    /// `keeper` lives; nobody touches them but through atomics.
    pub unsafe fn new(start: NonNull<u8>, len: usize, keeper: Keeper) -> Self {
        Self { start, len, _keeper: keeper }
    }

    /// Bytes that are mapped.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is mapped.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn word(&self, at: usize) -> &AtomicU32 {
        assert!(at.is_multiple_of(4) && at + 4 <= self.len, "register {at:#x} of {:#x} bytes", self.len);
        // SAFETY: the offset is inside the window, as was just checked.
        let word = unsafe { self.start.add(at) };
        // SAFETY: aligned, mapped while `self` lives, and only ever touched through atomics.
        unsafe { AtomicU32::from_ptr(word.as_ptr().cast()) }
    }

    /// Reads a register of 32 bits.
    pub fn read32(&self, at: usize) -> u32 {
        u32::from_le(self.word(at).load(Ordering::Acquire))
    }

    /// Writes a register of 32 bits; memory written before is visible to the device by then.
    pub fn write32(&self, at: usize, value: u32) {
        self.word(at).store(value.to_le(), Ordering::Release);
    }

    /// Reads a register of 64 bits as two halves, which every controller takes. Source: \[NVMe\] 3.1.
    pub fn read64(&self, at: usize) -> u64 {
        u64::from(self.read32(at)) | u64::from(self.read32(at + 4)) << 32
    }

    /// Writes a register of 64 bits as two halves.
    pub fn write64(&self, at: usize, value: u64) {
        self.write32(at, value as u32);
        self.write32(at + 4, (value >> 32) as u32);
    }

    /// One register, to be written often.
    pub(super) fn cell(&self, at: usize) -> RegisterCell {
        RegisterCell { word: NonNull::from(self.word(at)), _keeper: self._keeper.clone() }
    }
}

/// One register of 32 bits, or one word of memory that the device looks at.
pub(super) struct RegisterCell {
    word: NonNull<AtomicU32>,
    _keeper: Keeper,
}

// SAFETY: the word is touched through atomics alone.
unsafe impl Send for RegisterCell {}

impl RegisterCell {
    fn word(&self) -> &AtomicU32 {
        // SAFETY: the word is mapped while the keeper lives.
        unsafe { self.word.as_ref() }
    }

    /// Writes; memory written before is visible to the device by then.
    #[inline]
    pub(super) fn store(&self, value: u32) {
        self.word().store(value.to_le(), Ordering::Release);
    }

    /// Reads.
    #[inline]
    pub(super) fn load(&self) -> u32 {
        u32::from_le(self.word().load(Ordering::Acquire))
    }
}

/// Memory that the device reaches by DMA, at one address for us and another one for the device.
#[derive(Clone)]
pub struct DmaMemory {
    start: NonNull<u8>,
    len: usize,
    iova: u64,
    keeper: Keeper,
}

// SAFETY: shared access is through atomics, or handed from one side to the other (the module's invariant).
unsafe impl Send for DmaMemory {}
// SAFETY: as above.
unsafe impl Sync for DmaMemory {}

impl fmt::Debug for DmaMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DmaMemory({} bytes at {:#x})", self.len, self.iova)
    }
}

impl DmaMemory {
    /// Wraps memory that is mapped for a device at `iova`.
    ///
    /// # Safety
    /// `start` is a multiple of 4096, the `len` bytes from it on are initialised, readable and writable for as long as
    /// `keeper` lives, and nobody has references to them.
    pub unsafe fn new(start: NonNull<u8>, len: usize, iova: u64, keeper: Keeper) -> Self {
        Self { start, len, iova, keeper }
    }

    /// First byte.
    pub fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The device's address of the first byte.
    pub fn iova(&self) -> u64 {
        self.iova
    }

    /// A part of it.
    ///
    /// # Panics
    /// When the part is not inside, or does not begin at a multiple of 8.
    #[must_use]
    pub fn part(&self, at: usize, len: usize) -> Self {
        assert!(at.is_multiple_of(8) && at + len <= self.len, "{len} bytes at {at} of {}", self.len);
        // SAFETY: the offset is inside, as was just checked.
        let start = unsafe { self.start.add(at) };
        Self { start, len, iova: self.iova + at as u64, keeper: self.keeper.clone() }
    }

    /// The memory as words that the device may change at any time.
    #[inline]
    pub fn words(&self) -> &[AtomicU64] {
        let words = self.start.as_ptr().cast::<AtomicU64>();
        // SAFETY: aligned to 8 and mapped while `self` lives; touched through atomics alone while shared.
        unsafe { std::slice::from_raw_parts(words, self.len / 8) }
    }

    /// The memory as entries of so many words each.
    ///
    /// # Panics
    /// When there is not one entry, or more than can be counted in 16 bits.
    pub(super) fn entries<const WORDS: usize>(&self) -> Entries<WORDS> {
        let count = u16::try_from(self.len / (8 * WORDS)).expect("queues are short");
        assert!(count > 0, "no entry of {WORDS} words in {} bytes", self.len);
        Entries { start: self.start.cast(), count, memory: self.clone() }
    }

    /// One word of 32 bits.
    pub(super) fn cell(&self, at: usize) -> RegisterCell {
        assert!(at.is_multiple_of(4) && at + 4 <= self.len, "{at} of {}", self.len);
        // SAFETY: the offset is inside, as was just checked.
        let word = unsafe { self.start.add(at) };
        RegisterCell { word: word.cast(), _keeper: self.keeper.clone() }
    }

    /// Fills it with zeros.
    pub fn clear(&self) {
        self.words().iter().for_each(|word| word.store(0, Ordering::Relaxed));
    }

    /// Copies out what the device wrote.
    pub fn snapshot<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        for (to, word) in bytes.chunks_exact_mut(8).zip(self.words()) {
            to.copy_from_slice(&word.load(Ordering::Acquire).to_ne_bytes());
        }
        bytes
    }

    /// Copies `bytes` to `at`, before the device is told of it.
    ///
    /// # Panics
    /// When they do not fit.
    pub(super) fn put(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= self.len, "{} bytes at {at} of {}", bytes.len(), self.len);
        // SAFETY: the offset is inside, as was just checked.
        let to = unsafe { self.start.add(at) };
        // SAFETY: inside the memory, which no reference and no command in flight names; `bytes` is elsewhere.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to.as_ptr(), bytes.len()) }
    }

    /// Copies from `at` on into `bytes`, once the device has handed the memory back.
    ///
    /// # Panics
    /// When there is not so much.
    pub(super) fn take(&self, at: usize, bytes: &mut [u8]) {
        assert!(at + bytes.len() <= self.len, "{} bytes at {at} of {}", bytes.len(), self.len);
        // SAFETY: the offset is inside, as was just checked.
        let from = unsafe { self.start.add(at) };
        // SAFETY: inside the memory, which no command in flight names; `bytes` is elsewhere.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), bytes.as_mut_ptr(), bytes.len()) }
    }
}

/// Memory of a queue: entries of so many words, which the device may look at or change at any time.
pub(super) struct Entries<const WORDS: usize> {
    start: NonNull<[AtomicU64; WORDS]>,
    count: u16,
    memory: DmaMemory,
}

// SAFETY: the words are touched through atomics alone.
unsafe impl<const WORDS: usize> Send for Entries<WORDS> {}

impl<const WORDS: usize> Entries<WORDS> {
    /// How many there are.
    #[inline]
    pub(super) fn count(&self) -> u16 {
        self.count
    }

    /// The device's address of the first one.
    pub(super) fn iova(&self) -> u64 {
        self.memory.iova
    }

    /// One of them.
    ///
    /// # Panics
    /// When there is none of that number.
    #[inline]
    pub(super) fn at(&self, index: u16) -> &[AtomicU64; WORDS] {
        // Without the numbers, which would have to lie in memory for that.
        assert!(index < self.count, "an entry beyond the end of its queue");
        // SAFETY: the entry is inside, as was just checked, and `entries` has counted only whole ones.
        let entry = unsafe { self.start.add(usize::from(index)) };
        // SAFETY: aligned to 8 and mapped while `memory` lives; touched through atomics alone.
        unsafe { entry.as_ref() }
    }
}
