//! How long the LUKS header of an image becomes, and whether there could be such an image. No key is made.

use drystone_core::format::qcow2::layout::luks_header_len;

use crate::img::create::CreateOptions;
use crate::message::Failure;
use crate::object::{ObjectDef, find_passphrase};

/// Ciphers that the reference has names for, and the bytes of their keys; LUKS does not have those without.
const CIPHERS: &[(&str, Option<u64>)] = &[
    ("aes-128", Some(16)),
    ("aes-192", Some(24)),
    ("aes-256", Some(32)),
    ("des", None),
    ("3des", None),
    ("cast5-128", Some(16)),
    ("serpent-128", Some(16)),
    ("serpent-192", Some(24)),
    ("serpent-256", Some(32)),
    ("twofish-128", Some(16)),
    ("twofish-192", Some(24)),
    ("twofish-256", Some(32)),
    ("sm4", None),
];

const MODES: &[&str] = &["ecb", "cbc", "xts", "ctr"];

const IV_GENERATORS: &[&str] = &["plain", "plain64", "essiv"];

/// Hashes, and the bytes of their digests.
const HASHES: &[(&str, u64)] = &[
    ("md5", 16),
    ("sha1", 20),
    ("sha224", 28),
    ("sha256", 32),
    ("sha384", 48),
    ("sha512", 64),
    ("ripemd160", 20),
    ("sm3", 32),
];

/// Bytes before the payload, of an image with the options whose names begin with `prefix`.
///
/// # Errors
/// What is wrong with the options, in the words of the reference.
pub(super) fn header_len(
    options: &CreateOptions,
    prefix: &str,
    objects: &[ObjectDef],
) -> Result<u64, Failure> {
    let refuse = |text: String| Err(Failure::new(text));
    let one_of = |name: &'static str, default: &'static str, legal: Vec<&'static str>| {
        let chosen = options.text(&format!("{prefix}{name}"));
        match chosen {
            None => Ok(default),
            Some(chosen) => legal
                .into_iter()
                .find(|legal| *legal == chosen)
                .ok_or_else(|| Failure::new(format!("Parameter '{name}' does not accept value '{chosen}'"))),
        }
    };
    let cipher = one_of("cipher-alg", "aes-256", names(CIPHERS))?;
    let mode = one_of("cipher-mode", "xts", MODES.to_vec())?;
    let generator = one_of("ivgen-alg", "plain64", IV_GENERATORS.to_vec())?;
    let iv_hash = one_of("ivgen-hash-alg", "sha256", names(HASHES))?;
    one_of("hash-alg", "sha256", names(HASHES))?;
    let Some(secret) = options.text(&format!("{prefix}key-secret")) else {
        return refuse(format!("Parameter '{prefix}key-secret' is required for cipher"));
    };
    find_passphrase(objects, secret).map_err(Failure::new)?;
    let known = CIPHERS.iter().find(|(name, _)| *name == cipher).and_then(|(_, len)| *len);
    let Some(key_len) = known else { return refuse(format!("Algorithm '{cipher}' not supported")) };
    if generator == "essiv" {
        let digest = HASHES.iter().find(|(name, _)| *name == iv_hash).map_or(0, |(_, len)| *len);
        check_essiv(cipher, digest)?;
    }
    match (cipher, mode) {
        // Its blocks are too short.
        ("cast5-128", "xts") => refuse("Unsupported cipher mode xts".into()),
        // One key for the data, and one for the place.
        (_, "xts") => Ok(luks_header_len(2 * key_len)),
        _ => Ok(luks_header_len(key_len)),
    }
}

fn names<T>(table: &[(&'static str, T)]) -> Vec<&'static str> {
    table.iter().map(|(name, _)| *name).collect()
}

/// `essiv` encrypts with a digest for its key, so the cipher must have keys of that length.
fn check_essiv(cipher: &str, digest: u64) -> Result<(), Failure> {
    let family = match cipher.split('-').next() {
        Some("aes") => "AES",
        Some("serpent") => "Serpent",
        Some("twofish") => "Twofish",
        _ => return Err(Failure::new(format!("Cipher {cipher} not supported with essiv"))),
    };
    match digest {
        16 | 24 | 32 => Ok(()),
        _ => Err(Failure::new(format!("No {family} cipher with key size {digest} available"))),
    }
}
