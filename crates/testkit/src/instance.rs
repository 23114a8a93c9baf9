//! The folder of one instance, and its end.
//!
//! Its owner holds a lock on the folder's `lock` file for as long as it lives, so a folder whose lock can be taken is an
//! orphan. Orphans are removed whenever a new instance is made, unless they hold a `kept` file and are young.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::{Error, place};

/// How long the files of a failed test stay.
const KEPT_FOR: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug)]
pub(crate) struct Instance {
    path: PathBuf,
    keep: AtomicBool,
    _lock: File,
}

impl Instance {
    pub(crate) fn new(kind: &str) -> Result<Self, Error> {
        let root = place::run_dir()?.join("instances");
        place::make_dir(&root, 0o755)?;
        let gate = lock_file(&root.join("lock"))?;
        gate.lock().map_err(Error::io("lock", root.join("lock")))?;
        let orphans = orphans(&root)?;
        let path = root.join(format!("{kind}-{}", place::random_name()?));
        place::make_dir(&path, 0o755)?;
        let lock = lock_file(&path.join("lock"))?;
        lock.lock().map_err(Error::io("lock", path.join("lock")))?;
        drop(gate);
        for orphan in orphans {
            // Another user's or a file system's trouble is not this instance's.
            drop(place::remove_dir(&orphan));
        }
        Ok(Self { path, keep: AtomicBool::new(false), _lock: lock })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Holds also if it is never dropped, as in a static.
    pub(crate) fn keep(&self) {
        self.keep.store(true, Ordering::Relaxed);
        drop(place::write(&self.path.join("kept"), ""));
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if self.keep.load(Ordering::Relaxed) || std::thread::panicking() {
            drop(place::write(&self.path.join("kept"), ""));
            drop(writeln!(std::io::stderr(), "kept: {}", self.path.display()));
        } else {
            drop(place::remove_dir(&self.path));
        }
    }
}

fn lock_file(path: &Path) -> Result<File, Error> {
    File::options().create(true).append(true).open(path).map_err(Error::io("open", path))
}

/// Renames orphans out of the way, which is quick, so that their removal needs no lock.
fn orphans(root: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut orphans = Vec::new();
    for entry in fs::read_dir(root).map_err(Error::io("list", root))?.flatten() {
        let path = entry.path();
        if !path.is_dir() {
            continue;
        }
        let young = |meta: fs::Metadata| meta.modified().is_ok_and(|at| at.elapsed().is_ok_and(|age| age < KEPT_FOR));
        let kept = fs::metadata(path.join("kept")).is_ok_and(young);
        let owned = File::open(path.join("lock")).is_ok_and(|file| file.try_lock().is_err());
        if kept || owned {
            continue;
        }
        let orphan = path.with_extension("orphan");
        if fs::rename(&path, &orphan).is_ok() {
            orphans.push(orphan);
        }
    }
    Ok(orphans)
}
