//! One client of a server.

use std::io::{IoSlice, IoSliceMut};
use std::rc::Rc;

use drystone_core::buf::BufList;
use drystone_core::engine::{Io, Op, Request};
use drystone_core::error::Result;
use drystone_core::intent::Fua;
use drystone_core::protocol::nbd::server::{
    Answer, Chosen, Command, Context, Export, Negotiation, Order, OrderId, Security, Step, Transmission,
};
use drystone_core::protocol::nbd::{Elsewhere, NbdError, Outgoing};
use slab::Slab;
use smallvec::SmallVec;

use super::buffers::Buffers;
use super::in_file::{self, InFile, WORTHWHILE};
use super::long::{Long, Longs};
use super::status::{Asked, extents};
use super::{Job, NbdBitmap, NbdExport};
use crate::nbd::stream::{SLICES_MAX, Stream, Stuck};
use crate::nbd::{Ready, TlsServer};
use crate::session::Session;

/// Reads of a socket in one turn, before other clients have theirs.
const READS_MAX: usize = 8;

/// A payload from which on the next header is read by itself: what is read with it is copied once more.
const LARGE: usize = 32 << 10;

/// Bytes that are read beyond a large payload: a few headers.
const FEW: usize = 256;

/// What is said of clients that come to nothing; the reference's words.
const NEGOTIATION: &str = "option negotiation failed";

/// A client.
pub(super) struct Served {
    number: u32,
    stream: Stream,
    phase: Phase,
    /// What was received and is not taken yet.
    unread: Vec<u8>,
    /// Payloads that are sent from files.
    in_files: Slab<InFile>,
    /// Orders that are carried out in steps.
    longs: Longs,
    can_receive: bool,
    can_send: bool,
    /// The client has ended the connection, which a look at the socket has to find.
    hangup: bool,
    /// Nor does it hear anything any more.
    deaf: bool,
    /// It has said something.
    heard: bool,
    /// Length of the payload that came last.
    last_payload: usize,
}

enum Phase {
    Negotiating { negotiation: Box<Negotiation>, secrecy: Secrecy },
    Serving { transmission: Box<Transmission>, export: usize },
}

/// Where a negotiation is with encryption.
enum Secrecy {
    /// There is none, or it has begun.
    Settled,
    /// The client has to ask for it.
    Awaited(TlsServer),
    /// It begins once the answer to that is sent; nothing is received until then.
    Due(TlsServer),
    /// It has begun; who the client is has to be looked at before anything is taken from it.
    Begun(TlsServer),
}

/// What all clients of a server share.
pub(super) struct Shared<'a> {
    pub(super) session: &'a Rc<Session>,
    pub(super) exports: &'a [NbdExport],
    pub(super) offered: &'a Rc<[Export]>,
    pub(super) bitmaps: &'a Rc<[Vec<NbdBitmap>]>,
}

/// What came of a turn.
pub(super) enum Moved {
    /// There may be more to do at once.
    More,
    /// Something has to happen first.
    Nothing,
    /// The client has gone; or broke the rules, in these words.
    Gone(Option<String>),
}

impl Served {
    pub(super) fn new(number: u32, stream: Stream, offered: &Rc<[Export]>, tls: Option<TlsServer>) -> Self {
        let (security, secrecy) = match tls {
            Some(tls) => (Security::Required, Secrecy::Awaited(tls)),
            None => (Security::Plain, Secrecy::Settled),
        };
        let negotiation = Box::new(Negotiation::new(Rc::clone(offered), security));
        let phase = Phase::Negotiating { negotiation, secrecy };
        Self {
            number,
            stream,
            phase,
            unread: Vec::new(),
            in_files: Slab::new(),
            longs: Longs::default(),
            can_receive: true,
            can_send: true,
            hangup: false,
            deaf: false,
            heard: false,
            last_payload: 0,
        }
    }

    /// Whether the client has not begun transmission.
    pub(super) fn negotiates(&self) -> bool {
        !matches!(self.phase, Phase::Serving { .. })
    }

    /// Takes note that the socket can go on.
    pub(super) fn ready(&mut self, ready: Ready) {
        (self.can_receive, self.can_send) = (true, true);
        self.hangup |= ready.hangup;
        self.deaf |= ready.deaf;
    }

    /// Whether the client has ended its side of the connection in the middle of what takes long: over TCP it may have
    /// gone altogether, which only an answer would find out.
    pub(super) fn left_much_behind(&self) -> bool {
        self.hangup && !self.longs.is_empty()
    }

    /// Takes no more requests. A client that has not begun transmission has nothing to wait for.
    pub(super) fn leave(&mut self) {
        if let Phase::Serving { transmission, .. } = &mut self.phase {
            transmission.leave();
        }
        self.longs.hurry();
        self.can_receive = false;
    }

    /// Takes what came of a request: goes on with its order, or answers it.
    pub(super) fn hear(
        &mut self,
        session: &Rc<Session>,
        exports: &[NbdExport],
        (job, data, result): (Job, BufList, Result<()>),
        buffers: &mut Buffers,
    ) {
        if self.longs.is_at(job.order) {
            let goes_on = self.longs.advance(result.is_ok());
            self.step(session, exports, buffers);
            if goes_on {
                return buffers.put(data);
            }
        }
        if job.then_flush && result.is_ok() {
            return self.flush_after(session, exports, job);
        }
        self.answer(job, data, result, buffers);
    }

    /// Begins the next step of what takes several.
    fn step(&self, session: &Rc<Session>, exports: &[NbdExport], buffers: &mut Buffers) {
        let (Phase::Serving { export, .. }, Some(long)) = (&self.phase, self.longs.first()) else { return };
        let ((op, reads), offset, len) = long.step();
        let data = if reads { buffers.take(len as usize) } else { BufList::new() };
        submit(session, &exports[*export], op, (offset, len), data, long.job);
    }

    /// Answers an order with what came of its request.
    fn answer(&mut self, job: Job, data: BufList, result: Result<()>, buffers: &mut Buffers) {
        let Phase::Serving { transmission, .. } = &mut self.phase else {
            unreachable!("a client that negotiates has no orders")
        };
        let answer = match result {
            Ok(()) if transmission.reads(job.order) => Answer::Data(data),
            Ok(()) => {
                buffers.put(data);
                Answer::Done
            }
            Err(error) => {
                buffers.put(data);
                Answer::Failed(error.errno(), error.to_string())
            }
        };
        let back = transmission.answer(job.order, answer);
        buffers.put(back);
    }

    pub(super) fn answer_with(&mut self, job: Job, answer: Answer) {
        if let Phase::Serving { transmission, .. } = &mut self.phase {
            transmission.answer(job.order, answer);
        }
    }

    /// Makes durable what an order has done, before it is answered.
    fn flush_after(&self, session: &Rc<Session>, exports: &[NbdExport], job: Job) {
        let Phase::Serving { export, .. } = &self.phase else { return };
        let job = Job { then_flush: false, ..job };
        submit(session, &exports[*export], Op::Flush, (0, 0), BufList::new(), job);
    }

    /// Receives, submits and sends what can be without waiting.
    pub(super) fn turn(&mut self, shared: &Shared<'_>, scratch: &mut [u8], buffers: &mut Buffers) -> Moved {
        let received = match self.receive_some(shared, scratch, buffers) {
            Ok(more) => more,
            Err(gone) => {
                // What is still to be said explains it, if it goes out at once.
                let _ = self.send(buffers);
                return gone;
            }
        };
        let Ok(()) = self.send(buffers) else { return Moved::Gone(None) };
        // One that is not listened to, because of all that it has asked for, is not found out by a look at the socket.
        if self.deaf && !self.listens() {
            return Moved::Gone(None);
        }
        let encrypts = match self.begin_to_encrypt() {
            Ok(encrypts) => encrypts,
            Err(gone) => return gone,
        };
        let over = match &self.phase {
            Phase::Negotiating { .. } => false,
            Phase::Serving { transmission, .. } => {
                let left = transmission.is_leaving() && transmission.is_idle();
                left && transmission.out().is_empty() && !self.stream.owes()
            }
        };
        match (over, received || encrypts) {
            (true, _) => Moved::Gone(None),
            (false, true) => Moved::More,
            (false, false) => Moved::Nothing,
        }
    }

    /// Whether more can be received now.
    fn listens(&self) -> bool {
        match &self.phase {
            Phase::Negotiating { secrecy, .. } => !matches!(secrecy, Secrecy::Due(_)),
            Phase::Serving { transmission, .. } => !transmission.is_leaving() && transmission.has_room(),
        }
    }

    /// Receives for a while; tells whether there may be more.
    fn receive_some(
        &mut self,
        shared: &Shared<'_>,
        scratch: &mut [u8],
        buffers: &mut Buffers,
    ) -> std::result::Result<bool, Moved> {
        if !self.unread.is_empty() && self.listens() {
            let unread = std::mem::take(&mut self.unread);
            let left = self.take(shared, &unread, buffers)?;
            self.unread = left.to_vec();
        }
        for _ in 0..READS_MAX {
            if !self.can_receive || !self.unread.is_empty() || !self.listens() {
                return Ok(false);
            }
            self.receive_once(shared, scratch, buffers)?;
        }
        Ok(true)
    }

    fn receive_once(
        &mut self,
        shared: &Shared<'_>,
        scratch: &mut [u8],
        buffers: &mut Buffers,
    ) -> std::result::Result<(), Moved> {
        let few = if self.last_payload >= LARGE { FEW } else { scratch.len() };
        let scratch = &mut scratch[..few];
        let mut slices: SmallVec<[IoSliceMut<'_>; 16]> = SmallVec::new();
        if let Phase::Serving { transmission, .. } = &mut self.phase {
            slices.extend(transmission.payload().take(SLICES_MAX - 1).map(IoSliceMut::new));
        }
        let room: usize = slices.iter().map(|slice| slice.len()).sum();
        slices.push(IoSliceMut::new(scratch));
        let received = self.stream.receive(&mut slices);
        drop(slices);
        let count = match received {
            Ok(count) => count,
            Err(Stuck::ForNow) => {
                self.can_receive = false;
                return Ok(());
            }
            Err(stuck) => return Err(Moved::Gone(self.lost(stuck))),
        };
        self.heard = true;
        self.can_receive = self.hangup || self.stream.has_more(count, room + few);
        if room > 0 {
            self.last_payload = room;
        }
        let placed = count.min(room);
        if placed > 0
            && let Phase::Serving { transmission, export } = &mut self.phase
            && let Some(order) = transmission.received(placed, |len| buffers.take(len))
        {
            let export = *export;
            self.order(shared, export, order, buffers);
        }
        let left = self.take(shared, &scratch[..count - placed], buffers)?;
        self.unread.extend_from_slice(left);
        Ok(())
    }

    /// Why a client cannot be heard any more, where that is worth telling: one that only looks whether somebody listens,
    /// and one that has been served, may go as they like.
    fn lost(&self, stuck: Stuck) -> Option<String> {
        if !self.negotiates() {
            return None;
        }
        match stuck {
            Stuck::Encryption(error) => Some(format!("{NEGOTIATION}: TLS handshake failed: {error}")),
            _ if !self.heard => None,
            Stuck::Failed(errno) => Some(format!("{NEGOTIATION}: Unable to read from socket: {errno}")),
            _ => Some(format!("{NEGOTIATION}: {}", NbdError::Ended { during: "it" })),
        }
    }

    /// Takes what was received, as far as there is room; returns the rest.
    fn take<'b>(
        &mut self,
        shared: &Shared<'_>,
        bytes: &'b [u8],
        buffers: &mut Buffers,
    ) -> std::result::Result<&'b [u8], Moved> {
        let mut input = bytes;
        loop {
            match &mut self.phase {
                Phase::Negotiating { negotiation, secrecy } => {
                    if let Secrecy::Begun(tls) = secrecy {
                        tls.admit(self.stream.certificate()).map_err(|why| failed(&why))?;
                        *secrecy = Secrecy::Settled;
                    }
                    match negotiation.feed(&mut input).map_err(|error| failed(&error))? {
                        None => return Ok(input),
                        Some(Step::Chosen(chosen)) => {
                            let out = std::mem::take(negotiation.out());
                            self.begin(shared, chosen, out);
                        }
                        // What came behind it was said before the client could know the answer, and by anyone.
                        Some(Step::StartTls) if input.is_empty() => {
                            let before = std::mem::replace(secrecy, Secrecy::Settled);
                            let Secrecy::Awaited(tls) = before else {
                                unreachable!("a server that does not encrypt refuses to")
                            };
                            *secrecy = Secrecy::Due(tls);
                            return Ok(input);
                        }
                        Some(Step::Left) => return Err(Moved::Gone(None)),
                        Some(Step::StartTls) => {
                            return Err(failed(&"the client goes on before TLS has begun"));
                        }
                    }
                }
                Phase::Serving { transmission, export } => {
                    let export = *export;
                    let order = transmission.feed(&mut input, |len| buffers.take(len));
                    let broken = |error| Moved::Gone(Some(format!("Disconnect client, due to: {error}")));
                    match order.map_err(broken)? {
                        None => return Ok(input),
                        Some(order) => self.order(shared, export, order, buffers),
                    }
                }
            }
        }
    }

    /// Begins to encrypt, if that is due. Tells whether it has begun.
    fn begin_to_encrypt(&mut self) -> std::result::Result<bool, Moved> {
        let Phase::Negotiating { negotiation, secrecy } = &mut self.phase else { return Ok(false) };
        let Secrecy::Due(tls) = secrecy else { return Ok(false) };
        if !negotiation.out().is_empty() {
            return Ok(false);
        }
        self.stream.encrypt(tls.begin().map_err(|error| failed(&error))?.into());
        negotiation.encrypted();
        *secrecy = Secrecy::Begun(tls.clone());
        Ok(true)
    }

    fn begin(&mut self, shared: &Shared<'_>, chosen: Chosen, out: Outgoing) {
        let export = chosen.export;
        let transmission = Box::new(Transmission::new(&shared.offered[export], chosen, out));
        self.phase = Phase::Serving { transmission, export };
    }

    /// Has the engine carry out an order.
    fn order(&mut self, shared: &Shared<'_>, export: usize, order: Order, buffers: &mut Buffers) {
        let Order { id, command, offset, len, data } = order;
        if command == Command::Read && self.answer_from_file(shared, export, (id, offset, len)) {
            return;
        }
        let job = Job { client: self.number, order: id, then_flush: false };
        if let Some(long) = Long::of(&command, (offset, len), job) {
            if self.longs.push(long) {
                self.step(shared.session, shared.exports, buffers);
            }
            return;
        }
        let (op, data, then_flush) = match command {
            Command::Read | Command::Cache => (Op::Read, buffers.take(len as usize), false),
            Command::Write(fua) => (Op::Write(fua), data, false),
            Command::Flush => (Op::Flush, data, false),
            Command::Trim(fua) => (Op::Discard, data, fua == Fua::Yes),
            Command::WriteZeroes(flags, fua) => (Op::WriteZeroes(flags, fua), data, false),
            Command::Status { contexts, one } => {
                return status(shared, export, (offset, len), (contexts, one), job);
            }
        };
        let job = Job { then_flush, ..job };
        submit(shared.session, &shared.exports[export], op, (offset, len), data, job);
    }

    /// Answers a read with parts of files, if it is large, and nothing has to be done to their bytes.
    fn answer_from_file(
        &mut self,
        shared: &Shared<'_>,
        export: usize,
        (id, offset, len): (OrderId, u64, u64),
    ) -> bool {
        let Phase::Serving { transmission, .. } = &mut self.phase else { return false };
        if len < WORTHWHILE || self.stream.encrypts() {
            return false;
        }
        let opened = shared.exports[export].image.opened();
        let Some(payload) = shared.session.cached(opened, offset, len) else { return false };
        let key = self.in_files.insert(payload);
        transmission.answer(id, Answer::Elsewhere(key as u64));
        true
    }

    /// Sends what the socket takes.
    fn send(&mut self, buffers: &mut Buffers) -> std::result::Result<(), ()> {
        while self.can_send {
            let out = match &mut self.phase {
                Phase::Negotiating { negotiation, .. } => &*negotiation.out(),
                Phase::Serving { transmission, .. } => transmission.out(),
            };
            if out.is_empty() && !self.stream.owes() {
                return Ok(());
            }
            let sent = match out.elsewhere() {
                Some(place) => self.send_from_file(place),
                None => {
                    let slices: SmallVec<[IoSlice<'_>; 128]> =
                        out.slices().take(SLICES_MAX).map(IoSlice::new).collect();
                    let all = slices.iter().map(|slice| slice.len()).sum();
                    let sent = self.stream.send(&slices);
                    self.can_send = sent.as_ref().is_ok_and(|count| self.stream.takes_more(*count, all));
                    sent
                }
            };
            match sent {
                Ok(count) => match &mut self.phase {
                    Phase::Negotiating { negotiation, .. } => negotiation.out().advance(count, |_, _| {}),
                    Phase::Serving { transmission, .. } => {
                        transmission.sent(count, |data| buffers.put(data));
                    }
                },
                Err(Stuck::ForNow) => self.can_send = false,
                Err(_) => return Err(()),
            }
        }
        Ok(())
    }

    /// Sends what is left of a payload that lies in files.
    fn send_from_file(&mut self, place: Elsewhere) -> std::result::Result<usize, Stuck> {
        let key = place.key as usize;
        let sent = in_file::send(&self.stream, &self.in_files[key], place)?;
        if sent == place.left {
            self.in_files.remove(key);
        }
        Ok(sent)
    }
}

/// How a negotiation failed.
fn failed(why: &dyn std::fmt::Display) -> Moved {
    Moved::Gone(Some(format!("{NEGOTIATION}: {why}")))
}

fn submit(
    session: &Rc<Session>,
    export: &NbdExport,
    op: Op,
    (offset, len): (u64, u64),
    data: BufList,
    job: Job,
) {
    let opened = export.image.opened();
    session.submit_for_client(opened, Request { node: opened.node(), op, offset, len, data, tag: 0 }, job);
}

fn status(
    shared: &Shared<'_>,
    export: usize,
    (offset, len): (u64, u64),
    (contexts, one): (Vec<u32>, bool),
    job: Job,
) {
    let (offered, bitmaps) = (Rc::clone(shared.offered), Rc::clone(shared.bitmaps));
    let asked = Asked { node: shared.exports[export].image.node(), offset, len, one };
    coroutine(shared, &shared.exports[export], job, async move |io: Io| {
        let all = &offered[export].contexts;
        let mut states = Vec::with_capacity(contexts.len());
        for id in contexts {
            let context = &all[id as usize];
            let before =
                all[..id as usize].iter().filter(|other| matches!(other, Context::Bitmap(_))).count();
            let live;
            let dirty = match (context, bitmaps[export].get(before)) {
                (Context::Bitmap(_), Some(NbdBitmap::Fixed(ranges))) => Some(&ranges[..]),
                (Context::Bitmap(_), Some(NbdBitmap::Live(look))) => {
                    live = look(&io);
                    Some(&live[..])
                }
                _ => None,
            };
            states.push((id, extents(&io, asked, context, dirty).await?));
        }
        Ok(Answer::Status(states))
    });
}

/// Runs a coroutine whose result is the answer to an order.
fn coroutine(
    shared: &Shared<'_>,
    export: &NbdExport,
    job: Job,
    work: impl AsyncFnOnce(Io) -> Result<Answer> + 'static,
) {
    let finished = shared.session.finished();
    let in_use = match export.image.opened().in_use() {
        Ok(in_use) => in_use,
        Err(error) => {
            let answer = Answer::Failed(error.errno(), error.to_string());
            return finished.borrow_mut().answers.push_back((job, answer));
        }
    };
    shared.session.run_detached(move |io| async move {
        let answer = match work(io).await {
            Ok(answer) => answer,
            Err(error) => Answer::Failed(error.errno(), error.to_string()),
        };
        drop(in_use);
        finished.borrow_mut().answers.push_back((job, answer));
    });
}
