//! The client's side: [`Negotiation`] until an export is chosen, [`Transmission`] from then on, and [`Reconnect`] for
//! when a connection is lost.
//!
//! Refuses to know how a connection comes about; who does gives a new [`Negotiation`] what it receives.

mod chunks;
mod leaf;
mod list;
mod negotiation;
mod reconnect;
mod transmission;

pub use list::Listing;
pub use negotiation::{Encryption, Negotiated, Negotiation, Purpose, Step, Wishes};
pub use reconnect::{Reconnect, Wanted};
pub use transmission::{Command, Ended, Order, Transmission};
