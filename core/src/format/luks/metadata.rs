//! The JSON metadata of LUKS2: keyslots, segments, digests. Source: \[LUKS2\] "LUKS2 JSON Metadata Format".
//!
//! The text becomes a [`Metadata`], which holds only what goes together; the objects themselves are kept beside it, so that
//! what this does not know (tokens, flags, parameters of other programs) is written back as it was.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Map, Value, json};

use super::LuksError;
use super::keyslot::{Digest, Kdf, Keyslot};
use super::layout::{KEY_LEN_MAX, STRIPES};
use crate::crypto::{Argon2Kind, CipherName, Hash};

/// Objects of one kind at the most.
const OBJECTS_MAX: usize = 256;

/// Bytes of a salt or a digest at the most.
const BYTES_MAX: usize = 512;

/// Bytes of all keyslots' areas at the most, as in cryptsetup.
const AREAS_MAX: u64 = 128 << 20;

/// What the metadata says.
#[derive(Clone, Debug, PartialEq)]
pub struct Metadata {
    /// All of it.
    json: Map<String, Value>,
    /// The keyslots by their numbers.
    pub keyslots: Vec<(u32, Slot2)>,
    /// The segments by their numbers.
    pub segments: Vec<(u32, Segment)>,
    /// The digests by their numbers.
    pub digests: Vec<(u32, Digest2)>,
    /// What a program must know that uses the volume.
    pub requirements: Vec<String>,
    /// Bytes for the keyslots' areas, behind both headers.
    pub keyslots_size: u64,
}

impl Eq for Metadata {}

/// A keyslot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot2 {
    /// Bytes of the key that it holds.
    pub key_len: usize,
    /// First byte and bytes of its area.
    pub area: (u64, u64),
    /// Which of several is tried first; 0 is not tried at all unless it is asked for.
    pub priority: u64,
    /// How it is opened; or what it needs for that and there is not.
    pub keyslot: Result<Keyslot, String>,
}

/// A segment of the payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// `crypt`, `linear`, and whatever there may be.
    pub kind: String,
    /// First byte.
    pub offset: u64,
    /// Bytes; all that there are, without one.
    pub size: Option<u64>,
    /// How it is encrypted, if it is a `crypt` one.
    pub crypt: Option<SegmentCrypt>,
    /// Whether it is there for a reencryption that is under way.
    pub backup: bool,
    /// Whether a reencryption is at work on it.
    pub reencrypting: bool,
}

/// How a segment is encrypted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentCrypt {
    /// The cipher, as it stands there.
    pub encryption: String,
    /// Bytes of a sector.
    pub sector_len: usize,
    /// What is added to sector numbers.
    pub tweak: u64,
    /// Whether the data has checksums of its own.
    pub integrity: bool,
}

/// A digest, and what it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digest2 {
    /// The keyslots whose key has it.
    pub keyslots: Vec<u32>,
    /// The segments that the key is for.
    pub segments: Vec<u32>,
    /// The digest; or what it needs and there is not.
    pub digest: Result<Digest, String>,
}

/// An object of the metadata, and where it is.
struct Part<'a> {
    map: &'a Map<String, Value>,
    place: String,
}

fn wrong<T>(place: String, found: Option<&Value>, expected: &'static str) -> Result<T, LuksError> {
    let mut found = found.map_or("nothing".into(), Value::to_string);
    if found.len() > 64 {
        let cut = (0..=61).rev().find(|at| found.is_char_boundary(*at)).unwrap_or(0);
        found.truncate(cut);
        found.push_str("...");
    }
    Err(LuksError::Json { place, found, expected })
}

impl<'a> Part<'a> {
    fn at(&self, key: &str) -> String {
        if self.place.is_empty() { key.into() } else { format!("{}.{key}", self.place) }
    }

    fn wrong<T>(&self, key: &str, expected: &'static str) -> Result<T, LuksError> {
        wrong(self.at(key), self.map.get(key), expected)
    }

    fn part(&self, key: &str) -> Result<Part<'a>, LuksError> {
        match self.map.get(key) {
            Some(Value::Object(map)) => Ok(Part { map, place: self.at(key) }),
            _ => self.wrong(key, "an object"),
        }
    }

    /// Objects by their numbers, in order.
    fn numbered(&self, key: &str) -> Result<Vec<(u32, Part<'a>)>, LuksError> {
        let all = self.part(key)?;
        if all.map.len() > OBJECTS_MAX {
            return self.wrong(key, "256 objects at the most");
        }
        let one = |name: &String| match parse_id(name) {
            Some(id) => Ok((id, all.part(name)?)),
            None => all.wrong(name, "a number as the object's name"),
        };
        let mut parts = all.map.keys().map(one).collect::<Result<Vec<_>, _>>()?;
        parts.sort_by_key(|(id, _)| *id);
        Ok(parts)
    }

    fn text(&self, key: &str) -> Result<&'a str, LuksError> {
        match self.map.get(key) {
            Some(Value::String(text)) if !text.is_empty() => Ok(text),
            _ => self.wrong(key, "a text"),
        }
    }

    fn number(&self, key: &str) -> Result<u32, LuksError> {
        let number = self.map.get(key).and_then(Value::as_u64).and_then(|number| u32::try_from(number).ok());
        number.map_or_else(|| self.wrong(key, "a number of 32 bits"), Ok)
    }

    /// A number of 64 bits, which is written as a text of decimal digits.
    fn long(&self, key: &str) -> Result<u64, LuksError> {
        let digits = self.map.get(key).and_then(Value::as_str);
        let digits = digits.filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
        digits
            .and_then(|text| text.parse().ok())
            .map_or_else(|| self.wrong(key, "a number of 64 bits as text"), Ok)
    }

    fn bytes(&self, key: &str) -> Result<Vec<u8>, LuksError> {
        let bytes = BASE64_STANDARD.decode(self.text(key)?).ok();
        let fits = |bytes: &Vec<u8>| (1..=BYTES_MAX).contains(&bytes.len());
        bytes.filter(fits).map_or_else(|| self.wrong(key, "1 to 512 bytes in base64"), Ok)
    }

    fn texts(&self, key: &str) -> Result<Vec<&'a str>, LuksError> {
        let Some(Value::Array(items)) = self.map.get(key) else { return self.wrong(key, "an array") };
        let texts: Option<Vec<&str>> = items.iter().map(Value::as_str).collect();
        texts.map_or_else(|| self.wrong(key, "an array of texts"), Ok)
    }

    fn ids(&self, key: &str, known: &[u32]) -> Result<Vec<u32>, LuksError> {
        let ids = self.texts(key)?.into_iter().map(|text| parse_id(text).filter(|id| known.contains(id)));
        let ids: Option<Vec<u32>> = ids.collect();
        ids.map_or_else(|| self.wrong(key, "names of objects that there are"), Ok)
    }
}

fn parse_id(text: &str) -> Option<u32> {
    let canonical = text.len() <= 10 && text.bytes().all(|byte| byte.is_ascii_digit());
    let id: u32 = canonical.then(|| text.parse().ok()).flatten()?;
    (id.to_string() == text).then_some(id)
}

impl Metadata {
    /// The metadata of a new volume, whose header has `header_size` bytes, whose room for keyslots ends at `slots_end`, and whose
    /// payload begins at `payload_at`: one segment, and the digest of its key, which is in no keyslot yet.
    ///
    /// # Errors
    /// When that does not go together.
    pub(super) fn new(
        (header_size, slots_end, payload_at): (u64, u64, u64),
        crypt: &SegmentCrypt,
        digest: &Digest,
    ) -> Result<Self, LuksError> {
        let whole = json!({
            "keyslots": {},
            "tokens": {},
            "segments": { "0": {
                "type": "crypt",
                "offset": payload_at.to_string(),
                "size": "dynamic",
                "iv_tweak": crypt.tweak.to_string(),
                "encryption": crypt.encryption,
                "sector_size": crypt.sector_len,
            } },
            "digests": { "0": {
                "type": "pbkdf2",
                "keyslots": [],
                "segments": ["0"],
                "hash": digest.hash.name(),
                "iterations": digest.iterations,
                "salt": BASE64_STANDARD.encode(&digest.salt),
                "digest": BASE64_STANDARD.encode(&digest.digest),
            } },
            "config": {
                "json_size": (header_size - super::layout2::BINARY_LEN as u64).to_string(),
                "keyslots_size": (slots_end - 2 * header_size).to_string(),
            },
        });
        Self::parse(whole.to_string().as_bytes(), header_size)
    }

    /// Reads the metadata of a header of `header_size` bytes.
    ///
    /// # Errors
    /// What is not as it must be, and where.
    pub fn parse(text: &[u8], header_size: u64) -> Result<Self, LuksError> {
        let value: Option<Value> = serde_json::from_slice(text).ok();
        match value {
            Some(Value::Object(json)) if text.first() == Some(&b'{') => Self::of(json, header_size),
            _ => wrong("the JSON area".into(), None, "an object"),
        }
    }

    fn of(json: Map<String, Value>, header_size: u64) -> Result<Self, LuksError> {
        let all = Part { map: &json, place: String::new() };
        let config = all.part("config")?;
        if config.long("json_size")? != header_size - super::layout2::BINARY_LEN as u64 {
            return config.wrong("json_size", "what the header's size leaves for it");
        }
        let keyslots_size = config.long("keyslots_size")?;
        if !keyslots_size.is_multiple_of(4096) {
            return config.wrong("keyslots_size", "a multiple of 4096");
        }
        if keyslots_size > AREAS_MAX {
            return config.wrong("keyslots_size", "128 MiB at the most");
        }
        let areas_from = 2 * header_size;
        let Some(areas_end) = areas_from.checked_add(keyslots_size) else {
            return config.wrong("keyslots_size", "a size that ends somewhere");
        };
        let slots = all.numbered("keyslots")?;
        let keyslots = slots.iter().map(|(id, part)| Ok((*id, slot(part)?)));
        let keyslots = keyslots.collect::<Result<Vec<_>, LuksError>>()?;
        check_areas(&keyslots, &slots, (areas_from, areas_end))?;
        let parts = all.numbered("segments")?;
        let segments = parts.iter().map(|(id, part)| Ok((*id, segment(part)?)));
        let segments = segments.collect::<Result<Vec<_>, LuksError>>()?;
        if segments.is_empty() || segments.iter().zip(0..).any(|((id, _), nth)| *id != nth) {
            return all.wrong("segments", "segments that are numbered from 0 on");
        }
        for ((_, segment), (_, part)) in segments.iter().zip(&parts) {
            // What is encrypted in place has its old beginning further on, and no area lies in it. A payload that begins at 0 is in
            // another file than the header.
            let behind = segment.offset == 0 || segment.offset >= areas_end;
            if segment.kind == "crypt" && !segment.backup && !behind {
                return part.wrong("offset", "a place behind the areas of the keyslots");
            }
        }
        let slot_ids: Vec<u32> = keyslots.iter().map(|(id, _)| *id).collect();
        let segment_ids: Vec<u32> = segments.iter().map(|(id, _)| *id).collect();
        let digests = all.numbered("digests")?.into_iter();
        let digests = digests.map(|(id, part)| Ok((id, digest(&part, &slot_ids, &segment_ids)?)));
        let digests = digests.collect::<Result<Vec<_>, LuksError>>()?;
        for (id, part) in &slots {
            if digests.iter().filter(|(_, digest)| digest.keyslots.contains(id)).count() != 1 {
                return wrong(part.place.clone(), None, "one digest that names the keyslot");
            }
        }
        for (_, token) in all.numbered("tokens")? {
            token.text("type")?;
            token.ids("keyslots", &slot_ids)?;
        }
        let requirements = requirements(&config)?;
        Ok(Self { keyslots, segments, digests, requirements, keyslots_size, json })
    }

    /// The text of the metadata.
    pub fn encode(&self) -> Vec<u8> {
        Value::Object(self.json.clone()).to_string().into_bytes()
    }

    /// A keyslot and its digest, where there is all that they need.
    pub(super) fn opened_by(&self, number: u32) -> Option<(&Slot2, &Keyslot, &Digest)> {
        let (_, slot) = self.keyslots.iter().find(|(slot, _)| *slot == number)?;
        let digest = self.digest_of(number)?.digest.as_ref().ok()?;
        Some((slot, slot.keyslot.as_ref().ok()?, digest))
    }

    /// The digest of the keyslot's key.
    pub fn digest_of(&self, keyslot: u32) -> Option<&Digest2> {
        self.digests.iter().map(|(_, digest)| digest).find(|digest| digest.keyslots.contains(&keyslot))
    }

    /// The digest of the key of a segment, and its number.
    pub fn digest_of_segment(&self, segment: u32) -> Option<(u32, &Digest2)> {
        self.digests
            .iter()
            .map(|(id, digest)| (*id, digest))
            .find(|(_, digest)| digest.segments.contains(&segment))
    }

    /// A place for one more area of `len` bytes.
    pub(super) fn free_area(&self, header_size: u64, len: u64) -> Option<u64> {
        let len = len.next_multiple_of(4096);
        let mut areas: Vec<(u64, u64)> = self.keyslots.iter().map(|(_, slot)| slot.area).collect();
        areas.sort_unstable();
        let end = 2 * header_size + self.keyslots_size;
        let mut at = 2 * header_size;
        for (start, size) in areas {
            if at + len <= start {
                break;
            }
            at = at.max((start + size).next_multiple_of(4096));
        }
        (at + len <= end).then_some(at)
    }

    /// The same with one more keyslot, whose key is that of digest number `digest`.
    ///
    /// # Errors
    /// When it does not go with what is there.
    pub(super) fn with_keyslot(
        &self,
        header_size: u64,
        id: u32,
        (slot, key_len, area_len): (&Keyslot, usize, u64),
        digest: u32,
    ) -> Result<Self, LuksError> {
        let mut json = self.json.clone();
        let made = json!({
            "type": "luks2",
            "key_size": key_len,
            "af": { "type": "luks1", "stripes": STRIPES, "hash": slot.af_hash.name() },
            "area": {
                "type": "raw",
                "offset": slot.area.to_string(),
                "size": area_len.to_string(),
                "encryption": slot.cipher.to_string(),
                "key_size": slot.area_key_len,
            },
            "kdf": kdf_json(&slot.kdf),
        });
        if let Some(Value::Object(slots)) = json.get_mut("keyslots") {
            slots.insert(id.to_string(), made);
        }
        let digest = json.get_mut("digests").and_then(|digests| digests.get_mut(digest.to_string()));
        if let Some(Value::Array(ids)) = digest.and_then(|digest| digest.get_mut("keyslots")) {
            ids.push(id.to_string().into());
        }
        Self::of(json, header_size)
    }

    /// The same without a keyslot.
    ///
    /// # Errors
    /// When what is left does not go together.
    pub(super) fn without_keyslot(&self, header_size: u64, id: u32) -> Result<Self, LuksError> {
        let name = id.to_string();
        let mut json = self.json.clone();
        if let Some(Value::Object(slots)) = json.get_mut("keyslots") {
            slots.shift_remove(&name);
        }
        for kind in ["digests", "tokens"] {
            let Some(Value::Object(objects)) = json.get_mut(kind) else { continue };
            for (_, object) in objects.iter_mut() {
                if let Some(Value::Array(ids)) = object.get_mut("keyslots") {
                    ids.retain(|id| id.as_str() != Some(&name));
                }
            }
        }
        Self::of(json, header_size)
    }
}

fn kdf_json(kdf: &Kdf) -> Value {
    match kdf {
        Kdf::Pbkdf2 { hash, salt, iterations } => json!({
            "type": "pbkdf2",
            "hash": hash.name(),
            "iterations": iterations,
            "salt": BASE64_STANDARD.encode(salt),
        }),
        Kdf::Argon2 { kind, salt, passes, memory_kib, lanes } => json!({
            "type": match kind { Argon2Kind::I => "argon2i", Argon2Kind::Id => "argon2id" },
            "time": passes,
            "memory": memory_kib,
            "cpus": lanes,
            "salt": BASE64_STANDARD.encode(salt),
        }),
    }
}

fn slot(part: &Part<'_>) -> Result<Slot2, LuksError> {
    let kind = part.text("type")?;
    let key_len = part.number("key_size")? as usize;
    let priority = if part.map.contains_key("priority") { u64::from(part.number("priority")?) } else { 1 };
    let area = part.part("area")?;
    area.text("type")?;
    let place = (area.long("offset")?, area.long("size")?);
    if place.0.checked_add(place.1).is_none() {
        return area.wrong("size", "a size that ends somewhere");
    }
    let unusable = |why: String| Ok(Slot2 { key_len, area: place, priority, keyslot: Err(why) });
    if kind != "luks2" {
        return unusable(format!("keyslots of type '{kind}' are not supported"));
    }
    if key_len == 0 || key_len > KEY_LEN_MAX as usize {
        return part.wrong("key_size", "1 to 64 bytes");
    }
    let area_key_len = area.number("key_size")? as usize;
    if area_key_len == 0 || area_key_len > KEY_LEN_MAX as usize {
        return area.wrong("key_size", "1 to 64 bytes");
    }
    let encryption = area.text("encryption")?;
    let af = part.part("af")?;
    if af.text("type")? != "luks1" {
        return af.wrong("type", "luks1");
    }
    if af.number("stripes")? != STRIPES {
        return af.wrong("stripes", "4000");
    }
    let hash = af.text("hash")?;
    if (key_len * STRIPES as usize) as u64 > place.1 {
        return area.wrong("size", "room for 4000 stripes of the key");
    }
    let kdf = part.part("kdf")?;
    let name = kdf.text("type")?;
    let salt = kdf.bytes("salt")?;
    let kdf = match name {
        "pbkdf2" => {
            let (hash, iterations) = (kdf.text("hash")?, kdf.number("iterations")?);
            Hash::parse(hash).map(|hash| Kdf::Pbkdf2 { hash, salt, iterations })
        }
        "argon2i" | "argon2id" => Some(Kdf::Argon2 {
            kind: if name == "argon2i" { Argon2Kind::I } else { Argon2Kind::Id },
            salt,
            passes: kdf.number("time")?,
            memory_kib: kdf.number("memory")?,
            lanes: kdf.number("cpus")?,
        }),
        _ => None,
    };
    let Some(kdf) = kdf else { return unusable(format!("the key derivation '{name}' is not supported")) };
    let Some(af_hash) = Hash::parse(hash) else {
        return unusable(format!("the hash '{hash}' is not supported"));
    };
    let Some(cipher) = CipherName::parse_whole(encryption) else {
        return unusable(format!("the cipher '{encryption}' is not supported"));
    };
    let keyslot = Keyslot { kdf, cipher, area_key_len, area: place.0, af_hash };
    Ok(Slot2 { key_len, area: place, priority, keyslot: Ok(keyslot) })
}

/// Whether the areas lie behind the headers, within what is there for them, and apart.
fn check_areas(
    slots: &[(u32, Slot2)],
    parts: &[(u32, Part<'_>)],
    (from, end): (u64, u64),
) -> Result<(), LuksError> {
    let mut areas: Vec<(u64, u64, &Part<'_>)> = Vec::new();
    for ((_, slot), (_, part)) in slots.iter().zip(parts) {
        let (start, stop) = (slot.area.0, slot.area.0 + slot.area.1);
        let area = part.part("area")?;
        if start < from || stop > end || start == stop {
            return area.wrong("offset", "an area between the headers and the payload");
        }
        areas.push((start, stop, part));
    }
    areas.sort_by_key(|(start, ..)| *start);
    match areas.windows(2).find(|pair| pair[0].1 > pair[1].0) {
        Some(pair) => pair[1].2.part("area")?.wrong("offset", "an area that overlaps no other"),
        None => Ok(()),
    }
}

fn segment(part: &Part<'_>) -> Result<Segment, LuksError> {
    let kind = part.text("type")?;
    let flags = if part.map.contains_key("flags") { part.texts("flags")? } else { Vec::new() };
    let offset = part.long("offset")?;
    let size = match part.map.get("size") {
        Some(Value::String(text)) if text == "dynamic" => None,
        _ => Some(part.long("size")?),
    };
    let crypt = match kind {
        "crypt" => Some(segment_crypt(part)?),
        _ => None,
    };
    let unit = crypt.as_ref().map_or(512, |crypt| crypt.sector_len as u64);
    if !offset.is_multiple_of(unit) {
        return part.wrong("offset", "a multiple of the sector size");
    }
    if size.is_some_and(|size| size == 0 || !size.is_multiple_of(unit)) {
        return part.wrong("size", "whole sectors, or 'dynamic'");
    }
    let backup = flags.iter().any(|flag| flag.starts_with("backup-"));
    let reencrypting = flags.contains(&"in-reencryption");
    Ok(Segment { kind: kind.into(), offset, size, crypt, backup, reencrypting })
}

fn segment_crypt(part: &Part<'_>) -> Result<SegmentCrypt, LuksError> {
    let sector_len = part.number("sector_size")? as usize;
    if !sector_len.is_power_of_two() || !(512..=4096).contains(&sector_len) {
        return part.wrong("sector_size", "512, 1024, 2048 or 4096");
    }
    Ok(SegmentCrypt {
        encryption: part.text("encryption")?.into(),
        sector_len,
        tweak: part.long("iv_tweak")?,
        integrity: part.map.contains_key("integrity"),
    })
}

fn digest(part: &Part<'_>, slots: &[u32], segments: &[u32]) -> Result<Digest2, LuksError> {
    let kind = part.text("type")?;
    let keyslots = part.ids("keyslots", slots)?;
    let segments = part.ids("segments", segments)?;
    let digest = match kind {
        "pbkdf2" => {
            let (salt, digest) = (part.bytes("salt")?, part.bytes("digest")?);
            let (hash, iterations) = (part.text("hash")?, part.number("iterations")?);
            match Hash::parse(hash) {
                Some(hash) => Ok(Digest { hash, salt, iterations, digest }),
                None => Err(format!("the hash '{hash}' is not supported")),
            }
        }
        other => Err(format!("digests of type '{other}' are not supported")),
    };
    Ok(Digest2 { keyslots, segments, digest })
}

/// What a program must know; in an object by when it must, or in an array.
fn requirements(config: &Part<'_>) -> Result<Vec<String>, LuksError> {
    let names = match config.map.get("requirements") {
        None => Vec::new(),
        Some(Value::Array(_)) => config.texts("requirements")?,
        Some(_) => {
            let part = config.part("requirements")?;
            if part.map.contains_key("mandatory") { part.texts("mandatory")? } else { Vec::new() }
        }
    };
    Ok(names.into_iter().map(str::to_owned).collect())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The metadata of a volume with one keyslot, whose headers have 16 KiB.
    pub(in super::super) fn whole() -> Value {
        json!({
            "keyslots": {"0": {
                "type": "luks2", "key_size": 64,
                "af": {"type": "luks1", "stripes": 4000, "hash": "sha256"},
                "area": {"type": "raw", "offset": "32768", "size": "258048", "encryption": "aes-xts-plain64", "key_size": 64},
                "kdf": {"type": "argon2id", "time": 4, "memory": 1024, "cpus": 1, "salt": "AAECAwQFBgc="},
            }},
            "tokens": {},
            "segments": {"0": {
                "type": "crypt", "offset": "16777216", "size": "dynamic", "iv_tweak": "0", "encryption": "aes-xts-plain64",
                "sector_size": 512,
            }},
            "digests": {"0": {
                "type": "pbkdf2", "keyslots": ["0"], "segments": ["0"], "hash": "sha256", "iterations": 1000,
                "salt": "AAECAwQFBgc=", "digest": "AAECAwQFBgc=",
            }},
            "config": {"json_size": "12288", "keyslots_size": "16744448"},
        })
    }

    fn parse(value: &Value) -> Result<Metadata, LuksError> {
        Metadata::parse(value.to_string().as_bytes(), 16384)
    }

    #[test]
    fn what_is_parsed_is_written_again() {
        let metadata = parse(&whole()).expect("whole");
        assert_eq!(Metadata::parse(&metadata.encode(), 16384), Ok(metadata.clone()));
        let (_, slot) = &metadata.keyslots[0];
        let keyslot = slot.keyslot.clone().expect("usable");
        let at = metadata.free_area(16384, 256_000).expect("room");
        assert_eq!(at, 32768 + 258_048);
        let more = Keyslot { area: at, ..keyslot };
        let two = metadata.with_keyslot(16384, 7, (&more, 64, 258_048), 0).expect("goes with the other");
        assert_eq!(
            two.keyslots[1],
            (7, Slot2 { area: (at, 258_048), keyslot: Ok(more.clone()), ..slot.clone() })
        );
        assert_eq!(two.digests[0].1.keyslots, [0, 7]);
        assert_eq!(two.without_keyslot(16384, 7), Ok(metadata.clone()));
        let overlapping = metadata.with_keyslot(16384, 7, (&Keyslot { area: 36864, ..more }, 64, 258_048), 0);
        assert!(matches!(overlapping, Err(LuksError::Json { .. })));
    }

    #[test]
    fn what_is_wrong_is_told_by_its_place() {
        let check = |pointer: &str, to: Value, place: &str| {
            let mut value = whole();
            match value.pointer_mut(pointer) {
                Some(there) => *there = to,
                None => panic!("no {pointer}"),
            }
            match parse(&value) {
                Err(LuksError::Json { place: found, .. }) => assert_eq!(found, place),
                other => panic!("{pointer}: {other:?}"),
            }
        };
        check("/keyslots", json!([]), "keyslots");
        check("/keyslots/0/af/stripes", json!(1), "keyslots.0.af.stripes");
        check("/keyslots/0/area/offset", json!("0"), "keyslots.0.area.offset");
        check("/keyslots/0/area/size", json!("18446744073709551615"), "keyslots.0.area.size");
        check("/keyslots/0/key_size", json!(65), "keyslots.0.key_size");
        check("/keyslots/0/area/key_size", json!(4_294_967_295u32), "keyslots.0.area.key_size");
        check("/keyslots/0/area/key_size", json!(0), "keyslots.0.area.key_size");
        check("/keyslots/0/kdf/salt", json!("!"), "keyslots.0.kdf.salt");
        check("/segments/0/size", json!(4096), "segments.0.size");
        check("/segments/0/size", json!("-512"), "segments.0.size");
        check("/segments/0/size", json!("511"), "segments.0.size");
        check("/segments/0/sector_size", json!(513), "segments.0.sector_size");
        check("/segments/0/offset", json!("32768"), "segments.0.offset");
        check("/digests/0/keyslots", json!([]), "keyslots.0");
        check("/digests/0/keyslots", json!(["0", "1"]), "digests.0.keyslots");
        check("/config/json_size", json!("16384"), "config.json_size");
        check("/config/keyslots_size", json!("4095"), "config.keyslots_size");
        check("/config/keyslots_size", json!("9223372036854771712"), "config.keyslots_size");
        check("/tokens", json!(42), "tokens");
        check("/tokens", json!({"0": {"type": "x", "keyslots": ["3"]}}), "tokens.0.keyslots");
        check("/tokens", json!({"00": {"type": "x", "keyslots": []}}), "tokens.00");
        let deep = "[".repeat(100_000);
        assert!(Metadata::parse(deep.as_bytes(), 16384).is_err());
    }
}
