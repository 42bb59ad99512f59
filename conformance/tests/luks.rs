//! Encrypted volumes and images on simulated disks: what they hold is what a flat disk holds, and a power cut at any
//! intent of a change of keyslots loses no key.

use std::io::Write as _;
use std::process::{Command, Stdio};

use drystone_conformance::disk::Survival;
use drystone_conformance::explore::{TOP, image_in};
use drystone_conformance::lie::{Lie, Lies};
use drystone_conformance::sim::Sim;
use drystone_conformance::world::World;
use drystone_core::buf::Buf;
use drystone_core::engine::Io;
use drystone_core::error::Result;
use drystone_core::format::luks::{AmendKeyslots, CreateOptions, Luks, Volume};
use drystone_core::format::qcow2;
use drystone_core::graph::open::{NodeSpec, OpenMode, open};
use drystone_core::graph::options::from_options;
use drystone_core::intent::{Fua, ZeroFlags};
use drystone_core::job::{ImageSpec, amend_keyslots};
use serde_json::{Value, json};

const SIZE: u64 = 256 << 10;

/// A volume whose passphrase costs as little as there is.
fn volume() -> CreateOptions {
    CreateOptions { iter_time_ms: 1, ..CreateOptions::new(SIZE, Some("key".into())) }
}

fn spec(options: Value, writable: bool) -> NodeSpec {
    let Value::Object(mut map) = options else { panic!("options are a map") };
    map.insert("file".into(), json!({ "driver": "file", "filename": TOP }));
    from_options(map, OpenMode { writable, ..OpenMode::default() }).expect("options")
}

fn luks(secret: &str, writable: bool) -> NodeSpec {
    spec(json!({ "driver": "luks", "key-secret": secret }), writable)
}

/// Whether a passphrase opens the volume; or why it cannot be opened at all.
async fn opens(io: &Io, secret: &str) -> std::result::Result<bool, String> {
    match open(io, &luks(secret, false)).await {
        Ok(node) => io.close(node).await.map(|()| true).map_err(|error| error.to_string()),
        Err(error) if error.to_string() == "Invalid password, cannot unlock any keyslot" => Ok(false),
        Err(error) => Err(error.to_string()),
    }
}

async fn header(io: &Io) -> Result<Volume> {
    let node = open(io, &luks("key", false).metadata_only()).await?;
    let driver = io.driver(node).expect("a driver");
    let volume = driver.as_any().downcast_ref::<Luks>().expect("a volume").volume();
    io.close(node).await?;
    Ok(volume)
}

async fn change(io: Io, change: AmendKeyslots) -> Result<()> {
    let node = open(&io, &luks("key", true)).await?;
    let done = amend_keyslots(&io, node, &change).await;
    done.and(io.close(node).await)
}

fn add() -> AmendKeyslots {
    let new_secret = Some("new".into());
    AmendKeyslots { active: true, new_secret, iter_time_ms: Some(1), ..AmendKeyslots::default() }
}

fn erase() -> AmendKeyslots {
    AmendKeyslots { old_secret: Some("new".into()), ..AmendKeyslots::default() }
}

fn run<T: 'static, F: Future<Output = T> + 'static>(world: World, job: impl FnOnce(Io) -> F) -> (World, T) {
    let mut sim = Sim::new(1, world);
    let done = sim.run_job(job).unwrap_or_else(|_| panic!("nothing stops it"));
    (sim.into_world(), done)
}

/// Cuts the power after every intent of a change, and looks at what is left, with what was not flushed lost, kept, or in
/// part, as these say. Returns the first thing that is wrong. `check` is told whether the change was answered.
fn crash_everywhere(
    before: &World,
    what: &AmendKeyslots,
    (lies, survivals): (&Lies, &[Survival]),
    check: impl Fn(World, bool) -> std::result::Result<(), String>,
) -> std::result::Result<(), String> {
    for cut in 1.. {
        let mut sim = Sim::new(7, before.clone());
        sim.lies = lies.clone();
        sim.stop_after = Some(cut);
        let what = what.clone();
        let done = sim.run_job(move |io| change(io, what));
        // Until something is written, all is as it was.
        if done.is_ok() || sim.unflushed_sectors() > 0 {
            for survival in survivals {
                let checked = check(sim.after_crash(*survival), done.is_ok());
                checked.map_err(|report| format!("after {cut} intents, {survival:?}: {report}"))?;
            }
        }
        if let Ok(result) = done {
            result.expect("the change is made");
            assert!(cut > 10, "a change takes some intents");
            return Ok(());
        }
    }
    unreachable!("a change ends")
}

/// The change is safe, and is so because of each of these barriers.
fn safe_because_of(
    before: &World,
    what: &AmendKeyslots,
    barriers: &[&'static str],
    check: impl Fn(World, bool) -> std::result::Result<(), String>,
) {
    let some = [Survival::Nothing, Survival::Everything, Survival::Seed(1), Survival::Seed(2)];
    let safe = crash_everywhere(before, what, (&Lies::default(), &some), &check);
    assert_eq!(safe, Ok(()));
    // A header is a few sectors, all of which must be there for it to say anything.
    let many: Vec<Survival> = some.into_iter().chain((3..40).map(Survival::Seed)).collect();
    for label in barriers {
        let lies = Lies::about_label(label, Lie::Skipped);
        let wrong = crash_everywhere(before, what, (&lies, &many), &check);
        assert!(wrong.is_err(), "nothing goes wrong without {label}");
    }
}

fn require(holds: bool, what: &str) -> std::result::Result<(), String> {
    if holds { Ok(()) } else { Err(what.into()) }
}

/// Whether the second slot is in use, by the header.
async fn second_is_active(io: &Io) -> std::result::Result<bool, String> {
    match header(io).await.map_err(|error| error.to_string())? {
        Volume::V1(header) => Ok(header.slots[1].active),
        Volume::V2(copies) => Ok(copies.metadata.keyslots.iter().any(|(number, _)| *number == 1)),
        _ => Err("of another version".into()),
    }
}

fn is_added(world: World, done: bool) -> std::result::Result<(), String> {
    let (_, (old, new, active)) = run(world, |io| async move {
        (opens(&io, "key").await, opens(&io, "new").await, second_is_active(&io).await)
    });
    require(old?, "the first passphrase is lost")?;
    let new = new?;
    require(active? == new, "a slot that is active opens, and another one does not")?;
    require(new || !done, "what is answered is durable")
}

/// The check for a slot whose material is at a place, and was this.
fn is_erased(old: &[u8], at: usize) -> impl Fn(World, bool) -> std::result::Result<(), String> {
    move |world, done| {
        let now = world.export(TOP)[at..at + old.len()].to_vec();
        let same = old.chunks(512).zip(now.chunks(512)).filter(|(old, now)| old == now).count();
        let (_, (opened, active)) =
            run(world, |io| async move { (opens(&io, "key").await, second_is_active(&io).await) });
        require(opened?, "the first passphrase is lost")?;
        let active = active?;
        require(active || same == 0, "the key of a slot that is not active is still there")?;
        require(!active || !done, "what is answered is durable")
    }
}

#[test]
fn keyslots_of_luks1_change_whenever_the_power_goes() {
    let one = image_in(World::new(), &ImageSpec::Luks(volume()));
    safe_because_of(&one, &add(), &["luks.add/before_state", "luks.add/after"], is_added);
    let (two, added) = run(one, |io| change(io, add()));
    added.expect("a second slot");
    let at = 262_144;
    let old = two.export(TOP)[at..at + 256_000].to_vec();
    safe_because_of(&two, &erase(), &["luks.wipe/barrier", "luks.erase/after"], is_erased(&old, at));
}

/// A LUKS2 volume of cryptsetup's; nothing where that is not installed.
fn volume2() -> Option<World> {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = folder.path().join("v2");
    std::fs::write(&path, vec![0; 17 << 20]).expect("a file can be written");
    let mut command = Command::new("cryptsetup");
    command.args(
        "luksFormat -q --type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --key-file -".split(' '),
    );
    let child = command.arg(&path).stdin(Stdio::piped()).spawn();
    let Ok(mut child) = child else {
        eprintln!("skipped: cryptsetup is not installed (package cryptsetup-bin)");
        return None;
    };
    child.stdin.take().expect("a pipe").write_all(b"stones").expect("it reads the passphrase");
    assert!(child.wait().expect("it ends").success(), "cryptsetup makes a volume in a file");
    let mut world = World::new();
    world.add_file(TOP, &std::fs::read(&path).expect("it is there"));
    Some(world)
}

/// Opening the volume to write to it makes both copies of the header the same.
fn copies_are_alike(world: World) -> std::result::Result<(), String> {
    let (world, opened) = run(world, |io| async move {
        let node = open(&io, &luks("key", true)).await?;
        io.close(node).await
    });
    opened.map_err(|error| error.to_string())?;
    let bytes = world.export(TOP);
    let json = |at: usize| &bytes[at + 4096..at + 16384];
    require(json(0) == json(16384), "the copies of the header differ")
}

#[test]
fn keyslots_of_luks2_change_whenever_the_power_goes() {
    let Some(one) = volume2() else { return };
    let both = |check: &dyn Fn(World, bool) -> std::result::Result<(), String>, world: World, done| {
        check(world.clone(), done)?;
        copies_are_alike(world)
    };
    let barriers = ["luks2.add/before_header", "luks2.header/after_copy"];
    safe_because_of(&one, &add(), &barriers, |world, done| both(&is_added, world, done));
    let (two, added) = run(one, |io| change(io, add()));
    added.expect("a second slot");
    let (two, volume) = run(two, |io| async move { header(&io).await });
    let Ok(Volume::V2(copies)) = &volume else { panic!("a volume of version 2: {volume:?}") };
    let (at, _) =
        copies.metadata.keyslots.iter().find(|(number, _)| *number == 1).expect("it is there").1.area;
    let at = at as usize;
    let old = two.export(TOP)[at..at + 256_000].to_vec();
    let erased = is_erased(&old, at);
    let barriers = ["luks.wipe/barrier", "luks2.header/after_copy"];
    safe_because_of(&two, &erase(), &barriers, |world, done| both(&erased, world, done));
}

#[test]
fn the_last_key_is_not_erased_unless_that_is_forced() {
    let before = image_in(World::new(), &ImageSpec::Luks(volume()));
    let last = AmendKeyslots { keyslot: Some(0), ..AmendKeyslots::default() };
    let bytes = before.export(TOP);
    let (world, refused) = run(before, |io| change(io, last.clone()));
    assert!(refused.expect_err("refused").to_string().contains("only active keyslot 0"));
    assert!(world.export(TOP) == bytes, "nothing is changed");
    let forced = AmendKeyslots { force: true, ..last };
    let (world, erased) = run(world, |io| change(io, forced));
    erased.expect("forced");
    let (_, opened) = run(world, |io| async move { opens(&io, "key").await });
    assert_eq!(opened, Ok(false));
}

/// Random requests, beside a flat disk; parts of sectors too.
fn like_a_flat_disk(world: World, options: &Value, zeroed: bool) {
    let mut rng = fastrand::Rng::with_seed(3);
    let plan: Vec<(u8, u64, u64)> = (0..60)
        .map(|_| {
            let at = rng.u64(..SIZE - 1);
            let max = if rng.bool() { 700 } else { 100_000 };
            (rng.u8(..4), at, 1 + rng.u64(..(SIZE - at).min(max)))
        })
        .collect();
    let node = spec(options.clone(), true);
    let (world, model) = run(world, move |io| async move {
        let node = open(&io, &node).await.expect("opens");
        let mut model = match zeroed {
            true => vec![0; SIZE as usize],
            false => io.read_bytes("test", node, 0, SIZE as usize).await.expect("reads").to_vec(),
        };
        for (number, (what, at, len)) in plan.into_iter().enumerate() {
            let range = at as usize..(at + len) as usize;
            match what {
                0 => {
                    let read = io.read_bytes("test", node, at, len as usize).await.expect("reads");
                    assert!(read[..] == model[range], "request {number}, {len} bytes at {at}");
                }
                1 => {
                    io.write_zeroes("test", node, at, len, ZeroFlags::default()).await.expect("zeros");
                    model[range].fill(0);
                }
                _ => {
                    let bytes: Vec<u8> = (0..len).map(|byte| (byte as usize * 31 + number) as u8).collect();
                    model[range].copy_from_slice(&bytes);
                    io.write("test", node, at, Buf::from(bytes), Fua::No).await.1.expect("writes");
                }
            }
        }
        io.close(node).await.expect("closes");
        model
    });
    let clear = model.windows(32).find(|window| window.iter().any(|byte| *byte != window[0])).expect("data");
    assert!(
        !world.export(TOP).windows(32).any(|window| window == clear),
        "what is written is not there in clear"
    );
    let node = spec(options.clone(), false);
    let (_, read) = run(world, move |io| async move {
        let node = open(&io, &node).await.expect("opens");
        let read = io.read_bytes("test", node, 0, SIZE as usize).await.expect("reads").to_vec();
        io.close(node).await.expect("closes");
        read
    });
    assert!(read == model, "what is read after opening again");
}

#[test]
fn a_volume_holds_what_a_flat_disk_holds() {
    let world = image_in(World::new(), &ImageSpec::Luks(volume()));
    like_a_flat_disk(world, &json!({ "driver": "luks", "key-secret": "key" }), false);
}

#[test]
fn an_encrypted_qcow2_image_holds_what_a_flat_disk_holds() {
    for (version, cluster_size, extended_l2) in [(3, 4096, false), (2, 65536, false), (3, 16384, true)] {
        let encrypt = Some(volume());
        let new = qcow2::CreateOptions::new(SIZE);
        let options = qcow2::CreateOptions { version, cluster_size, extended_l2, encrypt, ..new };
        let world = image_in(World::new(), &ImageSpec::Qcow2(options));
        like_a_flat_disk(world, &json!({ "driver": "qcow2", "encrypt.key-secret": "key" }), true);
    }
}
