//! The extent of weights that are being updated.

use crate::element::{Element, INFINITE, magnitude_bits};
use crate::format::Extent;

/// The extent of a slice, or the place of its first value that is not finite.
#[inline(always)]
pub(super) fn measure<T: Element>(values: &[T]) -> Result<Extent, usize> {
    const WIDE: usize = 16;
    let (mut bits, mut min, mut max) = ([0_u32; WIDE], [0_f32; WIDE], [0_f32; WIDE]);
    for chunk in values.chunks(WIDE) {
        for (i, value) in chunk.iter().enumerate() {
            let value = value.to_f32();
            bits[i] = bits[i].max(magnitude_bits(value));
            min[i] = if value < min[i] { value } else { min[i] };
            max[i] = if value > max[i] { value } else { max[i] };
        }
    }
    if bits.into_iter().any(|bits| bits >= INFINITE) {
        let place = values.iter().position(|value| !value.to_f32().is_finite());
        return Err(place.unwrap_or(0));
    }
    let min = min.into_iter().fold(0.0, f32::min);
    let max = max.into_iter().fold(0.0, f32::max);
    let amax = max.max(-min);
    let first = values.iter().map(|value| value.to_f32());
    let peak = match (-min > max, max > -min) {
        (true, _) => min,
        (_, true) => max,
        // Both ends are as large: the first counts.
        _ => first
            .into_iter()
            .find(|value| value.abs() == amax)
            .unwrap_or(0.0),
    };
    Ok(Extent {
        amax,
        min,
        max,
        peak,
    })
}

/// The extent of two parts, the first of which comes first.
pub(super) fn join(a: Extent, b: Extent) -> Extent {
    let larger = if b.amax > a.amax { b } else { a };
    Extent {
        amax: larger.amax,
        min: a.min.min(b.min),
        max: a.max.max(b.max),
        peak: larger.peak,
    }
}
