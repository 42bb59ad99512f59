//! Waking the thread of an engine: an eventfd that other threads write at most once until it is answered, and that the
//! kernel writes for an io_uring.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;

use crate::sync::atomic::{AtomicBool, Ordering};

/// Rung after something was put where the engine's thread will look.
pub(crate) struct Doorbell {
    event: OwnedFd,
    rung: AtomicBool,
    /// Whether whoever waits for the descriptor reads it too.
    read_elsewhere: AtomicBool,
}

impl Doorbell {
    pub(crate) fn new() -> Result<Self, Errno> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { event, rung: AtomicBool::new(false), read_elsewhere: AtomicBool::new(false) })
    }

    /// Makes the descriptor readable, unless it is already.
    pub(crate) fn ring(&self) {
        if !self.rung.swap(true, Ordering::AcqRel) {
            // A counter that starts at 0 and takes 1 at a time cannot overflow before it is read.
            let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
        }
    }

    /// Tells whether it was rung since the last answer; to be called before looking for what the ringing was about.
    pub(crate) fn answer(&self) -> bool {
        self.rung.load(Ordering::Acquire) && self.rung.swap(false, Ordering::AcqRel)
    }

    /// Makes the descriptor unreadable again, whoever wrote it. To be called before the [`answer`](Self::answer): one
    /// that comes between setting `rung` and writing only makes the descriptor readable once for nothing.
    pub(crate) fn hush(&self) {
        if self.read_elsewhere.load(Ordering::Relaxed) {
            return;
        }
        // There is nothing to read when the runtime woke for nothing.
        let _ = rustix::io::read(&self.event, &mut [0; 8]);
    }

    /// Whether the descriptor was readable, which it is not any more.
    pub(crate) fn was_rung(&self) -> bool {
        rustix::io::read(&self.event, &mut [0; 8]).is_ok()
    }

    /// From now on, reads wait, and are somebody else's.
    pub(crate) fn leave_to_reader(&self) -> Result<(), Errno> {
        self.read_elsewhere.store(true, Ordering::Relaxed);
        let flags = fcntl_getfl(&self.event)?;
        fcntl_setfl(&self.event, flags - OFlags::NONBLOCK)
    }
}

impl AsFd for Doorbell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}
