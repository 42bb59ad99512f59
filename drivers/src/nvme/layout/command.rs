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
    pub(super) const ARBITRATION: u32 = 0x01;
    pub(super) const VOLATILE_WRITE_CACHE: u32 = 0x06;
    pub(super) const NUMBER_OF_QUEUES: u32 = 0x07;
    pub(super) const ASYNC_EVENT_CONFIGURATION: u32 = 0x0b;
}

/// PSDT: SGLs, and no metadata. In the first word.
const SGL: u64 = 1 << 14;
/// Force unit access, in dword 12 of reads and writes.
const FUA: u32 = 1 << 30;
/// Deallocate, in dword 12 of Write Zeroes.
const DEAC: u32 = 1 << 25;

/// Bytes of one range of a Dataset Management command.
pub const DATASET_RANGE_LEN: usize = 16;

/// How commands of several queues take turns. Source: \[NVMe\] 4.13.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arbitration {
    /// log2 of the commands that are taken from one queue at a time; 7 for no limit.
    pub burst_bits: u8,
    /// Commands, less one, that are taken in a round from queue pairs of low, medium and high priority, where the controller
    /// offers weighted round robin.
    pub weights: [u8; 3],
}

/// What a queue pair is to others, where there is an [`Arbitration`] by weights. Source: \[NVMe\] 5.4, QPRIO.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Priority {
    /// Before all others.
    Urgent = 0,
    /// With the third weight.
    High = 1,
    /// With the second weight.
    #[default]
    Medium = 2,
    /// With the first weight.
    Low = 3,
}

/// The blocks of a command: 1 to 65536 of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockRange {
    /// The first one.
    pub lba: u64,
    /// How many, less one: NLB.
    pub less_one: u16,
}

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

/// Bytes of an SGL descriptor.
pub const SGL_DESCRIPTOR_LEN: usize = 16;

/// An SGL descriptor, its address being one of memory. Source: \[NVMe\] 4.4.1.
///
/// | bytes  | field   | meaning                                                          |
/// |--------|---------|------------------------------------------------------------------|
/// | 0..8   | address |                                                                  |
/// | 8..12  | length  | bytes of data, or of the descriptors in a segment                |
/// | 12..15 |         | reserved                                                         |
/// | 15     | SGLID   | 7:4 type: 0 data block, 3 last segment; 3:0 subtype: 0 an address |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sgl {
    /// The device's address.
    pub address: u64,
    /// Bytes.
    pub len: u32,
    /// What is there.
    pub kind: SglKind,
}

/// What an SGL descriptor describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SglKind {
    /// Data.
    Block,
    /// Descriptors of blocks, which are all there are.
    LastSegment,
}

impl Sgl {
    /// Some data.
    pub const fn block(address: u64, len: u32) -> Self {
        Self { address, len, kind: SglKind::Block }
    }

    /// Descriptors of so many bytes.
    pub const fn last_segment(address: u64, len: u32) -> Self {
        Self { address, len, kind: SglKind::LastSegment }
    }

    /// The descriptor as two words.
    pub fn words(self) -> [u64; 2] {
        let id = match self.kind {
            SglKind::Block => 0,
            SglKind::LastSegment => 3 << 4,
        };
        [self.address, u64::from(self.len) | id << 56]
    }

    /// Reads a descriptor; nothing for types that this driver does not use.
    pub fn parse([address, word]: [u64; 2]) -> Option<Self> {
        let kind = match word >> 56 {
            0 => SglKind::Block,
            0x30 => SglKind::LastSegment,
            _ => return None,
        };
        Some(Self { address, len: word as u32, kind })
    }
}

/// Where the data of a command is. Source: \[NVMe\] 4.2, fields PSDT and DPTR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataPointer {
    /// PRP entries, or no data.
    Prp(Prp),
    /// The first descriptor of an SGL. Not for admin commands.
    Sgl(Sgl),
}

impl DataPointer {
    /// No data.
    pub const NONE: Self = Self::Prp(Prp { first: 0, second: 0 });
}

impl From<Prp> for DataPointer {
    fn from(prp: Prp) -> Self {
        Self::Prp(prp)
    }
}

/// A submission queue entry, as eight words of 64 bits. Source: \[NVMe\] 4.2, figure "Command Format".
///
/// | bytes  | field        | meaning                                     |
/// |--------|--------------|---------------------------------------------|
/// | 0      | OPC          | opcode                                      |
/// | 1      | FUSE, PSDT   | 1:0 0, not fused; 7:6 0 PRPs, 1 an SGL      |
/// | 2..4   | CID          | command identifier                          |
/// | 4..8   | NSID         | namespace                                   |
/// | 8..16  |              | reserved                                    |
/// | 16..24 | MPTR         | metadata: none                              |
/// | 24..32 | DPTR         | PRP1, or the first half of SGL1             |
/// | 32..40 |              | PRP2, or its second half                    |
/// | 40..64 | CDW10..CDW15 | of each command's own                       |
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Command(pub [u64; 8]);

const _: () = assert!(size_of::<Command>() == SUBMISSION_ENTRY_LEN);

impl Command {
    #[inline]
    fn new(opcode: u8, namespace: u32, data: impl Into<DataPointer>) -> Self {
        let head = u64::from(opcode) | u64::from(namespace) << 32;
        match data.into() {
            DataPointer::Prp(Prp { first, second }) => Self([head, 0, 0, first, second, 0, 0, 0]),
            DataPointer::Sgl(sgl) => {
                let [first, second] = sgl.words();
                Self([head | SGL, 0, 0, first, second, 0, 0, 0])
            }
        }
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

    /// DPTR; nothing for an SGL that this driver does not make.
    pub fn data(&self) -> Option<DataPointer> {
        match self.0[0] >> 14 & 3 {
            0 => Some(DataPointer::Prp(Prp { first: self.0[3], second: self.0[4] })),
            1 => Sgl::parse([self.0[3], self.0[4]]).map(DataPointer::Sgl),
            _ => None,
        }
    }

    /// PRP1 and PRP2, of a command that has them.
    pub fn prp(&self) -> Prp {
        Prp { first: self.0[3], second: self.0[4] }
    }

    /// One of the dwords 10 to 15.
    pub fn dword(&self, number: usize) -> u32 {
        (self.0[number / 2] >> (32 * (number % 2))) as u32
    }

    #[inline]
    fn ranged(opcode: u8, namespace: u32, data: DataPointer, range: BlockRange, flags: u32) -> Self {
        let mut command = Self::new(opcode, namespace, data);
        command.0[5] = range.lba;
        command.0[6] = u64::from(u32::from(range.less_one) | flags);
        command
    }

    /// Read, of 1 to 65536 blocks. Source: \[NVMe\] 6.9.
    #[inline]
    pub fn read(namespace: u32, data: DataPointer, range: BlockRange) -> Self {
        Self::ranged(opcode::READ, namespace, data, range, 0)
    }

    /// Write, of 1 to 65536 blocks. Source: \[NVMe\] 6.15.
    #[inline]
    pub fn write(namespace: u32, data: DataPointer, range: BlockRange, fua: bool) -> Self {
        Self::ranged(opcode::WRITE, namespace, data, range, if fua { FUA } else { 0 })
    }

    /// Compare, of 1 to 65536 blocks. Source: \[NVMe\] 6.6.
    pub fn compare(namespace: u32, data: DataPointer, range: BlockRange) -> Self {
        Self::ranged(opcode::COMPARE, namespace, data, range, 0)
    }

    /// Write Zeroes, of 1 to 65536 blocks. Source: \[NVMe\] 6.17.
    pub fn write_zeroes(namespace: u32, range: BlockRange, deallocate: bool) -> Self {
        let flags = if deallocate { DEAC } else { 0 };
        Self::ranged(opcode::WRITE_ZEROES, namespace, DataPointer::NONE, range, flags)
    }

    /// Flush. Source: \[NVMe\] 6.8.
    pub fn flush(namespace: u32) -> Self {
        Self::new(opcode::FLUSH, namespace, Prp::default())
    }

    /// Dataset Management that deallocates the one range at `prp`. Source: \[NVMe\] 6.7.
    pub fn deallocate(namespace: u32, data: DataPointer) -> Self {
        const AD: u32 = 1 << 2;
        Self::new(opcode::DATASET_MANAGEMENT, namespace, data).with_10_11(0, AD)
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

    /// Set Features: how commands of several queues take turns. Source: \[NVMe\] 5.21.1.1.
    ///
    /// | bits  | field          |                                                          |
    /// |-------|----------------|----------------------------------------------------------|
    /// | 2:0   | AB             | log2 of the commands from one queue at a time, 7 no limit |
    /// | 15:8  | LPW            | low priority weight, less one                            |
    /// | 23:16 | MPW            | medium                                                   |
    /// | 31:24 | HPW            | high                                                     |
    pub fn set_arbitration(arbitration: Arbitration) -> Self {
        let [low, medium, high] = arbitration.weights.map(u32::from);
        let burst = u32::from(arbitration.burst_bits.min(7));
        Self::new(opcode::SET_FEATURES, 0, Prp::default())
            .with_10_11(feature::ARBITRATION, burst | low << 8 | medium << 16 | high << 24)
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

    /// Get Log Page, its first `len` bytes, which are whole dwords. That also clears the event which named it.
    /// Source: \[NVMe\] 5.14.
    pub fn log_page(page: u8, len: usize, prp: Prp) -> Self {
        let dwords = (len / 4) as u32;
        Self::new(opcode::GET_LOG_PAGE, u32::MAX, prp).with_10_11(u32::from(page) | (dwords - 1) << 16, 0)
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
    pub fn create_submission_queue(queue: u16, entries: u16, at: u64, priority: Priority) -> Self {
        const CONTIGUOUS: u32 = 1;
        let flags = (priority as u32) << 1 | CONTIGUOUS;
        Self::new(opcode::CREATE_SQ, 0, Prp::page(at))
            .with_10_11(u32::from(entries - 1) << 16 | u32::from(queue), u32::from(queue) << 16 | flags)
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
        let command = Command::write(7, prp.into(), BlockRange { lba: 0x1_0000_0002, less_one: 65535 }, true)
            .with_cid(0xabcd);
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
    fn an_sgl_says_so_and_survives_the_wire() {
        for sgl in [Sgl::block(0x1003, 777), Sgl::last_segment(0x9000, 48)] {
            let range = BlockRange { lba: 5, less_one: 0 };
            let command = Command::read(1, DataPointer::Sgl(sgl), range).with_cid(3);
            assert_eq!(command.0[0], 0x1_0003_4002);
            assert_eq!(command.data(), Some(DataPointer::Sgl(sgl)));
        }
        assert_eq!(Sgl::last_segment(0x9000, 48).words(), [0x9000, 0x3000_0000_0000_0030]);
        assert_eq!(Sgl::parse([0x9000, 0x2000_0000_0000_0030]), None);
    }

    #[test]
    fn queues_are_created_with_zero_based_sizes() {
        let command = Command::create_completion_queue(3, 128, 0x9000, Some(2));
        assert_eq!((command.dword(10), command.dword(11)), (127 << 16 | 3, 2 << 16 | 3));
        let command = Command::create_submission_queue(3, 128, 0x9000, Priority::Medium);
        assert_eq!((command.dword(10), command.dword(11)), (127 << 16 | 3, 3 << 16 | 2 << 1 | 1));
        assert_eq!(command.prp(), Prp::page(0x9000));
    }
}
