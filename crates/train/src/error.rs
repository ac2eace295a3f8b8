//! What can stop a training run.

use std::path::PathBuf;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Of the model or its files.
    #[error(transparent)]
    Nn(#[from] ferrotune_nn::Error),
    /// Of an adapter.
    #[error(transparent)]
    Lora(#[from] ferrotune_lora::Error),
    /// Of the data.
    #[error(transparent)]
    Data(#[from] ferrotune_data::Error),
    /// The loss is not a number any more. Nothing was changed in this step.
    #[error("the loss is {loss} at step {step}")]
    Loss {
        /// The step that would have been taken.
        step: u64,
        /// NaN or infinite.
        loss: f64,
    },
    /// The gradients are not finite. Nothing was changed in this step.
    #[error("the gradient norm is {norm} at step {step}")]
    Gradient {
        /// The step that would have been taken.
        step: u64,
        /// NaN or infinite.
        norm: f64,
    },
    /// A batch in which no token counts.
    #[error("at step {step} no token of the batch counts for the loss")]
    NoTarget {
        /// The step.
        step: u64,
    },
    /// Nothing in the model trains.
    #[error("no parameter of the model is trainable")]
    NothingTrains,
    /// A setting that cannot be.
    #[error("{0}")]
    Config(String),
    /// A checkpoint that cannot be resumed from.
    #[error("checkpoint {}: {reason}", path.display())]
    Checkpoint {
        /// Its folder.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
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
