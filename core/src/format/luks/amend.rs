//! Amend: keyslots that are added and erased.
//!
//! Order on disk. Adding: the material and all of the slot but its state, a barrier, the state, a barrier; in LUKS2, the
//! material, a barrier, the header's copies one after the other. So a slot that says it holds a key does. Erasing: the
//! material is overwritten, a barrier, the state, a barrier: a slot whose state is lost to a crash opens nothing, and no
//! slot that says it is empty has a key that can still be read. A crash leaves the other slots as they were.
//!
//! Overwriting. LUKS2: the new material in an area that is free, a barrier, the header's copies one after the other with the slot at
//! its new area, and only then the old material: at any moment the slot opens by the old passphrase or by the new one. LUKS1: a
//! slot's area is where it is, so what can fail or takes long comes first, and then the new material over the old, the slot, and one
//! barrier. A crash before that barrier may leave a slot that opens by neither; where it is the only one, the data is lost, as with
//! the reference.

use super::LuksError;
use super::copies::Header2Copies;
use super::costs::{ITER_TIME_MS, KdfChoice, iterations, rounds_per_second};
use super::keyslot::{Budget, Kdf, Keyslot, Place, wipe};
use super::layout::{Header, SLOTS, STRIPES, Slot, state_bytes};
use super::metadata::Slot2;
use super::volume::Volume;
use crate::buf::Buf;
use crate::crypto::{Hash, Secret};
use crate::engine::Io;
use crate::error::Result;
use crate::intent::Fua;

/// Keyslots of LUKS2 at the most, as in cryptsetup.
const SLOTS2_MAX: u32 = 32;

/// A change of keyslots. Secrets are given by their ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AmendKeyslots {
    /// Whether slots are to hold a key.
    pub active: bool,
    /// The passphrase of a new slot.
    pub new_secret: Option<String>,
    /// The passphrase of the slots that are erased.
    pub old_secret: Option<String>,
    /// Which slot.
    pub keyslot: Option<u32>,
    /// Milliseconds that a new passphrase takes to be tried.
    pub iter_time_ms: Option<u64>,
    /// Whether a slot in use may be overwritten, and the last one erased.
    pub force: bool,
}

impl AmendKeyslots {
    /// Changes the volume at a place, which `key_secret` opens. Durable on return.
    ///
    /// # Errors
    /// What does not go together, and what would lose a key; then nothing is changed.
    pub(in crate::format) async fn apply(
        &self,
        io: &Io,
        place: Place,
        volume: &Volume,
        key_secret: Option<&str>,
    ) -> Result<Volume> {
        let refuse = |text: &str| Err(place.fail(io, LuksError::Option(text.into())));
        match self.active {
            true if self.new_secret.is_none() => refuse("'new-secret' is required to activate a keyslot"),
            true if self.old_secret.is_some() => {
                refuse("'old-secret' must not be given when activating keyslots")
            }
            false if self.new_secret.is_some() => {
                refuse("'new-secret' must not be given when erasing keyslots")
            }
            false if self.iter_time_ms.is_some() => {
                refuse("'iter-time' must not be given when erasing keyslots")
            }
            true => self.activate(io, place, volume, key_secret).await,
            false => self.erase(io, place, volume).await,
        }
    }

    /// The slot that is asked for, if it is one that there can be.
    fn checked_slot(&self, io: &Io, place: Place, volume: &Volume) -> Result<Option<u32>> {
        match self.keyslot {
            Some(slot) if slot >= volume.slots_max() => {
                let last = volume.slots_max() - 1;
                // Somebody may have meant a number below zero.
                let said = slot.cast_signed();
                let text = format!("Invalid keyslot {said} specified, must be between 0 and {last}");
                Err(place.fail(io, LuksError::Option(text)))
            }
            slot => Ok(slot),
        }
    }

    async fn activate(
        &self,
        io: &Io,
        place: Place,
        volume: &Volume,
        key_secret: Option<&str>,
    ) -> Result<Volume> {
        let refuse = |text: String| Err(place.fail(io, LuksError::Option(text)));
        let taken = volume.taken_slots();
        let slot = match self.checked_slot(io, place, volume)? {
            Some(slot) if taken.contains(&slot) && !self.force => {
                return refuse(format!(
                    "Refusing to overwrite active keyslot {slot} - please erase it first"
                ));
            }
            Some(slot) => slot,
            None => match (0..volume.slots_max()).find(|slot| !taken.contains(slot)) {
                Some(slot) => slot,
                None => return refuse("Can't add a keyslot - all keyslots are in use".into()),
            },
        };
        let passphrase = io.secret(self.new_secret.as_deref().unwrap_or_default())?;
        let old = match key_secret {
            Some(id) => io.secret(id)?,
            None => return Err(place.fail(io, LuksError::NoSecret(""))),
        };
        let Some((key, _)) = volume.unlock(io, place, &old).await? else {
            return Err(place.fail(io, LuksError::Password));
        };
        let budget = volume.budget_beside(slot).map_err(|fault| place.fail(io, fault))?;
        let time = self.iter_time_ms;
        let new = NewSlot { number: slot, key: &key, passphrase: &passphrase, time, budget };
        match volume {
            Volume::V1(header) => put_v1(io, place, header, new).await.map(Volume::V1),
            Volume::V2(copies) => put_v2(io, place, copies, new).await.map(Volume::V2),
        }
    }

    async fn erase(&self, io: &Io, place: Place, volume: &Volume) -> Result<Volume> {
        let refuse = |text: String| Err(place.fail(io, LuksError::Option(text)));
        let active = volume.active_slots();
        let (slot, mut budget) = (self.checked_slot(io, place, volume)?, Budget::default());
        let old = self.old_secret.as_deref().map(|id| io.secret(id)).transpose()?;
        let slots: Vec<u32> = match (slot, &old) {
            (None, None) => {
                return refuse(
                    "To erase keyslot(s), either explicit keyslot index or the password currently contained in them \
                     must be given"
                        .into(),
                );
            }
            (Some(slot), old) => {
                if !volume.taken_slots().contains(&slot) {
                    return match self.force {
                        true => Ok(volume.clone()),
                        false => refuse(format!("Given keyslot {slot} is already erased (inactive) ")),
                    };
                }
                if let Some(old) = old
                    && !volume.opens(io, place, (slot, old), &mut budget).await?
                {
                    return refuse(format!(
                        "Given keyslot {slot} doesn't contain the given old password for erase operation"
                    ));
                }
                if active == [slot] && !self.force {
                    return refuse(format!(
                        "Attempt to erase the only active keyslot {slot} which will erase all the data in the image \
                         irreversibly - refusing operation"
                    ));
                }
                vec![slot]
            }
            (None, Some(old)) => {
                let mut matching = Vec::new();
                for slot in &active {
                    if volume.opens(io, place, (*slot, old), &mut budget).await? {
                        matching.push(*slot);
                    }
                }
                if matching.is_empty() {
                    return refuse("No keyslots match given (old) password for erase operation".into());
                }
                if matching.len() == active.len() && !self.force {
                    return refuse(
                        "All the active keyslots match the (old) password that was given and erasing them will erase \
                         all the data in the image irreversibly - refusing operation"
                            .into(),
                    );
                }
                matching
            }
        };
        let mut left = volume.clone();
        for slot in slots {
            left = left.without(io, place, slot).await?;
        }
        Ok(left)
    }
}

/// A slot that is to hold the key for a passphrase, in use or not.
struct NewSlot<'a> {
    number: u32,
    key: &'a [u8],
    passphrase: &'a Secret,
    /// Milliseconds that the passphrase takes to be tried.
    time: Option<u64>,
    /// What the other slots leave for it.
    budget: Budget,
}

impl Volume {
    /// What the slots beside one leave of the budget of an opening. A slot that is too dear by itself takes nothing, as when it is
    /// passed by.
    fn budget_beside(&self, number: u32) -> Result<Budget, LuksError> {
        let mut budget = Budget::default();
        for (other, keyslot, digest) in self.keyslots()? {
            if other != number {
                drop(budget.spend(other, &keyslot, &digest));
            }
        }
        Ok(budget)
    }

    /// Keyslots that there can be.
    fn slots_max(&self) -> u32 {
        match self {
            Self::V1(_) => SLOTS as u32,
            Self::V2(_) => SLOTS2_MAX,
        }
    }

    /// The slots that hold a key, of whatever it is for.
    fn taken_slots(&self) -> Vec<u32> {
        match self {
            Self::V1(header) => {
                let slots = (0u32..).zip(&header.slots);
                slots.filter(|(_, slot)| slot.active).map(|(number, _)| number).collect()
            }
            Self::V2(copies) => copies.metadata.keyslots.iter().map(|(number, _)| *number).collect(),
        }
    }

    /// The slots that hold the payload's key, those too that are only tried when they are asked for.
    fn active_slots(&self) -> Vec<u32> {
        let mut slots = self.taken_slots();
        if let Self::V2(copies) = self {
            let digest = copies.metadata.digest_of_segment(0);
            slots.retain(|slot| digest.is_some_and(|(_, digest)| digest.keyslots.contains(slot)));
        }
        slots
    }

    /// Whether a passphrase opens a slot.
    async fn opens(
        &self,
        io: &Io,
        place: Place,
        (number, passphrase): (u32, &Secret),
        budget: &mut Budget,
    ) -> Result<bool> {
        let (keyslot, key_len, digest) = match self {
            Self::V1(_) => {
                let slots = self.keyslots().map_err(|fault| place.fail(io, fault))?;
                match slots.into_iter().find(|(slot, ..)| *slot == number) {
                    Some((_, keyslot, digest)) => (keyslot, self.key_len(), digest),
                    None => return Ok(false),
                }
            }
            Self::V2(copies) => match copies.metadata.opened_by(number) {
                Some((slot, keyslot, digest)) => (keyslot.clone(), slot.key_len, digest.clone()),
                None => return Ok(false),
            },
        };
        let key = keyslot.unlock(io, place, (number, passphrase), (key_len, &digest), budget).await?;
        Ok(key.is_some())
    }

    /// The volume with a slot that holds no key any more.
    async fn without(&self, io: &Io, place: Place, slot: u32) -> Result<Self> {
        match self {
            Self::V1(header) => erase_v1(io, place, header, slot as usize).await.map(Self::V1),
            Self::V2(copies) => erase_v2(io, place, copies, slot).await.map(Self::V2),
        }
    }
}

async fn erase_v1(io: &Io, place: Place, header: &Header, number: usize) -> Result<Header> {
    let slot = header.keyslot(number).map_err(|fault| place.fail(io, fault))?;
    // The material is gone, durably, before the slot says so.
    wipe(io, place, slot.area, slot.material_len(header.key_len as usize)).await?;
    let mut header = header.clone();
    let old = header.slots[number];
    header.slots[number] = Slot { active: false, iterations: 0, salt: [0; 32], ..old };
    write_slot(io, place, &header, number).await?;
    io.flush("luks.erase/after", place.node).await?;
    Ok(header)
}

async fn put_v1(io: &Io, place: Place, header: &Header, new: NewSlot<'_>) -> Result<Header> {
    let fail = |fault| place.fail(io, fault);
    let (number, key) = (new.number as usize, new.key);
    let hash = Hash::parse(&header.hash).ok_or_else(|| fail(LuksError::Hash(header.hash.clone())))?;
    let digest = header.key_digest().map_err(fail)?;
    let per_second = rounds_per_second(io, hash, key.len()).await;
    let mut header = header.clone();
    let slot = &mut header.slots[number];
    slot.salt = io.entropy::<32>(place.node).await?;
    slot.iterations = iterations((hash, key.len()), per_second, new.time.unwrap_or(ITER_TIME_MS));
    let keyslot = header.keyslot(number).map_err(fail)?;
    keyslot.seal(io, place, (new.number, new.passphrase), (key, &digest), new.budget).await?;
    write_slot(io, place, &header, number).await?;
    if header.slots[number].active {
        // The old material is gone, as if it had been wiped: the new one has its place and looks as random.
        io.flush("luks.replace/after", place.node).await?;
        return Ok(header);
    }
    // Material, salt and rounds are durable before the slot says that it holds a key. Only its state may do that: a slot
    // crosses from one sector to the next, the state does not.
    io.flush("luks.add/before_state", place.node).await?;
    let at = place.base + Slot::place(number);
    io.write("luks.add/state", place.node, at, Buf::from(&state_bytes(true)[..]), Fua::No).await.1?;
    io.flush("luks.add/after", place.node).await?;
    header.slots[number].active = true;
    Ok(header)
}

async fn write_slot(io: &Io, place: Place, header: &Header, number: usize) -> Result<()> {
    let bytes = Buf::from(&header.slots[number].encode()[..]);
    io.write("luks.amend/slot", place.node, place.base + Slot::place(number), bytes, Fua::No).await.1
}

async fn erase_v2(io: &Io, place: Place, copies: &Header2Copies, number: u32) -> Result<Header2Copies> {
    let slots = &copies.metadata.keyslots;
    let Some((_, slot)) = slots.iter().find(|(other, _)| *other == number) else { return Ok(copies.clone()) };
    copies.next_seqid().map_err(|fault| place.fail(io, fault))?;
    let size = copies.header.size;
    let left = copies.metadata.without_keyslot(size, number).map_err(|fault| place.fail(io, fault))?;
    // The material is gone, durably, before the header says so.
    wipe_v2(io, place, slot).await?;
    copies.store(io, place, left).await
}

async fn wipe_v2(io: &Io, place: Place, slot: &Slot2) -> Result<()> {
    let (at, len) = slot.area;
    let used = area_len(slot.key_len).min(len);
    wipe(io, place, at, used as usize).await
}

/// Bytes of an area for the material of such a key.
fn area_len(key_len: usize) -> u64 {
    (key_len as u64 * u64::from(STRIPES)).next_multiple_of(4096)
}

async fn put_v2(io: &Io, place: Place, copies: &Header2Copies, new: NewSlot<'_>) -> Result<Header2Copies> {
    let fail = |fault| place.fail(io, fault);
    let refuse = |text: &str| Err(fail(LuksError::Option(text.into())));
    copies.next_seqid().map_err(fail)?;
    let (size, metadata) = (copies.header.size, &copies.metadata);
    let Some((digest_id, of_payload)) = metadata.digest_of_segment(0) else {
        return refuse("the volume has no digest of its key");
    };
    let digest = match &of_payload.digest {
        Ok(digest) => digest,
        Err(why) => return refuse(why),
    };
    // The new slot is like one that there is, perhaps the one in its place, with a key derivation of its own.
    let mut slots = metadata.keyslots.iter().filter(|(slot, _)| of_payload.keyslots.contains(slot));
    let like = slots.find_map(|(_, slot)| slot.keyslot.as_ref().ok());
    let Some(like) = like else {
        return refuse("the volume has no keyslot that a new one could be made after");
    };
    // Not that of a slot which is overwritten: its key is needed until a header names the new one.
    let area_len = area_len(new.key.len());
    let Some(area) = metadata.free_area(size, area_len) else {
        return refuse("Can't add a keyslot - there is no room for its material");
    };
    let salt = io.entropy::<32>(place.node).await?.to_vec();
    let kdf = match (&like.kdf, new.time) {
        (Kdf::Argon2 { kind, passes, memory_kib, lanes, .. }, None) => {
            Kdf::Argon2 { kind: *kind, salt, passes: *passes, memory_kib: *memory_kib, lanes: *lanes }
        }
        (Kdf::Argon2 { kind, lanes, .. }, Some(time)) => {
            let choice = KdfChoice { argon2: Some(*kind), lanes: *lanes, ..KdfChoice::default() };
            choice.kdf(io, like.af_hash, salt, like.area_key_len, time).await
        }
        (Kdf::Pbkdf2 { hash, .. }, time) => {
            let choice = KdfChoice { argon2: None, ..KdfChoice::default() };
            choice.kdf(io, *hash, salt, like.area_key_len, time.unwrap_or(ITER_TIME_MS)).await
        }
    };
    let slot = Keyslot { kdf, area, ..like.clone() };
    let old = metadata.keyslots.iter().find(|(number, _)| *number == new.number).map(|(_, slot)| slot);
    let others = match old {
        Some(_) => &metadata.without_keyslot(size, new.number).map_err(fail)?,
        None => metadata,
    };
    let made = (&slot, new.key.len(), area_len);
    let more = others.with_keyslot(size, new.number, made, digest_id).map_err(fail)?;
    slot.seal(io, place, (new.number, new.passphrase), (new.key, digest), new.budget).await?;
    // The material is durable before a header names it.
    io.flush("luks2.add/before_header", place.node).await?;
    let stored = copies.store(io, place, more).await?;
    // Both copies name the new material, durably, before the old one is gone.
    if let Some(old) = old {
        wipe_v2(io, place, old).await?;
    }
    Ok(stored)
}
