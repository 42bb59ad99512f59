//! What core asks of the world, and what the world answers: plain data.
//!
//! Owns the contract between an [`Engine`](crate::intent) and an executor. Refuses to know how an intent is
//! carried out. Start at [`Intent`] and [`Outcome`].
//!
//! Every intent is answered exactly once, by [`Engine::complete`](crate::intent) with the token it
//! carried. The buffers of an intent belong to the executor until then, and come back in the outcome.

use std::fmt;
use std::time::Duration;

use crate::buf::BufList;
use crate::compute::{Compute, Computed};
use crate::protocol::nbd::NbdLocation;

/// Names one intent while it is in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token(pub u64);

/// Names an open block leaf: a file, a device, a namespace. The executor chooses the numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LeafId(pub u32);

/// What an intent is part of, for traces: an operation and its phase, such as `qcow2.flush/l2`.
pub type Label = &'static str;

/// One thing that core asks an executor to do.
#[derive(Debug)]
pub struct Intent {
    /// To be handed back with the outcome.
    pub token: Token,
    /// The operation and phase that this is part of.
    pub label: Label,
    /// What to do.
    pub action: Action,
}

/// Whether a write is durable once it completes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Fua {
    /// The write may sit in a volatile cache.
    #[default]
    No,
    /// The write, though nothing before it, is on stable storage when it completes.
    Yes,
}

/// How zeros may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ZeroFlags {
    /// Space may be given back to the host, as long as the range reads as zeros.
    pub may_unmap: bool,
    /// Fail with `ENOTSUP` where writing zeros would be no faster than writing data.
    pub no_fallback: bool,
}

/// The verbs of the contract.
#[derive(Debug)]
#[non_exhaustive]
#[repr(u64)]
pub enum Action {
    /// Read bytes into `data`. Answered by [`Outcome::Moved`]; fewer bytes than asked is a short read, none, or less
    /// than one [`LeafInfo::request_align`], is the end of the leaf. Core asks again for the rest from the last whole
    /// unit on, and fills what lies beyond the end with zeros.
    Read {
        /// Where from.
        leaf: LeafId,
        /// First byte in the leaf.
        offset: u64,
        /// Room for the bytes.
        data: BufList,
    },
    /// Write the bytes of `data`. Answered by [`Outcome::Moved`]; core asks again for the rest of a short write.
    Write {
        /// Where to.
        leaf: LeafId,
        /// First byte in the leaf; may lie beyond its end, what is between then reads as zeros.
        offset: u64,
        /// The bytes.
        data: BufList,
        /// Whether they must be durable on completion.
        fua: Fua,
    },
    /// Make all writes that completed before this was submitted durable. [`Outcome::Done`].
    Flush {
        /// Which leaf.
        leaf: LeafId,
    },
    /// Tell the leaf that the range is not needed. Its content is undefined afterwards, unless
    /// [`LeafInfo::discard_zeroes`] says otherwise. [`Outcome::Done`]; `ENOTSUP` and `EINVAL` are answers that core
    /// ignores.
    Discard {
        /// Which leaf.
        leaf: LeafId,
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// Make the range read as zeros; beyond the end of a file this extends it. [`Outcome::Done`]; `ENOTSUP` and
    /// `EINVAL` make core look for another way.
    WriteZeroes {
        /// Which leaf.
        leaf: LeafId,
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// How.
        flags: ZeroFlags,
    },
    /// Change the length of the leaf; what is added reads as zeros. [`Outcome::Done`].
    SetLen {
        /// Which leaf.
        leaf: LeafId,
        /// New length in bytes.
        len: u64,
        /// Whether and how the space that is added is reserved on the host.
        preallocation: Preallocation,
    },
    /// Ask what backs the range from `offset` on. [`Outcome::Status`].
    BlockStatus {
        /// Which leaf.
        leaf: LeafId,
        /// First byte, below the leaf's length.
        offset: u64,
        /// Bytes; the answer may cover fewer, never none.
        len: u64,
    },
    /// Copy between leaves without moving the bytes through memory (reflink, `copy_file_range`).
    /// [`Outcome::Moved`] with an empty list: fewer bytes than asked is a short copy; an error such as `EXDEV` or
    /// `ENOTSUP` makes core fall back to reading and writing.
    CopyRange {
        /// Source leaf.
        from: LeafId,
        /// First byte in the source.
        from_offset: u64,
        /// Target leaf.
        to: LeafId,
        /// First byte in the target.
        to_offset: u64,
        /// Bytes.
        len: u64,
    },
    /// Open a leaf. [`Outcome::Opened`], [`Outcome::Unusable`] for a device with a reason, or [`Outcome::NoIoUring`] where
    /// [`Aio::IoUring`] is asked for in vain.
    Open {
        /// What to open.
        location: Location,
        /// How it will be used.
        access: LeafAccess,
    },
    /// Close a leaf; its locks go with it. [`Outcome::Done`].
    Close {
        /// Which leaf.
        leaf: LeafId,
    },
    /// Create a file of `len` bytes of zeros, or empty an existing one and set its length. [`Outcome::Done`], or
    /// [`Outcome::Locked`] when somebody uses the file, or [`Outcome::Unusable`] for a device with a reason.
    Create {
        /// What to create.
        location: Location,
        /// Length in bytes.
        len: u64,
        /// Whether and how the space is reserved on the host.
        preallocation: Preallocation,
    },
    /// Remove a file that a failed creation left. [`Outcome::Done`].
    Remove {
        /// What to remove.
        location: Location,
    },
    /// Take the byte-range locks that say `holds` and `shares`, giving up any others on this leaf, as QEMU does.
    /// [`Outcome::Locked`].
    Lock {
        /// Which leaf.
        leaf: LeafId,
        /// What this engine does with the leaf.
        holds: Permissions,
        /// What it tolerates that others do at the same time.
        shares: Permissions,
    },
    /// Fill a buffer with bytes that nobody can foretell: identifiers, keys, salts. [`Outcome::Moved`].
    Entropy {
        /// What to fill.
        data: BufList,
    },
    /// CPU-heavy pure work; run [`Compute::run`] anywhere. [`Outcome::Computed`].
    Compute(Box<Compute>),
    /// Let time pass. [`Outcome::Done`].
    Sleep {
        /// How long.
        duration: Duration,
    },
}

/// How the host reserves space for a file's new length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Preallocation {
    /// Not at all: a hole.
    #[default]
    Off,
    /// By `fallocate`: reserved, reads as zeros.
    Falloc,
    /// By writing zeros.
    Full,
}

/// What names a leaf.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Location {
    /// A path of the host: a file, or a block device.
    Path(String),
    /// A leaf of a given length without any storage: reads give zeros, writes vanish.
    Null {
        /// Length in bytes.
        len: u64,
        /// Whether reads fill the buffer with zeros or leave it as it is.
        read_zeroes: bool,
    },
    /// A namespace of an NVMe controller, past the host's kernel.
    Namespace {
        /// The controller's PCI address.
        device: String,
        /// The namespace's number.
        namespace: u32,
    },
    /// A disk that a server exports.
    Nbd(Box<NbdLocation>),
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => f.write_str(path),
            Self::Null { .. } => f.write_str("null-co://"),
            Self::Namespace { device, namespace } => write!(f, "nvme://{device}/{namespace}"),
            Self::Nbd(location) => location.fmt(f),
        }
    }
}

/// How a leaf will be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct LeafAccess {
    /// Open for writing as well as reading.
    pub writable: bool,
    /// Bypass the host's page cache (`O_DIRECT`).
    pub direct: bool,
    /// Which kernel interface carries the requests.
    pub aio: Aio,
}

/// QEMU's `aio` option.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Aio {
    /// The executor's own choice, its fastest.
    #[default]
    Auto,
    /// A pool of threads with blocking calls.
    Threads,
    /// `io_uring`, and nothing else: opening fails without.
    IoUring,
    /// Linux's older interface, which needs [`LeafAccess::direct`]; executors take their own choice for it.
    Native,
}

/// What a leaf turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeafInfo {
    /// The executor's number for it.
    pub leaf: LeafId,
    /// Length in bytes.
    pub len: u64,
    /// Offsets and lengths of reads and writes must be multiples of this; 1 for buffered files. A power of two.
    pub request_align: u32,
    /// Addresses of buffers must be multiples of this. A power of two.
    pub memory_align: u32,
    /// The size at which the leaf works best, in bytes; 0 when it does not say.
    pub preferred_size: u32,
    /// Bytes in one request at the most; 0 for no limit.
    pub transfer_max: u32,
    /// What kind of thing it is.
    pub kind: LeafKind,
    /// Whether space added by growing reads as zeros without being written.
    pub grows_as_zeroes: bool,
    /// Whether a range reads as zeros once its discard has succeeded.
    pub discard_zeroes: bool,
    /// Whether `WriteZeroes` is cheaper than writing zeros.
    pub fast_zeroes: bool,
}

/// The kinds of leaf that `info` tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LeafKind {
    /// A regular file, QEMU's `file`.
    File,
    /// A block device, QEMU's `host_device`.
    HostDevice,
    /// A leaf without storage, QEMU's `null-co`.
    Null,
    /// An NVMe namespace, QEMU's `nvme`.
    Namespace,
    /// A disk that a server exports, QEMU's `nbd`.
    Nbd,
}

/// What backs a range of a leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeafStatus {
    /// Bytes from the offset asked about that the answer covers; above zero.
    pub len: u64,
    /// Whether something is stored for the range.
    pub data: bool,
    /// Whether the range reads as zeros.
    pub zero: bool,
}

impl LeafStatus {
    /// A range that is stored and may hold anything, or a hole, which reads as zeros.
    pub const fn of(len: u64, hole: bool) -> Self {
        Self { len, data: !hole, zero: hole }
    }
}

/// QEMU's permissions on a node, which its image locks publish to other processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Permissions(pub u8);

impl Permissions {
    /// Reads that must see a consistent image.
    pub const CONSISTENT_READ: Self = Self(0x01);
    /// Writes.
    pub const WRITE: Self = Self(0x02);
    /// Writes that do not change what a reader sees.
    pub const WRITE_UNCHANGED: Self = Self(0x04);
    /// Changes of length.
    pub const RESIZE: Self = Self(0x08);
    /// None at all.
    pub const NONE: Self = Self(0);
    /// All of them.
    pub const ALL: Self = Self(0x0f);

    /// The permissions in either set.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The permissions that are not in this set.
    #[must_use]
    pub const fn complement(self) -> Self {
        Self(!self.0 & Self::ALL.0)
    }

    /// Tells whether all of `other` is in this set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The permissions of the set, one by one.
    pub fn iter(self) -> impl Iterator<Item = Self> {
        (0..4).map(|bit| Self(1 << bit)).filter(move |one| self.contains(*one))
    }

    /// QEMU's word for a single permission, as its messages have it.
    pub const fn name(self) -> &'static str {
        match self.0 {
            0x01 => "consistent read",
            0x02 => "write",
            0x04 => "write unchanged",
            0x08 => "resize",
            _ => "several permissions",
        }
    }
}

/// The answer to an intent.
#[derive(Debug)]
#[non_exhaustive]
#[repr(u64)]
pub enum Outcome {
    /// To `Read`, `Write`, `CopyRange`, `Entropy`: the buffers come back, with the number of bytes moved.
    Moved {
        /// The buffers of the intent, all of them, in their order.
        data: BufList,
        /// Bytes moved, at most as many as asked.
        result: Result<usize, Errno>,
    },
    /// To what only succeeds or fails.
    Done(Result<(), Errno>),
    /// To `Open`.
    Opened(Result<LeafInfo, Errno>),
    /// To `Open`: there is no `io_uring` to carry the leaf's requests, for this reason.
    NoIoUring(Errno),
    /// To `Open`: the device cannot be used, for a reason that the number alone does not say.
    Unusable(Errno, Box<str>),
    /// To `BlockStatus`.
    Status(Result<LeafStatus, Errno>),
    /// To `Lock`, and to `Create` when somebody uses the file.
    Locked(Result<(), LockRefused>),
    /// To `Compute`.
    Computed(Computed),
}

/// Why a lock was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockRefused {
    /// Somebody else holds the leaf in a way that this permission does not go with.
    Conflict {
        /// What was asked for: one permission.
        permission: Permissions,
        /// `true`: somebody holds what we do not share. `false`: we want to hold it and somebody does not share it.
        shared: bool,
    },
    /// The file system could not say.
    Failed(Errno),
}

/// An error number of the host, with the words that go with it.
///
/// Core takes no libc; it knows the numbers by their Linux values.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(pub i32);

macro_rules! errnos {
    ($($name:ident = $number:literal, $text:literal;)*) => {
        #[allow(missing_docs, reason = "the names are those of errno(3)")]
        impl Errno {
            $(pub const $name: Self = Self($number);)*

            /// The words of `strerror`, and the name, where the number is a known one.
            const fn known(self) -> Option<(&'static str, &'static str)> {
                match self.0 {
                    $($number => Some((stringify!($name), $text)),)*
                    _ => None,
                }
            }
        }
    };
}

errnos! {
    EPERM = 1, "Operation not permitted";
    ENOENT = 2, "No such file or directory";
    EINTR = 4, "Interrupted system call";
    EIO = 5, "Input/output error";
    ENXIO = 6, "No such device or address";
    EBADF = 9, "Bad file descriptor";
    EAGAIN = 11, "Resource temporarily unavailable";
    ENOMEM = 12, "Cannot allocate memory";
    EACCES = 13, "Permission denied";
    EBUSY = 16, "Device or resource busy";
    EEXIST = 17, "File exists";
    EXDEV = 18, "Invalid cross-device link";
    ENODEV = 19, "No such device";
    ENOTDIR = 20, "Not a directory";
    EISDIR = 21, "Is a directory";
    EINVAL = 22, "Invalid argument";
    EMFILE = 24, "Too many open files";
    ETXTBSY = 26, "Text file busy";
    EFBIG = 27, "File too large";
    ENOSPC = 28, "No space left on device";
    ESPIPE = 29, "Illegal seek";
    EROFS = 30, "Read-only file system";
    EPIPE = 32, "Broken pipe";
    ENAMETOOLONG = 36, "File name too long";
    ENOSYS = 38, "Function not implemented";
    ELOOP = 40, "Too many levels of symbolic links";
    EOVERFLOW = 75, "Value too large for defined data type";
    ENOMEDIUM = 123, "No medium found";
    ENOTSUP = 95, "Operation not supported";
    ETIMEDOUT = 110, "Connection timed out";
    ECONNRESET = 104, "Connection reset by peer";
    ESHUTDOWN = 108, "Cannot send after transport endpoint shutdown";
    ECONNREFUSED = 111, "Connection refused";
    ECANCELED = 125, "Operation canceled";
    EDQUOT = 122, "Disk quota exceeded";
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.known() {
            Some((_, text)) => f.write_str(text),
            None => write!(f, "Unknown error {}", self.0),
        }
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.known() {
            Some((name, _)) => f.write_str(name),
            None => write!(f, "Errno({})", self.0),
        }
    }
}

impl std::error::Error for Errno {}
