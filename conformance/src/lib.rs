//! The simulated executor, and the suite that every executor passes.

pub mod disk;
pub mod fault;
pub mod sim;
pub mod sparse;
pub mod trace;
pub mod world;
