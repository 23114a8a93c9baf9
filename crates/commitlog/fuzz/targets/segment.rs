#![no_main]

libfuzzer_sys::fuzz_target!(
    init: cdc_commitlog_fuzz::write_seeds(cdc_commitlog_fuzz::seeds::segment),
    |data: &[u8]| cdc_commitlog_fuzz::segment(data)
);
