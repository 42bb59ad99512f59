//! VMDK images beside the installed `qemu-img`: words and exit codes, each other's images, other makers' images, and what
//! an image must not make us do.

mod real;
mod side;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use real::{folder, unpacked};
use side::{Run, Side, disk};

const SUBFORMATS: [&str; 5] =
    ["monolithicSparse", "monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat", "streamOptimized"];

fn images() -> Side {
    let side = Side::new();
    // A whole number of sectors, and of nothing else.
    side.write("r", &disk((3 << 20) - 1536, 5));
    for line in [
        "create -q -f vmdk empty.vmdk 10M",
        "create -q -f vmdk -o zeroed_grain=on zeroed.vmdk 10M",
        "create -q -f vmdk base.vmdk 3M",
        "convert -O vmdk r theirs.vmdk",
        "convert -O vmdk -o subformat=streamOptimized r packed.vmdk",
        "convert -O vmdk r base.vmdk",
        "create -q -f vmdk -b base.vmdk -F vmdk child.vmdk",
    ] {
        side.make(line);
    }
    fill(&side, "zeroed.vmdk", &["write -z 0 1M", "write -P 3 1M 64k", "write -P 2 64k 4k"]);
    fill(&side, "child.vmdk", &["write -P 7 1M 100k"]);
    side
}

fn fill(side: &Side, image: &str, commands: &[&str]) {
    let mut fill = side.command("qemu-io", &format!("-f vmdk {image}"));
    let filled = fill.args(commands.iter().flat_map(|command| ["-c", command])).output();
    assert!(filled.expect("qemu-io is installed (package qemu-utils)").status.success(), "{image}");
}

#[test]
fn commands_say_the_same() {
    let mut side = images();
    for image in ["empty.vmdk", "zeroed.vmdk", "theirs.vmdk", "packed.vmdk", "child.vmdk"] {
        for line in ["info", "info --output=json", "check", "check --output=json", "map", "map --output=json"]
        {
            side.both("vmdk", &format!("{line} {image}"));
        }
    }
    for line in [
        "check -r all empty.vmdk",
        "resize empty.vmdk 20M",
        "snapshot -c one empty.vmdk",
        "amend -o compat6=on empty.vmdk",
        "create -f vmdk -o help x",
        "measure -O vmdk --size 10M",
        "compare r theirs.vmdk",
        "compare r packed.vmdk",
        "compare child.vmdk theirs.vmdk",
        "info --backing-chain --output=json child.vmdk",
        "create -f vmdk -o adapter_type=foo x.vmdk 10M",
        "create -f vmdk -o subformat=foo x.vmdk 10M",
        "create -f vmdk -o compat6=on,hwversion=7 x.vmdk 10M",
        "create -f vmdk -o subformat=monolithicFlat,zeroed_grain=on x.vmdk 10M",
        "create -f vmdk -b base.vmdk -F vmdk -o subformat=twoGbMaxExtentFlat x.vmdk",
        "create -f vmdk -b base.vmdk -F raw x.vmdk",
    ] {
        side.both("vmdk", line);
    }
    side.finish();
}

/// Where the file of a flat extent has holes, the disk reads as zeros.
#[test]
fn flat_extents_show_the_holes_of_their_files() {
    let mut side = Side::new();
    for subformat in ["monolithicFlat", "twoGbMaxExtentFlat"] {
        side.make(&format!("create -q -f vmdk -o subformat={subformat} flat.vmdk 3G"));
        for fresh in [true, false] {
            if !fresh {
                fill(&side, "flat.vmdk", &["write -P 1 1M 64k", "write -P 2 2560M 1M"]);
            }
            for line in ["map", "map --output=json", "measure -O qcow2", "measure -O raw"] {
                side.both(subformat, &format!("{line} flat.vmdk"));
            }
        }
    }
    side.finish();
}

/// What the reference makes of no bytes, it does not open again.
#[test]
fn disks_of_no_bytes_are_made() {
    let side = Side::new();
    for subformat in ["monolithicSparse", "streamOptimized"] {
        let line = format!("create -f vmdk -o subformat={subformat}");
        let run = side.ours(&format!("{line} ours.vmdk 0"));
        side.make(&format!("{line} theirs.vmdk 0"));
        assert_eq!(run.code, 0, "{subformat}: {run:?}");
        assert_eq!(side.read("ours.vmdk").len(), side.read("theirs.vmdk").len(), "{subformat}");
        for image in ["ours.vmdk", "theirs.vmdk"] {
            assert!(side.our_make(&format!("info {image}")).contains("virtual size: 0 B (0 bytes)"));
            side.our_make(&format!("convert -O raw {image} back"));
            assert!(side.read("back").is_empty());
        }
    }
    side.finish();
}

/// The descriptor of an image, without what differs from one image to the next.
fn descriptor(side: &Side, image: &str) -> Vec<String> {
    let bytes = side.read(image);
    let bytes = if bytes.starts_with(b"KDMV") { &bytes[512..21 * 512] } else { &bytes[..] };
    let text = String::from_utf8_lossy(bytes).replace('\0', "");
    text.lines().filter(|line| !line.is_empty() && !line.starts_with("CID=")).map(str::to_owned).collect()
}

#[test]
fn an_image_is_made_of_the_same() {
    let mut side = Side::new();
    let more = [
        "adapter_type=lsilogic,hwversion=12,toolsversion=abc",
        "compat6=on,adapter_type=buslogic",
        "adapter_type=legacyESX,zeroed_grain=on",
        "subformat=streamOptimized,zeroed_grain=on",
    ];
    let options = SUBFORMATS.iter().map(|kind| format!("subformat={kind}")).chain(more.map(str::to_owned));
    for (options, number) in options.zip(0..) {
        // Both by the same name, which is in the descriptor.
        let name = format!("a.{number}.vmdk");
        side.make(&format!("create -q -f vmdk -o {options} {name} 5G"));
        let files = |side: &Side| -> Vec<(PathBuf, u64)> {
            let folder = std::fs::read_dir(side.path("")).expect("a folder");
            let named = folder.map(|entry| entry.expect("an entry").path());
            let mut named: Vec<_> =
                named.map(|path| (path.clone(), path.metadata().expect("a file").len())).collect();
            named.sort_unstable();
            named
        };
        let (theirs, their_files) = (descriptor(&side, &name), files(&side));
        let sparse = side.read(&name).starts_with(b"KDMV");
        let their_bytes = if sparse { side.read(&name) } else { Vec::new() };
        side.our_make(&format!("create -q -f vmdk -o {options} {name} 5G"));
        let ours = descriptor(&side, &name);
        side.expect_alike(&options, &ours, &theirs);
        if sparse {
            let bytes = side.read(&name);
            let alike = bytes[..512] == their_bytes[..512] && bytes[21 * 512..] == their_bytes[21 * 512..];
            side.expect_alike(&format!("{options}: header and tables"), &alike, &true);
            side.expect_alike(&options, &files(&side), &their_files);
        }
    }
    side.finish();
}

#[test]
fn each_reads_what_the_other_made() {
    let side = images();
    for kind in SUBFORMATS {
        side.our_make(&format!("convert -O vmdk -o subformat={kind} r ours-{kind}.vmdk"));
        side.make(&format!("convert -O vmdk -o subformat={kind} r theirs-{kind}.vmdk"));
        for image in [format!("ours-{kind}.vmdk"), format!("theirs-{kind}.vmdk")] {
            for run in [side.theirs(&format!("compare r {image}")), side.ours(&format!("compare r {image}"))]
            {
                assert_eq!((run.code, &*run.stdout), (0, "Images are identical.\n"), "{image}");
            }
            for run in [side.theirs(&format!("check {image}")), side.ours(&format!("check {image}"))] {
                assert_eq!(run.code, 0, "{image}: {}", run.stderr);
            }
            side.our_make(&format!("convert -O raw {image} back"));
            assert!(side.read("back") == side.read("r"), "{image}");
        }
    }
    let made = (side.read("ours-monolithicSparse.vmdk"), side.read("theirs-monolithicSparse.vmdk"));
    assert!(made.0[21 * 512..] == made.1[21 * 512..], "directories, tables and grains");
    side.finish();
}

#[test]
fn a_child_shows_its_parent_until_that_is_changed() {
    let side = images();
    side.our_make("create -q -f vmdk -b base.vmdk -F vmdk ours.vmdk");
    for run in [side.theirs("compare r ours.vmdk"), side.ours("compare base.vmdk ours.vmdk")] {
        assert_eq!((run.code, &*run.stdout), (0, "Images are identical.\n"));
    }
    fill(&side, "ours.vmdk", &["write -P 7 1M 100k"]);
    assert_eq!(side.ours("compare ours.vmdk child.vmdk").code, 0);
    // Its content ID changes with the first write, by either tool.
    let cid = |side: &Side, image: &str| {
        let said = side.our_make(&format!("info {image}"));
        said.lines().find(|line| line.contains("    cid:")).map(str::to_owned)
    };
    let before = cid(&side, "base.vmdk");
    side.our_make("dd -f vmdk -O raw if=base.vmdk of=head bs=512 count=1");
    assert_eq!(cid(&side, "base.vmdk"), before, "reading changes nothing");
    side.our_make("convert -n -O vmdk r base.vmdk");
    assert_ne!(cid(&side, "base.vmdk"), before);
    let refused = side.ours("compare r child.vmdk");
    assert_eq!(refused.code, 2, "{}", refused.stderr);
    assert!(refused.stderr.contains("was changed since the image was made"), "{}", refused.stderr);
    assert_eq!(side.theirs("compare r child.vmdk").code, 4, "the reference fails as it reads");
    side.finish();
}

#[test]
fn a_commit_changes_the_parent() {
    let side = images();
    side.our_make("convert -O raw child.vmdk before");
    side.our_make("commit child.vmdk");
    assert_eq!(side.theirs("compare before base.vmdk").code, 0);
    side.finish();
}

/// Offset in the image, what stands there instead.
const DAMAGE: [(usize, &[u8]); 17] = [
    (4, &[4]),           // the version
    (12, &[0; 8]),       // a disk of nothing
    (17, &[0xff]),       // one larger than any
    (20, &[0]),          // grains of nothing
    (22, &[0x40]),       // grains of 2 GiB
    (36, &[0]),          // no descriptor
    (44, &[0, 0]),       // tables of nothing
    (44, &[0, 4]),       // tables of 1024 entries
    (56, &[0xff; 8]),    // a footer that is not there
    (64, &[0xff, 0xff]), // a file that is cut off
    (72, &[1]),          // a writer that went away
    (513, b"X"),         // a comment
    (534, b"CIX"),       // no content ID
    (600, &[0]),         // a descriptor that ends early
    (13312, &[1]),       // a grain in the metadata
    (13312, &[0, 0, 1]), // a grain behind the end
    (13312, &[0; 4]),    // a grain that is lost
];

/// Whether our words begin with the reference's first line.
fn begins_alike(ours: &Run, theirs: &Run) -> bool {
    let theirs = theirs.stderr.lines().next().unwrap_or_default();
    ours.stderr.starts_with(theirs.trim_end_matches('.'))
}

#[test]
fn damaged_images_are_refused_as_well() {
    let mut side = images();
    let sound = side.read("theirs.vmdk");
    for (at, bytes) in DAMAGE {
        let mut image = sound.clone();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        side.write("bad.vmdk", &image);
        for line in ["info -f vmdk bad.vmdk", "check -f vmdk bad.vmdk"] {
            let (ours, theirs) = (side.ours(line), side.theirs(line));
            // What makes no sense to us and does to the reference is told in our words.
            let stricter = ours.code == 1 && theirs.code == 0 && [36, 13312, 12].contains(&at);
            let emptied = at == 12 && ours.code == 0;
            if !stricter && !emptied && (ours.code != theirs.code || !begins_alike(&ours, &theirs)) {
                side.complain(&format!("{bytes:x?} at {at}: {line}\n  ours: {ours:?}\ntheirs: {theirs:?}"));
            }
        }
    }
    side.finish();
}

/// Extent lines, and what is said of them.
const DESCRIPTORS: [(&str, &str, &str); 16] = [
    ("monolithicFlat", "RW 2048 FLAT \"/etc/passwd\" 0", "has an absolute name"),
    ("monolithicFlat", "RW 2048 FLAT \"../f.raw\" 0", "leads out of the descriptor's folder by '..'"),
    ("monolithicFlat", "RW 2048 FLAT \"sub/../../f.raw\" 0", "leads out of the descriptor's folder by '..'"),
    ("monolithicFlat", "RW 2048 FLAT \"pipe\" 0", "is no regular file"),
    ("monolithicFlat", "RW 2048 FLAT \"json:{}\" 0", "json:{}': No such file or directory"),
    (
        "monolithicFlat",
        "RW 4096 FLAT \"f.raw\" 0",
        "has 1048576 bytes, the descriptor says that 2097152 are in use",
    ),
    (
        "monolithicFlat",
        "RW 2048 FLAT \"f.raw\" 1",
        "has 1048576 bytes, the descriptor says that 1049088 are in use",
    ),
    ("monolithicFlat", "", "names no extent that holds data"),
    ("monolithicFlat", "RW 2048 ZERO", "names no extent that holds data"),
    ("monolithicFlat", "RW 0 FLAT \"f.raw\" 0", "an extent of no sectors"),
    ("monolithicFlat", "RW 2048 FLAT \"f.raw\"", "a flat extent needs its first sector"),
    ("monolithicFlat", "NOACCESS 2048 FLAT \"f.raw\" 0", "an extent without access"),
    ("twoGbMaxExtentSparse", "RW 2048 SPARSE \"f.raw\"", "Image not in VMDK format"),
    ("vmfsSparse", "RW 2048 VMFSSPARSE \"f.raw\"", "found 0x0, expected 0x434f5744"),
    ("seSparse", "RW 2048 SESPARSE \"f.raw\"", "found 0x0, expected 0xcafebabe"),
    ("fullDevice", "RW 2048 FLAT \"f.raw\" 0", "Unsupported image type 'fullDevice'"),
];

fn describe(side: &Side, kind: &str, extents: &str) {
    let head = "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\n";
    side.write("d.vmdk", format!("{head}createType=\"{kind}\"\r\n{extents}\n").as_bytes());
}

#[test]
fn a_descriptor_opens_nothing_that_it_may_not() {
    let side = Side::new();
    side.write("f.raw", &vec![0; 1 << 20]);
    let made = Command::new("mkfifo").arg(side.path("pipe")).status();
    assert!(made.expect("mkfifo runs (package coreutils)").success());
    for (kind, extents, expected) in DESCRIPTORS {
        describe(&side, kind, extents);
        let run = side.ours("convert -f vmdk -O raw d.vmdk out");
        assert_eq!(run.code, 1, "{extents}: {}", run.stderr);
        assert!(run.stderr.contains(expected), "{extents}: {}", run.stderr);
    }
    // A look at the metadata opens no extent, so that a pipe cannot stop it.
    describe(&side, "monolithicFlat", "RW 2048 FLAT \"pipe\" 0");
    let info = side.our_make("info d.vmdk");
    assert!(info.contains("virtual size: 1 MiB") && info.contains("filename: pipe"), "{info}");
    let inspected = side.our_make("info --inspect d.vmdk");
    assert!(inspected.contains("extent") && inspected.contains("pipe"), "{inspected}");
    let forbidden = side.ours("convert --image-names forbid -O raw d.vmdk out");
    assert!(forbidden.code == 1 && forbidden.stderr.contains("policy"), "{}", forbidden.stderr);
    let begun = Instant::now();
    describe(&side, "monolithicFlat", &"RW 1 FLAT \"f.raw\" 0\n".repeat(20_000));
    let many = side.ours("info d.vmdk");
    assert!(many.code == 1 && many.stderr.contains("more than 4096 extents"), "{}", many.stderr);
    side.write("d.vmdk", "# c\nversion=1\n".repeat(1 << 20).as_bytes());
    let long = side.ours("info d.vmdk");
    assert!(long.code == 1 && long.stderr.contains("at most 1048575 are read"), "{}", long.stderr);
    assert!(begun.elapsed().as_secs() < 10, "{:?}", begun.elapsed());
    side.finish();
}

#[test]
fn zeros_and_read_only_parts_are_read() {
    let side = Side::new();
    side.write("f.raw", &vec![7; 1 << 20]);
    let extents = "RDONLY 1024 FLAT \"f.raw\" 1024\nRW 2048 ZERO\nRW 1024 FLAT \"f.raw\" 0";
    describe(&side, "monolithicFlat", extents);
    side.our_make("convert -f vmdk -O raw d.vmdk out");
    let expected = [vec![7; 512 << 10], vec![0; 1 << 20], vec![7; 512 << 10]].concat();
    assert!(side.read("out") == expected);
    let refused = side.ours("convert -n -O vmdk out d.vmdk");
    assert!(refused.code == 1 && refused.stderr.contains("its kind is RDONLY"), "{}", refused.stderr);
    side.finish();
}

#[test]
fn esx_extents_are_read() {
    let side = Side::new();
    // A COWD extent as its header's sheet says: a directory at sector 4, a table at 5, and two grains of 64 KiB.
    let mut cowd = vec![0; (37 + 256) * 512];
    let words = [1u32, 3, 8192, 128, 4, 1, 293, 8, 16, 63];
    cowd[..4].copy_from_slice(b"COWD");
    for (word, nth) in words.iter().zip(1..) {
        cowd[nth * 4..nth * 4 + 4].copy_from_slice(&word.to_le_bytes());
    }
    cowd[2048..2052].copy_from_slice(&5u32.to_le_bytes());
    for (grain, sector) in [(1usize, 37u32), (3, 165)] {
        let at = 2560 + grain * 4;
        cowd[at..at + 4].copy_from_slice(&sector.to_le_bytes());
        cowd[sector as usize * 512..][..65536].fill(grain as u8);
    }
    side.write("cowd.bin", &cowd);
    describe(&side, "vmfsSparse", "RW 8192 VMFSSPARSE \"cowd.bin\"");
    side.our_make("convert -O raw d.vmdk ours");
    side.make("convert -O raw d.vmdk theirs");
    assert!(side.read("ours") == side.read("theirs") && side.read("ours")[65536] == 1);

    let se_sparse = se_sparse();
    side.write("se.bin", &se_sparse);
    describe(&side, "seSparse", "RW 65536 SESPARSE \"se.bin\"");
    side.our_make("convert -O raw d.vmdk ours");
    side.make("convert -O raw d.vmdk theirs");
    let ours = side.read("ours");
    assert!(ours == side.read("theirs") && ours[4096] == 0x11 && ours[5 * 4096] == 0x22);
    let refused = side.ours("convert -n -O vmdk ours d.vmdk");
    assert!(refused.code == 1 && refused.stderr.contains("its kind is SESPARSE"), "{}", refused.stderr);
    side.finish();
}

/// An seSparse extent of 32 MiB as its header's sheet says, with grains 1 and 5, zeros at 2 and nothing mapped at 3.
fn se_sparse() -> Vec<u8> {
    let mut bytes = vec![0; 512 * 1024];
    let mut put = |at: usize, value: u64| bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
    // Pairs of sector and sectors: volatile header, journal header, journal, directory, tables, free bitmap, backmap, grains.
    let places = [(1, 1), (2, 2), (2048, 2048), (8, 1), (64, 128), (200, 8), (208, 8), (512, 512)];
    let head = [0xcafe_babe, 0x2_0000_0001, 65536, 8, 64, 0, 0, 0, 0, 0];
    let fields = head.into_iter().chain(places.into_iter().flat_map(|(at, len)| [at, len]));
    for (value, nth) in fields.zip(0..) {
        put(nth * 8, value);
    }
    put(512, 0xcafe_cafe);
    put(8 * 512, 0x1000_0000_0000_0001);
    let table = 64 * 512 + 64 * 512;
    // Grain numbers 3 and 2: twelve low bits in the upper half of the entry.
    put(table + 8, 3 << 60 | 3 << 48);
    put(table + 2 * 8, 2 << 60);
    put(table + 3 * 8, 1 << 60);
    put(table + 5 * 8, 3 << 60 | 2 << 48);
    bytes[512 * 512 + 3 * 4096..][..4096].fill(0x11);
    bytes[512 * 512 + 2 * 4096..][..4096].fill(0x22);
    bytes
}

#[test]
fn compressed_images_take_whole_grains_once() {
    let side = images();
    side.our_make("create -q -f vmdk -o subformat=streamOptimized s.vmdk 1M");
    let io = |commands: &[&str]| -> Run {
        let mut command = side.command(env!("CARGO_BIN_EXE_drystone-io"), "-f vmdk s.vmdk");
        command.args(commands.iter().flat_map(|one| ["-c", one])).output().expect("drystone-io runs").into()
    };
    let good = io(&["write -P 1 64k 128k", "write -c -P 2 0 64k", "write -z 512k 64k", "read -P 1 100k 60k"]);
    assert_eq!(good.code, 0, "{good:?}");
    for bad in ["write -P 1 64k 64k", "write -P 1 256k 4k", "write -z 100k 1k"] {
        let run = io(&[bad]);
        assert!(
            run.code == 1 && run.stdout.contains("failed") || run.stderr.contains("failed"),
            "{bad}: {run:?}"
        );
    }
    let read = io(&["read -P 1 64k 128k", "read -P 2 0 64k", "read -P 0 192k 832k"]);
    assert_eq!(read.code, 0, "{read:?}");
    assert_eq!(side.theirs("check s.vmdk").code, 0);
    side.our_make("convert -O raw s.vmdk ours");
    side.make("convert -O raw s.vmdk theirs");
    assert!(side.read("ours") == side.read("theirs"));
    side.finish();
}

/// A file of the folder of other makers' images; none, and a word about it, where that is not there.
fn foreign(name: &str) -> Option<PathBuf> {
    let path = folder()?.join(name);
    if !path.exists() {
        let _ = writeln!(std::io::stderr(), "SKIPPED: {} is not there", path.display());
        return None;
    }
    Some(path)
}

/// Images that VMware's library and `vmdktool` made, and the SHA-256 of their disks.
const FOREIGN: [(&str, &str); 4] = [
    ("cot-input.vmdk", "49bc20df15e412a64472421e13fe86ff1c5165e18b2afccf160d4dc19fe68a14"),
    ("plaso-image.vmdk", "854c3db1c4a07a241e2ed9fbd8892adf2adc662c7862a75deed26f3483f414c9"),
    ("vmware-monolithicSparse.vmdk", "a3bcf05f07a1c06a3380eeca8571f0efb2b85afafa1e21662b8cad436d1f7727"),
    ("vmware-streamOptimized.vmdk", "a3bcf05f07a1c06a3380eeca8571f0efb2b85afafa1e21662b8cad436d1f7727"),
];

#[test]
fn images_of_other_makers_hold_what_they_must() {
    let side = Side::new();
    for (name, digest) in FOREIGN {
        let Some(path) = foreign(name) else { continue };
        side.write(name, &std::fs::read(path).expect("an image"));
        side.our_make(&format!("convert -O raw {name} out"));
        let sum = Command::new("sha256sum")
            .arg(side.path("out"))
            .output()
            .expect("sha256sum runs (package coreutils)");
        assert!(String::from_utf8_lossy(&sum.stdout).starts_with(digest), "{name}");
        assert_eq!(side.ours(&format!("check {name}")).code, 0, "{name}");
    }
    if let Some(path) = foreign("iotest-version3.vmdk.bz2") {
        side.write("v3.vmdk", &unpacked(&path));
        // 16 GiB, most of it nothing: what is there, as the reference reads it.
        side.our_make("convert -O qcow2 v3.vmdk ours.qcow2");
        let compared = side.theirs("compare -f vmdk -F qcow2 v3.vmdk ours.qcow2");
        assert_eq!(compared.code, 0, "{}", compared.stdout);
    }
    side.finish();
}
