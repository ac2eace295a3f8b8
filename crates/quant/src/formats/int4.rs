//! INT4 with an f16 scale and a zero point for each group: what GPTQ and AWQ checkpoints hold.

use crate::element::{round, round_to_i8};
use crate::error::{Error, Result};
use crate::format::{CodeLayout, Extent, Format, Grouping, Levels, encode_each};
use crate::matrix::ScaleType;
use half::f16;

/// A scale and a zero point of [`Int4`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Int4Scale {
    /// What a step is worth.
    pub scale: f16,
    /// The code that stands for 0: 0 to 15, or 16, for which GPTQ's and AWQ's words have no place.
    pub zero: u8,
}

/// `value = (code − zero) · scale`, codes from 0 to 15, the first element of a pair in the low nibble.
///
/// Symmetric: the zero point is 8, the scale 2/15 of amax. Asymmetric: the range from the smallest to
/// the largest value, 0 included, in 15 steps. Codes are the nearest for the scale in f16.
///
/// Worst error, over amax: 1/15, half a step (symmetric ranges end half a step short of amax, zero
/// points cut off no more), and 2⁻¹⁰ for the scale's rounding. Scales below 2⁻²⁴ or above 65504 are
/// those.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Int4 {
    group: Option<usize>,
    symmetric: bool,
}

impl Int4 {
    /// Groups of so many neighbours in a row, or rows.
    ///
    /// # Errors
    /// A group of an odd number or of none.
    pub fn new(group: Option<usize>, symmetric: bool) -> Result<Self> {
        match group {
            Some(block) if block == 0 || !block.is_multiple_of(2) => Err(Error::Block {
                format: Self::NAME,
                block,
                cols: 0,
                reason: "is not a positive even number",
            }),
            _ => Ok(Self { group, symmetric }),
        }
    }

    /// Whether the zero point is always 8.
    pub fn symmetric(&self) -> bool {
        self.symmetric
    }
}

impl Format for Int4 {
    const NAME: &'static str = "int4";
    const CODES: CodeLayout = CodeLayout::LowNibbleFirst;
    const SCALES: ScaleType = ScaleType::F16;
    const SHIFTED: bool = true;
    const SIGNED: bool = true;
    type Scale = Int4Scale;
    type Tensor = ();
    type Encoder = (f32, f32);

    fn grouping(&self) -> Grouping {
        self.group.map_or(Grouping::Row, Grouping::Block)
    }

    fn tensor(&self, _amax: f32) {}

    #[inline(always)]
    fn fit(&self, (): &(), extent: Extent) -> (Int4Scale, (f32, f32)) {
        let step = if self.symmetric {
            extent.amax * (2.0 / 15.0)
        } else {
            extent.max / 15.0 - extent.min / 15.0
        };
        // Within f16's range, denormals included.
        let scale = f16::from_f32(step.clamp(5.960_464_5e-8, 65504.0));
        let inverse = 1.0 / scale.to_f32();
        let zero = if self.symmetric {
            8.0
        } else {
            round((-extent.min * inverse).clamp(0.0, 15.0))
        };
        let stored = Int4Scale {
            scale,
            zero: zero as u8,
        };
        (stored, (inverse, zero))
    }

    #[inline(always)]
    fn encode((inverse, zero): &(f32, f32), values: &[f32; 16]) -> [u8; 16] {
        encode_each(values, |value| {
            let code = (value * inverse).clamp(-16.0, 16.0);
            round_to_i8((round(code) + zero).clamp(0.0, 15.0)).cast_unsigned()
        })
    }

    #[inline(always)]
    fn decode(&self, (): &(), scale: Int4Scale, code: u8) -> f32 {
        (f32::from(code & 15) - f32::from(scale.zero)) * scale.scale.to_f32()
    }

    fn levels(&self) -> Levels {
        code_levels()
    }

    #[inline(always)]
    fn affine(&self, scale: Int4Scale) -> (f32, f32) {
        let step = scale.scale.to_f32();
        (step, -f32::from(scale.zero) * step)
    }

    fn valid(&self, scale: Int4Scale) -> bool {
        scale.scale.is_finite() && scale.zero <= 16
    }

    fn scale_bits(&self) -> usize {
        20
    }

    fn worst_error(&self) -> f32 {
        1.0 / 15.0 + 1.0 / 1024.0
    }
}

/// Codes stand for themselves: the zero point is in the shift.
pub(crate) fn code_levels() -> Levels {
    Levels::Table {
        values: core::array::from_fn(|code| code as f32),
        steps: core::array::from_fn(|code| code as i8),
        unit: 1.0,
    }
}
