//! The protocol's client and server against each other, over streams of bytes that are cut anywhere, and cut off
//! anywhere; and each against a peer that breaks the rules.

mod hostile;
mod peer;
mod session;
