//! The element types of unquantized matrices.

use half::{bf16, f16};

/// A type that weights and activations come in: `f32`, `f16`, `bf16`.
///
/// Conversions from the 16-bit types are exact and written without branches, so that the compiler
/// vectorizes them for whatever instructions the caller was compiled for.
pub trait Element: Copy + Send + Sync + sealed::Sealed + 'static {
    /// Its name as safetensors spells it.
    const DTYPE: &'static str;
    /// Exact.
    fn to_f32(self) -> f32;
    /// Rounded to nearest, ties to even.
    fn from_f32(value: f32) -> Self;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::f16 {}
    impl Sealed for half::bf16 {}
}

impl Element for f32 {
    const DTYPE: &'static str = "F32";

    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }

    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        value
    }
}

impl Element for bf16 {
    const DTYPE: &'static str = "BF16";

    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        Self::from_bits(bf16_bits(value))
    }
}

impl Element for f16 {
    const DTYPE: &'static str = "F16";

    #[inline(always)]
    fn to_f32(self) -> f32 {
        f16_to_f32(self.to_bits())
    }

    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        // `half` uses the processor's instruction where there is one.
        Self::from_f32(value)
    }
}

/// The value of f16 bits. Denormals are right because the product with 2¹¹² normalizes them.
#[inline(always)]
pub(crate) const fn f16_to_f32(bits: u16) -> f32 {
    let bits = bits as u32;
    let magnitude = (bits & 0x7fff) << 13;
    let scaled = f32::from_bits(magnitude) * f32::from_bits((112 + 127) << 23);
    // Exponent 31 is infinity or NaN.
    let special = f32::from_bits(magnitude | 0x7f80_0000);
    let value = if magnitude >= 0x0f80_0000 {
        special
    } else {
        scaled
    };
    f32::from_bits(value.to_bits() | (bits & 0x8000) << 16)
}

/// bf16 bits of a value, ties to even; NaN stays NaN.
#[inline(always)]
pub(crate) fn bf16_bits(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    let nan = (bits >> 16) | 0x40;
    let nan_in = bits & 0x7fff_ffff > 0x7f80_0000;
    (if nan_in { nan } else { rounded }) as u16
}

/// 1.5 · 2²³: its last bit stands for one, so that a sum with it is rounded to an integer.
pub(crate) const MAGIC: f32 = 12_582_912.0;

/// The nearest integer, ties to even, of a value below 2²² in magnitude.
#[inline(always)]
pub(crate) fn round(value: f32) -> f32 {
    (value + MAGIC) - MAGIC
}

/// The nearest integer, ties to even, of a value that rounds to an i8.
#[inline(always)]
pub(crate) fn round_to_i8(value: f32) -> i8 {
    // The sum's lowest bits are the integer in two's complement.
    (value + MAGIC).to_bits() as i8
}

/// `a · b + c`, rounded once.
#[inline(always)]
pub(crate) fn fma(a: f32, b: f32, c: f32) -> f32 {
    #[cfg(feature = "std")]
    return a.mul_add(b, c);
    #[cfg(not(feature = "std"))]
    libm::fmaf(a, b, c)
}

/// Bits of the magnitude, which order as the magnitudes do; [`INFINITE`] and above are not finite.
#[inline(always)]
pub(crate) fn magnitude_bits(value: f32) -> u32 {
    value.to_bits() & 0x7fff_ffff
}

/// Magnitude bits of infinity; those of NaN lie above.
pub(crate) const INFINITE: u32 = 0x7f80_0000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_f16_are_exact() {
        for bits in 0..=u16::MAX {
            let expected = f16::from_bits(bits).to_f32_const();
            let found = f16_to_f32(bits);
            assert!(
                found.to_bits() == expected.to_bits() || (found.is_nan() && expected.is_nan()),
                "{bits:#x}: {found} {expected}"
            );
        }
    }

    #[test]
    fn bf16_rounds_as_half_does() {
        for high in 0..=u16::MAX {
            for low in [0_u16, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let value = f32::from_bits(u32::from(high) << 16 | u32::from(low));
                let expected = bf16::from_f32(value);
                let found = bf16::from_bits(bf16_bits(value));
                assert!(
                    found == expected || (found.is_nan() && expected.is_nan()),
                    "{value}"
                );
            }
        }
    }

    #[test]
    fn rounding_is_to_even() {
        for (value, expected) in [
            (0.5, 0.0),
            (1.5, 2.0),
            (-2.5, -2.0),
            (126.5, 126.0),
            (-0.4, 0.0),
        ] {
            assert_eq!(round(value), expected);
        }
    }
}
