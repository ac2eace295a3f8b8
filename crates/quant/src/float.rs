//! Small floats: E8M0, E4M3, E5M2 and E2M1, as the OCP specifications define them.

use crate::element::MAGIC;

/// The value of an E8M0 byte, 2^(byte − 127); 255 is NaN.
#[inline(always)]
pub fn e8m0_to_f32(byte: u8) -> f32 {
    match byte {
        0 => f32::from_bits(0x0040_0000),
        255 => f32::NAN,
        _ => f32::from_bits(u32::from(byte) << 23),
    }
}

/// The value of an E4M3 byte (`float8_e4m3fn`: no infinities, 0x7f and 0xff are NaN).
#[inline(always)]
pub const fn e4m3_to_f32(byte: u8) -> f32 {
    let magnitude = (byte & 0x7f) as u32;
    // The product with 2¹²⁰ moves the exponent's bias, and normalizes denormals.
    let value = f32::from_bits(magnitude << 20) * f32::from_bits((120 + 127) << 23);
    let value = if magnitude == 0x7f { f32::NAN } else { value };
    f32::from_bits(value.to_bits() | ((byte & 0x80) as u32) << 24)
}

/// The nearest E4M3 byte, ties to even; magnitudes above 448 become 448. `value` is not NaN.
#[inline(always)]
pub fn f32_to_e4m3(value: f32) -> u8 {
    small_float::<3>(value, 448.0, 7)
}

/// The value of an E5M2 byte: the upper half of an f16.
#[inline(always)]
pub const fn e5m2_to_f32(byte: u8) -> f32 {
    crate::element::f16_to_f32((byte as u16) << 8)
}

/// The nearest E5M2 byte, ties to even; magnitudes above 57344 become 57344. `value` is not NaN.
#[inline(always)]
pub fn f32_to_e5m2(value: f32) -> u8 {
    small_float::<2>(value, 57344.0, 15)
}

/// Rounds to a float of one byte with `MANTISSA` stored bits.
#[inline(always)]
fn small_float<const MANTISSA: u32>(value: f32, largest: f32, bias: u32) -> u8 {
    let magnitude = value.abs();
    let magnitude = if magnitude > largest {
        largest
    } else {
        magnitude
    };
    let bits = magnitude.to_bits();
    let shift = 23 - MANTISSA;
    let half = (1 << (shift - 1)) - 1;
    let normal =
        ((bits + half + ((bits >> shift) & 1)) >> shift).wrapping_sub((127 - bias) << MANTISSA);
    // Below the smallest normal number the step is that of the smallest: 2^(1 − bias − MANTISSA).
    let per_step = f32::from_bits((127 + bias - 1 + MANTISSA) << 23);
    let denormal = (magnitude * per_step + MAGIC).to_bits() & 0xff;
    let smallest_normal = f32::from_bits((127 + 1 - bias) << 23);
    let code = if magnitude < smallest_normal {
        denormal
    } else {
        normal
    };
    (code | (value.to_bits() >> 24 & 0x80)) as u8
}

/// The values of E2M1 codes; bit 3 is the sign.
pub const E2M1: [f32; 16] = [
    0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0,
];

/// The nearest E2M1 code, ties to even; magnitudes above 6 become 6. `value` is not NaN.
#[inline(always)]
pub fn f32_to_e2m1(value: f32) -> u8 {
    let x = value.abs();
    // A tie goes to the code with an even last bit: up at 0.75, 1.75, 3.5.
    // In 32 bits, as wide as the comparisons are.
    let code = u32::from(x > 0.25)
        + u32::from(x >= 0.75)
        + u32::from(x > 1.25)
        + u32::from(x >= 1.75)
        + u32::from(x > 2.5)
        + u32::from(x >= 3.5)
        + u32::from(x > 5.0);
    (code | value.to_bits() >> 28 & 8) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of all bytes the one whose value is nearest, the even one at a tie.
    fn nearest(value: f32, decode: fn(u8) -> f32) -> u8 {
        let sign = (value.to_bits() >> 24 & 0x80) as u8;
        let candidates = (0..0x80_u8).filter(|byte| decode(*byte).is_finite());
        let distance = |byte: u8| (f64::from(decode(byte)) - f64::from(value.abs())).abs();
        let best = candidates.min_by(|a, b| {
            distance(*a)
                .total_cmp(&distance(*b))
                .then((a & 1).cmp(&(b & 1)))
        });
        best.map_or(0, |byte| byte | sign)
    }

    #[test]
    fn rounding_is_to_the_nearest_even_byte() {
        for (decode, encode) in [
            (e4m3_to_f32 as fn(u8) -> f32, f32_to_e4m3 as fn(f32) -> u8),
            (e5m2_to_f32, f32_to_e5m2),
        ] {
            for byte in 0..0x7c_u8 {
                let (low, high) = (decode(byte), decode(byte + 1));
                if !high.is_finite() {
                    continue;
                }
                let middle = f32::midpoint(low, high);
                for value in [low, middle, middle.next_down(), middle.next_up(), high] {
                    for value in [value, -value] {
                        assert_eq!(encode(value), nearest(value, decode), "{value}");
                    }
                }
            }
        }
        assert_eq!(f32_to_e4m3(1e9), 0x7e);
        assert_eq!(f32_to_e5m2(-1e9), 0xfb);
        assert_eq!(f32_to_e4m3(-0.0), 0x80);
    }

    #[test]
    fn e2m1_ties_are_to_even() {
        for (value, code) in [
            (0.25, 0),
            (0.75, 2),
            (1.25, 2),
            (1.75, 4),
            (2.5, 4),
            (3.5, 6),
            (5.0, 6),
            (9.0, 7),
        ] {
            assert_eq!(f32_to_e2m1(value), code, "{value}");
            assert_eq!(f32_to_e2m1(-value), code | 8);
        }
        assert!(
            E2M1.iter()
                .enumerate()
                .all(|(code, value)| usize::from(f32_to_e2m1(*value)) == code)
        );
    }

    #[test]
    fn powers_of_two_are_exact() {
        assert_eq!(e8m0_to_f32(0), 2_f32.powi(-127));
        assert_eq!(e8m0_to_f32(254), 2_f32.powi(127));
        assert!(e8m0_to_f32(255).is_nan());
    }
}
