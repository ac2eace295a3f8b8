//! NVFP4: E2M1 elements, blocks of 16 along a row with an E4M3 scale, and one f32 for the tensor.

use crate::float::{E2M1, e4m3_to_f32, f32_to_e2m1, f32_to_e4m3};
use crate::format::{CodeLayout, Extent, Format, Grouping, Levels, encode_each};
use crate::formats::mx::e2m1_levels;
use crate::matrix::ScaleType;

/// The scale of a whole NVFP4 tensor, as a factor: `value = e2m1 · e4m3 · factor`.
///
/// ModelOpt stores it as it is (`weight_scale_2`); compressed-tensors stores its inverse
/// (`weight_global_scale`).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GlobalScale(f32);

impl GlobalScale {
    /// From the factor.
    pub fn from_factor(factor: f32) -> Self {
        Self(factor)
    }

    /// From its inverse, the divisor.
    pub fn from_divisor(divisor: f32) -> Self {
        Self(1.0 / divisor)
    }

    /// What values are multiplied with.
    pub fn factor(self) -> f32 {
        self.0
    }

    /// What compressed-tensors stores.
    pub fn divisor(self) -> f32 {
        1.0 / self.0
    }
}

/// Scales of blocks are normal numbers: at least 2⁻⁶.
const SMALLEST_SCALE: f32 = 0.015_625;

/// NVFP4: `value = E2M1[code] · scale · global`, the even element of a pair in the low nibble.
///
/// Worst error, over a block's amax: half the widest gap, one scale, which rounding makes at most
/// 17/16 · 1/6 of amax: 17/96. A block whose amax is below 2⁻⁶/448 of the tensor's has the smallest
/// scale, and may lose all of its values. Codes and scales are those of torchao, but for tensors of
/// zeros: they have the scale 1 here, and NaN there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NvFp4;

impl Format for NvFp4 {
    const NAME: &'static str = "nvfp4";
    const CODES: CodeLayout = CodeLayout::LowNibbleFirst;
    const SCALES: ScaleType = ScaleType::E4M3;
    const TENSOR_EXTENT: bool = true;
    /// E4M3.
    type Scale = u8;
    type Tensor = GlobalScale;
    type Encoder = f32;

    fn grouping(&self) -> Grouping {
        Grouping::Block(16)
    }

    fn tensor(&self, amax: f32) -> GlobalScale {
        let factor = amax / (448.0 * 6.0);
        GlobalScale(if factor > 0.0 { factor } else { 1.0 })
    }

    #[inline(always)]
    fn fit(&self, global: &GlobalScale, extent: Extent) -> (u8, f32) {
        let scale = f32_to_e4m3((extent.amax / 6.0 / global.0).clamp(SMALLEST_SCALE, 448.0));
        (scale, (1.0 / global.0) / e4m3_to_f32(scale))
    }

    #[inline(always)]
    fn encode(inverse: &f32, values: &[f32; 16]) -> [u8; 16] {
        encode_each(values, |value| f32_to_e2m1(value * inverse))
    }

    #[inline(always)]
    fn decode(&self, global: &GlobalScale, scale: u8, code: u8) -> f32 {
        E2M1[usize::from(code & 15)] * (e4m3_to_f32(scale) * global.0)
    }

    fn levels(&self) -> Levels {
        e2m1_levels()
    }

    #[inline(always)]
    fn affine(&self, scale: u8) -> (f32, f32) {
        (e4m3_to_f32(scale), 0.0)
    }

    fn factor(&self, global: &GlobalScale) -> f32 {
        global.0
    }

    fn worst_error(&self) -> f32 {
        17.0 / 96.0
    }
}
