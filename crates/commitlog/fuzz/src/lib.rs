//! The properties of `../../tests/suite/fuzz.rs`, as fuzz targets call them.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

#[path = "../../tests/suite/fuzz.rs"]
mod fuzz;
#[allow(dead_code, reason = "each suite of tests uses its own part")]
#[path = "../../tests/suite/support.rs"]
mod support;

macro_rules! targets {
    ($($name:ident),*) => {
        $(pub fn $name(data: &[u8]) {
            fuzz::$name(data);
        })*

        pub mod seeds {
            $(pub fn $name() -> Vec<Vec<u8>> {
                crate::fuzz::seeds::$name()
            })*
        }
    };
}

targets!(header, mutation, schema, sections, segment, values);

/// Writes what to start from into the folder the environment names, as libFuzzer comes up and before it reads that
/// folder: made from the golden files at every run, so that they cannot be out of date.
pub fn write_seeds(seeds: fn() -> Vec<Vec<u8>>) {
    let Some(folder) = std::env::var_os("FUZZ_SEEDS") else { return };
    for (number, seed) in seeds().into_iter().enumerate() {
        std::fs::write(std::path::Path::new(&folder).join(format!("golden-{number}")), seed).unwrap();
    }
}
