//! A stream of bytes to a peer, which never waits: a socket, encrypted or not.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use drystone_core::intent::Errno;
use rustix::fs::sendfile;
use rustix::io::retry_on_intr;
use rustix::net::{
    RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown, recvmsg, sendmsg,
};
use rustls::Connection;
use rustls::pki_types::CertificateDer;

use super::encryption::Encryption;

/// Buffers in one call at the most; the kernel's limit (`IOV_MAX`).
pub(crate) const SLICES_MAX: usize = 1024;

/// One end of a connection.
pub(crate) struct Stream {
    socket: Socket,
    encryption: Option<Box<Encryption>>,
}

/// A socket whose descriptor does not block.
pub(super) struct Socket {
    fd: OwnedFd,
}

/// Why bytes do not move.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Stuck {
    /// They may later.
    ForNow,
    /// The peer has ended the connection.
    Ended,
    /// They never will.
    Failed(Errno),
    /// They are not what encryption makes of them, or come from somebody who is not trusted.
    Encryption(rustls::Error),
}

impl From<rustix::io::Errno> for Stuck {
    fn from(error: rustix::io::Errno) -> Self {
        match error {
            rustix::io::Errno::AGAIN => Self::ForNow,
            error => Self::Failed(Errno(error.raw_os_error())),
        }
    }
}

impl Stream {
    /// Takes a descriptor that does not block.
    pub(crate) fn new(fd: OwnedFd) -> Self {
        Self { socket: Socket { fd }, encryption: None }
    }

    /// Goes on encrypted. What was received before is the caller's to throw away.
    ///
    /// # Panics
    /// When it is encrypted already.
    pub(crate) fn encrypt(&mut self, tls: Connection) {
        let before = self.encryption.replace(Box::new(Encryption::new(tls)));
        assert!(before.is_none(), "encryption begins once");
    }

    /// Goes on until both sides know each other, where there is encryption.
    pub(crate) fn shake_hands(&mut self) -> Result<(), Stuck> {
        self.encryption.as_mut().map_or(Ok(()), |encryption| encryption.shake_hands(&self.socket))
    }

    /// The certificate that the peer has shown, once both sides know each other.
    pub(crate) fn certificate(&self) -> Option<&CertificateDer<'static>> {
        self.encryption.as_ref().and_then(|encryption| encryption.certificate())
    }

    /// Receives into `slices`, at least one byte.
    pub(crate) fn receive(&mut self, slices: &mut [IoSliceMut<'_>]) -> Result<usize, Stuck> {
        match &mut self.encryption {
            None => self.socket.receive(slices),
            Some(encryption) => encryption.receive(&self.socket, slices),
        }
    }

    /// Whether more may be there at once, after `count` bytes came where there was room for `room`.
    pub(crate) fn has_more(&self, count: usize, room: usize) -> bool {
        // A socket that gave less than it was asked for is empty.
        self.encryption.as_ref().map_or(count == room, |encryption| encryption.has_more())
    }

    /// Sends from `slices`, at least one byte where there is one; also what it [owes](Self::owes).
    pub(crate) fn send(&mut self, slices: &[IoSlice<'_>]) -> Result<usize, Stuck> {
        match &mut self.encryption {
            None => self.socket.send(slices),
            Some(encryption) => encryption.send(&self.socket, slices),
        }
    }

    /// Whether what is sent is encrypted.
    pub(crate) fn encrypts(&self) -> bool {
        self.encryption.is_some()
    }

    /// Sends `len` bytes of a file without copying them, at least one. A peer that is gone raises SIGPIPE, for which this call
    /// has no switch: the process has to ignore it, as Rust's programs do.
    ///
    /// # Errors
    /// [`Stuck::Ended`] where the file ends before.
    ///
    /// # Panics
    /// When the stream is encrypted.
    pub(crate) fn send_file(&self, file: BorrowedFd<'_>, offset: u64, len: usize) -> Result<usize, Stuck> {
        assert!(!self.encrypts(), "what is encrypted is copied");
        let mut offset = offset;
        match retry_on_intr(|| sendfile(&self.socket.fd, file, Some(&mut offset), len)) {
            Ok(0) => Err(Stuck::Ended),
            sent => Ok(sent?),
        }
    }

    /// Whether more may be sent at once, after `count` bytes were of `all`.
    pub(crate) fn takes_more(&self, count: usize, all: usize) -> bool {
        // A socket that takes less than it is given is full.
        count == all && !self.owes()
    }

    /// Whether bytes that it was given, or encryption's own, wait to be sent.
    pub(crate) fn owes(&self) -> bool {
        self.encryption.as_ref().is_some_and(|encryption| encryption.owes())
    }
}

impl Socket {
    /// Receives into `slices`, at least one byte.
    pub(super) fn receive(&self, slices: &mut [IoSliceMut<'_>]) -> Result<usize, Stuck> {
        loop {
            let flags = RecvFlags::empty();
            return match recvmsg(&self.fd, slices, &mut RecvAncillaryBuffer::default(), flags) {
                Ok(message) if message.bytes == 0 => Err(Stuck::Ended),
                Ok(message) => Ok(message.bytes),
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => Err(error.into()),
            };
        }
    }

    /// Sends from `slices`, at least one byte; there is one.
    pub(super) fn send(&self, slices: &[IoSlice<'_>]) -> Result<usize, Stuck> {
        loop {
            let flags = SendFlags::NOSIGNAL;
            return match sendmsg(&self.fd, slices, &mut SendAncillaryBuffer::default(), flags) {
                Ok(count) => Ok(count),
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => Err(error.into()),
            };
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.fd.as_fd()
    }
}

impl Drop for Stream {
    /// Ends the connection for the peer too, whoever else holds the descriptor for a while, such as a poll of the kernel.
    fn drop(&mut self) {
        if let Some(encryption) = &mut self.encryption {
            encryption.farewell(&self.socket);
        }
        // A connection that has ended is what is wanted.
        let _ = rustix::net::shutdown(&self.socket.fd, Shutdown::Both);
    }
}
