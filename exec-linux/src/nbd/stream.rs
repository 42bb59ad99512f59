//! A socket that never waits.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use drystone_core::intent::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown, recvmsg, sendmsg,
};

/// Buffers in one call at the most; the kernel's limit (`IOV_MAX`).
pub(crate) const SLICES_MAX: usize = 1024;

/// One end of a connection. Its descriptor does not block.
pub(crate) struct Stream {
    fd: OwnedFd,
}

/// Why bytes do not move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stuck {
    /// They may later.
    ForNow,
    /// The peer has ended the connection.
    Ended,
    /// They never will.
    Failed(Errno),
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
        Self { fd }
    }

    /// Receives into `slices`, at least one byte.
    pub(crate) fn receive(&mut self, slices: &mut [IoSliceMut<'_>]) -> Result<usize, Stuck> {
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
    pub(crate) fn send(&mut self, slices: &[IoSlice<'_>]) -> Result<usize, Stuck> {
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
        self.fd.as_fd()
    }
}

impl Drop for Stream {
    /// Ends the connection for the peer too, whoever else holds the descriptor for a while, such as a poll of the kernel.
    fn drop(&mut self) {
        // A connection that has ended is what is wanted.
        let _ = rustix::net::shutdown(&self.fd, Shutdown::Both);
    }
}
