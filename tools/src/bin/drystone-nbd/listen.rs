//! The sockets that clients connect to.

use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;

use drystone_core::protocol::nbd::NbdAddress;
use drystone_exec_linux::io_error_words;
use drystone_tools::message::Failure;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

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

/// The socket that a service manager has handed over, if it has.
pub fn inherited() -> Result<Option<Listening>, Failure> {
    let variable = |name| std::env::var(name).ok().and_then(|text| text.parse::<i32>().ok());
    if variable("LISTEN_PID") != Some(getpid().as_raw_nonzero().get()) {
        return Ok(None);
    }
    match variable("LISTEN_FDS") {
        None | Some(0) => Ok(None),
        Some(1) => {
            let failed = |error: rustix::io::Errno| {
                Failure::new(format!("Failed to use socket activation: {}", io_error_words(&error.into())))
            };
            let this = pidfd_open(getpid(), PidfdFlags::empty()).map_err(failed)?;
            let socket = pidfd_getfd(&this, FIRST_FD, PidfdGetfdFlags::empty()).map_err(failed)?;
            let flags = rustix::fs::fcntl_getfl(&socket).map_err(failed)?;
            rustix::fs::fcntl_setfl(&socket, flags | rustix::fs::OFlags::NONBLOCK).map_err(failed)?;
            Ok(Some(Listening { sockets: vec![socket], path: None }))
        }
        Some(_) => Err(Failure::new("qemu-nbd does not support socket activation with LISTEN_FDS > 1")),
    }
}

/// Listens at an address.
pub fn listen(address: &NbdAddress) -> Result<Listening, Failure> {
    match address {
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
        NbdAddress::Fd { .. } => unreachable!("no option of the command line names a descriptor"),
        NbdAddress::Inet { host, port } => {
            let mut sockets = Vec::new();
            for address in resolve(host, port)? {
                let failed = |error: io::Error| {
                    Failure::new(format!("Failed to find an available port: {}", io_error_words(&error)))
                };
                let listener = TcpListener::bind(address).map_err(failed)?;
                listener.set_nonblocking(true).map_err(failed)?;
                sockets.push(listener.into());
            }
            Ok(Listening { sockets, path: None })
        }
    }
}

fn resolve(host: &str, port: &str) -> Result<Vec<SocketAddr>, Failure> {
    let failed = |why: &str| Failure::new(format!("address resolution failed for {host}:{port}: {why}"));
    let Ok(number) = port.parse::<u16>() else {
        return Err(failed("Servname not supported for ai_socktype"));
    };
    let found = (host, number).to_socket_addrs().map_err(|error| {
        let text = error.to_string();
        failed(text.strip_prefix("failed to lookup address information: ").unwrap_or(&text))
    })?;
    Ok(found.collect())
}
