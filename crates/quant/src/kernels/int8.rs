//! Products with int8 activations: integer sums for each group of weights, which are the same on every
//! instruction set, and one fused multiply-add in f32 for each sum, in the order of the groups.
//!
//! ```text
//! one scale for each row and group:  y = unit · Σ_g (fma(Σ w·a, scale_w · scale_a, …), fma(shift, Σa · scale_a, …))
//! one scale for each row:            y = scale_a · unit · Σ_g (fma(Σ w·a, scale_w, …), fma(shift, Σa, …))
//! ```

#![allow(clippy::needless_range_loop, reason = "several arrays at one index")]

use super::weights::{Weights, begin};
use super::{Gemm, InRows, block_in_rows, store};
use crate::activations::Activations;
use crate::packed::Packed;
use crate::parallel::Parts;
use crate::simd::{LANES, Simd, Work};

/// Tiles that are multiplied side by side.
const TILES: usize = 2;

/// Bytes that a worker needs for `rows` rows of activations.
pub(crate) fn scratch_bytes(matrix: &Packed, x: &Activations, rows: usize) -> usize {
    #[cfg(target_arch = "x86_64")]
    if x.in_tiles {
        return super::int8_tiles::scratch_bytes(matrix, rows);
    }
    let _ = (x, rows);
    if matrix.structure.nibbles {
        TILES * matrix.depth() * LANES
    } else {
        0
    }
}

/// The product in an int8 mode.
pub(crate) struct Int8<'a, 'b, 'c>(pub Gemm<'a, 'b, 'c>);

impl Work for Int8<'_, '_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let gemm = self.0;
        let weights = Weights::new(simd, gemm.matrix);
        #[cfg(target_arch = "x86_64")]
        if S::AMX && gemm.x.in_tiles {
            // SAFETY: `S::AMX` says that AMX is allowed; scratch is of `scratch_bytes`.
            unsafe { super::int8_tiles::run(simd, weights, gemm) };
            return;
        }
        let per_row = gemm.x.mode.is_per_row();
        let mut tile = gemm.tiles.start;
        while tile < gemm.tiles.end {
            let tiles = S::TILES.min(TILES).min(gemm.tiles.end - tile);
            let next = tiles.min(gemm.tiles.end - tile - tiles);
            // SAFETY: within the matrix, and scratch is of `scratch_bytes`; each tile is multiplied
            // once.
            unsafe {
                let packed = weights.codes.add(tile * weights.tile_bytes);
                let (mut codes, mut pitch) = (packed, weights.tile_bytes);
                if weights.nibbles {
                    let to = gemm.scratch.as_mut_ptr().cast::<u8>();
                    let eights = tiles * weights.depth / 8;
                    Weights::unpack(simd, weights.biased, packed, to, eights);
                    (codes, pitch) = (to, weights.depth * LANES);
                }
                let place = Place {
                    tile,
                    codes,
                    pitch,
                    next: packed.wrapping_add(if next > 0 {
                        tiles * weights.tile_bytes
                    } else {
                        0
                    }),
                    next_bytes: next * weights.tile_bytes,
                };
                match (tiles, per_row) {
                    (2, true) => panel::<S, 2, true>(simd, weights, &gemm, place),
                    (2, false) => panel::<S, 2, false>(simd, weights, &gemm, place),
                    (_, true) => panel::<S, 1, true>(simd, weights, &gemm, place),
                    (_, false) => panel::<S, 1, false>(simd, weights, &gemm, place),
                }
            }
            tile += tiles;
        }
    }
}

/// Where some tiles are, a byte for each code.
#[derive(Clone, Copy)]
struct Place {
    /// The first.
    tile: usize,
    codes: *const u8,
    /// Bytes from a tile to the next.
    pitch: usize,
    /// Codes that this worker will need after these.
    next: *const u8,
    next_bytes: usize,
}

/// `TILES` tiles times the blocks.
#[inline(always)]
unsafe fn panel<S: Simd, const TILES: usize, const PER_ROW: bool>(
    simd: S,
    weights: Weights<S>,
    gemm: &Gemm,
    place: Place,
) {
    let panel = Panel::<S, TILES, PER_ROW> {
        weights,
        x: gemm.x,
        place,
        first: gemm.blocks.start,
        next_step: place
            .next_bytes
            .div_ceil((gemm.blocks.len() * weights.depth / 4).max(1)),
        out: gemm.out,
    };
    for block in gemm.blocks.clone() {
        // SAFETY: the caller's promise.
        unsafe { block_in_rows(simd, gemm.x, block, &panel) };
    }
}

/// `TILES` tiles on their way through the rows.
struct Panel<'a, 'b, S: Simd, const TILES: usize, const PER_ROW: bool> {
    weights: Weights<S>,
    x: &'a Activations,
    place: Place,
    /// The first block.
    first: usize,
    /// Bytes of the next tiles to ask for with every four columns, so that they are near when this
    /// panel is done.
    next_step: usize,
    out: &'a Parts<'b, f32>,
}

impl<S: Simd, const TILES: usize, const PER_ROW: bool> InRows<S>
    for Panel<'_, '_, S, TILES, PER_ROW>
{
    #[inline(always)]
    unsafe fn rows<const ROWS: usize>(&self, simd: S, block: usize, row: usize) {
        let (weights, x, tile) = (self.weights, self.x, self.place.tile);
        let (stride, groups) = (x.stride, weights.groups);
        // In memory: registers are for the integer sums.
        let mut room = [[[0_f32; LANES]; TILES]; ROWS];
        let acc = room.as_mut_ptr().cast::<f32>();
        // SAFETY: within the block of activations and the tiles' codes, of the same depth.
        unsafe {
            let mut a = x
                .values
                .as_ptr()
                .add(block * x.block_words() + row)
                .cast::<i8>();
            let first = block * stride * groups + row;
            let mut biases = x.biases.as_ptr().add(first);
            let mut sums = x.sums.as_ptr().add(first);
            let mut scales = x.scales.as_ptr().add(first);
            let row_scales = scales;
            let mut codes = self.place.codes;
            let share = self.next_step * weights.depth / 4;
            let mut next = self.place.next.wrapping_add((block - self.first) * share);
            for group in 0..groups {
                let fours = 2 * weights.eights(group);
                let operands = Operands {
                    biases,
                    codes,
                    pitch: self.place.pitch,
                    a,
                    a_step: 4 * stride,
                    next,
                    next_step: self.next_step,
                };
                let total = dots::<S, ROWS, TILES>(simd, operands, fours);
                (codes, a) = (codes.add(64 * fours), a.add(4 * stride * fours));
                next = next.wrapping_add(self.next_step * fours);
                let mut scale_w = [simd.splat(0.0); TILES];
                for t in 0..TILES {
                    scale_w[t] = weights.scale(simd, weights.place(tile + t, group));
                }
                for row in 0..ROWS {
                    for t in 0..TILES {
                        let at = acc.add((row * TILES + t) * LANES);
                        let scale = if PER_ROW {
                            scale_w[t]
                        } else {
                            simd.mul(scale_w[t], simd.splat(*scales.add(row)))
                        };
                        let y = simd.fma(simd.to_float(total[row][t]), scale, simd.load(at));
                        simd.store(y, at);
                    }
                }
                if weights.shifted {
                    for t in 0..TILES {
                        let place = weights.place(tile + t, group);
                        let shift = simd.load(weights.shifts.add(place));
                        for row in 0..ROWS {
                            let at = acc.add((row * TILES + t) * LANES);
                            let sum = simd.splat(*sums.add(row));
                            simd.store(simd.fma(shift, sum, simd.load(at)), at);
                        }
                    }
                }
                (biases, sums) = (biases.add(stride), sums.add(stride));
                scales = scales.add(stride);
            }
            let used = ROWS.min(x.rows - block * stride - row);
            for i in 0..used {
                let factor = if PER_ROW {
                    weights.factor * *row_scales.add(i)
                } else {
                    weights.factor
                };
                for t in 0..TILES {
                    let y = simd.load(acc.add((i * TILES + t) * LANES));
                    let y = simd.mul(y, simd.splat(factor));
                    let row = block * stride + row + i;
                    store(simd, y, self.out, weights.rows, row, tile + t);
                }
            }
        }
    }
}

/// What integer sums are made of.
#[derive(Clone, Copy)]
struct Operands {
    /// Where each row's sums begin.
    biases: *const i32,
    codes: *const u8,
    /// Bytes from a tile to the next.
    pitch: usize,
    a: *const i8,
    /// Bytes from four columns of activations to the next.
    a_step: usize,
    /// Memory to ask for on the way, some bytes further with every four columns.
    next: *const u8,
    next_step: usize,
}

/// Integer sums of `ROWS` rows and `TILES` tiles over `fours` times four columns. A function of its own
/// so that the sums stay in registers.
#[inline(always)]
unsafe fn dots<S: Simd, const ROWS: usize, const TILES: usize>(
    simd: S,
    operands: Operands,
    fours: usize,
) -> [[S::I; TILES]; ROWS] {
    let Operands {
        mut codes,
        mut a,
        mut next,
        ..
    } = operands;
    let mut sum = [[simd.splat_i(0); TILES]; ROWS];
    // SAFETY: the caller's pointers; prefetching may name any address.
    unsafe {
        for row in 0..ROWS {
            for tile in 0..TILES {
                sum[row][tile] = begin(simd, operands.biases.add(row));
            }
        }
        for _ in 0..fours {
            simd.prefetch(next);
            let mut w = [simd.weights(simd.load_b(codes)); TILES];
            for tile in 1..TILES {
                w[tile] = simd.weights(simd.load_b(codes.add(tile * operands.pitch)));
            }
            for row in 0..ROWS {
                for tile in 0..TILES {
                    sum[row][tile] = simd.dot(sum[row][tile], w[tile], a.add(4 * row));
                }
            }
            (codes, a) = (codes.add(64), a.add(operands.a_step));
            next = next.wrapping_add(operands.next_step);
        }
    }
    sum
}
