//! The header of a cloop image, and its table. All fields are big-endian.

use nom::number::complete::be_u32;
use nom::{IResult, Parser};

use super::CloopError;

/// How the script begins that the file is to a shell.
const SCRIPT: &[u8] = b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop ";

/// Where the fields begin.
const FIELDS_AT: usize = 128;

/// Bytes of the header; the table follows.
pub const HEADER_LEN: usize = 136;

/// Bytes of a block at the most. Source: `qemu-img`'s limit.
pub const BLOCK_LEN_MAX: u32 = 64 << 20;

/// | bytes    | field     | unit, limits                                              |
/// |----------|-----------|-----------------------------------------------------------|
/// | 0..128   | script    | what mounts the image, as a shell reads it                |
/// | 128..132 | block_len | bytes of a block, whole sectors                           |
/// | 132..136 | blocks    |                                                           |
/// | 136..    | table     | where each block begins, and where the last one ends: u64 |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes of a block.
    pub block_len: u32,
    /// How many there are.
    pub blocks: u32,
}

/// Whether the first bytes of a file are a cloop image's.
pub fn probe(head: &[u8]) -> bool {
    head.starts_with(SCRIPT)
}

impl Header {
    /// Parses the first bytes of a file.
    ///
    /// # Errors
    /// What is damaged, or not supported.
    pub fn parse(bytes: &[u8]) -> Result<Self, CloopError> {
        if bytes.len() < HEADER_LEN {
            return Err(CloopError::HeaderTooShort { len: bytes.len() as u64 });
        }
        if !probe(bytes) {
            return Err(CloopError::NotCloop);
        }
        let fields: IResult<&[u8], (u32, u32)> = (be_u32, be_u32).parse(&bytes[FIELDS_AT..]);
        let (_, (block_len, blocks)) = fields.expect("the length was looked at");
        match block_len {
            0 => Err(CloopError::NoBlockSize),
            found if found % 512 != 0 => Err(CloopError::BlockSize { found }),
            found if found > BLOCK_LEN_MAX => {
                Err(CloopError::BlockTooLarge { found, max_mib: BLOCK_LEN_MAX >> 20 })
            }
            _ => Ok(Self { block_len, blocks }),
        }
    }

    /// A header that parses to this.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[..SCRIPT.len()].copy_from_slice(SCRIPT);
        bytes[FIELDS_AT..FIELDS_AT + 4].copy_from_slice(&self.block_len.to_be_bytes());
        bytes[FIELDS_AT + 4..].copy_from_slice(&self.blocks.to_be_bytes());
        bytes
    }

    /// Bytes of the disk.
    pub fn size(&self) -> u64 {
        u64::from(self.block_len) * u64::from(self.blocks)
    }

    /// Where the table says where a block begins.
    pub fn entry_at(block: u64) -> u64 {
        HEADER_LEN as u64 + 8 * block
    }

    /// Bytes that a block takes at the most: what does not shrink grows a little.
    pub fn packed_len_max(&self) -> u64 {
        2 * u64::from(self.block_len)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn headers_survive_encoding(sectors in 1..=BLOCK_LEN_MAX / 512, blocks: u32) {
            let header = Header { block_len: sectors * 512, blocks };
            prop_assert_eq!(Header::parse(&header.encode()), Ok(header));
        }
    }

    #[test]
    fn damaged_headers_are_refused() {
        let check = |block_len, expected| {
            let bytes = Header { block_len, blocks: 1 }.encode();
            assert_eq!(Header::parse(&bytes), Err(expected));
        };
        check(0, CloopError::NoBlockSize);
        check(513, CloopError::BlockSize { found: 513 });
        check(BLOCK_LEN_MAX + 512, CloopError::BlockTooLarge { found: BLOCK_LEN_MAX + 512, max_mib: 64 });
        assert_eq!(Header::parse(&[0; 135]), Err(CloopError::HeaderTooShort { len: 135 }));
        assert_eq!(Header::parse(&[0; 136]), Err(CloopError::NotCloop));
    }
}
