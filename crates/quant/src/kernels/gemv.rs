//! The int8 product of one row: each weight is read once.

use super::store_some;
use super::weights::{Weights, begin};
use crate::activations::Activations;
use crate::packed::Packed;
use crate::simd::{LANES, Simd, Work};
use core::ops::Range;

/// Some tiles times one row.
pub(crate) struct Gemv<'a, 'b> {
    pub matrix: &'a Packed<'b>,
    pub x: &'a Activations,
    pub tiles: Range<usize>,
    /// Their rows.
    pub out: &'a mut [f32],
}

impl Work for Gemv<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let weights = Weights::new(simd, self.matrix);
        let first = self.tiles.start;
        for tile in self.tiles {
            // SAFETY: `Packed` and `Activations` have the lengths that their shapes ask for, which
            // `check` has compared.
            let y = unsafe {
                match (weights.nibbles, self.x.mode.is_per_row()) {
                    (true, true) => row::<S, true, true>(simd, weights, self.x, tile),
                    (true, false) => row::<S, true, false>(simd, weights, self.x, tile),
                    (false, true) => row::<S, false, true>(simd, weights, self.x, tile),
                    (false, false) => row::<S, false, false>(simd, weights, self.x, tile),
                }
            };
            store_some(simd, y, &mut self.out[(tile - first) * LANES..]);
        }
    }
}
/// The product of a tile with the only row of activations. Groups of the usual lengths are unrolled.
#[inline(always)]
unsafe fn row<S: Simd, const NIBBLES: bool, const PER_ROW: bool>(
    simd: S,
    weights: Weights<S>,
    x: &Activations,
    tile: usize,
) -> S::F {
    let whole = weights.eights == weights.last_eights;
    // SAFETY: the caller's promise.
    unsafe {
        match if whole { weights.eights } else { 0 } {
            2 => row_of::<S, NIBBLES, PER_ROW, 2>(simd, weights, x, tile),
            4 => row_of::<S, NIBBLES, PER_ROW, 4>(simd, weights, x, tile),
            8 => row_of::<S, NIBBLES, PER_ROW, 8>(simd, weights, x, tile),
            _ => row_of::<S, NIBBLES, PER_ROW, 0>(simd, weights, x, tile),
        }
    }
}

/// [`row`] for groups of `EIGHTS` times eight columns, or of any length if that is 0.
#[inline(always)]
unsafe fn row_of<S: Simd, const NIBBLES: bool, const PER_ROW: bool, const EIGHTS: usize>(
    simd: S,
    weights: Weights<S>,
    x: &Activations,
    tile: usize,
) -> S::F {
    let mut a = x.values.as_ptr().cast::<i8>();
    let (biases, sums, scales) = (x.biases.as_ptr(), x.sums.as_ptr(), x.scales.as_ptr());
    let mut acc = simd.splat(0.0);
    // SAFETY: within the tile's codes and the row's values, which have the same depth.
    // Prefetching may name any address.
    unsafe {
        let mut codes = weights.codes.add(tile * weights.tile_bytes);
        for group in 0..weights.groups {
            // Two chains, since each waits for its last link.
            let mut even = begin(simd, biases.add(group));
            let mut odd = simd.splat_i(0);
            let eights = if EIGHTS > 0 {
                EIGHTS
            } else {
                weights.eights(group)
            };
            for _ in 0..eights {
                simd.prefetch(codes.wrapping_add(weights.ahead));
                if NIBBLES {
                    let (low, high) = simd.nibbles(simd.load_b(codes), weights.biased);
                    even = simd.dot(even, simd.weights(low), a);
                    odd = simd.dot(odd, simd.weights(high), a.add(4));
                    codes = codes.add(64);
                } else {
                    simd.prefetch(codes.wrapping_add(weights.ahead + 64));
                    even = simd.dot(even, simd.weights(simd.load_b(codes)), a);
                    odd = simd.dot(odd, simd.weights(simd.load_b(codes.add(64))), a.add(4));
                    codes = codes.add(128);
                }
                a = a.add(8);
            }
            let total = simd.to_float(simd.add_i(even, odd));
            let place = weights.place(tile, group);
            let mut scale = weights.scale(simd, place);
            if !PER_ROW {
                scale = simd.mul(scale, simd.splat(*scales.add(group)));
            }
            acc = simd.fma(total, scale, acc);
            if weights.shifted {
                let shift = simd.load(weights.shifts.add(place));
                acc = simd.fma(shift, simd.splat(*sums.add(group)), acc);
            }
        }
        let factor = if PER_ROW {
            weights.factor * *scales
        } else {
            weights.factor
        };
        simd.mul(acc, simd.splat(factor))
    }
}
