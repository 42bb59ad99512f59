//! The server's side: [`Negotiation`] until the client has chosen an [`Export`], [`Transmission`] from then on.
//!
//! Refuses to know what an export is made of: each [`Order`] is somebody else's to carry out, and to
//! [answer](Transmission::answer).

mod export;
mod negotiation;
mod transmission;

pub use export::{Context, Export};
pub use negotiation::{Chosen, Negotiation, Security, Step};
pub use transmission::{Answer, Command, Order, OrderId, Transmission};
