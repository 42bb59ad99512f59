//! The shared suite on glommio.

#[path = "../../exec-linux/tests/suite/mod.rs"]
mod cases;

cases::suite!(drystone_exec_glommio::run);
