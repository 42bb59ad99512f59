//! `bitmap` and `convert --bitmaps` beside the reference: the same words, and the same bitmaps in the image.

mod side;

use side::Side;

/// A stored bitmap: name, flags, log2 of the granularity, and its bits.
type Stored = (String, u32, u8, Vec<u8>);

fn number(bytes: &[u8], at: usize, width: usize) -> u64 {
    bytes[at..at + width].iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// The bitmaps of an image, read by the specification.
fn stored(image: &[u8]) -> Vec<Stored> {
    let cluster = 1usize << number(image, 20, 4);
    let size = number(image, 24, 8);
    let mut at = number(image, 100, 4) as usize;
    let extension = loop {
        let (kind, len) = (number(image, at, 4), number(image, at + 4, 4) as usize);
        match kind {
            0 => return Vec::new(),
            0x2385_2875 => break at + 8,
            _ => at += 8 + len.next_multiple_of(8),
        }
    };
    assert_eq!(number(image, 88, 8) & 1, 1, "the autoclear bit says that the bitmaps are consistent");
    let mut at = number(image, extension + 16, 8) as usize;
    let mut all = Vec::new();
    for _ in 0..number(image, extension, 4) {
        let (table, entries) = (number(image, at, 8) as usize, number(image, at + 8, 4) as usize);
        let granularity = image[at + 17];
        let name_len = number(image, at + 18, 2) as usize;
        let name = String::from_utf8(image[at + 24..at + 24 + name_len].to_vec()).expect("text");
        let mut bits = Vec::new();
        for entry in 0..entries {
            let raw = number(image, table + 8 * entry, 8);
            match raw & 0x00ff_ffff_ffff_fe00 {
                0 => bits.extend(vec![if raw & 1 == 1 { 0xff } else { 0 }; cluster]),
                place => bits.extend(&image[place as usize..place as usize + cluster]),
            }
        }
        bits.truncate(size.div_ceil(1 << granularity).div_ceil(8) as usize);
        all.push((name, number(image, at + 12, 4) as u32, granularity, bits));
        at += (24 + name_len).next_multiple_of(8);
    }
    all
}

/// Runs the same commands with both tools on copies of an image, and compares words and bitmaps.
fn both(side: &mut Side, start: &str, commands: &[&str]) {
    let bytes = side.read(start);
    side.write("ours", &bytes);
    side.write("theirs", &bytes);
    for command in commands {
        let ours = side.ours(&command.replace("IMG", "ours"));
        let mut theirs = side.theirs(&command.replace("IMG", "theirs"));
        // Names that the reference makes up for nodes.
        for made_up in theirs.stderr.clone().split('\'').filter(|word| word.starts_with("#block")) {
            theirs.stderr = theirs.stderr.replace(made_up, "ours");
        }
        side.expect_alike(command, &ours, &theirs);
        let (a, b) = (stored(&side.read("ours")), stored(&side.read("theirs")));
        side.expect_alike(&format!("bitmaps after {command}"), &a, &b);
        let checked = side.theirs("check ours");
        side.expect_alike(&format!("check after {command}"), &(checked.code, ""), &(0, ""));
        let own = side.ours("check ours");
        side.expect_alike(&format!("our check after {command}"), &own, &checked);
    }
}

#[test]
fn bitmaps_are_changed_alike() {
    let mut side = Side::new();
    for options in ["cluster_size=4k", "cluster_size=64k", "cluster_size=512", "extended_l2=on"] {
        side.make(&format!("create -q -f qcow2 -o {options} a.qcow2 5M"));
        let commands = [
            "bitmap --add IMG x",
            "bitmap --add IMG x",
            "bitmap --add -g 512 IMG fine",
            "bitmap --add --disable -g 1M IMG coarse",
            "bitmap --add -g 3 IMG y",
            "bitmap --add -g 256 IMG y",
            "bitmap --add -g 4G IMG y",
            "bitmap --add IMG _",
            "bitmap --enable IMG coarse",
            "bitmap --disable IMG x",
            "bitmap --merge fine --merge x IMG coarse",
            "bitmap --merge nope IMG coarse",
            "bitmap --clear IMG nope",
            "bitmap --remove IMG nope",
            "bitmap --clear IMG coarse",
            "bitmap --remove IMG x",
            "bitmap --remove --add IMG fine",
            "bitmap IMG fine",
            "bitmap -g 512 --clear IMG fine",
            "bitmap -b ours --clear IMG fine",
            "bitmap -F raw --clear IMG fine",
            "bitmap --add IMG",
            "bitmap --remove IMG fine",
            "bitmap --remove IMG coarse",
        ];
        both(&mut side, "a.qcow2", &commands);
    }
    side.make("create -q -f qcow2 -o compat=0.10 a.qcow2 5M");
    both(&mut side, "a.qcow2", &[]);
    let (ours, theirs) = (side.ours("bitmap --add a.qcow2 x"), side.theirs("bitmap --add a.qcow2 x"));
    let known = |text: &str| text.contains("Cannot store dirty bitmaps in qcow2 v2 files");
    assert_eq!((ours.code, known(&ours.stderr)), (theirs.code, known(&theirs.stderr)), "{ours:?}");
    side.finish();
}

#[test]
fn writes_set_the_bits_that_they_set_with_the_reference() {
    let mut side = Side::new();
    for options in ["cluster_size=4k", "cluster_size=64k", "extended_l2=on"] {
        side.make(&format!("create -q -f qcow2 -o {options} a.qcow2 9M"));
        side.io("a.qcow2", "write -P 7 1M 1M");
        for (name, granularity) in [("a", "64k"), ("b", "512"), ("c", "4k"), ("d", "2M")] {
            side.make(&format!("bitmap --add -g {granularity} a.qcow2 {name}"));
        }
        side.make("bitmap --disable a.qcow2 c");
        let before = side.read("a.qcow2");
        side.write("ours", &before);
        side.write("theirs", &before);
        // Fresh clusters, some in place, and some across the end of a bit.
        for (offset, len, count) in
            [(0, 4096, 3), (1_047_552, 3072, 2), (5_242_880, 65536, 4), (9_000_448, 512, 1)]
        {
            let bench =
                format!("bench -f qcow2 -w -d 1 -c {count} -s {len} -S {len} -o {offset} --pattern 5");
            side.our_make(&format!("{bench} ours"));
            side.make(&format!("{bench} theirs"));
        }
        let (a, b) = (stored(&side.read("ours")), stored(&side.read("theirs")));
        assert!(a.iter().any(|(_, _, _, bits)| bits.iter().any(|byte| *byte != 0)));
        side.expect_alike(&format!("{options}: bitmaps"), &a, &b);
        assert_eq!(side.theirs("check ours").code, 0, "{options}");
        assert_eq!(side.theirs("compare ours theirs").code, 0, "{options}");
        // Set bits, merged across images and granularities, by each tool from what the other left.
        side.make("create -q -f qcow2 -o cluster_size=4k t.qcow2 9M");
        side.make("bitmap --add -g 8k t.qcow2 all");
        let start = side.read("t.qcow2");
        for from in ["ours", "theirs"] {
            side.write("t1.qcow2", &start);
            side.write("t2.qcow2", &start);
            let merge = format!("bitmap --merge a --merge b -b {from} -F qcow2");
            side.our_make(&format!("{merge} t1.qcow2 all"));
            side.make(&format!("{merge} t2.qcow2 all"));
            let (a, b) = (stored(&side.read("t1.qcow2")), stored(&side.read("t2.qcow2")));
            side.expect_alike(&format!("{options}: merged from {from}"), &a, &b);
        }
    }
    side.finish();
}

#[test]
fn bitmaps_that_were_not_saved_are_told_and_can_only_be_removed() {
    let mut side = Side::new();
    side.make("create -q -f qcow2 -o cluster_size=4k a.qcow2 4M");
    side.make("bitmap --add a.qcow2 x");
    side.make("bitmap --add --disable a.qcow2 z");
    let mut bytes = side.read("a.qcow2");
    let at = bytes.windows(4).position(|four| four == [0x23, 0x85, 0x28, 0x75]).expect("the extension");
    let directory = number(&bytes, at + 24, 8) as usize;
    bytes[directory + 15] |= 1;
    side.write("a.qcow2", &bytes);
    let commands = [
        "info IMG",
        "bitmap --clear IMG x",
        "bitmap --enable IMG x",
        "bitmap --merge x IMG z",
        "bitmap --merge z IMG x",
        "bitmap --enable IMG z",
    ];
    for command in commands {
        let command = command.replace("IMG", "a.qcow2");
        side.write("a.qcow2", &bytes);
        let ours = side.ours(&command);
        let left = stored(&side.read("a.qcow2"));
        side.write("a.qcow2", &bytes);
        let theirs = side.theirs(&command);
        side.expect_alike(&command, &ours, &theirs);
        side.expect_alike(&format!("{command}: left"), &left, &stored(&side.read("a.qcow2")));
    }
    for more in ["", " --skip-broken-bitmaps"] {
        let convert = format!("convert -f qcow2 -O qcow2 --bitmaps{more} a.qcow2");
        let (ours, theirs) = (side.ours(&format!("{convert} o1")), side.theirs(&format!("{convert} o2")));
        side.expect_alike(&convert, &ours, &theirs);
        if ours.code == 0 {
            let (a, b) = (stored(&side.read("o1")), stored(&side.read("o2")));
            side.expect_alike(&format!("{convert}: bitmaps"), &a, &b);
        }
    }
    side.our_make("bitmap --remove a.qcow2 x");
    assert_eq!(stored(&side.read("a.qcow2")).len(), 1);
    assert_eq!(side.theirs("check a.qcow2").code, 0);
    side.finish();
}

/// Several that were not saved are told in the order of the reference, which is not that of the file.
#[test]
fn bitmaps_that_were_not_saved_are_told_from_the_last_to_the_first() {
    let mut side = Side::new();
    side.make("create -q -f qcow2 -o cluster_size=4k a.qcow2 4M");
    for name in ["z", "good", "a", "m"] {
        side.make(&format!("bitmap --add a.qcow2 {name}"));
    }
    let mut bytes = side.read("a.qcow2");
    let at = bytes.windows(4).position(|four| four == [0x23, 0x85, 0x28, 0x75]).expect("the extension");
    let directory = number(&bytes, at + 24, 8) as usize;
    for entry in [0, 2, 3] {
        // Each takes 32 bytes, and its flags are at 12..16.
        bytes[directory + 32 * entry + 15] |= 1;
    }
    side.write("a.qcow2", &bytes);
    for more in ["", " --skip-broken-bitmaps"] {
        let convert = format!("convert -f qcow2 -O qcow2 --bitmaps{more} a.qcow2");
        let (ours, theirs) = (side.ours(&format!("{convert} o1")), side.theirs(&format!("{convert} o2")));
        assert!(theirs.stderr.contains("inconsistent bitmap 'm'"), "{theirs:?}");
        side.expect_alike(&convert, &ours, &theirs);
    }
    side.finish();
}

/// Bitmaps of an overlay are merged into one of the image below it, and nothing below has to be there.
#[test]
fn what_is_below_is_not_opened() {
    let side = Side::new();
    side.make("create -q -f qcow2 base 4M");
    side.make("create -q -f qcow2 -b base -F qcow2 over");
    for image in ["base", "over"] {
        side.make(&format!("bitmap --add -g 64k {image} x"));
    }
    side.io("over", "write 1M 200k");
    side.our_make("bitmap --merge x -b over -F qcow2 base x");
    side.make("rebase -u -b missing -F qcow2 over");
    side.our_make("bitmap --add over y");
    side.our_make("bitmap --merge y -b over -F qcow2 base x");
    side.make("rebase -u -b base -F qcow2 over");
    for image in ["base", "over"] {
        side.make(&format!("check -q {image}"));
    }
    assert!(side.make("info --output=json base").contains("\"x\""));
}

#[test]
fn convert_copies_bitmaps() {
    let mut side = Side::new();
    side.make("create -q -f qcow2 a.qcow2 9M");
    side.make("bitmap --add -g 4k a.qcow2 one");
    side.make("bitmap --add a.qcow2 two");
    side.io("a.qcow2", "write 1M 300k; write 8M 1M");
    side.make("bitmap --disable a.qcow2 two");
    for target in ["-O qcow2", "-O qcow2 -o cluster_size=4k", "-O qcow2 -c", "-O raw"] {
        let convert = format!("convert -f qcow2 {target} --bitmaps a.qcow2");
        let (ours, theirs) = (side.ours(&format!("{convert} o1")), side.theirs(&format!("{convert} o2")));
        side.expect_alike(&convert, &ours, &theirs);
        if ours.code == 0 {
            let (a, b) = (stored(&side.read("o1")), stored(&side.read("o2")));
            side.expect_alike(&format!("{convert}: bitmaps"), &a, &b);
            assert_eq!(side.theirs("check o1").code, 0, "{convert}");
        }
    }
    side.finish();
}

/// What a commit writes to the base, and what it takes out of the image, sets bits in the bitmaps of both.
#[test]
fn commits_set_the_bits_that_they_set_with_the_reference() {
    let mut side = Side::new();
    for folder in ["ours", "theirs"] {
        std::fs::create_dir(side.path(folder)).expect("a folder");
    }
    for (in_base, in_top) in [(true, false), (false, true), (true, true)] {
        for (option, len, granularity) in
            [("", "1M", "64k"), ("-d", "1M", "4k"), ("", "2M", "512"), ("-b b", "2M", "128k")]
        {
            for folder in ["ours", "theirs"] {
                let (base, top) = (format!("{folder}/b"), format!("{folder}/t"));
                side.make(&format!("create -q -f qcow2 {base} 1M"));
                side.io(&base, "write -P 1 0 300k");
                side.make(&format!("create -q -f qcow2 -b b -F qcow2 {top} {len}"));
                let images = [(in_base, &base), (in_top, &top)];
                for (_, image) in images.into_iter().filter(|(wanted, _)| *wanted) {
                    side.make(&format!("bitmap --add -g {granularity} {image} on"));
                    side.make(&format!("bitmap --add --disable {image} off"));
                }
                side.io(&top, "write -P 2 64k 70k; write -z 256k 64k; write -P 3 900k 512");
            }
            let about = format!("{option} {len} {granularity} {in_base} {in_top}");
            let words = |folder: &str| format!("commit {option} {folder}/t");
            let (ours, theirs) = (side.ours(&words("ours")), side.theirs(&words("theirs")));
            side.expect_alike(&about, &ours, &theirs);
            for image in ["b", "t"] {
                let bits = |folder: &str| stored(&side.read(&format!("{folder}/{image}")));
                let (ours, theirs) = (bits("ours"), bits("theirs"));
                assert_eq!(ours.is_empty(), !(if image == "b" { in_base } else { in_top }), "{about}");
                side.expect_alike(&format!("{about}: bitmaps of {image}"), &ours, &theirs);
                assert_eq!(side.theirs(&format!("check -q ours/{image}")).code, 0, "{about}");
            }
            assert_eq!(side.theirs("compare -q ours/t theirs/t").code, 0, "{about}");
        }
    }
    side.finish();
}
