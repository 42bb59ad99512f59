//! Create: a new volume of version 2, with one keyslot.
//!
//! ```text
//!   0         16 KiB    32 KiB                       16 MiB
//!   ┌─────────┬─────────┬────────┬─────────────────┬─────────
//!   │ primary │ second  │ slot 0 │  room for more  │ payload
//!   └─────────┴─────────┴────────┴─────────────────┴─────────
//! ```
//!
//! Order on disk: the keyslot's material, a barrier, the first copy of the header, a barrier, the second copy, a barrier. Until the
//! first copy is there, the file is no volume; from then on it is one, and whoever opens it to write to it makes the second copy
//! anew where that is missing.

use zeroize::{Zeroize, Zeroizing};

use super::LuksError;
use super::copies::Header2Copies;
use super::costs::{KdfChoice, digest_iterations, iterations, rounds_per_second};
use super::create::{CreateOptions, random_uuid};
use super::keyslot::{Budget, Digest, Keyslot, Place};
use super::layout::STRIPES;
use super::layout2::Header2;
use super::metadata::{Metadata, SegmentCrypt};
use crate::crypto::Secret;
use crate::engine::Io;
use crate::error::Result;

/// Bytes of a copy of the header, and where the payload begins. As cryptsetup lays volumes out.
const HEADER_SIZE: u64 = 16 << 10;
pub(super) const PAYLOAD_AT: u64 = 16 << 20;

/// What only a volume of version 2 has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options2 {
    /// How keys are made of passphrases.
    pub kdf: KdfChoice,
    /// Bytes of an encrypted sector.
    pub sector_len: usize,
}

impl Default for Options2 {
    fn default() -> Self {
        Self { kdf: KdfChoice::default(), sector_len: 512 }
    }
}

impl Options2 {
    /// Whether a volume of `size` bytes can be like this.
    ///
    /// # Errors
    /// What is out of range.
    pub(super) fn check(&self, size: u64) -> Result<(), LuksError> {
        let len = self.sector_len;
        if !len.is_power_of_two() || !(512..=4096).contains(&len) {
            return Err(LuksError::Option(format!("sector-size: {len}, expected 512, 1024, 2048 or 4096")));
        }
        if !size.is_multiple_of(len as u64) {
            return Err(LuksError::Option(format!("size: {size}, expected whole sectors of {len} bytes")));
        }
        self.kdf.check()
    }
}

/// Writes both copies of the header and the first keyslot of a new volume. Durable on return.
///
/// # Errors
/// When they cannot be written.
pub(super) async fn write_volume2(
    io: &Io,
    place: Place,
    options: &CreateOptions,
    more: &Options2,
    passphrase: &Secret,
) -> Result<()> {
    let fail = |fault| place.fail(io, fault);
    let (hash, key_len) = (options.hash, options.key_len);
    let mut random = io.entropy_bytes(place.node, key_len).await?;
    let key = Zeroizing::new(random.to_vec());
    random.zeroize();
    let digest = digest_of(io, place, options, more, &key).await?;
    let salt = io.entropy::<32>(place.node).await?.to_vec();
    let kdf = more.kdf.kdf(io, hash, salt, key_len, options.iter_time_ms).await;
    let (cipher, area) = (options.cipher.clone(), 2 * HEADER_SIZE);
    let slot = Keyslot { kdf, cipher, area_key_len: key_len, area, af_hash: hash };
    let area_len = (key_len as u64 * u64::from(STRIPES)).next_multiple_of(4096);
    let segment = SegmentCrypt {
        encryption: options.cipher.to_string(),
        sector_len: more.sector_len,
        tweak: 0,
        integrity: false,
    };
    let metadata = Metadata::new((HEADER_SIZE, PAYLOAD_AT, options.payload_at()), &segment, &digest)
        .and_then(|empty| empty.with_keyslot(HEADER_SIZE, 0, (&slot, key_len, area_len), 0))
        .map_err(fail)?;
    slot.seal(io, place, (0, passphrase), (&key, &digest), Budget::default()).await?;
    // The material is durable before a header names it.
    io.flush("luks2.create/before_header", place.node).await?;
    let mut uuid = [0; 40];
    let text = random_uuid(io.entropy::<16>(place.node).await?);
    uuid[..text.len()].copy_from_slice(text.as_bytes());
    let header =
        Header2 { size: HEADER_SIZE, seqid: 1, label: [0; 48], salt: [0; 64], uuid, subsystem: [0; 48] };
    Header2Copies { header, metadata, stale: None, foreign: false }.write_both(io, place).await
}

/// The digest of the volume's key.
async fn digest_of(
    io: &Io,
    place: Place,
    options: &CreateOptions,
    more: &Options2,
    key: &[u8],
) -> Result<Digest> {
    let hash = options.hash;
    let rounds = match more.kdf.iterations {
        // Nothing is timed then.
        Some(_) => 0,
        None => {
            let per_second = rounds_per_second(io, hash, key.len()).await;
            iterations((hash, key.len()), per_second, options.iter_time_ms)
        }
    };
    let salt = io.entropy::<32>(place.node).await?.to_vec();
    let empty =
        Digest { hash, salt, iterations: digest_iterations(rounds), digest: vec![0; hash.digest_len()] };
    let digest = empty.of(io, key).await.to_vec();
    Ok(Digest { digest, ..empty })
}
