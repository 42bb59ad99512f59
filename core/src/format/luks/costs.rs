//! What trying a passphrase costs: as much as was asked for, or as much as a processor does in the time that it is to take.

use super::LuksError;
use super::keyslot::{
    ARGON2_KIB_COST, ARGON2_LANES_MAX, ARGON2_MEMORY_MAX_KIB, ARGON2_PASSES_MAX, ITERATIONS_MAX, Kdf,
    WORK_MAX, advance, rounds_max,
};
use crate::compute::Compute;
use crate::crypto::{Argon2Kind, Hash, Pbkdf2Chain, Secret};
use crate::engine::Io;

/// Milliseconds that a passphrase takes to be tried, unless something else is said.
pub const ITER_TIME_MS: u64 = 2000;

/// KiB of memory that Argon2 takes at the most, unless something else is said. As in cryptsetup.
pub const MEMORY_KIB: u32 = 1 << 20;

/// Rounds of PBKDF2 at the least, however slow the processor. As in the reference.
const ITERATIONS_MIN: u32 = 1000;

/// Passes of Argon2 at the least, and KiB of its memory. As in cryptsetup.
const PASSES_MIN: u32 = 4;
const MEMORY_MIN_KIB: u32 = 32;

/// KiB of memory of Argon2 at the least where it is timed, however slow the processor.
const TIMED_MIN_KIB: u32 = 32 << 10;

/// KiB of memory with which Argon2 is timed: more than the caches hold.
const MEASURED_KIB: u32 = 64 << 10;

/// Rounds that are fewer than this say little about a processor.
const MEASURED_MIN: u32 = 1 << 14;

/// How keys are made of passphrases, and what that may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KdfChoice {
    /// Which Argon2; PBKDF2, without one.
    pub argon2: Option<Argon2Kind>,
    /// KiB of memory for Argon2; at the most, where its passes are timed.
    pub memory_kib: u32,
    /// Lanes of Argon2.
    pub lanes: u32,
    /// Rounds of PBKDF2 or passes of Argon2; as many as go into the time, without.
    pub iterations: Option<u32>,
}

impl Default for KdfChoice {
    fn default() -> Self {
        let argon2 = Some(Argon2Kind::Id);
        Self { argon2, memory_kib: MEMORY_KIB, lanes: ARGON2_LANES_MAX, iterations: None }
    }
}

impl KdfChoice {
    /// Whether it can be made.
    ///
    /// # Errors
    /// What is out of range.
    pub(super) fn check(&self) -> Result<(), LuksError> {
        let range = |what: &str, found: u32, min: u32, max: u32| match (min..=max).contains(&found) {
            true => Ok(()),
            false => Err(LuksError::Option(format!("{what}: {found}, expected {min} to {max}"))),
        };
        let (min, max) = match self.argon2 {
            Some(_) => (PASSES_MIN, ARGON2_PASSES_MAX),
            None => (ITERATIONS_MIN, ITERATIONS_MAX),
        };
        if let Some(iterations) = self.iterations {
            range("pbkdf-force-iterations", iterations, min, max)?;
        }
        match self.argon2 {
            None => Ok(()),
            Some(_) => {
                range("pbkdf-memory", self.memory_kib, MEMORY_MIN_KIB, ARGON2_MEMORY_MAX_KIB)?;
                range("pbkdf-parallel", self.lanes, 1, ARGON2_LANES_MAX)
            }
        }
    }

    /// The derivation with this salt of a key of `len` bytes, which takes about `time_ms`.
    pub(super) async fn kdf(&self, io: &Io, hash: Hash, salt: Vec<u8>, len: usize, time_ms: u64) -> Kdf {
        let (memory_kib, lanes) = (self.memory_kib, self.lanes);
        match (self.argon2, self.iterations) {
            (None, Some(iterations)) => Kdf::Pbkdf2 { hash, salt, iterations },
            (None, None) => {
                let iterations = iterations((hash, len), rounds_per_second(io, hash, len).await, time_ms);
                Kdf::Pbkdf2 { hash, salt, iterations }
            }
            (Some(kind), Some(passes)) => Kdf::Argon2 { kind, salt, passes, memory_kib, lanes },
            (Some(kind), None) => {
                let per_second = kib_per_second(io, kind, lanes).await;
                let (passes, memory_kib) = passes_and_memory(per_second, time_ms, memory_kib);
                Kdf::Argon2 { kind, salt, passes, memory_kib, lanes }
            }
        }
    }
}

/// Passes and KiB of memory for a passphrase that takes so long to try: memory first, as much as may be taken, because that is
/// what costs an attacker most.
fn passes_and_memory(kib_per_second: u64, time_ms: u64, memory_max: u32) -> (u32, u32) {
    let paid = u128::from(WORK_MAX / 4 * 3 / ARGON2_KIB_COST);
    let all = (u128::from(kib_per_second) * u128::from(time_ms) / 1000).min(paid);
    let most = u128::from(memory_max);
    let memory = (all / u128::from(PASSES_MIN)).clamp(u128::from(TIMED_MIN_KIB).min(most), most);
    let passes = (all / memory).clamp(u128::from(PASSES_MIN), u128::from(ARGON2_PASSES_MAX));
    (passes as u32, memory as u32)
}

/// How many KiB of memory a processor passes over in a second.
async fn kib_per_second(io: &Io, kind: Argon2Kind, lanes: u32) -> u64 {
    let work = Compute::Argon2 {
        kind,
        password: Secret::new(vec![0; 16]),
        salt: vec![0; 32],
        passes: 1,
        memory_kib: MEASURED_KIB,
        lanes,
        len: 32,
    };
    let took =
        io.compute("luks.measure/argon2", work).await.derived.map_or(1, |derived| derived.took.as_nanos());
    u64::try_from(u128::from(MEASURED_KIB) * 1_000_000_000 / took.max(1)).unwrap_or(u64::MAX)
}

/// Rounds for a slot whose passphrase takes so long to try, with that hash and for a key of that many bytes; no more than are paid when
/// it is opened.
pub(super) fn iterations((hash, len): (Hash, usize), per_second: u64, time_ms: u64) -> u32 {
    let wanted = u128::from(per_second) * u128::from(time_ms) / 1000;
    wanted.clamp(u128::from(ITERATIONS_MIN), u128::from(rounds_max(hash, len))) as u32
}

/// Rounds of the digest of the volume's key, beside slots of so many rounds. It is tried once for each slot: an eighth of the
/// time, as in the reference.
pub(super) fn digest_iterations(of_slot: u32) -> u32 {
    (of_slot / 8).max(ITERATIONS_MIN)
}

/// How many rounds of PBKDF2 a processor does in a second, for keys of `len` bytes.
pub(super) async fn rounds_per_second(io: &Io, hash: Hash, len: usize) -> u64 {
    let password = Secret::new(vec![0; 16]);
    let mut rounds = MEASURED_MIN;
    loop {
        let chain =
            Pbkdf2Chain::blocks(hash, &password, &[0; 32], u32::MAX, hash.digest_len()).swap_remove(0);
        let took = advance(io, chain, rounds).await.1;
        if took.as_millis() >= 50 || rounds >= 1 << 26 {
            let per_second = u128::from(rounds) * 1_000_000_000 / took.as_nanos().max(1);
            let parts = len.div_ceil(hash.digest_len()) as u64;
            return u64::try_from(per_second).unwrap_or(u64::MAX) / parts;
        }
        rounds *= 4;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_taken_before_passes() {
        let check = |per_second, time_ms, most, expected| {
            assert_eq!(
                passes_and_memory(per_second, time_ms, most),
                expected,
                "{per_second} {time_ms} {most}"
            );
        };
        check(1 << 20, 2000, 1 << 20, (4, 1 << 19));
        check(1 << 22, 2000, 1 << 20, (8, 1 << 20));
        // Little memory is allowed, or the processor is slow.
        check(1 << 20, 2000, 1024, (1024, 1024));
        check(1, 1, 1 << 20, (4, TIMED_MIN_KIB));
        check(u64::MAX, u64::MAX, 64, (ARGON2_PASSES_MAX, 64));
        // No more than is paid when it is opened: 36 GiB.
        check(u64::MAX, u64::MAX, 1 << 20, (36, 1 << 20));
    }

    #[test]
    fn what_costs_too_little_or_too_much_is_refused() {
        let fine = KdfChoice { iterations: Some(4), memory_kib: 64, ..KdfChoice::default() };
        assert_eq!(fine.check(), Ok(()));
        let pbkdf2 = KdfChoice { argon2: None, iterations: Some(1000), ..fine };
        assert_eq!(pbkdf2.check(), Ok(()));
        for wrong in [
            KdfChoice { iterations: Some(3), ..fine },
            KdfChoice { memory_kib: 31, ..fine },
            KdfChoice { memory_kib: u32::MAX, ..fine },
            KdfChoice { lanes: 0, ..fine },
            KdfChoice { lanes: 5, ..fine },
            KdfChoice { iterations: Some(999), ..pbkdf2 },
            KdfChoice { iterations: Some(u32::MAX), ..pbkdf2 },
        ] {
            assert!(matches!(wrong.check(), Err(LuksError::Option(_))), "{wrong:?}");
        }
    }
}
