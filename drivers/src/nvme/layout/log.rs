//! Log pages. Source: \[NVMe\] 5.14.1.

use super::completion::Status;
use super::identify::{u16_at, u32_at, u64_at};

/// Numbers of log pages.
pub mod log_page {
    /// Error Information.
    pub const ERRORS: u8 = 0x01;
    /// SMART / Health Information.
    pub const HEALTH: u8 = 0x02;
    /// Changed Namespace List.
    pub const CHANGED_NAMESPACES: u8 = 0x04;
}

/// Bytes of every log page that are read, at the most; no page here has more that matters.
pub const LOG_LEN: usize = 4096;

/// Bytes of an entry of the error log.
const ERROR_LEN: usize = 64;

/// One entry of the error log. Source: \[NVMe\] 5.14.1.1.
///
/// | bytes  | field                    | meaning                                    |
/// |--------|--------------------------|--------------------------------------------|
/// | 0..8   | error count              | numbers errors; 0 ends the log             |
/// | 8..10  | SQID                     | submission queue                           |
/// | 10..12 | CID                      | command identifier                         |
/// | 12..14 | status field             | 15:1, as in a completion                   |
/// | 14..16 | parameter error location | byte 7:0 and bit 10:8 of the command       |
/// | 16..24 | LBA                      | the first block that failed                |
/// | 24..28 | namespace                | NSID                                       |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorEntry {
    /// Numbers the errors of the controller's life.
    pub count: u64,
    /// SQID.
    pub queue: u16,
    /// CID.
    pub cid: u16,
    /// The status that the command was completed with.
    pub status: Status,
    /// LBA.
    pub lba: u64,
    /// NSID.
    pub namespace: u32,
}

impl ErrorEntry {
    /// Reads the log: the newest error comes first.
    pub fn parse_all(data: &[u8; LOG_LEN]) -> Vec<Self> {
        let entry = |bytes: &[u8]| Self {
            count: u64_at(bytes, 0),
            queue: u16_at(bytes, 8),
            cid: u16_at(bytes, 10),
            status: Status(u16_at(bytes, 12) >> 1),
            lba: u64_at(bytes, 16),
            namespace: u32_at(bytes, 24),
        };
        data.chunks_exact(ERROR_LEN).map(entry).take_while(|entry| entry.count != 0).collect()
    }
}

/// How a controller is doing. Source: \[NVMe\] 5.14.1.2.
///
/// | bytes    | field                 | unit, meaning                                               |
/// |----------|-----------------------|-------------------------------------------------------------|
/// | 0        | critical warning      | bit 0 spare, 1 temperature, 2 reliability, 3 read only, 4 backup |
/// | 1..3     | composite temperature | kelvin                                                      |
/// | 3        | available spare       | per cent                                                    |
/// | 4        | spare threshold       | per cent                                                    |
/// | 5        | percentage used       | per cent of its life; may be above 100                      |
/// | 160..176 | media errors          | 128 bits                                                    |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Health {
    /// Bits of what is critical; 0 when all is well.
    pub critical_warning: u8,
    /// Kelvin.
    pub temperature: u16,
    /// Per cent of the spare capacity that is left.
    pub spare: u8,
    /// Per cent below which that is critical.
    pub spare_threshold: u8,
    /// Per cent of the expected life.
    pub used: u8,
    /// Errors of the medium that were not corrected; as many as can be counted.
    pub media_errors: u64,
}

impl Health {
    /// Bit 3 of the critical warning: the medium takes no more writes.
    pub fn is_read_only(&self) -> bool {
        self.critical_warning >> 3 & 1 != 0
    }

    /// Reads the log page.
    pub fn parse(data: &[u8; LOG_LEN]) -> Self {
        Self {
            critical_warning: data[0],
            temperature: u16_at(data, 1),
            spare: data[3],
            spare_threshold: data[4],
            used: data[5],
            media_errors: if u64_at(data, 168) == 0 { u64_at(data, 160) } else { u64::MAX },
        }
    }
}

/// Which namespaces changed; nothing when they are too many to be listed. Source: \[NVMe\] 5.14.1.4.
pub fn changed_namespaces(data: &[u8; LOG_LEN]) -> Option<Vec<u32>> {
    let numbers = (0..LOG_LEN / 4).map(|index| u32_at(data, 4 * index));
    let numbers: Vec<u32> = numbers.take_while(|number| *number != 0).collect();
    (numbers.first() != Some(&u32::MAX)).then_some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_end_with_the_first_that_counts_nothing() {
        let mut data = [0; LOG_LEN];
        data[0] = 9;
        data[8] = 1;
        data[10] = 7;
        data[12..14].copy_from_slice(&(0x281u16 << 1 | 1).to_le_bytes());
        data[16] = 5;
        data[24] = 2;
        data[128] = 4;
        let entry =
            ErrorEntry { count: 9, queue: 1, cid: 7, status: Status::UNRECOVERED_READ, lba: 5, namespace: 2 };
        assert_eq!(ErrorEntry::parse_all(&data), [entry]);
        assert_eq!(ErrorEntry::parse_all(&[0xff; LOG_LEN]).len(), 64);
    }

    #[test]
    fn health_counts_as_far_as_it_goes() {
        let mut data = [0; LOG_LEN];
        data[..6].copy_from_slice(&[0b1010, 0x37, 0x01, 80, 10, 120]);
        data[160] = 3;
        let health = Health::parse(&data);
        assert!(health.is_read_only());
        assert_eq!(
            (health.temperature, health.spare, health.spare_threshold, health.used),
            (311, 80, 10, 120)
        );
        assert_eq!(health.media_errors, 3);
        data[168] = 1;
        assert_eq!(Health::parse(&data).media_errors, u64::MAX);
    }

    #[test]
    fn changed_namespaces_may_be_too_many() {
        let mut data = [0; LOG_LEN];
        assert_eq!(changed_namespaces(&data), Some(Vec::new()));
        data[..8].copy_from_slice(&[3, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(changed_namespaces(&data), Some(vec![3, 1]));
        data[..4].fill(0xff);
        assert_eq!(changed_namespaces(&data), None);
    }
}
