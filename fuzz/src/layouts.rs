//! Structures on disk: what is parsed survives encoding, and what is wrong is an error.

use arbitrary::Unstructured;
use drystone_conformance::explore::{TOP, qcow2};
use drystone_conformance::scenario::Draw;
use drystone_conformance::trace::tell;
use drystone_core::format::luks::layout2::{BINARY_LEN, Copy, Header2, checked_json};
use drystone_core::format::luks::metadata::Metadata;
use drystone_core::format::qcow2::CreateOptions;
use drystone_core::format::qcow2::layout::{
    ClusterBits, EntryRules, ExtendedL2Entry, Header, L1Entry, L2Entry, RefcountTableEntry, RefcountWidth,
    Snapshot,
};
use fastrand::Rng;

/// `data` as the first bytes of an image.
///
/// # Panics
/// When what was parsed does not survive encoding.
pub fn header(data: &[u8]) {
    let parsed = Header::parse(data);
    tell(|| format!("{parsed:?}"));
    let Ok(header) = parsed else { return };
    // Names and extensions may fill a whole cluster, and then not fit in canonical order.
    let Ok(bytes) = header.encode() else { return };
    assert_eq!(Header::parse(&bytes), Ok(header), "a header does not survive encoding");
}

/// Numbers of `data` as table entries of any geometry.
///
/// # Panics
/// When what was parsed does not survive encoding.
pub fn entries(data: &[u8]) {
    let mut draw = Unstructured::new(data);
    let cluster_bits = ClusterBits::new(9 + draw.below(13) as u32).expect("9 to 21");
    let mut rules = EntryRules { cluster_bits, data_file: draw.one_in(2), extended: false, version: 3 };
    rules.version -= u32::from(draw.one_in(4));
    let extended = EntryRules { extended: true, version: 3, ..rules };
    for _ in 0..16 {
        let (raw, bitmap) = (number(&mut draw, cluster_bits), number(&mut draw, cluster_bits));
        let l1 = L1Entry::parse(raw, cluster_bits);
        let l2 = L2Entry::parse(raw, &rules);
        let with_bitmap = ExtendedL2Entry::parse(raw, bitmap, &extended);
        let block = RefcountTableEntry::parse(raw, 0, cluster_bits);
        tell(|| format!("{raw:#x} {bitmap:#x}: {l1:?} {l2:?} {with_bitmap:?} {block:?}"));
        if let Ok(entry) = l1 {
            assert_eq!(L1Entry::parse(entry.encode(), cluster_bits), Ok(entry), "L1 entry {raw:#x}");
        }
        if let Ok(entry) = l2 {
            assert_eq!(L2Entry::parse(entry.encode(&rules), &rules), Ok(entry), "L2 entry {raw:#x}");
        }
        if let Ok(entry) = with_bitmap {
            let (raw, bitmap) = entry.encode(&extended);
            assert_eq!(
                ExtendedL2Entry::parse(raw, bitmap, &extended),
                Ok(entry),
                "L2 entry {raw:#x} {bitmap:#x}"
            );
            let mut at = 0;
            while at < 32 {
                let (_, count) = entry.run_at(at);
                assert!(count > 0 && at + count <= 32, "a run of {count} subclusters at {at}");
                at += count;
            }
        }
        if let Ok(entry) = block {
            assert_eq!(
                RefcountTableEntry::parse(entry.encode(), 0, cluster_bits),
                Ok(entry),
                "block {raw:#x}"
            );
        }
        refcounts(&mut draw);
    }
}

/// A refcount that is set is what it was set to, and its neighbours stay.
fn refcounts(draw: &mut dyn Draw) {
    const LEN: usize = 64;
    let width = RefcountWidth::new(draw.below(7) as u32).expect("at most 6");
    let per_block = LEN * 8 / width.bits() as usize;
    let mut block = [0; LEN];
    block.fill_with(|| draw.below(256) as u8);
    let before: Vec<u64> = (0..per_block).map(|index| width.get(&block, index)).collect();
    let (index, count) = (draw.below(per_block as u64) as usize, draw.below(u64::MAX) & width.max());
    width.set(&mut block, index, count);
    for (other, was) in before.iter().enumerate() {
        let expected = if other == index { count } else { *was };
        assert_eq!(width.get(&block, other), expected, "refcount {other} of {} bits", width.bits());
    }
}

/// A number with the bits that entries have, more often than not.
fn number(draw: &mut dyn Draw, cluster_bits: ClusterBits) -> u64 {
    let number = draw.below(u64::MAX);
    match draw.below(4) {
        0 => number,
        1 => number & !(cluster_bits.size() - 1),
        2 => number & !(cluster_bits.size() - 1) & 0x80ff_ffff_ffff_ffff,
        _ => number & !(cluster_bits.size() - 1) & 0xc0ff_ffff_ffff_fe01 | number & 1,
    }
}

/// `data` as an entry of a snapshot table, and what follows.
///
/// # Panics
/// When an entry is longer than the bytes that it was read from, or reads otherwise without what follows.
pub fn snapshot(data: &[u8]) {
    let parsed = Snapshot::parse(data);
    tell(|| format!("{parsed:?}"));
    let Ok(entry) = parsed else { return };
    let len = usize::try_from(entry.entry_len).expect("no longer than its bytes");
    // The padding of the last entry may be missing.
    assert!(len <= data.len().next_multiple_of(8) && len >= 40, "an entry of {len} bytes in {}", data.len());
    let alone = Snapshot::parse(&data[..len.min(data.len())]);
    assert_eq!(alone, Ok(entry), "what follows an entry changes it");
}

/// `data` as a LUKS header.
///
/// # Panics
/// When the parser does.
pub fn luks(data: &[u8]) {
    let parsed = drystone_core::format::luks::layout::Header::parse(data);
    tell(|| format!("{parsed:?}"));
    match parsed {
        Err(error) => assert!(!error.to_string().is_empty(), "an error has words"),
        Ok(header) => {
            let _ = header.check();
            let again = drystone_core::format::luks::layout::Header::parse(&header.encode());
            assert_eq!(again, Ok(header), "a header is what its bytes say");
        }
    }
}

/// The beginning of an image with some bytes changed, or other bytes.
pub(crate) fn scrambled_image(rng: &mut Rng) -> Vec<u8> {
    let backing = rng.bool().then(|| ("base".to_owned(), rng.bool().then(|| "raw".to_owned())));
    let version = if rng.u8(..4) == 0 { 2 } else { 3 };
    let options =
        CreateOptions { cluster_size: 512 << rng.u32(..4), version, backing, ..CreateOptions::new(64 << 10) };
    let mut bytes = qcow2(&options).export(TOP);
    scramble(&mut bytes, 112, rng);
    bytes
}

pub(crate) fn snapshot_entry(rng: &mut Rng) -> Vec<u8> {
    let (id, name) = ("1", "a name");
    let extra = [0, 8, 16, 24, 40][rng.usize(..5)];
    let mut bytes = vec![0; 40];
    bytes[..8].copy_from_slice(&(1_u64 << 16).to_be_bytes());
    bytes[8..12].copy_from_slice(&1_u32.to_be_bytes());
    bytes[12..14].copy_from_slice(&(id.len() as u16).to_be_bytes());
    bytes[14..16].copy_from_slice(&(name.len() as u16).to_be_bytes());
    bytes[36..40].copy_from_slice(&(extra as u32).to_be_bytes());
    bytes.extend(std::iter::repeat_with(|| rng.u8(..)).take(extra));
    bytes.extend(id.bytes().chain(name.bytes()));
    bytes.resize(bytes.len().next_multiple_of(8) + rng.usize(..64), 0);
    scramble(&mut bytes, 40, rng);
    bytes
}

pub(crate) fn luks_header(rng: &mut Rng) -> Vec<u8> {
    let mut bytes = vec![0; 592];
    bytes[..6].copy_from_slice(b"LUKS\xba\xbe");
    bytes[7] = 1;
    bytes[8..11].copy_from_slice(b"aes");
    bytes[40..51].copy_from_slice(b"xts-plain64");
    bytes[72..78].copy_from_slice(b"sha256");
    bytes[107] = 8;
    bytes[111] = 64;
    for slot in 0..8 {
        bytes[208 + slot * 48..][..4].copy_from_slice(&0xdead_u32.to_be_bytes());
    }
    scramble(&mut bytes, 592, rng);
    bytes
}

/// `data` as the JSON metadata of a LUKS2 header, and as the header.
///
/// # Panics
/// When what was parsed does not survive encoding.
pub fn luks2(data: &[u8]) {
    const SIZE: u64 = 16 << 10;
    let parsed = Metadata::parse(data, SIZE);
    tell(|| format!("{parsed:?}"));
    match parsed {
        Err(error) => assert!(error.to_string().len() < 1000, "an error is a line or two"),
        Ok(metadata) => assert_eq!(Metadata::parse(&metadata.encode(), SIZE), Ok(metadata)),
    }
    for copy in [Copy::Primary, Copy::Secondary] {
        let _ = Header2::parse(data, copy, copy.place(SIZE));
    }
    if data.len() >= BINARY_LEN {
        let _ = checked_json(data, 0);
    }
}

/// The metadata of a volume with two keyslots, with some bytes changed.
pub(crate) fn luks2_metadata(rng: &mut Rng) -> Vec<u8> {
    let slot = |number: u64, kdf: &str| {
        format!(
            r#""{number}":{{"type":"luks2","key_size":64,"af":{{"type":"luks1","stripes":4000,"hash":"sha256"}},
            "area":{{"type":"raw","offset":"{}","size":"258048","encryption":"aes-xts-plain64","key_size":64}},
            "kdf":{{{kdf},"salt":"AAECAwQFBgc="}}}}"#,
            32768 + number * 258_048
        )
    };
    let first = slot(0, r#""type":"argon2id","time":4,"memory":1024,"cpus":1"#);
    let second = slot(1, r#""type":"pbkdf2","hash":"sha512","iterations":1000"#);
    let text = format!(
        r#"{{"keyslots":{{{first},{second}}},"tokens":{{"0":{{"type":"x","keyslots":["1"]}}}},
        "segments":{{"0":{{"type":"crypt","offset":"16777216","size":"dynamic","iv_tweak":"0",
        "encryption":"aes-xts-plain64","sector_size":4096}}}},
        "digests":{{"0":{{"type":"pbkdf2","keyslots":["0","1"],"segments":["0"],"hash":"sha256","iterations":1000,
        "salt":"AAECAwQFBgc=","digest":"AAECAwQFBgc="}}}},
        "config":{{"json_size":"12288","keyslots_size":"16744448","requirements":{{"mandatory":[]}}}}}}"#
    );
    let mut bytes = text.into_bytes();
    for _ in 0..rng.usize(..4) {
        let at = rng.usize(..bytes.len());
        bytes[at] = [b'0', b'9', b'-', b'"', b'}', b'[', rng.u8(..)][rng.usize(..7)];
    }
    bytes
}

/// Changes a few bytes, most of them among the first, and sometimes cuts the end off.
fn scramble(bytes: &mut Vec<u8>, first: usize, rng: &mut Rng) {
    for _ in 0..rng.usize(..8) {
        let end = if rng.u8(..4) == 0 { bytes.len() } else { first.min(bytes.len()) };
        bytes[rng.usize(..end)] = [0, 1, 0x7f, 0xff, rng.u8(..)][rng.usize(..5)];
    }
    if rng.u8(..6) == 0 {
        bytes.truncate(rng.usize(..bytes.len()));
    }
}
