//! Finding out when a socket can go on: all of an engine's sockets in one epoll, which tells of each change once. An
//! io_uring waits for the epoll in one slot, however many sockets there are; where there is none, or its kernel does not
//! tell of them, a thread does.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, PollFlags, Timespec, eventfd};

use crate::doorbell::Doorbell;
use crate::ring::Ring;

/// Names the event that ends the thread.
const STOP: u64 = u64::MAX;

/// Events that are taken at once.
const EVENTS: usize = 256;

/// A socket that can go on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ready {
    /// Its number.
    pub(crate) number: u32,
    /// The peer has ended the connection, and nothing tells of that again.
    pub(crate) hangup: bool,
    /// The connection has ended both ways: nobody will receive anything.
    pub(crate) deaf: bool,
}

/// The sockets of one engine.
pub(crate) struct Sockets {
    epoll: Arc<OwnedFd>,
    next: u32,
    notice: Notice,
}

/// Who waits for the epoll.
enum Notice {
    /// A ring does while it is `armed`; then there are `events`.
    Ring {
        armed: bool,
        events: bool,
    },
    Thread(Watcher),
}

struct Watcher {
    ready: Arc<Mutex<Vec<Ready>>>,
    stop: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

impl Sockets {
    /// There are none yet. `ringed` says whether there is a ring that tells; else `bell` is rung.
    pub(crate) fn new(bell: &Arc<Doorbell>, ringed: bool) -> io::Result<Self> {
        let epoll = Arc::new(epoll::create(CreateFlags::CLOEXEC)?);
        let notice = match ringed {
            true => Notice::Ring { armed: false, events: false },
            false => Notice::Thread(Watcher::new(Arc::clone(&epoll), Arc::clone(bell))?),
        };
        Ok(Self { epoll, next: 0, notice })
    }

    /// Takes a socket, which is told of by its number from now on until it is closed.
    pub(crate) fn add(&mut self, socket: impl AsFd) -> io::Result<u32> {
        self.next = self.next.wrapping_add(1);
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        epoll::add(&*self.epoll, socket, EventData::new_u64(self.next.into()), flags)?;
        Ok(self.next)
    }

    /// Has the ring wait for the next change. Where it has no room, something completes and this is called again.
    pub(crate) fn arm(&mut self, ring: Option<&mut Ring>) -> io::Result<()> {
        if let (Notice::Ring { armed, events: false }, Some(ring)) = (&mut self.notice, ring)
            && !*armed
        {
            *armed = ring.watch(self.epoll.as_fd(), PollFlags::IN.bits().into())?;
        }
        Ok(())
    }

    /// Takes note that the ring has seen a change.
    pub(crate) fn changed(&mut self) {
        if let Notice::Ring { armed, events } = &mut self.notice {
            (*armed, *events) = (false, true);
        }
    }

    /// Takes the sockets that can go on. Tells whether there was a notice: the ring has to be armed again then, also where
    /// what it noticed was gone before anybody looked (a connection that was accepted meanwhile).
    pub(crate) fn take(&mut self, ready: &mut Vec<Ready>) -> bool {
        match &mut self.notice {
            Notice::Ring { events, .. } => {
                let noticed = *events;
                while *events {
                    let count = wait(&self.epoll, Some(Timespec { tv_sec: 0, tv_nsec: 0 }), ready);
                    *events = count == EVENTS;
                }
                noticed
            }
            Notice::Thread(watcher) => {
                let mut found = watcher.ready.lock().expect("pushing does not panic");
                let noticed = !found.is_empty();
                ready.append(&mut found);
                noticed
            }
        }
    }
}

/// Waits for events, and returns how many there were.
fn wait(epoll: &OwnedFd, time: Option<Timespec>, ready: &mut Vec<Ready>) -> usize {
    let mut events: Vec<epoll::Event> = Vec::with_capacity(EVENTS);
    match epoll::wait(epoll, spare_capacity(&mut events), time.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => panic!("an epoll of ours cannot be waited for: {error}"),
    }
    for event in &events {
        let (data, flags) = (event.data.u64(), event.flags);
        let deaf = flags.intersects(EventFlags::HUP | EventFlags::ERR) || data == STOP;
        let hangup = deaf || flags.contains(EventFlags::RDHUP);
        ready.push(Ready { number: data as u32, hangup, deaf });
    }
    events.len()
}

impl Watcher {
    fn new(epoll: Arc<OwnedFd>, bell: Arc<Doorbell>) -> io::Result<Self> {
        let stop = eventfd(0, EventfdFlags::CLOEXEC)?;
        epoll::add(&*epoll, &stop, EventData::new_u64(STOP), EventFlags::IN)?;
        let ready: Arc<Mutex<Vec<Ready>>> = Arc::default();
        let put = Arc::clone(&ready);
        let work = move || {
            let mut found = Vec::new();
            loop {
                wait(&epoll, None, &mut found);
                if found.iter().any(|ready| ready.number == STOP as u32) {
                    return;
                }
                put.lock().expect("taking does not panic").append(&mut found);
                bell.ring();
            }
        };
        let thread = std::thread::Builder::new().name("nbd-sockets".into()).spawn(work)?;
        Ok(Self { ready, stop, thread: Some(thread) })
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        // The counter starts at 0 and has room for one.
        let _ = rustix::io::write(&self.stop, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has said so already.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notice_of_nothing_is_told_so_that_the_ring_is_armed_again() {
        let bell = Arc::new(Doorbell::new().expect("the kernel has one"));
        let mut sockets = Sockets::new(&bell, true).expect("the kernel has one");
        let mut ready = Vec::new();
        assert!(!sockets.take(&mut ready), "there was no notice");
        sockets.changed();
        assert!(sockets.take(&mut ready) && ready.is_empty(), "somebody else took what there was");
        assert!(!sockets.take(&mut ready), "one notice is told once");
    }
}
