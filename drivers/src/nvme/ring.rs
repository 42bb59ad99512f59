//! A submission queue and a completion queue in shared memory, and their doorbells.
//!
//! ```text
//!   submission   [ . . c c c . . ]     head (theirs, told by completions) ──▶ tail (ours, doorbell)
//!   completion   [ 1 1 0 0 0 0 0 ]     phase tag: entries of this round have `phase`
//!                      ▲ head (ours, doorbell)
//! ```
//!
//! Owns places and phases. Refuses to know what commands mean, and whether a completion makes sense.

use std::sync::atomic::{Ordering, fence};

use super::layout::{COMPLETION_ENTRY_LEN, Command, Completion, SUBMISSION_ENTRY_LEN};
use super::memory::{DmaMemory, RegisterCell};

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
    #[inline]
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

/// A submission queue.
pub(super) struct SubmissionRing {
    entries: DmaMemory,
    len: u16,
    tail: u16,
    doorbell: Doorbell,
}

impl SubmissionRing {
    /// Takes over `memory`, all of which is the queue.
    pub(super) fn new(memory: DmaMemory, doorbell: Doorbell) -> Self {
        let len = u16::try_from(memory.len() / SUBMISSION_ENTRY_LEN).expect("queues are short");
        Self { entries: memory, len, tail: 0, doorbell }
    }

    pub(super) fn len(&self) -> u16 {
        self.len
    }

    pub(super) fn iova(&self) -> u64 {
        self.entries.iova()
    }

    /// Puts a command at the tail. The caller has fewer commands in flight than the queue has places, less one.
    #[inline]
    pub(super) fn push(&mut self, command: &Command) {
        let at = usize::from(self.tail) * 8;
        for (word, value) in self.entries.words()[at..at + 8].iter().zip(command.0) {
            word.store(value.to_le(), Ordering::Relaxed);
        }
        self.tail += 1;
        if self.tail == self.len {
            self.tail = 0;
        }
    }

    /// Rings the doorbell, if there is something that the controller was not told of. Tells whether there was.
    #[inline]
    pub(super) fn ring(&mut self) -> bool {
        let news = self.tail != self.doorbell.told;
        if news {
            self.doorbell.tell(self.tail);
        }
        news
    }
}

/// A completion queue.
pub(super) struct CompletionRing {
    entries: DmaMemory,
    len: u16,
    head: u16,
    phase: bool,
    doorbell: Doorbell,
}

impl CompletionRing {
    /// Takes over `memory`, all of which is the queue, and clears it: phase tags begin at 0.
    pub(super) fn new(memory: DmaMemory, doorbell: Doorbell) -> Self {
        memory.clear();
        let len = u16::try_from(memory.len() / COMPLETION_ENTRY_LEN).expect("queues are short");
        Self { entries: memory, len, head: 0, phase: true, doorbell }
    }

    pub(super) fn iova(&self) -> u64 {
        self.entries.iova()
    }

    /// Where the next entry comes.
    pub(super) fn head(&self) -> u16 {
        self.head
    }

    /// Takes the next entry, if the controller has written it.
    #[inline]
    pub(super) fn next(&mut self) -> Option<Completion> {
        let at = usize::from(self.head) * 2;
        let words = &self.entries.words()[at..at + 2];
        // The word with the phase tag comes first: what is read after it is no older.
        let high = u64::from_le(words[1].load(Ordering::Acquire));
        if Completion::phase(high) != self.phase {
            return None;
        }
        let low = u64::from_le(words[0].load(Ordering::Relaxed));
        self.head += 1;
        if self.head == self.len {
            self.head = 0;
            self.phase = !self.phase;
        }
        Some(Completion::parse([low, high]))
    }

    /// Gives the places of what was taken back to the controller.
    #[inline]
    pub(super) fn release(&mut self) {
        if self.head != self.doorbell.told {
            self.doorbell.tell(self.head);
        }
    }
}
