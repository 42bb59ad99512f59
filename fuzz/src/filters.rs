//! What filters read: the config file of a blkdebug node, and the log of a blklogwrites node.

use drystone_conformance::trace::tell;
use drystone_core::filter::log_writes::{Entry, HEAD_LEN, Superblock};
use drystone_core::filter::{Inject, IoType, Rules, SetState};
use fastrand::Rng;

/// Names of the kinds of requests.
const IO_TYPES: [&str; 6] = ["read", "write", "write-zeroes", "discard", "flush", "block-status"];

/// `data` as a config file of blkdebug.
///
/// # Panics
/// When the rules of one do not survive being written.
pub fn blkdebug(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let parsed = Rules::parse(&text);
    tell(|| format!("{parsed:?}"));
    match parsed {
        Err(error) => assert!(!error.to_string().is_empty(), "an error has words"),
        Ok(rules) => {
            let written: String = rules
                .injects
                .iter()
                .map(inject_section)
                .chain(rules.states.iter().map(state_section))
                .collect();
            let again = Rules::parse(&written);
            assert!(
                again.as_ref().is_ok_and(|again| *again == rules),
                "{rules:?} became {again:?}:\n{written}"
            );
        }
    }
}

fn inject_section(inject: &Inject) -> String {
    let Inject { event, state, io_type, errno, at, once, immediately } = inject;
    let switch = |on: bool| if on { "on" } else { "off" };
    let mut text = format!(
        "[inject-error]\nevent = \"{}\"\nstate = \"{}\"\nerrno = \"{}\"\nonce = \"{}\"\nimmediately = \"{}\"\n",
        event.name(),
        *state as i64,
        errno.0,
        switch(*once),
        switch(*immediately)
    );
    if let Some(io_type) = io_type {
        let name = IO_TYPES.iter().find(|name| IoType::parse(name) == Some(*io_type));
        text += &format!("iotype = \"{}\"\n", name.expect("all have a name"));
    }
    if let Some(at) = at {
        // Beyond all offsets, every sector is the last one.
        let sector = if *at == u64::MAX { i64::MAX as u64 } else { at / 512 };
        text += &format!("sector = \"{sector}\"\n");
    }
    text
}

fn state_section(rule: &SetState) -> String {
    let SetState { event, state, new_state } = rule;
    format!(
        "[set-state]\nevent = \"{}\"\nstate = \"{}\"\nnew_state = \"{}\"\n",
        event.name(),
        *state as i64,
        *new_state as i64
    )
}

/// `data` as the superblock of a log of writes, and as its entries.
///
/// # Panics
/// When what was parsed does not survive encoding.
pub fn log_writes(data: &[u8]) {
    let (heads, _) = data.as_chunks::<HEAD_LEN>();
    let Some((first, entries)) = heads.split_first() else { return };
    let superblock = Superblock::parse(first);
    tell(|| format!("{superblock:?}"));
    if let Ok(superblock) = superblock {
        let again = Superblock::parse(&superblock.encode());
        assert!(again.as_ref().is_ok_and(|again| *again == superblock), "{superblock:?} became {again:?}");
    }
    for bytes in entries {
        let entry = Entry::parse(bytes);
        tell(|| format!("{entry:?}, {} sectors of data", entry.data_sectors()));
        assert_eq!(Entry::parse(&entry.encode()), entry);
        assert!(entry.data_sectors() == 0 || entry.data_sectors() == entry.sectors);
    }
}

/// Lines of a config file, most of them as they should be.
pub(crate) fn config_text(rng: &mut Rng) -> Vec<u8> {
    const SECTIONS: [&str; 5] = ["[inject-error]", "[set-state]", "[inject-error \"x\"]", "[other]", "["];
    const KEYS: [&str; 9] =
        ["event", "state", "iotype", "errno", "sector", "once", "immediately", "new_state", "foo"];
    const VALUES: [&str; 16] = [
        "l2_load",
        "none",
        "write_aio",
        "read",
        "flush",
        "on",
        "off",
        "5",
        "-1",
        "0",
        "9223372036854775807",
        "99999999999999999999",
        "yes",
        "",
        "discard",
        "maybe",
    ];
    let mut text = String::new();
    for _ in 0..1 + rng.usize(..4) {
        text += SECTIONS[if rng.u8(..8) == 0 { rng.usize(..5) } else { rng.usize(..2) }];
        text += "\nevent = \"l2_load\"\n";
        for _ in 0..rng.usize(..5) {
            let (key, value) = (KEYS[rng.usize(..KEYS.len())], VALUES[rng.usize(..VALUES.len())]);
            let sound = match key {
                "event" => ["l2_load", "write_aio"][rng.usize(..2)],
                "iotype" => IO_TYPES[rng.usize(..IO_TYPES.len())],
                "once" | "immediately" => ["on", "off"][rng.usize(..2)],
                _ => ["5", "0", "-1"][rng.usize(..3)],
            };
            text += &format!("{key} = \"{}\"\n", if rng.u8(..4) == 0 { value } else { sound });
        }
    }
    let mut bytes = text.into_bytes();
    if rng.u8(..3) == 0 {
        let at = rng.usize(..bytes.len());
        bytes[at] = rng.u8(..);
    }
    bytes
}

/// A log with a few of its bytes changed.
pub(crate) fn log(rng: &mut Rng) -> Vec<u8> {
    let superblock = Superblock { entries: rng.u64(..4), sector_size: 512 << rng.u32(..14) };
    let mut bytes = superblock.encode().to_vec();
    for _ in 0..rng.usize(..4) {
        let entry = Entry { sector: rng.u64(..), sectors: rng.u64(..64), flags: rng.u64(..16) };
        bytes.extend(entry.encode());
    }
    for _ in 0..rng.usize(..3) {
        let at = rng.usize(..bytes.len());
        bytes[at] = rng.u8(..);
    }
    bytes
}
