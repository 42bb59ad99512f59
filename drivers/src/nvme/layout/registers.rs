//! The controller's registers. Source: \[NVMe\] 3.1.

use crate::nvme::error::NvmeError;

/// Byte offsets of registers in BAR 0.
///
/// | bytes        | register | meaning                              |
/// |--------------|----------|--------------------------------------|
/// | 0x00..0x08   | CAP      | controller capabilities              |
/// | 0x08..0x0c   | VS       | version                              |
/// | 0x0c..0x10   | INTMS    | interrupt mask set (no MSI-X)        |
/// | 0x10..0x14   | INTMC    | interrupt mask clear (no MSI-X)      |
/// | 0x14..0x18   | CC       | controller configuration             |
/// | 0x1c..0x20   | CSTS     | controller status                    |
/// | 0x20..0x24   | NSSR     | subsystem reset                      |
/// | 0x24..0x28   | AQA      | sizes of the admin queues            |
/// | 0x28..0x30   | ASQ      | address of the admin submission queue |
/// | 0x30..0x38   | ACQ      | address of the admin completion queue |
/// | 0x1000..     |          | doorbells, see [`doorbells`]         |
pub mod offset {
    /// Controller capabilities, 64 bits.
    pub const CAP: usize = 0x00;
    /// Version.
    pub const VS: usize = 0x08;
    /// Controller configuration.
    pub const CC: usize = 0x14;
    /// Controller status.
    pub const CSTS: usize = 0x1c;
    /// Admin queue attributes.
    pub const AQA: usize = 0x24;
    /// Admin submission queue base address, 64 bits.
    pub const ASQ: usize = 0x28;
    /// Admin completion queue base address, 64 bits.
    pub const ACQ: usize = 0x30;
    /// The first doorbell.
    pub const DOORBELLS: usize = 0x1000;
}

/// Memory pages above this size (64 KiB) are refused: no controller has them.
const MPSMIN_MAX: u64 = 4;

/// What register CAP says. Source: \[NVMe\] 3.1.1.
///
/// | bits   | field  | unit, limits                            |
/// |--------|--------|-----------------------------------------|
/// | 15:0   | MQES   | entries of a queue less one, at least 1 |
/// | 18:17  | AMS    | bit 17: weighted round robin            |
/// | 31:24  | TO     | 500 ms                                  |
/// | 35:32  | DSTRD  | log2 of the doorbell stride less 2      |
/// | 44:37  | CSS    | bit 0: the NVM command set              |
/// | 51:48  | MPSMIN | log2 of the smallest page less 12       |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Entries of an I/O queue at the most; at least 2.
    pub queue_entries_max: u32,
    /// How long enabling, disabling and shutting down may take, in milliseconds.
    pub timeout_ms: u32,
    /// Bytes from one doorbell to the next.
    pub doorbell_stride: usize,
    /// Bytes of a memory page as both sides use it: the smallest that the controller takes.
    pub page: usize,
    /// Queue pairs may have priorities.
    pub weighted_round_robin: bool,
}

impl Capabilities {
    /// Reads the register's value.
    ///
    /// # Errors
    /// [`NvmeError::Removed`] for all ones, [`NvmeError::Register`] for what this driver cannot work with.
    pub fn parse(cap: u64) -> Result<Self, NvmeError> {
        let refused =
            |field, found, expected| Err(NvmeError::Register { register: "CAP", field, found, expected });
        if cap == u64::MAX {
            return Err(NvmeError::Removed);
        }
        let (mqes, mpsmin) = (cap & 0xffff, cap >> 48 & 0xf);
        if mqes == 0 {
            return refused("MQES", mqes, "at least 1: queues of 2 entries");
        }
        if cap >> 37 & 1 == 0 {
            return refused("CSS", cap >> 37 & 0xff, "bit 0 set: the NVM command set");
        }
        if mpsmin > MPSMIN_MAX {
            return refused("MPSMIN", mpsmin, "at most 4: pages of 64 KiB");
        }
        Ok(Self {
            queue_entries_max: mqes as u32 + 1,
            timeout_ms: ((cap >> 24 & 0xff) as u32).max(1) * 500,
            doorbell_stride: 4 << (cap >> 32 & 0xf),
            page: 4096 << mpsmin,
            weighted_round_robin: cap >> 17 & 1 != 0,
        })
    }
}

/// Offsets of the doorbells of queue pair `queue`: submission queue tail, completion queue head.
/// Source: \[NVMe\] 3.1.24, 3.1.25.
pub fn doorbells(queue: u16, stride: usize) -> (usize, usize) {
    let pair = 2 * usize::from(queue) * stride;
    (offset::DOORBELLS + pair, offset::DOORBELLS + pair + stride)
}

/// The value of CC that enables a controller with queue entries of 64 and 16 bytes. Source: \[NVMe\] 3.1.5.
///
/// | bits  | field  |                                        |
/// |-------|--------|----------------------------------------|
/// | 0     | EN     | enable                                 |
/// | 6:4   | CSS    | 0: the NVM command set                 |
/// | 10:7  | MPS    | log2 of the page less 12               |
/// | 13:11 | AMS    | 0 round robin, 1 weighted round robin  |
/// | 15:14 | SHN    | shutdown notification: 1 normal        |
/// | 19:16 | IOSQES | log2 of a submission queue entry: 6    |
/// | 23:20 | IOCQES | log2 of a completion queue entry: 4    |
pub fn configuration(page: usize, weighted: bool) -> u32 {
    let mps = page.trailing_zeros() - 12;
    1 | mps << 7 | u32::from(weighted) << 11 | 6 << 16 | 4 << 20
}

/// The field CC.SHN.
pub struct Shutdown;

impl Shutdown {
    /// Shut down normally.
    pub const NORMAL: u32 = 1 << 14;
    /// The bits of the field.
    pub const MASK: u32 = 3 << 14;
}

/// What register CSTS says. Source: \[NVMe\] 3.1.6.
///
/// | bits | field |                                                |
/// |------|-------|------------------------------------------------|
/// | 0    | RDY   | ready                                          |
/// | 1    | CFS   | fatal status                                   |
/// | 3:2  | SHST  | shutdown: 0 none, 1 under way, 2 complete      |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControllerStatus(u32);

impl ControllerStatus {
    /// Reads the register's value.
    ///
    /// # Errors
    /// [`NvmeError::Removed`] for all ones, which is what reads of a device give that is not there.
    pub fn parse(csts: u32) -> Result<Self, NvmeError> {
        if csts == u32::MAX { Err(NvmeError::Removed) } else { Ok(Self(csts)) }
    }

    /// RDY.
    pub fn is_ready(self) -> bool {
        self.0 & 1 != 0
    }

    /// CFS.
    pub fn is_fatal(self) -> bool {
        self.0 & 2 != 0
    }

    /// Whether SHST says that a shutdown is complete.
    pub fn is_shut_down(self) -> bool {
        self.0 >> 2 & 3 == 2
    }
}

/// The value of AQA for admin queues of so many entries. Source: \[NVMe\] 3.1.8.
pub fn admin_queue_attributes(entries: u16) -> u32 {
    let zero_based = u32::from(entries - 1);
    zero_based << 16 | zero_based
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_emulated_controller_says() {
        // QEMU 10.0.2, `-device nvme`.
        let expected = Capabilities {
            queue_entries_max: 2048,
            timeout_ms: 7500,
            doorbell_stride: 4,
            page: 4096,
            weighted_round_robin: false,
        };
        assert_eq!(Capabilities::parse(0x0040_0820_0f01_07ff).expect("legal"), expected);
        assert_eq!(configuration(4096, false), 0x0046_0001);
        assert_eq!(configuration(8192, true), 0x0046_0881);
    }

    #[test]
    fn capabilities_that_cannot_be_worked_with_are_refused() {
        let check = |cap: u64, expected: &str| {
            assert_eq!(Capabilities::parse(cap).expect_err("refused").to_string(), expected);
        };
        check(u64::MAX, "the controller is gone: its registers read as all ones");
        check(1 << 37, "register CAP, field MQES: found 0x0, expected at least 1: queues of 2 entries");
        check(0x00ff, "register CAP, field CSS: found 0x0, expected bit 0 set: the NVM command set");
        check(
            5 << 48 | 1 << 37 | 1,
            "register CAP, field MPSMIN: found 0x5, expected at most 4: pages of 64 KiB",
        );
    }

    #[test]
    fn doorbells_follow_the_stride() {
        assert_eq!(doorbells(0, 4), (0x1000, 0x1004));
        assert_eq!(doorbells(3, 4), (0x1018, 0x101c));
        assert_eq!(doorbells(1, 4 << 15), (0x1000 + (8 << 15), 0x1000 + (12 << 15)));
    }
}
