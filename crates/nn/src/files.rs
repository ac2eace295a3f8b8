//! Files that are whole or not there.

use crate::{Error, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

const PREFIX: &str = ".writing-";
/// A temporary file that nobody has written to for so long is a killed process's.
const ABANDONED: Duration = Duration::from_secs(3600);

/// A file that is on disk whole but does not bear its name yet. Dropped, it is removed.
#[derive(Debug)]
pub struct Staged {
    temporary: tempfile::TempPath,
    path: PathBuf,
}

/// Lets `write` fill a temporary file beside `path` and syncs it: after this only a rename is left.
///
/// # Errors
/// The system's, naming `path`.
pub fn stage(path: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<Staged> {
    let io = |source| Error::io(path, source);
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    remove_abandoned(folder);
    let mut builder = tempfile::Builder::new();
    builder.prefix(PREFIX);
    // A temporary file is private by default; a checkpoint is as open as the umask lets it be.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let temporary = builder.tempfile_in(folder).map_err(io)?.into_temp_path();
    write(&temporary)?;
    // `write` may have put another file under the name, so sync what stands there now.
    fs::File::open(&temporary)
        .and_then(|file| file.sync_all())
        .map_err(io)?;
    Ok(Staged {
        temporary,
        path: path.to_owned(),
    })
}

impl Staged {
    /// Gives the file its name; one that had it before is replaced in the same instant.
    ///
    /// # Errors
    /// The system's, naming the file.
    pub fn commit(self) -> Result<()> {
        self.temporary
            .persist(&self.path)
            .map_err(|error| Error::io(self.path, error.error))
    }
}

/// [`stage`] and [`Staged::commit`]: a full disk or a kill leaves whatever was there before.
///
/// # Errors
/// The system's, naming `path`.
pub fn replace(path: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    stage(path, write)?.commit()
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

/// [`stage`]s `value` as JSON with an indent of two.
///
/// # Errors
/// The system's, naming `path`.
pub fn stage_json(path: &Path, value: &impl serde::Serialize) -> Result<Staged> {
    let mut text = serde_json::to_vec_pretty(value).map_err(|source| Error::Json {
        path: path.to_owned(),
        source,
    })?;
    text.push(b'\n');
    stage(path, |temporary| {
        fs::write(temporary, &text).map_err(|source| Error::io(path, source))
    })
}

/// Writes `value` as JSON with an indent of two, whole or not at all.
///
/// # Errors
/// The system's, naming `path`.
pub fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<()> {
    stage_json(path, value)?.commit()
}

/// Reads a JSON file.
///
/// # Errors
/// A file that is not there or does not parse, with line and column.
pub fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = fs::read(path).map_err(|source| Error::io(path, source))?;
    serde_json::from_slice(&bytes).map_err(|source| Error::Json {
        path: path.to_owned(),
        source,
    })
}
