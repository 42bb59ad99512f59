//! Keys made of passphrases: PBKDF2 (RFC 8018) in pieces, and Argon2 (RFC 9106).

use std::fmt;

use zeroize::{Zeroize, Zeroizing};

use super::{Hash, Secret};

/// A block of a PBKDF2 key while it is being made: as long as one digest.
///
/// The rounds of a block follow one another; so that they can be stopped and timed, a chain does them some at a time.
#[derive(Clone)]
pub struct Pbkdf2Chain {
    hash: Hash,
    password: Secret,
    last: Zeroizing<Vec<u8>>,
    sum: Zeroizing<Vec<u8>>,
    left: u32,
}

impl Pbkdf2Chain {
    /// The blocks of a key of `len` bytes, with their first round done. `iterations` is above zero.
    pub fn blocks(hash: Hash, password: &Secret, salt: &[u8], iterations: u32, len: usize) -> Vec<Self> {
        let block = |number: usize| {
            let number = u32::try_from(number).expect("a key of few blocks").to_be_bytes();
            let first = Zeroizing::new(hash.hmac(password.bytes(), &[salt, &number]));
            Self { hash, password: password.clone(), last: first.clone(), sum: first, left: iterations - 1 }
        };
        (1..=len.div_ceil(hash.digest_len())).map(block).collect()
    }

    /// Rounds that are still to be done.
    pub fn left(&self) -> u32 {
        self.left
    }

    /// Does some of them.
    pub fn advance(&mut self, rounds: u32) {
        let rounds = rounds.min(self.left);
        self.hash.hmac_chain(self.password.bytes(), &mut self.last, &mut self.sum, rounds);
        self.left -= rounds;
    }

    /// The key that finished blocks make.
    pub fn key(blocks: &[Self], len: usize) -> Zeroizing<Vec<u8>> {
        let mut key = Zeroizing::new(Vec::with_capacity(len + 64));
        for block in blocks {
            assert_eq!(block.left, 0, "a key is made of finished blocks");
            key.extend_from_slice(&block.sum);
        }
        key[len..].zeroize();
        key.truncate(len);
        key
    }
}

impl fmt::Debug for Pbkdf2Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pbkdf2Chain")
            .field("hash", &self.hash)
            .field("left", &self.left)
            .finish_non_exhaustive()
    }
}

/// The kinds of Argon2 that LUKS2 has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "their names say it")]
pub enum Argon2Kind {
    I,
    Id,
}

/// Makes a key of `len` bytes. `None` where the parameters are none that the function has.
pub fn argon2(
    kind: Argon2Kind,
    password: &Secret,
    salt: &[u8],
    (passes, memory_kib, lanes): (u32, u32, u32),
    len: usize,
) -> Option<Zeroizing<Vec<u8>>> {
    let algorithm = match kind {
        Argon2Kind::I => argon2::Algorithm::Argon2i,
        Argon2Kind::Id => argon2::Algorithm::Argon2id,
    };
    let params = argon2::Params::new(memory_kib, passes, lanes, Some(len)).ok()?;
    let mut key = Zeroizing::new(vec![0; len]);
    let argon2 = argon2::Argon2::new(algorithm, argon2::Version::V0x13, params);
    argon2.hash_password_into(password.bytes(), salt, &mut key).ok()?;
    Some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pbkdf2(hash: Hash, password: &[u8], salt: &[u8], iterations: u32, len: usize, step: u32) -> Vec<u8> {
        let mut blocks = Pbkdf2Chain::blocks(hash, &Secret::new(password.to_vec()), salt, iterations, len);
        for block in &mut blocks {
            while block.left() > 0 {
                block.advance(step);
            }
        }
        Pbkdf2Chain::key(&blocks, len).to_vec()
    }

    /// RFC 6070, and RFC 7914 section 11 for SHA-256; in one piece and in several.
    #[test]
    fn pbkdf2_makes_the_keys_of_the_standards() {
        let hex = |text: &str| -> Vec<u8> {
            (0..text.len())
                .step_by(2)
                .map(|at| u8::from_str_radix(&text[at..at + 2], 16).expect("hex"))
                .collect()
        };
        for step in [1, 1000, u32::MAX] {
            let key = pbkdf2(Hash::Sha1, b"password", b"salt", 4096, 20, step);
            assert_eq!(key, hex("4b007901b765489abead49d926f721d065a429c1"));
            let (password, salt) = (b"passwordPASSWORDpassword", b"saltSALTsaltSALTsaltSALTsaltSALTsalt");
            let key = pbkdf2(Hash::Sha1, password, salt, 4096, 25, step);
            assert_eq!(key, hex("3d2eec4fe41c849b80c8d83662c0e44a8b291a964cf2f07038"));
            let key = pbkdf2(Hash::Sha256, b"passwd", b"salt", 1, 64, step);
            let expected = "55ac046e56e3089fec1691c22544b605f94185216dde0465e68b9d57c20dacbc";
            assert_eq!(key[..32], hex(expected));
        }
    }

    #[test]
    fn argon2_refuses_what_it_has_not() {
        let password = Secret::new(b"password".to_vec());
        assert!(argon2(Argon2Kind::Id, &password, b"somesalt", (1, 0, 1), 32).is_none());
        let id = argon2(Argon2Kind::Id, &password, b"somesalt", (1, 64, 1), 32).expect("parameters");
        let i = argon2(Argon2Kind::I, &password, b"somesalt", (1, 64, 1), 32).expect("parameters");
        assert_ne!(id, i);
    }
}
