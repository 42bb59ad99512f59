//! The suite on filters: below a format, on top of one, with faults and power cuts.

use drystone_conformance::cases::WRITABLE;
use drystone_conformance::fault::Effect;
use drystone_conformance::qemu::Recipe;
use drystone_conformance::sim::Sim;
use drystone_conformance::suite::{Case, Run, Thoroughness};
use drystone_conformance::world::World;
use drystone_core::buf::Buf;
use drystone_core::error::{Error, FaultKind};
use drystone_core::graph::open::{NodeSpec, open};
use drystone_core::graph::options::from_filename;
use drystone_core::intent::{Errno, Fua, ZeroFlags};

const TOP: &[&str] = &[
    "qemu-img create -f qcow2 -o cluster_size=4k top.qcow2 1M",
    "qemu-io -f qcow2 -c 'write -P 17 10k 150k' -c 'write -P 18 400k 90k' -c 'write -z 440k 20k' top.qcow2",
    "qemu-img create -f raw log.raw 0",
];

const CHAIN: &[&str] = &[
    "qemu-img create -f qcow2 -o cluster_size=64k base.qcow2 600k",
    "qemu-io -f qcow2 -c 'write -P 15 0 500k' base.qcow2",
    "qemu-img create -f qcow2 -o cluster_size=4k -b base.qcow2 -F qcow2 top.qcow2 1M",
    "qemu-io -f qcow2 -c 'write -P 17 120k 7k' -c 'write -z 180k 5k' top.qcow2",
];

const COPY: &[&str] =
    &["qemu-img create -f qcow2 -o cluster_size=4k top.qcow2 1M", "qemu-img create -f raw copy.raw 1M"];

/// A case whose node is described by `json`, in which `FILE` is a node for the image's file, and `LOG` and `COPY` are
/// nodes for the files of those names.
fn case(name: &str, commands: &[&str], json: &'static str) -> Case {
    let mut recipe = Recipe::new(name, "qcow2", "top.qcow2", commands);
    recipe.mix.granule = 4096;
    recipe.mix.len_max = 16 * 1024;
    recipe.rules.sticky_flush = false;
    recipe.rules.discards_on_its_own = true;
    let spec = move |world: &World, path: &str| {
        let file = |path: &str| format!(r#"{{"driver":"file","filename":"{path}"}}"#);
        let json = json
            .replace("FILE", &file(path))
            .replace("LOG", &file(&world.path("log.raw")))
            .replace("COPY", &file(&world.path("copy.raw")));
        let spec = from_filename(&format!("json:{json}"), None, WRITABLE).expect("legal options");
        NodeSpec { node_name: Some("disk0".into()), ..spec }
    };
    recipe.case(spec).unwrap_or_else(|report| panic!("{name}: {report}"))
}

/// Filters that keep an image as good as it was.
fn cases() -> Vec<Case> {
    vec![
        case(
            "qcow2 on blkdebug with blocks",
            TOP,
            r#"{"driver":"qcow2","file":{"driver":"blkdebug","align":512,"max-transfer":2048,"opt-write-zero":1024,
                "max-discard":4096,"image":FILE}}"#,
        ),
        case(
            "qcow2 on preallocate",
            TOP,
            r#"{"driver":"qcow2","file":{"driver":"preallocate","prealloc-size":65536,"prealloc-align":4096,"file":FILE}}"#,
        ),
        case(
            "qcow2 on blklogwrites",
            TOP,
            r#"{"driver":"qcow2","file":{"driver":"blklogwrites","log":LOG,"file":FILE}}"#,
        ),
        case("copy-on-read", CHAIN, r#"{"driver":"copy-on-read","file":{"driver":"qcow2","file":FILE}}"#),
        case("compress", TOP, r#"{"driver":"compress","file":{"driver":"qcow2","file":FILE}}"#),
        case(
            "filters on filters",
            CHAIN,
            r#"{"driver":"compress","file":{"driver":"copy-on-read","file":{"driver":"qcow2","file":{"driver":"blkdebug",
                "image":{"driver":"preallocate","prealloc-size":8192,"prealloc-align":512,"file":FILE}}}}}"#,
        ),
    ]
}

fn each<T>(seeds: std::ops::Range<u64>, check: impl Fn(Run<'_>) -> Result<T, String>) {
    each_but(&[], seeds, check);
}

/// Runs a check on every case but those of these names.
fn each_but<T>(but: &[&str], seeds: std::ops::Range<u64>, check: impl Fn(Run<'_>) -> Result<T, String>) {
    let only = std::env::var("DRYSTONE_CASE").unwrap_or_default();
    let cases = cases();
    let runs = cases.iter().filter(|case| case.name.contains(&only) && !but.contains(&case.name.as_str()));
    let runs = runs.flat_map(|case| seeds.clone().map(move |seed| Run::new(case, seed)));
    let failures: Vec<String> = runs.filter_map(|run| check(run).err()).collect();
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn replies_and_bytes_are_those_of_a_flat_disk() {
    each(0..8, |run| run.clean());
    let copies =
        case("blkverify", COPY, r#"{"driver":"blkverify","raw":COPY,"test":{"driver":"qcow2","file":FILE}}"#);
    for seed in 0..8 {
        Run::new(&copies, seed).clean().unwrap_or_else(|report| panic!("{report}"));
    }
}

#[test]
fn failures_reach_the_guest_and_lose_nothing_that_was_flushed() {
    each(0..6, |run| run.faulty());
}

#[test]
fn a_single_fault_is_survived_wherever_it_strikes() {
    // Not to make a file longer than it needs to be is no failure, and nobody hears of it.
    let but = ["qcow2 on preallocate", "filters on filters"];
    each_but(&but, 0..1, |run| run.every_nth_fault(Effect::Fail(Errno::EIO)));
}

#[test]
fn a_crash_at_any_intent_keeps_what_was_flushed() {
    let how = Thoroughness { subsets_max: 2, samples: 2, stride: 3, outside: 18 };
    // What copies must be able to write, and what is left after a crash is only looked at.
    each_but(&["copy-on-read"], 0..1, |run| run.crash_everywhere(how));
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    each(0..1, |run| run.deterministic());
}

/// Logs to go on with that are none, or that lie about themselves.
#[test]
fn hostile_logs_are_refused() {
    let word =
        |bytes: &mut Vec<u8>, at: usize, value: u64| bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
    let log = |entries: u64, sector: u64, len: usize| {
        let mut bytes = vec![0; len];
        for (at, value) in [(0, 0x006a_7366_7773_6872), (8, 1), (16, entries), (24, sector)] {
            word(&mut bytes, at, value);
        }
        bytes
    };
    let with_entry = |sectors: u64, flags: u64| {
        let mut bytes = log(2, 512, 4096);
        word(&mut bytes, 520, sectors);
        word(&mut bytes, 528, flags);
        bytes
    };
    for (about, bytes) in [
        ("no log", vec![7; 512]),
        ("shorter than its head", vec![0x72; 3]),
        ("another version", {
            let mut bytes = log(0, 512, 512);
            bytes[8] = 2;
            bytes
        }),
        ("sectors of nothing", log(0, 0, 512)),
        ("sectors of three bytes", log(0, 3, 512)),
        ("sectors of 2 GiB", log(0, 1 << 31, 512)),
        ("more entries than it has bytes", log(u64::MAX, 512, 512)),
        ("entries about nothing", log(u64::MAX, 512, 1 << 20)),
        ("an entry without end", with_entry(u64::MAX, 0)),
        ("an entry that ends just before 2^64", with_entry(u64::MAX / 512 - 1, 0)),
        ("an entry that reaches over the end", with_entry(7, 0)),
    ] {
        let mut world = World::new();
        world.add_file("disk", &[0; 4096]);
        world.add_file("log", &bytes);
        let options = r#"json:{"driver":"blklogwrites","log-append":true,"file":{"driver":"file","filename":"disk"},
            "log":{"driver":"file","filename":"log"}}"#;
        let spec = from_filename(options, None, WRITABLE).expect("legal options");
        let mut sim = Sim::new(1, world);
        let opened =
            sim.run_job(move |io| async move { open(&io, &spec).await.map(drop) }).expect("the power is on");
        let error = opened.expect_err(about);
        assert_eq!(error.kind(), FaultKind::Corrupt, "{about}: {error}");
        assert_eq!(sim.world.open_leaves(), 0, "{about}");
    }
}

/// Of two changes beyond the end, the first one makes the second one's place known while that waits for its turn.
#[test]
fn a_file_that_grew_meanwhile_takes_what_was_meant_for_its_end() {
    for seed in 0..20 {
        let mut world = World::new();
        world.add_file("disk", &[0; 512]);
        let options = r#"json:{"driver":"preallocate","prealloc-size":4096,"prealloc-align":512,
            "file":{"driver":"file","filename":"disk"}}"#;
        let spec = from_filename(options, None, WRITABLE).expect("legal options");
        let mut sim = Sim::new(seed, world);
        let result = sim.run_job(move |io| async move {
            let node = open(&io, &spec).await?;
            for at in [4096, 1024, 2048, 512, 8192, 16384] {
                let (other, flags) = (io.clone(), ZeroFlags::default());
                io.spawn(Box::pin(async move {
                    other.write_zeroes("test", node, at, 512, flags).await.expect("zeros beyond the end");
                    other.discard("test", node, at, 512).await.expect("a discard");
                }));
            }
            for at in [512, 20480] {
                io.write("test", node, at, Buf::from(vec![7; 512]), Fua::No).await.1?;
            }
            Ok::<_, Box<Error>>(node)
        });
        let node = result.expect("the power is on").expect("nothing fails");
        sim.run_until_idle().expect("the power is on");
        let closed = sim.run_job(move |io| async move { io.close(node).await });
        closed.expect("the power is on").expect("nothing fails");
        let bytes = sim.world.export("disk");
        assert_eq!(bytes.len(), 20992, "as long as its data, seed {seed}");
        assert!(bytes[20480..].iter().all(|byte| *byte == 7), "seed {seed}");
    }
}

#[test]
fn a_config_file_without_end_is_refused() {
    let mut world = World::new();
    world.add_file("disk", &[0; 512]);
    world.add_file("cfg", &vec![b'#'; (1 << 20) + 1]);
    let spec = from_filename("blkdebug:cfg:disk", Some("raw"), WRITABLE).expect("a legal name");
    let mut sim = Sim::new(1, world);
    let opened = sim.run_job(move |io| async move { open(&io, &spec).await.map(drop) });
    let error = opened.expect("the power is on").expect_err("too long");
    assert_eq!(error.to_string(), "the blkdebug config file has 1048577 bytes, and 1048576 are the most");
    assert_eq!(sim.world.open_leaves(), 0);
}
