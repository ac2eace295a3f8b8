//! What can be the matter with a file, each with its path and the key.

use std::path::{Path, PathBuf};

/// A result of reading or writing files.
pub type Result<T, E = Error> = core::result::Result<T, E>;

/// Why a file was refused, or could not be written. Nothing bears the name of a file that was not
/// written whole.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The system's.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A file that is not what its name says, or was cut short.
    #[error("{}: {reason}", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// What is the matter, with the numbers.
        reason: String,
    },
    /// A tensor that is not there.
    #[error("{}: there is no tensor {key}", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// The tensor.
        key: String,
    },
    /// A tensor of another type than the format has.
    #[error("{}: {key} is {found}, expected {expected}", path.display())]
    Dtype {
        /// The file.
        path: PathBuf,
        /// The tensor.
        key: String,
        /// Its type.
        found: String,
        /// The format's.
        expected: String,
    },
    /// A tensor of another shape than the format and its other parts ask for.
    #[error("{}: {key} has the shape {found:?}, expected {expected}", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        key: String,
        /// Its shape.
        found: Vec<usize>,
        /// What was expected.
        expected: String,
    },
    /// A value that the format does not have, or that this crate does not read.
    #[error("{}: {key}: {reason}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// The tensor, or the key of the metadata.
        key: String,
        /// What is the matter with it.
        reason: String,
    },
    /// Parts that do not make a matrix.
    #[error("{}: {key}: {source}", path.display())]
    Matrix {
        /// The file.
        path: PathBuf,
        /// The tensor.
        key: String,
        /// What is the matter.
        source: Box<crate::Error>,
    },
    /// A matrix that a format cannot hold, or a tensor that cannot be written: before there is a file.
    #[error("{key}: {reason}")]
    Unwritable {
        /// The tensor.
        key: String,
        /// What is the matter.
        reason: String,
    },
    /// A matrix that could not be quantized.
    #[error("{key}: {source}")]
    Quantize {
        /// The tensor.
        key: String,
        /// What is the matter.
        source: Box<crate::Error>,
    },
    /// A scheme that there is not.
    #[error("there is no scheme {name:?}; there are {known}")]
    Scheme {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
}

impl Error {
    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io {
            path: path.to_owned(),
            source,
        }
    }

    pub(crate) fn header(path: &Path, reason: impl Into<String>) -> Self {
        Self::Header {
            path: path.to_owned(),
            reason: reason.into(),
        }
    }

    pub(crate) fn content(path: &Path, key: &str, reason: impl Into<String>) -> Self {
        Self::Content {
            path: path.to_owned(),
            key: key.to_owned(),
            reason: reason.into(),
        }
    }

    pub(crate) fn matrix(path: &Path, key: &str, source: crate::Error) -> Self {
        Self::Matrix {
            path: path.to_owned(),
            key: key.to_owned(),
            source: Box::new(source),
        }
    }

    pub(crate) fn unwritable(key: &str, reason: impl Into<String>) -> Self {
        Self::Unwritable {
            key: key.to_owned(),
            reason: reason.into(),
        }
    }

    pub(crate) fn quantize(key: &str, source: crate::Error) -> Self {
        Self::Quantize {
            key: key.to_owned(),
            source: Box::new(source),
        }
    }
}
