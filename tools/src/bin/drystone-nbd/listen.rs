//! The sockets that clients connect to.

use std::io;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;

use drystone_core::protocol::nbd::NbdAddress;
use drystone_exec_linux::{io_error_words, resolve};
use drystone_tools::message::{Failure, Message};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, getppid, pidfd_getfd, pidfd_open};

use crate::background;

/// Bytes of a socket's path. Source: unix(7).
const PATH_MAX: usize = 107;

/// The first descriptor that a service manager hands over. Source: sd_listen_fds(3).
const FIRST_FD: i32 = 3;

/// Sockets, and the path that goes with them.
pub struct Listening {
    pub sockets: Vec<OwnedFd>,
    /// A socket of the file system that is ours to remove.
    path: Option<String>,
}

impl Drop for Listening {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // Somebody else may have removed it.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// The socket that a service manager has handed over, if it has; what was `said` of an address makes no sense then.
///
/// It was handed to the process that was called: in the background, to the one that waits for this one.
pub fn inherited(tool: &str, said: Option<&str>) -> Result<Option<Listening>, Failure> {
    let variable = |name| std::env::var(name).ok().and_then(|text| text.parse::<i32>().ok());
    let called = if background::is_child() { getppid() } else { Some(getpid()) };
    if variable("LISTEN_PID").is_none()
        || variable("LISTEN_PID") != called.map(|pid| pid.as_raw_nonzero().get())
    {
        return Ok(None);
    }
    let count = match variable("LISTEN_FDS") {
        None | Some(..=0) => return Ok(None),
        Some(count) => count,
    };
    let words = |error: rustix::io::Errno| io_error_words(&error.into());
    let lost = |fd: i32, error| {
        Failure::new(format!("Socket activation failed: invalid file descriptor fd = {fd}: {}", words(error)))
    };
    let this = pidfd_open(getpid(), PidfdFlags::empty()).map_err(|error| lost(FIRST_FD, error))?;
    // What was closed is the next to be given out.
    if (FIRST_FD..FIRST_FD.saturating_add(count)).contains(&this.as_raw_fd()) {
        return Err(lost(this.as_raw_fd(), rustix::io::Errno::BADF));
    }
    let take = |fd| pidfd_getfd(&this, fd, PidfdGetfdFlags::empty()).map_err(|error| lost(fd, error));
    let socket = take(FIRST_FD)?;
    for fd in 1..count {
        take(FIRST_FD.saturating_add(fd))?;
    }
    if count > 1 {
        return Err(Failure::new(format!("{tool} does not support socket activation with LISTEN_FDS > 1")));
    }
    if let Some(said) = said {
        return Err(Failure::new(format!("{said} can't be set when using socket activation")));
    }
    Ok(Some(Listening { sockets: vec![socket], path: None }))
}

impl Listening {
    /// Sees to it that what was handed over can be listened on.
    pub fn checked(self) -> Result<Self, Failure> {
        let failed = |what: &str, error: rustix::io::Errno| {
            let words = io_error_words(&error.into());
            Failure::new(format!("Failed to use socket activation: {what}: {words}"))
        };
        for socket in &self.sockets {
            let query = |error| failed("Unable to query remote socket address", error);
            rustix::net::getsockname(socket).map_err(query)?;
            rustix::io::ioctl_fionbio(socket, true).map_err(|error| failed("Unable to set it up", error))?;
        }
        Ok(self)
    }
}

/// Listens at an address, on sockets that have a security context, if one is said.
pub fn listen(address: &NbdAddress, label: Option<&str>) -> Result<Listening, Failure> {
    let Some(label) = label else { return listen_at(address) };
    let put = |context: &[u8], what: String| {
        let written = std::fs::write("/proc/thread-self/attr/sockcreate", context);
        written.map_err(|error| Failure::new(format!("{what}: {}", io_error_words(&error))))
    };
    let context = [label.as_bytes(), b"\0"].concat();
    put(&context, format!("Cannot set SELinux socket create context to {label}"))?;
    let listening = listen_at(address)?;
    // A line without a word is none.
    put(b"\n", "Cannot clear SELinux socket create context".into())?;
    Ok(listening)
}

fn listen_at(address: &NbdAddress) -> Result<Listening, Failure> {
    match address {
        NbdAddress::Unix { path } if path.len() > PATH_MAX => {
            let hint = format!("Path must be less than {} bytes", PATH_MAX + 1);
            let mut failure = Failure::new(format!("UNIX socket path '{path}' is too long"));
            failure.messages.push(Message::Plain(hint));
            Err(failure)
        }
        NbdAddress::Unix { path } => {
            let failed = |error: io::Error| {
                Failure::new(format!("Failed to bind socket to {path}: {}", io_error_words(&error)))
            };
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(Failure::new(format!(
                        "Failed to unlink socket {path}: {}",
                        io_error_words(&error)
                    )));
                }
                _ => {}
            }
            let listener = UnixListener::bind(path).map_err(failed)?;
            listener.set_nonblocking(true).map_err(failed)?;
            Ok(Listening { sockets: vec![listener.into()], path: Some(path.clone()) })
        }
        NbdAddress::Fd { .. } | NbdAddress::Abstract { .. } | NbdAddress::Vsock { .. } => {
            unreachable!("no option of the command line names one")
        }
        NbdAddress::Inet { host, port, .. } => {
            let mut sockets = Vec::new();
            for address in resolve(host, port).map_err(Failure::new)? {
                let failed = |error: io::Error| {
                    let what = match error.kind() {
                        io::ErrorKind::AddrInUse => "Failed to find an available port",
                        _ => "Failed to bind socket",
                    };
                    Failure::new(format!("{what}: {}", io_error_words(&error)))
                };
                let listener = TcpListener::bind(address).map_err(failed)?;
                listener.set_nonblocking(true).map_err(failed)?;
                sockets.push(listener.into());
            }
            Ok(Listening { sockets, path: None })
        }
    }
}
