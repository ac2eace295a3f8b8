//! What can go wrong in decoding.

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Of the model.
    #[error(transparent)]
    Nn(#[from] ferrotune_nn::Error),
    /// Of the tokenizer or template.
    #[error(transparent)]
    Text(#[from] ferrotune_text::Error),
    /// A setting that cannot be.
    #[error("sampling: {0}")]
    Sampling(String),
    /// The model computed no logit to choose by.
    #[error("the logit of token {token} is NaN or infinite")]
    NotFinite {
        /// The first token whose logit is NaN, or the best if it is infinite.
        token: usize,
    },
    /// Nothing to continue.
    #[error("the prompt has no tokens")]
    EmptyPrompt,
}

impl From<ferrotune_nn::libtorch::tch::TchError> for Error {
    fn from(error: ferrotune_nn::libtorch::tch::TchError) -> Self {
        Error::Nn(error.into())
    }
}
