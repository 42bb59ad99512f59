//! QEMU's image locks: shared byte-range locks on the image file itself, which belong to the open file.
//!
//! ```text
//!   byte 100 + n   held: this process holds permission n
//!   byte 200 + n   held: this process does not share permission n
//! ```
//!
//! All locks are shared ones, so taking them never fails for a conflict. Once they are taken, each process asks whether
//! an exclusive lock would go through on the bytes that speak against it: two processes that start at the same time
//! may both give up, and never both go on. Observed on QEMU 10.0 in `/proc/locks`.
//!
//! Locks lie on an open file of their own, which no ring gets: the kernel lets go of a killed process's rings, and of the
//! files in them, up to a tenth of a second after the process is gone (observed on Linux 6.18), while what only the process
//! had open is closed with it. Through the page cache nothing of a process lands after its end: the kernel's threads that
//! write for it end with it. Under direct I/O a device may still be writing then. There the locks stay on the file that
//! the ring has, and whoever comes next waits until nothing is on its way.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use drystone_core::intent::{Errno, LockRefused, Permissions};
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use rustix::fs::{Mode, OFlags, fstat};

/// First byte of the permissions that are held.
const HELD: i64 = 100;

/// First byte of the permissions that are not shared.
const UNSHARED: i64 = 200;

/// Permissions, as bits of a set.
const BITS: std::ops::Range<u8> = 0..4;

/// What an open file holds and shares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ImageLocks {
    pub(crate) holds: Permissions,
    pub(crate) shares: Permissions,
}

impl Default for ImageLocks {
    fn default() -> Self {
        Self { holds: Permissions::NONE, shares: Permissions::ALL }
    }
}

/// The locks on a file.
#[derive(Debug, Default)]
pub(crate) struct FileLocks {
    held: ImageLocks,
    /// Whether they are to lie on an open file of their own.
    apart: bool,
    /// That file; without it they lie on the one that data goes through.
    own: Option<OwnedFd>,
}

impl FileLocks {
    /// No locks yet, and none on the open file that data goes through, if that can be helped.
    pub(crate) fn apart() -> Self {
        Self { apart: true, ..Self::default() }
    }

    /// Brings the locks on `file` to `wanted`; when that is refused they stay as they were.
    pub(crate) fn change(&mut self, file: BorrowedFd<'_>, wanted: ImageLocks) -> Result<(), LockRefused> {
        let nothing = ImageLocks::default();
        if self.apart && self.own.is_none() && self.held == nothing && wanted != nothing {
            self.own = opened_again(file);
        }
        let fd = self.own.as_ref().map_or(file, AsFd::as_fd);
        change(fd, &mut self.held, wanted)
    }
}

/// The same file, opened once more, whatever its name has become. None where that is not allowed, as after rights were
/// dropped, or where `/proc` is not there or names another file. All locks are shared ones, for which reading is enough.
fn opened_again(file: BorrowedFd<'_>) -> Option<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    let name = format!("/proc/thread-self/fd/{}", file.as_raw_fd());
    let again = rustix::fs::open(name, flags, Mode::empty()).ok()?;
    let (one, other) = (fstat(file).ok()?, fstat(&again).ok()?);
    let same = (one.st_dev, one.st_ino, one.st_rdev) == (other.st_dev, other.st_ino, other.st_rdev);
    same.then_some(again)
}

/// Brings the locks from `held` to `wanted`; when that is refused they stay as they were.
fn change(fd: BorrowedFd<'_>, held: &mut ImageLocks, wanted: ImageLocks) -> Result<(), LockRefused> {
    let both = ImageLocks {
        holds: held.holds.with(wanted.holds),
        shares: held.shares.complement().with(wanted.shares.complement()).complement(),
    };
    let taken = add(fd, *held, both).and_then(|()| check(fd, wanted));
    let rest = if taken.is_ok() { wanted } else { *held };
    let freed = release(fd, both, rest);
    taken?;
    *held = wanted;
    freed
}

/// Takes the locks of `more` that `held` lacks.
fn add(fd: BorrowedFd<'_>, held: ImageLocks, more: ImageLocks) -> Result<(), LockRefused> {
    for byte in bytes(more).filter(|byte| !bytes(held).any(|other| other == *byte)) {
        set(fd, byte, libc::F_RDLCK)?;
    }
    Ok(())
}

/// Gives up the locks of `held` that are not in `rest`.
fn release(fd: BorrowedFd<'_>, held: ImageLocks, rest: ImageLocks) -> Result<(), LockRefused> {
    for byte in bytes(held).filter(|byte| !bytes(rest).any(|other| other == *byte)) {
        set(fd, byte, libc::F_UNLCK)?;
    }
    Ok(())
}

/// Asks whether somebody else's locks speak against ours.
fn check(fd: BorrowedFd<'_>, wanted: ImageLocks) -> Result<(), LockRefused> {
    for bit in BITS {
        let permission = Permissions(1 << bit);
        if wanted.holds.contains(permission) && is_locked(fd, UNSHARED + i64::from(bit))? {
            return Err(LockRefused::Conflict { permission, shared: false });
        }
        if !wanted.shares.contains(permission) && is_locked(fd, HELD + i64::from(bit))? {
            return Err(LockRefused::Conflict { permission, shared: true });
        }
    }
    Ok(())
}

/// The bytes that say so.
fn bytes(locks: ImageLocks) -> impl Iterator<Item = i64> {
    let held = BITS.filter(move |bit| locks.holds.contains(Permissions(1 << bit)));
    let unshared = BITS.filter(move |bit| !locks.shares.contains(Permissions(1 << bit)));
    held.map(|bit| HELD + i64::from(bit)).chain(unshared.map(|bit| UNSHARED + i64::from(bit)))
}

fn set(fd: BorrowedFd<'_>, byte: i64, kind: i32) -> Result<(), LockRefused> {
    fcntl(fd, FcntlArg::F_OFD_SETLK(&range(byte, kind))).map(drop).map_err(failed)
}

/// Whether another open file holds a lock on the byte.
fn is_locked(fd: BorrowedFd<'_>, byte: i64) -> Result<bool, LockRefused> {
    let mut answer = range(byte, libc::F_WRLCK);
    fcntl(fd, FcntlArg::F_OFD_GETLK(&mut answer)).map_err(failed)?;
    Ok(i32::from(answer.l_type) != libc::F_UNLCK)
}

#[expect(clippy::cast_possible_truncation, reason = "the constants of libc are small")]
fn range(byte: i64, kind: i32) -> libc::flock {
    libc::flock {
        l_type: kind as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: byte,
        l_len: 1,
        // Must be zero for locks of an open file.
        l_pid: 0,
    }
}

fn failed(error: nix::errno::Errno) -> LockRefused {
    LockRefused::Failed(Errno(error as i32))
}
