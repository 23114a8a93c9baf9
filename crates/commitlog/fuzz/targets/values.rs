#![no_main]

libfuzzer_sys::fuzz_target!(
    init: cdc_commitlog_fuzz::write_seeds(cdc_commitlog_fuzz::seeds::values),
    |data: &[u8]| cdc_commitlog_fuzz::values(data)
);
