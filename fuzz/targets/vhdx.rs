//! A VHDX image with any headers, regions, metadata, BAT and log.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| drystone_fuzz::targets::vhdx(data));
