//! The simulated executor, and the suite that every executor passes.

pub mod cases;
mod compute;
pub mod disk;
pub mod explore;
pub mod fault;
pub mod hyperv;
pub mod lie;
pub mod meter;
pub mod model;
pub mod over_nbd;
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
pub mod wire;
pub mod world;

/// The words of a panic.
pub fn panicked(panic: &(dyn std::any::Any + Send)) -> String {
    let words = panic.downcast_ref::<String>().map(String::as_str);
    let words = words.or_else(|| panic.downcast_ref::<&str>().copied());
    format!("panic: {}", words.unwrap_or("without words"))
}
