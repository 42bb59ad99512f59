//! Clients of our server that want much, or go in the middle: others are served, and the server ends when it is told to.

mod peer;
mod served;

use drystone_core::protocol::nbd::Mode;
use drystone_core::protocol::nbd::layout::CommandCode;
use peer::Peer;
use served::Place;

/// What one client asks for at once.
const MANY: usize = 64;

/// A disk of 64 GiB with nothing in it, which memory alone can tell.
fn sparse(place: &Place) -> served::Served {
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
