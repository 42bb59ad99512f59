//! The hashes that encrypted formats name.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Digest;

/// A hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "their names say it")]
pub enum Hash {
    Md5,
    Sha1,
    Sha224,
    Sha256,
    Sha384,
    Sha512,
    Ripemd160,
    Sm3,
    Whirlpool,
}

/// Does something with the type that a hash stands for.
macro_rules! with_hash {
    ($hash:expr, $digest:ident => $body:expr) => {
        match $hash {
            Hash::Md5 => {
                type $digest = md5::Md5;
                $body
            }
            Hash::Sha1 => {
                type $digest = sha1::Sha1;
                $body
            }
            Hash::Sha224 => {
                type $digest = sha2::Sha224;
                $body
            }
            Hash::Sha256 => {
                type $digest = sha2::Sha256;
                $body
            }
            Hash::Sha384 => {
                type $digest = sha2::Sha384;
                $body
            }
            Hash::Sha512 => {
                type $digest = sha2::Sha512;
                $body
            }
            Hash::Ripemd160 => {
                type $digest = ripemd::Ripemd160;
                $body
            }
            Hash::Sm3 => {
                type $digest = sm3::Sm3;
                $body
            }
            Hash::Whirlpool => {
                type $digest = whirlpool::Whirlpool;
                $body
            }
        }
    };
}

impl Hash {
    /// All hashes.
    pub const ALL: [Self; 9] = [
        Self::Md5,
        Self::Sha1,
        Self::Sha224,
        Self::Sha256,
        Self::Sha384,
        Self::Sha512,
        Self::Ripemd160,
        Self::Sm3,
        Self::Whirlpool,
    ];

    /// The name that headers and options have for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Md5 => "md5",
            Self::Sha1 => "sha1",
            Self::Sha224 => "sha224",
            Self::Sha256 => "sha256",
            Self::Sha384 => "sha384",
            Self::Sha512 => "sha512",
            Self::Ripemd160 => "ripemd160",
            Self::Sm3 => "sm3",
            Self::Whirlpool => "whirlpool",
        }
    }

    /// The hash of that name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|hash| hash.name() == name)
    }

    /// Bytes of a digest.
    pub const fn digest_len(self) -> usize {
        match self {
            Self::Md5 => 16,
            Self::Sha1 | Self::Ripemd160 => 20,
            Self::Sha224 => 28,
            Self::Sha256 | Self::Sm3 => 32,
            Self::Sha384 => 48,
            Self::Sha512 | Self::Whirlpool => 64,
        }
    }

    /// What a round of keyed digests costs, where one of SHA-256 costs 1: as measured on a processor with instructions for SHA-1 and
    /// SHA-256.
    pub const fn round_cost(self) -> u64 {
        match self {
            Self::Md5 | Self::Sha1 | Self::Sha224 | Self::Sha256 => 1,
            Self::Sha384 | Self::Sha512 | Self::Ripemd160 | Self::Sm3 => 3,
            Self::Whirlpool => 16,
        }
    }

    /// The digest of what the parts are together.
    pub fn digest(self, parts: &[&[u8]]) -> Vec<u8> {
        with_hash!(self, D => {
            let mut hash = D::new();
            parts.iter().for_each(|part| hash.update(part));
            hash.finalize().to_vec()
        })
    }

    /// The keyed digest of what the parts are together.
    pub(super) fn hmac(self, key: &[u8], parts: &[&[u8]]) -> Vec<u8> {
        with_hash!(self, D => {
            let mut mac = Hmac::<D>::new_from_slice(key).expect("a key of any length");
            parts.iter().for_each(|part| mac.update(part));
            mac.finalize().into_bytes().to_vec()
        })
    }

    /// Goes on with a chain of keyed digests: `last` becomes its own digest `rounds` times, and `sum` gets each of them
    /// added to it without carry.
    pub(super) fn hmac_chain(self, key: &[u8], last: &mut [u8], sum: &mut [u8], rounds: u32) {
        with_hash!(self, D => {
            let keyed = Hmac::<D>::new_from_slice(key).expect("a key of any length");
            let mut link = hmac::digest::Output::<D>::default();
            link.copy_from_slice(last);
            for _ in 0..rounds {
                let mut mac = keyed.clone();
                mac.update(&link);
                link = mac.finalize().into_bytes();
                sum.iter_mut().zip(&link).for_each(|(sum, link)| *sum ^= link);
            }
            last.copy_from_slice(&link);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_lengths_go_with_the_digests() {
        for hash in Hash::ALL {
            assert_eq!(Hash::parse(hash.name()), Some(hash));
            assert_eq!(hash.digest(&[b"a", b"bc"]).len(), hash.digest_len());
            assert_eq!(hash.digest(&[b"a", b"bc"]), hash.digest(&[b"abc"]));
        }
        assert_eq!(Hash::parse("md4"), None);
        // RFC 1321 and GB/T 32905, their examples of "abc".
        assert_eq!(Hash::Md5.digest(&[b"abc"])[..4], [0x90, 0x01, 0x50, 0x98]);
        assert_eq!(Hash::Sm3.digest(&[b"abc"])[..4], [0x66, 0xc7, 0xf0, 0xf4]);
        // FIPS 180-4, the example of one block.
        assert_eq!(Hash::Sha256.digest(&[b"abc"])[..4], [0xba, 0x78, 0x16, 0xbf]);
    }
}
