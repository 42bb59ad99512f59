//! One connection of a leaf, and what waits while it is lost.
//!
//! One that is [to come](Link::to_come) begins as if it had been lost.
//!
//! ```text
//!   Up ──the connection ends──▶ Lost ──a new one──▶ Up: everything in flight is asked for again
//!                                 └──the delay is over──▶ what waits fails, and what comes, until there is a new one
//! ```
//!
//! A request that was in flight may have been carried out, and may be still: the protocol has no way to tell, and no fence
//! against what the old connection still does. Asking for it again is harmless by itself, because each says what is to be,
//! not what is to change; but a write of the old connection that the server carries out late may undo one that was asked
//! for afterwards. A server that ends its connections, as one that is started again does, has nothing left to carry out.
//! What it had answered and not made durable is lost where it was killed; a flush on the next connection knows nothing of
//! that, here as in the reference.

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, Thread};
use std::time::Instant;

use drystone_core::intent::Errno;
use drystone_core::protocol::nbd::client::{Ended, Negotiated, Order, Reconnect, Transmission, Wanted};
use drystone_core::protocol::nbd::limits::{CLIENT_REQUESTS_MAX, HANDSHAKE_MAX};
use smallvec::SmallVec;

use super::Sockets;
use super::connect::{Connection, Dial, connect};
use super::stream::{SLICES_MAX, Stream, Stuck};
use crate::doorbell::Doorbell;

/// Reads of a socket in one turn, before others have theirs.
const READS_MAX: usize = 16;

/// A payload from which on the next header is read by itself: what is read with it is copied once more.
const LARGE: usize = 32 << 10;

/// Bytes that are read beyond a large payload: a few headers.
const FEW: usize = 256;

/// A connection, now or soon.
pub(super) struct Link {
    state: State,
    dial: Arc<Dial>,
    export: Negotiated,
    number: Option<u32>,
    can_receive: bool,
    can_send: bool,
    /// The server has ended the connection, which a look at the socket has to find.
    hangup: bool,
    /// Length of the payload that came last.
    last_payload: usize,
    /// Orders that were given while there was no connection, or before it was lost, the oldest first.
    waiting: VecDeque<Order>,
    ended: VecDeque<Ended>,
    bell: Arc<Doorbell>,
}

enum State {
    Up {
        stream: Stream,
        transmission: Box<Transmission>,
    },
    /// Orders wait, or fail once `failing`.
    Lost {
        redial: Redial,
        failing: bool,
    },
}

impl Link {
    /// A connection that is there, under its number.
    pub(super) fn new(connection: Connection, number: u32, bell: Arc<Doorbell>) -> Self {
        let Connection { stream, transmission, dial } = connection;
        let export = transmission.export().clone();
        Self {
            number: Some(number),
            ..Self::in_state(State::Up { stream, transmission }, dial, export, bell)
        }
    }

    /// A connection that begins to be made, to an export that another is to.
    pub(super) fn to_come(dial: Arc<Dial>, export: Negotiated, bell: Arc<Doorbell>) -> Self {
        let redial = Redial::new(&dial, &export, &bell);
        Self::in_state(State::Lost { redial, failing: false }, dial, export, bell)
    }

    fn in_state(state: State, dial: Arc<Dial>, export: Negotiated, bell: Arc<Doorbell>) -> Self {
        Self {
            state,
            dial,
            export,
            number: None,
            can_receive: true,
            can_send: true,
            hangup: false,
            last_payload: 0,
            waiting: VecDeque::new(),
            ended: VecDeque::new(),
            bell,
        }
    }

    /// The connection's number; a new one has another.
    pub(super) fn number(&self) -> Option<u32> {
        self.number
    }

    /// Orders that the server has; none where there is no connection.
    pub(super) fn in_flight(&self) -> Option<usize> {
        match &self.state {
            State::Up { transmission, .. } => Some(transmission.in_flight()),
            State::Lost { .. } => None,
        }
    }

    /// Gives back the oldest order that waits for a connection.
    pub(super) fn take_waiting(&mut self) -> Option<Order> {
        self.waiting.pop_front()
    }

    pub(super) fn has_room(&self) -> bool {
        match &self.state {
            State::Up { transmission, .. } => transmission.has_room(),
            State::Lost { .. } => self.waiting.len() < CLIENT_REQUESTS_MAX,
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        let idle = match &self.state {
            State::Up { transmission, .. } => transmission.is_idle(),
            State::Lost { .. } => true,
        };
        idle && self.waiting.is_empty() && self.ended.is_empty()
    }

    /// Takes an order; answers it if it fails at once.
    pub(super) fn push(&mut self, order: Order) -> Option<Ended> {
        match &mut self.state {
            State::Up { transmission, .. } => transmission.submit(order),
            State::Lost { failing: true, .. } => return Some(failed(order)),
            State::Lost { .. } => self.waiting.push_back(order),
        }
        None
    }

    /// Sends what the socket takes.
    pub(super) fn send(&mut self) {
        let State::Up { stream, transmission } = &mut self.state else { return };
        while self.can_send && (!transmission.out().is_empty() || stream.owes()) {
            let slices: SmallVec<[IoSlice<'_>; 64]> =
                transmission.out().slices().take(SLICES_MAX).map(IoSlice::new).collect();
            let all: usize = slices.iter().map(|slice| slice.len()).sum();
            let sent = stream.send(&slices);
            drop(slices);
            match sent {
                Ok(count) => {
                    self.can_send = stream.takes_more(count, all);
                    transmission.sent(count);
                }
                Err(Stuck::ForNow) => self.can_send = false,
                Err(_) => return self.lose(),
            }
        }
    }

    /// Takes note that the socket can go on.
    pub(super) fn ready(&mut self, hangup: bool) {
        (self.can_receive, self.can_send) = (true, true);
        self.hangup |= hangup;
    }

    /// Receives what there is, or a new connection. Tells whether there was anything.
    pub(super) fn receive(&mut self, scratch: &mut [u8], sockets: &mut Sockets) -> bool {
        if let State::Lost { redial, failing } = &mut self.state {
            let Some(letter) = redial.take() else { return false };
            match letter {
                Letter::Fail => {
                    *failing = true;
                    self.fail_waiting();
                }
                Letter::Connected(connection) => match sockets.add(connection.stream.as_fd()) {
                    Ok(number) => self.resume(connection, number),
                    // As if it had been lost at once.
                    Err(_) => *redial = Redial::new(&self.dial, &self.export, &self.bell),
                },
            }
            return true;
        }
        let mut any = false;
        for _ in 0..READS_MAX {
            if !self.can_receive {
                break;
            }
            any = true;
            if !self.receive_once(scratch) {
                self.lose();
                break;
            }
        }
        if let State::Up { transmission, .. } = &mut self.state {
            while let Some(ended) = transmission.next_ended() {
                self.ended.push_back(ended);
            }
        }
        any
    }

    /// Receives once; tells whether the connection is still good.
    fn receive_once(&mut self, scratch: &mut [u8]) -> bool {
        let State::Up { stream, transmission } = &mut self.state else { return true };
        let few = if self.last_payload >= LARGE { FEW } else { scratch.len() };
        let scratch = &mut scratch[..few];
        let mut slices: SmallVec<[IoSliceMut<'_>; 16]> =
            transmission.payload().take(SLICES_MAX - 1).map(IoSliceMut::new).collect();
        let room: usize = slices.iter().map(|slice| slice.len()).sum();
        slices.push(IoSliceMut::new(scratch));
        let received = stream.receive(&mut slices);
        drop(slices);
        let count = match received {
            Ok(count) => count,
            Err(Stuck::ForNow) => {
                self.can_receive = false;
                return true;
            }
            Err(_) => return false,
        };
        self.can_receive = self.hangup || stream.has_more(count, room + few);
        if room > 0 {
            self.last_payload = room;
        }
        let placed = count.min(room);
        let mut rest = &scratch[..count - placed];
        transmission.received(placed).and_then(|()| transmission.feed(&mut rest)).is_ok()
    }

    pub(super) fn next_ended(&mut self) -> Option<Ended> {
        self.ended.pop_front()
    }

    /// Gives up the connection, and begins to make a new one.
    fn lose(&mut self) {
        let redial = Redial::new(&self.dial, &self.export, &self.bell);
        let before = std::mem::replace(&mut self.state, State::Lost { redial, failing: false });
        let State::Up { mut transmission, .. } = before else { return };
        while let Some(ended) = transmission.next_ended() {
            self.ended.push_back(ended);
        }
        self.waiting.extend(transmission.take_orders());
    }

    fn resume(&mut self, connection: Connection, number: u32) {
        let Connection { stream, mut transmission, .. } = connection;
        self.waiting.drain(..).for_each(|order| transmission.submit(order));
        self.state = State::Up { stream, transmission };
        self.number = Some(number);
        (self.can_receive, self.can_send, self.hangup) = (true, true, false);
    }

    fn fail_waiting(&mut self) {
        self.ended.extend(self.waiting.drain(..).map(failed));
    }

    /// Has nothing wait for a new connection.
    pub(super) fn hurry(&mut self) {
        if let State::Lost { failing, .. } = &mut self.state {
            *failing = true;
            self.fail_waiting();
        }
    }

    /// Takes leave of the server.
    pub(super) fn close(mut self) {
        if let State::Up { transmission, .. } = &mut self.state {
            transmission.disconnect();
        }
        // Where that does not go out at once, the end of the connection says the same.
        self.send();
    }
}

fn failed(order: Order) -> Ended {
    Ended { order, result: Err(Errno::EIO), extent: None }
}

/// A thread that makes a lost connection anew.
struct Redial {
    shared: Arc<Shared>,
    thread: Option<Thread>,
}

struct Shared {
    letters: Mutex<VecDeque<Letter>>,
    stop: AtomicBool,
    bell: Arc<Doorbell>,
}

/// What the thread has to say.
enum Letter {
    Connected(Connection),
    Fail,
}

impl Redial {
    fn new(dial: &Arc<Dial>, export: &Negotiated, bell: &Arc<Doorbell>) -> Self {
        let (dial, export, bell) = (Arc::clone(dial), export.clone(), Arc::clone(bell));
        let shared = Arc::new(Shared { letters: Mutex::default(), stop: AtomicBool::new(false), bell });
        let work = Arc::clone(&shared);
        let spawned: std::io::Result<JoinHandle<()>> =
            std::thread::Builder::new().name("nbd-redial".into()).spawn(move || work.work(&dial, &export));
        let thread = spawned.ok().map(|handle| handle.thread().clone());
        if thread.is_none() {
            shared.put(Letter::Fail);
        }
        Self { shared, thread }
    }

    fn take(&mut self) -> Option<Letter> {
        self.shared.letters.lock().expect("putting does not panic").pop_front()
    }
}

impl Drop for Redial {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // It ends by itself, at the latest when an attempt has taken its time; nobody waits for that.
        if let Some(thread) = &self.thread {
            thread.unpark();
        }
    }
}

impl Shared {
    fn put(&self, letter: Letter) {
        self.letters.lock().expect("taking does not panic").push_back(letter);
        self.bell.ring();
    }

    fn work(&self, dial: &Arc<Dial>, export: &Negotiated) {
        let delay = dial.location.reconnect_delay;
        let start = Instant::now();
        let mut policy = Reconnect::new(delay);
        policy.lost(start.elapsed());
        while !self.stop.load(Ordering::Relaxed) {
            match policy.wanted(start.elapsed()) {
                Wanted::Nothing => unreachable!("an attempt has ended before the next question"),
                Wanted::Fail => self.put(Letter::Fail),
                Wanted::Until(then) => std::thread::park_timeout(then.saturating_sub(start.elapsed())),
                Wanted::Connect => {
                    // Not beyond the time at which what waits is to fail.
                    let deadline = match policy.holds_requests() {
                        true => start + delay.max(start.elapsed()),
                        false => Instant::now() + HANDSHAKE_MAX,
                    };
                    let deadline = deadline.min(Instant::now() + HANDSHAKE_MAX);
                    match connect(dial, deadline) {
                        Ok(connection) if fits(connection.transmission.export(), export) => {
                            return self.put(Letter::Connected(connection));
                        }
                        _ => policy.refused(start.elapsed()),
                    }
                }
            }
        }
    }
}

/// Whether what the server gives is what it gave before.
fn fits(found: &Negotiated, expected: &Negotiated) -> bool {
    let same = |one: &Negotiated| (one.len, one.flags, one.sizes);
    same(found) == same(expected)
}
