//! The shared suite on a thread without a runtime.

#[path = "suite/mod.rs"]
mod cases;

cases::suite!(drystone_exec_linux::run);
