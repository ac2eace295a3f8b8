//! INT8: symmetric and asymmetric, one scale for the tensor, a row, or a group of neighbours.

use crate::element::{round, round_to_i8};
use crate::error::{Error, Result};
use crate::format::{CodeLayout, Extent, Format, Grouping, Levels, encode_each};
use crate::matrix::ScaleType;

fn check(format: &'static str, grouping: Grouping, cols: usize) -> Result<()> {
    match grouping {
        Grouping::Block(0) | Grouping::Flat(0) => Err(Error::Block {
            format,
            block: 0,
            cols,
            reason: "holds nothing",
        }),
        _ => Ok(()),
    }
}

/// Symmetric INT8: `value = code · scale`, codes from −127 to 127, `scale = amax ÷ 127`.
///
/// A code is the nearest integer to `value · (1 ÷ scale)`, ties to even; a scale is at least the
/// smallest normal number. torchao's `quantize_affine` does the same over [−127, 127], but rounds the
/// scales of bf16 and f16 tensors to their type. Worst error: half a step, 1/254 of amax.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Int8(pub Grouping);

impl Format for Int8 {
    const NAME: &'static str = "int8";
    const CODES: CodeLayout = CodeLayout::Bytes;
    const SCALES: ScaleType = ScaleType::F32;
    type Scale = f32;
    type Tensor = ();
    type Encoder = f32;

    fn grouping(&self) -> Grouping {
        self.0
    }

    fn check(&self, _rows: usize, cols: usize) -> Result<()> {
        check(Self::NAME, self.0, cols)
    }

    fn tensor(&self, _amax: f32) {}

    #[inline(always)]
    fn fit(&self, (): &(), extent: Extent) -> (f32, f32) {
        let scale = (extent.amax / 127.0).max(f32::MIN_POSITIVE);
        (scale, 1.0 / scale)
    }

    #[inline(always)]
    fn encode(inverse: &f32, values: &[f32; 16]) -> [u8; 16] {
        encode_each(values, |value| {
            round_to_i8((value * inverse).clamp(-127.0, 127.0)).cast_unsigned()
        })
    }

    #[inline(always)]
    fn decode(&self, (): &(), scale: f32, code: u8) -> f32 {
        f32::from(code.cast_signed()) * scale
    }

    fn levels(&self) -> Levels {
        Levels::Int8
    }

    #[inline(always)]
    fn affine(&self, scale: f32) -> (f32, f32) {
        (scale, 0.0)
    }

    fn worst_error(&self) -> f32 {
        1.0 / 254.0
    }
}

/// A scale and a zero point.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ScaleZero {
    /// What a step is worth.
    pub scale: f32,
    /// The code that stands for 0.
    pub zero: i8,
}

/// Asymmetric INT8: `value = (code − zero) · scale`, codes from −128 to 127, the range from the
/// smallest to the largest value, 0 included.
///
/// Worst error: half a step, (max − min) ÷ 510, at most 1/255 of amax. The zero point's rounding cuts
/// off no more than that at either end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Int8Asymmetric(pub Grouping);

impl Format for Int8Asymmetric {
    const NAME: &'static str = "int8-asymmetric";
    const CODES: CodeLayout = CodeLayout::Bytes;
    const SCALES: ScaleType = ScaleType::F32;
    const SHIFTED: bool = true;
    const SIGNED: bool = true;
    type Scale = ScaleZero;
    type Tensor = ();
    type Encoder = (f32, f32);

    fn grouping(&self) -> Grouping {
        self.0
    }

    fn check(&self, _rows: usize, cols: usize) -> Result<()> {
        check(Self::NAME, self.0, cols)
    }

    fn tensor(&self, _amax: f32) {}

    #[inline(always)]
    fn fit(&self, (): &(), extent: Extent) -> (ScaleZero, (f32, f32)) {
        let range = extent.max - extent.min;
        // The range of two large values may not be finite.
        let scale = if range.is_finite() {
            range / 255.0
        } else {
            extent.max / 255.0 - extent.min / 255.0
        };
        let scale = scale.max(f32::MIN_POSITIVE);
        let zero = (-128.0 - round(extent.min / scale)).clamp(-128.0, 127.0);
        let stored = ScaleZero {
            scale,
            zero: zero as i8,
        };
        (stored, (1.0 / scale, zero))
    }

    #[inline(always)]
    fn encode((inverse, zero): &(f32, f32), values: &[f32; 16]) -> [u8; 16] {
        encode_each(values, |value| {
            let code = round(value * inverse) + zero;
            round_to_i8(code.clamp(-128.0, 127.0)).cast_unsigned()
        })
    }

    #[inline(always)]
    fn decode(&self, (): &(), scale: ScaleZero, code: u8) -> f32 {
        f32::from(i16::from(code.cast_signed()) - i16::from(scale.zero)) * scale.scale
    }

    fn levels(&self) -> Levels {
        Levels::Int8
    }

    #[inline(always)]
    fn affine(&self, scale: ScaleZero) -> (f32, f32) {
        (scale.scale, -f32::from(scale.zero) * scale.scale)
    }

    fn scale_bits(&self) -> usize {
        40
    }

    fn worst_error(&self) -> f32 {
        1.0 / 255.0
    }
}
