//! Files that are whole or not there.

use crate::{Error, Result};
use std::path::Path;

/// Lets `write` fill a temporary file beside `path`, syncs it, and renames it into place: a full
/// disk or a kill leaves whatever was there before.
///
/// # Errors
/// The system's, naming `path`.
pub fn replace(path: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let temporary = tempfile::Builder::new()
        .prefix(".writing-")
        .tempfile_in(folder)
        .map_err(|source| Error::io(path, source))?;
    write(temporary.path())?;
    // `write` may have put another file under the name, so sync what stands there now.
    std::fs::File::open(temporary.path())
        .and_then(|file| file.sync_all())
        .map_err(|source| Error::io(path, source))?;
    temporary
        .persist(path)
        .map_err(|error| Error::io(path, error.error))?;
    Ok(())
}

/// Writes `value` as JSON with an indent of two, whole or not at all.
///
/// # Errors
/// The system's, naming `path`.
pub fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(value).map_err(|source| Error::Json {
        path: path.to_owned(),
        source,
    })?;
    text.push(b'\n');
    replace(path, |temporary| {
        std::fs::write(temporary, &text).map_err(|source| Error::io(path, source))
    })
}

/// Reads a JSON file.
///
/// # Errors
/// A file that is not there or does not parse, with line and column.
pub fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = std::fs::read(path).map_err(|source| Error::io(path, source))?;
    serde_json::from_slice(&bytes).map_err(|source| Error::Json {
        path: path.to_owned(),
        source,
    })
}
