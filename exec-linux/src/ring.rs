//! An io_uring: reads, writes and what else the kernel does better when it is asked asynchronously.
//!
//! Every request in flight has a [`Slot`], which keeps its buffers. The invariant of this module: **from the moment an
//! entry is in the submission queue until its completion has been taken, nobody touches its slot, and slots do not
//! move.** So what the kernel writes to is alive and ours alone. Dropping the ring waits for the kernel.
#![allow(unsafe_code)]

use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::OnceLock;
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use drystone_core::buf::{Buf, BufList};
use drystone_core::intent::{Action, Errno, Fua, LeafId, Outcome, Token, ZeroFlags};
use io_uring::types::{Fd, FsyncFlags, Timespec};
use io_uring::{IoUring, Probe, opcode, squeue};
use nix::libc;
use rustix::fs::FallocateFlags;

use crate::doorbell::Doorbell;
use crate::leaf::WINDOWS_MAX;

/// What names the completions of cancellations.
const CANCEL: u64 = u64::MAX;

/// Bytes in one request at the most: the kernel stops there by itself. Source: linux/fs.h, `MAX_RW_COUNT`.
const TRANSFER_MAX: usize = 0x7fff_f000;

/// Leaves whose files the kernel looks up once rather than at each request; further leaves work all the same.
const FILES_MAX: u32 = 1024;

/// The longest sleep: what a clock of the kernel surely holds.
const SLEEP_MAX: Duration = Duration::from_hours(24 * 365 * 100);

/// A ring and what is in flight on it.
pub(crate) struct Ring {
    ring: IoUring,
    slots: Box<[Slot]>,
    /// Slots that are not in flight.
    free: Vec<u32>,
    /// Slots that wait for sockets: one, or none.
    watching: usize,
    /// Which leaves are in the kernel's table of files, at the place of their number.
    files: Vec<bool>,
    /// The ring belongs to the thread that made it.
    _not_send: std::marker::PhantomData<*const ()>,
}

/// One request in flight.
struct Slot {
    token: Token,
    op: RingOp,
    data: BufList,
    /// The kernel's description of `data`, where that is several windows. Keeps its memory.
    vectors: Vec<libc::iovec>,
    time: Timespec,
}

/// What a ring can do.
#[derive(Clone, Copy, Debug)]
enum RingOp {
    /// Less than a `block` may be the end of the leaf, or not.
    Read {
        leaf: LeafId,
        offset: u64,
        block: u32,
    },
    Write {
        leaf: LeafId,
        offset: u64,
        fua: Fua,
    },
    Flush {
        leaf: LeafId,
    },
    Discard {
        leaf: LeafId,
        offset: u64,
        len: u64,
    },
    WriteZeroes {
        leaf: LeafId,
        offset: u64,
        len: u64,
        flags: ZeroFlags,
    },
    Sleep {
        duration: Duration,
    },
    /// Waits for sockets; nobody's request.
    Watch,
}

/// What came of a request.
pub(crate) enum Completion {
    /// An answer.
    Outcome(Token, Outcome),
    /// The ring cannot do this; blocking calls have more ways.
    Again(Token, Action),
    /// Sockets can go on.
    Sockets,
}

impl Ring {
    /// Sets up a ring that rings `bell` when there is something to complete, while it is [armed](Self::arm).
    pub(crate) fn new(entries: u32, bell: &Doorbell) -> io::Result<Self> {
        let ring = build(entries.clamp(1, 32_768))?;
        check_operations(&ring)?;
        // Every request in flight has room for its completion.
        let depth = ring.params().cq_entries();
        let slots = (0..depth).map(|_| Slot::default()).collect();
        let files = match ring.submitter().register_files_sparse(FILES_MAX) {
            Ok(()) => vec![false; FILES_MAX as usize],
            // Kernels before 5.19.
            Err(_) => Vec::new(),
        };
        let mut this = Self {
            ring,
            slots,
            free: (0..depth).rev().collect(),
            watching: 0,
            files,
            _not_send: std::marker::PhantomData,
        };
        // Observed on Linux 6.18: with deferred completions, polling the ring itself does not tell of them; and a poll
        // on an eventfd, as a request of the ring, wakes the ring's own eventfd only once.
        this.ring.submitter().register_eventfd(bell.as_fd().as_raw_fd())?;
        this.disarm();
        Ok(this)
    }

    #[inline]
    pub(crate) fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    /// Takes an open file into the kernel's table, which saves it counting references at each request.
    pub(crate) fn open(&mut self, leaf: LeafId, fd: BorrowedFd<'_>) {
        if let Some(known) = self.files.get_mut(leaf.0 as usize) {
            *known = self.ring.submitter().register_files_update(leaf.0, &[fd.as_raw_fd()]).is_ok();
        }
    }

    /// Hands everything for the leaf to the kernel, and forgets its file. To be called before the file closes: a number
    /// that the kernel has not looked up yet must not become another file's.
    pub(crate) fn close(&mut self, leaf: LeafId) -> io::Result<()> {
        while !self.ring.submission().is_empty() {
            self.submit()?;
        }
        if let Some(known) = self.files.get_mut(leaf.0 as usize)
            && std::mem::take(known)
        {
            self.ring.submitter().register_files_update(leaf.0, &[-1])?;
        }
        Ok(())
    }

    /// What names the leaf's file in an entry.
    fn file(&self, leaf: LeafId, fd: BorrowedFd<'_>) -> (Fd, squeue::Flags) {
        match self.files.get(leaf.0 as usize) {
            Some(true) => (Fd(leaf.0.cast_signed()), squeue::Flags::FIXED_FILE),
            _ => (Fd(fd.as_raw_fd()), squeue::Flags::empty()),
        }
    }

    /// Whether no request is in flight; sockets may be waited for.
    pub(crate) fn is_idle(&self) -> bool {
        self.free.len() + self.watching == self.slots.len()
    }

    /// Puts a read into the submission queue. There must be room.
    #[inline]
    pub(crate) fn read(
        &mut self,
        fd: BorrowedFd<'_>,
        token: Token,
        (leaf, offset, block): (LeafId, u64, u32),
        data: BufList,
    ) -> io::Result<()> {
        let (fd, flags) = self.file(leaf, fd);
        let (key, slot) = self.take_slot(token, RingOp::Read { leaf, offset, block }, data);
        let entry = match slot.data.windows_mut() {
            [window] => opcode::Read::new(fd, window.as_mut_ptr(), len_u32(window)).offset(offset).build(),
            _ => {
                slot.describe();
                let count = slot.vectors.len() as u32;
                opcode::Readv::new(fd, slot.vectors.as_ptr(), count).offset(offset).build()
            }
        };
        // SAFETY: the entry names the memory of `data`, which is in its slot, and of the slot's vectors.
        unsafe { self.push(key, entry.flags(flags)) }
    }

    /// Puts a write into the submission queue. There must be room.
    #[inline]
    pub(crate) fn write(
        &mut self,
        fd: BorrowedFd<'_>,
        token: Token,
        (leaf, offset): (LeafId, u64),
        data: BufList,
        fua: Fua,
    ) -> io::Result<()> {
        let (fd, flags) = self.file(leaf, fd);
        let (key, slot) = self.take_slot(token, RingOp::Write { leaf, offset, fua }, data);
        let how = match fua {
            Fua::No => 0,
            Fua::Yes => libc::RWF_DSYNC,
        };
        let entry = match slot.data.windows() {
            [window] => {
                opcode::Write::new(fd, window.as_ptr(), len_u32(window)).offset(offset).rw_flags(how).build()
            }
            _ => {
                slot.describe();
                let count = slot.vectors.len() as u32;
                opcode::Writev::new(fd, slot.vectors.as_ptr(), count).offset(offset).rw_flags(how).build()
            }
        };
        // SAFETY: the entry names the memory of `data`, which is in its slot, and of the slot's vectors.
        unsafe { self.push(key, entry.flags(flags)) }
    }

    /// Puts a flush into the submission queue. There must be room.
    pub(crate) fn flush(&mut self, fd: BorrowedFd<'_>, token: Token, leaf: LeafId) -> io::Result<()> {
        let (fd, flags) = self.file(leaf, fd);
        let (key, _) = self.take_slot(token, RingOp::Flush { leaf }, BufList::new());
        let entry = opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC).build();
        // SAFETY: the entry names no memory.
        unsafe { self.push(key, entry.flags(flags)) }
    }

    /// Puts a discard of a regular file's range into the submission queue. There must be room.
    pub(crate) fn discard(
        &mut self,
        fd: BorrowedFd<'_>,
        token: Token,
        leaf: LeafId,
        (offset, len): (u64, u64),
    ) -> io::Result<()> {
        let op = RingOp::Discard { leaf, offset, len };
        let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        self.fallocate(self.file(leaf, fd), token, op, mode, (offset, len))
    }

    /// Puts the zeroing of a regular file's range into the submission queue. There must be room, and the range must lie
    /// within the file where it may be unmapped.
    pub(crate) fn write_zeroes(
        &mut self,
        fd: BorrowedFd<'_>,
        token: Token,
        leaf: LeafId,
        (offset, len): (u64, u64),
        flags: ZeroFlags,
    ) -> io::Result<()> {
        let op = RingOp::WriteZeroes { leaf, offset, len, flags };
        let mode = match flags.may_unmap {
            true => FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            false => FallocateFlags::ZERO_RANGE,
        };
        self.fallocate(self.file(leaf, fd), token, op, mode, (offset, len))
    }

    fn fallocate(
        &mut self,
        (fd, flags): (Fd, squeue::Flags),
        token: Token,
        op: RingOp,
        mode: FallocateFlags,
        (offset, len): (u64, u64),
    ) -> io::Result<()> {
        let (key, _) = self.take_slot(token, op, BufList::new());
        let mode = mode.bits().cast_signed();
        let entry = opcode::Fallocate::new(fd, len).offset(offset).mode(mode).build();
        // SAFETY: the entry names no memory.
        unsafe { self.push(key, entry.flags(flags)) }
    }

    /// Puts a timer into the submission queue. There must be room.
    pub(crate) fn sleep(&mut self, token: Token, duration: Duration) -> io::Result<()> {
        let (key, slot) = self.take_slot(token, RingOp::Sleep { duration }, BufList::new());
        slot.time = Timespec::from(duration.min(SLEEP_MAX));
        let entry = opcode::Timeout::new(&raw const slot.time).build();
        // SAFETY: the entry names the time in its slot.
        unsafe { self.push(key, entry) }
    }

    /// Has the kernel tell once when the epoll of all sockets has events; tells whether there was room.
    pub(crate) fn watch(&mut self, epoll: BorrowedFd<'_>, flags: u32) -> io::Result<bool> {
        if self.free.is_empty() {
            return Ok(false);
        }
        let (key, _) = self.take_slot(Token(0), RingOp::Watch, BufList::new());
        self.watching += 1;
        let entry = opcode::PollAdd::new(Fd(epoll.as_raw_fd()), flags).build();
        // SAFETY: the entry names no memory.
        unsafe { self.push(key, entry) }?;
        Ok(true)
    }

    #[inline]
    fn take_slot(&mut self, token: Token, op: RingOp, data: BufList) -> (u32, &mut Slot) {
        let key = self.free.pop().expect("a caller asks for room first");
        let slot = &mut self.slots[key as usize];
        (slot.token, slot.op, slot.data) = (token, op, data);
        (key, slot)
    }

    /// # Safety
    /// What memory the entry names is kept by the slot `key`, which was just taken.
    #[inline]
    unsafe fn push(&mut self, key: u32, entry: squeue::Entry) -> io::Result<()> {
        let entry = entry.user_data(u64::from(key));
        while self.ring.submission().is_full() {
            self.submit()?;
        }
        // SAFETY: the memory is kept by a slot, which nobody touches until its completion (the module's invariant).
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.map_err(io::Error::other)
    }

    /// Hands everything in the submission queue to the kernel, and lets the kernel do what it deferred: also where nothing
    /// is in flight, for the kernel may say that it deferred something after it has answered the last request, and
    /// [`arm`](Self::arm) heeds that.
    #[inline]
    pub(crate) fn submit(&mut self) -> io::Result<()> {
        loop {
            let queue = self.ring.submission();
            let needed = !queue.is_empty() || queue.taskrun() || queue.cq_overflow();
            drop(queue);
            if !needed {
                return Ok(());
            }
            match self.ring.submit() {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The kernel is short of memory, or has completions that wait to be taken: later.
                Err(error) if is_busy(&error) => {
                    std::thread::yield_now();
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits until there is a completion.
    fn wait(&mut self) -> io::Result<()> {
        if !self.ring.completion().is_empty() {
            return Ok(());
        }
        match self.ring.submit_and_wait(1) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted || is_busy(&error) => Ok(()),
            other => other.map(drop),
        }
    }

    /// Takes the next completion of a request.
    #[inline]
    pub(crate) fn next(&mut self) -> Option<Completion> {
        loop {
            let entry = self.ring.completion().next()?;
            match entry.user_data() {
                CANCEL => {}
                key => return Some(self.complete(key as u32, entry.result())),
            }
        }
    }

    #[inline]
    fn complete(&mut self, key: u32, result: i32) -> Completion {
        let slot = &mut self.slots[key as usize];
        self.free.push(key);
        let (token, op) = (slot.token, slot.op);
        let data = std::mem::take(&mut slot.data);
        slot.vectors.clear();
        let result = usize::try_from(result).map_err(|_| Errno(result.wrapping_neg()));
        let outcome = match (op, result) {
            (RingOp::Sleep { .. }, _) => Outcome::Done(Ok(())),
            (RingOp::Watch, _) => {
                self.watching -= 1;
                return Completion::Sockets;
            }
            // Blocking calls look whether this is the end of the leaf.
            (RingOp::Read { block, .. }, Ok(moved)) if moved < block as usize && block > 1 => {
                return Completion::Again(token, op.action(data));
            }
            (op, Err(errno)) if op.has_other_ways(errno) => return Completion::Again(token, op.action(data)),
            (RingOp::Read { .. } | RingOp::Write { .. }, result) => Outcome::Moved { data, result },
            (_, result) => Outcome::Done(result.map(drop)),
        };
        Completion::Outcome(token, outcome)
    }

    /// Has the kernel ring the bell from now on. Tells whether there is something to complete already.
    pub(crate) fn arm(&mut self) -> bool {
        self.ring.completion().enable_eventfd();
        // The kernel looks at the switch after it has published a completion; this looks after it has turned the switch.
        fence(Ordering::SeqCst);
        let queue = self.ring.submission();
        // Entries that the kernel did not take for now are told of by nobody else.
        let waiting = !queue.is_empty() || queue.taskrun() || queue.cq_overflow();
        drop(queue);
        waiting || !self.ring.completion().is_empty()
    }

    /// Spares the kernel the ringing while this thread is looking anyway.
    pub(crate) fn disarm(&mut self) {
        self.ring.completion().disable_eventfd();
    }

    /// Has every timer ring at once.
    pub(crate) fn hurry(&mut self) -> io::Result<()> {
        for key in self.in_flight() {
            if matches!(self.slots[key].op, RingOp::Sleep { .. }) {
                self.cancel(opcode::TimeoutRemove::new(key as u64).build())?;
            }
        }
        self.submit()
    }

    /// Asks the kernel to end what is in flight early, and waits until all of it has ended.
    fn drain(&mut self) -> io::Result<()> {
        self.hurry()?;
        for key in self.in_flight() {
            self.cancel(opcode::AsyncCancel::new(key as u64).build())?;
        }
        while self.free.len() < self.slots.len() {
            self.wait()?;
            while self.next().is_some() {}
        }
        Ok(())
    }

    /// The slots that are in flight. Looks at all slots: not for every request.
    fn in_flight(&self) -> Vec<usize> {
        let mut in_flight = vec![true; self.slots.len()];
        for key in &self.free {
            in_flight[*key as usize] = false;
        }
        (0..self.slots.len()).filter(|key| in_flight[*key]).collect()
    }

    /// Puts a cancellation into the submission queue. A completion that finds no room waits with the kernel.
    fn cancel(&mut self, entry: squeue::Entry) -> io::Result<()> {
        while self.ring.submission().is_full() {
            self.submit()?;
        }
        // SAFETY: the entry names no memory.
        let pushed = unsafe { self.ring.submission().push(&entry.user_data(CANCEL)) };
        pushed.map_err(io::Error::other)
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if self.free.len() == self.slots.len() {
            return;
        }
        if self.drain().is_err() {
            // The kernel may still write to the buffers: better they are never freed.
            std::mem::forget(std::mem::take(&mut self.slots));
        }
    }
}

impl Default for Slot {
    fn default() -> Self {
        Self {
            token: Token(0),
            op: RingOp::Sleep { duration: Duration::ZERO },
            data: BufList::new(),
            vectors: Vec::new(),
            time: Timespec::new(),
        }
    }
}

impl Slot {
    /// Lists the windows of the slot for the kernel.
    fn describe(&mut self) {
        self.vectors.clear();
        for window in self.data.windows_mut().iter_mut().take(WINDOWS_MAX) {
            let vector = libc::iovec { iov_base: window.as_mut_ptr().cast(), iov_len: window.len() };
            self.vectors.push(vector);
        }
    }
}

impl RingOp {
    /// Whether blocking calls may succeed where the ring did not.
    fn has_other_ways(self, errno: Errno) -> bool {
        match self {
            Self::WriteZeroes { .. } | Self::Discard { .. } => errno != Errno::ENOSPC,
            Self::Write { fua: Fua::Yes, .. } if errno == Errno::ENOTSUP => true,
            // The kernel cancels what it has no thread of its own for; nothing is cancelled by us while answers count.
            _ => matches!(errno, Errno::EINTR | Errno::EAGAIN | Errno::ENOSYS | Errno::ECANCELED),
        }
    }

    /// The action that this was.
    fn action(self, data: BufList) -> Action {
        match self {
            Self::Read { leaf, offset, .. } => Action::Read { leaf, offset, data },
            Self::Write { leaf, offset, fua } => Action::Write { leaf, offset, data, fua },
            Self::Flush { leaf } => Action::Flush { leaf },
            Self::Discard { leaf, offset, len } => Action::Discard { leaf, offset, len },
            Self::WriteZeroes { leaf, offset, len, flags } => {
                Action::WriteZeroes { leaf, offset, len, flags }
            }
            Self::Sleep { duration } => Action::Sleep { duration },
            Self::Watch => unreachable!("waiting for a socket is no action"),
        }
    }
}

fn len_u32(window: &Buf) -> u32 {
    window.len().min(TRANSFER_MAX) as u32
}

fn is_busy(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EAGAIN | libc::ENOMEM))
}

/// Tells whether this process may have an io_uring, for runtimes that panic where it may not.
///
/// # Errors
/// The kernel's reason why not.
pub fn try_io_uring() -> io::Result<()> {
    build(1).map(drop)
}

/// Tells whether the kernel rings a ring's bell whenever a socket can go on that the ring watches.
///
/// Observed on Debian's Linux 6.12.117: where completions are deferred, the ringing for the first poll that is woken comes
/// late, and for further ones that other threads wake it never comes; a server sleeps on with requests in its sockets. Timers
/// are not concerned, nor are rings that defer nothing. On 6.18 the bell has rung before the write that wakes the poll
/// returns, which is what is looked for here, once: there is one kernel.
pub(crate) fn tells_of_sockets() -> bool {
    static TELLS: OnceLock<bool> = OnceLock::new();
    let tells = || -> io::Result<bool> {
        let bell = Doorbell::new()?;
        let mut ring = Ring::new(1, &bell)?;
        let (watched, other) = UnixStream::pair()?;
        ring.watch(watched.as_fd(), libc::POLLIN as u32)?;
        ring.submit()?;
        ring.arm();
        (&other).write_all(&[0])?;
        Ok(bell.was_rung())
    };
    // A ring of no use to sockets may still be of use to files.
    *TELLS.get_or_init(|| tells().unwrap_or(false))
}

/// Sets up a ring with the cheapest way of completing that the kernel has.
fn build(entries: u32) -> io::Result<IoUring> {
    // Since Linux 6.1: completions are made when this thread asks for them, and never interrupt it.
    let deferred = IoUring::builder()
        .setup_clamp()
        .setup_submit_all()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .build(entries);
    match deferred {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            IoUring::builder().setup_clamp().build(entries)
        }
        other => other,
    }
}

/// Refuses a kernel that lacks what every request needs.
fn check_operations(ring: &IoUring) -> io::Result<()> {
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    let needed = [
        opcode::Read::CODE,
        opcode::Write::CODE,
        opcode::Readv::CODE,
        opcode::Writev::CODE,
        opcode::Fsync::CODE,
        opcode::Fallocate::CODE,
        opcode::Timeout::CODE,
        opcode::PollAdd::CODE,
    ];
    let stable = ring.params().is_feature_submit_stable() && ring.params().is_feature_nodrop();
    if stable && needed.iter().all(|code| probe.is_supported(*code)) {
        return Ok(());
    }
    Err(io::Error::from_raw_os_error(libc::ENOSYS))
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    /// The kernel may refuse entries for a while, which leaves them where they are.
    #[test]
    fn entries_that_wait_are_something_to_do() {
        let bell = Doorbell::new().expect("an eventfd");
        // A host without io_uring has nothing to lose here.
        let Ok(mut ring) = Ring::new(8, &bell) else { return };
        assert!(!ring.arm());
        ring.sleep(Token(1), Duration::ZERO).expect("queued");
        assert!(ring.arm());
        ring.submit().expect("the kernel takes it");
        while ring.next().is_none() {
            ring.submit().expect("the kernel goes on");
            std::thread::yield_now();
        }
        assert!(!ring.arm());
    }

    /// Whatever the kernel: where sockets are left to the ring, it rings for each change, also for those that other threads
    /// bring about.
    #[test]
    fn a_ring_that_is_said_to_tell_of_sockets_does_so_each_time() {
        if !tells_of_sockets() {
            return;
        }
        let bell = Doorbell::new().expect("an eventfd");
        let mut ring = Ring::new(8, &bell).expect("there was one a moment ago");
        let (mut watched, other) = UnixStream::pair().expect("the kernel has sockets");
        for byte in 0..3 {
            assert!(ring.watch(watched.as_fd(), libc::POLLIN as u32).expect("queued"));
            ring.submit().expect("the kernel takes it");
            assert!(!ring.arm(), "nothing has happened yet");
            let other = other.try_clone().expect("a descriptor");
            let writer = std::thread::spawn(move || (&other).write_all(&[byte]));
            let longest = rustix::event::Timespec { tv_sec: 20, tv_nsec: 0 };
            let mut fds = [rustix::event::PollFd::new(&bell, rustix::event::PollFlags::IN)];
            assert_eq!(rustix::event::poll(&mut fds, Some(&longest)), Ok(1), "change {byte}");
            assert!(bell.was_rung(), "what made it readable");
            ring.disarm();
            writer.join().expect("no panic").expect("the socket takes a byte");
            ring.submit().expect("the kernel goes on");
            assert!(matches!(ring.next(), Some(Completion::Sockets)), "change {byte}");
            watched.read_exact(&mut [0]).expect("it was written");
        }
    }
}
