//! `measure` beside the installed `qemu-img`: the same sizes for many images and options, the same words.

mod released;
mod side;

use released::as_released;
use side::{Run, Side};

const SHAPES: &[&str] = &[
    "cluster_size=64k",
    "cluster_size=512",
    "cluster_size=4k,refcount_bits=1",
    "cluster_size=2M,refcount_bits=64",
    "extended_l2=on",
    "extended_l2=on,cluster_size=16k,refcount_bits=8",
    "compat=0.10",
    "compression_type=zstd",
    "backing_file=b,backing_fmt=raw",
    "preallocation=metadata",
    "preallocation=falloc",
    "preallocation=full,cluster_size=4k",
    "lazy_refcounts=on,compat=0.10",
    "data_file=d,data_file_raw=on",
];

#[test]
fn empty_disks() {
    let mut side = Side::new();
    for shape in SHAPES {
        for size in ["0", "1", "512", "1025", "64k", "1G", "1.5G", "100G", "1T", "64T"] {
            side.both("size", &format!("measure -O qcow2 -o {shape} --size {size}"));
        }
    }
    side.both("json", "measure -O qcow2 --size 7G --output=json");
    side.both("json", "measure --size 7G --output=json");
    side.finish();
}

#[test]
fn images() {
    let mut side = Side::new();
    side.write("raw", &side::disk((3 << 20) + 1024, 5));
    side.make("create -q -f qcow2 base 6M");
    side.io("base", "write -P 1 0 100k; write -P 2 1M 1M; write -z 3M 64k");
    side.make("bitmap --add base b0");
    side.make("bitmap --add -g 512 base a-longer-name-than-eight-bytes");
    side.make("snapshot -c s1 base");
    side.io("base", "write -P 3 4M 1M; discard 1M 64k");
    side.make("create -q -f qcow2 -o extended_l2=on -b base -F qcow2 top 9M");
    side.io("top", "write -P 4 20k 2k; write -P 5 5M 2k; write -P 6 8M 70k; write -z 1100k 10k");
    side.make("convert -c -O qcow2 top packed");
    side.make("create -q -f qcow2 -o preallocation=metadata ahead 4M");
    side.io("ahead", "write -P 1 1M 64k");
    side.make("create -q -f qcow2 -o compat=0.10 old 2M");
    for image in ["raw", "base", "top", "packed", "ahead", "old", "-l s1 base", "-l snapshot.name=s1 base"] {
        side.both("raw", &format!("measure {image}"));
        for shape in SHAPES {
            side.both("image", &format!("measure -O qcow2 -o {shape} {image}"));
            side.both("image", &format!("measure -O qcow2 -o {shape} --output=json {image}"));
        }
    }
    side.both("options", "measure --image-opts driver=qcow2,file.filename=top -O qcow2");
    side.both("options", "measure -U -f qcow2 top -O qcow2");
    side.finish();
}

/// A bitmap that was in use when the image was last closed badly is not copied, so it does not count.
#[test]
fn a_bitmap_in_use_does_not_count() {
    let mut side = Side::new();
    side.make("create -q -f qcow2 i 4M");
    side.make("bitmap --add i first");
    side.make("bitmap --add i second");
    let mut bytes = side.read("i");
    let flags = bytes.windows(5).position(|name| name == b"first").expect("the directory's entry") - 24 + 15;
    bytes[flags] |= 1;
    side.write("i", &bytes);
    side.both("in use", "measure -O qcow2 i");
    side.finish();
}

/// Sizes that QEMU 10.0.2 gives, which tries for seconds how fast a key is made each time it is asked.
const ENCRYPTED: &[(&str, u64, u64)] = &[
    ("-O luks --size 1G", 1075810304, 1075810304),
    ("-O luks --size 1000", 2069480, 2069480),
    ("-O luks --size 9223372036854775807", 9223372036856844287, 9223372036856844287),
    ("-O luks -f raw r", 3117056, 3117056),
    ("-O luks q", 3117056, 3117056),
    ("-O luks -o cipher-alg=aes-128 --size 0", 1052672, 1052672),
    ("-O luks -o cipher-alg=aes-192 --size 0", 1544192, 1544192),
    ("-O luks -o cipher-alg=serpent-128 --size 0", 1052672, 1052672),
    ("-O luks -o cipher-alg=twofish-256,cipher-mode=cbc --size 0", 1052672, 1052672),
    ("-O luks -o cipher-alg=cast5-128,cipher-mode=cbc --size 0", 528384, 528384),
    ("-O luks -o cipher-mode=ctr,hash-alg=sha512 --size 0", 1052672, 1052672),
    ("-O luks -o ivgen-alg=essiv,ivgen-hash-alg=md5 --size 0", 2068480, 2068480),
    ("-O luks -o ivgen-alg=plain,ivgen-hash-alg=sha1 --size 0", 2068480, 2068480),
    ("-O qcow2 -o encrypt.format=luks --size 1G", 2490368, 1076232192),
    ("-O qcow2 -o encrypt.format=luks,cluster_size=512 --size 1M", 2091008, 3139584),
    ("-O qcow2 -o encrypt.format=luks,cluster_size=2M q", 12582912, 14680064),
    ("-O qcow2 -o encryption=on,encrypt.format=luks r", 2490368, 3473408),
    (
        "-O qcow2 -o encrypt.format=luks,encrypt.cipher-alg=aes-128,preallocation=full --size 1M",
        2490368,
        2490368,
    ),
];

#[test]
fn encrypted_images() {
    let side = Side::new();
    side.make("create -q r 1M");
    side.make("create -q -f qcow2 q 1M");
    for (line, required, whole) in ENCRYPTED {
        let key = if line.contains("qcow2") { "encrypt.key-secret=s" } else { "key-secret=s" };
        let measured = side.our_make(&format!("measure -o {key} --object secret,id=s,data=a {line}"));
        let expected = format!("required size: {required}\nfully allocated size: {whole}\n");
        assert!(measured.starts_with(&expected), "{line}: {measured}");
    }
}

#[test]
fn encryption_that_cannot_be() {
    let mut side = Side::new();
    side.make("create -q r 1M");
    side.make("create -q -f qcow2 q 1M");
    for line in [
        "-O luks --size 1G",
        "-O luks q",
        "-O luks -o cipher-alg=aes-128 --size 1G",
        "-O qcow2 -o encrypt.format=luks --size 1G",
        "-O qcow2 -o encrypt.format=luks,encrypt.cipher-alg=foo --size 1G",
        "-O qcow2 -o encryption=on --size 1G",
        "-O qcow2 -o encrypt.format=aes r",
        "-O qcow2 -o encrypt.format=foo r",
        "-O luks -o iter-time=x --size 0",
        "-O qcow2 -o encrypt.iter-time=x --size 0",
        "-O luks -o foo=1 --size 0",
        "-O luks -o key-secret=t --size 0 --object secret,id=s,data=a",
        "-O luks -o key-secret= --size 0 --object secret,id=s,data=a",
    ] {
        side.both("encryption", &format!("measure {line}"));
    }
    for cipher in CIPHERS {
        let line = format!("-O luks -o key-secret=s,{cipher} --object secret,id=s,data=a --size 0");
        side.both("cipher", &format!("measure {line}"));
    }
    side.finish();
}

const CIPHERS: &[&str] = &[
    "cipher-alg=cast5-128",
    "cipher-alg=cast5-128,cipher-mode=cbc,ivgen-alg=essiv",
    "cipher-alg=3des,cipher-mode=cbc",
    "cipher-alg=des",
    "cipher-alg=sm4",
    "cipher-alg=foo",
    "cipher-alg=",
    "cipher-mode=foo",
    "ivgen-alg=essiv,ivgen-hash-alg=sha1",
    "cipher-alg=serpent-256,ivgen-alg=essiv,ivgen-hash-alg=sha512",
    "cipher-alg=twofish-256,ivgen-alg=essiv,ivgen-hash-alg=sha224",
    "ivgen-alg=foo",
    "ivgen-hash-alg=foo",
    "hash-alg=foo",
];

#[test]
fn refusals() {
    let mut side = Side::new();
    for line in ["create -q r 1M", "create -q -f qcow2 q 1M"] {
        side.make(line);
    }
    for line in REFUSALS.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let theirs = side.theirs(line);
        let theirs = Run { stderr: as_released(&theirs.stderr), ..theirs };
        let ours = side.ours(line);
        side.expect_alike(line, &ours, &theirs);
    }
    side.finish();
}

/// One command line a line; `_` is an empty word.
const REFUSALS: &str = r#"
    measure
    measure r q
    measure --size 1G r
    measure -f raw
    measure -l x
    measure --image-opts
    measure --size 1G -f raw
    measure -q --size 1G
    measure -s 1G
    measure --size
    measure --size -1
    measure --size x
    measure --size 1G --size 2G
    measure --si 1G
    measure nope
    measure _
    measure -f qcow2 r
    measure -f foo r
    measure -O foo r
    measure -O _ r
    measure -O file r
    measure -O foo --size 1G
    measure -O raw -o preallocation=full r
    measure -O raw --size 1025
    measure -O qcow2 -o help --size 1G
    measure -O qcow2 -o foo=3 --size 1G
    measure -O qcow2 -o foo r
    measure -O qcow2 -o _ --size 1G
    measure -O qcow2 -o , --size 1G
    measure -O qcow2 -o cluster_size=3 --size 1G
    measure -O qcow2 -o cluster_size=0 --size 1G
    measure -O qcow2 -o cluster_size=4M --size 1G
    measure -O qcow2 -o cluster_size=4k,extended_l2=on --size 1G
    measure -O qcow2 -o compat=0.10,extended_l2=on --size 1G
    measure -O qcow2 -o compat=0.10,refcount_bits=8 --size 1G
    measure -O qcow2 -o refcount_bits=7 --size 1G
    measure -O qcow2 -o refcount_bits=128 --size 1G
    measure -O qcow2 -o compat=foo q
    measure -O qcow2 -o preallocation=bar --size 1G
    measure -O qcow2 -o cluster_size=512 --size 1P
    measure -O qcow2 -o size=2G --size 1G
    measure -O qcow2 -o size=2G q
    measure -l foo q
    measure -l foo r
    measure -l snapshot.id=1 q
    measure -l snapshot.foo=1 q
    measure --output=xml r
    measure --output=json --size 0
"#;
