//! AWQ checkpoints of 4 bits: eight codes a word along the output features, in an order of their own.

use crate::error::{Result, length};
use crate::format::Quantized;
use crate::formats::gptq::{
    affine, equal_groups, finite, group_size, int4, nibble, pairs, scales, step, structure, words,
};
use crate::formats::int4::{Int4, Int4Scale};
use crate::matrix::{Matrix, Structure};
use crate::view::elements;
use alloc::{borrow::Cow, vec, vec::Vec};
use half::f16;

/// Which output feature of its eight a nibble holds, the lowest nibble first.
pub const AWQ_ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];

/// Which nibble holds an output feature: the other way round.
const NIBBLE: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

/// A weight `[out, in]` as AWQ checkpoints hold it: `value = (code − zero) · scale`.
///
/// | tensor | shape | |
/// |---|---|---|
/// | `qweight` | `[in, out ÷ 8]` | nibble `k` of a word is output feature [`AWQ_ORDER`]`[k]` of its eight |
/// | `qzeros` | `[groups, out ÷ 8]` | as `qweight` |
/// | `scales` | `[groups, out]` | |
#[derive(Debug, Clone, PartialEq)]
pub struct Awq<'a> {
    shape: [usize; 2],
    groups: usize,
    qweight: Cow<'a, [i32]>,
    qzeros: Cow<'a, [i32]>,
    scales: Cow<'a, [f16]>,
}

impl<'a> Awq<'a> {
    /// A weight `[out, in]` from its tensors.
    ///
    /// # Errors
    /// A side that is not a multiple of 8, tensors of other lengths, groups that do not divide a row, a
    /// scale that is not finite.
    pub fn from_tensors(
        shape: [usize; 2],
        qweight: impl Into<Cow<'a, [i32]>>,
        qzeros: impl Into<Cow<'a, [i32]>>,
        scales: impl Into<Cow<'a, [f16]>>,
    ) -> Result<Self> {
        let (qweight, qzeros, scales) = (qweight.into(), qzeros.into(), scales.into());
        let [rows, cols] = shape;
        words("awq", shape)?;
        length("qweight", elements(rows, cols)? / 8, qweight.len())?;
        let groups = scales.len() / rows.max(1);
        length("scales", groups * rows, scales.len())?;
        length("qzeros", groups * rows / 8, qzeros.len())?;
        group_size(cols, groups)?;
        finite(&scales)?;
        Ok(Self {
            shape,
            groups,
            qweight,
            qzeros,
            scales,
        })
    }

    /// Stores a matrix that was quantized in [`Int4`].
    ///
    /// # Errors
    /// A side that is not a multiple of 8; a zero point of 16; groups that do not divide a row.
    pub fn from_quantized(matrix: &Quantized<Int4>) -> Result<Awq<'static>> {
        let [rows, cols] = matrix.shape();
        words("awq", [rows, cols])?;
        let [groups, _] = equal_groups(matrix)?;
        let mut qweight = vec![0_i32; rows * cols / 8];
        for row in 0..rows {
            for col in 0..cols {
                let code = i32::from(matrix.code(row, col));
                qweight[col * rows / 8 + row / 8] |= code << (4 * NIBBLE[row % 8]);
            }
        }
        let mut qzeros = vec![0_i32; groups * rows / 8];
        let mut scales = vec![f16::ZERO; groups * rows];
        for row in 0..rows {
            for group in 0..groups {
                let Int4Scale { scale, zero } = matrix.scales()[row * groups + group];
                scales[group * rows + row] = scale;
                qzeros[group * rows / 8 + row / 8] |= nibble(zero, group)? << (4 * NIBBLE[row % 8]);
            }
        }
        Ok(Awq {
            shape: [rows, cols],
            groups,
            qweight: qweight.into(),
            qzeros: qzeros.into(),
            scales: scales.into(),
        })
    }

    /// The matrix.
    ///
    /// # Errors
    /// Groups of an odd size.
    pub fn to_quantized(&self) -> Result<Quantized<'static, Int4>> {
        let [rows, cols] = self.shape;
        let size = group_size(cols, self.groups)?;
        let (format, mut codes) = int4([rows, cols], size)?;
        let mut features = vec![0; cols];
        // Rows are whole bytes: columns are a multiple of 8.
        for (row, codes) in codes.chunks_exact_mut((cols / 2).max(1)).enumerate() {
            self.codes(row, &mut features);
            pairs(&features, codes);
        }
        let scales = scales([rows, self.groups], |row, group| self.scale(row, group));
        Quantized::from_parts(format, [rows, cols], (), codes, scales)
    }

    /// `[out, in]`.
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// Groups of a row.
    pub fn groups(&self) -> usize {
        self.groups
    }

    /// `qweight`, `qzeros` and `scales`.
    pub fn tensors(&self) -> (&[i32], &[i32], &[f16]) {
        (&self.qweight, &self.qzeros, &self.scales)
    }

    /// All values, row by row.
    ///
    /// # Errors
    /// Those of [`Awq::to_quantized`].
    pub fn dequantize(&self) -> Result<Vec<f32>> {
        let matrix = self.to_quantized()?;
        Ok(matrix.dequantize(&crate::Cpu::detect()))
    }

    /// The codes of a row.
    fn codes(&self, row: usize, codes: &mut [u8]) {
        let shift = 4 * NIBBLE[row % 8];
        let words = self.qweight.iter().skip(row / 8);
        for (code, word) in codes.iter_mut().zip(words.step_by(self.shape[0] / 8)) {
            *code = (word >> shift & 15) as u8;
        }
    }

    fn scale(&self, row: usize, group: usize) -> Int4Scale {
        let rows = self.shape[0];
        let word = self.qzeros[group * rows / 8 + row / 8];
        Int4Scale {
            scale: self.scales[group * rows + row],
            zero: (word >> (4 * NIBBLE[row % 8]) & 15) as u8,
        }
    }
}

/// The matrix of [`Awq::to_quantized`], without a copy.
impl Matrix for Awq<'_> {
    fn shape(&self) -> [usize; 2] {
        self.shape
    }

    fn structure(&self) -> Result<Structure> {
        Ok(structure(group_size(self.shape[1], self.groups)?))
    }

    fn unpack_row(&self, row: usize, codes: &mut [u8], scales: &mut [f32], shifts: &mut [f32]) {
        self.codes(row, codes);
        affine(self.groups, |group| self.scale(row, group), scales, shifts);
    }

    fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        let shift = 4 * NIBBLE[row % 8];
        let size = (self.shape[1] / self.groups.max(1)).max(1);
        let words = self.qweight.iter().skip(row / 8);
        let mut words = words.step_by(self.shape[0] / 8);
        for (group, out) in out.chunks_mut(size).enumerate().take(self.groups) {
            let (scale, zero) = step(self.scale(row, group));
            for (out, word) in out.iter_mut().zip(&mut words) {
                *out = ((word >> shift & 15) as f32 - zero) * scale;
            }
        }
    }
}
