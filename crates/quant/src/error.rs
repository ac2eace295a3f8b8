//! What can go wrong, each with the numbers that say where.

use alloc::{boxed::Box, string::String};

/// A result of this crate.
pub type Result<T, E = Error> = core::result::Result<T, E>;

/// Why an operation was refused. Nothing was written that a caller could take for a result.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A slice of another length than the shape asks for.
    #[error("{what}: {found} elements, expected {expected}")]
    Length {
        /// Which slice.
        what: &'static str,
        /// What the shape asks for.
        expected: usize,
        /// What was given.
        found: usize,
    },
    /// Two things whose shapes do not go together.
    #[error("{operation}: {left_name} is {left:?}, {right_name} is {right:?}")]
    Shapes {
        /// What was to be done.
        operation: &'static str,
        /// The first operand.
        left_name: &'static str,
        /// Its shape.
        left: [usize; 2],
        /// The second operand.
        right_name: &'static str,
        /// Its shape.
        right: [usize; 2],
    },
    /// A block or group size that a format does not have, or that does not fit the matrix.
    #[error("{format}: a block of {block} {reason} (the matrix has {cols} columns)")]
    Block {
        /// The format.
        format: &'static str,
        /// The size.
        block: usize,
        /// Columns of the matrix, 0 before there is one.
        cols: usize,
        /// What is the matter with it.
        reason: &'static str,
    },
    /// A weight or activation that is NaN or infinite.
    #[error("element {index} (row {row}, column {col}) is {value}: non-finite values are refused")]
    NonFinite {
        /// Its place in the matrix, row by row.
        index: usize,
        /// Its row.
        row: usize,
        /// Its column.
        col: usize,
        /// Its value.
        value: f32,
    },
    /// A stored value that no quantizer writes: a NaN scale, a code beyond its table.
    #[error("{what} {index} is {value}: {reason}")]
    Stored {
        /// Which values.
        what: &'static str,
        /// The place.
        index: usize,
        /// What stands there.
        value: f64,
        /// What is the matter with it.
        reason: &'static str,
    },
    /// A combination that this crate does not have.
    #[error("{operation}: {reason}")]
    Unsupported {
        /// What was to be done.
        operation: &'static str,
        /// Why it cannot be.
        reason: String,
    },
    /// Instructions that this processor, or this build, does not have.
    #[error("this processor or build has no {isa} kernels; it has {available}")]
    Isa {
        /// What was asked for.
        isa: &'static str,
        /// What there is.
        available: String,
    },
    /// A calibration that found no solution.
    #[error("{method}: {reason}")]
    Calibration {
        /// The method.
        method: &'static str,
        /// What is the matter.
        reason: String,
    },
    /// What happened to one tensor.
    #[error("{tensor}: {source}")]
    Tensor {
        /// Its name.
        tensor: String,
        /// What happened.
        source: Box<Error>,
    },
}

impl Error {
    /// Says which tensor an error is about.
    #[must_use]
    pub fn named(self, tensor: impl Into<String>) -> Self {
        Self::Tensor {
            tensor: tensor.into(),
            source: Box::new(self),
        }
    }
}

/// Refuses a slice of another length.
pub(crate) fn length(what: &'static str, expected: usize, found: usize) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(Error::Length {
        what,
        expected,
        found,
    })
}
