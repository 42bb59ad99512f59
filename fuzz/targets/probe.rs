//! Any bytes as an image whose format is to be found out.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| drystone_fuzz::targets::probe(data));
