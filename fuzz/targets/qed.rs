//! A QED image with any header and tables.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| drystone_fuzz::targets::qed(data));
