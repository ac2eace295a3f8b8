//! The extremes of a group of values, which its scale is made from.

use crate::element::{Element, INFINITE, magnitude_bits};

/// What a quantizer knows of a group, or of the tensor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Extent {
    /// The largest magnitude.
    pub amax: f32,
    /// The smallest value, at most 0.
    pub min: f32,
    /// The largest value, at least 0.
    pub max: f32,
    /// The value of the largest magnitude, the first if there are several.
    pub peak: f32,
    /// Whether the group is shorter than the format's others: the last of a matrix, or of a row.
    pub partial: bool,
}

impl Extent {
    /// Of nothing but zeros.
    pub const NOTHING: Self = Self {
        amax: 0.0,
        min: 0.0,
        max: 0.0,
        peak: 0.0,
        partial: false,
    };

    /// Of values between `min` and `max`; they are looked at again only if both have one magnitude.
    #[inline(always)]
    pub(super) fn new<I: Iterator<Item = f32>>(
        min: f32,
        max: f32,
        values: impl FnOnce() -> I,
    ) -> Self {
        let peak = if -min > max {
            min
        } else if max > -min {
            max
        } else {
            let first = values().find(|value| value.abs() == max);
            first.unwrap_or(max)
        };
        Self {
            amax: peak.abs(),
            min,
            max,
            peak,
            partial: false,
        }
    }
}

/// [`extent`] with the sign.
#[cfg(feature = "std")]
#[inline(always)]
pub(crate) fn measure<T: Element>(values: &[T]) -> Result<Extent, usize> {
    extent::<T, true>(values)
}

/// The largest magnitude of a slice, or the place of its first value that is not finite.
#[inline(always)]
pub(crate) fn amax<T: Element>(values: &[T]) -> Result<f32, usize> {
    extent::<T, false>(values).map(|extent| extent.amax)
}

/// The extent of a slice, or the place of its first value that is not finite; without `SIGNED` only the magnitude is looked for. Reductions of integers, which the
/// compiler vectorizes as they stand: those of floats it would have to keep in order.
#[inline(always)]
pub(super) fn extent<T: Element, const SIGNED: bool>(values: &[T]) -> Result<Extent, usize> {
    let mut bits = 0_u32;
    let (mut min, mut max) = (0_i32, 0_i32);
    for value in values {
        let value = value.to_f32();
        if SIGNED {
            let key = ordered(value.to_bits().cast_signed());
            min = min.min(key);
            max = max.max(key);
        } else {
            bits = bits.max(magnitude_bits(value));
        }
    }
    if SIGNED {
        let (min, max) = (ordered(min), ordered(max));
        bits = magnitude_bits(f32::from_bits(min.cast_unsigned())).max(max.cast_unsigned());
    }
    if bits >= INFINITE {
        let place = values.iter().position(|value| !value.to_f32().is_finite());
        return Err(place.unwrap_or(0));
    }
    if SIGNED {
        let float = |key: i32| f32::from_bits(ordered(key).cast_unsigned());
        return Ok(Extent::new(float(min), float(max), || {
            values.iter().map(|value| value.to_f32())
        }));
    }
    let amax = f32::from_bits(bits);
    Ok(Extent {
        amax,
        min: -amax,
        max: amax,
        peak: amax,
        partial: false,
    })
}

/// Bits of a float as an integer that orders as the floats do, and back.
#[inline(always)]
fn ordered(bits: i32) -> i32 {
    bits ^ ((bits >> 31) & 0x7fff_ffff)
}

/// The extent of the finite values.
pub(super) fn finite_extent<T: Element>(values: &[T]) -> Extent {
    let finite = || {
        let values = values.iter().map(|value| value.to_f32());
        values.filter(|value| value.is_finite())
    };
    let min = finite().fold(0.0, f32::min);
    let max = finite().fold(0.0, f32::max);
    Extent::new(min, max, finite)
}
