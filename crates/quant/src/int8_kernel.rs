//! Products with int8 activations: integer sums for each group of weights, which are the same on every
//! instruction set, and one fused multiply-add in f32 for each sum, in the order of the groups.
//!
//! ```text
//! y = unit · factor · Σ_g fma(Σ w·a, scale_w·scale_a, …)     shifts: + fma(shift, Σa·scale_a, …)
//! ```

use crate::activations::Activations;
use crate::format::Levels;
use crate::matrix::ScaleType;
use crate::packed::{Line, Packed};
use crate::parallel::Parts;
use crate::product::store;
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
        let Self { matrix, x, .. } = self;
        let weights = Weights::new(simd, matrix);
        let first = self.tiles.start;
        for tile in self.tiles {
            // SAFETY: `Packed` and `Activations` have the lengths that their shapes ask for, which
            // `check` has compared.
            let y = unsafe { weights.row(simd, x, tile) };
            let out = &mut self.out[(tile - first) * LANES..];
            if out.len() >= LANES {
                // SAFETY: 16 floats.
                unsafe { simd.store(y, out.as_mut_ptr()) }
            } else {
                let mut all = [0.0; LANES];
                // SAFETY: 16 floats.
                unsafe { simd.store(y, all.as_mut_ptr()) }
                out.copy_from_slice(&all[..out.len()]);
            }
        }
    }
}

/// A matrix as the kernels walk through it.
#[derive(Clone, Copy)]
struct Weights<'a, S: Simd> {
    codes: *const u8,
    scales: *const u8,
    shifts: *const f32,
    matrix: &'a Packed<'a>,
    table: S::T,
    factor: f32,
}

impl<'a, S: Simd> Weights<'a, S> {
    #[inline(always)]
    fn new(simd: S, matrix: &'a Packed<'a>) -> Self {
        let (steps, unit) = match &matrix.structure.levels {
            Levels::Table { steps, unit, .. } => (*steps, *unit),
            _ => ([0; 16], 1.0),
        };
        Self {
            codes: matrix.codes.as_ptr(),
            scales: matrix.scales.as_ptr(),
            shifts: matrix.shifts.as_ptr().cast(),
            matrix,
            table: simd.table(&steps.map(|step| step.cast_unsigned() ^ 0x80)),
            factor: unit * matrix.structure.factor,
        }
    }

    #[inline(always)]
    unsafe fn scale(&self, simd: S, tile: usize, group: usize) -> S::F {
        let structure = &self.matrix.structure;
        let place = (tile * self.matrix.groups() + group) * LANES;
        // SAFETY: the matrix has scales for each tile and group.
        unsafe {
            let at = self.scales.add(place * structure.scales.bytes());
            match structure.scales {
                ScaleType::F32 => simd.scales_f32(at),
                ScaleType::F16 => simd.scales_f16(at),
                ScaleType::E8M0 => simd.scales_e8m0(at),
                ScaleType::E4M3 => simd.scales_e4m3(at),
            }
        }
    }

    /// `acc + shift · Σ a · scale_a`.
    #[inline(always)]
    unsafe fn shift(
        &self,
        simd: S,
        acc: S::F,
        tile: usize,
        group: usize,
        sum: i32,
        scale: f32,
    ) -> S::F {
        if !self.matrix.structure.shifted {
            return acc;
        }
        let place = (tile * self.matrix.groups() + group) * LANES;
        // SAFETY: the matrix has shifts for each tile and group.
        let shift = unsafe { simd.load(self.shifts.add(place)) };
        simd.fma(shift, simd.splat(sum as f32 * scale), acc)
    }

    /// The product of a tile with the only row.
    #[inline(always)]
    unsafe fn row(&self, simd: S, x: &Activations, tile: usize) -> S::F {
        let matrix = self.matrix;
        let nibbles = matrix.structure.nibbles;
        let mut acc = simd.splat(0.0);
        let mut a = x.values.as_ptr().cast::<i8>();
        // SAFETY of the block: within the tile's codes and the row's values, which have the same depth.
        unsafe {
            let mut codes = self.codes.add(tile * matrix.tile_bytes());
            for group in 0..matrix.groups() {
                let steps = matrix.group_depth(group) / 8;
                let (sum, scale) = (x.sums[group], x.scales[group]);
                // Two chains, since each waits for its last link.
                let mut even = simd.splat_i(bias::<S>(sum));
                let mut odd = simd.splat_i(0);
                if nibbles {
                    for _ in 0..steps {
                        let (low, high) = simd.nibbles(simd.load_b(codes), self.table);
                        even = simd.dot(even, simd.weights(low), a);
                        odd = simd.dot(odd, simd.weights(high), a.add(4));
                        (codes, a) = (codes.add(64), a.add(8));
                    }
                } else {
                    for _ in 0..steps {
                        even = simd.dot(even, simd.weights(simd.load_b(codes)), a);
                        odd = simd.dot(odd, simd.weights(simd.load_b(codes.add(64))), a.add(4));
                        (codes, a) = (codes.add(128), a.add(8));
                    }
                }
                let total = simd.to_float(simd.add_i(even, odd));
                let scales = simd.mul(self.scale(simd, tile, group), simd.splat(scale));
                acc = simd.fma(total, scales, acc);
                acc = self.shift(simd, acc, tile, group, sum, scale);
            }
        }
        simd.mul(acc, simd.splat(self.factor))
    }
}

/// Where a sum begins, so that weights which are 128 too large come out right.
#[inline(always)]
fn bias<S: Simd>(sum: i32) -> i32 {
    if S::BIASED { sum.wrapping_mul(-128) } else { 0 }
}

/// Bytes that a worker needs to unpack `tiles` tiles.
pub(crate) fn scratch_bytes(matrix: &Packed, tiles: usize) -> usize {
    if matrix.structure.nibbles {
        tiles * matrix.depth() * LANES
    } else {
        0
    }
}

/// One or two tiles times all rows.
pub(crate) struct Gemm<'a, 'b, 'c> {
    pub matrix: &'a Packed<'b>,
    pub x: &'a Activations,
    pub tiles: Range<usize>,
    pub scratch: &'a mut [Line],
    pub out: &'a Parts<'c, f32>,
}

impl Work for Gemm<'_, '_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { matrix, x, .. } = self;
        let weights = Weights::new(simd, matrix);
        let depth_bytes = matrix.depth() * LANES;
        let base = if matrix.structure.nibbles {
            let mut to = self.scratch.as_mut_ptr().cast::<u8>();
            // SAFETY: the tiles' codes follow each other, and `scratch_bytes` is their room.
            unsafe {
                let mut from = weights.codes.add(self.tiles.start * matrix.tile_bytes());
                for _ in 0..self.tiles.len() * matrix.depth() / 8 {
                    let (low, high) = simd.nibbles(simd.load_b(from), weights.table);
                    simd.store_b(low, to);
                    simd.store_b(high, to.add(64));
                    (from, to) = (from.add(64), to.add(128));
                }
            }
            self.scratch.as_ptr().cast::<u8>()
        } else {
            // SAFETY: within the matrix.
            unsafe { weights.codes.add(self.tiles.start * matrix.tile_bytes()) }
        };
        let mut tile = self.tiles.start;
        while tile < self.tiles.end {
            // SAFETY: within what was unpacked, or within the matrix; each tile is multiplied once.
            unsafe {
                let codes = base.add((tile - self.tiles.start) * depth_bytes);
                if S::TILES == 2 && tile + 1 < self.tiles.end {
                    panel::<S, 2>(simd, &weights, x, tile, codes, self.out);
                    tile += 2;
                } else {
                    panel::<S, 1>(simd, &weights, x, tile, codes, self.out);
                    tile += 1;
                }
            }
        }
    }
}

/// `TILES` tiles times all rows.
#[inline(always)]
unsafe fn panel<S: Simd, const TILES: usize>(
    simd: S,
    weights: &Weights<S>,
    x: &Activations,
    tile: usize,
    codes: *const u8,
    out: &Parts<f32>,
) {
    for block in 0..x.blocks() {
        let used = x.stride.min(x.rows - block * x.stride);
        let mut row = 0;
        while row < used {
            let left = used - row;
            let place = Place {
                tile,
                codes,
                block,
                row,
                used: left,
            };
            // SAFETY: the caller's promise; a block has room for as many rows as are multiplied.
            unsafe {
                if S::ROWS == 12 && left > 8 {
                    rows::<S, 12, TILES>(simd, weights, x, place, out);
                    row += 12;
                } else if S::ROWS == 12 && left > 4 {
                    rows::<S, 8, TILES>(simd, weights, x, place, out);
                    row += 8;
                } else if left > 1 {
                    rows::<S, 4, TILES>(simd, weights, x, place, out);
                    row += 4;
                } else {
                    rows::<S, 1, TILES>(simd, weights, x, place, out);
                    row += 1;
                }
            }
        }
    }
}

/// What a kernel multiplies.
#[derive(Clone, Copy)]
struct Place {
    tile: usize,
    codes: *const u8,
    block: usize,
    /// The first row, counted in its block.
    row: usize,
    /// Rows from there on that exist.
    used: usize,
}

/// `ROWS` rows times `TILES` tiles.
#[inline(always)]
unsafe fn rows<S: Simd, const ROWS: usize, const TILES: usize>(
    simd: S,
    weights: &Weights<S>,
    x: &Activations,
    place: Place,
    out: &Parts<f32>,
) {
    let matrix = weights.matrix;
    let (stride, groups) = (x.stride, matrix.groups());
    let mut acc = [[simd.splat(0.0); TILES]; ROWS];
    // SAFETY of the block: within the block of activations and the tiles' codes, of the same depth.
    unsafe {
        let mut a = x
            .values
            .as_ptr()
            .add(place.block * x.block_words() + place.row)
            .cast::<i8>();
        let sums = x
            .sums
            .as_ptr()
            .add(place.block * stride * groups + place.row);
        let scales = x
            .scales
            .as_ptr()
            .add(place.block * stride * groups + place.row);
        let mut codes = place.codes;
        for group in 0..groups {
            let at = group * stride;
            let mut sum = [[simd.splat_i(0); TILES]; ROWS];
            if S::BIASED {
                for (row, sum) in sum.iter_mut().enumerate() {
                    *sum = [simd.splat_i(bias::<S>(*sums.add(at + row))); TILES];
                }
            }
            for _ in 0..matrix.group_depth(group) / 4 {
                let w: [S::W; TILES] = core::array::from_fn(|tile| {
                    simd.weights(simd.load_b(codes.add(tile * matrix.depth() * LANES)))
                });
                for (row, sum) in sum.iter_mut().enumerate() {
                    for tile in 0..TILES {
                        sum[tile] = simd.dot(sum[tile], w[tile], a.add(4 * row));
                    }
                }
                (codes, a) = (codes.add(64), a.add(4 * stride));
            }
            let scale_w: [S::F; TILES] =
                core::array::from_fn(|tile| weights.scale(simd, place.tile + tile, group));
            for row in 0..ROWS {
                let scale = *scales.add(at + row);
                for tile in 0..TILES {
                    let both = simd.mul(scale_w[tile], simd.splat(scale));
                    let total = simd.to_float(sum[row][tile]);
                    let now = simd.fma(total, both, acc[row][tile]);
                    let sum = *sums.add(at + row);
                    acc[row][tile] = weights.shift(simd, now, place.tile + tile, group, sum, scale);
                }
            }
        }
        for (row, acc) in acc.iter().enumerate().take(place.used) {
            for (tile, acc) in acc.iter().enumerate() {
                let y = simd.mul(*acc, simd.splat(weights.factor));
                let row = place.block * stride + place.row + row;
                store(simd, y, out, matrix.rows, row, place.tile + tile);
            }
        }
    }
}
