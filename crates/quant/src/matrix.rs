//! A quantized matrix of whatever format, as products and conversions see it.

use crate::error::{Error, Result};
use crate::format::{Format, Grouping, Levels, Quantized};

/// How a scale is kept, exactly, in a [`crate::Packed`] matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ScaleType {
    /// 32 bits.
    F32,
    /// 16 bits.
    F16,
    /// A power of two in 8 bits.
    E8M0,
    /// 8 bits.
    E4M3,
}

impl ScaleType {
    /// Bytes of a scale.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
            Self::E8M0 | Self::E4M3 => 1,
        }
    }
}

/// How a matrix is made of codes: what [`crate::Packed`] needs to know.
#[derive(Debug, Clone, PartialEq)]
pub struct Structure {
    /// What codes stand for.
    pub levels: Levels,
    /// Whether codes have 4 bits.
    pub nibbles: bool,
    /// How many neighbours in a row share a scale; the whole row at most.
    pub group: usize,
    /// In what type scales are exact.
    pub scales: ScaleType,
    /// Whether groups have a shift beside their scale.
    pub shifted: bool,
    /// What all values are multiplied with at the end.
    pub factor: f32,
}

/// A matrix `[rows, cols]` whose values are `level(code) · scale + shift`, in any format.
pub trait Matrix: Sync {
    /// `[rows, cols]`.
    fn shape(&self) -> [usize; 2];

    /// What it is made of.
    ///
    /// # Errors
    /// Groups that run across the ends of rows.
    fn structure(&self) -> Result<Structure>;

    /// The codes of a row, one a byte, and the scale and shift of each of its groups. `shifts` may be
    /// empty if the structure has none.
    fn unpack_row(&self, row: usize, codes: &mut [u8], scales: &mut [f32], shifts: &mut [f32]);

    /// The values of a row, exactly as the format defines them.
    fn dequantize_row(&self, row: usize, out: &mut [f32]);
}

impl<F: Format> Matrix for Quantized<'_, F> {
    fn shape(&self) -> [usize; 2] {
        Quantized::shape(self)
    }

    fn structure(&self) -> Result<Structure> {
        let [_, cols] = self.shape();
        let group = match self.format().grouping() {
            Grouping::Tensor | Grouping::Row => cols,
            Grouping::Block(n) => n.min(cols),
            Grouping::Flat(n) if cols % n == 0 => n,
            Grouping::Flat(n) => {
                return Err(Error::Block {
                    format: F::NAME,
                    block: n,
                    cols,
                    reason: "runs across the ends of rows, which products do not support",
                });
            }
        };
        Ok(Structure {
            levels: self.format().levels(),
            nibbles: F::CODES != crate::format::CodeLayout::Bytes,
            group,
            scales: F::SCALES,
            shifted: F::SHIFTED,
            factor: self.format().factor(&self.tensor()),
        })
    }

    fn unpack_row(&self, row: usize, codes: &mut [u8], scales: &mut [f32], shifts: &mut [f32]) {
        let [rows, cols] = self.shape();
        let grouping = self.format().grouping();
        let first = row * cols;
        for (i, code) in codes.iter_mut().enumerate().take(cols) {
            *code = F::CODES.code(self.codes(), first + i);
        }
        let mut at = first;
        for (i, place) in scales.iter_mut().enumerate() {
            if at >= first + cols {
                break;
            }
            let group = grouping.of(at, cols);
            let (scale, shift) = self.format().affine(self.scales()[group]);
            *place = scale;
            if let Some(shift_place) = shifts.get_mut(i) {
                *shift_place = shift;
            }
            at = grouping.range(group, rows, cols).end;
        }
    }

    fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        let [_, cols] = self.shape();
        let grouping = self.format().grouping();
        let tensor = self.tensor();
        for (col, out) in out.iter_mut().enumerate().take(cols) {
            let scale = self.scales()[grouping.of(row * cols + col, cols)];
            *out = self.format().decode(&tensor, scale, self.code(row, col));
        }
    }
}
