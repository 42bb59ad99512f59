//! Operations on encrypted volumes of both versions, and on encrypted qcow2 images: writes, new ones, keyslots that come and go.

use std::rc::Rc;

use drystone_core::crypto::Argon2Kind;
use drystone_core::engine::Io;
use drystone_core::error::Result;
use drystone_core::format::luks::{
    AmendKeyslots, CreateOptions, KdfChoice, Luks, NewVersion, Options2, Volume,
};
use drystone_core::format::qcow2;
use drystone_core::graph::Preallocate;
use drystone_core::graph::open::{OpenMode, open};
use drystone_core::job::{ImageSpec, amend, amend_keyslots, create};

use super::super::{image_in, spec_of, straight};
use super::{Guest, KIB, Operation, TOP};
use crate::world::World;

const SIZE: u64 = 32 * KIB;

/// Where the material of the second slot is, of keys of 32 bytes, and how much is used of its area.
const SECOND_OF_V1: u64 = (4 << 10) + (128 << 10);
const SECOND_OF_V2: u64 = (32 << 10) + (128 << 10);
const MATERIAL: usize = 32 * 4000;

/// LUKS2 with PBKDF2.
const V2: NewVersion = NewVersion::V2(Options2 { kdf: PBKDF2, sector_len: 512 });
const PBKDF2: KdfChoice = KdfChoice { argon2: None, memory_kib: 0, lanes: 0, iterations: Some(1000) };

/// LUKS2 with Argon2id, and sectors that are larger than the disk's.
const V2_LARGE: NewVersion = NewVersion::V2(Options2 { kdf: ARGON2, sector_len: 4096 });
const ARGON2: KdfChoice =
    KdfChoice { argon2: Some(Argon2Kind::Id), memory_kib: 32, lanes: 1, iterations: Some(4) };

/// A volume whose passphrase costs as little as there is.
fn volume(version: NewVersion) -> CreateOptions {
    let new = CreateOptions::new(SIZE, Some("key".into()));
    CreateOptions { key_len: 32, iter_time_ms: 1, version, ..new }
}

fn image(version: NewVersion) -> World {
    image_in(World::new(), &ImageSpec::Luks(volume(version)))
}

fn encrypted_qcow2() -> ImageSpec {
    let encrypt = Some(volume(NewVersion::V1));
    ImageSpec::Qcow2(qcow2::CreateOptions { cluster_size: 4096, encrypt, ..qcow2::CreateOptions::new(SIZE) })
}

/// The file has two nodes above it. When the first closes, the locks are eased to what the second needs, and closing that lets go
/// of all: nothing is lost where the easing fails.
fn encrypted(name: &'static str) -> Operation {
    Operation::new(name, "qcow2", image_in(World::new(), &encrypted_qcow2())).making_do_without("lock")
}

/// All of them.
pub(super) fn operations() -> Vec<Operation> {
    let mut all = vec![
        Operation::new("writes to a LUKS volume", "luks", image(NewVersion::V1)).doing(writes),
        Operation::new("writes to a LUKS2 volume of large sectors", "luks", image(V2_LARGE))
            .unknown_to_qemu()
            .doing(writes),
        Operation::new("a shorter LUKS volume", "luks", image(NewVersion::V1)).doing(|guest| async move {
            guest.resize(SIZE - 4 * KIB, Preallocate::Off).await?;
            guest.write(0, 512).await?;
            guest.flush().await
        }),
        making("create a LUKS volume", NewVersion::V1),
        making("create a LUKS2 volume", V2).unknown_to_qemu(),
        mended("the first copy of a LUKS2 header is written anew", 0),
        mended("the second copy of a LUKS2 header is written anew", 16 << 10),
        encrypted("new clusters of an encrypted qcow2 image").doing(writes),
        Operation::making("create an encrypted qcow2 image", "qcow2", World::new(), &[0; SIZE as usize])
            .locked_by("encrypt.key-secret")
            .doing(|guest| async move { create(&guest.io(), TOP, &encrypted_qcow2()).await }),
        encrypted("a keyslot is added to an encrypted qcow2 image").doing(|guest| async move {
            let change = qcow2::Amend { encrypt: Some(add()), ..qcow2::Amend::default() };
            amend(&guest.io(), guest.node(), &change, Rc::new(|_, _| {})).await?;
            guest.promise(|world| opens(world, "qcow2", "encrypt.key-secret", "new"));
            Ok(())
        }),
    ];
    let add_names = ["a keyslot is added to a LUKS volume", "a keyslot is added to a LUKS2 volume"];
    let erase_names = ["a keyslot of a LUKS volume is erased", "a keyslot of a LUKS2 volume is erased"];
    for (version, name) in [NewVersion::V1, V2].into_iter().zip(add_names) {
        all.push(of_version(
            version,
            Operation::new(name, "luks", image(version)).holding(second_opens).doing(added),
        ));
    }
    for (version, name) in [NewVersion::V1, V2].into_iter().zip(erase_names) {
        let operation = Operation::new(name, "luks", image(version)).after(added);
        let at = if version == NewVersion::V1 { SECOND_OF_V1 } else { SECOND_OF_V2 };
        let key = operation.bytes_of(TOP)[at as usize..][..MATERIAL].to_vec();
        let erased = operation.holding(move |world| second_is_gone(world, at, &key)).doing(erased);
        all.push(of_version(version, erased));
    }
    let replace_names = [
        "a keyslot of a LUKS volume is overwritten by force",
        "a keyslot of a LUKS2 volume is overwritten by force",
    ];
    for (version, name) in [NewVersion::V1, V2].into_iter().zip(replace_names) {
        let operation = Operation::new(name, "luks", image(version)).after(added);
        let at = if version == NewVersion::V1 { SECOND_OF_V1 } else { SECOND_OF_V2 };
        let key: Rc<[u8]> = operation.bytes_of(TOP)[at as usize..][..MATERIAL].into();
        let replaced = operation.doing(move |guest| replaced(guest, at, key.clone()));
        // The only area of a slot of version 1 is written over: a crash meanwhile leaves what opens by neither.
        let replaced = if version == NewVersion::V1 { replaced } else { replaced.holding(one_of_both_opens) };
        all.push(of_version(version, replaced));
    }
    all
}

fn of_version(version: NewVersion, operation: Operation) -> Operation {
    if version == NewVersion::V1 { operation } else { operation.unknown_to_qemu() }
}

/// Parts of sectors, whole ones, and two at once that share one.
async fn writes(guest: Guest) -> Result<()> {
    guest.write(700, KIB).await?;
    guest.flush().await?;
    guest.write(4 * KIB, 1536).await?;
    guest
        .at_once(&[super::super::Do::Write(8 * KIB, 700), super::super::Do::Write(8 * KIB + 700, 100)])
        .await?;
    guest.flush().await
}

/// A volume comes into being: whatever has a header opens.
fn making(name: &'static str, version: NewVersion) -> Operation {
    let whole = Operation::new(name, "luks", image(version)).content.to_vec();
    Operation::making(name, "luks", World::new(), &whole).locked_by("key-secret").doing(
        move |guest| async move {
            guest.promise(|world| match header(world) {
                Some(_) => opens(world, "luks", "key-secret", "key"),
                None => Ok(()),
            });
            create(&guest.io(), TOP, &ImageSpec::Luks(volume(version))).await
        },
    )
}

/// A copy of a LUKS2 header is damaged; both are whole once the volume was opened to write to it.
fn mended(name: &'static str, at: u64) -> Operation {
    Operation::new(name, "luks", image(V2))
        .unknown_to_qemu()
        .patched(|world| {
            let mut file = world.disk(TOP).expect("it was made").view().clone();
            file.write(at + 4096, &[0; 512]);
            world.add_disk(TOP, world.default_config.clone(), file);
        })
        .doing(|guest| async move {
            guest.promise(|world| {
                let json = |at: u64| world.disk(TOP).map(|disk| disk.view().bytes(at + 4096, 12 << 10));
                if json(0) == json(16 << 10) { Ok(()) } else { Err("the copies of the header differ".into()) }
            });
            guest.write(0, 512).await?;
            guest.flush().await
        })
}

fn add() -> AmendKeyslots {
    let new_secret = Some("new".into());
    AmendKeyslots { active: true, new_secret, iter_time_ms: Some(1), ..AmendKeyslots::default() }
}

async fn added(guest: Guest) -> Result<()> {
    amend_keyslots(&guest.io(), guest.node(), &add()).await?;
    guest.promise(|world| opens(world, "luks", "key-secret", "new"));
    Ok(())
}

async fn erased(guest: Guest) -> Result<()> {
    // A slot that is empty already is to be, too.
    let erase = AmendKeyslots { keyslot: Some(1), force: true, ..AmendKeyslots::default() };
    amend_keyslots(&guest.io(), guest.node(), &erase).await?;
    guest.promise(|world| match second_is_active(world) {
        Some(false) => Ok(()),
        _ => Err("the slot that was erased is there again".into()),
    });
    Ok(())
}

/// The second slot gets another passphrase in place of that which it has.
async fn replaced(guest: Guest, at: u64, old: Rc<[u8]>) -> Result<()> {
    let new_secret = Some("newer".into());
    amend_keyslots(
        &guest.io(),
        guest.node(),
        &AmendKeyslots { new_secret, keyslot: Some(1), force: true, ..add() },
    )
    .await?;
    guest.promise(|world| opens(world, "luks", "key-secret", "newer"));
    guest.promise(move |world| material_is_gone(world, at, &old));
    Ok(())
}

/// The second slot opens by the passphrase that it had, or by that which it gets.
fn one_of_both_opens(world: &World) -> std::result::Result<(), String> {
    let by = |id| opens(world, "luks", "key-secret", id);
    by("new").or_else(|old| by("newer").map_err(|new| format!("{old}; {new}")))
}

/// The second slot opens where the header says that it holds a key.
fn second_opens(world: &World) -> std::result::Result<(), String> {
    match second_is_active(world) {
        Some(true) => opens(world, "luks", "key-secret", "new"),
        Some(false) => Ok(()),
        None => Err("the header cannot be read".into()),
    }
}

/// Nothing is left of the key's material where the header says that the second slot holds none.
fn second_is_gone(world: &World, at: u64, key: &[u8]) -> std::result::Result<(), String> {
    match second_is_active(world) {
        Some(true) => Ok(()),
        Some(false) => material_is_gone(world, at, key),
        None => Err("the header cannot be read".into()),
    }
}

/// Nothing is left of a key's material.
fn material_is_gone(world: &World, at: u64, key: &[u8]) -> std::result::Result<(), String> {
    let now = world.disk(TOP).map(|disk| disk.view().bytes(at, key.len())).unwrap_or_default();
    let left = key.chunks(512).zip(now.chunks(512)).filter(|(old, now)| old == now).count();
    if left == 0 { Ok(()) } else { Err("the key of a slot that is no more is still there".into()) }
}

/// Whether the second slot is in use, by the header.
fn second_is_active(world: &World) -> Option<bool> {
    match header(world)? {
        Volume::V1(header) => Some(header.slots[1].active),
        Volume::V2(copies) => Some(copies.metadata.keyslots.iter().any(|(number, _)| *number == 1)),
        _ => None,
    }
}

/// The header, where there is one.
fn header(world: &World) -> Option<Volume> {
    world.disk(TOP)?;
    let spec = spec_of("luks", Some(("key-secret", "key")), OpenMode::default()).metadata_only();
    let look = |io: Io| async move {
        let node = open(&io, &spec).await?;
        let driver = io.driver(node).expect("a driver");
        let volume = driver.as_any().downcast_ref::<Luks>().expect("a volume").volume();
        drop(driver);
        io.close(node).await.map(|()| volume)
    };
    straight(world.clone(), look).0.ok()
}

/// Wants a passphrase to open the image.
fn opens(world: &World, format: &str, option: &str, id: &str) -> std::result::Result<(), String> {
    let spec = spec_of(format, Some((option, id)), OpenMode::default());
    let (opened, _) = straight(world.clone(), |io| async move {
        let node = open(&io, &spec).await?;
        io.close(node).await
    });
    opened.map_err(|error| format!("with the secret '{id}': {error}"))
}
