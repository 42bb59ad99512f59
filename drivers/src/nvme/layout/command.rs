//! Submission queue entries. Source: \[NVMe\] 4.2.

use super::SUBMISSION_ENTRY_LEN;

/// Opcodes. Source: \[NVMe\] 5 (admin), 6 (NVM command set).
pub mod opcode {
    /// Admin: Delete I/O Submission Queue.
    pub const DELETE_SQ: u8 = 0x00;
    /// Admin: Create I/O Submission Queue.
    pub const CREATE_SQ: u8 = 0x01;
    /// Admin: Get Log Page.
    pub const GET_LOG_PAGE: u8 = 0x02;
    /// Admin: Delete I/O Completion Queue.
    pub const DELETE_CQ: u8 = 0x04;
    /// Admin: Create I/O Completion Queue.
    pub const CREATE_CQ: u8 = 0x05;
    /// Admin: Identify.
    pub const IDENTIFY: u8 = 0x06;
    /// Admin: Abort.
    pub const ABORT: u8 = 0x08;
    /// Admin: Set Features.
    pub const SET_FEATURES: u8 = 0x09;
    /// Admin: Get Features.
    pub const GET_FEATURES: u8 = 0x0a;
    /// Admin: Asynchronous Event Request.
    pub const ASYNC_EVENT: u8 = 0x0c;
    /// Admin: Doorbell Buffer Config.
    pub const DOORBELL_BUFFER: u8 = 0x7c;
    /// NVM: Flush.
    pub const FLUSH: u8 = 0x00;
    /// NVM: Write.
    pub const WRITE: u8 = 0x01;
    /// NVM: Read.
    pub const READ: u8 = 0x02;
    /// NVM: Compare.
    pub const COMPARE: u8 = 0x05;
    /// NVM: Write Zeroes.
    pub const WRITE_ZEROES: u8 = 0x08;
    /// NVM: Dataset Management.
    pub const DATASET_MANAGEMENT: u8 = 0x09;
}

/// CNS values of Identify. Source: \[NVMe\] 5.15.1.
mod cns {
    pub(super) const NAMESPACE: u32 = 0;
    pub(super) const CONTROLLER: u32 = 1;
    pub(super) const ACTIVE_NAMESPACES: u32 = 2;
}

/// Feature identifiers. Source: \[NVMe\] 5.21.1.
mod feature {
    pub(super) const VOLATILE_WRITE_CACHE: u32 = 0x06;
    pub(super) const NUMBER_OF_QUEUES: u32 = 0x07;
    pub(super) const ASYNC_EVENT_CONFIGURATION: u32 = 0x0b;
}

/// Force unit access, in dword 12 of reads and writes.
const FUA: u32 = 1 << 30;
/// Deallocate, in dword 12 of Write Zeroes.
const DEAC: u32 = 1 << 25;

/// Bytes of one range of a Dataset Management command.
pub const DATASET_RANGE_LEN: usize = 16;

/// Where the data of a command is: two PRP entries. Source: \[NVMe\] 4.3.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prp {
    /// The first page, from some offset on.
    pub first: u64,
    /// Nothing, the second page, or the list of all pages after the first.
    pub second: u64,
}

impl Prp {
    /// One page.
    pub const fn page(first: u64) -> Self {
        Self { first, second: 0 }
    }
}

/// A submission queue entry, as eight words of 64 bits. Source: \[NVMe\] 4.2, figure "Command Format".
///
/// | bytes  | field        | meaning                                     |
/// |--------|--------------|---------------------------------------------|
/// | 0      | OPC          | opcode                                      |
/// | 1      | FUSE, PSDT   | 0: not fused, PRPs                          |
/// | 2..4   | CID          | command identifier                          |
/// | 4..8   | NSID         | namespace                                   |
/// | 8..16  |              | reserved                                    |
/// | 16..24 | MPTR         | metadata: none                              |
/// | 24..32 | PRP1         |                                             |
/// | 32..40 | PRP2         |                                             |
/// | 40..64 | CDW10..CDW15 | of each command's own                       |
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Command(pub [u64; 8]);

const _: () = assert!(size_of::<Command>() == SUBMISSION_ENTRY_LEN);

impl Command {
    #[inline]
    fn new(opcode: u8, namespace: u32, prp: Prp) -> Self {
        let head = u64::from(opcode) | u64::from(namespace) << 32;
        Self([head, 0, 0, prp.first, prp.second, 0, 0, 0])
    }

    #[inline]
    fn with_10_11(mut self, ten: u32, eleven: u32) -> Self {
        self.0[5] = u64::from(ten) | u64::from(eleven) << 32;
        self
    }

    /// The same command under the identifier `cid`.
    #[inline]
    #[must_use]
    pub fn with_cid(mut self, cid: u16) -> Self {
        self.0[0] = self.0[0] & !0xffff_0000 | u64::from(cid) << 16;
        self
    }

    /// OPC.
    pub fn opcode(&self) -> u8 {
        self.0[0] as u8
    }

    /// CID.
    pub fn cid(&self) -> u16 {
        (self.0[0] >> 16) as u16
    }

    /// NSID.
    pub fn namespace(&self) -> u32 {
        (self.0[0] >> 32) as u32
    }

    /// PRP1 and PRP2.
    pub fn prp(&self) -> Prp {
        Prp { first: self.0[3], second: self.0[4] }
    }

    /// One of the dwords 10 to 15.
    pub fn dword(&self, number: usize) -> u32 {
        (self.0[number / 2] >> (32 * (number % 2))) as u32
    }

    #[inline]
    fn ranged(opcode: u8, namespace: u32, prp: Prp, (lba, blocks): (u64, u32), flags: u32) -> Self {
        let mut command = Self::new(opcode, namespace, prp);
        command.0[5] = lba;
        command.0[6] = u64::from((blocks - 1) & 0xffff | flags);
        command
    }

    /// Read, of 1 to 65536 blocks. Source: \[NVMe\] 6.9.
    #[inline]
    pub fn read(namespace: u32, prp: Prp, range: (u64, u32)) -> Self {
        Self::ranged(opcode::READ, namespace, prp, range, 0)
    }

    /// Write, of 1 to 65536 blocks. Source: \[NVMe\] 6.15.
    #[inline]
    pub fn write(namespace: u32, prp: Prp, range: (u64, u32), fua: bool) -> Self {
        Self::ranged(opcode::WRITE, namespace, prp, range, if fua { FUA } else { 0 })
    }

    /// Compare, of 1 to 65536 blocks. Source: \[NVMe\] 6.6.
    pub fn compare(namespace: u32, prp: Prp, range: (u64, u32)) -> Self {
        Self::ranged(opcode::COMPARE, namespace, prp, range, 0)
    }

    /// Write Zeroes, of 1 to 65536 blocks. Source: \[NVMe\] 6.17.
    pub fn write_zeroes(namespace: u32, range: (u64, u32), deallocate: bool) -> Self {
        Self::ranged(
            opcode::WRITE_ZEROES,
            namespace,
            Prp::default(),
            range,
            if deallocate { DEAC } else { 0 },
        )
    }

    /// Flush. Source: \[NVMe\] 6.8.
    pub fn flush(namespace: u32) -> Self {
        Self::new(opcode::FLUSH, namespace, Prp::default())
    }

    /// Dataset Management that deallocates the one range at `prp`. Source: \[NVMe\] 6.7.
    pub fn deallocate(namespace: u32, prp: Prp) -> Self {
        const AD: u32 = 1 << 2;
        Self::new(opcode::DATASET_MANAGEMENT, namespace, prp).with_10_11(0, AD)
    }

    /// Identify: the controller. Source: \[NVMe\] 5.15.
    pub fn identify_controller(prp: Prp) -> Self {
        Self::new(opcode::IDENTIFY, 0, prp).with_10_11(cns::CONTROLLER, 0)
    }

    /// Identify: one namespace.
    pub fn identify_namespace(namespace: u32, prp: Prp) -> Self {
        Self::new(opcode::IDENTIFY, namespace, prp).with_10_11(cns::NAMESPACE, 0)
    }

    /// Identify: the active namespaces above `after`.
    pub fn active_namespaces(after: u32, prp: Prp) -> Self {
        Self::new(opcode::IDENTIFY, after, prp).with_10_11(cns::ACTIVE_NAMESPACES, 0)
    }

    /// Set Features: ask for so many queue pairs. Source: \[NVMe\] 5.21.1.7.
    pub fn set_number_of_queues(pairs: u16) -> Self {
        let zero_based = u32::from(pairs - 1);
        Self::new(opcode::SET_FEATURES, 0, Prp::default())
            .with_10_11(feature::NUMBER_OF_QUEUES, zero_based << 16 | zero_based)
    }

    /// Get Features: whether the volatile write cache is on. Source: \[NVMe\] 5.21.1.6.
    pub fn get_write_cache() -> Self {
        Self::new(opcode::GET_FEATURES, 0, Prp::default()).with_10_11(feature::VOLATILE_WRITE_CACHE, 0)
    }

    /// Set Features: which asynchronous events to tell of. Source: \[NVMe\] 5.21.1.11.
    pub fn set_async_events(events: u32) -> Self {
        Self::new(opcode::SET_FEATURES, 0, Prp::default())
            .with_10_11(feature::ASYNC_EVENT_CONFIGURATION, events)
    }

    /// Asynchronous Event Request. Source: \[NVMe\] 5.2.
    pub fn async_event() -> Self {
        Self::new(opcode::ASYNC_EVENT, 0, Prp::default())
    }

    /// Get Log Page, its first 512 bytes. Source: \[NVMe\] 5.14.
    pub fn log_page(page: u8, prp: Prp) -> Self {
        const DWORDS: u32 = 512 / 4;
        Self::new(opcode::GET_LOG_PAGE, u32::MAX, prp).with_10_11(u32::from(page) | (DWORDS - 1) << 16, 0)
    }

    /// Create I/O Completion Queue, polled or with an interrupt vector. Source: \[NVMe\] 5.3.
    pub fn create_completion_queue(queue: u16, entries: u16, at: u64, vector: Option<u16>) -> Self {
        const CONTIGUOUS: u32 = 1;
        const INTERRUPTS: u32 = 2;
        let interrupts = vector.map_or(0, |vector| u32::from(vector) << 16 | INTERRUPTS);
        Self::new(opcode::CREATE_CQ, 0, Prp::page(at))
            .with_10_11(u32::from(entries - 1) << 16 | u32::from(queue), interrupts | CONTIGUOUS)
    }

    /// Create I/O Submission Queue, for the completion queue of the same number. Source: \[NVMe\] 5.4.
    pub fn create_submission_queue(queue: u16, entries: u16, at: u64) -> Self {
        const CONTIGUOUS: u32 = 1;
        Self::new(opcode::CREATE_SQ, 0, Prp::page(at))
            .with_10_11(u32::from(entries - 1) << 16 | u32::from(queue), u32::from(queue) << 16 | CONTIGUOUS)
    }

    /// Delete I/O Completion Queue. Source: \[NVMe\] 5.5.
    pub fn delete_completion_queue(queue: u16) -> Self {
        Self::new(opcode::DELETE_CQ, 0, Prp::default()).with_10_11(u32::from(queue), 0)
    }

    /// Delete I/O Submission Queue. Source: \[NVMe\] 5.6.
    pub fn delete_submission_queue(queue: u16) -> Self {
        Self::new(opcode::DELETE_SQ, 0, Prp::default()).with_10_11(u32::from(queue), 0)
    }

    /// Abort one command. Source: \[NVMe\] 5.1.
    pub fn abort(queue: u16, cid: u16) -> Self {
        Self::new(opcode::ABORT, 0, Prp::default()).with_10_11(u32::from(cid) << 16 | u32::from(queue), 0)
    }

    /// Doorbell Buffer Config. Source: \[NVMe\] 5.7.
    pub fn doorbell_buffer(shadow: u64, events: u64) -> Self {
        Self::new(opcode::DOORBELL_BUFFER, 0, Prp { first: shadow, second: events })
    }
}

/// One range of Dataset Management, as two words. Source: \[NVMe\] 6.7.1.
///
/// | bytes | field              |
/// |-------|--------------------|
/// | 0..4  | context attributes |
/// | 4..8  | length in blocks   |
/// | 8..16 | first block        |
pub fn dataset_range(lba: u64, blocks: u32) -> [u64; 2] {
    [u64::from(blocks) << 32, lba]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_has_its_fields_where_the_specification_says() {
        let prp = Prp { first: 0x1000, second: 0x2000 };
        let command = Command::write(7, prp, (0x1_0000_0002, 65536), true).with_cid(0xabcd);
        let mut bytes = [0; SUBMISSION_ENTRY_LEN];
        for (at, word) in command.0.iter().enumerate() {
            bytes[8 * at..8 * at + 8].copy_from_slice(&word.to_le_bytes());
        }
        let mut expected = [0; SUBMISSION_ENTRY_LEN];
        expected[0] = 0x01;
        expected[2..4].copy_from_slice(&0xabcd_u16.to_le_bytes());
        expected[4] = 7;
        expected[25] = 0x10;
        expected[33] = 0x20;
        expected[40..48].copy_from_slice(&0x1_0000_0002_u64.to_le_bytes());
        expected[48..52].copy_from_slice(&0x4000_ffff_u32.to_le_bytes());
        assert_eq!(bytes, expected);
    }

    #[test]
    fn queues_are_created_with_zero_based_sizes() {
        let command = Command::create_completion_queue(3, 128, 0x9000, Some(2));
        assert_eq!((command.dword(10), command.dword(11)), (127 << 16 | 3, 2 << 16 | 3));
        let command = Command::create_submission_queue(3, 128, 0x9000);
        assert_eq!((command.dword(10), command.dword(11)), (127 << 16 | 3, 3 << 16 | 1));
        assert_eq!(command.prp(), Prp::page(0x9000));
    }
}
