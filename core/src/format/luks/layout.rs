//! The header of LUKS1. Source: \[LUKS1\], the LUKS On-Disk Format Specification 1.2.3, "Phdr".

use nom::Parser;
use nom::bytes::complete::{tag, take};
use nom::number::complete::{be_u16, be_u32};

use super::LuksError;
use crate::crypto::CipherName;

/// Bytes of the header.
pub const HEADER_LEN: usize = 592;

/// Stripes that the key of a slot is split into.
pub const STRIPES: u32 = 4000;

/// Key slots of a header.
pub const SLOTS: usize = 8;

/// Bytes of the units that headers count offsets in.
pub const SECTOR: u64 = 512;

/// Bytes of a volume's key, of the ciphers that there are, at the most.
pub const KEY_LEN_MAX: u32 = 64;

/// The bytes that both versions begin with.
pub const MAGIC: &[u8] = b"LUKS\xba\xbe";

/// Slots, and the header before the first, begin at multiples of this.
const SLOT_ALIGN: u64 = 4096;

const SLOTS_AT: usize = 208;
const SLOT_LEN: usize = 48;
const SLOT_ACTIVE: u32 = 0x00ac_71f3;
const SLOT_INACTIVE: u32 = 0x0000_dead;

/// Bytes before the payload of a volume whose keys have `key_len` bytes: the header and all slots, as QEMU and
/// cryptsetup lay them out.
pub fn header_len(key_len: u64) -> u64 {
    SLOT_ALIGN + SLOTS as u64 * slot_space(key_len)
}

/// Bytes from one slot's material to the next one's.
pub(super) fn slot_space(key_len: u64) -> u64 {
    (key_len * u64::from(STRIPES)).next_multiple_of(SLOT_ALIGN)
}

/// Where the material of a slot of a new volume begins.
pub(super) fn slot_place(slot: usize, key_len: u64) -> u64 {
    SLOT_ALIGN + slot as u64 * slot_space(key_len)
}

/// Phdr, all numbers big-endian.
///
/// | bytes    | field                | unit, limits                                    |
/// |----------|----------------------|-------------------------------------------------|
/// | 0..6     | magic                | `LUKS\xba\xbe`                                  |
/// | 6..8     | version              | 1                                               |
/// | 8..40    | cipher-name          | text, a zero behind it                          |
/// | 40..72   | cipher-mode          | text: mode, `-`, IV generator, `:` and its hash |
/// | 72..104  | hash-spec            | text                                            |
/// | 104..108 | payload-offset       | sectors of 512 bytes; 0 = detached              |
/// | 108..112 | key-bytes            | bytes                                           |
/// | 112..132 | mk-digest            |                                                 |
/// | 132..164 | mk-digest-salt       |                                                 |
/// | 164..168 | mk-digest-iterations |                                                 |
/// | 168..208 | uuid                 | text                                            |
/// | 208..592 | key slots            | 8 of 48 bytes                                   |
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The cipher of the payload and of the slots' material.
    pub cipher: CipherName,
    /// The hash of keys and of the anti-forensic splitter.
    pub hash: String,
    /// Where the encrypted data begins, in sectors.
    pub payload_sector: u32,
    /// Bytes of the volume's key.
    pub key_len: u32,
    /// Digest of the volume's key.
    pub digest: [u8; 20],
    /// Salt of the digest.
    pub digest_salt: [u8; 32],
    /// Rounds of the digest.
    pub digest_iterations: u32,
    /// The volume's name.
    pub uuid: String,
    /// The key slots.
    pub slots: [Slot; SLOTS],
}

/// A key slot, all numbers big-endian.
///
/// | bytes  | field               | unit, limits                      |
/// |--------|---------------------|-----------------------------------|
/// | 0..4   | active              | `0x00ac71f3`, or `0x0000dead`     |
/// | 4..8   | iterations          |                                   |
/// | 8..40  | salt                |                                   |
/// | 40..44 | key-material-offset | sectors of 512 bytes              |
/// | 44..48 | stripes             | anti-forensic stripes             |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Whether it holds a key.
    pub active: bool,
    /// Rounds of the passphrase's derivation.
    pub iterations: u32,
    /// Salt of the derivation.
    pub salt: [u8; 32],
    /// Where its key material is, in sectors.
    pub sector: u32,
    /// Anti-forensic stripes.
    pub stripes: u32,
}

type Parsed<'a, T> = nom::IResult<&'a [u8], T, nom::error::Error<&'a [u8]>>;

struct Raw<'a> {
    texts: [&'a [u8]; 4],
    payload_sector: u32,
    key_len: u32,
    digest: [u8; 20],
    digest_salt: [u8; 32],
    digest_iterations: u32,
    slots: &'a [u8],
}

impl Header {
    /// Reads the header from its first bytes.
    ///
    /// # Errors
    /// The field that does not fit.
    pub fn parse(bytes: &[u8]) -> Result<Self, LuksError> {
        let version = version(bytes)?;
        if version != 1 {
            return Err(LuksError::Version { found: version });
        }
        let (_, raw) = raw(bytes)
            .map_err(|_| LuksError::TooShort { needed: HEADER_LEN as u64, len: bytes.len() as u64 })?;
        let [cipher, mode, hash, uuid] = raw.texts;
        let cipher = text("cipher name", 8, cipher)?;
        let mode = text("cipher mode", 40, mode)?;
        let hash = text("hash spec", 72, hash)?;
        // Nothing rests on it: what is no text is shown as far as it is.
        let uuid =
            uuid.iter().take_while(|byte| byte.is_ascii_graphic()).map(|byte| char::from(*byte)).collect();
        let name = CipherName::parse(&cipher, &mode).ok_or(LuksError::CipherMode { found: mode })?;
        let mut slots = [Slot { active: false, iterations: 0, salt: [0; 32], sector: 0, stripes: 0 }; SLOTS];
        for (number, bytes) in raw.slots.chunks_exact(SLOT_LEN).enumerate() {
            slots[number] = Slot::parse(number, bytes)?;
        }
        Ok(Self {
            cipher: name,
            hash,
            payload_sector: raw.payload_sector,
            key_len: raw.key_len,
            digest: raw.digest,
            digest_salt: raw.digest_salt,
            digest_iterations: raw.digest_iterations,
            uuid,
            slots,
        })
    }

    /// The bytes of the header.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, MAGIC);
        put(6, &1u16.to_be_bytes());
        put(8, self.cipher.cipher.as_bytes());
        put(40, self.cipher.mode_text().as_bytes());
        put(72, self.hash.as_bytes());
        put(104, &self.payload_sector.to_be_bytes());
        put(108, &self.key_len.to_be_bytes());
        put(112, &self.digest);
        put(132, &self.digest_salt);
        put(164, &self.digest_iterations.to_be_bytes());
        put(168, self.uuid.as_bytes());
        for (number, slot) in self.slots.iter().enumerate() {
            put(SLOTS_AT + number * SLOT_LEN, &slot.encode());
        }
        bytes
    }

    /// Checks what no field can tell alone, before any key is tried.
    ///
    /// # Errors
    /// The first thing that does not go together.
    pub fn check(&self) -> Result<(), LuksError> {
        let field = |field, at, found: u32, expected: String| {
            Err(LuksError::Field { field, at, found: u64::from(found), expected })
        };
        if self.key_len == 0 || self.key_len > KEY_LEN_MAX {
            return field("key-bytes", 108, self.key_len, format!("1 to {KEY_LEN_MAX}"));
        }
        if self.digest_iterations == 0 {
            return field("mk-digest-iterations", 164, 0, "more than 0".into());
        }
        let payload = u64::from(self.payload_sector);
        if payload != 0 && payload * SECTOR < HEADER_LEN as u64 {
            return field("payload-offset", 104, self.payload_sector, "a place behind the header".into());
        }
        for (slot, here) in self.slots.iter().enumerate() {
            if here.stripes != STRIPES {
                return Err(LuksError::Stripes { slot, found: here.stripes });
            }
            if here.active && here.iterations == 0 {
                return Err(LuksError::NoIterations { slot });
            }
            let (start, end) = self.material(slot);
            // cryptsetup 1.0 put the first one right behind the header.
            if start * SECTOR < HEADER_LEN as u64 {
                return Err(LuksError::SlotInHeader { slot, start, end });
            }
            if payload != 0 && end > payload {
                return Err(LuksError::SlotInPayload { slot, start, end, payload });
            }
            for second in slot + 1..SLOTS {
                let (other_start, other_end) = self.material(second);
                if start < other_end && other_start < end {
                    return Err(LuksError::SlotsOverlap { first: slot, second });
                }
            }
        }
        Ok(())
    }

    /// The sectors of a slot's material: the first, and the one behind the last.
    fn material(&self, slot: usize) -> (u64, u64) {
        let start = u64::from(self.slots[slot].sector);
        (start, start + (u64::from(self.key_len) * u64::from(STRIPES)).div_ceil(SECTOR))
    }
}

impl Slot {
    fn parse(slot: usize, bytes: &[u8]) -> Result<Self, LuksError> {
        let number = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let active = match number(0) {
            SLOT_ACTIVE => true,
            SLOT_INACTIVE => false,
            found => {
                return Err(LuksError::SlotState { slot, at: (SLOTS_AT + slot * SLOT_LEN) as u64, found });
            }
        };
        let salt = bytes[8..40].try_into().expect("32 bytes");
        Ok(Self { active, iterations: number(4), salt, sector: number(40), stripes: number(44) })
    }

    /// The bytes of the slot.
    pub(super) fn encode(&self) -> [u8; SLOT_LEN] {
        let mut bytes = [0; SLOT_LEN];
        bytes[..4].copy_from_slice(&state_bytes(self.active));
        bytes[4..8].copy_from_slice(&self.iterations.to_be_bytes());
        bytes[8..40].copy_from_slice(&self.salt);
        bytes[40..44].copy_from_slice(&self.sector.to_be_bytes());
        bytes[44..].copy_from_slice(&self.stripes.to_be_bytes());
        bytes
    }

    /// Where a slot is in the header.
    pub(super) const fn place(slot: usize) -> u64 {
        (SLOTS_AT + slot * SLOT_LEN) as u64
    }
}

/// The four bytes that say whether a slot holds a key; they never cross from one sector to the next.
pub(super) fn state_bytes(active: bool) -> [u8; 4] {
    if active { SLOT_ACTIVE.to_be_bytes() } else { SLOT_INACTIVE.to_be_bytes() }
}

/// The version that the first bytes of a volume tell.
///
/// # Errors
/// When they are not those of a volume.
pub fn version(bytes: &[u8]) -> Result<u16, LuksError> {
    let parsed: Parsed<'_, (&[u8], u16)> = (tag(MAGIC), be_u16).parse(bytes);
    parsed.map(|(_, (_, version))| version).map_err(|_| LuksError::NotLuks)
}

fn raw(bytes: &[u8]) -> Parsed<'_, Raw<'_>> {
    let (rest, _) = take(8usize).parse(bytes)?;
    let (rest, (cipher, mode, hash)) = (take(32usize), take(32usize), take(32usize)).parse(rest)?;
    let (rest, (payload_sector, key_len)) = (be_u32, be_u32).parse(rest)?;
    let (rest, (digest, salt, digest_iterations)) = (take(20usize), take(32usize), be_u32).parse(rest)?;
    let (rest, (uuid, slots)) = (take(40usize), take(SLOTS * SLOT_LEN)).parse(rest)?;
    let raw = Raw {
        texts: [cipher, mode, hash, uuid],
        payload_sector,
        key_len,
        digest: digest.try_into().expect("20 bytes"),
        digest_salt: salt.try_into().expect("32 bytes"),
        digest_iterations,
        slots,
    };
    Ok((rest, raw))
}

/// A text with a zero behind it.
fn text(field: &'static str, at: u64, bytes: &[u8]) -> Result<String, LuksError> {
    let end = bytes.iter().position(|byte| *byte == 0).ok_or(LuksError::Unterminated { field, at })?;
    let text = std::str::from_utf8(&bytes[..end]).map_err(|_| LuksError::NoText { field, at })?;
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A header as a new volume has it.
    fn header() -> Header {
        let slot = |number: usize| Slot {
            active: number == 0,
            iterations: 1000,
            salt: [number as u8; 32],
            sector: (slot_place(number, 64) / SECTOR) as u32,
            stripes: STRIPES,
        };
        Header {
            cipher: CipherName::parse("aes", "xts-plain64").expect("a name"),
            hash: "sha256".into(),
            payload_sector: (header_len(64) / SECTOR) as u32,
            key_len: 64,
            digest: [1; 20],
            digest_salt: [2; 32],
            digest_iterations: 1000,
            uuid: "0f0f0f0f-0000-4000-8000-000000000000".into(),
            slots: std::array::from_fn(slot),
        }
    }

    proptest! {
        #[test]
        fn a_header_is_what_its_bytes_say(
            mode in prop_oneof![Just("xts-plain64"), Just("cbc-essiv:sha256"), Just("ecb")],
            hash in "[a-z0-9]{0,31}", uuid in "[a-f0-9-]{0,39}", numbers in any::<[u32; 3]>(),
            digest in any::<[u8; 20]>(),
            slots in proptest::collection::vec((any::<bool>(), any::<[u32; 3]>(), any::<[u8; 32]>()), SLOTS),
        ) {
            let slots = std::array::from_fn(|at| {
                let (active, [iterations, sector, stripes], salt) = slots[at];
                Slot { active, iterations, salt, sector, stripes }
            });
            let [payload_sector, key_len, digest_iterations] = numbers;
            let cipher = CipherName::parse("serpent", mode).expect("a name");
            let header =
                Header { cipher, hash, payload_sector, key_len, digest, digest_iterations, uuid, slots, ..header() };
            prop_assert_eq!(Header::parse(&header.encode()), Ok(header));
        }
    }

    #[test]
    fn what_does_not_go_together_is_told_by_its_place() {
        assert_eq!(header().check(), Ok(()));
        let mut inside = header();
        inside.slots[0].sector = 1;
        assert!(matches!(inside.check(), Err(LuksError::SlotInHeader { slot: 0, start: 1, .. })));
        let mut old = header();
        old.slots[0].sector = 2;
        assert_eq!(old.check(), Ok(()), "cryptsetup 1.0 made such");
        let mut overlapping = header();
        overlapping.slots[5].sector = overlapping.slots[6].sector - 1;
        assert_eq!(overlapping.check(), Err(LuksError::SlotsOverlap { first: 5, second: 6 }));
        let mut beyond = header();
        beyond.payload_sector -= 5;
        assert!(matches!(beyond.check(), Err(LuksError::SlotInPayload { slot: 7, .. })));
        let mut stripes = header();
        stripes.slots[1].stripes = 3999;
        assert_eq!(stripes.check(), Err(LuksError::Stripes { slot: 1, found: 3999 }));
        let mut long = header();
        long.key_len = 65;
        assert!(matches!(long.check(), Err(LuksError::Field { field: "key-bytes", .. })));
    }

    #[test]
    fn what_is_no_header_is_refused() {
        let bytes = header().encode();
        for cut in 0..HEADER_LEN {
            assert!(Header::parse(&bytes[..cut]).is_err());
        }
        for (at, byte) in [(0, 0), (7, 3), (43, b'x'), (211, 0)] {
            let mut bytes = bytes;
            bytes[at] = byte;
            assert!(Header::parse(&bytes).is_err(), "byte {at}");
        }
        let mut bytes = bytes;
        bytes[8..40].fill(b'a');
        assert_eq!(Header::parse(&bytes), Err(LuksError::Unterminated { field: "cipher name", at: 8 }));
    }
}
