//! A volume's header, of either version: read, unlocked with a passphrase, and shown.

use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use super::LuksError;
use super::keyslot::{Digest, Kdf, Keyslot, Place, check_iterations};
use super::layout::{self, HEADER_LEN, Header, SECTOR};
use super::sectors::Sectors;
use crate::crypto::{Cipher, Hash, Secret};
use crate::engine::Io;
use crate::error::Result;

/// The header of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Volume {
    /// Of version 1.
    V1(Header),
}

/// The volume's key, by the passphrase in the secret of that id; `prefix` is what the option's name begins with.
///
/// # Errors
/// When there is no such secret, and when it opens no keyslot.
pub(in crate::format) async fn key_of(
    io: &Io,
    place: Place,
    volume: &Volume,
    (secret, prefix): (Option<&str>, &'static str),
) -> Result<Zeroizing<Vec<u8>>> {
    let Some(id) = secret else { return Err(place.fail(io, LuksError::NoSecret(prefix))) };
    let passphrase = io.secret(id)?;
    match volume.unlock(io, place, &passphrase).await? {
        Some((key, _)) => Ok(key),
        None => Err(place.fail(io, LuksError::Password)),
    }
}

impl Volume {
    /// Reads the header at a place, and checks it.
    ///
    /// # Errors
    /// When it is damaged, or cannot be read.
    pub(in crate::format) async fn load(io: &Io, place: Place) -> Result<Self> {
        let fail = |fault| place.fail(io, fault);
        let there = io.len(place.node).saturating_sub(place.base);
        let len = there.min(HEADER_LEN as u64) as usize;
        let head = io.read_bytes("luks.open/header", place.node, place.base, len).await?;
        match layout::version(&head).map_err(fail)? {
            1 => {
                let header = Header::parse(&head).map_err(fail)?;
                header.check().map_err(fail)?;
                Ok(Self::V1(header))
            }
            found => Err(fail(LuksError::Version { found })),
        }
    }

    /// Bytes of the volume's key.
    pub(super) fn key_len(&self) -> usize {
        match self {
            Self::V1(header) => header.key_len as usize,
        }
    }

    /// First byte of the payload, and its length where that is fixed.
    pub(super) fn payload(&self) -> (u64, Option<u64>) {
        match self {
            Self::V1(header) => (u64::from(header.payload_sector) * SECTOR, None),
        }
    }

    /// Bytes of an encrypted sector.
    pub(super) fn sector_len(&self) -> u64 {
        match self {
            Self::V1(_) => SECTOR,
        }
    }

    /// The slots that hold a key, by their numbers, each with the digest that its key must have.
    ///
    /// # Errors
    /// When the header names a hash that there is not.
    pub(super) fn keyslots(&self) -> Result<Vec<(u32, Keyslot, Digest)>, LuksError> {
        match self {
            Self::V1(header) => {
                check_iterations("the volume key's digest", header.digest_iterations)?;
                let digest = header.key_digest()?;
                let active = (0u32..).zip(&header.slots).filter(|(_, slot)| slot.active);
                active
                    .map(|(number, _)| Ok((number, header.keyslot(number as usize)?, digest.clone())))
                    .collect()
            }
        }
    }

    /// The volume's key and the number of the slot that gave it, where the passphrase opens one. A slot that asks for
    /// what there is not is passed by, unless none opens.
    ///
    /// # Errors
    /// When the header cannot be used, or a slot cannot be read.
    pub(super) async fn unlock(
        &self,
        io: &Io,
        place: Place,
        passphrase: &Secret,
    ) -> Result<Option<(Zeroizing<Vec<u8>>, u32)>> {
        let slots = self.keyslots().map_err(|fault| place.fail(io, fault))?;
        let mut refused = None;
        for (number, slot, digest) in slots {
            match slot.unlock(io, place, passphrase, (self.key_len(), &digest)).await {
                Ok(Some(key)) => return Ok(Some((key, number))),
                Ok(None) => {}
                Err(error) => {
                    refused.get_or_insert(error);
                }
            }
        }
        refused.map_or(Ok(None), Err)
    }

    /// The way of data for those who have the key.
    ///
    /// # Errors
    /// When there is no such cipher.
    pub(super) fn sectors(&self, key: &[u8]) -> Result<Sectors, LuksError> {
        match self {
            Self::V1(header) => {
                let cipher = Cipher::new(&header.cipher, key, SECTOR as usize)?;
                Ok(Sectors::new(cipher, self.payload().0, 0))
            }
        }
    }

    /// The way of data within a qcow2 image, where sectors are counted from the start of what holds the data.
    ///
    /// # Errors
    /// When there is no such cipher.
    pub(in crate::format) fn sectors_of_image(&self, key: &[u8]) -> Result<Sectors, LuksError> {
        match self {
            Self::V1(header) => Ok(Sectors::new(Cipher::new(&header.cipher, key, SECTOR as usize)?, 0, 0)),
        }
    }

    /// What can be told without a key, under the reference's names and in its order.
    pub fn facts(&self) -> Map<String, Value> {
        match self {
            Self::V1(header) => header.facts(),
        }
    }
}

impl Header {
    fn hash_of_keys(&self) -> Result<Hash, LuksError> {
        Hash::parse(&self.hash).ok_or_else(|| LuksError::Hash(self.hash.clone()))
    }

    fn key_digest(&self) -> Result<Digest, LuksError> {
        Ok(Digest {
            hash: self.hash_of_keys()?,
            salt: self.digest_salt.to_vec(),
            iterations: self.digest_iterations,
            digest: self.digest.to_vec(),
        })
    }

    /// A slot, as both versions have it.
    pub(super) fn keyslot(&self, number: usize) -> Result<Keyslot, LuksError> {
        let (slot, hash) = (&self.slots[number], self.hash_of_keys()?);
        Ok(Keyslot {
            kdf: Kdf::Pbkdf2 { hash, salt: slot.salt.to_vec(), iterations: slot.iterations },
            cipher: self.cipher.clone(),
            area_key_len: self.key_len as usize,
            area: u64::from(slot.sector) * SECTOR,
            af_hash: hash,
        })
    }

    fn facts(&self) -> Map<String, Value> {
        let slots = self.slots.iter().map(|slot| {
            let place = u64::from(slot.sector) * SECTOR;
            match slot.active {
                true => json!({
                    "active": true,
                    "iters": slot.iterations,
                    "stripes": slot.stripes,
                    "key-offset": place,
                }),
                false => json!({ "active": false, "key-offset": place }),
            }
        });
        let slots = slots.collect();
        let bits = self.cipher.key_bits(self.key_len as usize);
        let mut data = Map::new();
        let mut put = |key: &str, value: Value| drop(data.insert(key.into(), value));
        put("cipher-alg", json!(format!("{}-{bits}", self.cipher.cipher)));
        put("cipher-mode", json!(self.cipher.mode));
        put("ivgen-alg", json!(self.cipher.iv));
        if let Some(hash) = &self.cipher.iv_hash {
            put("ivgen-hash-alg", json!(hash));
        }
        put("hash-alg", json!(self.hash));
        put("detached-header", json!(false));
        put("payload-offset", json!(u64::from(self.payload_sector) * SECTOR));
        put("master-key-iters", json!(self.digest_iterations));
        put("uuid", json!(self.uuid));
        put("slots", Value::Array(slots));
        data
    }
}
