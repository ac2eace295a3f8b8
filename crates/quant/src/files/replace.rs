//! Files that are whole or not there.

use super::error::{Error, Result};
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const PREFIX: &str = ".writing-";
/// A temporary file that nobody has written to for so long is a killed process's.
const ABANDONED: Duration = Duration::from_secs(3600);

/// A temporary file; dropped, it is removed.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // After the rename it is gone, and tidying is no reason to fail.
        let _ = fs::remove_file(&self.0);
    }
}

/// Lets `write` fill a temporary file in the folder of `path`, syncs it, and gives it its name in one
/// step: a full disk or a kill leaves whatever was there before.
///
/// # Errors
/// The system's, naming `path`.
pub(crate) fn replace(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>,
) -> Result<()> {
    let io = |source| Error::io(path, source);
    let (file, temporary) = create(path).map_err(io)?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    write(&mut out).map_err(io)?;
    let file = out.into_inner().map_err(|error| io(error.into_error()))?;
    file.sync_all().map_err(io)?;
    drop(file);
    fs::rename(&temporary.0, path).map_err(io)?;
    // The name is on disk when its folder is; not every system can sync one.
    if let Ok(folder) = File::open(folder(path)) {
        let _ = folder.sync_all();
    }
    Ok(())
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// A new file beside `path`, under a name of its own.
fn create(path: &Path) -> std::io::Result<(File, Temporary)> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    remove_abandoned(folder(path));
    let process = std::process::id();
    loop {
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = folder(path).join(format!("{PREFIX}{process}-{count}"));
        match File::create_new(&name) {
            Ok(file) => return Ok((file, Temporary(name))),
            // Left by a killed process that had our number.
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
}

/// Removes what killed processes left half written, as large as it may be.
fn remove_abandoned(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let ours = entry.file_name().to_string_lossy().starts_with(PREFIX);
        let age = || entry.metadata().ok()?.modified().ok()?.elapsed().ok();
        if ours && age().is_some_and(|age| age > ABANDONED) {
            // Tidying is no reason to fail.
            let _ = fs::remove_file(entry.path());
        }
    }
}
