//! What is between a stream and its socket when bytes are encrypted. The protocol is rustls's, which neither waits nor
//! knows of sockets.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};

use rustls::Connection;
use rustls::pki_types::CertificateDer;

use super::stream::{Socket, Stuck};

/// Reads of the socket for one receipt, before others have their turn: each brings up to one record of 16 KiB.
const READS_MAX: usize = 16;

/// One end's half of an encrypted connection.
pub(super) struct Encryption {
    tls: Connection,
    /// The last look at the socket found nothing.
    empty: bool,
}

impl Encryption {
    /// Begins; nothing is sent yet.
    pub(super) fn new(tls: Connection) -> Self {
        Self { tls, empty: false }
    }

    /// Goes on until both sides know each other.
    pub(super) fn shake_hands(&mut self, socket: &Socket) -> Result<(), Stuck> {
        while self.tls.is_handshaking() {
            self.flush(socket)?;
            if self.tls.is_handshaking() {
                self.pull(socket)?;
            }
        }
        self.flush(socket)
    }

    /// The certificate that the peer has shown.
    pub(super) fn certificate(&self) -> Option<&CertificateDer<'static>> {
        self.tls.peer_certificates()?.first()
    }

    /// Receives into `slices`, at least one byte.
    pub(super) fn receive(&mut self, socket: &Socket, slices: &mut [IoSliceMut<'_>]) -> Result<usize, Stuck> {
        let room: usize = slices.iter().map(|slice| slice.len()).sum();
        let mut count = self.decrypted(slices, 0)?;
        // A peer cannot keep this going with records that hold nothing for us: rustls takes only some in a row.
        let mut reads = 0;
        while count == 0 || count < room && reads < READS_MAX {
            reads += 1;
            match self.pull(socket).and_then(|()| self.decrypted(slices, count)) {
                Ok(more) => count += more,
                // What there is goes first; the next call finds the same again.
                Err(_) if count > 0 => break,
                Err(stuck) => return Err(stuck),
            }
        }
        Ok(count)
    }

    /// Whether another receipt may find something at once.
    pub(super) fn has_more(&self) -> bool {
        !self.empty
    }

    /// Takes bytes from `slices` to be sent, and sends what can be. Both sides know each other.
    pub(super) fn send(&mut self, socket: &Socket, slices: &[IoSlice<'_>]) -> Result<usize, Stuck> {
        assert!(slices.is_empty() || !self.tls.is_handshaking(), "nothing is said to a stranger");
        let mut count = 0;
        for slice in slices {
            let mut rest = &slice[..];
            while !rest.is_empty() {
                let taken = self.tls.writer().write(rest).map_err(|error| stuck(&error))?;
                count += taken;
                rest = &rest[taken..];
                // It keeps a bounded amount of what the socket does not take.
                let full = if taken == 0 { self.flush(socket) } else { Ok(()) };
                match full {
                    Ok(()) => {}
                    Err(Stuck::ForNow) if count > 0 => return Ok(count),
                    Err(stuck) => return Err(stuck),
                }
            }
        }
        match self.flush(socket) {
            Err(Stuck::ForNow) if count > 0 => Ok(count),
            Err(stuck) => Err(stuck),
            Ok(()) => Ok(count),
        }
    }

    /// Whether something waits for the socket.
    pub(super) fn owes(&self) -> bool {
        self.tls.wants_write()
    }

    /// Says that nothing more is sent, if that goes out at once.
    pub(super) fn farewell(&mut self, socket: &Socket) {
        self.tls.send_close_notify();
        let _ = self.flush(socket);
    }

    /// Reads from the socket once.
    fn pull(&mut self, socket: &Socket) -> Result<(), Stuck> {
        self.empty = false;
        match self.tls.read_tls(&mut Ends(socket)) {
            Ok(0) => return Err(Stuck::Ended),
            Ok(_) => {}
            Err(error) => {
                let stuck = stuck(&error);
                self.empty = stuck == Stuck::ForNow;
                return Err(stuck);
            }
        }
        if let Err(error) = self.tls.process_new_packets() {
            // The peer is told why, if that goes out at once.
            let _ = self.flush(socket);
            return Err(Stuck::Encryption(error));
        }
        match self.flush(socket) {
            Ok(()) | Err(Stuck::ForNow) => Ok(()),
            Err(stuck) => Err(stuck),
        }
    }

    /// Takes what is decrypted into `slices`, from a place on.
    fn decrypted(&mut self, slices: &mut [IoSliceMut<'_>], from: usize) -> Result<usize, Stuck> {
        let (mut skip, mut count) = (from, 0);
        for slice in slices {
            let skipped = skip.min(slice.len());
            skip -= skipped;
            let mut room = &mut slice[skipped..];
            while !room.is_empty() {
                match self.tls.reader().read(room) {
                    Ok(0) if count > 0 => return Ok(count),
                    Ok(0) => return Err(Stuck::Ended),
                    Ok(read) => {
                        count += read;
                        room = &mut room[read..];
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(count),
                    Err(error) => return Err(stuck(&error)),
                }
            }
        }
        Ok(count)
    }

    fn flush(&mut self, socket: &Socket) -> Result<(), Stuck> {
        while self.tls.wants_write() {
            self.tls.write_tls(&mut Ends(socket)).map_err(|error| stuck(&error))?;
        }
        Ok(())
    }
}

/// The socket, as rustls wants it.
struct Ends<'a>(&'a Socket);

impl Read for Ends<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self.0.receive(&mut [IoSliceMut::new(bytes)]) {
            Err(Stuck::Ended) => Ok(0),
            other => other.map_err(error),
        }
    }
}

impl Write for Ends<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.send(&[IoSlice::new(bytes)]).map_err(error)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.send(slices).map_err(error)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn error(stuck: Stuck) -> io::Error {
    match stuck {
        Stuck::ForNow => io::ErrorKind::WouldBlock.into(),
        Stuck::Failed(errno) => io::Error::from_raw_os_error(errno.0),
        Stuck::Ended | Stuck::Encryption(_) => io::ErrorKind::UnexpectedEof.into(),
    }
}

fn stuck(error: &io::Error) -> Stuck {
    match error.kind() {
        io::ErrorKind::WouldBlock => Stuck::ForNow,
        io::ErrorKind::UnexpectedEof => Stuck::Ended,
        _ => Stuck::Failed(super::errno_of(error)),
    }
}
