//! What can go wrong between a checkpoint and a forward pass.

use std::path::PathBuf;

/// An error of this crate. Each names its culprit.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// libtorch refused an operation.
    #[error(transparent)]
    Torch(#[from] ferrotune_libtorch::Error),
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file is not the safetensors it claims to be.
    #[error("{}: not a valid safetensors file: {reason}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What its header or length contradicts.
        reason: String,
    },
    /// A JSON file does not parse.
    #[error("{}: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Line, column and reason.
        source: serde_json::Error,
    },
    /// A tensor that the model needs is not in the checkpoint.
    #[error("tensor `{name}` is missing in {}", path.display())]
    Missing {
        /// The tensor.
        name: String,
        /// The checkpoint.
        path: PathBuf,
    },
    /// A tensor has another shape than the configuration demands.
    #[error("tensor `{name}` in {} has shape {found:?}, the configuration demands {expected:?}", path.display())]
    Shape {
        /// The tensor.
        name: String,
        /// Its file.
        path: PathBuf,
        /// Shape in the file.
        found: Vec<i64>,
        /// Shape demanded.
        expected: Vec<i64>,
    },
    /// A tensor's dtype does not fit its use.
    #[error("tensor `{name}` in {} has dtype {dtype}, where a float is needed", path.display())]
    Dtype {
        /// The tensor.
        name: String,
        /// Its file.
        path: PathBuf,
        /// Dtype in the file.
        dtype: String,
    },
    /// The checkpoint holds tensors that the model has no place for.
    #[error("{} holds {} tensors that the model does not know, the first is `{}`", path.display(), names.len(), names.first().map_or("", String::as_str))]
    Unexpected {
        /// Their names, sorted.
        names: Vec<String>,
        /// The checkpoint.
        path: PathBuf,
    },
    /// A configuration that cannot be built.
    #[error("configuration: {0}")]
    Config(String),
    /// Operands or arguments that do not fit one another.
    #[error("{0}")]
    Invalid(String),
    /// A module cannot be changed while a graph still holds it.
    #[error("block `{0}` is held by a graph that has not run backward yet")]
    InUse(String),
    /// An error of an adapter, operator, placement or runner of a crate above.
    #[error(transparent)]
    Extension(Box<dyn std::error::Error + Send + Sync>),
}

impl Error {
    /// Wraps the error of a crate above.
    pub fn extension(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Error::Extension(error.into())
    }

    /// A configuration's error with the file that it stands in.
    pub(crate) fn in_file(self, path: &std::path::Path) -> Self {
        match self {
            Error::Config(reason) => Error::Config(format!("{}: {reason}", path.display())),
            other => other,
        }
    }

    /// `source` happened to `path`.
    pub fn io(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Error::Io {
            path: path.into(),
            source,
        }
    }
}

impl From<ferrotune_libtorch::tch::TchError> for Error {
    fn from(error: ferrotune_libtorch::tch::TchError) -> Self {
        Error::Torch(error.into())
    }
}
