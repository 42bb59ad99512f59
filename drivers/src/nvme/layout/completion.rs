//! Completion queue entries. Source: \[NVMe\] 4.6.

use std::fmt;

use drystone_core::intent::Errno;

/// A completion queue entry, as two words of 64 bits. Source: \[NVMe\] 4.6.
///
/// | bytes  | field  | meaning                                       |
/// |--------|--------|-----------------------------------------------|
/// | 0..4   | DW0    | result, of each command's own                 |
/// | 4..8   |        | reserved                                      |
/// | 8..10  | SQHD   | how far the submission queue was consumed     |
/// | 10..12 | SQID   | submission queue                              |
/// | 12..14 | CID    | command identifier                            |
/// | 14..16 | P, SF  | bit 0 phase tag, 15:1 status, see [`Status`]  |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// DW0.
    pub result: u32,
    /// SQHD.
    pub head: u16,
    /// SQID.
    pub queue: u16,
    /// CID.
    pub cid: u16,
    /// SF.
    pub status: Status,
}

impl Completion {
    /// The phase tag of an entry whose second word is `word`.
    #[inline]
    pub fn phase(word: u64) -> bool {
        word >> 48 & 1 != 0
    }

    /// The bits of an entry's second word that say whether it is there, whose it is, and how it went.
    pub const VERDICT: u64 = 0xffff << 16 | 1 << 48 | 0x7ff << 49;

    /// What these bits are where a command of a queue succeeded.
    pub const fn success(queue: u16, phase: bool) -> u64 {
        (queue as u64) << 16 | (phase as u64) << 48
    }

    /// Reads an entry.
    #[inline]
    pub fn parse(words: [u64; 2]) -> Self {
        let [low, high] = words;
        Self {
            result: low as u32,
            head: high as u16,
            queue: (high >> 16) as u16,
            cid: (high >> 32) as u16,
            status: Status((high >> 49) as u16),
        }
    }

    /// Writes an entry.
    pub fn encode(&self, phase: bool) -> [u64; 2] {
        let high = u64::from(self.head)
            | u64::from(self.queue) << 16
            | u64::from(self.cid) << 32
            | u64::from(phase) << 48
            | u64::from(self.status.0) << 49;
        [u64::from(self.result), high]
    }
}

/// The status field without the phase tag. Source: \[NVMe\] 4.6.1.
///
/// | bits  | field |                                     |
/// |-------|-------|-------------------------------------|
/// | 7:0   | SC    | status code                         |
/// | 10:8  | SCT   | its type                            |
/// | 12:11 | CRD   | which retry delay                   |
/// | 13    | M     | more in the error log               |
/// | 14    | DNR   | do not retry                        |
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Status(pub u16);

impl Status {
    /// Success.
    pub const SUCCESS: Self = Self(0);
    /// Invalid Command Opcode.
    pub const INVALID_OPCODE: Self = Self(0x001);
    /// Invalid Field in Command.
    pub const INVALID_FIELD: Self = Self(0x002);
    /// Data Transfer Error.
    pub const DATA_TRANSFER: Self = Self(0x004);
    /// Internal Error.
    pub const INTERNAL: Self = Self(0x006);
    /// Command Abort Requested.
    pub const ABORTED: Self = Self(0x007);
    /// Command Aborted due to SQ Deletion.
    pub const QUEUE_DELETED: Self = Self(0x008);
    /// Invalid Namespace or Format.
    pub const INVALID_NAMESPACE: Self = Self(0x00b);
    /// Namespace is Write Protected.
    pub const WRITE_PROTECTED: Self = Self(0x020);
    /// LBA Out of Range.
    pub const LBA_RANGE: Self = Self(0x080);
    /// Capacity Exceeded.
    pub const CAPACITY: Self = Self(0x081);
    /// Namespace Not Ready.
    pub const NOT_READY: Self = Self(0x082);
    /// Completion Queue Invalid.
    pub const INVALID_COMPLETION_QUEUE: Self = Self(0x100);
    /// Invalid Queue Identifier.
    pub const INVALID_QUEUE: Self = Self(0x101);
    /// Invalid Queue Size.
    pub const INVALID_QUEUE_SIZE: Self = Self(0x102);
    /// Write Fault.
    pub const WRITE_FAULT: Self = Self(0x280);
    /// Unrecovered Read Error.
    pub const UNRECOVERED_READ: Self = Self(0x281);
    /// Compare Failure.
    pub const COMPARE_FAILED: Self = Self(0x285);
    /// Access Denied.
    pub const ACCESS_DENIED: Self = Self(0x286);

    /// Code and type, without the bits beside them.
    const fn code(self) -> u16 {
        self.0 & 0x7ff
    }

    /// Whether the command did what it should.
    #[inline]
    pub const fn is_success(self) -> bool {
        self.code() == 0
    }

    /// The same status with DNR set.
    #[must_use]
    pub const fn not_to_retry(self) -> Self {
        Self(self.0 | 1 << 14)
    }

    /// Whether the same command may succeed when it is sent again.
    ///
    /// Media errors are final, whatever DNR says: the controller has tried, and who asked has other ways to go on.
    pub const fn may_retry(self) -> bool {
        let transient = matches!(
            Self(self.code()),
            Self::DATA_TRANSFER | Self::INTERNAL | Self::ABORTED | Self::QUEUE_DELETED | Self::NOT_READY
        );
        transient && self.0 >> 14 & 1 == 0
    }

    /// The error of the host that says the same.
    pub const fn errno(self) -> Errno {
        match Self(self.code()) {
            Self::INVALID_OPCODE => Errno::ENOTSUP,
            Self::INVALID_FIELD => Errno::EINVAL,
            Self::INVALID_NAMESPACE => Errno::ENXIO,
            Self::WRITE_PROTECTED => Errno::EROFS,
            Self::CAPACITY => Errno::ENOSPC,
            Self::ACCESS_DENIED => Errno::EACCES,
            _ => Errno::EIO,
        }
    }

    fn words(self) -> Option<&'static str> {
        Some(match Self(self.code()) {
            Self::SUCCESS => "success",
            Self::INVALID_OPCODE => "invalid command opcode",
            Self::INVALID_FIELD => "invalid field in command",
            Self::DATA_TRANSFER => "data transfer error",
            Self::INTERNAL => "internal error",
            Self::ABORTED => "command abort requested",
            Self::QUEUE_DELETED => "command aborted due to queue deletion",
            Self::INVALID_NAMESPACE => "invalid namespace or format",
            Self::WRITE_PROTECTED => "namespace is write protected",
            Self::LBA_RANGE => "LBA out of range",
            Self::CAPACITY => "capacity exceeded",
            Self::NOT_READY => "namespace not ready",
            Self::INVALID_COMPLETION_QUEUE => "completion queue invalid",
            Self::INVALID_QUEUE => "invalid queue identifier",
            Self::INVALID_QUEUE_SIZE => "invalid queue size",
            Self::WRITE_FAULT => "write fault",
            Self::UNRECOVERED_READ => "unrecovered read error",
            Self::COMPARE_FAILED => "compare failure",
            Self::ACCESS_DENIED => "access denied",
            _ => return None,
        })
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (sct, sc) = (self.0 >> 8 & 7, self.0 & 0xff);
        match self.words() {
            Some(words) => write!(f, "{words} (type {sct:x}h, code {sc:02x}h)"),
            None => write!(f, "status type {sct:x}h, code {sc:02x}h"),
        }
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#06x}", self.0)
    }
}

/// What an Asynchronous Event Request completes with. Source: \[NVMe\] 5.2.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AsyncEvent {
    /// 0 error, 1 SMART or health, 2 notice, 6 of the I/O command set, 7 vendor.
    pub kind: u8,
    /// Which event of that kind.
    pub info: u8,
    /// The log page that has more, and that clears the event when it is read.
    pub log_page: u8,
}

impl AsyncEvent {
    /// Reads DW0 of a completion.
    pub fn parse(result: u32) -> Self {
        Self { kind: result as u8 & 7, info: (result >> 8) as u8, log_page: (result >> 16) as u8 }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_worth_another_try() {
        assert!(Status::ABORTED.may_retry());
        assert!(!Status::ABORTED.not_to_retry().may_retry());
        assert!(!Status::UNRECOVERED_READ.may_retry());
        assert!(!Status::SUCCESS.may_retry());
        assert!(Status(1 << 14).is_success());
    }

    #[test]
    fn a_status_says_what_it_is() {
        assert_eq!(Status::UNRECOVERED_READ.to_string(), "unrecovered read error (type 2h, code 81h)");
        assert_eq!(Status(0x7ff).to_string(), "status type 7h, code ffh");
        assert_eq!(Status::CAPACITY.errno(), Errno::ENOSPC);
    }

    proptest! {
        #[test]
        fn an_entry_survives_the_wire(result: u32, head: u16, queue: u16, cid: u16, status in 0..1u16 << 15, phase: bool) {
            let entry = Completion { result, head, queue, cid, status: Status(status) };
            let words = entry.encode(phase);
            prop_assert_eq!(Completion::parse(words), entry);
            prop_assert_eq!(Completion::phase(words[1]), phase);
            let succeeded = words[1] & Completion::VERDICT == Completion::success(queue, phase);
            prop_assert_eq!(succeeded, entry.status.is_success());
            let other = Completion::success(queue.wrapping_add(1), phase);
            prop_assert_ne!(words[1] & Completion::VERDICT, other);
            prop_assert_ne!(words[1] & Completion::VERDICT, Completion::success(queue, !phase));
        }
    }
}
