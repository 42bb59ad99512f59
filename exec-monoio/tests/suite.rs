//! The shared suite on monoio.

#[path = "../../exec-linux/tests/suite/mod.rs"]
mod cases;

cases::suite!(drystone_exec_monoio::run);
