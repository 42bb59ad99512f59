//! The Network Block Device protocol, both sides. Source: the NBD project's `doc/proto.md`, cited as \[NBD\] with its
//! headings.
//!
//! ```text
//!   client::Negotiation ──▶ client::Transmission            server::Negotiation ──▶ server::Transmission
//!        options, replies        requests, replies               the same, seen from the peer
//! ```
//!
//! A machine is fed what a socket gave, from the front, as far as it takes it: [`feed`](client::Transmission::feed). What it
//! has to say lies in its [`Outgoing`]: headers, and the requests' own buffers between them. Data of a request goes from
//! the socket to its buffers and back without passing through the machine: while a payload is due,
//! [`payload`](client::Transmission::payload) names the memory that the next bytes belong to.
//!
//! Nothing here waits or knows the time; who drives a machine gives it [`HANDSHAKE_MAX`](limits::HANDSHAKE_MAX) for its
//! negotiation. Start at [`layout`], then [`client`] and [`server`].

pub mod client;
mod error;
pub mod layout;
pub mod limits;
mod location;
mod outgoing;
mod payload;
pub mod server;

pub use error::NbdError;
pub use location::{InetFamily, InetHow, NbdAddress, NbdLocation, NbdTls};
pub use outgoing::{Elsewhere, Outgoing};
pub use payload::windows_between;

/// How replies look, as the client asked for. Source: \[NBD\] "Structured replies", "Extended headers".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Mode {
    /// One header a request, with data only after reads that worked.
    #[default]
    Simple,
    /// Chunks, each with a header of its own.
    Structured,
    /// Chunks with 64-bit lengths, in both directions.
    Extended,
}
