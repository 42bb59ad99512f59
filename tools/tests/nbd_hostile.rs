//! Clients of our server that want much, or go in the middle: others are served, and the server ends when it is told to.

mod peer;
mod served;

use drystone_core::protocol::nbd::Mode;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;
use std::time::{Duration, Instant};

use drystone_core::protocol::nbd::layout::{
    CommandCode, HandshakeFlags, InfoRequest, OptionCode, OptionReply, ReplyCode, greeting,
};
use peer::{Peer, option};
use served::{Place, Served};

const NBD: &str = env!("CARGO_BIN_EXE_drystone-nbd");
const IMG: &str = env!("CARGO_BIN_EXE_drystone-img");

/// What one client asks for at once.
const MANY: usize = 64;

/// A disk of 64 GiB with nothing in it, which memory alone can tell.
fn sparse(place: &Place) -> Served {
    place.make("qemu-img", "create -q -f qcow2 big.qcow2 64G");
    place.ours("socket", "-t -e 0 -f qcow2 --discard=unmap big.qcow2")
}

/// Zeros are read ahead without waiting for anything: others have their turn between two steps.
#[test]
fn reading_ahead_keeps_nobody_waiting() {
    let place = Place::new();
    let server = sparse(&place);
    let mut greedy: Vec<_> = (0..8).map(|_| Peer::serving(&server.socket, Mode::Extended)).collect();
    let mut other = Peer::serving(&server.socket, Mode::Simple);
    for peer in &mut greedy {
        peer.ask(MANY, CommandCode::CACHE, 0, 32 << 20);
    }
    assert_eq!(other.read(1 << 30, 4096), [0; 4096]);
    let answered: usize = greedy.iter_mut().map(Peer::replies_by_now).sum();
    assert!(answered < 8 * MANY, "the read was answered behind all of them");
    // More than that at once is refused, as by the reference.
    let mut peer = Peer::serving(&server.socket, Mode::Simple);
    peer.ask(1, CommandCode::CACHE, 0, (32 << 20) + 1);
    assert_eq!(peer.hear(16)[4..8], 22u32.to_be_bytes());
    assert_eq!(server.stop(), Some(0));
}

/// What a client has asked for and did not wait for is not carried out to its end, whether or not it is still there when the
/// server stops.
#[test]
fn nothing_is_done_for_who_has_gone() {
    let place = Place::new();
    for command in [CommandCode::WRITE_ZEROES, CommandCode::TRIM] {
        // As many as are taken at once, and more; who goes then is not listened to.
        for count in [3, MANY, 3 * MANY] {
            let server = sparse(&place);
            let before = server.descriptors();
            let mut peer = Peer::serving(&server.socket, Mode::Extended);
            peer.ask(count, command, 0, 64 << 30);
            let mut other = Peer::serving(&server.socket, Mode::Simple);
            assert_eq!(other.read(1 << 30, 4096), [0; 4096]);
            drop(peer);
            drop(other);
            server.wait_for_descriptors(before);
            assert_eq!(server.stop(), Some(0), "{count} of {command:?}");
        }
    }
}

/// Writes that are announced take memory as their data comes, not before; many clients are stopped in the middle of one.
#[test]
fn writes_that_are_only_announced_take_little_memory() {
    let place = Place::new();
    place.make("qemu-img", "create -q -f raw plain.raw 64M");
    let server = place.ours("socket", "-t -e 0 -f raw plain.raw");
    let mut other = Peer::serving(&server.socket, Mode::Simple);
    let before = server.memory();
    let announce = |sent: usize| {
        let mut peer = Peer::serving(&server.socket, Mode::Simple);
        peer.ask(1, CommandCode::WRITE, 0, 32 << 20);
        peer.say(&vec![1; sent]);
        peer
    };
    let silent: Vec<_> = (0..60).map(|_| announce(0)).collect();
    let slow: Vec<_> = (0..8).map(|_| announce(1 << 20)).collect();
    assert_eq!(other.read(0, 512), [0; 512]);
    let each = server.memory().saturating_sub(before) / (silent.len() + slow.len()) as u64;
    assert!(each < 2 << 20, "{each} bytes a client");
    // One that goes on is written, in one piece to its client.
    let mut whole = announce(0);
    let bytes: Vec<u8> = (0..32 << 20).map(|at| (at / 4096 % 251) as u8).collect();
    whole.say(&bytes);
    assert_eq!(whole.hear(16)[4..8], [0; 4], "the write works");
    assert!(other.read(0, 32 << 20) == bytes, "what was written is read");
    assert_eq!(server.stop(), Some(0));
}

/// What a client says before transmission: all kinds of options, the last of which begins it.
fn introduction() -> Vec<u8> {
    let info = InfoRequest::encode("", &[]);
    let meta = [&[0; 4][..], &[0, 0, 0, 1, 0, 0, 0, 5], b"base:"].concat();
    [
        3u32.to_be_bytes().to_vec(),
        option(OptionCode::LIST, &[]),
        option(OptionCode::STRUCTURED_REPLY, &[]),
        option(OptionCode::INFO, &info),
        option(OptionCode::LIST_META_CONTEXT, &meta),
        option(OptionCode(77), &[1; 9]),
        option(OptionCode::GO, &info),
    ]
    .concat()
}

/// CVE-2017-7539, CVE-2017-9524, CVE-2011-1925, CVE-2013-7441, CVE-2019-14851: clients that go after any byte of a
/// negotiation, whether or not they have read what the server said, end nothing but their own connection.
#[test]
fn clients_may_go_after_any_byte() {
    let place = Place::new();
    place.make("qemu-img", "create -q -f raw plain.raw 1M");
    let server = place.ours("socket", "-t -e 0 -f raw plain.raw");
    let mut other = Peer::serving(&server.socket, Mode::Simple);
    let before = server.descriptors();
    let all = introduction();
    for end in 0..=all.len() {
        // What is not read makes the end of a connection a reset.
        for reads in [true, false] {
            let mut stream = UnixStream::connect(&server.socket).expect("it listens");
            if reads {
                stream.read_exact(&mut [0; 18]).expect("it greets");
            }
            stream.write_all(&all[..end]).expect("it listens");
        }
    }
    assert_eq!(other.read(0, 512), [0; 512]);
    server.wait_for_descriptors(before);
    assert_eq!(server.stop(), Some(0));
}

/// CVE-2019-14850: connections that are never negotiated on cost a socket each; the image was opened before anyone came.
#[test]
fn a_storm_of_connections_opens_nothing() {
    let place = Place::new();
    place.make("qemu-img", "create -q -f raw plain.raw 1M");
    let server = place.ours("socket", "-t -e 0 -f raw plain.raw");
    drop(Peer::connect(&server.socket));
    let (before, holding) = (server.descriptors(), |server: &Served| {
        let all = std::fs::read_dir(format!("/proc/{}/fd", server.child.id())).expect("it runs");
        let target = |entry: std::fs::DirEntry| std::fs::read_link(entry.path()).ok();
        let image = place.folder.path().join("plain.raw").canonicalize().expect("it is there");
        all.filter_map(|entry| target(entry.ok()?)).filter(|path| *path == image).count()
    });
    let images = holding(&server);
    let storm: Vec<_> = (0..300).map(|_| Peer::connect(&server.socket)).collect();
    assert!(images > 0 && holding(&server) == images, "the image is open once");
    assert!(server.descriptors() <= before + storm.len());
    assert_eq!(server.stop(), Some(0));
}

/// CVE-2024-7409: a server that stops lets go of clients that sit in the handshake, wherever in it they are.
#[test]
fn a_server_that_stops_does_not_wait_for_handshakes() {
    let place = Place::new();
    place.make("qemu-img", "create -q -f raw plain.raw 1M");
    let server = place.ours("socket", "-t -e 0 --handshake-limit=0 -f raw plain.raw");
    let all = introduction();
    let mut sitting: Vec<_> = (0..all.len() - 1)
        .step_by(3)
        .map(|end| {
            let mut peer = Peer::connect(&server.socket);
            peer.say(&all[..end]);
            peer
        })
        .collect();
    let begun = Instant::now();
    assert_eq!(server.stop(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(4), "those in transmission have longer");
    for peer in &mut sitting {
        // What it had not read makes it a reset.
        let _ = peer.stream.read_to_end(&mut Vec::new());
    }
}

/// CVE-2015-0847: signals that come while it works, and many at once, do what one does.
#[test]
fn signals_come_at_any_time() {
    let place = Place::new();
    place.make("qemu-img", "create -q -f qcow2 a.qcow2 64M");
    let mut server = place.ours("socket", "-t -e 0 -f qcow2 a.qcow2");
    let number = server.child.id().to_string();
    let signal = |names: &[&str]| {
        for name in names {
            // The process is ours until it is waited for.
            Command::new("kill").args([*name, &number]).status().expect("kill is there");
        }
    };
    let mut peer = Peer::serving(&server.socket, Mode::Extended);
    let mut other = Peer::serving(&server.socket, Mode::Simple);
    peer.ask(MANY, CommandCode::WRITE_ZEROES, 0, 64 << 20);
    signal(&["-CHLD", "-CHLD", "-WINCH", "-CONT", "-PIPE"]);
    assert_eq!(other.read(0, 4096), [0; 4096]);
    signal(&["-TERM", "-INT", "-HUP", "-TERM", "-TERM"]);
    assert_eq!(server.wait(), Some(0));
    place.make("qemu-img", "check -q a.qcow2");
}

/// What a server says to the options of a client until it ends the connection, after `end` bytes.
fn server_that_ends(place: &Place, said: &[u8], end: usize) -> std::thread::JoinHandle<()> {
    let socket = place.path("fake");
    let _ = std::fs::remove_file(&socket);
    let listener = UnixListener::bind(socket).expect("the folder takes it");
    let said = said[..end].to_vec();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client comes");
        stream.write_all(&said).expect("it reads");
        stream.shutdown(std::net::Shutdown::Write).expect("it is connected");
        // The client has an end, too.
        let _ = stream.read_to_end(&mut Vec::new());
    })
}

/// CVE-2021-20286: a server that ends after any part of the negotiation is an error, in words, for all that ask one.
#[test]
fn servers_may_end_in_the_middle_of_options() {
    let place = Place::new();
    let reply = |option, code, data: &[u8]| {
        [&OptionReply { option, code, len: data.len() as u32 }.encode()[..], data].concat()
    };
    let hello = greeting(HandshakeFlags::FIXED_NEWSTYLE.with(HandshakeFlags::NO_ZEROES)).to_vec();
    let no = |option| reply(option, ReplyCode::ERR_UNSUP, b"no");
    let opening = [
        hello.clone(),
        no(OptionCode::EXTENDED_HEADERS),
        reply(OptionCode::STRUCTURED_REPLY, ReplyCode::ACK, &[]),
        reply(OptionCode::SET_META_CONTEXT, ReplyCode::ACK, &[]),
    ]
    .concat();
    let listing = [
        hello,
        no(OptionCode::EXTENDED_HEADERS),
        no(OptionCode::STRUCTURED_REPLY),
        reply(OptionCode::LIST, ReplyCode::SERVER, &[&[0, 0, 0, 1][..], b"x"].concat()),
    ]
    .concat();
    let fake = place.path("fake");
    for (tool, line, said) in
        [(IMG, format!("info nbd+unix://?socket={fake}"), opening), (NBD, format!("-L -k {fake}"), listing)]
    {
        for end in (0..=said.len()).step_by(5) {
            let server = server_that_ends(&place, &said, end);
            let output = place.run(tool, &line);
            server.join().expect("it does not panic");
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(1), "{tool} after {end} bytes: {text}");
            assert!(text.contains("the connection ended"), "{tool} after {end} bytes: {text}");
        }
    }
}
