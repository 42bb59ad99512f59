//! An NBD server whose peer says anything.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| drystone_fuzz::targets::nbd_server(data));
