//! The options of encryption with LUKS, of a volume and of a qcow2 image alike: which cipher, and how long the header
//! becomes. No key is made.

use drystone_core::crypto::{Argon2Kind, CipherName, Hash};
use drystone_core::format::luks::{self, KdfChoice, MEMORY_KIB, NewVersion, Options2};

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

/// What the options whose names begin with `prefix` say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LuksChoice {
    cipher: &'static str,
    mode: &'static str,
    iv: &'static str,
    iv_hash: &'static str,
    hash: &'static str,
    secret: String,
    key_len: u64,
    version: NewVersion,
}

impl LuksChoice {
    /// Reads the options.
    ///
    /// # Errors
    /// What is wrong with them, in the words of the reference.
    pub fn parse(options: &CreateOptions, prefix: &str) -> Result<Self, String> {
        let one_of = |name: &'static str, default: &'static str, legal: Vec<&'static str>| {
            let Some(chosen) = options.text(&format!("{prefix}{name}")) else { return Ok(default) };
            let found = legal.into_iter().find(|legal| *legal == chosen);
            found.ok_or_else(|| format!("Parameter '{name}' does not accept value '{chosen}'"))
        };
        let cipher = one_of("cipher-alg", "aes-256", names(CIPHERS))?;
        let mode = one_of("cipher-mode", "xts", MODES.to_vec())?;
        let iv = one_of("ivgen-alg", "plain64", IV_GENERATORS.to_vec())?;
        let iv_hash = one_of("ivgen-hash-alg", "sha256", names(HASHES))?;
        let hash = one_of("hash-alg", "sha256", names(HASHES))?;
        let Some(secret) = options.text(&format!("{prefix}key-secret")) else {
            return Err(format!("Parameter '{prefix}key-secret' is required for cipher"));
        };
        let known = CIPHERS.iter().find(|(name, _)| *name == cipher).and_then(|(_, len)| *len);
        let Some(len) = known else { return Err(format!("Algorithm '{cipher}' not supported")) };
        if iv == "essiv" {
            let digest = HASHES.iter().find(|(name, _)| *name == iv_hash).map_or(0, |(_, len)| *len);
            check_essiv(cipher, digest)?;
        }
        let key_len = match (cipher, mode) {
            // Its blocks are too short.
            ("cast5-128", "xts") => return Err("Unsupported cipher mode xts".into()),
            // One key for the data, and one for the place.
            (_, "xts") => 2 * len,
            _ => len,
        };
        let version = version(options)?;
        Ok(Self { cipher, mode, iv, iv_hash, hash, secret: secret.to_owned(), key_len, version })
    }

    /// Bytes before the payload.
    ///
    /// # Errors
    /// When the passphrase is not there.
    pub fn header_len(&self, objects: &[ObjectDef]) -> Result<u64, Failure> {
        find_passphrase(objects, &self.secret).map_err(Failure::new)?;
        let new = luks::CreateOptions::new(0, None);
        let key_len = self.key_len as usize;
        Ok(luks::CreateOptions { key_len, version: self.version, ..new }.header_len())
    }

    /// The volume to make, with a payload of `size` bytes.
    ///
    /// # Errors
    /// When there is no such hash.
    pub fn volume(&self, size: u64, iter_time_ms: Option<u64>) -> Result<luks::CreateOptions, String> {
        let unsupported = || format!("Hash algorithm '{}' is not supported", self.hash);
        let hash = Hash::parse(self.hash).ok_or_else(unsupported)?;
        let cipher = CipherName {
            cipher: self.cipher.split('-').next().unwrap_or_default().into(),
            mode: self.mode.into(),
            iv: self.iv.into(),
            iv_hash: (self.iv == "essiv").then(|| self.iv_hash.into()),
        };
        let new = luks::CreateOptions::new(size, Some(self.secret.clone()));
        let iter_time_ms = iter_time_ms.unwrap_or(new.iter_time_ms);
        let (key_len, version) = (self.key_len as usize, self.version);
        Ok(luks::CreateOptions { cipher, key_len, hash, iter_time_ms, version, ..new })
    }
}

/// The version of a volume, with what only LUKS2 has.
fn version(options: &CreateOptions) -> Result<NewVersion, String> {
    const OF_LUKS2: [&str; 5] =
        ["pbkdf", "pbkdf-memory", "pbkdf-parallel", "pbkdf-force-iterations", "sector-size"];
    match options.text("version") {
        Some("luks2") => Ok(NewVersion::V2(luks2(options)?)),
        None | Some("luks1") => match OF_LUKS2.iter().find(|name| options.text(name).is_some()) {
            Some(name) => Err(format!("Parameter '{name}' needs version=luks2")),
            None => Ok(NewVersion::V1),
        },
        Some(other) => Err(format!("Parameter 'version' does not accept value '{other}'")),
    }
}

fn luks2(options: &CreateOptions) -> Result<Options2, String> {
    let argon2 = match options.text("pbkdf") {
        None | Some("argon2id") => Some(Argon2Kind::Id),
        Some("argon2i") => Some(Argon2Kind::I),
        Some("pbkdf2") => None,
        Some(other) => return Err(format!("Parameter 'pbkdf' does not accept value '{other}'")),
    };
    // What is too large for 32 bits is too large for the volume as well, which says so.
    let number = |name| options.number(name).map(|number| u32::try_from(number).unwrap_or(u32::MAX));
    let kdf = KdfChoice {
        argon2,
        memory_kib: number("pbkdf-memory").unwrap_or_else(memory_kib),
        lanes: number("pbkdf-parallel").unwrap_or_else(lanes),
        iterations: number("pbkdf-force-iterations"),
    };
    Ok(Options2 { kdf, sector_len: number("sector-size").unwrap_or(512) as usize })
}

/// KiB of memory that Argon2 may take here: half of what the machine has at the most, as in cryptsetup.
fn memory_kib() -> u32 {
    let total = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    });
    let half = total.map_or(u64::MAX, |kib| kib / 2);
    half.clamp(64, u64::from(MEMORY_KIB)) as u32
}

/// Lanes of Argon2: four, or as many as there are processors. As in cryptsetup.
fn lanes() -> u32 {
    std::thread::available_parallelism().map_or(1, |count| count.get().min(4) as u32)
}

fn names<T>(table: &[(&'static str, T)]) -> Vec<&'static str> {
    table.iter().map(|(name, _)| *name).collect()
}

/// `essiv` encrypts with a digest for its key, so the cipher must have keys of that length.
fn check_essiv(cipher: &str, digest: u64) -> Result<(), String> {
    let family = match cipher.split('-').next() {
        Some("aes") => "AES",
        Some("serpent") => "Serpent",
        Some("twofish") => "Twofish",
        _ => return Err(format!("Cipher {cipher} not supported with essiv")),
    };
    match digest {
        16 | 24 | 32 => Ok(()),
        _ => Err(format!("No {family} cipher with key size {digest} available")),
    }
}
