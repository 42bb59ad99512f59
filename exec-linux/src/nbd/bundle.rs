//! One leaf: its connections to one export, among which its orders are spread.
//!
//! The first is there before the leaf is. Further ones come about beside it, where the server says that what is done
//! through one connection is seen through all (`CAN_MULTI_CONN`); until one is there, and whenever it is lost, the others
//! go on without it. A server that takes no more clients tells so only by its silence, which keeps nobody waiting.
//!
//! A flush goes to one connection, whichever it is: it is about the writes that were answered before it was asked for,
//! through any connection, which is what the server has promised. Source: \[NBD\] "Transmission flags".

use std::os::fd::AsFd;
use std::sync::Arc;

use drystone_core::protocol::nbd::client::{Ended, Order};
use drystone_core::protocol::nbd::layout::TransmissionFlags;
use smallvec::SmallVec;

use super::Sockets;
use super::connect::Connection;
use super::link::Link;
use crate::doorbell::Doorbell;

/// A leaf with its connections.
pub(super) struct Bundle {
    /// At least one.
    links: SmallVec<[Link; 1]>,
}

impl Bundle {
    /// Begins with a connection, and has the further ones made that the location asks for and the server allows.
    pub(super) fn new(
        connection: Connection,
        sockets: &mut Sockets,
        bell: &Arc<Doorbell>,
    ) -> std::io::Result<Self> {
        let number = sockets.add(connection.stream.as_fd())?;
        let (dial, export) = (Arc::clone(&connection.dial), connection.transmission.export().clone());
        let mut links: SmallVec<[Link; 1]> = SmallVec::new();
        links.push(Link::new(connection, number, Arc::clone(bell)));
        if export.flags.has(TransmissionFlags::CAN_MULTI_CONN) {
            let more = 1..dial.location.connections_wanted();
            links.extend(more.map(|_| Link::to_come(Arc::clone(&dial), export.clone(), Arc::clone(bell))));
        }
        Ok(Self { links })
    }

    /// The connection for the next order: the one with the least to do, or the first while there is none.
    fn choice(&self) -> usize {
        let up = self.links.iter().enumerate().filter_map(|(index, link)| Some((link.in_flight()?, index)));
        up.min().map_or(0, |(_, index)| index)
    }

    pub(super) fn has_room(&self) -> bool {
        self.links[self.choice()].has_room()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.links.iter().all(Link::is_idle)
    }

    /// Takes an order; answers it if it fails at once.
    pub(super) fn push(&mut self, order: Order) -> Option<Ended> {
        let choice = self.choice();
        self.links[choice].push(order)
    }

    /// Sends what the sockets take.
    pub(super) fn send(&mut self) {
        self.links.iter_mut().for_each(Link::send);
        self.hand_over();
    }

    /// Takes note that a socket can go on; tells whether it is one of these.
    pub(super) fn ready(&mut self, number: u32, hangup: bool) -> bool {
        let found = self.links.iter_mut().find(|link| link.number() == Some(number));
        found.map(|link| link.ready(hangup)).is_some()
    }

    /// Receives what there is, or new connections. Tells whether there was anything.
    pub(super) fn receive(&mut self, scratch: &mut [u8], sockets: &mut Sockets) -> bool {
        let mut any = false;
        for link in &mut self.links {
            any |= link.receive(scratch, sockets);
        }
        self.hand_over();
        any
    }

    /// Asks for what was lost with a connection through another, where there is one.
    fn hand_over(&mut self) {
        if self.links.len() == 1 {
            return;
        }
        for index in 0..self.links.len() {
            while self.links.iter().any(|link| link.in_flight().is_some())
                && let Some(order) = self.links[index].take_waiting()
            {
                let choice = self.choice();
                let refused = self.links[choice].push(order);
                assert!(refused.is_none(), "a connection that is there takes orders");
            }
        }
    }

    pub(super) fn next_ended(&mut self) -> Option<Ended> {
        self.links.iter_mut().find_map(Link::next_ended)
    }

    /// Has nothing wait for a connection that is lost.
    pub(super) fn hurry(&mut self) {
        self.links.iter_mut().for_each(Link::hurry);
    }

    /// Takes leave of the server.
    pub(super) fn close(self) {
        self.links.into_iter().for_each(Link::close);
    }
}
