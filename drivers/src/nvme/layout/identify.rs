//! Identify data structures. Source: \[NVMe\] 5.15.2.

use super::command::BlockRange;
use crate::nvme::error::NvmeError;

/// Bytes of every Identify data structure.
pub const IDENTIFY_LEN: usize = 4096;

/// log2 of a transfer that is as good as no limit: 2 GiB.
const MDTS_BITS_MAX: u32 = 31;

/// What Identify says of a controller. Source: \[NVMe\] 5.15.2.2.
///
/// | bytes    | field  | meaning                                                 |
/// |----------|--------|---------------------------------------------------------|
/// | 0..2     | VID    | PCI vendor                                              |
/// | 4..24    | SN     | serial number, ASCII                                    |
/// | 24..64   | MN     | model, ASCII                                            |
/// | 64..72   | FR     | firmware, ASCII                                         |
/// | 77       | MDTS   | log2 of the largest transfer in pages of MPSMIN, 0 none |
/// | 80..84   | VER    | version                                                 |
/// | 92..96   | OAES   | bit 8: namespace attribute notices                      |
/// | 256..258 | OACS   | bit 8: Doorbell Buffer Config                           |
/// | 512      | SQES   | 3:0 smallest log2 of a submission queue entry           |
/// | 513      | CQES   | 3:0 smallest log2 of a completion queue entry           |
/// | 516..520 | NN     | the largest NSID                                        |
/// | 520..522 | ONCS   | bit 0 Compare, 2 Dataset Management, 3 Write Zeroes     |
/// | 525      | VWC    | bit 0: there is a volatile write cache                  |
/// | 536..540 | SGLS   | 1:0 SGLs: 0 none, 1 any, 2 of whole dwords              |
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControllerIdentity {
    /// SN, without its padding.
    pub serial: String,
    /// MN, without its padding.
    pub model: String,
    /// FR, without its padding.
    pub firmware: String,
    /// VER as it is.
    pub version: u32,
    /// Bytes of one command's data at the most, in whole pages; nothing for no limit.
    pub transfer_max: Option<usize>,
    /// The largest number that a namespace may have.
    pub namespace_max: u32,
    /// Bit 8 of OACS.
    pub doorbell_buffer: bool,
    /// Bits of OAES.
    pub async_events: u32,
    /// Bit 0 of ONCS.
    pub compare: bool,
    /// Bit 2 of ONCS.
    pub dataset_management: bool,
    /// Bit 3 of ONCS.
    pub write_zeroes: bool,
    /// Bit 0 of VWC.
    pub volatile_write_cache: bool,
    /// Bits 1:0 of SGLS.
    pub sgl: SglSupport,
}

/// What SGLs a controller takes for I/O commands. Source: \[NVMe\] 5.15.2.2, SGLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum SglSupport {
    /// None.
    #[default]
    None,
    /// Blocks of any address and length.
    Bytes,
    /// Blocks whose address and length are multiples of 4.
    Dwords,
}

impl ControllerIdentity {
    /// Reads the data structure; `page` is the controller's smallest page in bytes.
    ///
    /// # Errors
    /// [`NvmeError::Identify`] for what this driver cannot work with.
    pub fn parse(data: &[u8; IDENTIFY_LEN], page: usize) -> Result<Self, NvmeError> {
        let entries = |field, at: usize, expected: u8, text| match data[at] & 0xf <= expected {
            true => Ok(()),
            false => Err(NvmeError::Identify { field, at, found: u64::from(data[at]), expected: text }),
        };
        entries("SQES", 512, 6, "submission queue entries of 64 bytes")?;
        entries("CQES", 513, 4, "completion queue entries of 16 bytes")?;
        let transfer_max = match u32::from(data[77]) {
            0 => None,
            bits => Some(1 << (bits.saturating_add(page.trailing_zeros())).min(MDTS_BITS_MAX)),
        };
        let (oacs, oncs) = (u16_at(data, 256), u16_at(data, 520));
        Ok(Self {
            serial: text(&data[4..24]),
            model: text(&data[24..64]),
            firmware: text(&data[64..72]),
            version: u32_at(data, 80),
            transfer_max,
            namespace_max: u32_at(data, 516),
            doorbell_buffer: oacs >> 8 & 1 != 0,
            async_events: u32_at(data, 92),
            compare: oncs & 1 != 0,
            dataset_management: oncs >> 2 & 1 != 0,
            write_zeroes: oncs >> 3 & 1 != 0,
            volatile_write_cache: data[525] & 1 != 0,
            sgl: match data[536] & 3 {
                1 => SglSupport::Bytes,
                2 => SglSupport::Dwords,
                _ => SglSupport::None,
            },
        })
    }
}

/// A namespace that can be read and written. Source: \[NVMe\] 5.15.2.1.
///
/// | bytes      | field  | meaning                                                     |
/// |------------|--------|-------------------------------------------------------------|
/// | 0..8       | NSZE   | size in blocks                                              |
/// | 24         | NSFEAT | bit 4: NPWG and its like are meant                          |
/// | 25         | NLBAF  | formats there are, less one                                 |
/// | 26         | FLBAS  | 3:0 the format in use                                       |
/// | 29         | DPS    | 2:0 protection information, 0 none                          |
/// | 33         | DLFEAT | 2:0: 1 deallocated blocks read as zeros; 3 DEAC is taken    |
/// | 64..66     | NPWG   | preferred write granularity in blocks, less one             |
/// | 128 + 4n.. | LBAF n | 0..2 bytes of metadata, 2 log2 bytes of a block, 9 to 16    |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// NSID.
    pub id: u32,
    /// Size in blocks; the size in bytes fits 63 bits.
    pub blocks: u64,
    /// log2 of the bytes of a block: 9 to 16.
    pub block_bits: u32,
    /// Bytes of a write that suit the namespace; a block where it does not say.
    pub preferred: u32,
    /// Deallocated blocks read as zeros.
    pub deallocated_reads_zero: bool,
    /// Write Zeroes takes DEAC.
    pub zeroes_deallocate: bool,
}

impl Namespace {
    /// Reads the data structure of namespace `id`.
    ///
    /// # Errors
    /// [`NvmeError::NoNamespace`] for one that is not active, [`NvmeError::Namespace`] for one that this driver cannot
    /// work with.
    pub fn parse(id: u32, data: &[u8; IDENTIFY_LEN]) -> Result<Self, NvmeError> {
        let refused = |field, found, expected| Err(NvmeError::Namespace { id, field, found, expected });
        let blocks = u64_at(data, 0);
        if blocks == 0 {
            return Err(NvmeError::NoNamespace { id });
        }
        let format = data[26] & 0xf;
        if format > data[25] {
            return refused("FLBAS", u64::from(format), "a format that NLBAF counts");
        }
        let lbaf = 128 + 4 * usize::from(format);
        let (metadata, block_bits) = (u16_at(data, lbaf), u32::from(data[lbaf + 2]));
        if metadata != 0 {
            return refused("LBAF.MS", u64::from(metadata), "0: metadata beside blocks is not supported");
        }
        if data[29] & 7 != 0 {
            return refused("DPS", u64::from(data[29]), "0: protection information is not supported");
        }
        if !(9..=16).contains(&block_bits) {
            return refused("LBAF.LBADS", u64::from(block_bits), "9 to 16: blocks of 512 bytes to 64 KiB");
        }
        if blocks > (i64::MAX as u64) >> block_bits {
            return refused("NSZE", blocks, "a size in bytes below 2^63");
        }
        let granularity = match data[24] >> 4 & 1 {
            0 => 1,
            _ => u32::from(u16_at(data, 64)) + 1,
        };
        Ok(Self {
            id,
            blocks,
            block_bits,
            preferred: granularity << block_bits,
            deallocated_reads_zero: data[33] & 7 == 1,
            zeroes_deallocate: data[33] >> 3 & 1 != 0,
        })
    }

    /// Size in bytes.
    #[inline]
    pub fn len_bytes(&self) -> u64 {
        self.blocks.wrapping_shl(self.block_bits)
    }

    /// The blocks that `len` bytes at `offset` are; nothing unless they are whole ones, inside, one at least, and no more
    /// than a command can name.
    #[inline]
    pub fn blocks_at(&self, offset: u64, len: u64) -> Option<BlockRange> {
        if (offset | len).trailing_zeros() < self.block_bits {
            return None;
        }
        // No more than 16 bits; and what is left of two numbers then has a sum.
        let (lba, count) = (offset.wrapping_shr(self.block_bits), len.wrapping_shr(self.block_bits));
        if lba.wrapping_add(count) > self.blocks {
            return None;
        }
        let less_one = u16::try_from(count.wrapping_sub(1)).ok()?;
        Some(BlockRange { lba, less_one })
    }

    /// Bytes of a block.
    #[inline]
    pub fn block(&self) -> u32 {
        1u32.wrapping_shl(self.block_bits)
    }
}

/// The numbers in a list of active namespaces, in their order. Source: \[NVMe\] 5.15.2.3.
///
/// The list ends with the first number that is not above the one before, whatever follows.
pub fn active_namespaces(data: &[u8; IDENTIFY_LEN], after: u32) -> Vec<u32> {
    let mut last = after;
    let numbers = (0..IDENTIFY_LEN / 4).map(|index| u32_at(data, 4 * index));
    numbers.take_while(|number| *number > std::mem::replace(&mut last, *number)).collect()
}

pub(super) fn u16_at(data: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([data[at], data[at + 1]])
}

pub(super) fn u32_at(data: &[u8], at: usize) -> u32 {
    u32::from(u16_at(data, at)) | u32::from(u16_at(data, at + 2)) << 16
}

pub(super) fn u64_at(data: &[u8], at: usize) -> u64 {
    u64::from(u32_at(data, at)) | u64::from(u32_at(data, at + 4)) << 32
}

/// A string of the device, safe to print.
fn text(bytes: &[u8]) -> String {
    let printable = |byte: &u8| if (b' '..=b'~').contains(byte) { char::from(*byte) } else { '?' };
    let text: String = bytes.iter().take_while(|byte| **byte != 0).map(printable).collect();
    text.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A namespace of 1000 blocks of 4096 bytes.
    fn namespace() -> [u8; IDENTIFY_LEN] {
        let mut data = [0; IDENTIFY_LEN];
        data[..8].copy_from_slice(&1000u64.to_le_bytes());
        data[25] = 1;
        data[26] = 1;
        data[130] = 9;
        data[134] = 12;
        data
    }

    #[test]
    fn a_namespace_is_what_its_format_in_use_says() {
        let parsed = Namespace::parse(3, &namespace()).expect("legal");
        assert_eq!((parsed.len_bytes(), parsed.block(), parsed.preferred), (4_096_000, 4096, 4096));
        let mut data = namespace();
        data[24] = 1 << 4;
        data[64] = 7;
        assert_eq!(Namespace::parse(3, &data).expect("legal").preferred, 32768);
    }

    #[test]
    fn a_namespace_that_cannot_be_worked_with_is_refused() {
        let check = |at: usize, byte: u8, expected: &str| {
            let mut data = namespace();
            data[at] = byte;
            assert_eq!(Namespace::parse(3, &data).expect_err("refused").to_string(), expected);
        };
        check(26, 2, "namespace 3, field FLBAS: found 2, expected a format that NLBAF counts");
        check(
            132,
            8,
            "namespace 3, field LBAF.MS: found 8, expected 0: metadata beside blocks is not supported",
        );
        check(
            134,
            8,
            "namespace 3, field LBAF.LBADS: found 8, expected 9 to 16: blocks of 512 bytes to 64 KiB",
        );
        check(
            134,
            64,
            "namespace 3, field LBAF.LBADS: found 64, expected 9 to 16: blocks of 512 bytes to 64 KiB",
        );
        check(29, 1, "namespace 3, field DPS: found 1, expected 0: protection information is not supported");
        check(7, 1, "namespace 3, field NSZE: found 72057594037928936, expected a size in bytes below 2^63");
    }

    #[test]
    fn the_largest_transfer_is_bounded_however_absurd_mdts_is() {
        let mut data = [0; IDENTIFY_LEN];
        (data[512], data[513]) = (0x66, 0x44);
        for (mdts, expected) in [(0, None), (5, Some(131_072)), (255, Some(1 << 31))] {
            data[77] = mdts;
            assert_eq!(ControllerIdentity::parse(&data, 4096).expect("legal").transfer_max, expected);
        }
        data[513] = 0x55;
        let error = ControllerIdentity::parse(&data, 4096).expect_err("entries of 32 bytes");
        let expected = "Identify Controller, field CQES at byte 513: found 85, expected completion queue entries of 16 bytes";
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn a_list_of_namespaces_ends_where_it_stops_to_grow() {
        let mut data = [0; IDENTIFY_LEN];
        for (index, number) in [1u32, 2, 7, 7, 9].into_iter().enumerate() {
            data[4 * index..4 * index + 4].copy_from_slice(&number.to_le_bytes());
        }
        assert_eq!(active_namespaces(&data, 0), [1, 2, 7]);
        assert!(active_namespaces(&data, 1).is_empty());
    }

    proptest! {
        /// Whatever the device says: an error, or a namespace whose bytes can be counted.
        #[test]
        fn any_identify_data_is_judged(bytes in proptest::collection::vec(any::<u8>(), 256)) {
            let mut data = [0; IDENTIFY_LEN];
            data[..256].copy_from_slice(&bytes);
            if let Ok(namespace) = Namespace::parse(1, &data) {
                prop_assert!(namespace.len_bytes() >= u64::from(namespace.block()));
            }
            data[256..512].copy_from_slice(&bytes);
            data[512..768].copy_from_slice(&bytes);
            let _ = ControllerIdentity::parse(&data, 4096);
            prop_assert!(active_namespaces(&data, 0).is_sorted());
        }
    }
}
