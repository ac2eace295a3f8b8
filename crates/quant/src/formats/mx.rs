//! OCP microscaling: blocks of 32 along a row with a power of two as scale (OCP Microscaling Formats
//! v1.0), elements E2M1, E4M3 or E5M2. Codes and scales are those of torchao.

use crate::float::{
    E2M1, e4m3_to_f32, e5m2_to_f32, e8m0_to_f32, f32_to_e2m1, f32_to_e4m3, f32_to_e5m2,
};
use crate::format::{CodeLayout, Extent, Format, Grouping, Levels, encode_each};
use crate::matrix::ScaleType;

/// Elements that share a scale.
pub const MX_BLOCK: usize = 32;

/// How the exact scale becomes a power of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum ScaleRounding {
    /// Down, as OCP's specification says: the exponent of amax less that of the largest element. Values
    /// above the largest element saturate.
    #[default]
    Floor,
    /// Up from amax ÷ the largest element: nothing saturates (NVIDIA's recipe).
    Rceil,
}

impl ScaleRounding {
    /// The scale of a block for elements whose largest value is `largest`, with exponent `exponent`.
    #[inline(always)]
    fn scale(self, amax: f32, largest: f32, exponent: u32) -> u8 {
        match self {
            Self::Floor => (amax.to_bits() >> 23).saturating_sub(exponent) as u8,
            Self::Rceil => {
                let exact = (amax / largest).to_bits();
                if exact < 0x0080_0000 {
                    // Below 2⁻¹²⁶, a denormal: 2⁻¹²⁷ or the next power.
                    return u8::from(exact > 0x0040_0000);
                }
                ((exact >> 23) + u32::from(exact & 0x7f_ffff != 0)).min(254) as u8
            }
        }
    }

    /// What a value is multiplied with to be measured in a scale. In blocks with the smallest scale of
    /// all, 2⁻¹²⁷, values are below 2⁻¹²⁴, and torchao's rules, which this follows, lose most or all of
    /// them: it divides by 2⁻¹²⁶, or by 1.
    #[inline(always)]
    fn inverse(self, scale: u8) -> f32 {
        match (scale, self) {
            (0, Self::Floor) => e8m0_to_f32(253),
            (0, Self::Rceil) => 1.0,
            _ => e8m0_to_f32(254 - scale.min(254)),
        }
    }
}

macro_rules! format {
    ($(#[$doc:meta])* $name:ident, $text:literal, $codes:ident, $largest:literal, $exponent:literal,
     $encode:ident, $decode:expr, $levels:expr, $worst:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub struct $name(pub ScaleRounding);

        impl Format for $name {
            const NAME: &'static str = $text;
            const CODES: CodeLayout = CodeLayout::$codes;
            const SCALES: ScaleType = ScaleType::E8M0;
            type Scale = u8;
            type Tensor = ();
            type Encoder = f32;

            fn grouping(&self) -> Grouping {
                Grouping::Block(MX_BLOCK)
            }

            fn tensor(&self, _amax: f32) {}

            #[inline(always)]
            fn fit(&self, (): &(), extent: Extent) -> (u8, f32) {
                let scale = self.0.scale(extent.amax, $largest, $exponent);
                (scale, self.0.inverse(scale))
            }

            #[inline(always)]
            fn encode(inverse: &f32, values: &[f32; 16]) -> [u8; 16] {
                encode_each(values, |value| $encode(value * inverse))
            }

            #[inline(always)]
            fn decode(&self, (): &(), scale: u8, code: u8) -> f32 {
                let decode: fn(u8) -> f32 = $decode;
                decode(code) * e8m0_to_f32(scale)
            }

            fn levels(&self) -> Levels {
                $levels
            }

            #[inline(always)]
            fn affine(&self, scale: u8) -> (f32, f32) {
                (e8m0_to_f32(scale), 0.0)
            }

            fn worst_error(&self) -> f32 {
                $worst(self.0)
            }
        }
    };
}

format!(
    /// MXFP4: E2M1 elements, the even element of a pair in the low nibble.
    ///
    /// Worst error, over amax: with [`ScaleRounding::Floor`] 1/4, of a value just below 8 scales, which
    /// becomes 6; with [`ScaleRounding::Rceil`] 1/5, of a value of 5 scales that is the largest, half way
    /// between 4 and 6.
    MxFp4, "mxfp4", LowNibbleFirst, 6.0, 2, f32_to_e2m1, |code| E2M1[usize::from(code & 15)],
    e2m1_levels(),
    |rounding| match rounding {
        ScaleRounding::Floor => 1.0 / 4.0,
        ScaleRounding::Rceil => 1.0 / 5.0,
    }
);

format!(
    /// MXFP8 with E4M3 elements.
    ///
    /// Worst error, over amax: with Floor 1/8 (a value just below 512 scales becomes 448); with Rceil
    /// 1/17, half a step of 1/8 at the lower end of a binade.
    MxFp8E4m3, "mxfp8-e4m3", Bytes, 448.0, 8, f32_to_e4m3, e4m3_to_f32,
    Levels::Bytes(&E4M3_VALUES),
    |rounding| match rounding {
        ScaleRounding::Floor => 1.0 / 8.0,
        ScaleRounding::Rceil => 1.0 / 17.0,
    }
);

format!(
    /// MXFP8 with E5M2 elements.
    ///
    /// Worst error, over amax: with Floor 1/8 (a value just below 65536 scales becomes 57344); with
    /// Rceil 1/9, half a step of 1/4 at the lower end of a binade.
    MxFp8E5m2, "mxfp8-e5m2", Bytes, 57344.0, 15, f32_to_e5m2, e5m2_to_f32,
    Levels::Bytes(&E5M2_VALUES),
    |rounding| match rounding {
        ScaleRounding::Floor => 1.0 / 8.0,
        ScaleRounding::Rceil => 1.0 / 9.0,
    }
);

/// E2M1 in halves, which int8 holds exactly.
pub(crate) fn e2m1_levels() -> Levels {
    Levels::Table {
        values: E2M1,
        steps: E2M1.map(|value| (2.0 * value) as i8),
        unit: 0.5,
    }
}

static E4M3_VALUES: [f32; 256] = finite_values(false);
static E5M2_VALUES: [f32; 256] = finite_values(true);

/// Values of codes, in E4M3 or E5M2. No quantizer writes the codes of NaN and infinity, and products
/// must not meet them: they are 0 here.
const fn finite_values(e5m2: bool) -> [f32; 256] {
    let mut values = [0.0; 256];
    let mut code = 0;
    while code < 256 {
        let byte = code as u8;
        let value = if e5m2 {
            e5m2_to_f32(byte)
        } else {
            e4m3_to_f32(byte)
        };
        if value.is_finite() {
            values[code] = value;
        }
        code += 1;
    }
    values
}
