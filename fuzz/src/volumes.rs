//! An encrypted volume, of either version, of which header, keyslots and metadata say anything, under checksums that are right; or
//! an encrypted qcow2 image around one. Looking at it with the right passphrase, writing through it, adding and erasing keyslots
//! and closing it end in an answer, in bounded steps and memory; what opens and reads before does so afterwards. Start at
//! [`volumes`].

use std::rc::Rc;

use arbitrary::Unstructured;
use drystone_conformance::cases::WRITABLE;
use drystone_conformance::explore::{TOP, image_in};
use drystone_conformance::meter::peak_of;
use drystone_conformance::scenario::Draw;
use drystone_conformance::sim::Sim;
use drystone_conformance::sparse::Sparse;
use drystone_conformance::trace::tell;
use drystone_conformance::world::World;
use drystone_core::crypto::Argon2Kind;
use drystone_core::engine::Io;
use drystone_core::error::Result;
use drystone_core::format::luks::layout2::{BINARY_LEN, Copy, Header2};
use drystone_core::format::luks::{AmendKeyslots, CreateOptions, KdfChoice, NewVersion, Options2};
use drystone_core::format::qcow2;
use drystone_core::graph::open::open;
use drystone_core::job::{ImageSpec, amend, amend_keyslots};

use crate::used::{Usage, spec};

/// What is done with the image.
const USAGE: Usage = Usage {
    format: "luks",
    packs: false,
    // Both copies of the largest metadata, as text and as objects, and what the simulator keeps.
    memory_max: 256 << 20,
    intents_max: 50_000,
};

/// Intents that changes of keyslots may take.
const INTENTS_MAX: u64 = 50_000;

const SIZE: u64 = 64 << 10;

/// Places of 32-bit numbers in the header of LUKS1 before its slots, and in a slot. Source: the sheets of
/// [`Header`](drystone_core::format::luks::layout::Header) and
/// [`Slot`](drystone_core::format::luks::layout::Slot).
const FIELDS: [u64; 5] = [4, 104, 108, 112, 164];
const SLOTS_AT: u64 = 208;
const SLOT_LEN: u64 = 48;
const FIELDS_OF_SLOT: [u64; 5] = [0, 4, 8, 40, 44];

/// Places of texts in it, and what may stand there.
const TEXTS_AT: [u64; 3] = [8, 40, 72];
const TEXTS: [&str; 14] = [
    "aes",
    "serpent",
    "twofish",
    "cast5",
    "xts-plain64",
    "xts-plain",
    "cbc-essiv:sha256",
    "cbc-plain64",
    "ecb",
    "ctr-plain",
    "sha1",
    "sha512",
    "whirlpool",
    "nothing",
];

/// Where the volume is in an encrypted qcow2 image is looked up there: the first slot's material is 4096 bytes behind it.
const QCOW2_CLUSTER: u64 = 4096;

/// Decides what the volume says, all of it by `data`.
///
/// # Panics
/// With what is wrong.
pub fn volumes(data: &[u8]) {
    let mut draw = Unstructured::new(data);
    let kind = draw.below(3);
    let (format, image) = match kind {
        0 => ("luks", ImageSpec::Luks(options(NewVersion::V1))),
        1 => ("luks", ImageSpec::Luks(options(NewVersion::V2(drawn(&mut draw))))),
        _ => {
            let encrypt = Some(options(NewVersion::V1));
            let new = qcow2::CreateOptions::new(SIZE);
            ("qcow2", ImageSpec::Qcow2(qcow2::CreateOptions { cluster_size: QCOW2_CLUSTER, encrypt, ..new }))
        }
    };
    let mut world = image_in(World::new(), &image);
    let mut file = world.disk(TOP).expect("it was made").view().clone();
    for _ in 0..draw.below(4) {
        match kind {
            0 => damage1(&mut file, 0, &mut draw),
            1 => damage2(&mut file, &mut draw),
            _ => {
                let at = volume_in(&file);
                damage1(&mut file, at, &mut draw);
            }
        }
    }
    if draw.one_in(8) {
        let len = draw.below(file.len());
        file.set_len(len);
    }
    world.add_disk(TOP, world.default_config.clone(), file);
    let seed = draw.below(1 << 32);
    let (before, after) = Usage { format, ..USAGE }.of(world.clone(), seed);
    assert!(
        before.is_err() || after.is_ok(),
        "it opened and was read before it was written to; then: {after:?}"
    );
    let ((opened, opens), peak) = peak_of(|| change(world, format, seed));
    tell(|| format!("{opened} {opens}"));
    assert!(peak <= USAGE.memory_max, "{peak} bytes of memory to change keyslots");
    assert!(!opened || opens, "it opened before its keyslots were changed, and then no more");
}

fn options(version: NewVersion) -> CreateOptions {
    let new = CreateOptions::new(SIZE, Some("key".into()));
    CreateOptions { key_len: 32, iter_time_ms: 1, version, ..new }
}

fn drawn(draw: &mut dyn Draw) -> Options2 {
    let kinds = [None, Some(Argon2Kind::I), Some(Argon2Kind::Id)];
    let argon2 = kinds[draw.below(3) as usize];
    let iterations = Some(if argon2.is_some() { 4 } else { 1000 });
    Options2 {
        kdf: KdfChoice { argon2, memory_kib: 32, lanes: 1, iterations },
        sector_len: 512 << draw.below(4),
    }
}

/// Where the volume's header is in a qcow2 image of ours: in the cluster that begins as one.
fn volume_in(file: &Sparse) -> u64 {
    let clusters = (0..file.len()).step_by(QCOW2_CLUSTER as usize);
    clusters.into_iter().find(|at| file.bytes(*at, 4) == *b"LUKS").unwrap_or(0)
}

/// Changes a field of a LUKS1 header, or some of a slot's material.
fn damage1(file: &mut Sparse, base: u64, draw: &mut Unstructured<'_>) {
    let slot = SLOTS_AT + SLOT_LEN * draw.below(8);
    match draw.below(6) {
        0 => file.write(base + FIELDS[draw.below(5) as usize], &number(draw).to_be_bytes()),
        1 | 2 => {
            let at = base + slot + FIELDS_OF_SLOT[draw.below(5) as usize];
            file.write(at, &number(draw).to_be_bytes());
        }
        3 => {
            let mut text = TEXTS[draw.below(14) as usize].as_bytes().to_vec();
            text.resize(32, if draw.one_in(8) { b'x' } else { 0 });
            file.write(base + TEXTS_AT[draw.below(3) as usize], &text);
        }
        4 => file.write(base + draw.below(592), &[draw.below(256) as u8]),
        _ => file.write(base + 4096 + draw.below(128_000), &[draw.below(256) as u8]),
    }
}

/// Changes the text of the metadata in one copy or both, or something else of a copy.
fn damage2(file: &mut Sparse, draw: &mut Unstructured<'_>) {
    let copies = [Copy::Primary, Copy::Secondary];
    if draw.one_in(4) {
        // Whatever the checksum says.
        let at = draw.below(32 << 10);
        return file.write(at, &[draw.below(256) as u8]);
    }
    let bytes = file.bytes(0, BINARY_LEN);
    let Ok(mut header) = Header2::parse(&bytes, Copy::Primary, 0) else { return };
    let json = file.bytes(BINARY_LEN as u64, header.json_room() as usize);
    let mut text: Vec<u8> = json.into_iter().take_while(|byte| *byte != 0).collect();
    for _ in 0..1 + draw.below(3) {
        change_text(&mut text, draw);
    }
    if text.len() as u64 >= header.json_room() {
        return;
    }
    if draw.one_in(4) {
        header.seqid = [0, 1, 2, u64::MAX][draw.below(4) as usize];
    }
    let which = draw.below(3);
    for (number, copy) in (0..).zip(copies) {
        if which == 2 || which == number {
            file.write(copy.place(header.size), &header.encode(copy, &text));
        }
    }
}

/// Changes a number or a word of the metadata, or any byte of it.
fn change_text(text: &mut Vec<u8>, draw: &mut Unstructured<'_>) {
    const NUMBERS: [&str; 9] = [
        "0",
        "1",
        "511",
        "4096",
        "32768",
        "16777216",
        "4294967295",
        "9223372036854775807",
        "18446744073709551615",
    ];
    if text.is_empty() {
        return;
    }
    let from = draw.below(text.len() as u64) as usize;
    match draw.below(3) {
        0 => text[from] = [b'0', b'9', b'-', b'"', b'}', b'[', draw.below(256) as u8][draw.below(7) as usize],
        1 => {
            let Some(start) = (from..text.len()).find(|at| text[*at].is_ascii_digit()) else { return };
            let end = (start..text.len()).find(|at| !text[*at].is_ascii_digit()).unwrap_or(text.len());
            text.splice(start..end, NUMBERS[draw.below(9) as usize].bytes());
        }
        _ => {
            let word = [
                &TEXTS[..],
                &["argon2id", "pbkdf2", "aes-cbc-essiv:sha256", "linear", "dynamic", "reencrypt"],
            ];
            let word = word.concat()[draw.below(20) as usize];
            let Some(start) = (from..text.len()).find(|at| text[*at] == b'"') else { return };
            let Some(end) = (start + 1..text.len()).find(|at| text[*at] == b'"') else { return };
            text.splice(start + 1..end, word.bytes());
        }
    }
}

/// A number near a limit, or any.
fn number(draw: &mut Unstructured<'_>) -> u32 {
    const LIMITS: [u32; 12] = [0, 1, 2, 8, 16, 32, 64, 264, 4000, 0x00ac_71f3, 0x0000_dead, 1 << 28];
    match draw.below(4) {
        0 => draw.below(1 << 32) as u32,
        1 => draw.below(3000) as u32,
        _ => LIMITS[draw.below(12) as usize].wrapping_add(draw.below(3) as u32).wrapping_sub(1),
    }
}

/// Adds a keyslot and erases one, whatever comes of it; whether the passphrase opened the image before, and does afterwards.
fn change(world: World, format: &'static str, seed: u64) -> (bool, bool) {
    let mut sim = Sim::new(seed, world);
    sim.stop_after = Some(INTENTS_MAX);
    let changed = sim.run_job(async move |io| {
        let opened = match open(&io, &spec(format, WRITABLE)).await {
            Err(_) => false,
            Ok(node) => {
                let add = AmendKeyslots {
                    active: true,
                    new_secret: Some("new".into()),
                    iter_time_ms: Some(1),
                    ..AmendKeyslots::default()
                };
                let erase = AmendKeyslots { old_secret: Some("new".into()), ..AmendKeyslots::default() };
                for change in [add.clone(), add, erase] {
                    let done = match format {
                        "luks" => amend_keyslots(&io, node, &change).await,
                        _ => {
                            let to = qcow2::Amend { encrypt: Some(change), ..Default::default() };
                            amend(&io, node, &to, Rc::new(|_, _| {})).await
                        }
                    };
                    tell(|| format!("{done:?}"));
                }
                let _ = io.close(node).await;
                true
            }
        };
        (opened, opens(&io, format).await.is_ok())
    });
    assert_eq!(sim.world.open_leaves(), 0, "a leaf was left open");
    changed.unwrap_or_else(|_| panic!("changing keyslots takes more than {INTENTS_MAX} intents"))
}

async fn opens(io: &Io, format: &str) -> Result<()> {
    let node = open(io, &spec(format, Default::default())).await?;
    io.close(node).await
}
