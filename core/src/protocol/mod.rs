//! Protocols between programs, as explicit state machines: bytes in, bytes out, no sockets and no clock.
//!
//! Owns what the bytes mean and in which order they may come. Refuses to know where they come from. Start at
//! [`nbd`].

pub mod nbd;
