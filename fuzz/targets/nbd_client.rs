//! An NBD client whose peer says anything.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| drystone_fuzz::targets::nbd_client(data));
