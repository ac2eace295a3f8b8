//! Files as memory: pages come when they are read, and go when the system wants them back.

use super::error::{Error, Result};
use std::fs::File;
use std::ops::Deref;
use std::path::{Path, PathBuf};

/// A file that is mapped for reading.
///
/// # While it is mapped
/// nobody may write to the file or cut it short. Bytes that change under a reader are outside of what
/// Rust can promise, and pages past a new end kill the process (SIGBUS on Unix). Files that are replaced
/// by renaming another over them, as this crate and most programs write them, stay what they were for
/// whoever has them mapped. Read files whose writers do otherwise into memory instead: every reader of
/// this module takes bytes.
#[derive(Debug)]
pub struct Mapped {
    path: PathBuf,
    /// None of an empty file, which not every system can map.
    map: Option<memmap2::Mmap>,
}

impl Mapped {
    /// Maps a file.
    ///
    /// # Errors
    /// The system's, naming the file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let io = |source| Error::io(path, source);
        let file = File::open(path).map_err(io)?;
        let length = file.metadata().map_err(io)?.len();
        let map = if length == 0 {
            None
        } else {
            // SAFETY: the map is only read, and this type's documentation asks that nobody writes to
            // the file meanwhile. No safe means could enforce that; every reader checks all lengths
            // against the map, not the file, so a file that lies is harmless.
            Some(unsafe { memmap2::Mmap::map(&file) }.map_err(io)?)
        };
        Ok(Self {
            path: path.to_owned(),
            map,
        })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.map.as_deref().unwrap_or(&[])
    }
}
