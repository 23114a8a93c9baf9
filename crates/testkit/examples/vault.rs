//! Builds Vault ahead of the first test that needs it.

use std::io::Write;

fn main() {
    if let Err(error) = cdc_testkit::Vault::build() {
        drop(writeln!(std::io::stderr(), "{error}"));
        std::process::exit(1);
    }
}
