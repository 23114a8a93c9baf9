//! Pins a release: downloads it as it is now and writes its manifest. Review the difference before committing it.

use std::io::Write;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [name, version] = args.as_slice() else {
        drop(writeln!(std::io::stderr(), "usage: pin cassandra|kafka|postgresql VERSION"));
        std::process::exit(64);
    };
    let path = format!("{}/artifacts/{name}-{version}.sha256", env!("CARGO_MANIFEST_DIR"));
    let pinned = cdc_testkit::pin(name, version).map_err(|err| err.to_string());
    if let Err(err) = pinned.and_then(|text| std::fs::write(&path, text).map_err(|err| format!("write {path}: {err}")))
    {
        drop(writeln!(std::io::stderr(), "{err}"));
        std::process::exit(1);
    }
}
