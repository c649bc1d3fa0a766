#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| snapvol_fuzz::run("nbd", bytes));
