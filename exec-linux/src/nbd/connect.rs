//! Bringing a connection about: on a thread that may wait.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use drystone_core::intent::{Errno, LeafId, LeafInfo};
use drystone_core::protocol::nbd::client::{
    Encryption, Listing, Negotiation, Purpose, Step, Transmission, Wishes,
};
use drystone_core::protocol::nbd::layout::TransmissionFlags;
use drystone_core::protocol::nbd::limits::HANDSHAKE_MAX;
use drystone_core::protocol::nbd::{Mode, NbdAddress, NbdError, NbdLocation, NbdTls, Outgoing};
use rustix::event::{PollFd, PollFlags, poll};

use super::credentials::{Credentials, TlsClient, why};
use super::reach::{left_until, reach};
use super::stream::{Stream, Stuck};

/// The meta context that leaves ask for.
const ALLOCATION: &str = "base:allocation";

/// Time between two attempts to open.
const PAUSE: Duration = Duration::from_millis(100);

/// Bytes that are received at once before transmission.
const SCRATCH: usize = 4096;

/// Why there is no connection.
pub(crate) type Refused = (Errno, Box<str>);

/// What it takes to connect, once and again.
pub(crate) struct Dial {
    pub(crate) location: NbdLocation,
    /// The location's credentials.
    tls: Option<TlsClient>,
}

impl Dial {
    /// Finds the credentials that a location names.
    pub(crate) fn new(location: &NbdLocation, credentials: &Credentials) -> Result<Self, Refused> {
        let find = |tls: &NbdTls| credentials.client(&tls.credentials);
        let tls = location.tls.as_ref().map(find).transpose();
        let tls = tls.map_err(|why| -> Refused { (Errno::EINVAL, why.into()) })?;
        Ok(Self { location: location.clone(), tls })
    }

    fn secret(&self) -> Option<Secrecy<'_>> {
        let hostname = self.location.tls.as_ref().and_then(|tls| tls.hostname.as_deref());
        self.tls.as_ref().map(|client| Secrecy { client, hostname })
    }
}

/// How a connection is encrypted.
#[derive(Clone, Copy)]
pub(super) struct Secrecy<'a> {
    client: &'a TlsClient,
    hostname: Option<&'a str>,
}

/// A connection in transmission.
pub(crate) struct Connection {
    pub(crate) stream: Stream,
    pub(crate) transmission: Box<Transmission>,
    pub(crate) dial: Arc<Dial>,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Connection({})", self.dial.location)
    }
}

impl Connection {
    /// What the leaf is.
    pub(crate) fn info(&self, writable: bool) -> Result<LeafInfo, Refused> {
        let export = self.transmission.export();
        if writable && export.flags.has(TransmissionFlags::READ_ONLY) {
            return Err((Errno::EACCES, "Could not open image: Permission denied".into()));
        }
        Ok(export.leaf_info(LeafId(u32::MAX)))
    }
}

/// Connects, again and again for as long as the location says.
pub(crate) fn open(location: &NbdLocation, credentials: &Credentials) -> Result<Connection, Refused> {
    let patience = Instant::now().checked_add(location.open_timeout);
    let dial = Arc::new(Dial::new(location, credentials)?);
    loop {
        match connect(&dial, Instant::now() + HANDSHAKE_MAX) {
            Err(_) if patience.is_none_or(|end| Instant::now() < end) => std::thread::sleep(PAUSE),
            other => return other,
        }
    }
}

/// Connects once, until `deadline`.
pub(crate) fn connect(dial: &Arc<Dial>, deadline: Instant) -> Result<Connection, Refused> {
    let (location, secrecy) = (&dial.location, dial.secret());
    let wishes = Wishes {
        export: location.export.clone(),
        purpose: Purpose::Use,
        encryption: encryption(secrecy),
        mode: Mode::Extended,
        context: Some(location.context.clone().unwrap_or_else(|| ALLOCATION.into())),
    };
    let stream = Stream::new(reach(&location.server, deadline)?);
    let (stream, step) = negotiate(stream, Negotiation::new(wishes), secrecy, deadline)?;
    let Step::Use(negotiated) = step else { unreachable!("nothing else was asked for") };
    if let (Some(context), None) = (&location.context, negotiated.context) {
        return Err((Errno::EINVAL, format!("requested x-dirty-bitmap {context} not found").into()));
    }
    let transmission = Box::new(Transmission::new(negotiated));
    Ok(Connection { stream, transmission, dial: Arc::clone(dial) })
}

fn encryption(secrecy: Option<Secrecy<'_>>) -> Encryption {
    if secrecy.is_some() { Encryption::Required } else { Encryption::Off }
}

/// Asks a server for all its exports; with credentials, encrypted, and the server's certificate must have the name.
/// Waits for the answer; not for the thread of an engine.
///
/// # Errors
/// Why there is no answer, in words.
pub fn list_exports(
    server: &NbdAddress,
    tls: Option<(&TlsClient, Option<&str>)>,
) -> Result<Vec<Listing>, String> {
    let secrecy = tls.map(|(client, hostname)| Secrecy { client, hostname });
    let deadline = Instant::now() + HANDSHAKE_MAX;
    let wishes = Wishes {
        export: String::new(),
        purpose: Purpose::List,
        encryption: encryption(secrecy),
        mode: Mode::Extended,
        context: None,
    };
    let listed = reach(server, deadline)
        .and_then(|socket| negotiate(Stream::new(socket), Negotiation::new(wishes), secrecy, deadline));
    match listed {
        Ok((_, Step::Listed(exports))) => Ok(exports),
        Ok(_) => unreachable!("nothing else was asked for"),
        Err((_, why)) => Err(why.into()),
    }
}

/// Negotiates, until `deadline`.
pub(super) fn negotiate(
    mut stream: Stream,
    mut negotiation: Negotiation,
    secrecy: Option<Secrecy<'_>>,
    deadline: Instant,
) -> Result<(Stream, Step), Refused> {
    let refused = |error: NbdError| -> Refused { (error.errno(), error.to_string().into()) };
    let mut scratch = [0; SCRATCH];
    loop {
        let mut wanted = PollFlags::IN;
        match send_all(&mut stream, negotiation.out()) {
            Ok(()) => {}
            Err(Stuck::ForNow) => wanted |= PollFlags::OUT,
            Err(stuck) => {
                // Where the server has gone, the last that it said may tell why.
                let why = match stream.receive(&mut [IoSliceMut::new(&mut scratch)]) {
                    Err(why @ Stuck::Encryption(_)) => why,
                    _ => stuck,
                };
                return Err(lost(why, negotiation.during()));
            }
        }
        match stream.receive(&mut [IoSliceMut::new(&mut scratch)]) {
            Err(Stuck::ForNow) => wait(&stream, wanted, deadline, negotiation.during())?,
            Err(stuck) => return Err(lost(stuck, negotiation.during())),
            Ok(count) => {
                let mut input = &scratch[..count];
                let Some(step) = negotiation.feed(&mut input).map_err(refused)? else { continue };
                // Behind the agreement to encrypt, such bytes may be anyone's.
                if !input.is_empty() {
                    let text = "the server went on before anything was asked for";
                    return Err((Errno::EIO, text.into()));
                }
                if step == Step::StartTls {
                    let secrecy = secrecy.expect("encryption is agreed on where it was asked for");
                    encrypt(&mut stream, secrecy, deadline)?;
                    negotiation.encrypted();
                    continue;
                }
                while let Err(stuck) = send_all(&mut stream, negotiation.out()) {
                    match stuck {
                        Stuck::ForNow => {
                            wait(&stream, PollFlags::OUT, deadline, "the negotiation of options")?
                        }
                        stuck => return Err(lost(stuck, "the negotiation of options")),
                    }
                }
                return Ok((stream, step));
            }
        }
    }
}

/// Goes on encrypted, with the server that was asked for.
fn encrypt(stream: &mut Stream, secrecy: Secrecy<'_>, deadline: Instant) -> Result<(), Refused> {
    let Secrecy { client, hostname } = secrecy;
    let tls = client.begin(hostname).map_err(|text| -> Refused { (Errno::EINVAL, text.into()) })?;
    stream.encrypt(tls.into());
    loop {
        match stream.shake_hands() {
            Ok(()) => return Ok(()),
            Err(Stuck::ForNow) => {
                let out = if stream.owes() { PollFlags::OUT } else { PollFlags::empty() };
                wait(stream, PollFlags::IN | out, deadline, "the TLS handshake")?;
            }
            Err(Stuck::Encryption(error)) => return Err((Errno::EACCES, why(&error, hostname).into())),
            Err(stuck) => return Err(lost(stuck, "the TLS handshake")),
        }
    }
}

fn lost(stuck: Stuck, during: &'static str) -> Refused {
    match stuck {
        // A server looks at our certificate when we have taken its own already.
        Stuck::Encryption(error) => (Errno::EACCES, why(&error, None).into()),
        Stuck::Failed(errno) => (errno, format!("{errno} during {during}").into()),
        _ => (Errno::EIO, NbdError::Ended { during }.to_string().into()),
    }
}

fn wait(stream: &Stream, wanted: PollFlags, deadline: Instant, during: &str) -> Result<(), Refused> {
    let Some(left) = left_until(deadline) else {
        return Err((Errno::ETIMEDOUT, format!("the server does not answer during {during}").into()));
    };
    match poll(&mut [PollFd::new(&stream.as_fd(), wanted)], Some(&left)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err((Errno(error.raw_os_error()), "the kernel does not wait for sockets".into())),
    }
}

/// Sends everything; there are no buffers in it.
fn send_all(stream: &mut Stream, out: &mut Outgoing) -> Result<(), Stuck> {
    while !out.is_empty() || stream.owes() {
        let slices: Vec<_> = out.slices().map(IoSlice::new).collect();
        let count = stream.send(&slices)?;
        drop(slices);
        out.advance(count, |_, _| {});
    }
    Ok(())
}
