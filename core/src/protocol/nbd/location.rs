//! What names a disk that a server exports.

use std::fmt;
use std::time::Duration;

use super::limits::CONNECTIONS_MAX;

/// Where a server is, what is wanted of it, and how patiently.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NbdLocation {
    /// Where the server is.
    pub server: NbdAddress,
    /// The export's name; empty for the default one.
    pub export: String,
    /// How the connection is encrypted, if it is.
    pub tls: Option<NbdTls>,
    /// How long requests wait for a connection that is lost, before they fail.
    pub reconnect_delay: Duration,
    /// How long an attempt to open is repeated, before it fails.
    pub open_timeout: Duration,
    /// Connections at the most, where the server allows several.
    pub connections: usize,
    /// The meta context whose block status takes the place of `base:allocation`: its first bit means that nothing is stored.
    pub context: Option<String>,
}

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NbdAddress {
    /// A socket in the file system.
    Unix {
        /// Its path.
        path: String,
    },
    /// A socket with a name that the kernel keeps, and no file system.
    Abstract {
        /// Its name, without the zero in front.
        name: String,
        /// Whether it ends where the name does; else zeros follow up to the greatest length.
        tight: bool,
    },
    /// A socket between a virtual machine and its host.
    Vsock {
        /// Which machine.
        cid: u32,
        /// Its port.
        port: u32,
    },
    /// A socket that this process has and that is connected.
    Fd {
        /// The number of its descriptor.
        number: i32,
    },
    /// A host of the Internet.
    Inet {
        /// Its name or number.
        host: String,
        /// Its port, a number or a service's name.
        port: String,
        /// What else is said of the connection.
        how: InetHow,
    },
}

/// How a host of the Internet is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct InetHow {
    /// Which of its addresses will do; any, where nothing is said.
    pub family: Option<InetFamily>,
    /// Whether the kernel finds out by itself that a silent peer has gone.
    pub keep_alive: bool,
    /// Whether several paths are used, where the host can (MPTCP).
    pub multipath: bool,
}

/// A kind of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InetFamily {
    /// `127.0.0.1`.
    V4,
    /// `::1`.
    V6,
}

impl NbdAddress {
    /// A host and a port, without anything said of the way there.
    pub fn inet(host: impl Into<String>, port: impl Into<String>) -> Self {
        Self::Inet { host: host.into(), port: port.into(), how: InetHow::default() }
    }

    /// The host's name, where there is one to compare a certificate with.
    pub fn host(&self) -> Option<&str> {
        match self {
            Self::Inet { host, .. } => Some(host),
            Self::Unix { .. } | Self::Abstract { .. } | Self::Vsock { .. } | Self::Fd { .. } => None,
        }
    }
}

impl fmt::Display for NbdAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix { path: name } | Self::Abstract { name, .. } => f.write_str(name),
            Self::Vsock { cid, port } => write!(f, "{cid}:{port}"),
            Self::Fd { number } => write!(f, "descriptor {number}"),
            Self::Inet { host, port, .. } => write!(f, "{host}:{port}"),
        }
    }
}

/// How a connection is encrypted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NbdTls {
    /// The id of credentials that the executor holds.
    pub credentials: String,
    /// The name that the server's certificate must have; the host's, without one.
    pub hostname: Option<String>,
}

impl NbdLocation {
    /// An export, without anything said about the connection.
    pub fn new(server: NbdAddress, export: impl Into<String>) -> Self {
        Self {
            server,
            export: export.into(),
            tls: None,
            reconnect_delay: Duration::ZERO,
            open_timeout: Duration::ZERO,
            connections: 1,
            context: None,
        }
    }

    /// How many connections there are to be, where the server allows several: a socket that somebody connected is one.
    pub fn connections_wanted(&self) -> usize {
        match self.server {
            NbdAddress::Fd { .. } => 1,
            _ => self.connections.clamp(1, CONNECTIONS_MAX),
        }
    }
}

/// The name in the form of a URI, as the reference shows it; for what the reference has no form, one that says what it is.
impl fmt::Display for NbdLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let slash = if self.export.is_empty() { "" } else { "/" };
        let export = &self.export;
        match &self.server {
            NbdAddress::Unix { path } => write!(f, "nbd+unix://{slash}{export}?socket={path}"),
            NbdAddress::Abstract { name, .. } => write!(f, "nbd+unix://{slash}{export}?socket=@{name}"),
            NbdAddress::Vsock { cid, port } => write!(f, "nbd+vsock://{cid}:{port}{slash}{export}"),
            NbdAddress::Fd { number } => write!(f, "nbd+fd://{number}{slash}{export}"),
            NbdAddress::Inet { host, port, .. } => write!(f, "nbd://{host}:{port}{slash}{export}"),
        }
    }
}
