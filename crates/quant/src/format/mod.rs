//! What a format is: groups of elements, a scale for each, a code for each element.

mod extent;
mod quantize;
mod quantized;

pub use extent::Extent;
pub(crate) use extent::amax;
#[cfg(feature = "std")]
pub(crate) use extent::measure;
pub use quantize::{NonFinite, quantize_into, sizes};
pub use quantized::Quantized;

use crate::error::{Error, Result};
use crate::matrix::ScaleType;
use core::fmt::Debug;
use core::ops::Range;

/// Which elements share a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grouping {
    /// All of the matrix.
    Tensor,
    /// Those of a row.
    Row,
    /// So many that follow each other in a row; the last group of a row may be shorter.
    Block(usize),
    /// So many that follow each other in the matrix read row by row, across the ends of rows; the last
    /// group may be shorter.
    Flat(usize),
}

impl Grouping {
    /// Elements of a group, where that is not the matrix's affair.
    pub fn size(self) -> Option<usize> {
        match self {
            Self::Tensor | Self::Row => None,
            Self::Block(n) | Self::Flat(n) => Some(n),
        }
    }

    /// How many groups a matrix has.
    pub fn count(self, rows: usize, cols: usize) -> usize {
        match self {
            Self::Tensor => 1,
            Self::Row => rows,
            Self::Block(n) => rows * cols.div_ceil(n),
            Self::Flat(n) => (rows * cols).div_ceil(n),
        }
    }

    /// The elements of group `g`, counted row by row.
    pub fn range(self, g: usize, rows: usize, cols: usize) -> Range<usize> {
        match self {
            Self::Tensor => 0..rows * cols,
            Self::Row => g * cols..(g + 1) * cols,
            Self::Block(n) => {
                let per_row = cols.div_ceil(n);
                let (row, block) = (g / per_row, g % per_row);
                row * cols + block * n..row * cols + cols.min((block + 1) * n)
            }
            Self::Flat(n) => g * n..(rows * cols).min((g + 1) * n),
        }
    }

    /// The group of an element.
    pub fn of(self, index: usize, cols: usize) -> usize {
        match self {
            Self::Tensor => 0,
            Self::Row => index / cols,
            Self::Block(n) => index / cols * cols.div_ceil(n) + index % cols / n,
            Self::Flat(n) => index / n,
        }
    }
}

/// Where the code of an element stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CodeLayout {
    /// Element `i` is byte `i`.
    Bytes,
    /// Element `2i` is the low half of byte `i`, `2i + 1` the high half.
    LowNibbleFirst,
    /// Element `2i` is the high half of byte `i`, `2i + 1` the low half.
    HighNibbleFirst,
}

impl CodeLayout {
    /// Bytes that `elements` codes take.
    pub fn bytes(self, elements: usize) -> usize {
        match self {
            Self::Bytes => elements,
            Self::LowNibbleFirst | Self::HighNibbleFirst => elements.div_ceil(2),
        }
    }

    /// The code of element `i`.
    #[inline(always)]
    pub fn code(self, codes: &[u8], i: usize) -> u8 {
        match self {
            Self::Bytes => codes[i],
            Self::LowNibbleFirst => codes[i / 2] >> (4 * (i % 2)) & 15,
            Self::HighNibbleFirst => codes[i / 2] >> (4 * (1 - i % 2)) & 15,
        }
    }
}

/// What codes stand for, as far as products need to know: `value = level(code) · scale + shift`.
#[derive(Debug, Clone, PartialEq)]
pub enum Levels {
    /// The code, a byte in two's complement.
    Int8,
    /// A table of 16 values. `steps[c] · unit` is nearest to `values[c]`; where they are all equal an
    /// int8 product rounds no weight.
    Table {
        /// The values.
        values: [f32; 16],
        /// The values in int8.
        steps: [i8; 16],
        /// What a step is worth.
        unit: f32,
    },
    /// A table of 256 values: no int8 products.
    Bytes(&'static [f32; 256]),
}

/// A format in which groups of elements share a scale and each element has a code of 4 or 8 bits.
///
/// The methods on one group are the specification; [`Quantized`] runs them over matrices on all
/// threads, compiled for each instruction set.
pub trait Format: Clone + Debug + PartialEq + Send + Sync + 'static {
    /// Its name in tables, messages and command lines.
    const NAME: &'static str;
    /// Where codes stand.
    const CODES: CodeLayout;
    /// In what type scales are exact, when a matrix is packed for products.
    const SCALES: ScaleType;
    /// Whether groups have a shift beside their scale.
    const SHIFTED: bool = false;
    /// Whether [`Format::tensor`] depends on the tensor's largest magnitude.
    const TENSOR_EXTENT: bool = false;
    /// Whether [`Format::fit`] looks at more of the extent than its magnitude.
    const SIGNED: bool = false;
    /// What is stored for each group.
    type Scale: Copy + Debug + PartialEq + Send + Sync + 'static;
    /// What is stored for the tensor as a whole.
    type Tensor: Copy + Debug + PartialEq + Send + Sync;
    /// What encoding a group needs, computed once a group.
    type Encoder: Copy + Send + Sync;

    /// Which elements share a scale.
    fn grouping(&self) -> Grouping;

    /// Refuses matrices that the format cannot hold.
    ///
    /// # Errors
    /// The shape, and why.
    fn check(&self, rows: usize, cols: usize) -> Result<()> {
        let nibbles = Self::CODES != CodeLayout::Bytes;
        let across = matches!(self.grouping(), Grouping::Flat(_));
        if nibbles && !across && cols % 2 == 1 && rows > 1 {
            return Err(Error::Block {
                format: Self::NAME,
                block: 2,
                cols,
                reason: "elements share a byte, so rows must be even",
            });
        }
        Ok(())
    }

    /// What to store for the tensor.
    fn tensor(&self, amax: f32) -> Self::Tensor;
    /// The scale of a group, and how to encode with it.
    fn fit(&self, tensor: &Self::Tensor, extent: Extent) -> (Self::Scale, Self::Encoder);
    /// The codes of 16 finite values.
    fn encode(encoder: &Self::Encoder, values: &[f32; 16]) -> [u8; 16];
    /// The value of a code.
    fn decode(&self, tensor: &Self::Tensor, scale: Self::Scale, code: u8) -> f32;

    /// What codes stand for in products.
    fn levels(&self) -> Levels;
    /// `(scale, shift)` of a group in products: a value is `level(code) · scale + shift`, but for the
    /// factor [`Format::factor`] of the tensor.
    fn affine(&self, scale: Self::Scale) -> (f32, f32);
    /// What all values are multiplied with.
    fn factor(&self, _tensor: &Self::Tensor) -> f32 {
        1.0
    }
    /// Whether a stored scale is one that a quantizer can have written.
    fn valid(&self, scale: Self::Scale) -> bool {
        let (scale, shift) = self.affine(scale);
        scale.is_finite() && shift.is_finite()
    }
    /// Bits of a scale, and of its zero point, in the formats' own files.
    fn scale_bits(&self) -> usize {
        8 * size_of::<Self::Scale>()
    }
    /// The largest error of an element over the largest magnitude of its group, for groups whose scale
    /// is a normal number; see the format's documentation for the derivation.
    fn worst_error(&self) -> f32;
}

/// The codes of 16 values: a loop and not `map`, which the compiler may leave as a call.
#[inline(always)]
pub(crate) fn encode_each(values: &[f32; 16], encode: impl Fn(f32) -> u8) -> [u8; 16] {
    let mut codes = [0; 16];
    for (code, value) in codes.iter_mut().zip(values) {
        *code = encode(*value);
    }
    codes
}
