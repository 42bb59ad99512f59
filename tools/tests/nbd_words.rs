//! Command lines that `drystone-nbd` takes or refuses as the reference does, in its words.

mod served;

use std::path::Path;
use std::process::Output;

use served::{Place, Served};

const IMG: &str = env!("CARGO_BIN_EXE_drystone-img");
const NBD: &str = env!("CARGO_BIN_EXE_drystone-nbd");

/// Images with a snapshot `s1`, with bitmaps `b0` (which stays as it is) and `b1`, and above that one.
fn images(place: &Place) {
    place.make("qemu-img", "create -q -f raw plain.raw 16M");
    place.make("qemu-img", "create -q -f qcow2 a.qcow2 16M");
    place.make("qemu-img", "bitmap --add a.qcow2 b0");
    place.make("qemu-img", "bitmap --add a.qcow2 b1");
    for (format, file) in [("raw", "plain.raw"), ("qcow2", "a.qcow2")] {
        let line = ["-f", format, "-c", "write -P 7 1M 2M", "-c", "write -z 2M 256k", file];
        assert!(place.run_args("qemu-io", &line).status.success());
    }
    place.make("qemu-img", "bitmap --disable a.qcow2 b0");
    place.make("qemu-img", "snapshot -c s1 a.qcow2");
    place.make("qemu-img", "create -q -f qcow2 -b a.qcow2 -F qcow2 top.qcow2");
}

/// Exit code and words, whichever tool it was.
fn said(output: &Output, program: &str) -> (Option<i32>, String) {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let name = Path::new(program).file_name().expect("a program").to_str().expect("UTF-8");
    (output.status.code(), text.replace(program, "TOOL").replace(name, "TOOL"))
}

#[test]
fn what_cannot_be_served_is_refused_in_the_words_of_the_reference() {
    let place = Place::new();
    images(&place);
    let socket = place.path("socket");
    for line in [
        "",
        "a b",
        "-d",
        "-d a b",
        "-c /dev/nbd0",
        "-k rel plain.raw",
        "-f raw nothing.raw",
        "-f foo plain.raw",
        "-f raw -k /nowhere/s plain.raw",
        "--image-opts driver=raw,file.filename=nothing",
        "--image-opts a.qcow2",
        "--image-opts file=a.qcow2",
        "-c /dev/null -f raw plain.raw",
        // Bitmaps and snapshots.
        "-B nope -r -f qcow2 top.qcow2",
        "-B b0 -B nope -f qcow2 a.qcow2",
        "-B b0 -o 512 -f qcow2 a.qcow2",
        "-B b0 -f raw plain.raw",
        "-l nope -f qcow2 a.qcow2",
        "-l nope -f raw plain.raw",
        "-l s1 -s -f qcow2 a.qcow2",
        "-l s1 -o 512 -f qcow2 a.qcow2",
        "-l s1 -s -o 512 -f qcow2 a.qcow2",
        "-l snapshot.foo=1 -f qcow2 a.qcow2",
        // Numbers.
        "-o 08 -f raw plain.raw",
        "-o 0x -f raw plain.raw",
        "-o 2M -f raw plain.raw",
        "-o -1 -f raw plain.raw",
        "-o 9223372036854775808 -f raw plain.raw",
        "-o 99999999999999999999 -f raw plain.raw",
        "-o 16777217 -f raw plain.raw",
        "-s -o 16777217 -f raw plain.raw",
        "-e 08 -f raw plain.raw",
        "-e -1 -f raw plain.raw",
        "-e 2147483648 -f raw plain.raw",
        "--handshake-limit=-1 -f raw plain.raw",
        "--handshake-limit=2147483648 -f raw plain.raw",
        "--handshake-limit=4294967295 -f raw plain.raw",
        "--detect-zeroes=unmap -f raw plain.raw",
        // Addresses.
        "-p 10999 -b 192.0.2.7 -f raw plain.raw",
        "-p no-such-service -f raw plain.raw",
        // Security contexts, without a kernel that has any.
        "--selinux-label=x -f raw plain.raw",
        "-L --selinux-label=x -p 1",
        "--selinux-label=x -p 1 -f raw plain.raw",
        // Who may connect.
        "--tls-authz a -f raw plain.raw",
        "--object authz-simple,id=a -f raw plain.raw",
        "--object authz-list,id=a,policy=foo -f raw plain.raw",
        "--object authz-list,id=a,rules=x -f raw plain.raw",
        "--object authz-list,id=a,rules.0.match=x -f raw plain.raw",
        "--object authz-list,id=a,rules.0.match=x,rules.0.policy=allow,rules.0.format=x -f raw plain.raw",
        "--object authz-list,id=a,rules.0.match=x,rules.0.policy=allow,rules.0.foo=x -f raw plain.raw",
        "--object authz-list,id=a,rules.1.match=x,rules.1.policy=allow -f raw plain.raw",
        "--object {\"qom-type\":\"authz-list\",\"id\":\"a\",\"rules\":[{\"match\":\"x\"}]} -f raw plain.raw",
        "--object {\"qom-type\":\"authz-list\",\"id\":\"a\",\"rules\":[\"x\"]} -f raw plain.raw",
        // Options.
        "-Z",
        "-rZ plain.raw",
        "--ver",
        "--nosuch=1 plain.raw",
        "--read-only=1 plain.raw",
        "--port",
        "-r -p",
        // Lists.
        "-L plain.raw",
        "-L -x name",
        "-L -A",
        "-L -n",
        "-L -f raw",
        "-L -c /dev/nbd0",
        "-L -d",
        "-L --fork",
        "-L --fork -x name",
        "-L -k /nowhere/s",
        "-L -p 1",
        "-L -p no-such-service",
        "-L -t -p 1",
        "-L -e 3 -p 1",
        "-L -s -r -p 1",
        "-L --pid-file x --handshake-limit=3 -p 1",
        "-L --image-opts --detect-zeroes=on -p 1",
    ] {
        let has_address = ["-k ", "-p ", "-L"].iter().any(|option| line.contains(option));
        let line = if has_address { line.to_owned() } else { format!("-k {socket} {line}") };
        let (ours, theirs) = (place.run(NBD, &line), place.run("qemu-nbd", &line));
        assert_eq!(said(&ours, NBD), said(&theirs, "qemu-nbd"), "{line}");
    }
}

#[test]
fn what_is_served_is_shown_as_by_the_reference() {
    let place = Place::new();
    images(&place);
    for (line, bitmaps) in [
        ("-o 0x200 -f raw plain.raw", &[][..]),
        ("-o 01000 -f raw plain.raw", &[]),
        ("-o 16777216 -f raw plain.raw", &[]),
        ("-e 0x10 --handshake-limit=010 -f raw plain.raw", &[]),
        ("-s -o 1049088 -f raw plain.raw", &[]),
        ("-s -o 1048576 -A -f qcow2 a.qcow2", &[]),
        ("-s -A -o 1048576 -f qcow2 top.qcow2", &[]),
        ("-r -A -B b0 -B b1 -f qcow2 a.qcow2", &["b0", "b1"]),
        ("-B b1 -B b0 -f qcow2 a.qcow2", &["b0", "b1"]),
        ("-B b0 -f qcow2 top.qcow2", &["b0"]),
        ("-r -A -B b1 -f qcow2 top.qcow2", &["b1"]),
        ("-s -B b1 -B b0 -f qcow2 a.qcow2", &["b0", "b1"]),
        ("-s -B b0 -f qcow2 top.qcow2", &["b0"]),
    ] {
        let shown = |server: &Served| {
            let options = |context: &str| {
                format!("driver=nbd,server.type=unix,server.path={},{context}", server.socket.display())
            };
            let map = |context: &str| {
                place.make("qemu-img", &format!("map --output=json --image-opts {}", options(context)))
            };
            let mut all = vec![place.make("qemu-nbd", &format!("-L -k {}", server.socket.display()))];
            // Where a window lies on an overlay, the reference's map knows nothing of what is below that; it reads it all the
            // same.
            if !(line.contains("-s ") && line.contains("-o ")) {
                all.push(map("export="));
            }
            all.extend(bitmaps.iter().map(|name| map(&format!("x-dirty-bitmap=qemu:dirty-bitmap:{name}"))));
            place.make("qemu-img", &format!("convert -O raw {} out.raw", server.uri("")));
            all.push(format!(
                "{:?}",
                std::fs::read(place.path("out.raw")).map(|bytes| (bytes.len(), sum(&bytes)))
            ));
            all
        };
        let ours = place.ours("ours", &format!("-t {line}"));
        let seen = shown(&ours);
        assert_eq!(ours.stop(), Some(0), "{line}");
        let theirs = place.theirs("theirs", &format!("-t {line}"));
        let expected = shown(&theirs);
        // It takes its socket along, and its locks.
        assert_eq!(theirs.stop(), Some(0), "{line}");
        assert_eq!(seen, expected, "{line}");
    }
}

/// Tells bytes in one order from the same in another.
fn sum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(7, |sum: u64, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

#[test]
fn names_of_servers_mean_the_same_to_both_clients() {
    let place = Place::new();
    images(&place);
    let server = place.ours("socket", "-t -e 0 -x exp -f raw plain.raw");
    let socket = place.path("socket");
    for (line, code) in [
        (format!("info -f raw nbd+unix:///exp?socket={socket}&socket={socket}"), 0),
        (format!("info -f raw nbd+unix:///exp?socket=/nowhere&socket={socket}"), 0),
        (format!("info -f raw nbd+unix:///exp?socket={socket}&socket=/nowhere"), 1),
        (format!("info -f raw nbd+unix:///exp?socket={socket}&tls-hostname=x"), 1),
        (format!("info -f raw nbd+unix:///exp?socket={socket}#part"), 0),
        ("info nbd:localhost:no-such-service".into(), 1),
        ("info nbd:localhost:1".into(), 1),
        ("info nbd://localhost:nbd".into(), 1),
        ("info json:{\"driver\":\"nbd\",\"host\":\"localhost\",\"port\":\"no-such-service\"}".into(), 1),
    ] {
        let (ours, theirs) = (place.run(IMG, &line), place.run("qemu-img", &line));
        assert_eq!(said(&ours, IMG), said(&theirs, "qemu-img"), "{line}");
        assert_eq!((ours.status.code(), ours.stdout), (Some(code), theirs.stdout), "{line}");
    }
    // Where there is nobody: what is wrong with an address, or else that.
    for address in [
        "type=unix,server.path=/nowhere,server.abstract=on",
        "type=unix,server.path=/nowhere,server.abstract=on,server.tight=off",
        "type=unix,server.path=/nowhere,server.abstract=off,server.tight=on",
        "type=unix,server.path=/nowhere,server.abstract=x",
        "type=inet,server.host=localhost,server.port=1,server.ipv4=on",
        "type=inet,server.host=localhost,server.port=1,server.ipv6=off,server.keep-alive=on,server.numeric=on",
        "type=inet,server.host=localhost,server.port=1,server.ipv4=on,server.ipv6=on,server.to=2",
        "type=inet,server.host=localhost,server.port=1,server.ipv4=off,server.ipv6=off",
        "type=inet,server.host=127.0.0.1,server.port=1,server.ipv6=on",
        "type=inet,server.host=::1,server.port=1,server.ipv4=on",
        "type=inet,server.host=localhost,server.port=1,server.ipv4=maybe",
        "type=inet,server.host=localhost,server.port=1,server.keep-alive=x",
        "type=inet,server.host=localhost,server.port=1,server.numeric=x",
        "type=inet,server.host=localhost,server.port=1,server.to=70000",
        "type=inet,server.host=localhost,server.port=1,server.to=x",
        "type=inet,server.host=localhost,server.port=1,server.nosuch=x",
        "type=vsock,server.cid=x,server.port=1",
        "type=vsock,server.cid=4294967296,server.port=1",
        "type=vsock,server.cid=2,server.port=-1",
        "type=vsock,server.port=1",
        "type=vsock,server.cid=2",
    ] {
        let line = format!("info --image-opts driver=nbd,server.{address}");
        let (ours, theirs) = (place.run(IMG, &line), place.run("qemu-img", &line));
        assert_eq!(said(&ours, IMG), said(&theirs, "qemu-img"), "{line}");
    }
    assert_eq!(server.stop(), Some(0));
}
