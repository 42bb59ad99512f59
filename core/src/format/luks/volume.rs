//! A volume's header, of either version: read, unlocked with a passphrase, and shown.

use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use super::LuksError;
use super::copies::Header2Copies;
use super::keyslot::{Budget, Digest, Kdf, Keyslot, Place};
use super::layout::{self, HEADER_LEN, Header, SECTOR};
use super::layout2::Copy;
use super::metadata::SegmentCrypt;
use super::sectors::Sectors;
use crate::crypto::{Argon2Kind, Cipher, CipherName, Hash, Secret};
use crate::engine::Io;
use crate::error::{Error, Result};

/// The header of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Volume {
    /// Of version 1.
    V1(Header),
    /// Of version 2.
    V2(Header2Copies),
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
        match layout::version(&head) {
            Ok(1) => {
                let header = Header::parse(&head).map_err(fail)?;
                header.check().map_err(fail)?;
                Ok(Self::V1(header))
            }
            // The second copy of a header may be there where the first is not.
            Ok(2) | Err(_) => Header2Copies::load(io, place, &head).await.map(Self::V2),
            Ok(found) => Err(fail(LuksError::Version { found })),
        }
    }

    /// Bytes of the volume's key.
    pub(super) fn key_len(&self) -> usize {
        match self {
            Self::V1(header) => header.key_len as usize,
            Self::V2(copies) => copies.key_len(),
        }
    }

    /// First byte of the payload, and its length where that is fixed.
    pub(super) fn payload(&self) -> (u64, Option<u64>) {
        match self {
            Self::V1(header) => (u64::from(header.payload_sector) * SECTOR, None),
            Self::V2(copies) => {
                let (_, segment) = &copies.metadata.segments[0];
                (segment.offset, segment.size)
            }
        }
    }

    /// Bytes of an encrypted sector.
    pub(super) fn sector_len(&self) -> u64 {
        match self {
            Self::V1(_) => SECTOR,
            Self::V2(copies) => {
                let crypt = copies.metadata.segments[0].1.crypt.as_ref();
                crypt.map_or(SECTOR, |crypt| crypt.sector_len as u64)
            }
        }
    }

    /// The slots that hold a key, by their numbers, each with the digest that its key must have.
    ///
    /// # Errors
    /// When the header names a hash that there is not.
    pub(super) fn keyslots(&self) -> Result<Vec<(u32, Keyslot, Digest)>, LuksError> {
        match self {
            Self::V1(header) => {
                let digest = header.key_digest()?;
                let active = (0u32..).zip(&header.slots).filter(|(_, slot)| slot.active);
                let slots =
                    active.map(|(number, _)| Ok((number, header.keyslot(number as usize)?, digest.clone())));
                slots.collect()
            }
            Self::V2(copies) => copies.keyslots(),
        }
    }

    /// Whether the data can be used by those who have the key.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn admit(&self) -> Result<(), LuksError> {
        match self {
            Self::V1(_) => Ok(()),
            Self::V2(copies) => copies.payload_cipher().map(drop),
        }
    }

    /// Writes a damaged copy of the header anew, where there are two. Durable on return.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) async fn recover(&self, io: &Io, place: Place) -> Result<()> {
        match self {
            Self::V1(_) => Ok(()),
            Self::V2(copies) => copies.recover(io, place).await,
        }
    }

    /// The volume's key and the number of the slot that gave it, where the passphrase opens one. A slot that asks for
    /// what there is not is passed by, unless none opens; one that costs more than is left is told of then in any case, because the
    /// passphrase may be its.
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
        let (mut refused, mut dear, mut tried, mut budget) = (None, None, false, Budget::default());
        for (number, slot, digest) in slots {
            let key = (self.key_len(), &digest);
            match slot.unlock(io, place, (number, passphrase), key, &mut budget).await {
                Ok(Some(key)) => return Ok(Some((key, number))),
                Ok(None) => tried = true,
                Err(error) if is_too_dear(&error) => drop(dear.get_or_insert(error)),
                Err(error) => {
                    refused.get_or_insert(error);
                }
            }
        }
        match (dear, refused) {
            (Some(error), _) => Err(error),
            (None, Some(error)) if !tried => Err(error),
            _ => Ok(None),
        }
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
            Self::V2(copies) => {
                let (name, crypt) = copies.payload_cipher()?;
                Ok(Sectors::new(Cipher::new(&name, key, crypt.sector_len)?, self.payload().0, crypt.tweak))
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
            // The format has it that way, and no other program reads one of version 2 there.
            Self::V2(_) => Err(LuksError::Version { found: 2 }),
        }
    }

    /// What can be told without a key, under the reference's names and in its order.
    pub fn facts(&self) -> Map<String, Value> {
        match self {
            Self::V1(header) => header.facts(),
            Self::V2(copies) => copies.facts(),
        }
    }
}

/// Whether a slot was passed by for what it costs.
fn is_too_dear(error: &Error) -> bool {
    let Error::Format { fault, .. } = error else { return false };
    matches!(fault.as_any().downcast_ref(), Some(LuksError::Work { .. } | LuksError::Iterations { .. }))
}

impl Header2Copies {
    /// The slots whose key is the payload's, those first that are to be tried first.
    fn keyslots(&self) -> Result<Vec<(u32, Keyslot, Digest)>, LuksError> {
        let Some((_, digest)) = self.metadata.digest_of_segment(0) else {
            return Err(LuksError::Segments("it has no digest of its key".into()));
        };
        let unusable = |slot: u32, why: &String| LuksError::Unusable { slot, why: why.clone() };
        let mut slots: Vec<(u64, u32, Keyslot, Digest)> = Vec::new();
        let mut refused = None;
        for (number, slot) in &self.metadata.keyslots {
            // One of no priority is for those who ask for it.
            if !digest.keyslots.contains(number) || slot.priority == 0 || slot.key_len != self.key_len() {
                continue;
            }
            match (&slot.keyslot, &digest.digest) {
                (Ok(keyslot), Ok(digest)) => {
                    slots.push((slot.priority, *number, keyslot.clone(), digest.clone()));
                }
                (Err(why), _) | (_, Err(why)) => drop(refused.get_or_insert(unusable(*number, why))),
            }
        }
        slots.sort_by_key(|(priority, number, ..)| (std::cmp::Reverse(*priority), *number));
        match refused {
            Some(fault) if slots.is_empty() => Err(fault),
            _ => Ok(slots.into_iter().map(|(_, number, slot, digest)| (number, slot, digest)).collect()),
        }
    }

    /// Bytes of the key of the payload.
    fn key_len(&self) -> usize {
        let digest = self.metadata.digest_of_segment(0);
        let of_payload = |number: &u32| digest.is_some_and(|(_, digest)| digest.keyslots.contains(number));
        let slot = self.metadata.keyslots.iter().find(|(number, _)| of_payload(number));
        slot.map_or(0, |(_, slot)| slot.key_len)
    }

    /// The cipher of the payload, if the volume is one whose data can be used: one segment, no reencryption under way,
    /// nothing required that is not known.
    fn payload_cipher(&self) -> Result<(CipherName, &SegmentCrypt), LuksError> {
        if let Some(requirement) = self.metadata.requirements.first() {
            return Err(LuksError::Requirement(requirement.clone()));
        }
        let refuse = |why: &str| Err(LuksError::Segments(why.into()));
        if self.metadata.segments.iter().any(|(_, segment)| segment.backup || segment.reencrypting) {
            return refuse("a reencryption is under way");
        }
        let [(_, segment)] = &self.metadata.segments[..] else {
            return refuse("it has more than one segment");
        };
        let Some(crypt) = &segment.crypt else {
            return Err(LuksError::Segments(format!("its segment is of type '{}'", segment.kind)));
        };
        if crypt.integrity {
            return refuse("its data has checksums of its own");
        }
        match CipherName::parse_whole(&crypt.encryption) {
            Some(name) => Ok((name, crypt)),
            None => Err(LuksError::CipherMode { found: crypt.encryption.clone() }),
        }
    }

    fn facts(&self) -> Map<String, Value> {
        let metadata = &self.metadata;
        let slots = metadata.keyslots.iter().map(|(number, slot)| {
            let kdf = match &slot.keyslot {
                Ok(keyslot) => keyslot.kdf.facts(),
                Err(why) => json!(why),
            };
            json!({ "slot": number, "priority": slot.priority, "key-offset": slot.area.0, "kdf": kdf })
        });
        let mut data = Map::new();
        let mut put = |key: &str, value: Value| drop(data.insert(key.into(), value));
        put("version", json!(2));
        if let Some(crypt) = &metadata.segments[0].1.crypt {
            put("encryption", json!(crypt.encryption));
            put("sector-size", json!(crypt.sector_len));
        }
        put("detached-header", json!(false));
        put("payload-offset", json!(metadata.segments[0].1.offset));
        put("metadata-size", json!(self.header.size));
        put("seqid", json!(self.header.seqid));
        put("uuid", json!(self.header.uuid_text()));
        if !metadata.requirements.is_empty() {
            put("requirements", json!(metadata.requirements));
        }
        if let Some(copy) = self.stale.or(self.foreign.then_some(Copy::Primary)) {
            let name = match copy {
                Copy::Primary => "primary",
                Copy::Secondary => "secondary",
            };
            put("damaged-copy", json!(name));
        }
        put("slots", slots.collect());
        data
    }
}

impl Kdf {
    fn facts(&self) -> Value {
        match self {
            Self::Pbkdf2 { hash, iterations, .. } => {
                json!({ "type": "pbkdf2", "hash": hash.name(), "iters": iterations })
            }
            Self::Argon2 { kind, passes, memory_kib, lanes, .. } => json!({
                "type": match kind { Argon2Kind::I => "argon2i", Argon2Kind::Id => "argon2id" },
                "time": passes,
                "memory": memory_kib,
                "cpus": lanes,
            }),
        }
    }
}

impl Header {
    fn hash_of_keys(&self) -> Result<Hash, LuksError> {
        Hash::parse(&self.hash).ok_or_else(|| LuksError::Hash(self.hash.clone()))
    }

    pub(super) fn key_digest(&self) -> Result<Digest, LuksError> {
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

#[cfg(test)]
mod tests {
    use super::super::layout2::Header2;
    use super::super::metadata::{Metadata, tests::whole};
    use super::*;

    #[test]
    fn a_segment_that_is_being_reencrypted_is_not_used() {
        let refused = |flags: Value| {
            let mut json = whole();
            json["segments"]["0"]["flags"] = flags;
            let metadata = Metadata::parse(json.to_string().as_bytes(), 16384).expect("it goes together");
            let (size, seqid, label, salt) = (16384, 1, [0; 48], [0; 64]);
            let header = Header2 { size, seqid, label, salt, uuid: [0; 40], subsystem: [0; 48] };
            let copies = Header2Copies { header, metadata, stale: None, foreign: false };
            copies.payload_cipher().is_err()
        };
        assert!(!refused(json!([])));
        assert!(refused(json!(["in-reencryption"])));
        assert!(refused(json!(["backup-final"])));
    }
}
