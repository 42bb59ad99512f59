//! The LUKS header of an encrypted image, as far as it can be read without a key.
//! Source: \[qcow2\] "Full disk encryption header pointer", and the LUKS1 On-Disk Format Specification 1.2.3, "Phdr".

use nom::Parser;
use nom::bytes::complete::{tag, take};
use nom::number::complete::{be_u16, be_u32};

use super::super::Qcow2Error;

/// Bytes that [`LuksHeader::parse`] reads.
pub const LUKS_HEADER_LEN: usize = 592;

/// Stripes that the key of a slot is split into.
const STRIPES: u64 = 4000;

/// Slots, and the header before the first, begin at multiples of this.
const SLOT_ALIGN: u64 = 4096;

/// Bytes before the payload of a volume whose cipher has keys of `key_len` bytes: the header and all slots, as QEMU and
/// cryptsetup lay them out.
pub fn luks_header_len(key_len: u64) -> u64 {
    SLOT_ALIGN + SLOTS as u64 * (key_len * STRIPES).next_multiple_of(SLOT_ALIGN)
}

const MAGIC: &[u8] = b"LUKS\xba\xbe";
const SECTOR: u64 = 512;
const SLOTS: usize = 8;
const SLOT_ACTIVE: u32 = 0x00ac_71f3;
const SLOT_INACTIVE: u32 = 0x0000_dead;

/// Phdr of LUKS version 1, all numbers big-endian.
///
/// | bytes    | field                | unit, limits                                    |
/// |----------|----------------------|-------------------------------------------------|
/// | 0..6     | magic                | `LUKS\xba\xbe`                                  |
/// | 6..8     | version              | 1                                               |
/// | 8..40    | cipher-name          | text, zeros behind it                           |
/// | 40..72   | cipher-mode          | text: mode, `-`, IV generator, `:` and its hash |
/// | 72..104  | hash-spec            | text                                            |
/// | 104..108 | payload-offset       | sectors of 512 bytes                            |
/// | 108..112 | key-bytes            | bytes                                           |
/// | 112..132 | mk-digest            |                                                 |
/// | 132..164 | mk-digest-salt       |                                                 |
/// | 164..168 | mk-digest-iterations |                                                 |
/// | 168..208 | uuid                 | text                                            |
/// | 208..592 | key slots            | 8 of 48 bytes                                   |
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LuksHeader {
    /// As QEMU names it, with the bits of the key: `aes-256`.
    pub cipher: String,
    /// `xts`, `cbc`, …
    pub mode: String,
    /// How initialisation vectors are made: `plain64`, `essiv`, …
    pub iv: String,
    /// The hash that `essiv` uses.
    pub iv_hash: Option<String>,
    /// The hash of keys.
    pub hash: String,
    /// Where the encrypted data begins, in bytes.
    pub payload_offset: u64,
    /// Rounds of the master key's digest.
    pub key_iterations: u32,
    /// The volume's name.
    pub uuid: String,
    /// The key slots.
    pub slots: Vec<LuksSlot>,
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
pub struct LuksSlot {
    /// Whether it holds a key.
    pub active: bool,
    /// Rounds of the passphrase's derivation.
    pub iterations: u32,
    /// Where its key material is, in bytes.
    pub key_offset: u64,
    /// Anti-forensic stripes.
    pub stripes: u32,
}

type Parsed<'a, T> = nom::IResult<&'a [u8], T, nom::error::Error<&'a [u8]>>;

struct Raw {
    version: u16,
    cipher_name: String,
    cipher_mode: String,
    hash: String,
    payload_sector: u32,
    key_len: u32,
    key_iterations: u32,
    uuid: String,
}

impl LuksHeader {
    /// Reads the header from its first bytes.
    ///
    /// # Errors
    /// [`Qcow2Error::Luks`] with the field that does not fit.
    pub fn parse(bytes: &[u8]) -> Result<Self, Qcow2Error> {
        let (rest, raw) =
            raw(bytes).map_err(|_| Qcow2Error::Luks { problem: "Volume is not in LUKS format".into() })?;
        if raw.version != 1 {
            let problem = format!("LUKS version {} is not supported", raw.version);
            return Err(Qcow2Error::Luks { problem });
        }
        let fault = |problem: &str| Qcow2Error::Luks { problem: problem.into() };
        let Some((mode, iv)) = raw.cipher_mode.split_once('-') else {
            return Err(Qcow2Error::Luks {
                problem: format!("Unexpected cipher mode string format '{}'", raw.cipher_mode),
            });
        };
        let (iv, iv_hash) = match iv.split_once(':') {
            Some((iv, hash)) => (iv, Some(hash.to_owned())),
            None => (iv, None),
        };
        // XTS takes two keys of the cipher.
        let key_bits = u64::from(raw.key_len) * 8 / if mode == "xts" { 2 } else { 1 };
        let mut slots = Vec::with_capacity(SLOTS);
        let mut rest = rest;
        for _ in 0..SLOTS {
            let (after, slot) = slot(rest).map_err(|_| fault("the header ends within its key slots"))?;
            slots.push(slot.ok_or_else(|| fault("a key slot is neither active nor inactive"))?);
            rest = after;
        }
        Ok(Self {
            cipher: format!("{}-{key_bits}", raw.cipher_name),
            mode: mode.to_owned(),
            iv: iv.to_owned(),
            iv_hash,
            hash: raw.hash,
            payload_offset: u64::from(raw.payload_sector) * SECTOR,
            key_iterations: raw.key_iterations,
            uuid: raw.uuid,
            slots,
        })
    }
}

fn raw(bytes: &[u8]) -> Parsed<'_, Raw> {
    let (rest, (_, version)) = (tag(MAGIC), be_u16).parse(bytes)?;
    let (rest, (cipher_name, cipher_mode, hash)) = (text::<32>, text::<32>, text::<32>).parse(rest)?;
    let (rest, (payload_sector, key_len)) = (be_u32, be_u32).parse(rest)?;
    let (rest, _digest_and_salt) = take(20_usize + 32).parse(rest)?;
    let (rest, (key_iterations, uuid)) = (be_u32, text::<40>).parse(rest)?;
    Ok((rest, Raw { version, cipher_name, cipher_mode, hash, payload_sector, key_len, key_iterations, uuid }))
}

/// A text with zeros behind it.
fn text<const LEN: usize>(bytes: &[u8]) -> Parsed<'_, String> {
    let (rest, field) = take(LEN).parse(bytes)?;
    let len = field.iter().position(|byte| *byte == 0).unwrap_or(LEN);
    Ok((rest, String::from_utf8_lossy(&field[..len]).into_owned()))
}

/// `None` inside: a state that there is not.
fn slot(bytes: &[u8]) -> Parsed<'_, Option<LuksSlot>> {
    let (rest, (active, iterations, _salt)) = (be_u32, be_u32, take(32_usize)).parse(bytes)?;
    let (rest, (sector, stripes)) = (be_u32, be_u32).parse(rest)?;
    let slot = LuksSlot {
        active: active == SLOT_ACTIVE,
        iterations,
        key_offset: u64::from(sector) * SECTOR,
        stripes,
    };
    Ok((rest, matches!(active, SLOT_ACTIVE | SLOT_INACTIVE).then_some(slot)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_header_is_refused() {
        let mut bytes = vec![0; LUKS_HEADER_LEN];
        assert!(LuksHeader::parse(&bytes).is_err());
        bytes[..6].copy_from_slice(MAGIC);
        bytes[7] = 2;
        assert!(LuksHeader::parse(&bytes).is_err());
        bytes[7] = 1;
        bytes[40..44].copy_from_slice(b"xtsp");
        assert!(LuksHeader::parse(&bytes).is_err());
        bytes[40..44].copy_from_slice(b"xts-");
        assert!(LuksHeader::parse(&bytes).is_err(), "slots without a state");
        for cut in 0..LUKS_HEADER_LEN {
            assert!(LuksHeader::parse(&bytes[..cut]).is_err());
        }
    }
}
