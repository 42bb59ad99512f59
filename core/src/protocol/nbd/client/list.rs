//! Exports as a client is told of them.

use crate::protocol::nbd::Mode;
use crate::protocol::nbd::layout::{BlockSizes, TransmissionFlags};

/// What a server says of one export.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Listing {
    /// Its name.
    pub name: String,
    /// Words for people.
    pub description: Option<String>,
    /// Bytes, and abilities; nothing where the server does not describe exports.
    pub about: Option<(u64, TransmissionFlags)>,
    /// Sizes of requests, where the server says.
    pub sizes: Option<BlockSizes>,
    /// How replies look.
    pub mode: Mode,
    /// Names of meta contexts.
    pub contexts: Vec<String>,
}
