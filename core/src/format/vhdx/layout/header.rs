//! The two headers. Source: \[VHDX\] 2.2.2.

use nom::bytes::complete::take;
use nom::number::complete::{le_u16, le_u32, le_u64};
use nom::{IResult, Parser};

use super::{Guid, MIB, seal, sealed};
use crate::format::vhdx::VhdxError;

/// Bytes of a header that are used.
pub const HEADER_LEN: usize = 4096;

/// Where the two headers are.
pub const HEADERS_AT: [u64; 2] = [64 << 10, 128 << 10];

const SIGNATURE: &[u8; 4] = b"head";

/// A header.
///
/// | bytes    | field       | unit, limits                                               |
/// |----------|-------------|------------------------------------------------------------|
/// | 0..4     | signature   | `head`                                                     |
/// | 4..8     | checksum    | CRC-32C of the 4096 bytes                                  |
/// | 8..16    | sequence    | the higher one of two is current                           |
/// | 16..32   | file_write  | GUID, new before the first write of a session              |
/// | 32..48   | data_write  | GUID, new before the first change of what the guest sees   |
/// | 48..64   | log         | GUID of the entries that are to be replayed; zeros: none   |
/// | 64..66   | log_version | 0                                                          |
/// | 66..68   | version     | 1                                                          |
/// | 68..72   | log_len     | bytes, whole MiB                                           |
/// | 72..80   | log_at      | bytes, whole MiB, at least 1 MiB                           |
/// | 80..4096 | reserved    | 0                                                          |
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The higher one of two is current.
    pub sequence: u64,
    /// New with each session that writes.
    pub file_write: Guid,
    /// New with each session that changes what the guest sees.
    pub data_write: Guid,
    /// Which entries of the log are to be replayed.
    pub log: Guid,
    /// Bytes of the log.
    pub log_len: u64,
    /// Where the log is.
    pub log_at: u64,
}

struct RawHeader {
    signature: [u8; 4],
    sequence: u64,
    guids: [Guid; 3],
    log_version: u16,
    version: u16,
    log_len: u32,
    log_at: u64,
}

fn raw_header(input: &[u8]) -> IResult<&[u8], RawHeader> {
    let (rest, (signature, _checksum, sequence)) = (take(4usize), le_u32, le_u64).parse(input)?;
    let (rest, (file_write, data_write, log)) = (take(16usize), take(16usize), take(16usize)).parse(rest)?;
    let (rest, (log_version, version, log_len, log_at)) = (le_u16, le_u16, le_u32, le_u64).parse(rest)?;
    let guid = |bytes: &[u8]| Guid(bytes.try_into().expect("sixteen bytes"));
    let guids = [guid(file_write), guid(data_write), guid(log)];
    let signature = signature.try_into().expect("four bytes");
    Ok((rest, RawHeader { signature, sequence, guids, log_version, version, log_len, log_at }))
}

impl Header {
    /// Parses the 4096 bytes of the header at `at`.
    ///
    /// # Errors
    /// What is damaged, or not supported.
    pub fn parse(at: u64, bytes: &[u8]) -> Result<Self, VhdxError> {
        let field = |field, found: u64, expected| {
            Err(VhdxError::Field { structure: "header", at, field, found, expected })
        };
        let Ok((_, raw)) = raw_header(bytes) else {
            return field("length", bytes.len() as u64, "4096 bytes");
        };
        if raw.signature != *SIGNATURE {
            return field("signature", u64::from(u32::from_be_bytes(raw.signature)), "'head'");
        }
        sealed("header", at, bytes)?;
        if raw.version != 1 {
            return field("version", u64::from(raw.version), "1");
        }
        if raw.log_version != 0 {
            return field("log version", u64::from(raw.log_version), "0");
        }
        let log_len = u64::from(raw.log_len);
        if log_len == 0 || !log_len.is_multiple_of(MIB) {
            return field("log length", log_len, "whole MiB, and at least one");
        }
        let end = raw.log_at.checked_add(log_len);
        if raw.log_at < MIB || !raw.log_at.is_multiple_of(MIB) || end.is_none() {
            return field("log offset", raw.log_at, "whole MiB, and at least one");
        }
        let [file_write, data_write, log] = raw.guids;
        Ok(Self { sequence: raw.sequence, file_write, data_write, log, log_len, log_at: raw.log_at })
    }

    /// The exact inverse.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_LEN);
        bytes.extend(SIGNATURE);
        bytes.extend([0; 4]);
        bytes.extend(self.sequence.to_le_bytes());
        for guid in [self.file_write, self.data_write, self.log] {
            bytes.extend(guid.0);
        }
        bytes.extend(0u16.to_le_bytes());
        bytes.extend(1u16.to_le_bytes());
        bytes.extend(u32::try_from(self.log_len).expect("the field has 32 bits").to_le_bytes());
        bytes.extend(self.log_at.to_le_bytes());
        bytes.resize(HEADER_LEN, 0);
        seal(&mut bytes);
        bytes
    }
}

/// The current one of two headers, and which that is. Two that are the same are one: Disk2vhd writes such files.
///
/// # Errors
/// When neither is valid, or both claim to be the newer one.
pub fn current(
    first: Result<Header, VhdxError>,
    second: Result<Header, VhdxError>,
) -> Result<(Header, usize), VhdxError> {
    match (first, second) {
        (Err(first), Err(second)) => {
            Err(VhdxError::Both { structure: "header", first: first.into(), second: second.into() })
        }
        (Ok(first), Err(_)) => Ok((first, 0)),
        (Err(_), Ok(second)) => Ok((second, 1)),
        (Ok(first), Ok(second)) if first.sequence > second.sequence || first == second => Ok((first, 0)),
        (Ok(first), Ok(second)) if first.sequence < second.sequence => Ok((second, 1)),
        (Ok(first), Ok(_)) => Err(VhdxError::TwoHeaders { sequence: first.sequence }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(sequence: u64) -> Header {
        let guid = Guid([7; 16]);
        Header { sequence, file_write: guid, data_write: guid, log: Guid::NIL, log_len: MIB, log_at: MIB }
    }

    proptest! {
        #[test]
        fn parse_is_the_inverse_of_encode(sequence: u64, guids: [[u8; 16]; 3], len in 1u64..4096, at in 1u64..1 << 30) {
            let [file_write, data_write, log] = guids.map(Guid);
            let header = Header { sequence, file_write, data_write, log, log_len: len * MIB, log_at: at * MIB };
            prop_assert_eq!(Header::parse(65536, &header.encode()), Ok(header));
        }

        #[test]
        fn any_bytes_are_refused(mut bytes: Vec<u8>) {
            bytes.resize(HEADER_LEN, 0);
            prop_assert!(Header::parse(65536, &bytes).is_err());
        }
    }

    #[test]
    fn limits_are_told() {
        let check = |at: usize, value: u32, expected: &str| {
            let mut bytes = header(1).encode();
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
            seal(&mut bytes);
            assert_eq!(Header::parse(65536, &bytes).expect_err("illegal").to_string(), expected);
        };
        check(0, 1, "header at byte 65536: signature is 0x1000000, expected 'head'");
        check(64, 1 << 17, "header at byte 65536: version is 0x2, expected 1");
        check(64, 1 << 16 | 1, "header at byte 65536: log version is 0x1, expected 0");
        check(68, 4096, "header at byte 65536: log length is 0x1000, expected whole MiB, and at least one");
        check(72, 4096, "header at byte 65536: log offset is 0x1000, expected whole MiB, and at least one");
        let mut bytes = header(1).encode();
        bytes[4000] = 1;
        let damaged = Header::parse(65536, &bytes).expect_err("a wrong checksum").to_string();
        assert!(damaged.starts_with("header at byte 65536: checksum 0x"), "{damaged}");
    }

    #[test]
    fn the_newer_valid_header_counts() {
        let bad = || Err(VhdxError::TwoHeaders { sequence: 0 });
        let which = |first, second| current(first, second).map(|(_, which)| which).ok();
        assert_eq!(which(Ok(header(1)), Ok(header(2))), Some(1));
        assert_eq!(which(Ok(header(3)), Ok(header(2))), Some(0));
        assert_eq!(which(bad(), Ok(header(2))), Some(1));
        assert_eq!(which(Ok(header(1)), bad()), Some(0));
        assert_eq!(which(Ok(header(1)), Ok(header(1))), Some(0), "the same");
        assert_eq!(which(Ok(header(1)), Ok(Header { log_at: 2 * MIB, ..header(1) })), None);
        assert_eq!(which(bad(), bad()), None);
    }
}
