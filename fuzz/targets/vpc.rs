//! A VHD image with any footer, header, BAT and bitmaps.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| drystone_fuzz::targets::vpc(data));
