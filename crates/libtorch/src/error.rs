//! Errors that fit on a line: the operation, the shapes, and libtorch's own first sentence.

use tch::{TchError, Tensor};

/// What went wrong in libtorch.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An operation failed.
    #[error("{operation}{shapes}: {message}")]
    Operation {
        /// The operation's name.
        operation: String,
        /// The operands, as ` on [2, 3] Float, [4] Int64`; empty if they are not known.
        shapes: String,
        /// libtorch's message, without its C++ frames.
        message: String,
    },
    /// A function written in Rust failed inside libtorch's graph.
    #[error("{0}")]
    Function(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The CUDA libraries could not be loaded.
    #[error("CUDA cannot be turned on: {0}")]
    Cuda(String),
}

impl Error {
    pub(crate) fn operation(operation: &str, tensors: &[&Tensor], message: &str) -> Self {
        Error::Operation {
            operation: operation.to_owned(),
            shapes: shapes(tensors),
            message: first_sentence(message),
        }
    }

    /// Wraps an error of a crate above, for a `Function` or a hook to return.
    pub fn function(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Error::Function(error.into())
    }
}

impl From<TchError> for Error {
    fn from(error: TchError) -> Self {
        Error::Operation {
            operation: "libtorch".to_owned(),
            shapes: String::new(),
            message: first_sentence(&error.to_string()),
        }
    }
}

/// Names the operation and its operands in an error of tch.
pub trait Context<T> {
    /// `operation` failed on `tensors`.
    ///
    /// # Errors
    /// The error itself, now with the operation's name and the operands' shapes.
    fn on(self, operation: &str, tensors: &[&Tensor]) -> Result<T, Error>;
}

impl<T> Context<T> for Result<T, TchError> {
    fn on(self, operation: &str, tensors: &[&Tensor]) -> Result<T, Error> {
        self.map_err(|error| Error::operation(operation, tensors, &error.to_string()))
    }
}

fn shapes(tensors: &[&Tensor]) -> String {
    let list: Vec<String> = tensors
        .iter()
        .map(|tensor| match tensor.defined() {
            true => format!("{:?} {:?}", tensor.size(), tensor.kind()),
            false => "undefined".to_owned(),
        })
        .collect();
    if list.is_empty() {
        String::new()
    } else {
        format!(" on {}", list.join(", "))
    }
}

/// A libtorch message is some thirty lines, of which the first few words matter.
fn first_sentence(message: &str) -> String {
    let text = message
        .split("Exception raised from")
        .next()
        .unwrap_or(message);
    let text = text.split("\nframe #").next().unwrap_or(text).trim();
    let text = text
        .strip_prefix("Internal torch error:")
        .unwrap_or(text)
        .trim();
    text.lines()
        .next()
        .unwrap_or("no message")
        .trim()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    #[test]
    fn an_error_is_one_line_with_operation_and_shapes() {
        let a = Tensor::ones([2, 3], (Kind::Float, Device::Cpu));
        let b = Tensor::ones([4, 5], (Kind::Float, Device::Cpu));
        let error = a.f_matmul(&b).on("matmul", &[&a, &b]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "matmul on [2, 3] Float, [4, 5] Float: mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"
        );
    }
}
