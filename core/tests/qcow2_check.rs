//! qcow2 check: the same findings and numbers as `qemu-img check`, on images that `qemu-img` made and that are then
//! damaged at known places, or anywhere.

mod support;

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;

use drystone_core::engine::Engine;
use drystone_core::error::Result;
use drystone_core::format::qcow2::Qcow2Options;
use drystone_core::format::qcow2::check::{CheckReport, check};
use drystone_core::graph::open::{ChildSpec, DriverSpec, NodeSpec, OpenMode, open};
use drystone_core::intent::{Action, Errno, Intent, LeafStatus, Location, Outcome};

use support::file_info;

const COPIED: u64 = 1 << 63;

#[test]
fn clean_images_of_every_geometry() {
    let Some(dir) = Dir::new("geometry") else { return };
    for bits in [1, 2, 4, 8, 16, 32, 64] {
        let image = dir.image(&format!("w{bits}"), &format!("refcount_bits={bits}"), "8M");
        image.io(&["write 0 1M", "write 3M 70k", "discard 128k 64k"]);
        image.agree("refcount width");
    }
    for size in ["512", "1k", "4k", "64k", "2M"] {
        for more in ["", ",compat=0.10", ",lazy_refcounts=on"] {
            let image = dir.image(&format!("c{size}{more}"), &format!("cluster_size={size}{more}"), "6M");
            image.io(&["write 5M 70k", "write 0 1M", "write -z 3M 1M"]);
            if size != "2M" {
                image.io(&["write -c 2M 64k"]);
            }
            image.agree(size);
        }
    }
    let image = dir.image("xl2", "extended_l2=on", "64M");
    image.io(&["write 1M 1k", "write 5M 300k", "write -z 5M 4k", "write -c 10M 64k"]);
    image.agree("subclusters");
}

#[test]
fn snapshots_compressed_clusters_and_bitmaps_count() {
    let Some(dir) = Dir::new("features") else { return };
    for options in ["cluster_size=4k", "cluster_size=64k", "refcount_bits=4", "refcount_bits=64"] {
        let image = dir.rich(options);
        let report = image.agree(options).expect("can be checked");
        assert!(report.compressed_clusters > 0 && report.fragmented_clusters > report.compressed_clusters);
        assert_eq!((report.corruptions, report.leaks, report.check_errors), (0, 0, 0));
    }
}

#[test]
fn an_external_data_file_is_not_counted() {
    let Some(dir) = Dir::new("data_file") else { return };
    for raw in ["off", "on"] {
        let data = dir.path.join(format!("data-{raw}"));
        let options = format!("data_file={},data_file_raw={raw}", data.display());
        let image = dir.image(&format!("with-{raw}"), &options, "16M");
        image.io(&["write 5M 1M", "write 0 300k", "write -z 2M 1M"]);
        image.agree("clean").expect("can be checked");
        let entry = image.l2_entry(0);
        image.patch(entry, image.word(entry) & !COPIED);
        image.agree("COPIED is always set").expect("can be checked");
        image.patch(entry, COPIED | 1 << 62 | 0x20_0000);
        image.agree("compressed").expect("can be checked");
    }
}

#[test]
fn wrong_refcounts_are_found() {
    let Some(dir) = Dir::new("refcounts") else { return };
    let image = dir.rich("cluster_size=4k");
    let block = image.word(image.header(48)) & !0x1ff;
    let clean = fs::read(&image.path).unwrap();
    for (cluster, count) in [(0, 0), (1, 2), (7, 0), (8, 9), (9, 0xffff), (60, 0), (61, 7)] {
        image.patch_bytes(block + cluster * 2, &u16::to_be_bytes(count));
    }
    let report = image.agree("counts").expect("can be checked");
    assert!(report.corruptions > 0 && report.leaks > 0);

    let table = image.header(48);
    for raw in [0, 1, block | 0x200, block + 1, 1 << 40, 1 << 62, !0x1ff, image.header(40)] {
        fs::write(&image.path, &clean).unwrap();
        image.patch(table, raw);
        image.agree(&format!("refcount table entry {raw:#x}"));
        fs::write(&image.path, &clean).unwrap();
        image.patch(table + 8, raw);
        image.agree(&format!("second refcount table entry {raw:#x}"));
    }
}

#[test]
fn wrong_entries_are_found() {
    let Some(dir) = Dir::new("entries") else { return };
    for options in ["cluster_size=4k", "cluster_size=64k,refcount_bits=2", "extended_l2=on,cluster_size=16k"]
    {
        let image = dir.rich(options);
        let clean = fs::read(&image.path).unwrap();
        let l1 = image.header(40);
        let l2 = image.word(l1) & 0x00ff_ffff_ffff_fe00;
        let good = |at| image.word_in(&clean, at);
        let far = (clean.len() as u64).next_multiple_of(65536) + (8 << 20);
        let wrongs = |raw: u64| {
            [raw & !COPIED, raw | COPIED, raw ^ 0x200, raw | 1, raw | 2, raw | 1 << 56, raw | 1 << 61, COPIED]
                .into_iter()
                .chain([raw | 1 << 62, COPIED | far, far, l1, COPIED | l2, 1 << 55, COPIED | 0x200, 1, 2])
                .collect::<Vec<_>>()
        };
        for at in [l1, l1 + 8, l2, l2 + 16, l2 + 32] {
            for raw in wrongs(good(at)) {
                image.patch(at, raw);
                image.agree(&format!("{options}: {at:#x} = {raw:#x}"));
                fs::write(&image.path, &clean).unwrap();
            }
        }
        for bitmap in [0, u64::MAX, 1, 1 << 32, 0x1_0000_0001] {
            for (at, raw) in [(l2, good(l2)), (l2, 0), (l2, 1 << 62 | 0x10000), (l2 + 16, good(l2 + 16))] {
                image.patch(at, raw);
                image.patch(at + 8, bitmap);
                image.agree(&format!("{options}: {at:#x} = {raw:#x}, bitmap {bitmap:#x}"));
                fs::write(&image.path, &clean).unwrap();
            }
        }
    }
}

#[test]
fn truncated_images_are_compared_to_their_end() {
    let Some(dir) = Dir::new("truncated") else { return };
    let image = dir.rich("cluster_size=4k");
    let len = fs::metadata(&image.path).unwrap().len();
    for cut in [1, 512, 4096, 5000, 20_000, len / 2] {
        OpenOptions::new().write(true).open(&image.path).unwrap().set_len(len - cut).unwrap();
        image.agree(&format!("{cut} bytes are missing"));
    }
    OpenOptions::new().write(true).open(&image.path).unwrap().set_len(len + (1 << 30)).unwrap();
    image.agree("a long tail of zeros");
}

#[test]
fn damage_anywhere_is_counted_alike() {
    let Some(dir) = Dir::new("anywhere") else { return };
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 20) % below
    };
    let rounds = std::env::var("CHECK_ROUNDS").map_or(12, |rounds| rounds.parse().unwrap());
    for options in ["cluster_size=512", "cluster_size=4k,refcount_bits=8", "extended_l2=on,cluster_size=16k"]
    {
        let image = dir.rich(options);
        let clean = fs::read(&image.path).unwrap();
        let tables = image.tables();
        for round in 0..rounds {
            for _ in 0..1 + random(4) {
                let (at, len) = tables[random(tables.len() as u64) as usize];
                let at = at + random(len / 8) * 8;
                let raw = match random(4) {
                    0 => image.word(at) ^ 1 << random(64),
                    1 => random(clean.len() as u64) & !0x1ff | random(2) << 63,
                    2 => image.word(image.header(40)) ^ random(2) << 63,
                    _ => 0,
                };
                image.patch(at, raw);
            }
            image.agree(&format!("{options}: round {round}"));
            fs::write(&image.path, &clean).unwrap();
        }
    }
}

#[test]
fn snapshots_that_share_everything_are_read_once() {
    let Some(dir) = Dir::new("shared") else { return };
    let image = dir.image("many", "cluster_size=64k", "512M");
    image.io(&["write 0 1M", "write 300M 1M"]);
    // 65536 entries of 56 bytes that name the active L1 table, made three million entries long.
    let mut table = Vec::new();
    for id in 0..65536u32 {
        table.extend(image.header(40).to_be_bytes());
        table.extend(3_000_000u32.to_be_bytes());
        table.extend([0, 5, 0, 0]);
        table.extend([0; 20]);
        table.extend(16u32.to_be_bytes());
        table.extend([0; 16]);
        table.extend(format!("{id:05}").as_bytes());
        table.resize(table.len().next_multiple_of(8), 0);
    }
    let at = 64 << 20;
    image.patch_bytes(at, &table);
    image.patch_bytes(60, &65536u32.to_be_bytes());
    image.patch(64, at);
    image.patch_bytes(200 << 20, &[1]);
    let start = std::time::Instant::now();
    let (report, _) = image.ours();
    let report = report.expect("can be checked");
    assert!(start.elapsed().as_secs() < 20, "took {:?}, unoptimized", start.elapsed());
    // Sixteen-bit counters end at 65535: the references of 65537 L1 tables are two too many for each of them.
    assert!(report.corruptions > 65536, "{report:?}");
}

/// A directory of images, gone when dropped.
struct Dir {
    path: PathBuf,
}

struct Image {
    path: PathBuf,
}

impl Dir {
    /// None where there is no `qemu-img` to compare with.
    fn new(name: &str) -> Option<Self> {
        if Command::new("qemu-img").arg("--version").output().is_err() {
            eprintln!("skipped: no qemu-img to compare with");
            return None;
        }
        let path = std::env::temp_dir().join(format!("drystone-check-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Some(Self { path })
    }

    fn image(&self, name: &str, options: &str, size: &str) -> Image {
        let path = self.path.join(name.replace([',', '='], "-"));
        let mut args = vec!["create", "-q", "-f", "qcow2"];
        args.extend(["-o", options].iter().filter(|_| !options.is_empty()));
        qemu("qemu-img", &args, &[path.to_str().unwrap(), size]);
        Image { path }
    }

    /// An image with a bit of everything.
    fn rich(&self, options: &str) -> Image {
        let image = self.image(&format!("rich-{options}"), options, "24M");
        image.io(&["write 2M 512k", "write 0 256k", "write 20M 128k"]);
        for (name, compressed) in [("one", "write -c 12M 64k"), ("two", "write -c 13M 64k")] {
            qemu("qemu-img", &["snapshot", "-c", name], &[image.path.to_str().unwrap()]);
            image.io(&["write 64k 128k", "write -z 2M 64k", "write 10M 64k", compressed]);
        }
        qemu("qemu-img", &["bitmap", "--add"], &[image.path.to_str().unwrap(), "dirty"]);
        image.io(&["write 4M 192k", "write -c 15M 64k", "write -c 15104k 64k", "write -z 22M 64k"]);
        image
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

fn qemu(tool: &str, args: &[&str], more: &[&str]) {
    let output = Command::new(tool).args(args).args(more).output().unwrap();
    assert!(output.status.success(), "{tool} {args:?} {more:?}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Image {
    fn io(&self, commands: &[&str]) {
        let mut args = vec!["-f", "qcow2"];
        args.extend(commands.iter().flat_map(|command| ["-c", command]));
        qemu("qemu-io", &args, &[self.path.to_str().unwrap()]);
    }

    fn word(&self, at: u64) -> u64 {
        let mut bytes = [0; 8];
        let _ = File::open(&self.path).unwrap().read_at(&mut bytes, at).unwrap();
        u64::from_be_bytes(bytes)
    }

    fn word_in(&self, bytes: &[u8], at: u64) -> u64 {
        u64::from_be_bytes(bytes[at as usize..][..8].try_into().unwrap())
    }

    /// A field of eight bytes in the header.
    fn header(&self, at: u64) -> u64 {
        self.word(at)
    }

    fn half(&self, at: u64) -> u64 {
        self.word(at) >> 32
    }

    /// Place of an L2 entry of the first L2 table.
    fn l2_entry(&self, index: u64) -> u64 {
        (self.word(self.header(40)) & 0x00ff_ffff_ffff_fe00) + index * 8
    }

    /// Metadata: place and length.
    fn tables(&self) -> Vec<(u64, u64)> {
        let size = 1 << self.half(20);
        let (l1, l1_len) = (self.header(40), self.half(36) * 8);
        let mut tables = vec![(l1, l1_len), (self.header(48), 64), (self.header(64), 80)];
        let entries = (0..l1_len / 8).map(|index| self.word(l1 + index * 8));
        tables.extend(entries.map(|raw| (raw & 0x00ff_ffff_ffff_fe00, size)).filter(|table| table.0 != 0));
        tables.push((self.word(self.header(48)), size));
        tables
    }

    fn patch(&self, at: u64, word: u64) {
        self.patch_bytes(at, &word.to_be_bytes());
    }

    fn patch_bytes(&self, at: u64, bytes: &[u8]) {
        OpenOptions::new().write(true).open(&self.path).unwrap().write_all_at(bytes, at).unwrap();
    }

    /// Checks with both, and compares all that is found. None where both refuse.
    fn agree(&self, what: &str) -> Option<CheckReport> {
        let (ours, mut our_lines) = self.ours();
        let output = Command::new("qemu-img")
            .args(["check", "--output=json", "-f", "qcow2"])
            .arg(&self.path)
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        let Ok(json) = serde_json::from_slice::<serde_json::Value>(&output.stdout) else {
            assert!(ours.is_err(), "{what}: they refuse:\n{errors}\nwe find {ours:?}");
            return None;
        };
        let number = |key| json.get(key).and_then(serde_json::Value::as_u64).unwrap_or(0);
        let theirs = CheckReport {
            corruptions: number("corruptions"),
            leaks: number("leaks"),
            check_errors: number("check-errors"),
            corruptions_fixed: 0,
            leaks_fixed: 0,
            image_end_offset: number("image-end-offset"),
            total_clusters: number("total-clusters"),
            allocated_clusters: number("allocated-clusters"),
            fragmented_clusters: number("fragmented-clusters"),
            compressed_clusters: number("compressed-clusters"),
        };
        let ours =
            ours.unwrap_or_else(|error| panic!("{what}: we refuse: {error}\nthey find {theirs:?}\n{errors}"));
        let mut their_lines: Vec<_> = findings(&errors);
        our_lines = findings(&our_lines.join("\n"));
        our_lines.sort();
        our_lines.dedup();
        their_lines.sort();
        their_lines.dedup();
        let difference = || {
            let only = |a: &[String], b: &[String]| {
                a.iter().filter(|line| !b.contains(line)).take(10).cloned().collect::<Vec<_>>()
            };
            (only(&our_lines, &their_lines), only(&their_lines, &our_lines))
        };
        assert_eq!(ours, theirs, "{what}: left ours, right theirs; lines {:#?}", difference());
        assert_eq!(our_lines, their_lines, "{what}: lines {:#?}", difference());
        Some(ours)
    }

    fn ours(&self) -> (Result<CheckReport>, Vec<String>) {
        let mode = OpenMode::default();
        let file = Box::new(NodeSpec::file(self.path.to_str().unwrap(), mode));
        let data_file = ChildSpec::FromImage;
        let options = Qcow2Options { metadata_only: true, for_check: true, ..Qcow2Options::default() };
        let driver = DriverSpec::Qcow2 { file, backing: ChildSpec::None, data_file, options };
        let spec = NodeSpec { node_name: None, mode, driver };
        let engine = Engine::new();
        let lines = Rc::new(std::cell::RefCell::new(Vec::new()));
        let said = Rc::clone(&lines);
        let job = engine.run(0, |io| async move {
            let node = open(&io, &spec).await?;
            let mut say = |line| said.borrow_mut().push(line);
            let result = check(&io, node, &mut say, &|done, of| assert!(done <= of)).await;
            io.close(node).await?;
            result
        });
        let mut leaves = Vec::new();
        while let Some(Intent { token, action, .. }) = engine.next_intent() {
            engine.complete(token, carry_out(&mut leaves, action));
        }
        let result = job.take().expect("the check ended");
        (result, lines.take())
    }
}

/// The lines that tell findings.
fn findings(text: &str) -> Vec<String> {
    let told = ["ERROR", "Leaked", "Can't get", "Use qemu-img"];
    // A bitmap's table that is wrong is told by us alone; it counts all the same.
    let ours_alone = ["ERROR bitmap table entry"];
    text.lines()
        .filter(|line| told.iter().any(|start| line.starts_with(start)))
        .filter(|line| !ours_alone.iter().any(|start| line.starts_with(start)))
        .map(str::to_owned)
        .collect()
}

/// An executor over files that does everything at once.
fn carry_out(leaves: &mut Vec<File>, action: Action) -> Outcome {
    match action {
        Action::Open { location: Location::Path(path), .. } => {
            let Ok(file) = File::open(Path::new(&path)) else { return Outcome::Opened(Err(Errno::ENOENT)) };
            let len = file.metadata().unwrap().len();
            leaves.push(file);
            Outcome::Opened(Ok(file_info(leaves.len() as u32 - 1, len)))
        }
        Action::Lock { .. } => Outcome::Locked(Ok(())),
        Action::Close { .. } => Outcome::Done(Ok(())),
        Action::Read { leaf, offset, mut data } => {
            let mut bytes = vec![0; data.len_bytes()];
            let moved = leaves[leaf.0 as usize].read_at(&mut bytes, offset).unwrap();
            data.copy_in(0, &bytes[..moved]);
            Outcome::Moved { data, result: Ok(moved) }
        }
        Action::BlockStatus { leaf, offset, len } => {
            // What reads as zeros may be called a hole.
            let len = len.min(64 << 10);
            let mut bytes = vec![0; len as usize];
            leaves[leaf.0 as usize].read_exact_at(&mut bytes, offset).unwrap();
            Outcome::Status(Ok(LeafStatus::of(len, bytes.iter().all(|byte| *byte == 0))))
        }
        other => panic!("a check asks for nothing of the sort: {other:?}"),
    }
}
