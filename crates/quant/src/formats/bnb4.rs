//! NF4 and FP4 as bitsandbytes stores them: flat blocks, f32 absmax, the first element in the high
//! nibble.

use crate::error::{Error, Result};
use crate::format::{CodeLayout, Extent, Format, Grouping, Levels};
use crate::matrix::ScaleType;

/// NF4: quantiles of the normal distribution (Dettmers et al. 2023, QLoRA, appendix E).
pub const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// FP4 as bitsandbytes has it, which is not OCP's E2M1; bit 3 is the sign.
pub const FP4: [f32; 16] = [
    0.0,
    0.005_208_333_5,
    0.666_666_7,
    1.0,
    0.333_333_34,
    0.5,
    0.166_666_67,
    0.25,
    -0.0,
    -0.005_208_333_5,
    -0.666_666_7,
    -1.0,
    -0.333_333_34,
    -0.5,
    -0.166_666_67,
    -0.25,
];

fn block(format: &'static str, block: usize) -> Result<usize> {
    if block.is_power_of_two() && (32..=4096).contains(&block) {
        return Ok(block);
    }
    Err(Error::Block {
        format,
        block,
        cols: 0,
        reason: "is not a power of two from 32 to 4096",
    })
}

fn steps(values: &[f32; 16], unit: f32) -> Levels {
    Levels::Table {
        values: *values,
        steps: values.map(|value| libm::rintf(value * unit) as i8),
        unit: 1.0 / unit,
    }
}

macro_rules! format {
    ($(#[$doc:meta])* $name:ident, $text:literal, $values:ident, $per_unit:literal, $worst:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub struct $name {
            block: usize,
        }

        impl $name {
            /// Blocks of `block` elements, across the ends of rows; bitsandbytes' default is 64.
            ///
            /// # Errors
            /// Not a power of two from 32 to 4096.
            pub fn new(size: usize) -> Result<Self> {
                block($text, size).map(|block| Self { block })
            }

            /// Elements of a block.
            pub fn block(&self) -> usize {
                self.block
            }
        }

        impl Format for $name {
            const NAME: &'static str = $text;
            const CODES: CodeLayout = CodeLayout::HighNibbleFirst;
            const SCALES: ScaleType = ScaleType::F32;
            type Scale = f32;
            type Tensor = ();
            type Encoder = f32;

            fn grouping(&self) -> Grouping {
                Grouping::Flat(self.block)
            }

            fn tensor(&self, _amax: f32) {}

            #[inline(always)]
            fn fit(&self, (): &(), extent: Extent) -> (f32, f32) {
                let scale = extent.amax;
                (scale, inverse(scale))
            }

            #[inline(always)]
            fn encode(inverse: &f32, values: &[f32; 16]) -> [u8; 16] {
                values.map(|value| $name::nearest(value * inverse))
            }

            #[inline(always)]
            fn decode(&self, (): &(), scale: f32, code: u8) -> f32 {
                $values[usize::from(code & 15)] * scale
            }

            fn levels(&self) -> Levels {
                steps(&$values, $per_unit)
            }

            #[inline(always)]
            fn affine(&self, scale: f32) -> (f32, f32) {
                (scale, 0.0)
            }

            fn worst_error(&self) -> f32 {
                $worst
            }
        }
    };
}

/// 1 ÷ absmax, or 0 for a block without a value to be scaled.
#[inline(always)]
fn inverse(absmax: f32) -> f32 {
    if absmax > 0.0 { 1.0 / absmax } else { 0.0 }
}

format!(
    /// NF4: `value = NF4[code] · absmax`. A value half way between two levels takes the lower code.
    ///
    /// Worst error: half the widest gap, (1 − 0.696) ÷ 2 = 0.152 of absmax.
    Nf4, "nf4", NF4, 127.0, (1.0 - 0.696_192_8) / 2.0
);

format!(
    /// FP4: `value = FP4[code] · absmax`.
    ///
    /// Worst error: half the widest gap, (1 − 2/3) ÷ 2 = 1/6 of absmax.
    Fp4, "fp4", FP4, 120.0, 1.0 / 6.0
);

impl Nf4 {
    #[inline(always)]
    fn nearest(x: f32) -> u8 {
        const MIDDLES: [f32; 15] = middles();
        // In 32 bits, as wide as the comparisons are.
        let mut code = 0_u32;
        let mut i = 0;
        while i < 15 {
            code += u32::from(x > MIDDLES[i]);
            i += 1;
        }
        code as u8
    }
}

const fn middles() -> [f32; 15] {
    let mut middles = [0.0; 15];
    let mut i = 0;
    while i < 15 {
        middles[i] = ((NF4[i] as f64 + NF4[i + 1] as f64) / 2.0) as f32;
        i += 1;
    }
    middles
}

impl Fp4 {
    #[inline(always)]
    fn nearest(x: f32) -> u8 {
        let magnitude = x.abs();
        // In the order of magnitude: 0, 1/192, 1/6, 1/4, 1/3, 1/2, 2/3, 1, whose codes are 0, 1, 6, 7,
        // 4, 5, 2, 3.
        let rank = u32::from(magnitude > 0.002_604_166_7)
            + u32::from(magnitude > 0.085_937_5)
            + u32::from(magnitude > 0.208_333_33)
            + u32::from(magnitude > 0.291_666_66)
            + u32::from(magnitude > 0.416_666_66)
            + u32::from(magnitude > 0.583_333_3)
            + u32::from(magnitude > 0.833_333_3);
        let code = if rank < 2 { rank } else { (rank - 2) ^ 6 };
        let code = if rank >= 4 && rank < 6 { rank } else { code };
        let code = if rank >= 6 { rank - 4 } else { code };
        (code | u32::from(x < 0.0) << 3) as u8
    }
}
