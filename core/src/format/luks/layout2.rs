//! The binary header of LUKS2, which stands before each copy of the JSON metadata. Source: \[LUKS2\] "Binary Header".
//!
//! ```text
//!   0          4096            size       size+4096        2*size
//!   ┌──────────┬───────────────┬──────────┬────────────────┐
//!   │ primary  │ JSON, zeros   │ secondary│ JSON, zeros    │
//!   └──────────┴───────────────┴──────────┴────────────────┘
//! ```

use crate::crypto::Hash;

use super::LuksError;
use super::layout::MAGIC;

/// Bytes of the binary header.
pub const BINARY_LEN: usize = 4096;

/// Lengths that a header may have with its JSON, which are the places of the second copy too.
pub const SIZES: [u64; 9] =
    [16 << 10, 32 << 10, 64 << 10, 128 << 10, 256 << 10, 512 << 10, 1 << 20, 2 << 20, 4 << 20];

const SECONDARY_MAGIC: &[u8] = b"SKUL\xba\xbe";
const CHECKSUM_AT: usize = 448;
const CHECKSUM_LEN: usize = 64;

/// Which copy of the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copy {
    /// The one at the start.
    Primary,
    /// The one behind it.
    Secondary,
}

impl Copy {
    const fn magic(self) -> &'static [u8] {
        match self {
            Self::Primary => MAGIC,
            Self::Secondary => SECONDARY_MAGIC,
        }
    }

    /// Where the copy is, in a volume whose headers have `size` bytes.
    pub const fn place(self, size: u64) -> u64 {
        match self {
            Self::Primary => 0,
            Self::Secondary => size,
        }
    }
}

/// The binary header, all numbers big-endian.
///
/// | bytes    | field              | unit, limits                                             |
/// |----------|--------------------|----------------------------------------------------------|
/// | 0..6     | magic              | `LUKS\xba\xbe`; `SKUL\xba\xbe` in the second copy        |
/// | 6..8     | version            | 2                                                        |
/// | 8..16    | hdr_size           | bytes with the JSON, one of [`SIZES`]                    |
/// | 16..24   | seqid              | goes up with each change                                 |
/// | 24..72   | label              | text                                                     |
/// | 72..104  | checksum algorithm | `sha256`                                                 |
/// | 104..168 | salt               | another in each copy                                     |
/// | 168..208 | uuid               | text                                                     |
/// | 208..256 | subsystem          | text                                                     |
/// | 256..264 | hdr_offset         | where this copy is                                       |
/// | 264..448 | reserved           | zero                                                     |
/// | 448..512 | checksum           | of hdr_size bytes with this field zero, and zeros        |
/// | 512..    | reserved           | zero                                                     |
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header2 {
    /// Bytes of the header with its JSON.
    pub size: u64,
    /// How often it was changed.
    pub seqid: u64,
    /// The volume's label.
    pub label: [u8; 48],
    /// What makes the copies differ.
    pub salt: [u8; 64],
    /// The volume's name.
    pub uuid: [u8; 40],
    /// What the volume is a part of.
    pub subsystem: [u8; 48],
}

impl Header2 {
    /// Reads the copy that is at byte `at` of the volume; the checksum is yet to be checked.
    ///
    /// # Errors
    /// The field that does not fit.
    pub fn parse(bytes: &[u8], copy: Copy, at: u64) -> Result<Self, LuksError> {
        if bytes.len() < BINARY_LEN {
            return Err(LuksError::TooShort { needed: at + BINARY_LEN as u64, len: at + bytes.len() as u64 });
        }
        if bytes[..6] != *copy.magic() {
            return Err(LuksError::NotLuks);
        }
        let version = u16::from_be_bytes([bytes[6], bytes[7]]);
        if version != 2 {
            return Err(LuksError::Version { found: version });
        }
        let number = |from: usize| u64::from_be_bytes(bytes[from..from + 8].try_into().expect("eight bytes"));
        let field = |field, from: u64, found, expected: &str| {
            Err(LuksError::Field { field, at: at + from, found, expected: expected.into() })
        };
        let size = number(8);
        if !SIZES.contains(&size) {
            return field("hdr_size", 8, size, "a power of two from 16 KiB to 4 MiB");
        }
        if number(256) != at || at != copy.place(size) {
            return field("hdr_offset", 256, number(256), "the place where the header is");
        }
        let algorithm = &bytes[72..104];
        let end = algorithm.iter().position(|byte| *byte == 0).unwrap_or(algorithm.len());
        if algorithm[..end] != *b"sha256" {
            return Err(LuksError::Hash(String::from_utf8_lossy(&algorithm[..end]).into_owned()));
        }
        Ok(Self {
            size,
            seqid: number(16),
            label: bytes[24..72].try_into().expect("48 bytes"),
            salt: bytes[104..168].try_into().expect("64 bytes"),
            uuid: bytes[168..208].try_into().expect("40 bytes"),
            subsystem: bytes[208..256].try_into().expect("48 bytes"),
        })
    }

    /// The bytes of a copy with its JSON, which has room in it, and its checksum.
    pub fn encode(&self, copy: Copy, json: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; self.size as usize];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, copy.magic());
        put(6, &2u16.to_be_bytes());
        put(8, &self.size.to_be_bytes());
        put(16, &self.seqid.to_be_bytes());
        put(24, &self.label);
        put(72, b"sha256");
        put(104, &self.salt);
        put(168, &self.uuid);
        put(208, &self.subsystem);
        put(256, &copy.place(self.size).to_be_bytes());
        put(BINARY_LEN, json);
        let sum = checksum(&bytes);
        bytes[CHECKSUM_AT..CHECKSUM_AT + sum.len()].copy_from_slice(&sum);
        bytes
    }

    /// Bytes of JSON that there is room for, with the zero behind it.
    pub fn json_room(&self) -> u64 {
        self.size - BINARY_LEN as u64
    }

    /// The volume's name as text.
    pub fn uuid_text(&self) -> String {
        let text = self.uuid.iter().take_while(|byte| byte.is_ascii_graphic());
        text.map(|byte| char::from(*byte)).collect()
    }
}

/// Checks the checksum of a whole copy at byte `at`, and gives its JSON, which ends at a zero with nothing but zeros behind.
///
/// # Errors
/// When one or the other is not so.
pub fn checked_json(bytes: &[u8], at: u64) -> Result<&[u8], LuksError> {
    let sum = checksum(bytes);
    let found = &bytes[CHECKSUM_AT..CHECKSUM_AT + CHECKSUM_LEN];
    if found[..sum.len()] != sum[..] || found[sum.len()..].iter().any(|byte| *byte != 0) {
        let hex =
            |bytes: &[u8]| bytes[..8].iter().map(|byte| format!("{byte:02x}")).collect::<String>() + "…";
        return Err(LuksError::Checksum { at, found: hex(found), expected: hex(&sum) });
    }
    let json = &bytes[BINARY_LEN..];
    let end = json.iter().position(|byte| *byte == 0).unwrap_or(json.len());
    let behind = json[end..].iter().position(|byte| *byte != 0);
    match behind {
        _ if end == json.len() => {
            Err(LuksError::Unterminated { field: "JSON area", at: at + BINARY_LEN as u64 })
        }
        Some(byte) => Err(LuksError::Field {
            field: "JSON area behind its end",
            at: at + (BINARY_LEN + end + byte) as u64,
            found: u64::from(json[end + byte]),
            expected: "0".into(),
        }),
        None => Ok(&json[..end]),
    }
}

fn checksum(bytes: &[u8]) -> Vec<u8> {
    let (before, rest) = bytes.split_at(CHECKSUM_AT);
    Hash::Sha256.digest(&[before, &[0; CHECKSUM_LEN], &rest[CHECKSUM_LEN..]])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_header_is_what_its_bytes_say(
            size in 0..SIZES.len(), seqid in any::<u64>(), fill in any::<[u8; 4]>(), second in any::<bool>(),
            flip in 0usize..16384,
        ) {
            let [label, salt, uuid, subsystem] = fill;
            let header = Header2 {
                size: SIZES[size], seqid, label: [label; 48], salt: [salt; 64], uuid: [uuid; 40],
                subsystem: [subsystem; 48],
            };
            let copy = if second { Copy::Secondary } else { Copy::Primary };
            let at = copy.place(header.size);
            let mut bytes = header.encode(copy, b"{}");
            prop_assert_eq!(Header2::parse(&bytes, copy, at), Ok(header));
            prop_assert_eq!(checked_json(&bytes, at), Ok(&b"{}"[..]));
            bytes[flip] ^= 1;
            prop_assert!(checked_json(&bytes, at).is_err(), "a changed byte is noticed");
        }
    }

    #[test]
    fn what_is_no_header_is_refused() {
        let header = Header2 {
            size: 16384,
            seqid: 1,
            label: [0; 48],
            salt: [0; 64],
            uuid: [0; 40],
            subsystem: [0; 48],
        };
        let bytes = header.encode(Copy::Primary, b"{}");
        assert!(Header2::parse(&bytes[..4095], Copy::Primary, 0).is_err());
        assert!(Header2::parse(&bytes, Copy::Secondary, 16384).is_err());
        for at in [0, 7, 8, 72, 263] {
            let mut bytes = bytes.clone();
            bytes[at] ^= 1;
            assert!(Header2::parse(&bytes, Copy::Primary, 0).is_err(), "byte {at}");
        }
        let full = vec![b'x'; 16384];
        assert!(checked_json(&full, 0).is_err());
    }
}
