//! `check -r` beside the reference: the same findings, in the same words, and images that both call clean afterwards.

mod side;

use side::{Run, Side};

const COPIED: u64 = 1 << 63;
const PLACE: u64 = 0x00ff_ffff_ffff_fe00;

/// An image in memory, with places in it by the specification.
#[derive(Clone)]
struct Bytes(Vec<u8>);

impl Bytes {
    fn word(&self, at: u64) -> u64 {
        u64::from_be_bytes(self.0[at as usize..][..8].try_into().expect("eight bytes"))
    }

    fn set(&mut self, at: u64, word: u64) {
        self.0[at as usize..][..8].copy_from_slice(&word.to_be_bytes());
    }

    fn l1(&self) -> u64 {
        self.word(40)
    }

    fn l2(&self) -> u64 {
        self.word(self.l1()) & PLACE
    }

    fn block(&self) -> u64 {
        self.word(self.word(48)) & PLACE
    }
}

/// Makes an image with snapshots, compressed clusters and zeros.
fn rich(side: &Side, options: &str) -> Bytes {
    side.make(&format!("create -q -f qcow2 -o {options} a.qcow2 24M"));
    side.io("a.qcow2", "write 2M 512k; write 0 256k; write 20M 128k");
    side.make("snapshot -c one a.qcow2");
    side.io("a.qcow2", "write 64k 128k; write -z 2M 64k; write 10M 64k; write -c 12M 64k");
    side.make("snapshot -c two a.qcow2");
    side.io("a.qcow2", "write 4M 192k; write -c 15M 64k; write -z 22M 64k");
    Bytes(side.read("a.qcow2"))
}

/// What is told, without the order of findings and the end of the image, which depends on where new tables go.
fn told(run: &Run) -> (i32, Vec<String>, Vec<String>) {
    let lines = |text: &str| {
        let mut lines: Vec<_> = text.lines().filter(|line| !line.starts_with("Image end offset")).collect();
        lines.sort_unstable();
        lines.dedup();
        lines.into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    (run.code, lines(&run.stderr), lines(&run.stdout))
}

/// Repairs with both tools, and compares what they say and what they leave.
fn both(side: &mut Side, about: &str, bytes: &Bytes) {
    for what in ["leaks", "all"] {
        side.write("ours", &bytes.0);
        side.write("theirs", &bytes.0);
        let about = format!("{about}, -r {what}");
        // The images have the same name in what is told.
        let ours = side.ours(&format!("check -r {what} ours"));
        let theirs = side.theirs(&format!("check -r {what} theirs"));
        side.expect_alike(&about, &told(&ours), &told(&theirs));
        let (after, theirs_after) = (side.theirs("check ours"), side.theirs("check theirs"));
        side.expect_alike(&format!("{about}: what is left"), &told(&after), &told(&theirs_after));
        let own = side.ours("check ours");
        side.expect_alike(&format!("{about}: both tools say"), &told(&own), &told(&after));
        if after.code == 0 {
            side.make("convert -f qcow2 -O raw ours ours.raw");
            side.make("convert -f qcow2 -O raw theirs theirs.raw");
            if side.read("ours.raw") != side.read("theirs.raw") {
                side.complain(&format!("{about}: the guests' disks differ"));
            }
        }
    }
}

#[test]
fn repairs_end_as_with_the_reference() {
    let mut side = Side::new();
    for options in ["cluster_size=4k", "cluster_size=64k,refcount_bits=2", "extended_l2=on,cluster_size=16k"]
    {
        let sound = rich(&side, options);
        let (l1, l2) = (sound.l1(), sound.l2());
        both(&mut side, &format!("{options}: sound"), &sound);
        for at in [l1, l2 + 16, l2 + 32] {
            let raw = sound.word(at);
            let wrongs = [raw & !COPIED, raw ^ 0x200, raw | 1, raw | 1 << 56, COPIED | 1 << 40, 0];
            for wrong in wrongs {
                let mut bytes = sound.clone();
                bytes.set(at, wrong);
                // A misaligned table overlaps the one after it, and is never written to.
                if at != l1 || wrong & 0x200 == 0 {
                    both(&mut side, &format!("{options}: {at:#x} = {wrong:#x}"), &bytes);
                }
            }
        }
        let table = sound.word(48);
        for wrong in [0, sound.l1()] {
            let mut bytes = sound.clone();
            bytes.set(table, wrong);
            both(&mut side, &format!("{options}: refcount table entry {wrong:#x}"), &bytes);
        }
        let mut bytes = sound.clone();
        bytes.0[56..60].fill(0);
        both(&mut side, &format!("{options}: no refcount table"), &bytes);
        let mut bytes = sound.clone();
        bytes.set(48, 1 << 30);
        both(&mut side, &format!("{options}: a refcount table beyond the end"), &bytes);
    }
    side.finish();
}

#[test]
fn refcounts_go_to_the_number_of_references() {
    let mut side = Side::new();
    let sound = rich(&side, "cluster_size=4k");
    let counts: [&[(u64, u16)]; 5] =
        [&[(60, 3)], &[(9, 0xffff), (61, 7)], &[(30, 1), (31, 1)], &[(0, 0)], &[(1, 2), (7, 0), (8, 9)]];
    for counts in counts {
        let mut bytes = sound.clone();
        for (cluster, count) in counts {
            let at = (sound.block() + 2 * cluster) as usize;
            bytes.0[at..at + 2].copy_from_slice(&count.to_be_bytes());
        }
        both(&mut side, &format!("{counts:?}"), &bytes);
        bytes.0[79] |= 3;
        both(&mut side, &format!("{counts:?}, dirty and corrupt"), &bytes);
    }
    side.finish();
}

/// The reference gives up on these: it writes new blocks over old ones that it cannot read.
#[test]
fn refcounts_that_the_reference_cannot_rebuild_are_rebuilt() {
    let side = Side::new();
    let sound = rich(&side, "cluster_size=4k");
    for wrong in [sound.block() | 0x200, sound.block() | 1, 1 << 40, 1 << 62, !0x1ff] {
        let mut bytes = sound.clone();
        bytes.set(sound.word(48), wrong);
        side.write("ours", &bytes.0);
        let run = side.ours("check -r all ours");
        assert_eq!(run.code, 0, "{wrong:#x}: {run:?}");
        assert!(run.stderr.contains("Rebuilding refcount structure"), "{wrong:#x}: {run:?}");
        assert_eq!(side.theirs("check ours").code, 0, "{wrong:#x}");
        assert_eq!(side.theirs("compare a.qcow2 ours").code, 0, "{wrong:#x}");
    }
}

#[test]
fn entries_of_the_snapshot_table_are_completed() {
    let mut side = Side::new();
    side.make("create -q -f qcow2 -o cluster_size=4k a.qcow2 4M");
    side.io("a.qcow2", "write 0 64k");
    side.make("snapshot -c one a.qcow2");
    side.io("a.qcow2", "write 0 16k");
    let sound = Bytes(side.read("a.qcow2"));
    let at = sound.word(64) as usize;
    let entry = sound.0[at..at + 68].to_vec();
    for extra_len in [0usize, 8, 1100] {
        let mut bytes = sound.clone();
        let len = bytes.0.len().max(at + 4096);
        bytes.0.resize(len, 0);
        let mut new = entry[..36].to_vec();
        new.extend((extra_len as u32).to_be_bytes());
        new.extend(entry[40..64].iter().chain(&[7; 1100]).take(extra_len));
        new.extend(&entry[64..68]);
        bytes.0[at..at + new.len().max(68)].fill(0);
        bytes.0[at..at + new.len()].copy_from_slice(&new);
        side.write("ours", &bytes.0);
        side.write("theirs", &bytes.0);
        let (ours, theirs) = (side.ours("check -r all ours"), side.theirs("check -r all theirs"));
        side.expect_alike(&format!("{extra_len} bytes of extra data"), &told(&ours), &told(&theirs));
        assert_eq!(side.theirs("check ours").code, 0, "{extra_len} bytes of extra data");
        let list = |name: &str| side.make(&format!("snapshot -l {name}"));
        let (ours, theirs) = (list("ours"), list("theirs"));
        side.expect_alike("snapshots", &ours, &theirs);
    }
    side.finish();
}

/// The reference keeps what the file does not have as snapshots without a name or a disk; here it goes.
#[test]
fn a_snapshot_table_beyond_the_end_of_the_file_is_left_out() {
    let mut side = Side::new();
    side.make("create -q -f qcow2 -o cluster_size=4k a.qcow2 1M");
    side.io("a.qcow2", "write -P 1 0 64k");
    side.make("snapshot -c one a.qcow2");
    side.io("a.qcow2", "write -P 2 0 16k");
    let sound = Bytes(side.read("a.qcow2"));
    let table = sound.word(64);
    let damaged = |at: u64, count: u32, len: u64| {
        let mut bytes = sound.clone();
        bytes.set(64, at);
        bytes.0[60..64].copy_from_slice(&count.to_be_bytes());
        bytes.0.truncate(len as usize);
        bytes
    };
    let (nowhere, max) = (1 << 30, 1 << 16);
    let images = [
        ("beyond the end", damaged(nowhere, 1, u64::MAX), Some(0)),
        ("all that there can be beyond the end", damaged(nowhere, max, u64::MAX), Some(0)),
        ("too many beyond the end", damaged(nowhere, max + 1, u64::MAX), Some(0)),
        ("the most beyond the end", damaged(nowhere, u32::MAX, u64::MAX), Some(0)),
        ("more than there is room for", damaged(table, 9, table + 72), Some(1)),
        ("cut in its name", damaged(table, 9, table + 66), Some(1)),
        ("cut in its extra data", damaged(table, 1, table + 50), Some(1)),
        ("cut in its fixed part", damaged(table, 1, table + 20), Some(1)),
        ("too far for a file", damaged((1 << 63) - 4096, 1, u64::MAX), None),
        ("too far for an offset", damaged(1 << 63, 1, u64::MAX), None),
        ("not at a cluster", damaged(table + 8, 1, u64::MAX), None),
    ];
    for (about, bytes, left) in images {
        for what in ["", "-r leaks"] {
            side.write("ours", &bytes.0);
            side.write("theirs", &bytes.0);
            let (ours, theirs) =
                (side.ours(&format!("check {what} ours")), side.theirs(&format!("check {what} theirs")));
            let refused = theirs.code == 1;
            match refused {
                true => side.expect_alike(&format!("{about}: check {what}"), &ours.code, &theirs.code),
                false => side.expect_alike(&format!("{about}: check {what}"), &told(&ours), &told(&theirs)),
            }
        }
        side.write("ours", &bytes.0);
        let run = side.ours("check -r all ours");
        let Some(left) = left else {
            assert_eq!((run.code, side.theirs("check -r all ours").code), (1, 1), "{about}: {run:?}");
            assert!(side.read("ours") == bytes.0, "{about}: something was written");
            continue;
        };
        // What was cut off and is there again, because the file grew, is counted still.
        assert!(run.code == 0 || run.code == 3, "{about}: {run:?}");
        side.our_make("check -q -r leaks ours");
        assert_eq!(side.theirs("check ours").code, 0, "{about}");
        let listed = side.make("snapshot -l ours").lines().count();
        assert_eq!(listed, if left == 0 { 0 } else { 2 + left }, "{about}");
        // The reference's own repair shows what is left of a file that is cut off.
        side.write("theirs", &sound.0);
        if bytes.0.len() < sound.0.len() {
            side.write("theirs", &bytes.0);
            side.theirs("check -q -r all theirs");
        }
        side.make("convert -f qcow2 -O raw theirs disk");
        side.make("convert -f qcow2 -O raw ours shown");
        assert!(side.read("shown") == side.read("disk"), "{about}");
    }
    side.finish();
}

#[test]
fn an_image_that_was_not_closed_is_repaired_when_it_is_opened_for_writing() {
    let side = Side::new();
    side.make("create -q -f qcow2 -o cluster_size=4k,lazy_refcounts=on a.qcow2 4M");
    side.io("a.qcow2", "write -P 1 0 64k");
    // Killed with its refcounts unwritten: the reference holds them back.
    let mut command = side.command("qemu-io", "-f qcow2");
    command.args(["-c", "write -P 2 1M 64k", "-c", "flush", "-c", "abort", "a.qcow2"]);
    assert!(!command.output().expect("qemu-io is installed").status.success());
    let before = Bytes(side.read("a.qcow2"));
    assert_eq!(before.0[79] & 1, 1, "the reference left no dirty bit behind");
    assert_eq!(side.ours("check a.qcow2").code, side.theirs("check a.qcow2").code);
    let run = side.ours("bench -f qcow2 -w -c 1 -s 4096 --offset 2M a.qcow2");
    assert_eq!(run.code, 0, "{run:?}");
    assert_eq!(Bytes(side.read("a.qcow2")).0[79] & 1, 0);
    assert_eq!(side.theirs("check a.qcow2").code, 0);
}
