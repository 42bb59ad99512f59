//! What a simulated processor does: the work itself, except for keys that would take it long.
//!
//! Volumes that tests make are cheap to open. One that asks for more is damaged, on purpose or by accident, and no passphrase opens
//! it; so that what comes out is made up, and a run stays as short as its intents are few.

use std::time::Duration;

use drystone_core::buf::Buf;
use drystone_core::compute::{Compute, Computed, Derived, DerivedKey, Workspace};
use drystone_core::crypto::{Hash, Pbkdf2Chain, Secret};

/// What every piece of work takes: the same in each run.
const COMPUTE_TIME: Duration = Duration::from_secs(1);

/// Rounds of PBKDF2 that are done at once at the most.
const ROUNDS_MAX: u32 = 1 << 16;

/// KiB of memory times passes that Argon2 gets at the most.
const KIB_MAX: u64 = 4 << 10;

/// Does the work.
pub(crate) fn compute(work: Compute) -> Computed {
    let key = match &work {
        Compute::Pbkdf2 { chain, rounds } if chain.left().min(*rounds) > ROUNDS_MAX => {
            // As long as the longest digest, with no rounds left.
            let made_up = Pbkdf2Chain::blocks(Hash::Sha512, &Secret::new(Vec::new()), &[], 1, 64);
            made_up.into_iter().next().map(|chain| DerivedKey::Chain(Box::new(chain)))
        }
        Compute::Argon2 { passes, memory_kib, len, .. }
            if u64::from(*passes) * u64::from(*memory_kib) > KIB_MAX =>
        {
            Some(DerivedKey::Key(vec![0x5a; *len].into()))
        }
        _ => None,
    };
    match key {
        None => work.run(&mut Workspace::default()).within(COMPUTE_TIME),
        Some(key) => Computed {
            input: Buf::empty(),
            output: Buf::empty(),
            derived: Some(Box::new(Derived { key, took: COMPUTE_TIME })),
            result: Ok(()),
        },
    }
}
