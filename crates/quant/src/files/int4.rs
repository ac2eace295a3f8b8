//! What GPTQ and AWQ have in common: codes of 4 bits, eight to a word of 32, and a scale and a zero
//! point for each group of input channels.

use crate::{Element, Error, Levels, Result, ScaleType, Structure, View, f16};

/// The code in place `k` of a word, from its lowest bits.
pub(crate) fn nibble(word: i32, k: usize) -> u8 {
    (word.cast_unsigned() >> (4 * k)) as u8 & 15
}

/// A word of eight codes, the first in its lowest bits.
pub(crate) fn word(codes: impl IntoIterator<Item = u8>) -> i32 {
    let codes = codes.into_iter().zip((0..32).step_by(4));
    let word = codes.fold(0, |word, (code, shift)| {
        word | u32::from(code & 15) << shift
    });
    word.cast_signed()
}

/// A matrix `[out, in]` of codes with groups of `in`; the methods that have a body are those of
/// [`crate::Matrix`].
pub(crate) trait Grouped {
    fn inputs(&self) -> usize;
    /// Channels of a group.
    fn group(&self) -> usize;
    fn group_of(&self, channel: usize) -> usize;
    fn is_in_order(&self) -> bool;
    /// Whether scales are exact in f16.
    fn half_scales(&self) -> bool;
    fn code(&self, row: usize, channel: usize) -> u8;
    fn zero(&self, row: usize, group: usize) -> u8;
    fn scale(&self, row: usize, group: usize) -> f32;

    fn structure(&self) -> Result<Structure> {
        if !self.is_in_order() {
            return Err(Error::Unsupported {
                operation: "pack",
                reason: "groups whose input channels are not neighbours (act-order)".into(),
            });
        }
        Ok(Structure {
            levels: Levels::Table {
                values: core::array::from_fn(|code| code as f32),
                steps: core::array::from_fn(|code| code as i8),
                unit: 1.0,
            },
            nibbles: true,
            group: self.group(),
            scales: match self.half_scales() {
                true => ScaleType::F16,
                false => ScaleType::F32,
            },
            shifted: true,
            factor: 1.0,
        })
    }

    fn unpack_row(&self, row: usize, codes: &mut [u8], scales: &mut [f32], shifts: &mut [f32]) {
        for (channel, code) in codes.iter_mut().enumerate().take(self.inputs()) {
            *code = self.code(row, channel);
        }
        let groups = self.inputs() / self.group();
        for (group, scale) in scales.iter_mut().enumerate().take(groups) {
            *scale = self.scale(row, group);
            if let Some(shift) = shifts.get_mut(group) {
                *shift = -f32::from(self.zero(row, group)) * *scale;
            }
        }
    }

    /// `(code − zero) · scale`, rounded once.
    fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        for (channel, value) in out.iter_mut().enumerate().take(self.inputs()) {
            let group = self.group_of(channel);
            let level = i16::from(self.code(row, channel)) - i16::from(self.zero(row, group));
            *value = f32::from(level) * self.scale(row, group);
        }
    }
}

/// [`crate::Matrix`] by the methods of [`Grouped`], and all values at once.
macro_rules! matrix {
    ($name:ident) => {
        impl crate::Matrix for $name<'_> {
            fn shape(&self) -> [usize; 2] {
                $name::shape(self)
            }

            fn structure(&self) -> crate::Result<crate::Structure> {
                Grouped::structure(self)
            }

            fn unpack_row(
                &self,
                row: usize,
                codes: &mut [u8],
                scales: &mut [f32],
                shifts: &mut [f32],
            ) {
                Grouped::unpack_row(self, row, codes, scales, shifts);
            }

            fn dequantize_row(&self, row: usize, out: &mut [f32]) {
                Grouped::dequantize_row(self, row, out);
            }
        }

        impl $name<'_> {
            /// All values, row by row: `(code − zero) · scale`, rounded once.
            pub fn dequantize(&self) -> Vec<f32> {
                let [out, inputs] = self.shape();
                let mut values = vec![0.0; out * inputs];
                for (row, values) in values.chunks_mut(inputs).enumerate() {
                    Grouped::dequantize_row(self, row, values);
                }
                values
            }
        }
    };
}
pub(crate) use matrix;

/// Codes `[out, in]`, and zero points and scales, both `[out, groups]`.
pub(crate) struct Rounded {
    pub codes: Vec<u8>,
    pub zeros: Vec<u8>,
    pub scales: Vec<f32>,
}

/// Each weight rounded to the nearest of 16 levels from the smallest to the largest of its group, 0
/// included, scales in f16; zero points are at least 1, which both ways of storing them can hold.
pub(crate) fn round_to_nearest<T: Element>(weight: View<T>, group: usize) -> Result<Rounded> {
    let (rows, cols) = (weight.rows(), weight.cols());
    if group == 0 || cols == 0 || cols % group != 0 {
        return Err(Error::Block {
            format: "int4",
            block: group,
            cols,
            reason: "does not divide the row",
        });
    }
    let mut rounded = Rounded {
        codes: Vec::with_capacity(rows * cols),
        zeros: Vec::with_capacity(rows * cols / group),
        scales: Vec::with_capacity(rows * cols / group),
    };
    for row in 0..rows {
        for (g, values) in weight.row(row).chunks(group).enumerate() {
            let (mut min, mut max) = (0.0_f32, 0.0_f32);
            for (i, value) in values.iter().enumerate() {
                let (value, col) = (value.to_f32(), g * group + i);
                if !value.is_finite() {
                    let index = row * cols + col;
                    return Err(Error::NonFinite {
                        index,
                        row,
                        col,
                        value,
                    });
                }
                (min, max) = (min.min(value), max.max(value));
            }
            let wanted = (max / 15.0 - min / 15.0).max(max / 14.0);
            let stored = f16::from_f32(wanted).max(f16::MIN_POSITIVE_SUBNORMAL);
            let scale = stored.to_f32();
            let zero = (-min / scale).round_ties_even().clamp(1.0, 15.0);
            for value in values {
                let code = (value.to_f32() / scale).round_ties_even() + zero;
                rounded.codes.push(code.clamp(0.0, 15.0) as u8);
            }
            rounded.zeros.push(zero as u8);
            rounded.scales.push(scale);
        }
    }
    Ok(rounded)
}
