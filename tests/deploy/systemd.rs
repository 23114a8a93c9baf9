//! The units.

use std::process::Command;

use crate::{cdc, files, said, stem};

#[test]
fn units_are_understood_hardened_and_start_what_there_is() {
    let folder = tempfile::tempdir().unwrap();
    for path in files("systemd", "service") {
        let text = std::fs::read_to_string(&path).unwrap();
        let role = stem(&path).strip_prefix("cdc-").unwrap();
        assert!(text.contains(&format!("\nExecStart=/usr/local/bin/cdc {role} /etc/cdc/cdc.yaml\n")), "{text}");
        assert!(said(cdc().args([role, "--help"])).ok);

        // It looks for the program, too.
        let unit = folder.path().join(path.file_name().unwrap());
        let installed = cdc().get_program().to_str().unwrap().to_owned();
        std::fs::write(&unit, text.replace("/usr/local/bin/cdc", &installed)).unwrap();
        let verified = said(Command::new("systemd-analyze").arg("verify").arg(&unit));
        assert!(verified.ok && verified.text.is_empty(), "{}: {}", path.display(), verified.text);
        let judged =
            said(Command::new("systemd-analyze").args(["security", "--offline=true", "--threshold=15"]).arg(&unit));
        assert!(judged.ok, "{}: {}", path.display(), judged.text);
    }
}
