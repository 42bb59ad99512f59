//! A server of images: many clients on one engine's thread.
//!
//! ```text
//!   listeners ─▶ Served (one a client): negotiation, then transmission
//!                  │ orders ▼              ▲ answers
//!                Session: requests to the engine, with the clients' own buffers
//! ```
//!
//! The session gives it a turn whenever something moved; it never waits. What a client may have in flight is bounded by
//! the protocol's machine, and a client that does not read its answers is not read from. Start at [`NbdServer`].

mod buffers;
mod in_file;
mod long;
mod served;
mod status;

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use drystone_core::buf::BufList;
use drystone_core::engine::Io;
use drystone_core::error::Result;
use drystone_core::protocol::nbd::limits::HANDSHAKE_MAX;
use drystone_core::protocol::nbd::server::{Answer, Export, OrderId};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ioctl_fionbio};
use rustix::net::{SocketFlags, accept_with, sockopt::set_tcp_nodelay};

use super::stream::Stream;
use super::{Ready, TlsServer};
use crate::image::Image;
use crate::session::Session;
use buffers::Buffers;
pub(crate) use in_file::InFile;
use served::Served;

/// Bytes that are read from a socket at once, beside those that have a place already.
const SCRATCH: usize = 64 << 10;

/// Clients that are accepted in one turn.
const ACCEPTS_MAX: usize = 64;

/// How long clients have to take their last answers when the server stops.
const FAREWELL: Duration = Duration::from_secs(5);

/// What a server is to do.
pub struct NbdPlan {
    /// Sockets that listen.
    pub listeners: Vec<OwnedFd>,
    /// What is offered.
    pub exports: Vec<NbdExport>,
    /// Clients at once; further ones wait.
    pub clients_max: usize,
    /// Whether to go on when the last client that began transmission has gone.
    pub persistent: bool,
    /// What it shows clients that it encrypts with; no client may do without then.
    pub tls: Option<TlsServer>,
    /// How long a client may take before transmission; zero for as long as it likes.
    pub handshake_max: Duration,
    /// Stops the server when it becomes readable.
    pub stop: Option<OwnedFd>,
    /// Hears why clients were let go that broke the rules, or went before transmission.
    pub tell: Option<Tell>,
}

/// Who hears of clients.
pub type Tell = Box<dyn Fn(&str)>;

impl NbdPlan {
    /// Serves exports on one socket, to a hundred clients, for ever.
    pub fn new(listener: OwnedFd, exports: Vec<NbdExport>) -> Self {
        Self {
            listeners: vec![listener],
            exports,
            clients_max: 100,
            persistent: true,
            tls: None,
            handshake_max: HANDSHAKE_MAX,
            stop: None,
            tell: None,
        }
    }
}

/// The dirty ranges of a bitmap, in order: offset and length.
pub type DirtyRanges = Vec<(u64, u64)>;

/// An image, and what clients are told of it.
pub struct NbdExport {
    /// The image; it is not closed by the server.
    pub image: Image,
    /// What clients are told of it.
    pub export: Export,
    /// The bitmaps among its contexts, in their order.
    pub bitmaps: Vec<NbdBitmap>,
}

/// A bitmap that clients may ask for.
pub enum NbdBitmap {
    /// It does not change while it is served.
    Fixed(DirtyRanges),
    /// It is looked at whenever somebody asks.
    Live(Box<dyn Fn(&Io) -> DirtyRanges>),
}

/// A server that runs while its session is driven.
pub struct NbdServer {
    state: Rc<State>,
    session: Rc<Session>,
}

/// What its handle sees of a server.
#[derive(Default)]
pub(crate) struct State {
    ended: Cell<bool>,
    stop: Cell<bool>,
    clients: Cell<usize>,
    waker: RefCell<Option<Waker>>,
}

impl NbdServer {
    pub(crate) fn new(state: Rc<State>, session: Rc<Session>) -> Self {
        Self { state, session }
    }

    /// Clients that are connected.
    pub fn clients(&self) -> usize {
        self.state.clients.get()
    }

    /// Has the server take no more clients and requests, and end once what it has is answered.
    pub fn stop(&self) {
        self.state.stop.set(true);
        self.session.kick();
    }

    /// Waits until the server has ended: it was stopped, or the last client that began transmission has gone.
    pub async fn ended(&self) {
        poll_fn(|cx| {
            if self.state.ended.get() {
                return Poll::Ready(());
            }
            *self.state.waker.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

/// Names an order of a client.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Job {
    pub(crate) client: u32,
    pub(crate) order: OrderId,
    /// A flush follows, and its answer is the order's.
    pub(crate) then_flush: bool,
}

/// What came of requests to the engine, until the server has its turn.
#[derive(Default)]
pub(crate) struct Finished {
    pub(crate) requests: VecDeque<(Job, BufList, Result<()>)>,
    pub(crate) answers: VecDeque<(Job, Answer)>,
}

/// One server.
pub(crate) struct Server {
    plan: NbdPlan,
    offered: Rc<[Export]>,
    bitmaps: Rc<[Vec<NbdBitmap>]>,
    state: Rc<State>,
    listeners: Vec<Listener>,
    stopper: Option<u32>,
    clients: HashMap<u32, Served>,
    /// Clients that something happened to.
    touched: Vec<u32>,
    /// Clients that have not begun transmission, with the time at which they have to, the oldest first.
    handshakes: VecDeque<(Instant, u32)>,
    /// Somebody sleeps until the first of them has to.
    alarm: Rc<Cell<bool>>,
    /// Somebody has begun transmission: who only looks, or comes to nothing, is not the last client.
    has_served: bool,
    /// Since when it takes nothing more.
    stopping: Option<Instant>,
    scratch: Box<[u8]>,
    buffers: Buffers,
}

struct Listener {
    number: u32,
    ready: bool,
}

impl Server {
    /// Begins to serve.
    ///
    /// # Errors
    /// The kernel's, when it does not watch a socket.
    pub(crate) fn new(mut plan: NbdPlan, state: Rc<State>, session: &Session) -> io::Result<Self> {
        let offered = plan.exports.iter().map(|export| export.export.clone()).collect();
        let bitmaps = plan.exports.iter_mut().map(|export| std::mem::take(&mut export.bitmaps)).collect();
        let listener = |fd: &OwnedFd| {
            // Looking for a client must not wait for one.
            ioctl_fionbio(fd, true)?;
            Ok(Listener { number: session.add_socket(fd.as_fd())?, ready: true })
        };
        let listeners = plan.listeners.iter().map(listener).collect::<io::Result<_>>()?;
        let stopper = plan.stop.as_ref().map(|stop| session.add_socket(stop.as_fd())).transpose()?;
        Ok(Self {
            plan,
            offered,
            bitmaps,
            state,
            listeners,
            stopper,
            clients: HashMap::new(),
            touched: Vec::new(),
            handshakes: VecDeque::new(),
            alarm: Rc::default(),
            has_served: false,
            stopping: None,
            scratch: vec![0; SCRATCH].into(),
            buffers: Buffers::default(),
        })
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.state.ended.get()
    }

    /// Takes note that a socket can go on.
    pub(crate) fn ready(&mut self, ready: Ready) {
        let number = ready.number;
        if let Some(client) = self.clients.get_mut(&number) {
            client.ready(ready);
            self.touched.push(number);
        } else if self.stopper == Some(number) {
            let asked = self.plan.stop.as_ref().is_some_and(is_readable);
            self.state.stop.set(asked || self.state.stop.get());
        } else if let Some(listener) = self.listeners.iter_mut().find(|listener| listener.number == number) {
            listener.ready = true;
        }
    }

    /// Does what can be done without waiting. Tells whether there was anything.
    pub(crate) fn turn(&mut self, session: &Rc<Session>, finished: &mut Finished) -> bool {
        let mut any = self.hear(session, finished);
        if self.stopping.is_none() && self.state.stop.get() {
            self.begin_to_stop(session);
        }
        any |= self.accept(session);
        self.expire(session);
        let mut touched = std::mem::take(&mut self.touched);
        touched.sort_unstable();
        touched.dedup();
        for number in touched.drain(..) {
            any |= self.serve(session, number);
        }
        if self.touched.is_empty() {
            self.touched = touched;
        }
        self.state.clients.set(self.clients.len());
        self.end_if_done();
        any
    }

    /// Hands what the engine answered to the clients. What is not for one of them stays: it is for another server's, or for
    /// one who has gone.
    fn hear(&mut self, session: &Rc<Session>, finished: &mut Finished) -> bool {
        let mut any = false;
        for (job, data, result) in std::mem::take(&mut finished.requests) {
            let Some(client) = self.clients.get_mut(&job.client) else {
                finished.requests.push_back((job, data, result));
                continue;
            };
            any = true;
            client.hear(session, &self.plan.exports, (job, data, result), &mut self.buffers);
            self.touched.push(job.client);
        }
        for (job, answer) in std::mem::take(&mut finished.answers) {
            let Some(client) = self.clients.get_mut(&job.client) else {
                finished.answers.push_back((job, answer));
                continue;
            };
            any = true;
            client.answer_with(job, answer);
            self.touched.push(job.client);
        }
        any
    }

    fn accept(&mut self, session: &Rc<Session>) -> bool {
        let mut any = false;
        for (listener, fd) in self.listeners.iter_mut().zip(&self.plan.listeners) {
            for _ in 0..ACCEPTS_MAX {
                if !listener.ready || self.stopping.is_some() || self.clients.len() >= self.plan.clients_max {
                    break;
                }
                let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
                let socket = match accept_with(fd, flags) {
                    Ok(socket) => socket,
                    // Others may go before the kernel tells of the next who comes.
                    Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)
                        if !self.clients.is_empty() =>
                    {
                        break;
                    }
                    // One that has gone already is not the last.
                    Err(Errno::CONNABORTED) => continue,
                    Err(_) => {
                        listener.ready = false;
                        break;
                    }
                };
                // A socket of the file system has no such switch, and does not need it.
                let _ = set_tcp_nodelay(&socket, true);
                any = true;
                let Ok(number) = session.add_socket(socket.as_fd()) else { continue };
                let tls = self.plan.tls.clone();
                self.clients.insert(number, Served::new(number, Stream::new(socket), &self.offered, tls));
                self.touched.push(number);
                if !self.plan.handshake_max.is_zero() {
                    self.handshakes.push_back((Instant::now() + self.plan.handshake_max, number));
                }
            }
        }
        any
    }

    /// Drops clients that take too long before transmission.
    fn expire(&mut self, session: &Rc<Session>) {
        while let Some((end, number)) = self.handshakes.front().copied() {
            let negotiates = self.clients.get(&number).is_some_and(Served::negotiates);
            let left = end.saturating_duration_since(Instant::now());
            if negotiates && !left.is_zero() {
                if !self.alarm.replace(true) {
                    let alarm = Rc::clone(&self.alarm);
                    session.run_detached(move |io| async move {
                        io.sleep(left).await;
                        alarm.set(false);
                    });
                }
                return;
            }
            if negotiates {
                self.clients.remove(&number);
            }
            self.handshakes.pop_front();
        }
    }

    fn serve(&mut self, session: &Rc<Session>, number: u32) -> bool {
        let Some(client) = self.clients.get_mut(&number) else { return false };
        let shared = served::Shared {
            session,
            exports: &self.plan.exports,
            offered: &self.offered,
            bitmaps: &self.bitmaps,
        };
        let moved = client.turn(&shared, &mut self.scratch, &mut self.buffers);
        self.has_served |= !client.negotiates();
        match moved {
            served::Moved::Gone(why) => {
                self.clients.remove(&number);
                if let (Some(why), Some(tell)) = (why, &self.plan.tell) {
                    tell(&why);
                }
                true
            }
            served::Moved::More => {
                self.touched.push(number);
                true
            }
            served::Moved::Nothing => false,
        }
    }

    fn begin_to_stop(&mut self, session: &Rc<Session>) {
        self.stopping = Some(Instant::now());
        session.run_detached(|io| async move { io.sleep(FAREWELL).await });
        self.clients.retain(|_, client| !client.negotiates() && !client.left_much_behind());
        for (number, client) in &mut self.clients {
            client.leave();
            self.touched.push(*number);
        }
    }

    fn end_if_done(&mut self) {
        let over = self.stopping.is_some_and(|since| since.elapsed() > FAREWELL);
        if over {
            self.clients.clear();
        }
        let left = self.clients.is_empty() && self.touched.is_empty();
        let done = self.stopping.is_some() || self.has_served && !self.plan.persistent;
        if left && done && !self.state.ended.replace(true) {
            self.plan.listeners.clear();
            self.listeners.clear();
            if let Some(waker) = self.state.waker.borrow_mut().take() {
                waker.wake();
            }
        }
    }
}

/// Whether there is something to read, or the other end has gone. A socket is also told of when it can be written to.
fn is_readable(fd: &OwnedFd) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&now)).is_ok_and(|count| count > 0)
}
