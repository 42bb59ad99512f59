//! Keyslots, alike in both versions: from a passphrase to the volume's key, and back.
//!
//! ```text
//!   passphrase ──kdf──▶ slot key ──decrypts──▶ material of 4000 stripes ──merge──▶ volume key ──digest──▶ is it right?
//! ```
//!
//! What takes long is asked of the executor, in pieces short enough to be stopped between. Keys leave memory when they are
//! done with.

use zeroize::{Zeroize, Zeroizing};

use super::LuksError;
use super::layout::{SECTOR, STRIPES};
use crate::buf::Buf;
use crate::compute::{Compute, DerivedKey};
use crate::crypto::{
    Argon2Kind, Cipher, CipherName, Direction, Hash, Pbkdf2Chain, Secret, af_merge, af_split,
};
use crate::engine::Io;
use crate::engine::task::join_all;
use crate::error::{Error, Result};
use crate::graph::NodeId;
use crate::intent::Fua;

/// Rounds of PBKDF2 at the most: two minutes of one core; honest volumes, made with times of two seconds, have some
/// millions.
pub const ITERATIONS_MAX: u32 = 1 << 28;

/// KiB of memory for Argon2 at the most: what cryptsetup takes at the most.
pub const ARGON2_MEMORY_MAX_KIB: u32 = 4 << 20;

/// Passes over the memory of Argon2 at the most.
pub const ARGON2_PASSES_MAX: u32 = 1 << 10;

/// Lanes of Argon2 at the most, as in cryptsetup.
pub const ARGON2_LANES_MAX: u32 = 4;

/// Rounds that are done at once: half a second at the most.
const ROUNDS: u32 = 1 << 20;

/// How a key is made of a passphrase.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kdf {
    /// PBKDF2.
    Pbkdf2 {
        /// With what hash.
        hash: Hash,
        /// With what salt.
        salt: Vec<u8>,
        /// In how many rounds.
        iterations: u32,
    },
    /// Argon2.
    Argon2 {
        /// Which of them.
        kind: Argon2Kind,
        /// With what salt.
        salt: Vec<u8>,
        /// In how many passes over the memory.
        passes: u32,
        /// KiB of memory.
        memory_kib: u32,
        /// Lanes.
        lanes: u32,
    },
}

/// A keyslot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keyslot {
    /// How the key of its material is made.
    pub kdf: Kdf,
    /// The cipher of its material.
    pub cipher: CipherName,
    /// Bytes of the key of its material.
    pub area_key_len: usize,
    /// Where its material is, in bytes from the start of the volume's header.
    pub area: u64,
    /// The hash of the anti-forensic splitter.
    pub af_hash: Hash,
}

/// What tells the volume's key from others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digest {
    /// The hash.
    pub hash: Hash,
    /// Its salt.
    pub salt: Vec<u8>,
    /// Rounds.
    pub iterations: u32,
    /// What must come out.
    pub digest: Vec<u8>,
}

/// Where a header is, and what its errors say it is.
#[derive(Clone, Copy)]
pub(in crate::format) struct Place {
    /// The node that holds it.
    pub node: NodeId,
    /// First byte there.
    pub base: u64,
}

impl Place {
    pub(in crate::format) fn fail(self, io: &Io, fault: LuksError) -> Box<Error> {
        Error::format(io.title(self.node), fault)
    }
}

impl Digest {
    /// Whether a key is the volume's.
    pub(super) async fn is_of(&self, io: &Io, key: &[u8]) -> bool {
        self.of(io, key).await[..] == self.digest
    }

    /// The digest of a key, with this salt and these rounds.
    pub(super) async fn of(&self, io: &Io, key: &[u8]) -> Zeroizing<Vec<u8>> {
        let key = Secret::new(key.to_vec());
        pbkdf2(io, self.hash, &key, (&self.salt, self.iterations), self.digest.len()).await
    }
}

impl Keyslot {
    /// Bytes of its material, for a volume key of `key_len` bytes.
    pub(super) fn material_len(&self, key_len: usize) -> usize {
        (key_len * STRIPES as usize).next_multiple_of(SECTOR as usize)
    }

    /// The volume's key, if the passphrase opens the slot.
    ///
    /// # Errors
    /// When the material cannot be read, or the slot asks for what there is not.
    pub(super) async fn unlock(
        &self,
        io: &Io,
        place: Place,
        passphrase: &Secret,
        (key_len, digest): (usize, &Digest),
    ) -> Result<Option<Zeroizing<Vec<u8>>>> {
        let cipher = self.cipher_of(io, place, passphrase).await?;
        let len = self.material_len(key_len);
        let mut material =
            io.read_bytes("luks.unlock/material", place.node, place.base + self.area, len).await?;
        cipher.apply(Direction::Decrypt, 0, &mut material);
        let key = af_merge(self.af_hash, &material[..key_len * STRIPES as usize], key_len);
        material.zeroize();
        Ok(digest.is_of(io, &key).await.then_some(key))
    }

    /// Writes the material that holds the volume's key for a passphrase. It is not durable yet.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) async fn seal(&self, io: &Io, place: Place, passphrase: &Secret, key: &[u8]) -> Result<()> {
        let cipher = self.cipher_of(io, place, passphrase).await?;
        let len = self.material_len(key.len());
        let mut material = io.entropy_bytes(place.node, len).await?;
        let stripes = key.len() * STRIPES as usize;
        af_split(self.af_hash, &mut material[..stripes], key);
        material[stripes..].fill(0);
        cipher.apply(Direction::Encrypt, 0, &mut material);
        io.write("luks.seal/material", place.node, place.base + self.area, material, Fua::No).await.1
    }

    async fn cipher_of(&self, io: &Io, place: Place, passphrase: &Secret) -> Result<Cipher> {
        let key = derive(io, place, &self.kdf, passphrase, self.area_key_len).await?;
        Cipher::new(&self.cipher, &key, SECTOR as usize).map_err(|fault| place.fail(io, fault.into()))
    }
}

/// A key of `len` bytes.
async fn derive(
    io: &Io,
    place: Place,
    kdf: &Kdf,
    passphrase: &Secret,
    len: usize,
) -> Result<Zeroizing<Vec<u8>>> {
    kdf.check().map_err(|fault| place.fail(io, fault))?;
    match kdf {
        Kdf::Pbkdf2 { hash, salt, iterations } => {
            Ok(pbkdf2(io, *hash, passphrase, (salt, *iterations), len).await)
        }
        Kdf::Argon2 { kind, salt, passes, memory_kib, lanes } => {
            let work = Compute::Argon2 {
                kind: *kind,
                password: passphrase.clone(),
                salt: salt.clone(),
                passes: *passes,
                memory_kib: *memory_kib,
                lanes: *lanes,
                len,
            };
            match io.compute("luks.derive/argon2", work).await.derived.map(|derived| derived.key) {
                Some(DerivedKey::Key(key)) => Ok(key),
                _ => {
                    let (memory_kib, passes, lanes) = (*memory_kib, *passes, *lanes);
                    Err(place.fail(io, LuksError::Argon2Failed { memory_kib, passes, lanes }))
                }
            }
        }
    }
}

impl Kdf {
    /// Whether it costs no more than is paid.
    pub(super) fn check(&self) -> Result<(), LuksError> {
        match *self {
            Self::Pbkdf2 { iterations: found, .. } => check_iterations("a keyslot", found),
            Self::Argon2 { passes, memory_kib, lanes, .. } => {
                let limits = [
                    ("KiB of memory", memory_kib, ARGON2_MEMORY_MAX_KIB),
                    ("passes", passes, ARGON2_PASSES_MAX),
                    ("lanes", lanes, ARGON2_LANES_MAX),
                ];
                match limits.into_iter().find(|(_, found, max)| found > max) {
                    None => Ok(()),
                    Some((what, found, max)) => {
                        Err(LuksError::Argon2 { what, found: u64::from(found), max: u64::from(max) })
                    }
                }
            }
        }
    }
}

/// Whether so many rounds are done for anybody.
pub(super) fn check_iterations(what: &'static str, found: u32) -> Result<(), LuksError> {
    match found {
        0 => Err(LuksError::Field { field: "iterations", at: 0, found: 0, expected: "more than 0".into() }),
        1..=ITERATIONS_MAX => Ok(()),
        _ => Err(LuksError::Iterations { what, found, max: ITERATIONS_MAX }),
    }
}

/// A key by PBKDF2; its parts side by side.
async fn pbkdf2(
    io: &Io,
    hash: Hash,
    password: &Secret,
    (salt, iterations): (&[u8], u32),
    len: usize,
) -> Zeroizing<Vec<u8>> {
    let parts =
        Pbkdf2Chain::blocks(hash, password, salt, iterations, len).into_iter().map(|mut chain| async {
            while chain.left() > 0 {
                chain = advance(io, chain, ROUNDS).await.0;
            }
            chain
        });
    Pbkdf2Chain::key(&join_all(parts).await, len)
}

/// Does some rounds of a part of a key; says how long they took.
pub(super) async fn advance(io: &Io, chain: Pbkdf2Chain, rounds: u32) -> (Pbkdf2Chain, std::time::Duration) {
    let computed = io.compute("luks.derive/pbkdf2", Compute::Pbkdf2 { chain: Box::new(chain), rounds }).await;
    let derived = computed.derived.expect("an executor answers with what the work made");
    match derived.key {
        DerivedKey::Chain(chain) => (*chain, derived.took),
        DerivedKey::Key(_) => unreachable!("the work was PBKDF2"),
    }
}

/// Overwrites the material of a keyslot that is to hold no key any more, durably.
///
/// One pass of random bytes: what lies below files and flash keeps old copies, if it does, of however many passes.
pub(super) async fn wipe(io: &Io, place: Place, area: u64, len: usize) -> Result<()> {
    let noise: Buf = io.entropy_bytes(place.node, len).await?;
    io.write("luks.wipe/material", place.node, place.base + area, noise, Fua::No).await.1?;
    io.flush("luks.wipe/barrier", place.node).await
}
