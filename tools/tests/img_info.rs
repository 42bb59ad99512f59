//! `info` of encrypted images, and of images with dirty bitmaps, beside the installed `qemu-img`.

mod side;

use side::Side;

#[test]
fn encryption_is_described_alike() {
    let mut side = Side::new();
    let made = [
        "aes,encrypt.key-secret=s",
        "luks,encrypt.key-secret=s,encrypt.iter-time=10",
        "luks,encrypt.key-secret=s,encrypt.iter-time=10,encrypt.cipher-alg=aes-128,encrypt.cipher-mode=cbc,\
         encrypt.ivgen-alg=essiv,encrypt.ivgen-hash-alg=sha256",
        "luks,encrypt.key-secret=s,encrypt.iter-time=10,encrypt.cipher-alg=serpent-192,encrypt.hash-alg=sha512",
        "luks,encrypt.key-secret=s,encrypt.iter-time=10,encrypt.cipher-mode=ecb,encrypt.ivgen-alg=plain",
    ];
    for (at, options) in made.iter().enumerate() {
        let secret = "--object secret,id=s,data=x";
        side.make(&format!("create -q -f qcow2 {secret} -o encrypt.format={options} image{at} 1M"));
        for output in ["human", "json"] {
            side.both("encrypted", &format!("info --output={output} image{at}"));
        }
    }
    side.finish();
}

#[test]
fn a_damaged_luks_header_is_refused() {
    let side = Side::new();
    let secret = "--object secret,id=s,data=x";
    side.make(&format!(
        "create -q -f qcow2 {secret} -o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 image 1M"
    ));
    let good = side.read("image");
    let find = |what: &[u8]| good.windows(what.len()).position(|window| window == what).expect("it is there");
    let pointer = find(&0x0537_be77_u32.to_be_bytes()) + 8;
    let luks = find(b"LUKS\xba\xbe");
    let damages: [(usize, &[u8]); 6] = [
        (pointer, &[0xff; 8]),
        (pointer + 8, &[0; 8]),
        (pointer - 8, &[0x12]),
        (luks, b"x"),
        (luks + 7, &[2]),
        (luks + 208, &[0xff]),
    ];
    for (at, bytes) in damages {
        let mut image = good.clone();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        side.write("image", &image);
        let run = side.ours("info image");
        assert_eq!((run.code, run.stdout.as_str()), (1, ""), "byte {at}");
        let named = run.stderr.contains("LUKS") || run.stderr.contains("Keyslot");
        assert!(named, "{}", run.stderr);
    }
}

#[test]
fn dirty_bitmaps_are_listed_alike() {
    let mut side = Side::new();
    side.make("create -q -f qcow2 image 64M");
    for line in ["--add image first", "--add -g 1M --disable image second", "--add -g 512 image third"] {
        side.make(&format!("bitmap {line}"));
        for output in ["human", "json"] {
            side.both("bitmaps", &format!("info --output={output} image"));
        }
    }
    let good = side.read("image");
    // The flag that says that a bitmap is being written, and the one that says that the bitmaps fit the image.
    let kind = 0x2385_2875_u32.to_be_bytes();
    let extension = good.windows(4).position(|window| window == kind).expect("it is there") + 8;
    let place = good[extension + 16..extension + 24].try_into().expect("eight bytes");
    let name = u64::from_be_bytes(place) as usize + 24;
    let mut bytes = good.clone();
    bytes[name - 9] |= 1;
    side.write("image", &bytes);
    side.both("in use", "info image");
    bytes.clone_from(&good);
    bytes[95] &= !1;
    side.write("image", &bytes);
    let shown = (side.ours("info image").stdout, side.theirs("info image").stdout);
    side.expect_alike("stale", &shown.0, &shown.1);
    // An entry that goes beyond the directory.
    bytes.clone_from(&good);
    bytes[name - 1] = 0xff;
    side.write("image", &bytes);
    assert_eq!(side.ours("info image").code, 1);
    side.finish();
}
