//! How far a product may be from the exact one, derived and not measured.
//!
//! The exact product of a row of activations `x` with a row of weights is the real number Σ wᵢ·xᵢ, where
//! `w = (level · scale + shift) · factor` are the weights that the codes stand for (quantizing the
//! weights is the format's error, not the product's). With u = 2⁻²⁴ and γ(k) = k·u ÷ (1 − k·u), the
//! computed one differs by at most
//!
//! | mode | bound |
//! |---|---|
//! | f32 | γ(n + 4) · Σ \|w·x\| |
//! | bf16 | (2⁻⁷ + 2⁻¹⁶ + γ(n + 6)) · Σ \|w·x\| |
//! | int8 | Σ \|w\| · (½ + 2⁻¹⁴) · s, where s is the scale of an activation, and for tables Σ \|w − w′\| · \|x′\| with the weights w′ and activations x′ that int8 holds, and γ(3g + 6) · Σ \|w′·x′\| for g groups |
//!
//! An f32 product rounds once for each of n terms; a bf16 one rounds both factors to 8 bits first; an
//! int8 one rounds activations to 127 steps, and a table's entries to whole steps of its unit.
//!
//! To these comes what is lost where numbers become denormal, as much as each such number can lose: at most
//! 2⁻¹⁴⁹, and in bf16, where processors take denormals for zero, 2⁻¹²⁶. The bound is infinite where the
//! product may overflow, or a sum on the way to it.

use crate::activations::Mode;
use crate::element::Element;
use crate::error::{Error, Result, length};
use crate::format::{Levels, amax};
use crate::packed::{Packed, level};

impl Packed<'_> {
    /// The largest possible error of each element of a product in a mode, for one row of activations:
    /// see the [module](self). As slow as a product in plain Rust.
    ///
    /// # Errors
    /// `x` or `bounds` of another length; a value that is not finite; an int8 mode for weights that are
    /// 8-bit floats; [`Mode::LlmInt8`], whose bound depends on the other rows' outliers.
    pub fn error_bounds<T: Element>(&self, mode: Mode, x: &[T], bounds: &mut [f64]) -> Result<()> {
        let [rows, cols] = self.shape();
        length("activations", cols, x.len())?;
        length("bounds", rows, bounds.len())?;
        let unsupported = mode == Mode::LlmInt8
            || (mode.is_int8() && matches!(self.structure.levels, Levels::Bytes(_)));
        if unsupported {
            return Err(Error::Unsupported {
                operation: "error bound",
                reason: alloc::format!("{mode:?} for {:?}", self.structure.scales),
            });
        }
        let non_finite = |col: usize| Error::NonFinite {
            index: col,
            row: 0,
            col,
            value: x[col].to_f32(),
        };
        let whole = amax(x).map_err(non_finite)?;
        for (row, bound) in bounds.iter_mut().enumerate() {
            *bound = match mode {
                Mode::F32 | Mode::Bf16 => self.float_bound(mode, row, x),
                _ => self.int8_bound(mode, row, x, whole),
            };
        }
        Ok(())
    }

    fn float_bound<T: Element>(&self, mode: Mode, row: usize, x: &[T]) -> f64 {
        let factor = f64::from(self.structure.factor).abs();
        // Sums of magnitudes. The factor is applied at the end, so it is left out of the weights.
        let (mut terms, mut weights, mut values, mut largest) = (0.0, 0.0, 0.0, 0.0);
        for (col, x) in x.iter().enumerate() {
            let (w, x) = (self.weight(row, col).0.abs(), f64::from(x.to_f32()).abs());
            (terms, weights, values) = (terms + w * x, weights + w, values + x);
            largest = w.max(x).max(largest);
        }
        let n = x.len() as f64;
        let (relative, lost) = match mode {
            Mode::Bf16 => {
                let relative = 2_f64.powi(-7) + 2_f64.powi(-16) + gamma(x.len() + 6);
                (relative, FLUSHED * (n + values + weights))
            }
            _ => (gamma(x.len() + 4), DENORMAL * (n + values)),
        };
        if largest.max(terms).max(factor * terms) >= OVERFLOW {
            return f64::INFINITY;
        }
        factor * (relative * terms + lost) + DENORMAL
    }

    /// A weight as it is, and as an int8 product holds it, without the matrix's factor.
    fn weight(&self, row: usize, col: usize) -> (f64, f64) {
        let (scale, shift) = self.affine(row, col / self.structure.group);
        let code = self.code(row, col);
        let value = |level: f64| level * f64::from(scale) + f64::from(shift);
        let held = match &self.structure.levels {
            Levels::Table { steps, unit, .. } => {
                f64::from(steps[usize::from(code)]) * f64::from(*unit)
            }
            levels => f64::from(level(levels, code)),
        };
        (
            value(f64::from(level(&self.structure.levels, code))),
            value(held),
        )
    }

    fn int8_bound<T: Element>(&self, mode: Mode, row: usize, x: &[T], whole: f32) -> f64 {
        let factor = f64::from(self.structure.factor).abs();
        let unit = match &self.structure.levels {
            Levels::Table { unit, .. } => f64::from(*unit).abs(),
            _ => 1.0,
        };
        let (mut bound, mut magnitude, mut lost, mut sums) = (0.0, 0.0, 0.0, 0.0);
        // Of a group's two scales, or its shift and the sum of its activations.
        let mut product: f64 = 0.0;
        for (group, values) in x.chunks(self.structure.group).enumerate() {
            let amax = match mode {
                Mode::Int8PerRow => whole,
                _ => amax(values).unwrap_or(0.0),
            };
            // What a group of denormals loses is all of it.
            let step = if (127.0 / amax).is_finite() {
                f64::from(amax) / 127.0 * (0.5 + 2_f64.powi(-14))
            } else {
                f64::from(amax)
            };
            for (i, x) in values.iter().enumerate() {
                let (exact, held) = self.weight(row, group * self.structure.group + i);
                let x = f64::from(x.to_f32()).abs() + step;
                bound += exact.abs() * step + (exact - held).abs() * x;
                magnitude += held.abs() * x;
            }
            // The largest sum of integers, and what the scales and shifts make of it.
            let (scale, shift) = self.affine(row, group);
            let (scale, shift) = (f64::from(scale).abs(), f64::from(shift).abs());
            let integers = values.len() as f64 * 127.0;
            let sum = integers * (128.0 * scale + shift);
            sums += sum;
            product = product.max(scale.max(shift * integers) * 2.0 * step);
            // Three roundings of scales, of what they multiply, and of the sum.
            lost += DENORMAL
                * (2.0 + integers * 128.0 * (1.0 + scale) + shift * (1.0 + integers) + sum);
        }
        let largest = (magnitude / unit.min(1.0)).max(factor * magnitude);
        let on_the_way = if mode == Mode::Int8PerRow {
            sums
        } else {
            product
        };
        if largest.max(on_the_way) >= OVERFLOW {
            return f64::INFINITY;
        }
        // What is lost before the last factors grows with them.
        let scale = if mode == Mode::Int8PerRow {
            f64::from(whole) / 127.0
        } else {
            1.0
        };
        let last = (factor * unit).max(1.0) * scale.max(1.0);
        factor * (bound + gamma(3 * self.groups() + 6) * magnitude) + last * (lost + DENORMAL)
    }
}

/// The least that a float can be off where it is not exact.
const DENORMAL: f64 = f32::from_bits(1) as f64;
/// What processors take for zero in bf16 is below this.
const FLUSHED: f64 = f32::MIN_POSITIVE as f64;
/// What may round to infinity, in bf16 too.
const OVERFLOW: f64 = 3.3e38;

fn gamma(k: usize) -> f64 {
    let ku = k as f64 * 2_f64.powi(-24);
    ku / (1.0 - ku)
}
