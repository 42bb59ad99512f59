//! The shared suite on tokio.

#[path = "../../exec-linux/tests/suite/mod.rs"]
mod cases;

cases::suite!(drystone_exec_tokio::run);
