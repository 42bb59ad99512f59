//! Ciphers over sectors, hashes, and keys made of passphrases: what encrypted formats need, as pure functions.
//!
//! Owns the arithmetic, on top of the block ciphers and hashes of RustCrypto. Refuses to know where bytes come from; what
//! takes long is a kind of [`Compute`](crate::compute::Compute), so that an executor chooses where it runs. Start at
//! [`Cipher`].

mod af;
mod cipher;
mod hash;
mod kdf;
mod secret;
#[cfg(target_arch = "x86_64")]
mod wide;

pub use af::{af_merge, af_split};
pub use cipher::{Cipher, CipherError, CipherName, Direction, SECTOR};
pub use hash::Hash;
pub use kdf::{Argon2Kind, Pbkdf2Chain, argon2};
pub use secret::{Secret, Secrets};
