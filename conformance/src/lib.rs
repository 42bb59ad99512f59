//! The simulated executor, and the suite that every executor passes.

pub mod cases;
pub mod disk;
pub mod fault;
pub mod model;
pub mod qemu;
pub mod real;
pub mod refusals;
pub mod runner;
pub mod scenario;
pub mod sim;
pub mod sparse;
pub mod suite;
pub mod trace;
pub mod upkeep;
pub mod world;
