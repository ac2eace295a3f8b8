//! What can go wrong with adapters.

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Of the model, its files, or libtorch.
    #[error(transparent)]
    Nn(#[from] ferrotune_nn::Error),
    /// A setting that cannot be.
    #[error("adapter configuration: {0}")]
    Config(String),
    /// A pattern that is no regular expression.
    #[error("pattern `{pattern}`: {source}")]
    Pattern {
        /// The pattern, anchored.
        pattern: String,
        /// Why.
        source: regex::Error,
    },
    /// No linear is a target.
    #[error("target_modules {targets} matches none of the model's linears; there are {known}")]
    NoTarget {
        /// The setting.
        targets: String,
        /// The last parts of the linears' paths.
        known: String,
    },
    /// Merging would change more than the target.
    #[error("the adapter of `{path}` cannot be merged: its weight is `{other}` too")]
    Tied {
        /// The target.
        path: String,
        /// Where else its weight stands.
        other: String,
    },
    /// The model has an adapter of that name already.
    #[error("the model already has an adapter `{0}`")]
    Taken(String),
    /// The model has no adapter of that name.
    #[error("the model has no adapter `{0}`")]
    Unknown(String),
}

impl From<ferrotune_nn::libtorch::Error> for Error {
    fn from(error: ferrotune_nn::libtorch::Error) -> Self {
        Error::Nn(error.into())
    }
}

impl From<ferrotune_nn::libtorch::tch::TchError> for Error {
    fn from(error: ferrotune_nn::libtorch::tch::TchError) -> Self {
        Error::Nn(error.into())
    }
}
