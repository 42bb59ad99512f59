//! A submission queue and a completion queue in shared memory, and their doorbells.
//!
//! ```text
//!   submission   [ . . c c c . . ]     head (theirs, told by completions) ──▶ tail (ours, doorbell)
//!   completion   [ 1 1 0 0 0 0 0 ]     phase tag: entries of this round have the phase of `success`
//!                      ▲ head (ours, doorbell)
//! ```
//!
//! Owns places and phases. Refuses to know what commands mean, and whether a completion makes sense.

use std::sync::atomic::{Ordering, fence};

use super::layout::{COMPLETION_ENTRY_LEN, Command, Completion, SUBMISSION_ENTRY_LEN};
use super::memory::{DmaMemory, Entries, RegisterCell};

/// A doorbell, with its shadow in memory where the controller wants that.
pub(super) struct Doorbell {
    register: RegisterCell,
    shadow: Option<Shadow>,
    /// The value last told.
    told: u16,
}

/// A word that the controller reads, and the value up to which it does so without being rung. Source: \[NVMe\] 7.13.
pub(super) struct Shadow {
    pub(super) value: RegisterCell,
    pub(super) event: RegisterCell,
}

impl Doorbell {
    pub(super) fn new(register: RegisterCell, shadow: Option<Shadow>) -> Self {
        if let Some(shadow) = &shadow {
            shadow.value.store(0);
        }
        Self { register, shadow, told: 0 }
    }

    /// Tells the controller of a new value.
    #[inline(always)]
    fn tell(&mut self, value: u16) {
        let before = std::mem::replace(&mut self.told, value);
        if let Some(shadow) = &self.shadow {
            shadow.value.store(u32::from(value));
            // The controller writes its event index, then looks at the shadow; we write the shadow, then look at the
            // index. One of the two sees the other.
            fence(Ordering::SeqCst);
            let event = shadow.event.load() as u16;
            // Whether the event index lies in what was just passed, all modulo 2^16.
            if value.wrapping_sub(event).wrapping_sub(1) >= value.wrapping_sub(before) {
                return;
            }
        }
        self.register.store(u32::from(value));
    }
}

/// The place after `place` in a queue of `count`.
#[inline]
fn after(place: u16, count: u16) -> u16 {
    // A place is below 65535, which is the most that a queue counts.
    let next = place.wrapping_add(1);
    if next == count { 0 } else { next }
}

/// A submission queue.
pub(super) struct SubmissionRing {
    entries: Entries<{ SUBMISSION_ENTRY_LEN / 8 }>,
    tail: u16,
    doorbell: Doorbell,
}

impl SubmissionRing {
    /// Takes over `memory`, all of which is the queue.
    pub(super) fn new(memory: &DmaMemory, doorbell: Doorbell) -> Self {
        Self { entries: memory.entries(), tail: 0, doorbell }
    }

    #[inline]
    pub(super) fn len(&self) -> u16 {
        self.entries.count()
    }

    pub(super) fn iova(&self) -> u64 {
        self.entries.iova()
    }

    /// Puts a command at the tail. The caller has fewer commands in flight than the queue has places, less one.
    #[inline(always)]
    pub(super) fn push(&mut self, command: &Command) {
        for (word, value) in self.entries.at(self.tail).iter().zip(command.0) {
            word.store(value.to_le(), Ordering::Relaxed);
        }
        self.tail = after(self.tail, self.entries.count());
    }

    /// Whether there is something that the controller was not told of.
    #[inline]
    pub(super) fn has_news(&self) -> bool {
        self.tail != self.doorbell.told
    }

    /// Rings the doorbell.
    #[inline]
    pub(super) fn ring(&mut self) {
        self.doorbell.tell(self.tail);
    }
}

/// A completion queue.
pub(super) struct CompletionRing {
    entries: Entries<{ COMPLETION_ENTRY_LEN / 8 }>,
    head: u16,
    /// What the [verdict](Completion::VERDICT) on a command that succeeded is in this round: it has the phase tag of new entries.
    success: u64,
    doorbell: Doorbell,
}

impl CompletionRing {
    /// Takes over `memory`, all of which is the completion queue of queue pair `queue`, and clears it: phase tags begin at 0.
    pub(super) fn new(queue: u16, memory: &DmaMemory, doorbell: Doorbell) -> Self {
        memory.clear();
        Self { entries: memory.entries(), head: 0, success: Completion::success(queue, true), doorbell }
    }

    pub(super) fn iova(&self) -> u64 {
        self.entries.iova()
    }

    /// Where the next entry comes.
    #[inline]
    pub(super) fn head(&self) -> u16 {
        self.head
    }

    /// The second word of the next entry, which may be an old one. For commands that have no result of their own, the first
    /// need not be read.
    #[inline(always)]
    pub(super) fn look(&self) -> u64 {
        u64::from_le(self.entries.at(self.head)[1].load(Ordering::Acquire))
    }

    /// Whether what was [seen](Self::look) has just come.
    #[inline]
    pub(super) fn is_new(&self, word: u64) -> bool {
        Completion::phase(word) == Completion::phase(self.success)
    }

    /// Whether it is new, and says that a command of this queue succeeded.
    #[inline]
    pub(super) fn is_success(&self, word: u64) -> bool {
        word & Completion::VERDICT == self.success
    }

    /// Goes on to the next entry.
    #[inline]
    pub(super) fn advance(&mut self) {
        self.head = after(self.head, self.entries.count());
        if self.head == 0 {
            self.success ^= Completion::success(0, true);
        }
    }

    /// Takes the next entry, if the controller has written it.
    pub(super) fn next(&mut self) -> Option<Completion> {
        let word = self.look();
        if !self.is_new(word) {
            return None;
        }
        // After the word with the phase tag: what is read now is no older.
        let result = u64::from_le(self.entries.at(self.head)[0].load(Ordering::Relaxed));
        self.advance();
        Some(Completion::parse([result, word]))
    }

    /// Gives the places of what was taken back to the controller.
    #[inline]
    pub(super) fn release(&mut self) {
        if self.head != self.doorbell.told {
            self.doorbell.tell(self.head);
        }
    }
}
