//! Reads on from a place of a file, and never past its end.

use crate::files::error::{Error, Result};
use crate::files::words::Word;
use std::path::Path;

/// What ggml allows a key to be.
const LONGEST_NAME: u64 = 65_535;

#[derive(Debug, Clone)]
pub(super) struct Cursor<'a, 'p> {
    path: &'p Path,
    bytes: &'a [u8],
    at: usize,
}

impl<'a, 'p> Cursor<'a, 'p> {
    pub fn new(path: &'p Path, bytes: &'a [u8]) -> Self {
        Self { path, bytes, at: 0 }
    }

    pub fn path(&self) -> &'p Path {
        self.path
    }

    pub fn at(&self) -> usize {
        self.at
    }

    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// The next `length` bytes, of whatever `what` says.
    pub fn take(&mut self, what: &str, length: usize) -> Result<&'a [u8]> {
        let bytes = self.bytes[self.at..].get(..length);
        let bytes = bytes.ok_or_else(|| self.short(what, length as u64))?;
        self.at += length;
        Ok(bytes)
    }

    pub fn word<T: Word>(&mut self, what: &str) -> Result<T> {
        Ok(T::from_le(self.take(what, size_of::<T>())?))
    }

    /// Refuses a count that the rest of the file has no room for, before anything is allocated for it,
    /// and returns it.
    pub fn fits(&self, what: &str, count: u64, bytes_each: u64) -> Result<usize> {
        let bytes = count.checked_mul(bytes_each);
        match (bytes, usize::try_from(count)) {
            (Some(bytes), Ok(count)) if bytes <= self.left() as u64 => Ok(count),
            _ => {
                let reason = format!(
                    "{what}: {count} of at least {bytes_each} bytes, {} are left",
                    self.left()
                );
                Err(Error::header(self.path, reason))
            }
        }
    }

    /// A string.
    pub fn text(&mut self, what: &str) -> Result<&'a str> {
        let length = self.word::<u64>(what)?;
        let length = self.fits(what, length, 1)?;
        let bytes = self.take(what, length)?;
        core::str::from_utf8(bytes)
            .map_err(|error| Error::header(self.path, format!("{what}: not UTF-8: {error}")))
    }

    /// A key or the name of a tensor.
    pub fn name(&mut self, what: &str) -> Result<&'a str> {
        let name = self.text(what)?;
        if name.len() as u64 > LONGEST_NAME {
            let reason = format!(
                "{what}: a name of {} bytes, {LONGEST_NAME} are allowed",
                name.len()
            );
            return Err(Error::header(self.path, reason));
        }
        Ok(name)
    }

    fn short(&self, what: &str, length: u64) -> Error {
        let reason = format!(
            "cut short: {what} takes {length} bytes at {}, {} are left",
            self.at,
            self.left()
        );
        Error::header(self.path, reason)
    }
}
