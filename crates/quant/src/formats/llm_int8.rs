//! The weights of LLM.int8 (Dettmers et al. 2022), as bitsandbytes stores them.

use crate::element::round_to_i8;
use crate::error::Result;
use crate::format::{CodeLayout, Extent, Format, Grouping, Levels, encode_each};
use crate::matrix::ScaleType;

/// 1 ÷ 127 as bitsandbytes has it.
pub(crate) const PER_CODE: f32 = 7.874_016e-3;

/// INT8 with the absmax of each row as its scale: `value = code · absmax ÷ 127`.
///
/// A code is the nearest integer to `value · (127 ÷ absmax)`, ties to even. Worst error: half a step,
/// 1/254 of absmax. Activations with outliers have a mode of their own, [`crate::Mode::LlmInt8`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LlmInt8;

impl Format for LlmInt8 {
    const NAME: &'static str = "llm-int8";
    const CODES: CodeLayout = CodeLayout::Bytes;
    const SCALES: ScaleType = ScaleType::F32;
    type Scale = f32;
    type Tensor = ();
    type Encoder = f32;

    fn grouping(&self) -> Grouping {
        Grouping::Row
    }

    fn check(&self, _rows: usize, _cols: usize) -> Result<()> {
        Ok(())
    }

    fn tensor(&self, _amax: f32) {}

    #[inline(always)]
    fn fit(&self, (): &(), extent: Extent) -> (f32, f32) {
        let inverse = 127.0 / extent.amax;
        (extent.amax, if inverse.is_finite() { inverse } else { 0.0 })
    }

    #[inline(always)]
    fn encode(inverse: &f32, values: &[f32; 16]) -> [u8; 16] {
        encode_each(values, |value| {
            round_to_i8((value * inverse).clamp(-127.0, 127.0)).cast_unsigned()
        })
    }

    #[inline(always)]
    fn decode(&self, (): &(), absmax: f32, code: u8) -> f32 {
        f32::from(code.cast_signed()) * absmax * PER_CODE
    }

    fn levels(&self) -> Levels {
        Levels::Int8
    }

    #[inline(always)]
    fn affine(&self, absmax: f32) -> (f32, f32) {
        (absmax * PER_CODE, 0.0)
    }

    fn worst_error(&self) -> f32 {
        1.0 / 254.0
    }
}
