//! One open file, block device, or leaf without storage: how it is opened, and one blocking call an action.
//!
//! Owns the descriptor. Refuses to know what is in flight; every method may be called from any thread.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use drystone_core::buf::{Buf, BufList};
use drystone_core::intent::{
    Aio, Errno, Fua, LeafAccess, LeafId, LeafInfo, LeafKind, LeafStatus, Location, LockRefused, Outcome,
    Permissions, Preallocation, ZeroFlags,
};
use rustix::fs::{
    AtFlags, FallocateFlags, FileType, Mode, OFlags, SeekFrom, Statx, StatxFlags, fallocate, ftruncate, seek,
    statx,
};
use rustix::io::ReadWriteFlags;
use smallvec::SmallVec;

use crate::gather::{Gather, Gathered, RESERVE_FROM, run_len};
use crate::host::Means;
use crate::limits::DeviceLimits;
use crate::lock::{FileLocks, ImageLocks};
use crate::namespace::OpenNamespace;
use crate::nbd::{self, Connection};
use crate::page_cache::is_cached;

/// Windows in one call at the most; the kernel's limit (`IOV_MAX`). More make a short transfer.
pub(crate) const WINDOWS_MAX: usize = 1024;

/// Bytes of zeros in one call when space is reserved by writing them.
const ZERO_CHUNK: usize = 256 * 1024;

/// What names ext2, ext3 and ext4. Source: linux/magic.h, `EXT4_SUPER_MAGIC`.
const EXT4: i64 = 0xef53;

/// Reads of less than a block in the middle of a file, one after the other, before it counts as broken.
const READS_MAX: usize = 8;

/// What a device answers to a control call that it does not know.
const ENOTTY: Errno = Errno(25);

/// Windows whose descriptors are kept on the stack.
const WINDOWS_INLINE: usize = 8;

/// The error of a rustix call as core knows it.
pub(crate) fn errno(error: rustix::io::Errno) -> Errno {
    Errno(error.raw_os_error())
}

/// A leaf that is open.
#[derive(Debug)]
pub struct OpenLeaf {
    storage: Storage,
    locks: Mutex<FileLocks>,
    /// Only blocking calls are wanted.
    blocking: bool,
    /// Offsets and lengths of transfers are multiples of this.
    block: u32,
    /// What a block device says of itself.
    limits: Option<DeviceLimits>,
    /// A length in bytes that the file is known to have had; it may have grown since.
    len_seen: AtomicU64,
    /// Where writes meet, if the kernel does not take them one by one without waiting.
    gather: Option<Gather>,
    /// Reserving space before a large write is cheaper than leaving it to the write.
    reserves: bool,
}

#[derive(Debug)]
enum Storage {
    File { fd: OwnedFd, kind: LeafKind },
    Null { read_zeroes: bool },
    Namespace(OpenNamespace),
    Nbd(OpenExport),
}

/// An export of a server.
#[derive(Debug)]
struct OpenExport {
    /// Until the leaf has its number.
    connection: Mutex<Option<Connection>>,
    len: u64,
}

/// Why a leaf does not open.
#[derive(Debug)]
pub(crate) enum Unopened {
    /// The kernel's answer.
    Errno(Errno),
    /// A device's reason.
    Device(Errno, Box<str>),
}

impl From<Errno> for Unopened {
    fn from(errno: Errno) -> Self {
        Self::Errno(errno)
    }
}

impl From<Unopened> for Outcome {
    fn from(unopened: Unopened) -> Self {
        match unopened {
            Unopened::Errno(errno) => Self::Opened(Err(errno)),
            Unopened::Device(errno, reason) => Self::Unusable(errno, reason),
        }
    }
}

impl OpenLeaf {
    /// Opens what `location` names. The number in the answer is for the caller to set.
    pub(crate) fn open(
        location: &Location,
        access: LeafAccess,
        means: &Means,
    ) -> Result<(Self, LeafInfo), Unopened> {
        match location {
            Location::Path(path) => Ok(Self::open_path(path, access)?),
            Location::Namespace { device, namespace } => {
                let opened = OpenNamespace::open(device, *namespace, means.polling);
                let (namespace, info) = opened.map_err(|(errno, reason)| Unopened::Device(errno, reason))?;
                Ok((Self::new(Storage::Namespace(namespace), &info, Aio::Auto), info))
            }
            Location::Nbd(location) => {
                let opened = nbd::open(location, &means.credentials, access.writable);
                let (connection, info) = opened.map_err(|(errno, reason)| Unopened::Device(errno, reason))?;
                let export = OpenExport { connection: Mutex::new(Some(connection)), len: info.len };
                Ok((Self::new(Storage::Nbd(export), &info, Aio::Auto), info))
            }
            &Location::Null { len, read_zeroes } => {
                let info = LeafInfo { len, discard_zeroes: true, ..info_of(LeafKind::Null) };
                let storage = Storage::Null { read_zeroes };
                Ok((Self::new(storage, &info, Aio::Auto), info))
            }
            _ => Err(Errno::ENOTSUP.into()),
        }
    }

    fn new(storage: Storage, info: &LeafInfo, aio: Aio) -> Self {
        Self {
            storage,
            locks: Mutex::default(),
            blocking: aio == Aio::Threads,
            block: info.request_align,
            limits: None,
            len_seen: AtomicU64::new(info.len),
            gather: None,
            reserves: false,
        }
    }

    fn open_path(path: &str, access: LeafAccess) -> Result<(Self, LeafInfo), Errno> {
        let named = rustix::fs::stat(path).map_err(errno)?;
        let kind = kind_of(&named).map_err(errno)?;
        let limits = match FileType::from_raw_mode(named.st_mode) {
            FileType::BlockDevice => DeviceLimits::of(named.st_rdev)?,
            _ => None,
        };
        let mut flags = OFlags::CLOEXEC | OFlags::NOCTTY;
        flags |= if access.writable { OFlags::RDWR } else { OFlags::RDONLY };
        if access.direct {
            flags |= OFlags::DIRECT;
        }
        let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(errno)?;
        let asked = StatxFlags::BASIC_STATS | StatxFlags::DIOALIGN;
        let about = statx(&fd, c"", AtFlags::EMPTY_PATH, asked).map_err(errno)?;
        let len = match kind {
            LeafKind::File => about.stx_size,
            // A character device has no end to seek to.
            _ => seek(&fd, SeekFrom::End(0)).unwrap_or(0),
        };
        let mut info = LeafInfo { len, preferred_size: about.stx_blksize, ..info_of(kind) };
        if access.direct {
            (info.request_align, info.memory_align) = direct_alignment(&fd, &about);
        }
        if let Some(limits) = limits {
            info.preferred_size = limits.preferred;
            info.fast_zeroes = limits.zeroes;
            if access.direct {
                info.request_align = info.request_align.max(limits.logical_block);
                // What is more than one command is better begun as several; the page cache cuts as it likes.
                info.transfer_max = limits.transfer_max;
            }
        }
        let buffered = kind == LeafKind::File && !access.direct && access.writable;
        let reserves = buffered && rustix::fs::fstatfs(&fd).map_err(errno)?.f_type == EXT4;
        let locks = if access.direct { FileLocks::default() } else { FileLocks::apart() };
        let leaf = Self::new(Storage::File { fd, kind }, &info, access.aio);
        let (locks, gather) = (Mutex::new(locks), buffered.then(Gather::default));
        Ok((Self { locks, limits, gather, reserves, ..leaf }, info))
    }

    /// The descriptor, where there is one.
    pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.storage {
            Storage::File { fd, .. } => Some(fd.as_fd()),
            Storage::Null { .. } | Storage::Namespace(_) | Storage::Nbd(_) => None,
        }
    }

    /// The namespace, where it is one.
    pub(crate) fn namespace(&self) -> Option<&OpenNamespace> {
        match &self.storage {
            Storage::Namespace(namespace) => Some(namespace),
            _ => None,
        }
    }

    /// The connection to the server whose export it is, for who has not had it yet.
    pub(crate) fn take_connection(&self) -> Option<Connection> {
        match &self.storage {
            Storage::Nbd(export) => export.connection.lock().expect("taking does not panic").take(),
            _ => None,
        }
    }

    /// The descriptor, where asynchronous requests are welcome.
    pub(crate) fn async_fd(&self) -> Option<BorrowedFd<'_>> {
        if self.blocking { None } else { self.fd() }
    }

    /// Whether no call waits for anything; reads and writes of a namespace or an export go elsewhere.
    pub(crate) fn is_instant(&self) -> bool {
        matches!(self.storage, Storage::Null { .. } | Storage::Namespace(_) | Storage::Nbd(_))
    }

    pub(crate) fn is_regular(&self) -> bool {
        matches!(self.storage, Storage::File { kind: LeafKind::File, .. })
    }

    /// Whether the range is bytes of a file that the kernel has in memory now. Who uses them waits only for those that have
    /// left it meanwhile.
    pub(crate) fn has_cached(&self, offset: u64, len: u64) -> bool {
        let buffered = self.is_regular() && self.block == 1;
        // Pages that are beyond the end of a file since it was cut may still count.
        let there = |fd| file_len(fd).is_ok_and(|end| offset + len <= end) && is_cached(fd, offset, len);
        buffered && self.fd().is_some_and(there)
    }

    /// Whether the file is known to be at least `end` bytes long.
    pub(crate) fn reaches(&self, end: u64) -> bool {
        self.len_seen.load(Ordering::Relaxed) >= end
    }

    /// Where writes are to wait for each other, where they are.
    pub(crate) fn gather(&self) -> Option<&Gather> {
        self.gather.as_ref()
    }

    /// Writes what [waits](Gather::push), call by call, until nothing does; hands each call's writes to `done`.
    pub(crate) fn write_gathered(&self, mut done: impl FnMut(std::vec::Drain<'_, Gathered>)) {
        let Some(gather) = &self.gather else { return };
        let mut batch = gather.batch();
        while gather.take(&mut batch) {
            while !batch.is_empty() {
                let run = run_len(&batch, WINDOWS_MAX).max(1);
                self.write_run(&mut batch[..run]);
                done(batch.drain(..run));
            }
        }
    }

    /// Writes neighbours in one call; one by one where that does not take them all, so that each gets its own answer.
    fn write_run(&self, run: &mut [Gathered]) {
        let [first, .., _] = run else {
            return run
                .iter_mut()
                .for_each(|write| write.result = self.write(write.offset, &write.data, Fua::No));
        };
        let offset = first.offset;
        let len: usize = run.iter().map(|write| write.data.len_bytes()).sum();
        let Some(fd) = self.fd() else { return };
        if self.reserves && len >= RESERVE_FROM {
            // Space is reserved or not: the write says what matters.
            let _ = fallocate(fd, FallocateFlags::KEEP_SIZE, offset, len as u64);
        }
        let windows: SmallVec<[IoSlice<'_>; WINDOWS_INLINE]> =
            run.iter().flat_map(|write| write.data.windows()).map(|window| IoSlice::new(window)).collect();
        let whole = retry(|| rustix::io::pwritev(fd, &windows, offset)) == Ok(len);
        drop(windows);
        for write in run {
            write.result = match whole {
                true => Ok(write.data.len_bytes()),
                false => self.write(write.offset, &write.data, Fua::No),
            };
        }
    }

    /// What a leaf without storage answers to a read.
    fn null_read(&self, data: &mut BufList) -> usize {
        if matches!(self.storage, Storage::Null { read_zeroes: true }) {
            data.zero_from(0);
        }
        data.len_bytes()
    }

    pub(crate) fn read(&self, offset: u64, data: &mut BufList) -> Result<usize, Errno> {
        let Some(fd) = self.fd() else { return Ok(self.null_read(data)) };
        if self.block > 1 {
            let wanted = data.len_bytes();
            return whole_or_end(self.block, wanted, offset, || read_once(fd, offset, data), || leaf_len(fd));
        }
        read_once(fd, offset, data)
    }

    /// Offsets and lengths of transfers are multiples of this.
    pub(crate) fn block(&self) -> u32 {
        self.block
    }

    pub(crate) fn write(&self, offset: u64, data: &BufList, fua: Fua) -> Result<usize, Errno> {
        let Some(fd) = self.fd() else { return Ok(data.len_bytes()) };
        let windows: SmallVec<[IoSlice<'_>; WINDOWS_INLINE]> =
            data.windows().iter().take(WINDOWS_MAX).map(|window| IoSlice::new(window)).collect();
        if fua == Fua::No {
            return retry(|| rustix::io::pwritev(fd, &windows, offset));
        }
        let written = retry(|| rustix::io::pwritev2(fd, &windows, offset, ReadWriteFlags::DSYNC));
        if !matches!(written, Err(Errno::ENOTSUP | Errno::ENOSYS)) {
            return written;
        }
        let written = retry(|| rustix::io::pwritev(fd, &windows, offset))?;
        self.flush().map(|()| written)
    }

    pub(crate) fn flush(&self) -> Result<(), Errno> {
        self.fd().map_or(Ok(()), |fd| retry(|| rustix::fs::fdatasync(fd)))
    }

    pub(crate) fn discard(&self, offset: u64, len: u64) -> Result<(), Errno> {
        match &self.storage {
            Storage::Null { .. } => Ok(()),
            Storage::Namespace(_) | Storage::Nbd(_) => Err(Errno::ENOTSUP),
            Storage::File { fd, kind: LeafKind::File } => punch(fd.as_fd(), offset, len),
            Storage::File { fd, .. } => device_discard(fd.as_fd(), self.limits, offset, len),
        }
    }

    pub(crate) fn write_zeroes(&self, offset: u64, len: u64, flags: ZeroFlags) -> Result<(), Errno> {
        match &self.storage {
            Storage::Null { .. } => Ok(()),
            Storage::Namespace(_) | Storage::Nbd(_) => Err(Errno::ENOTSUP),
            Storage::File { fd, kind: LeafKind::File } => file_zeroes(fd.as_fd(), offset, len, flags),
            Storage::File { fd, .. } => device_zeroes(fd.as_fd(), offset, len, flags),
        }
    }

    pub(crate) fn set_len(&self, len: u64, preallocation: Preallocation) -> Result<(), Errno> {
        let fd = match &self.storage {
            Storage::Null { .. } => return Ok(()),
            Storage::Namespace(namespace) => {
                return if len <= namespace.len() { Ok(()) } else { Err(Errno::EINVAL) };
            }
            Storage::Nbd(export) => return if len <= export.len { Ok(()) } else { Err(Errno::EINVAL) },
            Storage::File { fd, kind: LeafKind::File } => fd.as_fd(),
            Storage::File { fd, .. } => {
                let there = seek(fd, SeekFrom::End(0)).map_err(errno)?;
                return if len <= there { Ok(()) } else { Err(Errno::EINVAL) };
            }
        };
        let before = file_len(fd)?;
        // Lowered before the file shrinks, so that it never claims too much.
        self.len_seen.fetch_min(len, Ordering::Relaxed);
        retry(|| ftruncate(fd, len))?;
        if let Err(error) = preallocate(fd, before, len, preallocation) {
            // The reservation failed; what matters is that the file is as before.
            let _ = ftruncate(fd, before);
            return Err(error);
        }
        self.len_seen.store(len, Ordering::Relaxed);
        Ok(())
    }

    pub(crate) fn block_status(&self, offset: u64, len: u64) -> Result<LeafStatus, Errno> {
        match &self.storage {
            Storage::File { fd, kind: LeafKind::File } => Ok(file_status(fd.as_fd(), offset, len)),
            Storage::File { .. } | Storage::Namespace(_) => Ok(LeafStatus::of(len, false)),
            Storage::Nbd(_) => Err(Errno::ENOTSUP),
            Storage::Null { read_zeroes } => Ok(LeafStatus { len, data: false, zero: *read_zeroes }),
        }
    }

    /// Copies to another leaf within the kernel; once, so it may be short.
    pub(crate) fn copy_to(&self, to: &Self, from_at: u64, to_at: u64, len: u64) -> Result<usize, Errno> {
        let (Some(source), Some(target)) = (self.fd(), to.fd()) else { return Err(Errno::ENOTSUP) };
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        retry(|| {
            let (mut from_at, mut to_at) = (from_at, to_at);
            rustix::fs::copy_file_range(source, Some(&mut from_at), target, Some(&mut to_at), len)
        })
    }

    pub(crate) fn lock(&self, holds: Permissions, shares: Permissions) -> Result<(), LockRefused> {
        if let Some(namespace) = self.namespace() {
            return namespace.lock(holds, shares);
        }
        let Some(fd) = self.fd() else { return Ok(()) };
        let mut locks = self.locks.lock().expect("nothing panics while it holds the locks");
        locks.change(fd, ImageLocks { holds, shares })
    }
}

/// Creates a file of `len` bytes of zeros, or empties an existing one; a device only has to be large enough.
pub(crate) fn create(location: &Location, len: u64, preallocation: Preallocation, means: &Means) -> Outcome {
    match create_unlocked(location, len, preallocation, means) {
        Ok(Err(refused)) => Outcome::Locked(Err(refused)),
        Ok(Ok(())) => Outcome::Done(Ok(())),
        Err(Unopened::Errno(errno)) => Outcome::Done(Err(errno)),
        Err(Unopened::Device(errno, reason)) => Outcome::Unusable(errno, reason),
    }
}

/// Creates or empties the file, unless somebody uses it, which is the inner error.
fn create_unlocked(
    location: &Location,
    len: u64,
    preallocation: Preallocation,
    means: &Means,
) -> Result<Result<(), LockRefused>, Unopened> {
    let path = match location {
        Location::Path(path) => path,
        Location::Namespace { .. } | Location::Nbd(_) => {
            let (leaf, _) = OpenLeaf::open(location, LeafAccess::default(), means)?;
            return leaf.set_len(len, Preallocation::Off).map(Ok).map_err(|_| Errno::ENOSPC.into());
        }
        _ => return Ok(Ok(())),
    };
    let flags = OFlags::CLOEXEC | OFlags::RDWR | OFlags::CREATE | OFlags::NOCTTY;
    let fd = rustix::fs::open(path.as_str(), flags, Mode::from_raw_mode(0o644)).map_err(errno)?;
    let about = rustix::fs::fstat(&fd).map_err(errno)?;
    let kind = kind_of(&about).map_err(errno)?;
    let leaf = OpenLeaf::new(Storage::File { fd, kind }, &info_of(kind), Aio::Threads);
    if !leaf.is_regular() {
        return leaf.set_len(len, Preallocation::Off).map(Ok).map_err(|_| Errno::ENOSPC.into());
    }
    // Somebody may be using the file that is about to be emptied.
    let holds = Permissions::WRITE.with(Permissions::RESIZE);
    if let Err(refused) = leaf.lock(holds, Permissions::RESIZE.complement()) {
        return Ok(Err(refused));
    }
    leaf.set_len(0, Preallocation::Off)?;
    Ok(Ok(leaf.set_len(len, preallocation)?))
}

/// Removes a file that a failed creation left; devices stay.
pub(crate) fn remove(location: &Location) -> Result<(), Errno> {
    let Location::Path(path) = location else { return Ok(()) };
    match kind_of(&rustix::fs::stat(path.as_str()).map_err(errno)?) {
        Ok(LeafKind::File) => retry(|| rustix::fs::unlink(path.as_str())),
        _ => Err(Errno::ENOTSUP),
    }
}

/// What every leaf of a kind has in common.
fn info_of(kind: LeafKind) -> LeafInfo {
    LeafInfo {
        leaf: LeafId(u32::MAX),
        len: 0,
        request_align: 1,
        memory_align: 1,
        preferred_size: 0,
        transfer_max: 0,
        kind,
        grows_as_zeroes: kind == LeafKind::File,
        // A hole reads as zeros; a file system that punches none refuses to.
        discard_zeroes: kind == LeafKind::File,
        fast_zeroes: true,
    }
}

fn kind_of(about: &rustix::fs::Stat) -> rustix::io::Result<LeafKind> {
    match FileType::from_raw_mode(about.st_mode) {
        FileType::RegularFile => Ok(LeafKind::File),
        FileType::BlockDevice | FileType::CharacterDevice => Ok(LeafKind::HostDevice),
        FileType::Directory => Err(rustix::io::Errno::ISDIR),
        // Opening a pipe would wait for its other end.
        _ => Err(rustix::io::Errno::NXIO),
    }
}

/// Alignment of offsets and lengths, and of memory, that direct I/O on the file asks for.
fn direct_alignment(fd: &OwnedFd, about: &Statx) -> (u32, u32) {
    if about.stx_mask & StatxFlags::DIOALIGN.bits() != 0 && about.stx_dio_offset_align > 0 {
        return (about.stx_dio_offset_align, about.stx_dio_mem_align.max(1));
    }
    // Kernels before 6.1, and file systems that do not say: try the smallest that hardware has.
    const SECTOR: usize = 512;
    const PAGE: usize = 4096;
    let mut buf = Buf::zeroed_aligned(2 * SECTOR, PAGE).split_off(SECTOR);
    match rustix::io::pread(fd, &mut buf[..], 0) {
        Ok(_) => (SECTOR as u32, SECTOR as u32),
        Err(_) => (PAGE as u32, PAGE as u32),
    }
}

/// Repeats a call that a signal interrupted.
fn retry<T>(call: impl FnMut() -> rustix::io::Result<T>) -> Result<T, Errno> {
    rustix::io::retry_on_intr(call).map_err(errno)
}

fn read_once(fd: BorrowedFd<'_>, offset: u64, data: &mut BufList) -> Result<usize, Errno> {
    let mut windows: SmallVec<[IoSliceMut<'_>; WINDOWS_INLINE]> =
        data.windows_mut().iter_mut().take(WINDOWS_MAX).map(|window| IoSliceMut::new(window)).collect();
    retry(|| rustix::io::preadv(fd, &mut windows, offset))
}

/// Reads until there is at least one whole block, or less than one because the file ends there. Anything less in the
/// middle of a file is no answer: who asked would take it for the end.
fn whole_or_end(
    block: u32,
    wanted: usize,
    offset: u64,
    mut read: impl FnMut() -> Result<usize, Errno>,
    mut len: impl FnMut() -> Result<u64, Errno>,
) -> Result<usize, Errno> {
    for _ in 0..READS_MAX {
        let moved = read()?;
        let whole = moved >= wanted.min(block as usize);
        if whole || len()? <= offset + moved as u64 {
            return Ok(moved);
        }
    }
    Err(Errno::EIO)
}

/// Bytes of a file, or of a device that has an end.
fn leaf_len(fd: BorrowedFd<'_>) -> Result<u64, Errno> {
    match seek(fd, SeekFrom::End(0)) {
        Ok(len) => Ok(len),
        Err(rustix::io::Errno::SPIPE | rustix::io::Errno::INVAL) => Ok(0),
        Err(error) => Err(errno(error)),
    }
}

fn file_len(fd: BorrowedFd<'_>) -> Result<u64, Errno> {
    let about = rustix::fs::fstat(fd).map_err(errno)?;
    Ok(u64::try_from(about.st_size).unwrap_or(0))
}

fn punch(fd: BorrowedFd<'_>, offset: u64, len: u64) -> Result<(), Errno> {
    let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    unsupported(retry(|| fallocate(fd, mode, offset, len)))
}

/// The ways in which kernels and file systems say that they lack an operation, as the one that core expects.
fn unsupported(result: Result<(), Errno>) -> Result<(), Errno> {
    match result {
        Err(Errno::EINVAL | Errno::ENOSYS | Errno::ENODEV | ENOTTY) => Err(Errno::ENOTSUP),
        other => other,
    }
}

fn file_zeroes(fd: BorrowedFd<'_>, offset: u64, len: u64, flags: ZeroFlags) -> Result<(), Errno> {
    if !flags.may_unmap {
        let zeroed = unsupported(retry(|| fallocate(fd, FallocateFlags::ZERO_RANGE, offset, len)));
        if zeroed != Err(Errno::ENOTSUP) {
            return zeroed;
        }
    }
    match punch(fd, offset, len) {
        // Punched, then reserved again: what tmpfs and older file systems have in place of `ZERO_RANGE`.
        Ok(()) if !flags.may_unmap => {
            unsupported(retry(|| fallocate(fd, FallocateFlags::empty(), offset, len)))
        }
        Ok(()) => extend(fd, offset + len),
        Err(Errno::ENOTSUP) if flags.may_unmap => {
            unsupported(retry(|| fallocate(fd, FallocateFlags::ZERO_RANGE, offset, len)))
        }
        Err(error) => Err(error),
    }
}

/// Makes the file at least `end` bytes long. Never makes it shorter, whatever other threads write meanwhile.
fn extend(fd: BorrowedFd<'_>, end: u64) -> Result<(), Errno> {
    if file_len(fd)? >= end {
        return Ok(());
    }
    unsupported(retry(|| fallocate(fd, FallocateFlags::empty(), end - 1, 1)))
}

/// Zeroes a range of a block device; the kernel takes `fallocate` on one for that.
fn device_zeroes(fd: BorrowedFd<'_>, offset: u64, len: u64, flags: ZeroFlags) -> Result<(), Errno> {
    if flags.may_unmap {
        let punched = punch(fd, offset, len);
        if punched != Err(Errno::ENOTSUP) || flags.no_fallback {
            return punched;
        }
    }
    if flags.no_fallback {
        // The kernel would write zeros itself where the device cannot.
        return Err(Errno::ENOTSUP);
    }
    let mode = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
    unsupported(retry(|| fallocate(fd, mode, offset, len)))
}

#[allow(unsafe_code)]
fn device_discard(
    fd: BorrowedFd<'_>,
    limits: Option<DeviceLimits>,
    offset: u64,
    len: u64,
) -> Result<(), Errno> {
    use rustix::ioctl::{Opcode, Setter, ioctl, opcode};
    /// `BLKDISCARD`, whose argument is a first byte and a length. Source: linux/fs.h.
    const BLKDISCARD: Opcode = opcode::none(0x12, 119);
    let unit = match limits {
        // The kernel need not be asked.
        Some(DeviceLimits { discard_granularity: None, .. }) => return Err(Errno::ENOTSUP),
        Some(DeviceLimits { discard_granularity: Some(unit), .. }) => unit,
        None => rustix::fs::ioctl_blksszget(fd).map_err(|_| Errno::ENOTSUP)?,
    };
    let unit = u64::from(unit);
    let start = offset.next_multiple_of(unit);
    // The end of the device may end a unit early.
    let end = match leaf_len(fd)? {
        len_bytes if offset + len >= len_bytes => len_bytes,
        _ => (offset + len) / unit * unit,
    };
    if start >= end {
        return Ok(());
    }
    // SAFETY: `BLKDISCARD` reads two 64-bit numbers from its argument.
    let request = unsafe { Setter::<BLKDISCARD, [u64; 2]>::new([start, end - start]) };
    // SAFETY: the kernel reads the argument during the call only, and touches no memory of this process.
    let discarded = unsafe { ioctl(fd, request) };
    unsupported(discarded.map_err(errno))
}

fn preallocate(fd: BorrowedFd<'_>, from: u64, to: u64, how: Preallocation) -> Result<(), Errno> {
    if from >= to {
        return Ok(());
    }
    match how {
        Preallocation::Off => Ok(()),
        Preallocation::Falloc => retry(|| fallocate(fd, FallocateFlags::empty(), from, to - from)),
        Preallocation::Full => {
            let zeros = vec![0; ZERO_CHUNK.min(usize::try_from(to - from).unwrap_or(ZERO_CHUNK))];
            let mut at = from;
            while at < to {
                let len = usize::try_from(to - at).unwrap_or(ZERO_CHUNK).min(zeros.len());
                match retry(|| rustix::io::pwrite(fd, &zeros[..len], at))? {
                    0 => return Err(Errno::EIO),
                    written => at += written as u64,
                }
            }
            retry(|| rustix::fs::fsync(fd))
        }
    }
}

/// What `SEEK_DATA` and `SEEK_HOLE` say of a range; a file system that has neither holds data everywhere.
fn file_status(fd: BorrowedFd<'_>, offset: u64, len: u64) -> LeafStatus {
    let end = offset.saturating_add(len);
    match seek(fd, SeekFrom::Data(offset)) {
        Ok(data) if data > offset => LeafStatus::of(data.min(end) - offset, true),
        // No data from here to the end of the file.
        Err(rustix::io::Errno::NXIO) => LeafStatus::of(len, true),
        Ok(_) => match seek(fd, SeekFrom::Hole(offset)) {
            Ok(hole) if hole > offset => LeafStatus::of(hole.min(end) - offset, false),
            _ => LeafStatus::of(len, false),
        },
        Err(_) => LeafStatus::of(len, false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A read of 4096 bytes at 8192 in blocks of 512, with the answers that the kernel gives to each try.
    fn read(answers: &[Result<usize, Errno>], len: u64) -> (Result<usize, Errno>, usize) {
        let mut tries = 0;
        let read = || {
            tries += 1;
            answers[tries - 1]
        };
        let result = whole_or_end(512, 4096, 8192, read, || Ok(len));
        (result, tries)
    }

    #[test]
    fn less_than_a_block_in_mid_file_is_read_again() {
        assert_eq!(read(&[Ok(4096)], 1 << 20), (Ok(4096), 1));
        // Whoever asked goes on from the last whole block.
        assert_eq!(read(&[Ok(700)], 1 << 20), (Ok(700), 1));
        assert_eq!(read(&[Ok(100), Ok(0), Ok(4096)], 1 << 20), (Ok(4096), 3));
        assert_eq!(read(&[Ok(100), Err(Errno::EIO)], 1 << 20), (Err(Errno::EIO), 2));
        assert_eq!(read(&[Ok(100); READS_MAX], 1 << 20), (Err(Errno::EIO), READS_MAX));
    }

    #[test]
    fn less_than_a_block_at_the_end_is_the_end() {
        assert_eq!(read(&[Ok(100)], 8292), (Ok(100), 1));
        assert_eq!(read(&[Ok(0)], 8192), (Ok(0), 1));
        // Cut short by somebody else meanwhile.
        assert_eq!(read(&[Ok(0)], 0), (Ok(0), 1));
    }
}
