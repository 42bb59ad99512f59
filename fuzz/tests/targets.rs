//! Every target for a moment, what once failed, and that a seed is one run everywhere.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use arbitrary::Unstructured;
use drystone_conformance::meter::Meter;
use drystone_fuzz::bitmaps::{Claims, within_bounds};
use drystone_fuzz::{TARGETS, Target};

#[global_allocator]
static METER: Meter = Meter;

/// Seeds of a target at the most: longer runs are the runner's.
const SEEDS_MAX: u64 = 50;

/// Time for each target.
const MOMENT: Duration = Duration::from_secs(2);

#[test]
fn every_target_runs_for_a_moment() {
    for target in TARGETS {
        target.prepare();
        let begun = Instant::now();
        let mut seed = 0;
        while seed < 5 || (begun.elapsed() < MOMENT && seed < SEEDS_MAX) {
            let checked = target.check(&target.input(seed));
            checked.unwrap_or_else(|report| panic!("{}, seed {seed}: {report}", target.name));
            seed += 1;
        }
        target.check(&[]).unwrap_or_else(|report| panic!("{}, no bytes: {report}", target.name));
    }
}

#[test]
fn what_once_failed_does_not_fail_again() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("regressions");
    let mut replayed = 0;
    for target in TARGETS {
        let Ok(files) = std::fs::read_dir(folder.join(target.name)) else { continue };
        for file in files {
            let path = file.expect("an entry").path();
            let input = std::fs::read(&path).expect("a file");
            target.check(&input).unwrap_or_else(|report| panic!("{}: {report}", path.display()));
            replayed += 1;
        }
    }
    assert!(replayed > 0, "there are some");
}

/// Seeds whose traces are the same on every machine: where one differs, something takes the time, the address of memory
/// or the order of a hash table into account. They change with the intents that core emits, and are then pinned anew.
#[test]
fn a_seed_gives_the_same_trace_everywhere() {
    const PINNED: &[(&str, u64, u64)] = &[
        ("raw", 1, 0x927c_2697_4486_d26c),
        ("requests", 1, 0xc98d_4ac5_1a29_b785),
        ("requests", 2, 0x326d_f9ca_3a2e_26a7),
        ("crashes", 1, 0x1773_2471_2d1b_75fa),
        ("header", 2, 0x1399_6039_a22c_9320),
        ("entries", 1, 0x7409_c7c2_4f84_cf9d),
        ("snapshot", 1, 0xf956_8d53_c95b_35b1),
        ("bitmaps", 1, 0x89f5_0af0_a292_b77e),
        ("blkdebug", 1, 0x9e05_8ea1_8ec9_0ebb),
        ("log_writes", 1, 0x5e1e_7162_b1cf_c277),
        ("options", 1, 0x4836_af91_bbc8_32e4),
        ("json", 1, 0x6482_25d8_cdab_8fa0),
        ("size", 1, 0x81e8_7955_5285_3e90),
    ];
    let mut others = Vec::new();
    for (name, seed, hash) in PINNED {
        let target = Target::named(name).expect("a target");
        let found =
            target.trace_hash(&target.input(*seed)).unwrap_or_else(|report| panic!("{name}: {report}"));
        if found != *hash {
            others.push(format!("{name}, seed {seed}: found {found:#018x}"));
        }
    }
    assert!(others.is_empty(), "other traces than before:\n{}", others.join("\n"));
}

/// A file of two megabytes that claims 60,000 bitmaps of half a gigabyte of ones, all with one table; and one that can
/// have the ones that it claims.
#[test]
fn bitmaps_take_no_more_memory_than_the_file_can_justify() {
    let claims = Claims {
        cluster_size: 64 << 10,
        size: 1 << 41,
        count: 60_000,
        granularity: 512,
        tables: 1,
        ones: true,
    };
    within_bounds(claims.world(&mut Unstructured::new(&[])), 1);
    let (count, tables) = (2, 2);
    within_bounds(Claims { count, tables, ..claims }.world(&mut Unstructured::new(&[])), 1);
}

#[test]
fn every_target_is_one_for_cargo_fuzz_too() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let manifest = std::fs::read_to_string(folder.join("Cargo.toml")).expect("a manifest");
    for target in TARGETS {
        let path = format!("targets/{}.rs", target.name);
        let text =
            std::fs::read_to_string(folder.join(&path)).unwrap_or_else(|error| panic!("{path}: {error}"));
        assert!(text.contains(&format!("drystone_fuzz::targets::{}(data)", target.name)), "{path}:\n{text}");
        assert!(manifest.contains(&format!("path = \"{path}\"")), "the manifest does not name {path}");
    }
}

fn runner(args: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_drystone-fuzz")).args(args).output().expect("it runs");
    (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

#[test]
fn the_runner_lists_runs_and_replays() {
    let (code, listed) = runner(&["--list"]);
    let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
    assert_eq!((code, listed.lines().collect::<Vec<_>>()), (Some(0), names));
    let (code, said) = runner(&["size", "--seed", "3", "--runs", "20"]);
    assert!(code == Some(0) && said.starts_with("size: 20 runs from seed 3 in "), "{said}");
    let (code, said) = runner(&["requests", "--seed", "3", "--replay"]);
    assert!(
        code == Some(0) && said.contains(" > 0    0 open: open top rw") && said.contains("trace "),
        "{said}"
    );
    let (code, said) = runner(&["nothing"]);
    assert!(code == Some(2) && said.contains("no target 'nothing'"), "{said}");
}
