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
    },
}

impl fmt::Display for NbdAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix { path } => f.write_str(path),
            Self::Fd { number } => write!(f, "descriptor {number}"),
            Self::Inet { host, port } => write!(f, "{host}:{port}"),
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
            NbdAddress::Unix { .. } | NbdAddress::Inet { .. } => self.connections.clamp(1, CONNECTIONS_MAX),
        }
    }
}

/// The name in the form of a URI, as the reference shows it.
impl fmt::Display for NbdLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { export, .. } = self;
        match &self.server {
            NbdAddress::Unix { path } if export.is_empty() => write!(f, "nbd+unix://?socket={path}"),
            NbdAddress::Unix { path } => write!(f, "nbd+unix:///{export}?socket={path}"),
            NbdAddress::Fd { number } if export.is_empty() => write!(f, "nbd+fd://{number}"),
            NbdAddress::Fd { number } => write!(f, "nbd+fd://{number}/{export}"),
            NbdAddress::Inet { host, port } if export.is_empty() => write!(f, "nbd://{host}:{port}"),
            NbdAddress::Inet { host, port } => write!(f, "nbd://{host}:{port}/{export}"),
        }
    }
}
