//! `write -b` and `read -b`: the state of a machine, behind the disk's end, beside the installed `qemu-io`.

mod pair;

use pair::Pair;

const IMAGES: &[&str] = &[
    "qemu-img create -q -f qcow2 a.qcow2 1M",
    "qemu-img create -q -f qcow2 -o compat=0.10,cluster_size=4k b.qcow2 10M",
    "qemu-img create -q -f qcow2 -o extended_l2=on,cluster_size=128k c.qcow2 3M",
    "qemu-img create -q -f qcow2 -b a.qcow2 -F qcow2 top.qcow2 512k",
    "qemu-img create -q -f qcow2 counted.qcow2 1M",
    "qemu-img bitmap --add counted.qcow2 bits",
    "qemu-img create -q -f raw r.raw 1M",
];

/// Each runs the tool of the other on the image that the first wrote.
fn read_by_the_other(pair: &mut Pair, image: &str, line: &str) {
    let args = |path: std::path::PathBuf| {
        vec!["-f".into(), "qcow2".into(), "-c".into(), line.to_owned(), path.display().to_string()]
    };
    let ours = pair.run_ours(&args(pair.theirs(image)), "");
    let theirs = pair.run_theirs(&args(pair.ours(image)), "");
    if ours != theirs || ours.code != 0 {
        pair.complain(&format!("{line} of the other's {image}\n  ours: {ours:?}\ntheirs: {theirs:?}"));
    }
}

#[test]
fn state_is_written_and_read_as_the_reference_does() {
    let mut pair = Pair::new(IMAGES);
    for image in ["a.qcow2", "b.qcow2", "c.qcow2", "top.qcow2", "counted.qcow2"] {
        pair.script(
            "-f qcow2",
            "read -b -P 0 0 64k; write -b -P 7 0 64k; write -P 1 0 64k; read -b -P 7 0 64k; write -b -P 3 100k 3k; \
             read -b -P 0 64k 36k; read -b -P 3 100k 3k; read -b -P 0 1G 64k; length; map; info; read -P 0 128k 64k",
            image,
        );
        pair.script("-f qcow2", "write -b -q -P 9 64M 1M; read -b -v 100k 512; read -P 1 0 64k", image);
        read_by_the_other(&mut pair, image, "read -b -P 9 64M 1M");
        read_by_the_other(&mut pair, image, "read -b -P 7 0 64k");
        pair.same_disks(image);
    }
    pair.finish();
}

#[test]
fn what_cannot_be_is_refused_in_the_same_words() {
    let mut pair = Pair::new(IMAGES);
    pair.write("eio.conf", b"[inject-error]\nevent = \"vmstate_save\"\nerrno = \"5\"\n");
    pair.script("-f raw", "write -b 0 64k; read -b 0 64k", "r.raw");
    pair.script("-r -f qcow2", "write -b 0 64k", "a.qcow2");
    pair.script(
        "-f qcow2",
        "write -b 1E 64k; read -b 1E 64k; read -b 4E 64k; write -b -z 0 64k; write -b 1 3; write -b 0 3; write -b -c 2k 3k; write -b -s x 0 512",
        "a.qcow2",
    );
    pair.both("-c 'write -b 0 1M' -c 'read -b -P 0xcd 0 1M' --image-opts driver=raw,file.driver=qcow2,file.file.filename=a.qcow2");
    pair.script("", "write -b 0 1M; read 0 1M", "blkdebug:eio.conf:b.qcow2");
    pair.same_disks("a.qcow2");
    pair.same_disks("b.qcow2");
    pair.finish();
}

/// A snapshot holds the state along with the disk.
#[test]
fn a_snapshot_keeps_the_state() {
    let mut pair = Pair::new(IMAGES);
    let snapshot = |pair: &Pair, option: &str| {
        for path in [pair.ours("a.qcow2"), pair.theirs("a.qcow2")] {
            let run =
                std::process::Command::new("qemu-img").args(["snapshot", option, "s"]).arg(path).status();
            assert!(run.expect("qemu-img is installed").success());
        }
    };
    pair.script("-f qcow2", "write -b -P 7 0 128k; write -P 1 0 64k", "a.qcow2");
    snapshot(&pair, "-c");
    pair.script(
        "-f qcow2",
        "write -b -P 8 64k 128k; write -P 2 0 64k; read -b -P 7 0 64k; read -b -P 8 64k 128k",
        "a.qcow2",
    );
    snapshot(&pair, "-a");
    pair.script("-f qcow2", "read -b -P 7 0 128k; read -b -P 0 128k 64k; read -P 1 0 64k", "a.qcow2");
    pair.same_disks("a.qcow2");
    pair.finish();
}
