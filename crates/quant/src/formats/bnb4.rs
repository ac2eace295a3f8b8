//! NF4 and FP4 as bitsandbytes stores them: flat blocks, f32 absmax, the first element in the high
//! nibble.

use crate::error::{Error, Result};
use crate::format::{CodeLayout, Extent, Format, Grouping, Levels, encode_each};
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
            type Encoder = Absmax;

            fn grouping(&self) -> Grouping {
                Grouping::Flat(self.block)
            }

            fn tensor(&self, _amax: f32) {}

            #[inline(always)]
            fn fit(&self, (): &(), extent: Extent) -> (f32, Absmax) {
                Absmax::new(extent)
            }

            #[inline(always)]
            fn encode(encoder: &Absmax, values: &[f32; 16]) -> [u8; 16] {
                encode_each(values, |value| $name::nearest(encoder.measure(value)))
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

/// How bitsandbytes measures values in their block's absmax: by the reciprocal, but in a block shorter
/// than the others by division. Below 10⁻³⁸ it takes 10⁻³⁸, which short blocks also store.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Absmax {
    inverse: f32,
    /// Of short blocks.
    divisor: Option<f32>,
}

impl Absmax {
    #[inline(always)]
    fn new(extent: Extent) -> (f32, Self) {
        let absmax = extent.amax.max(1e-38);
        let measure = Self {
            inverse: 1.0 / absmax,
            divisor: extent.partial.then_some(absmax),
        };
        (if extent.partial { absmax } else { extent.amax }, measure)
    }

    #[inline(always)]
    fn measure(&self, value: f32) -> f32 {
        match self.divisor {
            Some(divisor) => value / divisor,
            None => value * self.inverse,
        }
    }
}

format!(
    /// NF4: `value = NF4[code] · absmax`. A value half way between two levels takes the lower code.
    ///
    /// Worst error: half the widest gap, (1 − 0.696) ÷ 2 = 0.152 of absmax.
    Nf4, "nf4", NF4, 127.0, (1.0 - 0.696_192_8) / 2.0
);

format!(
    /// FP4: `value = FP4[code] · absmax`. A value half way between two levels takes the lower one; a small
    /// positive value takes code 8, a zero.
    ///
    /// Worst error: half the widest gap, (1 − 2/3) ÷ 2 = 1/6 of absmax.
    Fp4, "fp4", FP4, 120.0, 1.0 / 6.0
);

/// The codes in the order of their values.
const NF4_ORDER: [u8; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
const FP4_ORDER: [u8; 16] = [11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3];

impl Nf4 {
    #[inline(always)]
    fn nearest(x: f32) -> u8 {
        const MIDDLES: [f32; 15] = middles(&NF4, &NF4_ORDER);
        nearest(x, &MIDDLES, &NF4_ORDER)
    }
}

impl Fp4 {
    #[inline(always)]
    fn nearest(x: f32) -> u8 {
        const MIDDLES: [f32; 15] = middles(&FP4, &FP4_ORDER);
        nearest(x, &MIDDLES, &FP4_ORDER)
    }
}

/// The code of the nearest value, of the lower one at a tie. A sum of steps instead of a look-up: the
/// compiler vectorizes it, 32 bits wide as the comparisons are.
#[inline(always)]
fn nearest(x: f32, middles: &[f32; 15], order: &[u8; 16]) -> u8 {
    let mut code = u32::from(order[0]);
    let mut i = 0;
    while i < 15 {
        let step = u32::from(order[i + 1]).wrapping_sub(u32::from(order[i]));
        code = code.wrapping_add(if x > middles[i] { step } else { 0 });
        i += 1;
    }
    code as u8
}

/// Half way between neighbours.
const fn middles(values: &[f32; 16], order: &[u8; 16]) -> [f32; 15] {
    let mut middles = [0.0; 15];
    let mut i = 0;
    while i < 15 {
        middles[i] = (values[order[i] as usize] + values[order[i + 1] as usize]) / 2.0;
        i += 1;
    }
    middles
}
