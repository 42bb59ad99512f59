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

/// What opening a volume costs at the most, for all slots that are tried together, in rounds of PBKDF2 with SHA-256 for 32 bytes of
/// key: about twenty seconds of one core. An honest slot, made in two seconds on a fast processor, costs an eleventh of that to a tenth,
/// so that a LUKS1 volume with all its slots in use opens by the last;
/// [`Hash::round_cost`] and [`ARGON2_KIB_COST`] say what the rest costs beside it. A header can ask for eight slots of 2^32 rounds.
pub const WORK_MAX: u64 = 192 << 20;

/// What a pass over a KiB of Argon2's memory costs. It takes about as long as seven rounds; for four, volumes with four slots of 1 GiB
/// and ten passes open, or with twelve of four passes, as cryptsetup makes them.
pub const ARGON2_KIB_COST: u64 = 4;

/// Rounds of PBKDF2 at the most: more are never paid.
pub const ITERATIONS_MAX: u32 = WORK_MAX as u32;

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

/// What is left of [`WORK_MAX`].
pub(super) struct Budget(u64);

impl Default for Budget {
    fn default() -> Self {
        Self(WORK_MAX)
    }
}

impl Budget {
    /// Takes what trying a passphrase on a slot costs.
    ///
    /// # Errors
    /// When not so much is left; then nothing is taken.
    pub(super) fn spend(&mut self, number: u32, slot: &Keyslot, digest: &Digest) -> Result<(), LuksError> {
        let of_digest = rounds_cost(digest.hash, digest.iterations, digest.digest.len());
        let cost = slot.kdf.cost(slot.area_key_len).saturating_add(of_digest);
        match self.0.checked_sub(cost) {
            Some(left) => {
                self.0 = left;
                Ok(())
            }
            None => {
                let asks = slot.kdf.asks(digest.iterations);
                Err(LuksError::Work { slot: number, asks, cost, spent: WORK_MAX - self.0, max: WORK_MAX })
            }
        }
    }
}

/// What so many rounds cost for a key of `len` bytes.
fn rounds_cost(hash: Hash, rounds: u32, len: usize) -> u64 {
    let blocks = len.div_ceil(hash.digest_len()) as u64;
    u64::from(rounds).saturating_mul(blocks * hash.round_cost())
}

/// Rounds of a slot at the most whose key has `len` bytes, so that there is something left for the digest.
pub(super) fn rounds_max(hash: Hash, len: usize) -> u32 {
    (WORK_MAX / 4 * 3 / rounds_cost(hash, 1, len).max(1)) as u32
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
        (number, passphrase): (u32, &Secret),
        (key_len, digest): (usize, &Digest),
        budget: &mut Budget,
    ) -> Result<Option<Zeroizing<Vec<u8>>>> {
        budget.spend(number, self, digest).map_err(|fault| place.fail(io, fault))?;
        check_iterations("the volume key's digest", digest.iterations)
            .map_err(|fault| place.fail(io, fault))?;
        self.kdf.check().map_err(|fault| place.fail(io, fault))?;
        let cipher = self.cipher_of(io, place, passphrase).await?;
        let len = self.material_len(key_len);
        let mut material =
            io.read_bytes("luks.unlock/material", place.node, place.base + self.area, len).await?;
        cipher.apply(Direction::Decrypt, 0, &mut material);
        let key = af_merge(self.af_hash, &material[..key_len * STRIPES as usize], key_len);
        material.zeroize();
        Ok(digest.is_of(io, &key).await.then_some(key))
    }

    /// Writes the material of slot `number`, which holds the volume's key for a passphrase. It is not durable yet. `budget` is what
    /// the other slots leave of that of an opening.
    ///
    /// # Errors
    /// When the slot asks for more than that, or the material cannot be made; then nothing is written. When it cannot be written.
    pub(super) async fn seal(
        &self,
        io: &Io,
        place: Place,
        (number, passphrase): (u32, &Secret),
        (key, digest): (&[u8], &Digest),
        mut budget: Budget,
    ) -> Result<()> {
        budget.spend(number, self, digest).map_err(|fault| place.fail(io, fault))?;
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
    /// What it costs for a key of `len` bytes.
    fn cost(&self, len: usize) -> u64 {
        match *self {
            Self::Pbkdf2 { hash, iterations, .. } => rounds_cost(hash, iterations, len),
            Self::Argon2 { passes, memory_kib, .. } => {
                u64::from(passes).saturating_mul(u64::from(memory_kib)).saturating_mul(ARGON2_KIB_COST)
            }
        }
    }

    /// What it asks for in words, beside a digest of so many rounds.
    fn asks(&self, of_digest: u32) -> String {
        match self {
            Self::Pbkdf2 { hash, iterations, .. } => {
                format!("{iterations} rounds of {}, and {of_digest} for the digest", hash.name())
            }
            Self::Argon2 { passes, memory_kib, .. } => {
                format!("{passes} passes over {memory_kib} KiB, and {of_digest} rounds for the digest")
            }
        }
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(kdf: Kdf) -> Keyslot {
        let cipher = CipherName::parse_whole("aes-xts-plain64").expect("a name");
        Keyslot { kdf, cipher, area_key_len: 64, area: 0, af_hash: Hash::Sha256 }
    }

    fn pbkdf2(hash: Hash, iterations: u32) -> Keyslot {
        slot(Kdf::Pbkdf2 { hash, salt: Vec::new(), iterations })
    }

    fn digest(iterations: u32, len: usize) -> Digest {
        Digest { hash: Hash::Sha1, salt: Vec::new(), iterations, digest: vec![0; len] }
    }

    #[test]
    fn opening_a_volume_costs_so_much_in_all() {
        let opens = |slot: &Keyslot| {
            let mut budget = Budget::default();
            (0..20).take_while(|number| budget.spend(*number, slot, &digest(0, 0)).is_ok()).count()
        };
        // Rounds that fast processors do in two seconds, and what a hostile header asks for.
        assert!(opens(&pbkdf2(Hash::Sha256, 10_000_000)) >= 8);
        assert_eq!(opens(&pbkdf2(Hash::Sha256, 1 << 28)), 0);
        assert!(opens(&pbkdf2(Hash::Whirlpool, 1_000_000)) >= 5);
        let argon2 = |passes, memory_kib| {
            slot(Kdf::Argon2 { kind: Argon2Kind::Id, salt: Vec::new(), passes, memory_kib, lanes: 4 })
        };
        assert_eq!(opens(&argon2(4, 1 << 20)), 12);
        assert_eq!(opens(&argon2(10, 1 << 20)), 4);
        assert_eq!(opens(&argon2(1024, 4 << 20)), 0);
        assert_eq!(opens(&argon2(u32::MAX, u32::MAX)), 0);
    }

    #[test]
    fn a_slot_that_costs_too_much_is_told_of_with_the_limit() {
        let digest = |len| digest(1 << 22, len);
        let (mut budget, slot) = (Budget::default(), pbkdf2(Hash::Sha256, 1 << 25));
        assert_eq!(budget.spend(3, &slot, &digest(20)), Ok(()));
        let (spent, cost) = ((1 << 26) + (1 << 22), (1 << 26) + (1 << 22) * 26);
        let asks = "33554432 rounds of sha256, and 4194304 for the digest".into();
        let fault = LuksError::Work { slot: 5, asks, cost, spent, max: WORK_MAX };
        // A long digest is made in as many parts as it needs.
        assert_eq!(budget.spend(5, &slot, &digest(512)), Err(fault));
        // What costs less is still tried.
        assert_eq!(budget.spend(6, &pbkdf2(Hash::Sha256, 1000), &digest(20)), Ok(()));
    }

    #[test]
    fn what_is_made_in_any_time_opens() {
        for hash in Hash::ALL {
            for len in [16, 32, 64] {
                let kdf = Kdf::Pbkdf2 { hash, salt: Vec::new(), iterations: rounds_max(hash, len) };
                let made = Keyslot { area_key_len: len, ..slot(kdf) };
                let iterations = super::super::costs::digest_iterations(rounds_max(hash, len));
                let digest =
                    Digest { hash, salt: Vec::new(), iterations, digest: vec![0; hash.digest_len()] };
                assert_eq!(Budget::default().spend(0, &made, &digest), Ok(()), "{hash:?} {len}");
            }
        }
    }
}
