//! LUKS volumes and encrypted qcow2 images beside the installed `qemu-img` and `cryptsetup`: words and exit codes, each
//! other's images, real ones and hostile ones.

mod real;
mod side;

use std::io::Write as _;
use std::process::{Command, Stdio};

use drystone_core::crypto::Hash;
use drystone_core::format::luks::keyslot::WORK_MAX;
use real::{folder, unpacked};
use side::{Side, disk};

const SECRETS: &str =
    "--object secret,id=s,data=abc --object secret,id=n,data=new --object secret,id=w,data=wrong";

fn luks(name: &str) -> String {
    format!("{SECRETS} --image-opts driver=luks,key-secret=s,file.filename={name}")
}

fn qcow2(name: &str) -> String {
    format!("{SECRETS} --image-opts driver=qcow2,encrypt.key-secret=s,file.filename={name}")
}

/// Images of the reference, of ours, and what they hold.
fn images() -> Side {
    let side = Side::new();
    side.write("r", &disk(3 << 20, 3));
    let luks = format!("{SECRETS} -O luks -o key-secret=s,iter-time=10 r");
    let inside =
        format!("{SECRETS} -O qcow2 -o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 r");
    side.make(&format!("convert {luks} theirs.luks"));
    side.make(&format!("convert {inside} theirs.qcow2"));
    side.our_make(&format!("convert {luks} ours.luks"));
    side.our_make(&format!("convert {inside} ours.qcow2"));
    side
}

#[test]
fn commands_say_the_same() {
    let mut side = images();
    for image in ["theirs.luks", "ours.luks", "theirs.qcow2", "ours.qcow2"] {
        for line in ["info", "info --output=json", "check", "map"] {
            side.both("without a key", &format!("{line} {image}"));
        }
    }
    for image in [luks("theirs.luks"), luks("ours.luks"), qcow2("theirs.qcow2"), qcow2("ours.qcow2")] {
        for line in ["info", "info --output=json", "map", "map --output=json", "check", "measure -O qcow2"] {
            side.both("with a key", &format!("{line} {image}"));
        }
    }
    for line in [
        "create -f luks x 4M",
        "create -f luks -o key-secret=s x 4M",
        "create -f qcow2 -o encrypt.format=luks x 4M",
        "create -f qcow2 -o encrypt.key-secret=s x 4M",
        "create -f qcow2 -o encrypt.format=no,encrypt.key-secret=s x 4M",
        "create -f qcow2 -o encryption=on,encrypt.format=luks x 4M",
        "amend -f luks -o help",
        "map --object secret,id=s,data=no --image-opts driver=luks,key-secret=s,file.filename=ours.luks",
        "map --image-opts driver=luks,key-secret=t,file.filename=ours.luks",
        "map --object secret,id=s,data=abc --image-opts driver=qcow2,encrypt.format=aes,encrypt.key-secret=s,file.filename=ours.qcow2",
        "convert -c --object secret,id=s,data=abc -O qcow2 -o encrypt.format=luks,encrypt.key-secret=s r x",
        "measure --object secret,id=s,data=abc -O luks -o key-secret=s,cipher-alg=aes-128 --size 5M",
    ] {
        side.both("by itself", line);
    }
    side.finish();
}

#[test]
fn each_reads_what_the_other_made() {
    let side = images();
    for ciphers in [
        "cipher-alg=aes-128",
        "cipher-mode=cbc,ivgen-alg=essiv,ivgen-hash-alg=sha256",
        "cipher-mode=cbc,ivgen-alg=plain",
        "cipher-alg=serpent-256,hash-alg=sha512",
        "cipher-alg=twofish-128,hash-alg=sha1",
        "cipher-alg=aes-128,cipher-mode=ctr,hash-alg=ripemd160",
        "hash-alg=md5",
        "hash-alg=sm3",
        "cipher-alg=aes-128,cipher-mode=cbc,ivgen-alg=essiv,ivgen-hash-alg=md5",
        "cipher-mode=cbc,ivgen-alg=essiv,ivgen-hash-alg=sm3",
    ] {
        let line = format!("convert {SECRETS} -O luks -o key-secret=s,iter-time=10,{ciphers} r");
        side.our_make(&format!("{line} a.luks"));
        side.make(&format!("{line} b.luks"));
        for name in ["a.luks", "b.luks"] {
            let line = format!("compare {} driver=raw,file.filename=r", luks(name));
            for run in [side.ours(&line), side.theirs(&line)] {
                assert_eq!(
                    (run.code, &*run.stdout),
                    (0, "Images are identical.\n"),
                    "{ciphers} {name}: {run:?}"
                );
            }
        }
    }
    for image in [luks("theirs.luks"), luks("ours.luks"), qcow2("theirs.qcow2"), qcow2("ours.qcow2")] {
        let line = format!("compare {image} driver=raw,file.filename=r");
        for run in [side.ours(&line), side.theirs(&line)] {
            assert_eq!((run.code, &*run.stdout), (0, "Images are identical.\n"), "{image}: {run:?}");
        }
    }
    assert_eq!(side.theirs(&format!("check {}", qcow2("ours.qcow2"))).code, 0);
    side.finish();
}

/// Options of `amend`; each on volumes with the passphrases `abc` and `new`.
const AMEND: [&str; 22] = [
    "-o state=inactive,keyslot=5",
    "-o state=inactive,old-secret=w",
    "-o state=foo,old-secret=w",
    "-o new-secret=n",
    "-o state=inactive,new-secret=n",
    "-o state=active,new-secret=n,old-secret=s",
    "-o state=active",
    "-o state=inactive",
    "-o state=active,new-secret=x",
    "-o state=inactive,keyslot=0,old-secret=n",
    "-o state=inactive,keyslot=0,old-secret=s",
    "-o state=inactive,iter-time=10,keyslot=1",
    "-o state=inactive,old-secret=n",
    "-o state=inactive,keyslot=0",
    "-o keyslot=1",
    "-o size=4M",
    "-o cipher-alg=aes-128",
    "-o state=active,new-secret=w,keyslot=0",
    "-o state=active,new-secret=w,keyslot=0,iter-time=10 --force",
    "-o state=active,iter-time=10,new-secret=w",
    "-o state=inactive,keyslot=8",
    "-o state=inactive,old-secret=x",
];

#[test]
fn keyslots_change_as_the_reference_changes_them() {
    let mut side = images();
    side.make(&format!("amend {} -o state=active,new-secret=n,iter-time=10", luks("theirs.luks")));
    let two = side.read("theirs.luks");
    for options in AMEND {
        let opened = |run: &side::Run, side: &Side| {
            let opens = |id| {
                let image = format!("driver=luks,key-secret={id},file.filename=k.luks");
                side.theirs(&format!("map {SECRETS} --image-opts {image}")).code == 0
            };
            (run.code, run.stderr.clone(), opens("s"), opens("n"), opens("w"))
        };
        side.write("k.luks", &two);
        let ours = opened(&side.ours(&format!("amend {} {options}", luks("k.luks"))), &side);
        side.write("k.luks", &two);
        let theirs = opened(&side.theirs(&format!("amend {} {options}", luks("k.luks"))), &side);
        side.expect_alike(options, &ours, &theirs);
    }
    side.finish();
}

/// Runs cryptsetup with a passphrase on its standard input, and tells whether it succeeded.
fn cryptsetup(args: &[&str], passphrase: &[u8]) -> bool {
    let mut command = Command::new("cryptsetup");
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().expect("cryptsetup is installed (package cryptsetup-bin)");
    let mut input = child.stdin.take().expect("a pipe");
    // It may know without reading that there is nothing to open.
    let _ = input.write_all(passphrase);
    drop(input);
    child.wait().expect("it ends").success()
}

fn cryptsetup_opens(path: &str, passphrase: &str) -> bool {
    cryptsetup(&["open", "--test-passphrase", "--key-file", "-", path], passphrase.as_bytes())
}

#[test]
fn cryptsetup_opens_what_we_make_and_we_what_it_makes() {
    if Command::new("cryptsetup").arg("--version").output().is_err() {
        let _ = writeln!(std::io::stderr(), "skipped: cryptsetup is not installed (package cryptsetup-bin)");
        return;
    }
    let side = images();
    let path = |name: &str| side.path(name).to_str().expect("a path of text").to_owned();
    assert!(cryptsetup_opens(&path("ours.luks"), "abc"));
    assert!(!cryptsetup_opens(&path("ours.luks"), "abd"));
    side.our_make(&format!("amend {} -o state=active,new-secret=n,iter-time=10", luks("ours.luks")));
    assert!(cryptsetup_opens(&path("ours.luks"), "new"));
    // The material of keyslots is encrypted as the payload is, by cryptsetup's own hands.
    for cipher in ["aes-xts-benbi", "aes-cbc-benbi", "aes-cbc-plain64be"] {
        side.write("v1", &vec![0; 4 << 20]);
        let volume = path("v1");
        let cheap = ["--pbkdf-force-iterations", "1000", "--key-file", "-", "--cipher", cipher, &volume];
        let made = [&["luksFormat", "-q", "--type", "luks1", "--key-size", "256"][..], &cheap].concat();
        assert!(cryptsetup(&made, b"abc"), "cryptsetup makes {cipher}");
        side.our_make(&format!("map --output=json {}", luks("v1")));
    }
    for sector in ["512", "4096"] {
        let plain = disk(1 << 20, 9);
        let mut file = plain.clone();
        // What it makes room for the header with.
        file.resize(34 << 20, 0);
        side.write("v2", &file);
        let options = format!(
            "reencrypt --encrypt -q --type luks2 --reduce-device-size 32M --force-offline-reencrypt --key-file - \
             --pbkdf argon2id --pbkdf-memory 64 --pbkdf-force-iterations 4 --sector-size {sector} {}",
            path("v2")
        );
        let made =
            cryptsetup(&options.split(' ').filter(|word| !word.is_empty()).collect::<Vec<_>>(), b"abc");
        assert!(made, "cryptsetup encrypts a plain file");
        side.our_make(&format!("convert {} -O raw back", luks("v2")));
        assert!(side.read("back").starts_with(&plain), "sectors of {sector}");
        side.our_make(&format!("amend {} -o state=active,new-secret=n", luks("v2")));
        assert!(cryptsetup_opens(&path("v2"), "new"));
        side.our_make(&format!("amend {} -o state=inactive,old-secret=n", luks("v2")));
        assert!(!cryptsetup_opens(&path("v2"), "new") && cryptsetup_opens(&path("v2"), "abc"));
    }
    side.finish();
}

/// Options of a new LUKS2 volume that costs little.
const CHEAP: &str = "key-secret=s,version=luks2,iter-time=10,pbkdf-memory=64,pbkdf-parallel=1";

/// New LUKS2 volumes, in the words of cryptsetup, and what it says of them.
#[test]
fn cryptsetup_knows_the_luks2_volumes_that_we_make() {
    if Command::new("cryptsetup").arg("--version").output().is_err() {
        let _ = writeln!(std::io::stderr(), "skipped: cryptsetup is not installed (package cryptsetup-bin)");
        return;
    }
    let side = images();
    let path = |name: &str| side.path(name).to_str().expect("a path of text").to_owned();
    let plain = side.read("r");
    for (options, says) in [
        ("pbkdf-force-iterations=4", &["PBKDF:      argon2id", "Time cost:  4", "Memory:     64"][..]),
        ("pbkdf=argon2i,pbkdf-force-iterations=5", &["PBKDF:      argon2i\n", "Time cost:  5"]),
        ("pbkdf=pbkdf2,hash-alg=sha512", &["PBKDF:      pbkdf2", "Hash:       sha512"]),
        ("sector-size=4096,cipher-alg=aes-128", &["sector: 4096 [bytes]", "Key:        256 bits"]),
        // Its user's side knows few ciphers beside AES; others are in the suite.
        ("sector-size=2048,pbkdf=pbkdf2,hash-alg=sha1", &["sector: 2048 [bytes]", "Hash:       sha1"]),
    ] {
        side.our_make(&format!("convert {SECRETS} -O luks -o {CHEAP},{options} r new"));
        let dump = side.command("cryptsetup", "luksDump new").output().expect("it runs");
        let dump = String::from_utf8_lossy(&dump.stdout).into_owned();
        assert!(
            dump.contains("Version:       \t2\n") && dump.contains("offset: 16777216 [bytes]"),
            "{options}: {dump}"
        );
        assert!(says.iter().all(|line| dump.contains(line)), "{options}: {dump}");
        assert!(cryptsetup_opens(&path("new"), "abc") && !cryptsetup_opens(&path("new"), "abd"), "{options}");
        // Each copy of the header is enough for it.
        for at in [0, 16 << 10] {
            let mut bytes = side.read("new");
            bytes[at + 5000] ^= 1;
            side.write("damaged", &bytes);
            assert!(cryptsetup_opens(&path("damaged"), "abc"), "{options}: without the copy at {at}");
        }
        side.our_make(&format!("amend {} -o state=active,new-secret=n,iter-time=10", luks("new")));
        assert!(cryptsetup_opens(&path("new"), "new"), "{options}");
        side.our_make(&format!("amend {} -o state=inactive,old-secret=n", luks("new")));
        assert!(!cryptsetup_opens(&path("new"), "new") && cryptsetup_opens(&path("new"), "abc"), "{options}");
        side.our_make(&format!("convert {} -O raw back", luks("new")));
        assert!(side.read("back") == plain, "{options}");
    }
    side.finish();
}

/// The header in a file of its own, which says that the payload begins at the first byte of the other.
#[test]
fn headers_of_their_own_are_never_taken_for_whole_volumes() {
    if Command::new("cryptsetup").arg("--version").output().is_err() {
        let _ = writeln!(std::io::stderr(), "skipped: cryptsetup is not installed (package cryptsetup-bin)");
        return;
    }
    let mut side = Side::new();
    let plain = disk(2 << 20, 4);
    side.write("r", &plain);
    let path = |name: &str| side.path(name).to_str().expect("a path of text").to_owned();
    let whole = |header: &str| {
        format!(
            "{SECRETS} --image-opts driver=luks,key-secret=s,header.driver=file,header.filename={header},file.filename=d"
        )
    };
    for (version, ours) in [("luks1", false), ("luks2", false), ("luks2", true), ("luks1", true)] {
        side.write("d", &vec![0; 2 << 20]);
        side.write(version, &vec![0; 20 << 20]);
        let (header, data) = (path(version), path("d"));
        if ours {
            // The reference lists the option, and refuses it.
            let options = if version == "luks1" { "key-secret=s,iter-time=10" } else { CHEAP };
            side.our_make(&format!("create {SECRETS} -f luks -o detached-header=on,{options} {version} 2M"));
            let len = std::fs::metadata(&header).expect("it was made").len();
            assert!(len <= 16 << 20, "{version}: a header alone has {len} bytes");
            let opened = ["open", "--test-passphrase", "--key-file", "-", "--header", &header, &data];
            assert!(cryptsetup(&opened, b"abc") && !cryptsetup(&opened, b"abd"), "{version}");
        }
        let mut words = vec![
            "luksFormat",
            "-q",
            "--type",
            version,
            "--pbkdf-force-iterations",
            "1000",
            "--key-file",
            "-",
        ];
        words.extend(["--pbkdf", "pbkdf2"].iter().filter(|_| version == "luks2"));
        words.extend(["--header", &header, &data]);
        assert!(ours || cryptsetup(&words, b"abc"), "{version}: cryptsetup makes a header");
        side.our_make(&format!(
            "convert -n --target-image-opts {} -f raw r {}",
            SECRETS,
            &whole(version)[SECRETS.len() + 14..]
        ));
        let run = side.ours(&format!("compare {} driver=raw,file.filename=r", whole(version)));
        assert_eq!((run.code, &*run.stdout), (0, "Images are identical.\n"), "{version}: {run:?}");
        if version == "luks1" {
            let run = side.theirs(&format!("compare {} driver=raw,file.filename=r", whole(version)));
            assert_eq!((run.code, &*run.stdout), (0, "Images are identical.\n"), "{run:?}");
        }
        let refused = side.ours(&format!("info -f luks {version}"));
        assert!(
            refused.stderr.contains("LUKS payload is overlapping with the header"),
            "{version}: {refused:?}"
        );
    }
    side.both("a header alone", "info -f luks luks1");
    side.finish();
}

/// Slots that hold another key than the payload's, and those that are only tried when they are asked for.
#[test]
fn the_last_key_of_a_payload_is_kept_whatever_else_there_is() {
    let side = Side::new();
    let path = side.path("v2").to_str().expect("a path of text").to_owned();
    side.our_make(&format!("create {SECRETS} -f luks -o {CHEAP} v2 1M"));
    side.write("new", b"new");
    let new = side.path("new").to_str().expect("a path of text").to_owned();
    let cheap = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"];
    let unbound = ["luksAddKey", "-q", "--unbound", "--key-size", "512", "--key-slot", "3", &path, &new];
    assert!(cryptsetup(&[&unbound[..], &cheap].concat(), b""), "cryptsetup adds an unbound key");
    let amend = |options: &str| side.ours(&format!("amend {} -o state=inactive,{options}", luks("v2")));
    let refused = |options: &str, says: &str| {
        let run = amend(options);
        assert!(run.code == 1 && run.stderr.contains(says), "{options}: {run:?}");
    };
    refused("keyslot=0", "erase the only active keyslot 0");
    refused("old-secret=s", "All the active keyslots match");
    refused("keyslot=3,old-secret=w", "doesn't contain the given old password");
    let taken = side.ours(&format!("amend {} -o state=active,new-secret=w,keyslot=3", luks("v2")));
    assert!(taken.code == 1 && taken.stderr.contains("Refusing to overwrite active keyslot 3"), "{taken:?}");
    refused("keyslot=-1", "Invalid keyslot -1 specified, must be between 0 and 31");
    assert!(cryptsetup_opens(&path, "abc"), "nothing is lost");
    assert_eq!(amend("keyslot=3,old-secret=n").code, 0, "an unbound key goes when it is named");

    side.our_make(&format!("amend {} -o state=active,new-secret=n,iter-time=10", luks("v2")));
    assert!(
        cryptsetup(&["config", "--priority", "ignore", "--key-slot", "1", &path], b""),
        "a slot is put aside"
    );
    let with_new = format!("{SECRETS} --image-opts driver=luks,key-secret=n,file.filename=v2");
    assert_eq!(side.ours(&format!("map --output=json {with_new}")).code, 1, "it is not tried for data");
    // It is a key like the other one, and found.
    assert_eq!(amend("old-secret=s").code, 0);
    side.our_make(&format!("create {SECRETS} -f luks -o {CHEAP} v2 1M"));
    side.our_make(&format!("amend {} -o state=active,new-secret=n,iter-time=10", luks("v2")));
    assert!(
        cryptsetup(&["config", "--priority", "ignore", "--key-slot", "1", &path], b""),
        "a slot is put aside"
    );
    assert_eq!(amend("old-secret=n").code, 0);
    refused("old-secret=n", "No keyslots match given (old) password");
    side.finish();
}

#[test]
fn a_new_keyslot_of_argon2_takes_the_time_that_is_asked_for() {
    let side = Side::new();
    side.our_make(&format!("create {SECRETS} -f luks -o {CHEAP} v2 1M"));
    side.our_make(&format!("amend {} -o state=active,new-secret=n,iter-time=400", luks("v2")));
    side.our_make(&format!("amend {} -o state=active,new-secret=w", luks("v2")));
    let info = side.ours("info --output=json -f luks v2").stdout;
    let info: serde_json::Value = serde_json::from_str(&info).expect("JSON");
    let slots = &info["format-specific"]["data"]["slots"];
    let cost = |slot: usize| {
        let number = |key: &str| slots[slot]["kdf"][key].as_u64().expect("a number");
        (number("memory"), number("memory") * number("time"))
    };
    let (cheap, timed) = (cost(0), cost(1));
    assert!(cheap.0 == 64 && timed.0 >= 32 << 10 && timed.1 > cheap.1, "{cheap:?} {timed:?}");
    assert_eq!(cost(2), cheap, "without a time it costs what the others do");
    side.finish();
}

/// The only key of a volume is overwritten: the data is there by the new passphrase, and by it alone.
#[test]
fn the_only_keyslot_is_overwritten_by_force() {
    let side = Side::new();
    side.write("r", &disk(1 << 20, 7));
    let path = side.path("v").to_str().expect("a path of text").to_owned();
    let pbkdf2 = "key-secret=s,version=luks2,pbkdf=pbkdf2,pbkdf-force-iterations=1000";
    for (options, version) in [("key-secret=s,iter-time=10", 1), (CHEAP, 2), (pbkdf2, 2)] {
        side.our_make(&format!("convert {SECRETS} -O luks -o {options} r v"));
        let amend = |more: &str| {
            let options = "state=active,new-secret=n,iter-time=10,keyslot=0";
            side.ours(&format!("amend {} -o {options}{more}", luks("v")))
        };
        let before = side.read("v");
        let refused = amend("");
        assert!(
            refused.code == 1 && refused.stderr.contains("Refusing to overwrite active keyslot 0"),
            "{refused:?}"
        );
        assert!(side.read("v") == before, "{options}: nothing is written");
        let done = amend(" --force");
        assert_eq!(done.code, 0, "{options}: {done:?}");
        // Nothing is left of the old material: the first area is behind the header, or behind both of its copies.
        let (area, after) = (if version == 1 { 4 << 10 } else { 32 << 10 }, side.read("v"));
        let sectors = |bytes: &[u8]| -> Vec<Vec<u8>> {
            bytes[area..][..64 * 4000].chunks_exact(512).map(<[u8]>::to_vec).collect()
        };
        let left = sectors(&before).iter().zip(sectors(&after)).filter(|(old, new)| *old == new).count();
        assert_eq!(left, 0, "{options}: sectors of the old key");

        let by = |id: &str| {
            format!(
                "compare {SECRETS} --image-opts driver=luks,key-secret={id},file.filename=v driver=raw,file.filename=r"
            )
        };
        let opened = |run: &side::Run| (run.code, run.stdout.contains("Images are identical."));
        let (new, old) = (side.ours(&by("n")), side.ours(&by("s")));
        assert_eq!(opened(&new), (0, true), "{options}: {new:?}");
        assert!(old.stderr.contains("Invalid password, cannot unlock any keyslot"), "{options}: {old:?}");
        if version == 1 {
            let (new, old) = (side.theirs(&by("n")), side.theirs(&by("s")));
            assert_eq!(opened(&new), (0, true), "{options}: {new:?}");
            assert!(old.stderr.contains("Invalid password, cannot unlock any keyslot"), "{options}: {old:?}");
        }
        if Command::new("cryptsetup").arg("--version").output().is_ok() {
            assert!(cryptsetup_opens(&path, "new") && !cryptsetup_opens(&path, "abc"), "{options}");
        }
    }
    side.finish();
}

/// What a new slot costs is paid together with those that are there, when the volume is opened.
#[test]
fn a_keyslot_that_makes_a_volume_too_dear_to_open_is_not_made() {
    let side = Side::new();
    let cheap = "key-secret=s,cipher-alg=aes-128,iter-time=10";
    side.our_make(&format!("create {SECRETS} -f luks -o {cheap} v 1M"));
    for id in ["n", "w"] {
        side.our_make(&format!("amend {} -o state=active,new-secret={id},iter-time=10", luks("v")));
    }
    let mut volume = side.read("v");
    for slot in [1, 2] {
        let at = 208 + 48 * slot + 4;
        volume[at..at + 4].copy_from_slice(&90_000_000u32.to_be_bytes());
    }
    side.write("v", &volume);
    // As many rounds as a slot may have: too many beside two of them, and beside one.
    for (number, others) in [("keyslot=3", 180_000_000), ("keyslot=2 --force", 90_000_000)] {
        let run = side
            .ours(&format!("amend {} -o state=active,new-secret=n,iter-time=100000000,{number}", luks("v")));
        let slot = &number[..9].replace('=', " ");
        assert!(run.code == 1 && run.stderr.contains(&format!("{slot} asks for ")), "{number}: {run:?}");
        // The digest, which is tried with every slot, and the first slot cost little.
        let said = run.stderr.split("with ").nth(1).and_then(|rest| rest.split(' ').next());
        let spent: u64 = said.and_then(|said| said.parse().ok()).unwrap_or_else(|| panic!("{run:?}"));
        assert!((others..others + 10_000_000).contains(&spent), "{number}: {run:?}");
        assert!(side.read("v") == volume, "{number}: nothing is written");
    }
    side.our_make(&format!("amend {} -o state=active,new-secret=n,iter-time=10,keyslot=3", luks("v")));
    side.finish();
}

#[test]
fn a_volume_is_opened_for_no_more_than_it_may_cost() {
    let side = Side::new();
    side.our_make(&format!("create {SECRETS} -f luks -o key-secret=s,iter-time=10 v1 1M"));
    side.our_make(&format!("amend {} -o state=active,new-secret=n,iter-time=10", luks("v1")));
    let mut volume = side.read("v1");
    volume[208 + 48 + 4..208 + 48 + 8].copy_from_slice(&120_000_000u32.to_be_bytes());
    side.write("v1", &volume);
    assert_eq!(
        side.ours(&format!("map --output=json {}", luks("v1"))).code,
        0,
        "the first slot costs little"
    );
    let wrong = "map --output=json --object secret,id=s,data=no --image-opts driver=luks,key-secret=s,file.filename=v1";
    let run = side.ours(wrong);
    let says = "keyslot 1 asks for 120000000 rounds of sha256";
    assert!(
        run.code == 1 && run.stderr.contains(says) && run.stderr.contains(&WORK_MAX.to_string()),
        "{run:?}"
    );
    volume[208 + 48 + 4..208 + 48 + 8].fill(0xff);
    side.write("v1", &volume);
    let run = side.ours(wrong);
    assert!(run.code == 1 && run.stderr.contains("keyslot 1 asks for 4294967295 rounds"), "{run:?}");
    side.finish();
}

/// Only the magic of the first copy is gone: it comes from the second one again. But what is somebody else's stays.
#[test]
fn a_first_copy_without_its_magic_is_repaired_unless_something_else_is_there() {
    let side = Side::new();
    side.our_make(&format!("create {SECRETS} -f luks -o {CHEAP} v2 1M"));
    let whole = side.read("v2");
    let mut damaged = whole.clone();
    damaged[0] ^= 0x20;
    side.write("v2", &damaged);
    let info = side.ours("info -f luks v2");
    assert!(info.code == 0 && info.stdout.contains("damaged copy: primary"), "{info:?}");
    assert_eq!(side.ours(&format!("map --output=json {}", luks("v2"))).code, 0);
    assert!(side.read("v2") == damaged, "who only reads leaves it");
    side.our_make(&format!("resize {} 2M", luks("v2")));
    assert!(side.read("v2").starts_with(&whole[..8]), "who writes repairs it");
    assert!(!side.ours("info -f luks v2").stdout.contains("damaged copy"));

    let amend = format!("amend {} -o state=active,new-secret=n,iter-time=10", luks("v2"));
    let mut foreign = whole.clone();
    foreign[..4].copy_from_slice(b"QFI\xfb");
    let mut other = whole;
    other[..512].fill(0x90);
    for bytes in [foreign, other] {
        side.write("v2", &bytes);
        assert!(side.ours("info -f luks v2").stdout.contains("damaged copy: primary"));
        let run = side.ours(&amend);
        assert!(
            run.code == 1 && run.stderr.contains("first copy of the LUKS2 header was overwritten"),
            "{run:?}"
        );
        assert!(side.read("v2") == bytes, "it stays");
    }
    side.finish();
}

#[test]
fn luks2_volumes_that_cannot_be_are_refused() {
    let side = Side::new();
    for (options, says) in [
        ("version=luks3", "Parameter 'version' does not accept value 'luks3'"),
        ("pbkdf=argon2id", "Parameter 'pbkdf' needs version=luks2"),
        ("version=luks1,sector-size=4096", "Parameter 'sector-size' needs version=luks2"),
        ("version=luks2,pbkdf=scrypt", "Parameter 'pbkdf' does not accept value 'scrypt'"),
        ("version=luks2,sector-size=520", "sector-size: 520, expected 512, 1024, 2048 or 4096"),
        ("version=luks2,pbkdf-parallel=5", "pbkdf-parallel: 5, expected 1 to 4"),
        ("version=luks2,pbkdf-memory=31", "pbkdf-memory: 31, expected 32 to 4194304"),
        ("version=luks2,pbkdf-force-iterations=3", "pbkdf-force-iterations: 3, expected 4 to 1024"),
        ("version=luks2,sector-size=4096,size=512", "size: 512, expected whole sectors of 4096 bytes"),
    ] {
        let run = side.ours(&format!("create {SECRETS} -f luks -o key-secret=s,size=1M,{options} x"));
        assert!(run.code == 1 && run.stderr.contains(says), "{options}: {run:?}");
    }
    let inside = "encrypt.format=luks,encrypt.key-secret=s,encrypt.version=luks2";
    let run = side.ours(&format!("create {SECRETS} -f qcow2 -o {inside} x 1M"));
    assert!(run.code == 1 && run.stderr.contains("Invalid parameter 'encrypt.version'"), "{run:?}");
    side.finish();
}

/// Name, passphrase, and the first bytes of the payload's SHA-256. Other people's programs made them.
const REAL: [(&str, &str, &str); 10] = [
    ("luks1_aes-xts-plain64-sha256", "file=KEYFILE", "b42c93fc807d8c40"),
    ("luks1_aes-cbc-essiv-sha256-sha1", "file=KEYFILE", "15898285e6c9ad57"),
    ("luks1_twofish-xts-plain64-sha1", "file=KEYFILE", "4949cb8a45c88345"),
    ("luks1_serpent-xts-plain64-sha256", "file=KEYFILE", "8a40103a5e4bb75c"),
    ("luks1-compatimage", "data=compatkey", "7428e8f2436882a0"),
    ("luks2-mda-16k", "data=Qx3qn46vq0v", "e187fdce3c430954"),
    ("luks2-mda-64k", "data=Qx3qn46vq0v", "e187fdce3c430954"),
    ("luks2-mda-1m", "data=Qx3qn46vq0v", "e187fdce3c430954"),
    ("luks2-argon2id-xts512", "data=test1234", "915556762e6e74d4"),
    ("luks2-pbkdf2-xts4096", "data=test1234", "915556762e6e74d4"),
];

#[test]
fn real_volumes_hold_what_they_must() {
    let Some(folder) = folder() else { return };
    let side = Side::new();
    let keyfile = folder.join("luks1-keyfile1");
    for (name, secret, expected) in REAL {
        side.write("image", &unpacked(&folder.join(format!("{name}.img.xz"))));
        let secret = secret.replace("KEYFILE", keyfile.to_str().expect("a path of text"));
        let image = "driver=luks,key-secret=k,file.filename=image";
        side.our_make(&format!("convert --object secret,id=k,{secret} --image-opts {image} -O raw out"));
        let digest = Hash::Sha256.digest(&[&side.read("out")]);
        let digest: String = digest[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(digest, expected, "{name}");
    }
    side.finish();
}

/// Parts of the names of hostile headers of which one copy is in order.
const IN_ORDER: [&str; 16] = [
    "correct-full",
    "corrupted-hdr1-with",
    "invalid-checksum-hdr0",
    "size-1m",
    "size-256k",
    "size-2m",
    "size-32k",
    "size-4m",
    "size-512k",
    "size-128k-s",
    "size-16k-s",
    "size-64k-s",
    "non-compact",
    "leftover",
    "unknown-type",
    "uint64-max",
];

#[test]
fn hostile_headers_are_refused_and_one_good_copy_is_enough() {
    let Some(folder) = folder() else { return };
    let side = Side::new();
    let mut seen = 0;
    for entry in folder.join("hostile").read_dir().expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        if !name.starts_with("luks") {
            continue;
        }
        seen += 1;
        side.write("image", &unpacked(&path));
        let run = side.ours("info -f luks image");
        let good = IN_ORDER.iter().any(|part| name.contains(part)) || name.contains("requirements");
        assert_eq!(run.code, i32::from(!good), "{name}: {run:?}");
        assert!(good || run.stderr.contains("Could not open 'image': "), "{name}: {run:?}");
        if name.contains("requirements") {
            let run = side.ours(&format!("map {}", luks("image")));
            assert!(run.code == 1 && run.stderr.contains("req0"), "{name}: {run:?}");
        }
    }
    assert!(seen > 40, "{seen} hostile headers");
    side.finish();
}
