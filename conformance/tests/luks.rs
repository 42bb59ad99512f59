//! Encrypted volumes and images on simulated disks: what they hold is what a flat disk holds, and none of it is there in
//! clear; and a volume keeps a key.

use drystone_conformance::explore::{TOP, image_in};
use drystone_conformance::sim::Sim;
use drystone_conformance::world::World;
use drystone_core::buf::Buf;
use drystone_core::engine::Io;
use drystone_core::error::Result;
use drystone_core::format::luks::{AmendKeyslots, CreateOptions};
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

async fn change(io: Io, change: AmendKeyslots) -> Result<()> {
    let node = open(&io, &luks("key", true)).await?;
    let done = amend_keyslots(&io, node, &change).await;
    done.and(io.close(node).await)
}

fn run<T: 'static, F: Future<Output = T> + 'static>(world: World, job: impl FnOnce(Io) -> F) -> (World, T) {
    let mut sim = Sim::new(1, world);
    let done = sim.run_job(job).unwrap_or_else(|_| panic!("nothing stops it"));
    (sim.into_world(), done)
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
