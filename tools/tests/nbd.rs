//! Our server with other people's clients, and our client with other people's servers.

mod peer;
mod served;

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use drystone_core::protocol::nbd::Mode;
use drystone_core::protocol::nbd::layout::{CommandCode, OptionCode};
use peer::Peer;
use served::{Place, Served, have, noise};

const IMG: &str = env!("CARGO_BIN_EXE_drystone-img");
const IO: &str = env!("CARGO_BIN_EXE_drystone-io");
const NBD: &str = env!("CARGO_BIN_EXE_drystone-nbd");

/// An image of each format with some data, some zeros, and some of nothing.
fn images(place: &Place) {
    place.make("qemu-img", "create -q -f raw plain.raw 16M");
    place.make("qemu-img", "create -q -f qcow2 base.qcow2 16M");
    for (format, file) in [("raw", "plain.raw"), ("qcow2", "base.qcow2")] {
        let line = ["-f", format, "-c", "write -P 7 1M 2M", "-c", "write -z 2M 256k", file];
        assert!(place.run_args("qemu-io", &line).status.success());
    }
    place.make("qemu-img", "create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2");
    let line = ["-f", "qcow2", "-c", "write -P 9 4M 64k", "top.qcow2"];
    assert!(place.run_args("qemu-io", &line).status.success());
}

#[test]
fn both_servers_are_listed_alike_by_both_tools() {
    let place = Place::new();
    images(&place);
    for line in [
        "-t -f raw plain.raw",
        "-t -r -f raw -x name -D words plain.raw",
        "-t -e 3 -A -f qcow2 -x name top.qcow2",
    ] {
        let list =
            |tool: &str, server: &Served| place.make(tool, &format!("-L -k {}", server.socket.display()));
        let ours = place.ours("ours", line);
        let mut seen = vec![list(NBD, &ours), list("qemu-nbd", &ours)];
        assert_eq!(ours.stop(), Some(0));
        let theirs = place.theirs("theirs", line);
        seen.extend([list(NBD, &theirs), list("qemu-nbd", &theirs)]);
        drop(theirs);
        let _ = std::fs::remove_file(place.path("theirs"));
        assert!(seen.iter().all(|text| *text == seen[3]), "{line}: {seen:#?}");
    }
}

#[test]
fn the_reference_reads_and_writes_through_our_server() {
    let place = Place::new();
    images(&place);
    for (format, file) in [("raw", "plain.raw"), ("qcow2", "top.qcow2")] {
        let map = |uri: &str| place.make("qemu-img", &format!("map -f raw --output=json {uri}"));
        let theirs = place.theirs("theirs", &format!("-t -r -f {format} {file}"));
        let expected = map(&theirs.uri(""));
        drop(theirs);
        std::fs::remove_file(place.path("theirs")).expect("who was killed leaves it");
        let server = place.ours("socket", &format!("-t -e 0 -f {format} {file}"));
        let uri = server.uri("");
        place.make("qemu-img", &format!("compare -f raw -F {format} -U {uri} {file}"));
        assert_eq!(map(&uri), expected, "{file}");
        let commands = [
            "-f",
            "raw",
            "-c",
            "write -P 5 5M 3M",
            "-c",
            "write -z -u 6M 1M",
            "-c",
            "discard 7M 64k",
            "-c",
            "read -P 5 5M 1M",
            "-c",
            "read -P 0 6M 1M",
            "-c",
            "writev -f -P 3 8M 4k 8k",
            "-c",
            "flush",
            "-c",
            "read -P 3 8M 12k",
            "-c",
            "aio_write -P 2 9M 64k",
            "-c",
            "aio_read 1M 64k",
            "-c",
            "aio_flush",
            &uri,
        ];
        let output = place.run_args("qemu-io", &commands);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && !text.contains("failed"), "{text}");
        assert_eq!(server.stop(), Some(0));
        assert!(!place.folder.path().join("socket").exists(), "the socket goes with the server");
        let read = ["-f", format, "-c", "read -P 5 5M 1M", "-c", "read -P 2 9M 64k", file];
        assert!(place.run_args("qemu-io", &read).status.success());
        if format == "qcow2" {
            place.make("qemu-img", &format!("check -q {file}"));
        }
    }
}

/// Large reads, some of which the kernel sends out of files: of one file, of two of a chain, and of a part of one.
#[test]
fn copies_of_read_only_images_are_what_is_in_them() {
    if !have("nbdcopy", "libnbd-bin") {
        return;
    }
    let place = Place::new();
    images(&place);
    noise(&place.path("noise.raw"), 9 << 20);
    place.make("qemu-img", "convert -f raw -O qcow2 noise.raw noise.qcow2");
    place.make("qemu-img", "create -q -f qcow2 -b noise.qcow2 -F qcow2 chain.qcow2 10M");
    let line = ["-f", "qcow2", "-c", "write -P 9 1000k 3M", "-c", "write -z 5M 1M", "chain.qcow2"];
    assert!(place.run_args("qemu-io", &line).status.success());
    place.make("qemu-img", "convert -f raw -O qcow2 -c noise.raw packed.qcow2");
    let window = "driver=raw,offset=1048576,size=7340032,file.filename=noise.raw";
    for (number, image) in
        ["-f raw noise.raw", "-f qcow2 noise.qcow2", "-f qcow2 chain.qcow2", "-f qcow2 packed.qcow2"]
            .into_iter()
            .map(str::to_owned)
            .chain([format!("--image-opts {window}")])
            .enumerate()
    {
        let server = place.ours(&format!("socket{number}"), &format!("-t -r -e 0 {image}"));
        let uri = server.uri("");
        // Twice: what the first one brings into memory, the second one finds there.
        for copy in ["first.raw", "second.raw"] {
            place.make("nbdcopy", &format!("{uri} {copy}"));
            place.make("qemu-img", &format!("compare -q -f raw -F raw {uri} {copy}"));
        }
        let expected = match image.split_once("--image-opts ") {
            None => place.make("qemu-img", &format!("convert -O raw {image} expected.raw")),
            Some((_, options)) => {
                place.make("qemu-img", &format!("convert --image-opts -O raw {options} expected.raw"))
            }
        };
        assert_eq!(expected, "");
        place.make("cmp", "second.raw expected.raw");
        assert_eq!(server.stop(), Some(0), "{image}");
    }
}

#[test]
fn our_tools_read_and_write_through_the_references_server() {
    let place = Place::new();
    images(&place);
    let server = place.theirs("socket", "-t -e 5 -f qcow2 -A -x disk top.qcow2");
    let uri = server.uri("disk");
    for executor in ["tokio", "monoio", "glommio"] {
        let ours = format!("convert --executor {executor} -f raw -O raw {uri} {executor}.raw");
        place.make(IMG, &ours);
        place.make("qemu-img", &format!("compare -q -f raw -F qcow2 -U {executor}.raw top.qcow2"));
        let map = |tool: &str, line: &str| place.make(tool, &format!("map -f raw --output=json {line}"));
        assert_eq!(map(IMG, &format!("--executor {executor} {uri}")), map("qemu-img", &uri));
        let io = [
            "--executor",
            executor,
            "-f",
            "raw",
            "-c",
            "write -P 5 5M 3M",
            "-c",
            "write -z -u 6M 1M",
            "-c",
            "discard 7M 64k",
            "-c",
            "read -P 5 5M 1M",
            "-c",
            "read -P 0 6M 1M",
            "-c",
            "write -f -P 3 8M 12k",
            &uri,
        ];
        let output = place.run_args(IO, &io);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
    let options = |context: &str| {
        let socket = server.socket.display();
        format!("driver=nbd,server.type=unix,server.path={socket},export=disk,x-dirty-bitmap={context}")
    };
    let depths = options("qemu:allocation-depth");
    let map = |tool: &str| place.make(tool, &format!("map --output=json --image-opts {depths}"));
    assert_eq!(map(IMG), map("qemu-img"));
    let wrong = place.run(IMG, &format!("info --image-opts {}", options("base:none")));
    assert_eq!(wrong.status.code(), Some(1));
    assert_eq!(server.stop(), Some(0));
    place.make("qemu-img", "check -q top.qcow2");
}

#[test]
fn an_image_is_made_through_a_server_and_converted_into_one() {
    let place = Place::new();
    images(&place);
    place.make("qemu-img", "create -q -f raw room.raw 32M");
    let server = place.ours("socket", "-t -e 0 -f raw room.raw");
    let uri = server.uri("");
    place.make(IMG, &format!("create -q -f qcow2 {uri} 8M"));
    assert!(place.make("qemu-img", &format!("info {uri}")).contains("virtual size: 8 MiB"));
    place.make(IMG, &format!("convert -n -f qcow2 -O raw top.qcow2 {uri}"));
    place.make(IMG, &format!("compare -q -f qcow2 -F raw -U top.qcow2 {uri}"));
    assert_eq!(server.stop(), Some(0));
}

/// Raw images are no longer than the export is, and may be shorter.
#[test]
fn raw_images_are_made_where_there_is_room_as_by_the_reference() {
    let place = Place::new();
    place.make("qemu-img", "create -q -f raw plain.raw 1M");
    let server = place.theirs("theirs", "-t -f raw plain.raw");
    for len in ["512k", "1M", "2M"] {
        let line = ["create", "-f", "raw", &server.uri(""), len];
        let [ours, theirs] = [IMG, "qemu-img"].map(|tool| place.run_args(tool, &line));
        let words = |text: &[u8]| String::from_utf8_lossy(text).replace("drystone-img", "qemu-img");
        assert_eq!(ours.status.code(), theirs.status.code(), "{len}");
        assert_eq!(words(&ours.stdout), words(&theirs.stdout), "{len}");
        assert_eq!(words(&ours.stderr), words(&theirs.stderr), "{len}");
    }
}

#[test]
fn a_dirty_bitmap_is_told_as_by_the_reference() {
    let place = Place::new();
    place.make("qemu-img", "create -q -f qcow2 a.qcow2 8M");
    place.make("qemu-img", "bitmap --add a.qcow2 b0");
    let write = ["-f", "qcow2", "-c", "write 1M 128k", "-c", "write 3M 64k", "a.qcow2"];
    assert!(place.run_args("qemu-io", &write).status.success());
    place.make("qemu-img", "bitmap --disable a.qcow2 b0");
    let line = "-t -r -e 0 -f qcow2 -B b0 a.qcow2";
    let (ours, theirs) = (place.ours("ours", line), place.theirs("theirs", line));
    let map = |tool: &str, socket: &std::path::Path| {
        let options = format!(
            "driver=nbd,server.type=unix,server.path={},x-dirty-bitmap=qemu:dirty-bitmap:b0",
            socket.display()
        );
        place.make(tool, &format!("map --output=json --image-opts {options}"))
    };
    let expected = map("qemu-img", &theirs.socket);
    assert!(expected.contains("\"data\": false"), "some of it is dirty");
    for (tool, socket) in [("qemu-img", &ours.socket), (IMG, &ours.socket), (IMG, &theirs.socket)] {
        assert_eq!(map(tool, socket), expected, "{tool}");
    }
}

/// A bitmap that counts tells of what was written a moment ago; one that does not, stays as it is.
#[test]
fn bitmaps_of_a_writable_image_are_told_as_by_the_reference() {
    let place = Place::new();
    for server in ["ours", "theirs"] {
        let file = format!("{server}.qcow2");
        place.make("qemu-img", &format!("create -q -f qcow2 {file} 8M"));
        place.make("qemu-img", &format!("bitmap --add {file} counts"));
        place.make("qemu-img", &format!("bitmap --add {file} stays"));
        assert!(place.run_args("qemu-io", &["-f", "qcow2", "-c", "write 1M 128k", &file]).status.success());
        place.make("qemu-img", &format!("bitmap --disable {file} stays"));
    }
    let ours = place.ours("ours", "-t -e 0 -f qcow2 -B counts -B stays ours.qcow2");
    let theirs = place.theirs("theirs", "-t -e 0 -f qcow2 -B counts -B stays theirs.qcow2");
    let map = |server: &Served, bitmap: &str| {
        let options = format!(
            "driver=nbd,server.type=unix,server.path={},x-dirty-bitmap=qemu:dirty-bitmap:{bitmap}",
            server.socket.display()
        );
        place.make("qemu-img", &format!("map --output=json --image-opts {options}"))
    };
    let mut before = String::new();
    for write in ["write 2M 64k", "write -z 3M 200k", "write 7M 1M"] {
        for server in [&ours, &theirs] {
            assert!(place.run_args("qemu-io", &["-f", "raw", "-c", write, &server.uri("")]).status.success());
        }
        let counted = map(&theirs, "counts");
        assert_ne!(counted, before, "{write} counts");
        assert_eq!(map(&ours, "counts"), counted, "{write}");
        assert_eq!(map(&ours, "stays"), map(&theirs, "stays"), "{write}");
        before = counted;
    }
    assert_eq!(ours.stop(), Some(0));
    place.make("qemu-img", "check -q ours.qcow2");
}

/// Requests go through as many connections as are asked for, and the server takes; how many that are changes nothing else.
#[test]
fn several_connections_are_used_where_the_server_allows_it() {
    let place = Place::new();
    noise(&place.path("a.raw"), 16 << 20);
    for (number, serve) in [Place::ours, Place::theirs].into_iter().enumerate() {
        // The last one takes two clients, and lets the others wait.
        for (clients, expected) in [("0", 4), ("1", 1), ("2", 2)] {
            let socket = format!("socket{number}-{clients}");
            let server = serve(&place, &socket, &format!("-t -e {clients} -f raw a.raw"));
            // It has all its descriptors once it greets.
            let mut first = UnixStream::connect(&server.socket).expect("it listens");
            first.read_exact(&mut [0; 18]).expect("it greets");
            let alone = server.descriptors() - 1;
            drop(first);
            let begun = Instant::now();
            while server.descriptors() > alone {
                assert!(begun.elapsed() < Duration::from_secs(20), "{socket}: it keeps who has gone");
                std::thread::sleep(Duration::from_millis(1));
            }
            let options =
                format!("driver=nbd,server.type=unix,server.path={},connections=4", place.path(&socket));
            let line = ["bench", "-q", "-c", "20000", "-d", "32", "-s", "4096", "--image-opts", &options];
            let mut client = std::process::Command::new(IMG).args(line).spawn().expect("it is ours");
            let begun = Instant::now();
            let mut most = 0;
            while client.try_wait().expect("it is ours").is_none() {
                most = most.max(server.descriptors().saturating_sub(alone));
                assert!(begun.elapsed() < Duration::from_secs(60), "{socket}: it hangs");
                std::thread::sleep(Duration::from_millis(1));
            }
            assert!(client.wait().expect("it is ours").success(), "{socket}");
            assert_eq!(most, expected, "{socket}");
            place.make(IMG, &format!("convert -W --image-opts -O raw {options} {socket}.raw"));
            assert!(same(&place, "a.raw", &format!("{socket}.raw")), "{socket}");
            // What is killed keeps its locks for a moment longer.
            assert_eq!(server.stop(), Some(0), "{socket}");
        }
    }
}

/// A socket that somebody else has connected.
#[test]
fn a_descriptor_may_be_a_server() {
    let place = Place::new();
    images(&place);
    let server = place.ours("socket", "-t -e 0 -f raw plain.raw");
    let info = |socket: &UnixStream| {
        rustix::io::fcntl_setfd(socket, rustix::io::FdFlags::empty()).expect("it is open");
        let options = format!("driver=nbd,server.type=fd,server.str={}", socket.as_raw_fd());
        place.run_args(IMG, &["info", "--image-opts", &options])
    };
    let shown = info(&UnixStream::connect(&server.socket).expect("it listens"));
    let text = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.status.success() && text.contains("virtual size: 16 MiB"), "{shown:?}");
    let refused = place.run_args(IMG, &["info", "--image-opts", "driver=nbd,server.type=fd,server.str=0"]);
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(text.contains("File descriptor '0' is not a socket"), "{text}");
    assert_eq!(server.stop(), Some(0));
}

/// What is wrong with clients is said, and so in the background with `-v`.
#[test]
fn clients_that_come_to_nothing_are_told_of() {
    let place = Place::new();
    images(&place);
    let (socket, told) = (place.path("socket"), place.path("told"));
    let file = std::fs::File::create(&told).expect("the folder takes files");
    let mut command = std::process::Command::new(NBD);
    command.args(["-k", &socket, "-t", "-e", "0", "-f", "raw", "plain.raw"]);
    let mut server = command.current_dir(place.folder.path()).stderr(file).spawn().expect("it was built");
    let begun = Instant::now();
    while !std::path::Path::new(&socket).exists() {
        assert!(begun.elapsed() < Duration::from_secs(20), "it does not listen");
        std::thread::sleep(Duration::from_millis(5));
    }
    for (bytes, expected) in [
        (&b""[..], ""),
        (b"\xff\xff\xff\xff", "drystone-nbd: option negotiation failed: "),
        (b"\0\0\0\x03xxxxxxxxxxxxxxxx", "drystone-nbd: option negotiation failed: "),
        (b"\0\0\0\x03", "drystone-nbd: option negotiation failed: the connection ended"),
        (b"\0\0\0\x03IHAVEOPT\0\0\0\x02\0\0\0\0", ""),
        (
            b"\0\0\0\x03IHAVEOPT\0\0\0\x01\0\0\0\0zzzzzzzzzzzzzzzzzzzzzzzzzzzz",
            "drystone-nbd: Disconnect client, due to: ",
        ),
    ] {
        let before = std::fs::read_to_string(&told).expect("it is text").len();
        let mut client = UnixStream::connect(&socket).expect("it listens");
        client.write_all(bytes).expect("the socket takes that much");
        client.shutdown(std::net::Shutdown::Write).expect("it is connected");
        client.read_to_end(&mut Vec::new()).unwrap_or(0);
        let begun = Instant::now();
        let said = loop {
            let said = std::fs::read_to_string(&told).expect("it is text")[before..].to_owned();
            if !said.is_empty()
                || begun.elapsed() > Duration::from_secs(if expected.is_empty() { 0 } else { 10 })
            {
                break said;
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        assert!(said.starts_with(expected) && said.is_empty() == expected.is_empty(), "{bytes:?}: {said}");
    }
    server.kill().expect("it is ours");
    server.wait().expect("it is ours");
}

#[test]
fn libnbd_is_served() {
    if !have("nbdinfo", "libnbd-bin") || !have("nbdcopy", "libnbd-bin") {
        return;
    }
    let place = Place::new();
    images(&place);
    noise(&place.path("noise.raw"), 16 << 20);
    let map = |uri: &str| place.make("nbdinfo", &format!("--map {uri}"));
    let theirs = place.theirs("theirs", "-t -r -e 0 -f qcow2 top.qcow2");
    let expected = map(&theirs.uri(""));
    drop(theirs);
    let server = place.ours("socket", "-t -e 0 -f qcow2 top.qcow2");
    let uri = server.uri("");
    assert_eq!(place.make("nbdinfo", &format!("--size {uri}")).trim(), "16777216");
    assert!(place.run_args("nbdinfo", &["--can", "multi-conn", &uri]).status.success());
    assert_eq!(map(&uri), expected);
    place.make("nbdcopy", &format!("noise.raw {uri}"));
    place.make("nbdcopy", &format!("{uri} copy.raw"));
    assert!(same(&place, "noise.raw", "copy.raw"));
    assert_eq!(server.stop(), Some(0));
    place.make("qemu-img", "compare -q -f raw -F qcow2 noise.raw top.qcow2");
}

fn same(place: &Place, one: &str, other: &str) -> bool {
    let read = |name| std::fs::read(place.path(name)).expect("it was made");
    read(one) == read(other)
}

/// What no tool asks for by itself: requests beyond the end, odd flags, many in flight, and every mode.
const SHELL: &str = r#"
import nbd, os
uri = os.environ["URI"]
for extended in (False, True):
    for structured in (False, True):
        h = nbd.NBD()
        if hasattr(h, "set_request_extended_headers"):
            h.set_request_extended_headers(extended)
        h.set_request_structured_replies(structured)
        h.add_meta_context("base:allocation")
        h.set_strict_mode(0)
        h.connect_uri(uri)
        size = h.get_size()
        buf = bytes(range(256)) * 16
        h.pwrite(buf, 4096, nbd.CMD_FLAG_FUA)
        assert h.pread(4096, 4096) == buf
        assert h.pread(0, 0) == b""
        h.zero(4096, 4096, nbd.CMD_FLAG_NO_HOLE)
        assert h.pread(4096, 4096) == bytes(4096)
        h.trim(4096, 0)
        h.cache(65536, 0)
        h.flush()
        for bad in (lambda: h.pread(512, size), lambda: h.pwrite(buf, size - 1), lambda: h.trim(1, size),
                    lambda: h.pread(512, 0, 0x80)):
            try:
                bad()
            except nbd.Error as error:
                assert error.errno in ("EINVAL", "ENOSPC"), error
            else:
                raise Exception("it should have been refused")
        if structured:
            h.pread_structured(8192, 0, lambda *args: 0, nbd.CMD_FLAG_DF)
            seen = []
            h.block_status(size, 0, lambda name, offset, entries, error: seen.append((name, entries)))
            assert seen and sum(seen[0][1][::2]) == size, seen
        cookies = [h.aio_pread(nbd.Buffer(65536), 65536 * (i % 16)) for i in range(200)]
        while h.aio_in_flight() > 0:
            h.poll(-1)
            for cookie in list(cookies):
                if h.aio_command_completed(cookie):
                    cookies.remove(cookie)
        h.shutdown()
"#;

/// The distribution's own, which its module `nbd` is for.
const PYTHON: &str = "/usr/bin/python3";

#[test]
fn odd_requests_are_answered() {
    if !have(PYTHON, "python3-libnbd") {
        return;
    }
    let place = Place::new();
    images(&place);
    if !place.run_args(PYTHON, &["-c", "import nbd"]).status.success() {
        let _ =
            writeln!(std::io::stderr(), "skipped: there is no Python module nbd (package python3-libnbd)");
        return;
    }
    let server = place.ours("socket", "-t -e 0 -f raw plain.raw");
    let mut command = std::process::Command::new(PYTHON);
    let output = command.args(["-c", SHELL]).env("URI", server.uri("")).output().expect("python runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(server.stop(), Some(0));
}

/// Who looks at what there is, or is refused, does not count as one.
#[test]
fn a_server_ends_with_its_last_client() {
    let place = Place::new();
    images(&place);
    for ours in [true, false] {
        let line = "-e 3 -f raw plain.raw";
        let mut server = if ours { place.ours("socket", line) } else { place.theirs("socket", line) };
        place.make("qemu-nbd", &format!("-L -k {}", place.path("socket")));
        let refused = place.run("qemu-io", &format!("-f raw -c length {}", server.uri("other")));
        assert_eq!(refused.status.code(), Some(1));
        let mut looks = UnixStream::connect(&server.socket).expect("it listens");
        looks.read_exact(&mut [0; 18]).expect("it greets");
        drop(looks);
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(server.child.try_wait().expect("it is ours"), None, "nobody was served; ours: {ours}");
        place.make("qemu-io", &format!("-f raw -c length {}", server.uri("")));
        assert_eq!(server.wait(), Some(0), "ours: {ours}");
    }
}

#[test]
fn it_goes_on_in_the_background() {
    let place = Place::new();
    images(&place);
    let (socket, pid) = (place.path("socket"), place.path("pid"));
    let output = place.run(NBD, &format!("-k {socket} -t --fork --pid-file {pid} -f raw plain.raw"));
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let number = std::fs::read_to_string(&pid).expect("it is written by then").trim().to_owned();
    place.make("qemu-io", &format!("-f raw -c length nbd+unix://?socket={socket}"));
    assert!(std::process::Command::new("kill").arg(&number).status().expect("kill is there").success());
    let begun = Instant::now();
    while std::path::Path::new(&socket).exists() {
        assert!(begun.elapsed() < Duration::from_secs(20), "it does not end");
        std::thread::sleep(Duration::from_millis(5));
    }
    let refused = place.run(NBD, &format!("-k {socket} --fork nothing.raw"));
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("No such file or directory"));
}

#[test]
fn it_lets_go_of_its_standard_error_unless_it_is_to_go_on_telling() {
    let place = Place::new();
    images(&place);
    let (socket, pid, told) = (place.path("socket"), place.path("pid"), place.path("told"));
    for (option, kept) in [("-r", "/dev/null"), ("-v", told.as_str())] {
        let line = format!("{option} -k {socket} -t --fork --pid-file {pid} -f raw plain.raw");
        let file = std::fs::File::create(&told).expect("the folder takes files");
        let mut command = std::process::Command::new(NBD);
        command.args(line.split_whitespace()).current_dir(place.folder.path()).stderr(file);
        assert!(command.status().expect("it was built").success(), "{line}");
        let number = std::fs::read_to_string(&pid).expect("it is written by then").trim().to_owned();
        let stderr = std::fs::read_link(format!("/proc/{number}/fd/2")).expect("it runs");
        assert!(std::process::Command::new("kill").arg(&number).status().expect("kill is there").success());
        assert_eq!(stderr.to_str(), Some(kept), "{line}");
        let begun = Instant::now();
        while std::path::Path::new(&format!("/proc/{number}/exe")).exists() {
            assert!(begun.elapsed() < Duration::from_secs(20), "it does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Clients that say nothing, or nonsense, or ask and do not read: others are served all the same.
#[test]
fn others_do_not_wait_for_a_bad_client() {
    let place = Place::new();
    images(&place);
    let server = place.ours("socket", "-t -e 0 --handshake-limit=1 -f raw plain.raw");
    let connect = || UnixStream::connect(&server.socket).expect("it listens");
    let mut silent = connect();
    let mut nonsense = connect();
    nonsense.write_all(&[0xff; 4096]).expect("the socket takes that much");
    let early = connect();
    drop(early);
    let mut greedy = connect();
    greedy.write_all(b"\0\0\0\x03IHAVEOPT\0\0\0\x01\0\0\0\0").expect("the socket takes that much");
    greedy.set_nonblocking(true).expect("a socket can be");
    // Reads of a mebibyte each, of which it never takes a byte.
    let mut read = b"\x25\x60\x95\x13\0\0\0\0\0\0\0\0\0\0\0\x01\0\0\0\0\0\x10\0\0\0\x10\0\0".to_vec();
    read = read.repeat(3000);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(500) {
        // It is full in the end, and stays so.
        let sent = greedy.write(&read).unwrap_or(0);
        std::thread::sleep(Duration::from_millis(if sent > 0 { 1 } else { 10 }));
    }
    let uri = server.uri("");
    place.make("qemu-io", &format!("-f raw -c length {uri}"));
    assert!(server.memory() < 300 << 20, "{} bytes", server.memory());
    // Who says nothing is let go.
    silent.set_read_timeout(Some(Duration::from_secs(10))).expect("a socket can be");
    let mut said = Vec::new();
    silent.read_to_end(&mut said).expect("it is let go in time");
    assert_eq!(said.len(), 18, "the greeting");
    let mut rest = Vec::new();
    nonsense.read_to_end(&mut rest).expect("it is let go");
    assert_eq!(server.stop(), Some(0));
}

/// Clients that come and go leave nothing behind, and those that stay take little.
#[test]
fn many_clients_take_little() {
    /// Bytes that may be left of each of those who come and go: far below anything that is kept for one.
    const LEFT_MAX: u64 = 100;
    // A thousand sockets of ours, and of the server, which inherits this.
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, ..limit };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised).expect("up to the maximum it may");
    let place = Place::new();
    images(&place);
    let server = place.ours("socket", "-t -e 0 --handshake-limit=0 -f raw plain.raw");
    let serve = |_| Peer::serving(&server.socket, Mode::Structured);
    (0..200).map(serve).for_each(drop);
    let before = server.memory();
    let stay: Vec<_> = (0..1000).map(serve).collect();
    let each = server.memory().saturating_sub(before) / stay.len() as u64;
    assert!(each < 64 << 10, "{each} bytes for a client");
    drop(stay);
    // Each negotiates; some go in the middle, some ask for something, and some do not wait for the answer.
    let come_and_go = |count: usize| {
        for number in 0..count {
            let mut peer = match number % 4 {
                0 => Peer::connect(&server.socket),
                _ => serve(number),
            };
            match number % 4 {
                0 => drop(peer.option_after_flags(OptionCode::LIST)),
                1 => peer.ask(1, CommandCode::READ, 0, 4096),
                2 => {
                    peer.ask(1, CommandCode::WRITE_ZEROES, 0, 4096);
                    peer.hear(16);
                }
                _ => {}
            }
        }
    };
    // What it keeps for later is there by then.
    come_and_go(3000);
    let before = server.memory();
    come_and_go(10_000);
    let left = server.memory().saturating_sub(before);
    assert!(left < 10_000 * LEFT_MAX, "{left} bytes are left of 10,000 clients");
    let files = server.descriptors();
    assert!(files < 100, "{files} descriptors");
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn a_killed_server_leaves_a_consistent_image() {
    let place = Place::new();
    for wait in [20, 60, 120] {
        place.make("qemu-img", "create -q -f qcow2 a.qcow2 256M");
        let server = place.ours("socket", "-t -e 0 -f qcow2 a.qcow2");
        let uri = server.uri("");
        let line = format!("bench -w -q -f raw -c 100000 -d 32 -s 64k --flush-interval=64 {uri}");
        let mut command = std::process::Command::new("qemu-img");
        command.args(line.split_whitespace()).stderr(std::process::Stdio::null());
        let mut client = command.stdout(std::process::Stdio::null()).spawn().expect("qemu-img is installed");
        std::thread::sleep(Duration::from_millis(wait));
        server.kill();
        let _ = client.kill();
        let _ = client.wait();
        let checked = place.run("qemu-img", "check a.qcow2");
        assert!(matches!(checked.status.code(), Some(0 | 3)), "leaks at most: {checked:?}");
    }
}

/// The server goes away in the middle, and comes back: nobody notices but by the time it takes.
#[test]
fn requests_survive_a_server_that_comes_back() {
    let place = Place::new();
    noise(&place.path("noise.raw"), 64 << 20);
    let line = "-t -e 0 -r -f raw noise.raw";
    let server = place.ours("socket", line);
    let options = |delay: u32| {
        let socket = server.socket.display();
        format!("driver=nbd,server.type=unix,server.path={socket},reconnect-delay={delay}")
    };
    let (patient, hasty) = (options(20), options(0));
    let bench = |server: &Served, count: &str, options: &str| {
        let before = server.descriptors();
        let mut command = std::process::Command::new("timeout");
        command.args(["120", IMG, "bench", "-q", "-c", count, "-d", "16", "-s", "65536", "--image-opts"]);
        let client = command.arg(options).stderr(std::process::Stdio::null()).spawn().expect("it is there");
        server.wait_for_client(before);
        std::thread::sleep(Duration::from_millis(50));
        client
    };
    let mut client = bench(&server, "40000", &patient);
    server.kill();
    std::fs::remove_file(place.path("socket")).expect("who was killed leaves it");
    std::thread::sleep(Duration::from_millis(300));
    let server = place.ours("socket", line);
    assert_eq!(client.wait().expect("it is ours").code(), Some(0), "what was in flight is asked for again");
    let mut client = bench(&server, "4000000", &hasty);
    server.kill();
    assert_eq!(client.wait().expect("it is ours").code(), Some(1), "without a delay, requests fail");
}

#[test]
fn nbdkit_is_read_and_written() {
    if !have("nbdkit", "nbdkit") {
        return;
    }
    let place = Place::new();
    noise(&place.path("noise.raw"), 8 << 20);
    let kit = |line: &str| {
        let socket = place.path("kit");
        let _ = std::fs::remove_file(&socket);
        place.serve("nbdkit", "kit", &format!("-f -U {socket} {line}"))
    };
    for line in [
        "memory 8M",
        "--filter=cow file noise.raw",
        "--filter=blocksize-policy --filter=cow file noise.raw blocksize-minimum=4096 blocksize-preferred=65536 blocksize-maximum=1M blocksize-error-policy=error",
        "--filter=delay memory 8M rdelay=1ms wdelay=1ms",
        "--filter=nozero memory 8M",
        "--no-sr memory 8M",
        "-o memory 8M",
    ] {
        let server = kit(line);
        let uri = server.uri("");
        place.make(IMG, &format!("convert -n -f raw -O raw noise.raw {uri}"));
        place.make(IMG, &format!("compare -q -f raw -F raw noise.raw {uri}"));
        place.make(IMG, &format!("convert -f raw -O raw {uri} back.raw"));
        assert!(same(&place, "noise.raw", "back.raw"), "{line}");
    }
    // It ends with its last client, which says so.
    let mut server = kit("--filter=exitlast memory 8M");
    let uri = server.uri("");
    assert!(place.run_args(IO, &["-f", "raw", "-c", "write -P 5 4k 1M", &uri]).status.success());
    assert_eq!(server.wait(), Some(0));
    let server = kit("--filter=error memory 8M error=EIO error-rate=100%");
    let uri = server.uri("");
    let failed = place.run(IMG, &format!("convert -f raw -O raw {uri} back.raw"));
    assert_eq!(failed.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&failed.stderr).contains("Input/output error"), "{failed:?}");
    let read = place.run_args(IO, &["-f", "raw", "-c", "read 0 4k", &uri]);
    assert_eq!(read.status.code(), Some(1));
}

#[test]
fn fio_verifies_what_it_wrote() {
    if !have("fio", "fio") {
        return;
    }
    let place = Place::new();
    place.make("qemu-img", "create -q -f qcow2 a.qcow2 16M");
    let server = place.ours("socket", "-t -e 0 -f qcow2 a.qcow2");
    let uri = server.uri("");
    let line = format!(
        "--name=job --ioengine=nbd --uri={uri} --rw=randwrite --bsrange=512-128k --size=8M --iodepth=32 --verify=crc32c \
         --do_verify=1 --verify_fatal=1 --randseed=1"
    );
    let output = place.run("fio", &line);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    if text.contains("engine nbd not loadable") || text.contains("failed to load engine") {
        let _ = writeln!(std::io::stderr(), "skipped: this fio has no engine for NBD");
        return;
    }
    assert!(output.status.success(), "{text}");
    assert_eq!(server.stop(), Some(0));
    place.make("qemu-img", "check -q a.qcow2");
}
