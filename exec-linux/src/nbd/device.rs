//! Network block devices of the kernel (`/dev/nbd0`): an export as a disk of this machine.
//!
//! The kernel speaks the transmission phase itself, over a socket that somebody else has negotiated on. It knows simple
//! replies only. Source: the kernel's `include/uapi/linux/nbd.h` and `drivers/block/nbd.c`.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::time::Instant;

use drystone_core::protocol::nbd::client::{Encryption, Negotiated, Negotiation, Purpose, Step, Wishes};
use drystone_core::protocol::nbd::limits::HANDSHAKE_MAX;
use drystone_core::protocol::nbd::{Mode, NbdAddress};
use rustix::io::Errno;
use rustix::ioctl::{IntegerSetter, Opcode, ioctl};

use super::connect::negotiate;
use super::reach::reach;
use super::stream::Stream;
use crate::words::io_error_words;

/// Bytes of a sector of the device; every kernel takes it, whatever its pages are.
const SECTOR: u64 = 512;

/// Requests to the device, `_IO(0xab, n)`; each takes a number.
const SET_SOCK: Opcode = 0xab00;
const SET_BLKSIZE: Opcode = 0xab01;
const DO_IT: Opcode = 0xab03;
const CLEAR_SOCK: Opcode = 0xab04;
const CLEAR_QUE: Opcode = 0xab05;
const SET_SIZE_BLOCKS: Opcode = 0xab07;
const DISCONNECT: Opcode = 0xab08;
const SET_FLAGS: Opcode = 0xab0a;

/// A device of the kernel.
#[derive(Debug)]
pub struct NbdDevice {
    file: File,
    path: PathBuf,
}

/// A device that shows an export, once [`serve`](Self::serve) runs.
pub struct NbdAttached {
    device: NbdDevice,
    /// The kernel has the socket; ours goes when the device ends.
    _stream: Stream,
}

impl NbdDevice {
    /// Opens a device.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        Ok(Self { file, path: path.to_owned() })
    }

    /// Has the device let go of its export; who serves it sees the connection end.
    pub fn disconnect(&self) {
        // What is not connected has nothing to let go of, and the kernel says nothing that would help.
        let _ = self.ask::<CLEAR_QUE>(0);
        let _ = self.ask::<DISCONNECT>(0);
        let _ = self.ask::<CLEAR_SOCK>(0);
    }

    /// Connects to the server at `address`, and gives the connection to the device. Waits, for as long as a negotiation may
    /// take.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn attach(self, address: &NbdAddress, export: &str) -> Result<NbdAttached, String> {
        let deadline = Instant::now() + HANDSHAKE_MAX;
        let wishes = Wishes {
            export: export.into(),
            purpose: Purpose::Use,
            encryption: Encryption::Off,
            mode: Mode::Simple,
            context: None,
        };
        let negotiated = reach(address, deadline)
            .and_then(|socket| negotiate(Stream::new(socket), Negotiation::new(wishes), None, deadline));
        let (stream, step) = negotiated.map_err(|(_, why)| String::from(why))?;
        let Step::Use(Negotiated { len, flags, .. }) = step else {
            unreachable!("nothing else was asked for")
        };
        let path = self.path.display();
        let failed = |error: io::Error| format!("Failed to set up '{path}': {}", io_error_words(&error));
        let socket = usize::try_from(stream.as_fd().as_raw_fd()).expect("a descriptor that is open");
        self.ask::<SET_SOCK>(socket).map_err(|error| match error.raw_os_error() {
            Some(code) if code == Errno::BUSY.raw_os_error() => {
                format!("'{path}' shows another export already; disconnect it with '-d' before")
            }
            // It is no such device.
            _ => "Failed to set NBD socket".into(),
        })?;
        let sectors =
            usize::try_from(len / SECTOR).map_err(|_| format!("{len} bytes are too many for '{path}'"))?;
        let set =
            self.ask::<SET_BLKSIZE>(SECTOR as usize).and_then(|()| self.ask::<SET_SIZE_BLOCKS>(sectors));
        if let Err(error) = set.and_then(|()| self.ask::<SET_FLAGS>(flags.0.into())) {
            // What the kernel has been given it keeps until it is told.
            self.disconnect();
            return Err(failed(error));
        }
        Ok(NbdAttached { device: self, _stream: stream })
    }

    #[allow(unsafe_code)]
    fn ask<const REQUEST: Opcode>(&self, value: usize) -> io::Result<()> {
        // SAFETY: each request that this module names takes a number, and the kernel looks at it itself.
        let setter = unsafe { IntegerSetter::<REQUEST>::new_usize(value) };
        // SAFETY: as above: no memory of ours is named.
        Ok(unsafe { ioctl(&self.file, setter) }?)
    }
}

impl NbdAttached {
    /// Has the kernel use the export until the device is disconnected or the connection ends. Waits for that.
    ///
    /// # Errors
    /// The kernel's.
    pub fn serve(self) -> io::Result<()> {
        let ended = self.device.ask::<DO_IT>(0);
        self.device.disconnect();
        match ended {
            // How a device ends that was disconnected.
            Err(error) if error.raw_os_error() == Some(Errno::PIPE.raw_os_error()) => Ok(()),
            ended => ended,
        }
    }
}
