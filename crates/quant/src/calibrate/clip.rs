//! Ranges of groups, shrunk where their few largest weights cost the others more than they are worth.

use super::gram::{Gram, ROWS};
use crate::cpu::Cpu;
use crate::error::Result;
use crate::format::{CodeLayout, Extent, Format, Grouping, Quantized, measure};
use crate::parallel::{Parts, for_each};
use crate::simd::{self, Simd, Work};
use crate::view::View;
use alloc::{vec, vec::Vec};
use core::ops::Range;

/// Parts of the range that are tried: 20/20, 19/20, … 10/20.
const RATIOS: Range<usize> = 10..21;

/// Quantizes `weights`, which `nearest` holds rounded to nearest, with each group's range as small as is
/// best for what the group adds to the output of activations divided by `divisors`.
///
/// # Errors
/// None that `nearest` would not have had.
pub(super) fn clipped<F: Format>(
    nearest: &Quantized<'static, F>,
    weights: View<f32>,
    divisors: &[f32],
    group: usize,
    gram: &Gram,
    cpu: &Cpu,
) -> Result<Quantized<'static, F>> {
    if nearest.format().grouping() == Grouping::Tensor {
        return Ok(nearest.clone());
    }
    let [rows, cols] = nearest.shape();
    let groups = cols.div_ceil(group);
    let mut codes = vec![0; nearest.codes().len()];
    let mut scales = nearest.scales().to_vec();
    let (code_parts, scale_parts) = (Parts::new(&mut codes), Parts::new(&mut scales));
    // A group's columns for all rows, so that its part of the Gram matrix is gathered once.
    for g in 0..groups {
        let columns = g * group..cols.min((g + 1) * group);
        let square = square(gram, columns.clone(), divisors);
        for_each(cpu.parallel(), rows.div_ceil(ROWS), 1, |_, range| {
            for item in range {
                for row in item * ROWS..rows.min((item + 1) * ROWS) {
                    let at = row * groups + g;
                    let weights = &weights.row(row)[columns.clone()];
                    let search = Search {
                        format: nearest.format(),
                        tensor: nearest.tensor(),
                        weights,
                        square: &square,
                    };
                    let (scale, found) = simd::run(cpu.isa(), search);
                    let elements = row * cols + columns.start..row * cols + columns.end;
                    let bytes = match F::CODES {
                        CodeLayout::Bytes => elements.clone(),
                        _ => elements.start / 2..elements.end.div_ceil(2),
                    };
                    let first = match F::CODES {
                        CodeLayout::Bytes => 0,
                        _ => elements.start % 2,
                    };
                    // SAFETY: rows are handed out once, 64 at a time, which begin on a byte. Rows among them
                    // and groups of a row come one after another.
                    let (bytes, scales) =
                        unsafe { (code_parts.part(bytes), scale_parts.part(at..at + 1)) };
                    scales[0] = scale;
                    for (i, code) in found.into_iter().enumerate() {
                        super::columns::put::<F>(bytes, first + i, code);
                    }
                }
            }
        });
    }
    Quantized::from_parts(
        nearest.format().clone(),
        [rows, cols],
        nearest.tensor(),
        codes,
        scales,
    )
}

/// The part of the Gram matrix that belongs to some columns of divided activations, row by row.
fn square(gram: &Gram, columns: Range<usize>, divisors: &[f32]) -> Vec<f64> {
    let mut square = Vec::with_capacity(columns.len() * columns.len());
    for i in columns.clone() {
        for j in columns.clone() {
            let divisor = f64::from(divisors[i]) * f64::from(divisors[j]);
            square.push(gram.sums().symmetric(i, j) / divisor);
        }
    }
    square
}

/// The best scale and codes of a group.
struct Search<'a, F: Format> {
    format: &'a F,
    tensor: F::Tensor,
    weights: &'a [f32],
    square: &'a [f64],
}

impl<F: Format> Work for Search<'_, F> {
    type Output = (F::Scale, Vec<u8>);

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> Self::Output {
        let n = self.weights.len();
        // The weights were quantized before, so they are finite.
        let whole = measure(self.weights).unwrap_or(Extent::NOTHING);
        let mut best = (self.format.fit(&self.tensor, whole).0, vec![0; n]);
        let mut least = f64::INFINITY;
        let mut codes = vec![0; n];
        let mut errors = vec![0.0; n];
        for ratio in RATIOS.rev() {
            let ratio = ratio as f32 / 20.0;
            let extent = Extent {
                amax: whole.amax * ratio,
                min: whole.min * ratio,
                max: whole.max * ratio,
                peak: whole.peak * ratio,
                ..whole
            };
            let (scale, encoder) = self.format.fit(&self.tensor, extent);
            for (codes, weights) in codes.chunks_mut(16).zip(self.weights.chunks(16)) {
                // What lies outside the range takes the last code.
                let mut padded = [0.0; 16];
                padded[..weights.len()].copy_from_slice(weights);
                codes.copy_from_slice(&F::encode(&encoder, &padded)[..codes.len()]);
            }
            for ((error, weight), code) in errors.iter_mut().zip(self.weights).zip(&codes) {
                let value = self.format.decode(&self.tensor, scale, *code);
                *error = f64::from(*weight) - f64::from(value);
            }
            let noise = quadratic(self.square, &errors);
            if noise < least {
                least = noise;
                best.0 = scale;
                best.1.copy_from_slice(&codes);
            }
        }
        best
    }
}

/// `v S vᵀ`, summed in eight lanes.
#[inline(always)]
fn quadratic(square: &[f64], v: &[f64]) -> f64 {
    let mut sum = 0.0;
    for (row, value) in square.chunks_exact(v.len()).zip(v) {
        let mut lanes = [0.0; 8];
        let (chunks, rest) = row.as_chunks::<8>();
        let (others, others_rest) = v.as_chunks::<8>();
        for (a, b) in chunks.iter().zip(others) {
            for i in 0..8 {
                lanes[i] += a[i] * b[i];
            }
        }
        for ((lane, a), b) in lanes.iter_mut().zip(rest).zip(others_rest) {
            *lane += a * b;
        }
        sum += value * lanes.iter().sum::<f64>();
    }
    sum
}
