//! Carries out intents: decides which go to threads, and brings back what came of them.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use drystone_core::buf::Buf;
use drystone_core::intent::{
    Action, Aio, Errno, Fua, Intent, LeafAccess, LeafId, LeafInfo, Location, Outcome, Token,
};
use rustix::event::{PollFd, PollFlags, poll};

use crate::config::{BackendKind, Config};
use crate::doorbell::Doorbell;
use crate::gather::Gather;
use crate::host::{Carried, Host};
use crate::leaf::OpenLeaf;
use crate::namespace::{Lanes, Pushed};
use crate::nbd::{Credentials, Links, Ready, Sockets};
use crate::pool::{Finished, Job, Outbox, Pool};
use crate::ring::{Completion, Ring, tells_of_sockets};
use crate::timer::Timer;

/// Jobs with the threads at the most, waiting and running; further intents stay with the engine.
const JOBS_MAX: usize = 1024;

/// Threads for blocking calls at the most: enough for a disk's queue, few enough to be cheap.
const BLOCKING_THREADS_MAX: usize = 32;

/// What carries out the intents of one engine.
pub struct Backend {
    host: Host,
    ring: Option<Ring>,
    /// Why there is no ring, where there is none.
    no_ring: Errno,
    blocking: Pool,
    compute: Pool,
    lanes: Lanes,
    links: Links,
    sockets: Option<Sockets>,
    /// Sockets that can go on and are no leaf's.
    ready_sockets: Vec<Ready>,
    timer: Timer,
    bell: Arc<Doorbell>,
    outbox: Arc<Outbox>,
    /// Leaves with writes that wait, and that a thread may have to be sent for.
    gathering: Vec<Arc<OpenLeaf>>,
    /// Answers that were there at once.
    ready: VecDeque<(Token, Outcome)>,
    /// Empty between calls; kept for its memory.
    finished: Vec<Finished>,
    jobs: usize,
    /// Time does not pass any more.
    hurried: bool,
}

impl Backend {
    /// Starts a backend with nothing open.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(config: &Config) -> io::Result<Self> {
        let bell = Arc::new(Doorbell::new()?);
        let outbox = Arc::new(Outbox::new(Arc::clone(&bell)));
        let workers = match config.workers {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            workers => workers,
        };
        let (ring, no_ring) = match config.backend {
            BackendKind::Threads => (None, Errno::ENOTSUP),
            BackendKind::IoUring => (Some(Ring::new(config.ring_entries, &bell)?), Errno::ENOTSUP),
            BackendKind::Auto => match Ring::new(config.ring_entries, &bell) {
                Ok(ring) => (Some(ring), Errno::ENOTSUP),
                Err(error) => (None, error.raw_os_error().map_or(Errno::EIO, Errno)),
            },
        };
        Ok(Self {
            host: Host::with_polling(config.polling),
            ring,
            no_ring,
            blocking: Pool::new("io", BLOCKING_THREADS_MAX, Arc::clone(&outbox)),
            compute: Pool::new("codec", workers, Arc::clone(&outbox)),
            lanes: Lanes::new(Arc::clone(&bell)),
            links: Links::new(Arc::clone(&bell)),
            sockets: None,
            ready_sockets: Vec::new(),
            timer: Timer::new(Arc::clone(&outbox)),
            bell,
            outbox,
            gathering: Vec::new(),
            ready: VecDeque::new(),
            finished: Vec::new(),
            jobs: 0,
            hurried: false,
        })
    }

    /// The credentials that leaves refer to.
    pub(crate) fn credentials(&self) -> &Credentials {
        self.host.credentials()
    }

    /// A leaf that is open.
    pub(crate) fn leaf(&self, id: LeafId) -> Option<&Arc<OpenLeaf>> {
        self.host.leaf(id)
    }

    /// Wakes who waits for this backend, from any thread.
    pub(crate) fn bell(&self) -> Arc<Doorbell> {
        Arc::clone(&self.bell)
    }

    /// The interface that carries reads and writes.
    pub fn kind(&self) -> BackendKind {
        if self.ring.is_some() { BackendKind::IoUring } else { BackendKind::Threads }
    }

    /// Whether another intent may be pushed.
    #[inline]
    pub fn has_room(&self) -> bool {
        self.jobs < JOBS_MAX
            && self.ring.as_ref().is_none_or(Ring::has_room)
            && self.lanes.has_room()
            && self.links.has_room()
    }

    /// Tells whether nothing is in flight.
    pub fn is_idle(&self) -> bool {
        self.jobs == 0
            && self.ready.is_empty()
            && self.ring.as_ref().is_none_or(Ring::is_idle)
            && self.lanes.is_idle()
            && self.links.is_idle()
    }

    /// Takes an intent; it may begin only with [`submit`](Self::submit). There must be [room](Self::has_room).
    ///
    /// # Errors
    /// The kernel's, when it takes no requests at all.
    #[inline]
    pub fn push(&mut self, intent: Intent) -> io::Result<()> {
        let Intent { token, action, .. } = intent;
        if !self.lanes.is_empty() || !self.links.is_empty() {
            return self.push_past_kernel(token, action);
        }
        self.push_to_kernel(token, action)
    }

    /// Takes an intent while some leaves are namespaces or exports.
    fn push_past_kernel(&mut self, token: Token, action: Action) -> io::Result<()> {
        let (polled, linked) = match &action {
            Action::Read { leaf, .. }
            | Action::Write { leaf, .. }
            | Action::Flush { leaf }
            | Action::Discard { leaf, .. }
            | Action::WriteZeroes { leaf, .. } => (self.lanes.has(*leaf), self.links.has(*leaf)),
            Action::BlockStatus { leaf, .. } => (false, self.links.has(*leaf)),
            _ => (false, false),
        };
        if linked {
            let answered = self.links.push(token, action);
            self.ready.extend(answered.map(|outcome| (token, outcome)));
            return Ok(());
        }
        if !polled {
            return self.push_to_kernel(token, action);
        }
        match self.lanes.push(token, action) {
            Pushed::InFlight => {}
            Pushed::Done(outcome) => self.ready.push_back((token, outcome)),
            Pushed::Back(action) => return self.push_to_threads(token, action),
        }
        Ok(())
    }

    #[inline]
    fn push_to_kernel(&mut self, token: Token, action: Action) -> io::Result<()> {
        let Some(ring) = &mut self.ring else { return self.push_to_threads(token, action) };
        let fd = |leaf: LeafId| self.host.leaf(leaf).and_then(|open| open.async_fd());
        // Reads and writes go by value from the engine into their slots.
        match action {
            Action::Read { leaf, offset, data }
                if let Some(open) = self.host.leaf(leaf)
                    && let Some(fd) = open.async_fd() =>
            {
                ring.read(fd, token, (leaf, offset, open.block()), data)
            }
            Action::Write { leaf, offset, data, fua }
                if let Some(open) = self.host.leaf(leaf)
                    && let Some(fd) = open.async_fd()
                    && (fua == Fua::Yes || open.gather().is_none()) =>
            {
                ring.write(fd, token, (leaf, offset), data, fua)
            }
            Action::Flush { leaf } if let Some(fd) = fd(leaf) => ring.flush(fd, token, leaf),
            Action::Sleep { duration } if !self.hurried => ring.sleep(token, duration),
            action => self.push_other(token, action),
        }
    }

    /// Takes what a ring may be able to do, but not for every leaf and range.
    fn push_other(&mut self, token: Token, action: Action) -> io::Result<()> {
        let range = match action {
            Action::Discard { leaf, offset, len } => Some((leaf, offset, len, None)),
            Action::WriteZeroes { leaf, offset, len, flags } => Some((leaf, offset, len, Some(flags))),
            _ => None,
        };
        if let (Some(ring), Some((id, offset, len, zeroes))) = (&mut self.ring, range)
            && let Some(leaf) = self.host.leaf(id).filter(|leaf| leaf.is_regular())
            && let Some(fd) = leaf.async_fd()
        {
            match zeroes {
                None => return ring.discard(fd, token, id, (offset, len)),
                Some(flags) if !flags.may_unmap || leaf.reaches(offset + len) => {
                    return ring.write_zeroes(fd, token, id, (offset, len), flags);
                }
                Some(_) => {}
            }
        }
        self.push_to_threads(token, action)
    }

    fn push_to_threads(&mut self, token: Token, action: Action) -> io::Result<()> {
        let leaves = self.host.leaves_of(&action);
        match action {
            Action::Close { leaf } => {
                if let Some(ring) = &mut self.ring {
                    ring.close(leaf)?;
                }
                self.lanes.close(leaf);
                self.links.close(leaf);
                let outcome = Outcome::Done(self.host.close(leaf));
                self.ready.push_back((token, outcome));
                return Ok(());
            }
            Action::Open { location: Location::Path(_), access: LeafAccess { aio: Aio::IoUring, .. } }
                if self.ring.is_none() =>
            {
                self.ready.push_back((token, Outcome::NoIoUring(self.no_ring)));
                return Ok(());
            }
            // Nothing to wait for; and where a file has its holes, the file system mostly has in memory, and answers in
            // less time than another thread would be woken in. `qemu-img` asks it on its own thread too.
            action
                if matches!(action, Action::BlockStatus { .. })
                    || leaves.leaf.as_ref().is_some_and(|leaf| leaf.is_instant()) =>
            {
                let outcome = self.host.carry_out(action);
                self.ready.push_back((token, outcome));
                return Ok(());
            }
            Action::Write { offset, data, fua: Fua::No, .. }
                if let Some(leaf) = &leaves.leaf
                    && let Some(gather) = leaf.gather() =>
            {
                if gather.push(token, offset, data) {
                    self.gathering.push(Arc::clone(leaf));
                }
            }
            Action::Sleep { duration } => self.timer.push(token, duration),
            Action::Compute(_) => self.compute.push(Job::Action(token, action, leaves)),
            action => self.blocking.push(Job::Action(token, action, leaves)),
        }
        self.jobs += 1;
        Ok(())
    }

    /// Has every timer ring at once, from now on.
    ///
    /// # Errors
    /// The kernel's, when it takes no requests at all.
    pub fn hurry(&mut self) -> io::Result<()> {
        self.timer.hurry();
        self.links.hurry();
        if std::mem::replace(&mut self.hurried, true) {
            return Ok(());
        }
        self.ring.as_mut().map_or(Ok(()), Ring::hurry)
    }

    fn admit(&mut self, leaf: OpenLeaf, info: LeafInfo) -> Outcome {
        let info = self.host.admit(leaf, info);
        let namespace = self.host.leaf(info.leaf).and_then(|open| open.namespace());
        if let Some(Err((errno, reason))) = namespace.map(|open| self.lanes.admit(info.leaf, open)) {
            let closed = self.host.close(info.leaf);
            debug_assert!(closed.is_ok(), "it has just been opened");
            return Outcome::Unusable(errno, reason);
        }
        if let Some(connection) = self.host.leaf(info.leaf).and_then(|open| open.take_connection()) {
            let watched = match sockets(&mut self.sockets, &self.bell, self.ring.is_some()) {
                Ok(sockets) => self.links.admit(info.leaf, connection, sockets),
                Err(error) => Err(error),
            };
            if let Err(error) = watched {
                let closed = self.host.close(info.leaf);
                debug_assert!(closed.is_ok(), "it has just been opened");
                return Outcome::Opened(Err(error.raw_os_error().map_or(Errno::EIO, Errno)));
            }
        }
        if let Some(ring) = &mut self.ring
            && let Some(fd) = self.host.leaf(info.leaf).and_then(|open| open.async_fd())
        {
            ring.open(info.leaf, fd);
        }
        Outcome::Opened(Ok(info))
    }

    /// Whether somebody has to look for completions: nobody tells of them.
    #[inline]
    pub fn must_poll(&self) -> bool {
        !self.lanes.is_empty() && self.lanes.must_poll()
    }

    /// Whether whatever is left to submit makes [`arm`](Self::arm) say so, or is submitted when somebody looks again. Sockets
    /// have to be watched anew, and what a queue pair begins by itself has to be rung for.
    #[inline]
    pub(crate) fn is_still(&self) -> bool {
        self.sockets.is_none() && (self.lanes.is_empty() || self.must_poll() || self.lanes.is_idle())
    }

    /// Whether there are leaves that are polled, and none of them sends interrupts, which would come for nothing.
    #[inline]
    pub(crate) fn has_polled(&self) -> bool {
        self.lanes.are_only_polled()
    }

    /// The polled leaves.
    #[inline]
    pub(crate) fn lanes(&mut self) -> &mut Lanes {
        &mut self.lanes
    }

    /// Lets the least time pass, while somebody looks for completions.
    pub fn relax(&self) {
        self.lanes.relax();
    }

    /// Where memory comes from that the devices behind leaves reach.
    pub(crate) fn supply(&self) -> impl Fn(LeafId, usize) -> Option<Buf> + use<> {
        self.lanes.supply()
    }

    /// Memory that a polled device reaches, if there is one with room; it holds anything.
    pub fn buffer(&self, len: usize) -> Option<Buf> {
        self.lanes.buffer(len)
    }

    /// Begins what was pushed.
    ///
    /// # Errors
    /// The kernel's, when it takes no requests at all.
    pub fn submit(&mut self) -> io::Result<()> {
        while let Some(leaf) = self.gathering.pop() {
            if leaf.gather().is_some_and(Gather::summon) {
                self.blocking.push(Job::Writes(leaf));
            }
        }
        self.lanes.ring();
        if let Some(sockets) = &mut self.sockets {
            self.links.submit();
            sockets.arm(self.ring.as_mut())?;
        }
        self.ring.as_mut().map_or(Ok(()), Ring::submit)
    }

    /// Hands over what came of earlier intents. Does not wait. Tells whether there was anything.
    ///
    /// # Errors
    /// The kernel's, when it takes no requests at all.
    #[inline]
    pub fn reap(&mut self, mut done: impl FnMut(Token, Outcome)) -> io::Result<bool> {
        let mut any = false;
        while let Some((token, outcome)) = self.ready.pop_front() {
            done(token, outcome);
            any = true;
        }
        if !self.lanes.is_empty() {
            any |= self.lanes.reap(&mut done);
        }
        if self.sockets.is_some() {
            any |= self.reap_sockets(&mut done);
        }
        while let Some(ring) = &mut self.ring
            && let Some(completion) = ring.next()
        {
            any = true;
            match completion {
                Completion::Outcome(token, outcome) => done(token, outcome),
                Completion::Again(token, action) => self.push_to_threads(token, action)?,
                Completion::Sockets => self.sockets.iter_mut().for_each(Sockets::changed),
            }
        }
        if self.bell.answer() {
            any = true;
            self.reap_threads(done);
        }
        Ok(any)
    }

    fn reap_sockets(&mut self, done: &mut impl FnMut(Token, Outcome)) -> bool {
        let Some(sockets) = &mut self.sockets else { return false };
        let any = sockets.take(&mut self.ready_sockets);
        self.ready_sockets.retain(|ready| !self.links.ready(*ready));
        self.links.reap(sockets, done) || any
    }

    /// Takes a socket, which [`take_ready`](Self::take_ready) tells of by its number until it is closed.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn add_socket(&mut self, socket: BorrowedFd<'_>) -> io::Result<u32> {
        sockets(&mut self.sockets, &self.bell, self.ring.is_some())?.add(socket)
    }

    /// Takes the sockets that can go on, other than those of leaves.
    pub(crate) fn take_ready(&mut self, ready: &mut Vec<Ready>) {
        ready.append(&mut self.ready_sockets);
    }

    fn reap_threads(&mut self, mut done: impl FnMut(Token, Outcome)) {
        let mut finished = std::mem::take(&mut self.finished);
        self.outbox.take(&mut finished);
        for Finished { token, carried } in finished.drain(..) {
            self.jobs -= 1;
            let outcome = match carried {
                Carried::Outcome(outcome) => outcome,
                Carried::Opened(leaf, info) => self.admit(leaf, info),
                Carried::Panicked(panic) => std::panic::resume_unwind(panic),
            };
            done(token, outcome);
        }
        self.finished = finished;
    }

    /// Has the [descriptor](AsFd) become readable when there is something to reap, from now on. Tells whether there is
    /// already.
    pub fn arm(&mut self) -> bool {
        !self.ready.is_empty() || self.ring.as_mut().is_some_and(Ring::arm)
    }

    /// Spares the kernel that, while this thread looks anyway.
    pub fn disarm(&mut self) {
        if let Some(ring) = &mut self.ring {
            ring.disarm();
        }
    }

    /// Makes the descriptor unreadable again, once it was seen to be readable.
    pub fn hush(&self) {
        self.bell.hush();
    }

    /// Waits until something came of an intent, or somebody rang.
    ///
    /// # Errors
    /// The kernel's.
    pub fn wait(&mut self) -> io::Result<()> {
        if self.must_poll() {
            self.lanes.relax();
            return Ok(());
        }
        if !self.arm() {
            let mut fds = [PollFd::new(&self.bell, PollFlags::IN)];
            match poll(&mut fds, None) {
                Ok(_) => self.hush(),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.disarm();
        Ok(())
    }
}

/// The sockets; there are some from now on.
fn sockets<'a>(
    sockets: &'a mut Option<Sockets>,
    bell: &Arc<Doorbell>,
    ringed: bool,
) -> io::Result<&'a mut Sockets> {
    match sockets {
        Some(sockets) => Ok(sockets),
        none => Ok(none.insert(Sockets::new(bell, ringed && tells_of_sockets())?)),
    }
}

impl AsFd for Backend {
    /// A descriptor that becomes readable when something came of an intent, while the backend is armed.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}
