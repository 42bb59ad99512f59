//! Create: the header of a new volume, with one keyslot; that of version 2 is in `create2`.
//!
//! Order on disk: the keyslot's material, a barrier, the header, a barrier. Until the header is there, the file is no
//! volume.

use zeroize::Zeroize;

use super::LuksError;
use super::costs::{ITER_TIME_MS, digest_iterations, iterations, rounds_per_second};
use super::create2::{Options2, PAYLOAD_AT, write_volume2};
use super::keyslot::{Budget, Digest, Place};
use super::layout::{Header, SECTOR, SLOTS, STRIPES, Slot, header_len, slot_place};
use crate::buf::Buf;
use crate::crypto::{Cipher, CipherName, Hash, Secret};
use crate::engine::Io;
use crate::error::Result;
use crate::graph::NodeId;
use crate::intent::{Fua, Preallocation};

/// Which version a new volume is of, with what only that one has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NewVersion {
    /// LUKS1, which is what the reference makes.
    #[default]
    V1,
    /// LUKS2.
    V2(Options2),
}

/// What a new volume is to be like. The defaults are those of `qemu-img create`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateOptions {
    /// Bytes of the payload.
    pub size: u64,
    /// The id of the secret that holds the passphrase.
    pub key_secret: Option<String>,
    /// The cipher.
    pub cipher: CipherName,
    /// Bytes of the volume's key.
    pub key_len: usize,
    /// The hash of keys.
    pub hash: Hash,
    /// Milliseconds that a passphrase takes to be tried.
    pub iter_time_ms: u64,
    /// How the payload's space is reserved on the host.
    pub preallocation: Preallocation,
    /// The version.
    pub version: NewVersion,
    /// The file holds the header alone; the payload is all of another.
    pub detached: bool,
}

impl CreateOptions {
    /// A volume of `size` bytes with the defaults, whose passphrase is in the secret `key_secret`.
    pub fn new(size: u64, key_secret: Option<String>) -> Self {
        Self {
            size,
            key_secret,
            cipher: CipherName::parse("aes", "xts-plain64").expect("a cipher's name"),
            key_len: 64,
            hash: Hash::Sha256,
            iter_time_ms: ITER_TIME_MS,
            preallocation: Preallocation::Off,
            version: NewVersion::V1,
            detached: false,
        }
    }

    /// The byte of its file at which the payload begins.
    pub(super) fn payload_at(&self) -> u64 {
        if self.detached { 0 } else { self.header_len() }
    }

    /// Bytes of the header with its keyslots.
    pub fn header_len(&self) -> u64 {
        match self.version {
            NewVersion::V1 => header_len(self.key_len as u64),
            NewVersion::V2(_) => PAYLOAD_AT,
        }
    }

    /// Whether such a volume can be made; gives the passphrase.
    ///
    /// # Errors
    /// What is missing, or what there is not.
    pub(in crate::format) fn check(&self, io: &Io, place: Place, prefix: &'static str) -> Result<Secret> {
        Cipher::new(&self.cipher, &vec![0; self.key_len], SECTOR as usize)
            .map_err(|fault| place.fail(io, fault.into()))?;
        if let NewVersion::V2(more) = &self.version {
            more.check(self.size).map_err(|fault| place.fail(io, fault))?;
            if !prefix.is_empty() {
                let text = "an encrypted image holds a volume of version 1";
                return Err(place.fail(io, LuksError::Option(text.into())));
            }
        }
        match &self.key_secret {
            Some(id) => io.secret(id),
            None => Err(place.fail(io, LuksError::NoSecret(prefix))),
        }
    }
}

/// Makes a volume in an empty file.
///
/// # Errors
/// When there is no such cipher or secret, or the file cannot be written.
pub async fn create(io: &Io, file: NodeId, options: &CreateOptions) -> Result<()> {
    let place = Place { node: file, base: 0 };
    let passphrase = options.check(io, place, "")?;
    let payload = if options.detached { 0 } else { options.size };
    let end = options.header_len().checked_add(payload).filter(|end| *end <= i64::MAX as u64);
    let end =
        end.ok_or_else(|| place.fail(io, LuksError::Option("The requested file size is too large".into())))?;
    io.set_len(file, end, options.preallocation).await?;
    match &options.version {
        NewVersion::V1 => write_volume(io, place, options, &passphrase).await,
        NewVersion::V2(more) => write_volume2(io, place, options, more, &passphrase).await,
    }
}

/// Writes the header and the first keyslot of a new volume of version 1. Durable on return.
///
/// # Errors
/// When they cannot be written.
pub(in crate::format) async fn write_volume(
    io: &Io,
    place: Place,
    options: &CreateOptions,
    passphrase: &Secret,
) -> Result<()> {
    let fail = |fault| place.fail(io, fault);
    let mut random = io.entropy_bytes(place.node, options.key_len + 32 + 32 + 16).await?;
    let (key, salts) = random.split_at_mut(options.key_len);
    let per_second = rounds_per_second(io, options.hash, options.key_len).await;
    let mut header = new_header(options, salts, per_second);
    let mut digest = Digest {
        hash: options.hash,
        salt: header.digest_salt.to_vec(),
        iterations: header.digest_iterations,
        digest: vec![0; header.digest.len()],
    };
    digest.digest = digest.of(io, key).await.to_vec();
    header.digest.copy_from_slice(&digest.digest);
    let slot = header.keyslot(0).map_err(fail)?;
    slot.seal(io, place, (0, passphrase), (key, &digest), Budget::default()).await?;
    key.zeroize();
    // The material is durable before a header says that it is there.
    io.flush("luks.create/before_header", place.node).await?;
    io.write("luks.create/header", place.node, place.base, Buf::from(&header.encode()[..]), Fua::No)
        .await
        .1?;
    io.flush("luks.create/after", place.node).await
}

fn new_header(options: &CreateOptions, random: &[u8], per_second: u64) -> Header {
    let key_len = options.key_len as u64;
    let iterations = iterations((options.hash, options.key_len), per_second, options.iter_time_ms);
    let salt = |at: usize| random[at..at + 32].try_into().expect("32 bytes");
    let slot = |number: usize| Slot {
        active: number == 0,
        iterations: if number == 0 { iterations } else { 0 },
        salt: if number == 0 { salt(32) } else { [0; 32] },
        sector: (slot_place(number, key_len) / SECTOR) as u32,
        stripes: STRIPES,
    };
    Header {
        cipher: options.cipher.clone(),
        hash: options.hash.name().into(),
        payload_sector: (options.payload_at() / SECTOR) as u32,
        key_len: options.key_len as u32,
        digest: [0; 20],
        digest_salt: salt(0),
        digest_iterations: digest_iterations(iterations),
        uuid: random_uuid(random[64..80].try_into().expect("16 bytes")),
        slots: std::array::from_fn::<_, SLOTS, _>(slot),
    }
}

/// A name of random bytes. Source: RFC 9562, 5.4: version 4, variant 10.
pub(super) fn random_uuid(mut uuid: [u8; 16]) -> String {
    uuid[6] = uuid[6] & 0x0f | 0x40;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    let mut text = String::new();
    for (at, byte) in uuid.iter().enumerate() {
        if matches!(at, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}
