//! NBD: exports of servers as leaves, and a server of images.
//!
//! The protocol is core's; this has the sockets. `bundle` is one leaf, `link` one of its connections, `reach` and `connect`
//! bring connections about (on threads that may wait), `server` has the other side, `device` shows exports as disks of the
//! kernel's, and `sockets` finds out when a socket can go on. A `stream` is a socket, with `encryption` or without;
//! `credentials` for it are read from a folder, and `names` says whose certificate one is.

mod bundle;
mod connect;
mod credentials;
pub(crate) mod device;
mod encryption;
mod link;
mod names;
mod priority;
mod reach;
pub(crate) mod resolve;
pub(crate) mod server;
mod sockets;
mod stream;

use std::io;
use std::sync::Arc;

use drystone_core::intent::{Action, Errno, LeafId, LeafInfo, Outcome, Token};
use drystone_core::protocol::nbd::NbdLocation;
use drystone_core::protocol::nbd::client::{Ended, Order};

use crate::doorbell::Doorbell;
use bundle::Bundle;
pub use connect::list_exports;
pub(crate) use connect::{Connection, Refused};
pub(crate) use credentials::Credentials;
pub use credentials::{TlsClient, TlsCredentials, TlsEndpoint, TlsError, TlsServer, X509Folder};
pub(crate) use sockets::{Ready, Sockets};

/// Bytes that are read from a socket at once, beside those that have a place already.
const SCRATCH: usize = 64 << 10;

/// The connections of one engine's leaves.
pub(crate) struct Links {
    links: Vec<(LeafId, Bundle)>,
    /// Which link a leaf is, at the place of its number.
    leaves: Vec<Option<usize>>,
    scratch: Box<[u8]>,
    bell: Arc<Doorbell>,
}

/// Opens an export, for a leaf.
pub(crate) fn open(
    location: &NbdLocation,
    credentials: &Credentials,
    writable: bool,
) -> Result<(Connection, LeafInfo), Refused> {
    let connection = connect::open(location, credentials)?;
    let info = connection.info(writable)?;
    Ok((connection, info))
}

impl Links {
    /// There are none yet; `bell` wakes the engine's thread.
    pub(crate) fn new(bell: Arc<Doorbell>) -> Self {
        Self { links: Vec::new(), leaves: Vec::new(), scratch: Box::default(), bell }
    }

    /// Whether any leaf is an export.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.links.is_empty()
    }

    /// Whether the leaf is an export.
    #[inline]
    pub(crate) fn has(&self, leaf: LeafId) -> bool {
        matches!(self.leaves.get(leaf.0 as usize), Some(Some(_)))
    }

    /// Takes a leaf that has its number.
    ///
    /// # Errors
    /// The kernel's, when it does not watch the socket.
    pub(crate) fn admit(
        &mut self,
        leaf: LeafId,
        connection: Connection,
        sockets: &mut Sockets,
    ) -> io::Result<()> {
        if self.scratch.is_empty() {
            self.scratch = vec![0; SCRATCH].into();
        }
        let bundle = Bundle::new(connection, sockets, &self.bell)?;
        let place = leaf.0 as usize;
        if self.leaves.len() <= place {
            self.leaves.resize(place + 1, None);
        }
        self.leaves[place] = Some(self.links.len());
        self.links.push((leaf, bundle));
        Ok(())
    }

    /// Lets the server go, and forgets the leaf.
    pub(crate) fn close(&mut self, leaf: LeafId) {
        let Some(index) = self.leaves.get_mut(leaf.0 as usize).and_then(Option::take) else { return };
        let (_, link) = self.links.swap_remove(index);
        link.close();
        if let Some((moved, _)) = self.links.get(index) {
            self.leaves[moved.0 as usize] = Some(index);
        }
    }

    /// Takes an action on an export.
    pub(crate) fn push(&mut self, token: Token, action: Action) -> Option<Outcome> {
        let (leaf, order) = match Order::of(token, action) {
            Ok(order) => order,
            Err(action) => panic!("{action:?} is not for a connection"),
        };
        let Some(Some(index)) = self.leaves.get(leaf.0 as usize) else {
            unreachable!("the caller has asked whether the leaf is an export")
        };
        self.links[*index].1.push(order).map(Ended::outcome)
    }

    /// Whether every connection takes another request.
    #[inline]
    pub(crate) fn has_room(&self) -> bool {
        self.links.iter().all(|(_, link)| link.has_room())
    }

    /// Whether nothing is in flight.
    pub(crate) fn is_idle(&self) -> bool {
        self.links.iter().all(|(_, link)| link.is_idle())
    }

    /// Sends what was pushed.
    pub(crate) fn submit(&mut self) {
        self.links.iter_mut().for_each(|(_, link)| link.send());
    }

    /// Takes note that a socket can go on; tells whether it is one of these.
    pub(crate) fn ready(&mut self, ready: Ready) -> bool {
        self.links.iter_mut().any(|(_, link)| link.ready(ready.number, ready.hangup))
    }

    /// Hands over what came of earlier actions. Does not wait. Tells whether there was anything.
    pub(crate) fn reap(&mut self, sockets: &mut Sockets, done: &mut impl FnMut(Token, Outcome)) -> bool {
        let mut any = false;
        for (_, link) in &mut self.links {
            any |= link.receive(&mut self.scratch, sockets);
            while let Some(ended) = link.next_ended() {
                any = true;
                let token = Token(ended.order.tag);
                done(token, ended.outcome());
            }
        }
        any
    }

    /// Has nothing wait for a connection that is lost.
    pub(crate) fn hurry(&mut self) {
        self.links.iter_mut().for_each(|(_, link)| link.hurry());
    }
}

/// The error of a system call as core knows it.
fn errno_of(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno)
}
