//! Calibrated quantization: weights `[out, in]` rounded so that the layer's outputs change little on
//! activations that it has seen, in any [`Format`] whose groups lie within rows.
//!
//! | | what it does | what comes out |
//! |---|---|---|
//! | [`round_to_nearest`] | each weight for itself | the weights |
//! | [`gptq()`] | a column's error is made good by the columns after it | the weights |
//! | [`awq()`] | channels with large activations are scaled up before they are rounded | the weights, and what to divide the activations by |
//!
//! Activations are only seen through their [`Gram`] matrix, so they can be streamed. All methods state
//! the output error `‖(W − Ŵ) Xᵀ‖² ÷ ‖W Xᵀ‖²` of their result beside that of rounding to nearest.
//!
//! ```
//! use ferrotune_quant::calibrate::{self, Gram};
//! use ferrotune_quant::{Cpu, Nf4, View};
//!
//! let cpu = Cpu::detect();
//! let w: Vec<f32> = (0..8 * 64).map(|i| (i as f32 * 0.7).sin()).collect();
//! let w = View::new(&w, 8, 64)?;
//! let x: Vec<f32> = (0..200 * 64).map(|i| (i as f32 * 0.013).sin() + (i as f32).cos()).collect();
//!
//! let mut gram = Gram::new(64)?;
//! gram.add(View::new(&x, 200, 64)?, &cpu)?; // as often as there are batches
//!
//! let nearest = calibrate::round_to_nearest(Nf4::new(64)?, w, &cpu)?;
//! let values = nearest.dequantize(&cpu);
//! let error = calibrate::output_error(w, View::new(&values, 8, 64)?, &gram, &cpu)?;
//! let gptq = calibrate::gptq(Nf4::new(64)?, w, &gram, Default::default(), &cpu)?;
//! let awq = calibrate::awq(Nf4::new(64)?, w, &gram, Default::default(), &cpu)?;
//! assert_eq!(gptq.report.rtn_error, error.relative());
//! assert!(gptq.report.error < error.relative() && awq.report.error <= error.relative());
//! # Ok::<(), ferrotune_quant::Error>(())
//! ```

mod awq;
mod cholesky;
mod clip;
mod columns;
mod feedback;
mod gptq;
mod gram;
mod triangle;

pub use awq::{Awq, AwqOptions, awq};
pub use gptq::{Gptq, GptqOptions, gptq};
pub use gram::Gram;

use crate::cpu::Cpu;
use crate::element::Element;
use crate::error::{Error, Result};
use crate::format::{Format, Grouping, Quantized};
use crate::view::View;
use gram::{energy, refuse_non_finite};

/// Errors of a layer's output, see [`OutputError::relative`].
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Report {
    /// Of the method.
    pub error: f64,
    /// Of rounding to nearest in the same format.
    pub rtn_error: f64,
}

impl Report {
    fn new<F: Format, T: Element>(
        weights: View<T>,
        gram: &Gram,
        quantized: &Quantized<F>,
        nearest: &Quantized<F>,
        cpu: &Cpu,
    ) -> Self {
        let signal = signal(weights, gram, cpu);
        let error = |quantized: &Quantized<F>| {
            let (cols, values) = (weights.cols(), quantized.dequantize(cpu));
            let of = |row: usize| &values[row * cols..(row + 1) * cols];
            relative(noise(weights, of, gram, cpu), signal)
        };
        Self {
            error: error(quantized),
            rtn_error: error(nearest),
        }
    }
}

/// The error of a layer's output over all activations of a [`Gram`] matrix.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OutputError {
    /// `‖(W − Ŵ) Xᵀ‖² = tr((W − Ŵ) H (W − Ŵ)ᵀ)`.
    pub noise: f64,
    /// `‖W Xᵀ‖² = tr(W H Wᵀ)`.
    pub signal: f64,
}

impl OutputError {
    /// Noise over signal; 0 where there is neither.
    pub fn relative(self) -> f64 {
        relative(self.noise, self.signal)
    }
}

/// The error of a layer's output with `approximation` in the place of `weights`, both `[out, in]`, on the
/// activations of `gram`.
///
/// # Errors
/// Shapes that differ, no activations, a value that is not finite.
pub fn output_error<T: Element, A: Element>(
    weights: View<T>,
    approximation: View<A>,
    gram: &Gram,
    cpu: &Cpu,
) -> Result<OutputError> {
    const METHOD: &str = "output error";
    same_channels(METHOD, weights, gram)?;
    let shape = [weights.rows(), weights.cols()];
    let other = [approximation.rows(), approximation.cols()];
    if shape != other {
        return Err(Error::Shapes {
            operation: METHOD,
            left_name: "weights",
            left: shape,
            right_name: "approximation",
            right: other,
        });
    }
    refuse_non_finite(weights, cpu)?;
    refuse_non_finite(approximation, cpu)?;
    Ok(OutputError {
        noise: noise(weights, |row| approximation.row(row), gram, cpu),
        signal: signal(weights, gram, cpu),
    })
}

/// Rounds each weight to the nearest value that its group has: [`Quantized::new`], under the name that it
/// has beside the other methods.
///
/// # Errors
/// A shape that the format cannot hold; a value that is not finite.
pub fn round_to_nearest<F: Format, T: Element>(
    format: F,
    weights: View<T>,
    cpu: &Cpu,
) -> Result<Quantized<'static, F>> {
    Quantized::new(format, weights, cpu)
}

/// `tr((W − Ŵ) H (W − Ŵ)ᵀ)`.
fn noise<'a, T: Element, A: Element>(
    weights: View<T>,
    approximation: impl Fn(usize) -> &'a [A] + Sync,
    gram: &Gram,
    cpu: &Cpu,
) -> f64 {
    let difference = |row: usize, out: &mut [f64]| {
        let pairs = weights.row(row).iter().zip(approximation(row));
        for (out, (a, b)) in out.iter_mut().zip(pairs) {
            *out = f64::from(a.to_f32()) - f64::from(b.to_f32());
        }
    };
    energy(gram, weights.rows(), difference, cpu)
}

/// `tr(W H Wᵀ)`.
fn signal<T: Element>(weights: View<T>, gram: &Gram, cpu: &Cpu) -> f64 {
    let row = |row: usize, out: &mut [f64]| {
        for (out, weight) in out.iter_mut().zip(weights.row(row)) {
            *out = f64::from(weight.to_f32());
        }
    };
    energy(gram, weights.rows(), row, cpu)
}

fn relative(noise: f64, signal: f64) -> f64 {
    if noise == 0.0 { 0.0 } else { noise / signal }
}

/// Refuses weights and activations that do not go together, and no activations.
fn same_channels<T: Element>(method: &'static str, weights: View<T>, gram: &Gram) -> Result<()> {
    if weights.cols() != gram.cols() {
        return Err(Error::Shapes {
            operation: method,
            left_name: "weights",
            left: [weights.rows(), weights.cols()],
            right_name: "Gram matrix",
            right: [gram.cols(); 2],
        });
    }
    if gram.count() == 0 {
        return Err(Error::Calibration {
            method,
            reason: "no activations were added to the Gram matrix".into(),
        });
    }
    Ok(())
}

/// `[elements of a group, groups of a row]` of a format that calibration supports; refuses what all
/// methods refuse.
fn groups<F: Format, T: Element>(
    method: &'static str,
    format: &F,
    weights: View<T>,
    gram: &Gram,
    cpu: &Cpu,
) -> Result<[usize; 2]> {
    let cols = weights.cols();
    same_channels(method, weights, gram)?;
    format.check(weights.rows(), cols)?;
    refuse_non_finite(weights, cpu)?;
    let group = match format.grouping() {
        Grouping::Tensor | Grouping::Row => cols,
        Grouping::Block(n) => n.min(cols),
        Grouping::Flat(n) if cols.is_multiple_of(n.max(1)) => n,
        Grouping::Flat(n) => {
            return Err(Error::Block {
                format: F::NAME,
                block: n,
                cols,
                reason: "runs across the ends of rows, which calibration does not support",
            });
        }
    };
    let group = group.max(1);
    Ok([group, cols.div_ceil(group)])
}
