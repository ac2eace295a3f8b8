//! Products with int8 activations in AMX's tile registers. The results are those of [`super::int8`], to
//! the bit.

#![allow(clippy::needless_range_loop, reason = "several arrays at one index")]

use super::weights::{Weights, prefetch_part};
use super::{Gemm, store};
use crate::bytes::Line;
use crate::packed::Packed;
use crate::simd::amx::{self, Operands, SQUARE, Tiles};
use crate::simd::{LANES, Simd};
use core::ops::Range;

/// Columns that are multiplied with all rows while the first cache holds them, about.
const DEPTH: usize = 512;

/// Bytes that a worker needs for `rows` rows of activations.
pub(super) fn scratch_bytes(matrix: &Packed, rows: usize) -> usize {
    let codes = 2 * chunk(matrix.groups(), matrix.structure.group).min(matrix.depth()) * LANES;
    codes + rows.next_multiple_of(2 * amx::ROWS) * 2 * LANES * 4
}

/// Columns that are multiplied with all rows before the next: whole groups.
fn chunk(groups: usize, group: usize) -> usize {
    if groups == 1 {
        DEPTH
    } else {
        (DEPTH / group).max(1) * group
    }
}

/// Some tiles times some blocks of rows.
///
/// # Safety
/// AMX is allowed, the activations are laid out for it, and scratch is of [`scratch_bytes`].
#[inline(always)]
pub(super) unsafe fn run<S: Simd>(simd: S, weights: Weights<S>, gemm: Gemm) {
    // SAFETY: the caller's promise.
    unsafe {
        match (weights.groups, gemm.x.mode.is_per_row()) {
            (1, true) => rows::<S, true>(simd, weights, gemm),
            (1, false) => rows::<S, false>(simd, weights, gemm),
            (_, true) => groups::<S, true>(simd, weights, gemm),
            (_, false) => groups::<S, false>(simd, weights, gemm),
        }
    }
}

/// Weights of one group a row: 32 rows times two tiles at once.
#[inline(always)]
unsafe fn rows<S: Simd, const PER_ROW: bool>(simd: S, weights: Weights<S>, gemm: Gemm) {
    let unpacked = gemm.scratch.as_mut_ptr().cast::<u8>();
    let code_bytes = if weights.nibbles { LANES / 2 } else { LANES };
    // SAFETY: within the matrix, the activations and scratch; each tile is multiplied once.
    unsafe {
        let unpacked_tile = DEPTH.min(weights.depth) * LANES;
        let sums = unpacked.add(2 * unpacked_tile).cast::<i32>();
        let registers = Tiles::new(64);
        for tile in gemm.tiles.clone().step_by(2) {
            let count = (gemm.tiles.end - tile).min(2);
            for begin in (0..weights.depth).step_by(DEPTH) {
                let end = weights.depth.min(begin + DEPTH);
                let codes = |tile: usize, column: usize| {
                    let at = tile * weights.tile_bytes + column * code_bytes;
                    weights.codes.wrapping_add(at)
                };
                let mut b = [codes(tile, begin), codes(tile + count - 1, begin)];
                if weights.nibbles {
                    for t in 0..count {
                        let to = unpacked.add(t * unpacked_tile);
                        Weights::unpack(simd, weights.biased, b[t], to, (end - begin) / 8);
                        b[t] = to;
                    }
                    b[1] = b[count - 1];
                }
                // More columns, or the next tiles: every block of rows asks for a quarter, line by line or
                // every second one, since processors fetch them in pairs.
                let (next, column) = if end < weights.depth {
                    (tile, end)
                } else {
                    (tile + 2, 0)
                };
                let last = gemm.tiles.end - 1;
                let next = [
                    codes(next.min(last), column),
                    codes((next + 1).min(last), column),
                ];
                let quarter = (end - begin) * code_bytes / 4;
                for (i, block) in gemm.blocks.clone().step_by(2).enumerate() {
                    let operands = Operands {
                        a: gemm.two_blocks(block, begin * LANES),
                        b,
                        b_pitch: 64,
                        steps: (end - begin) / 64,
                        next: next.map(|codes| codes.wrapping_add(i.min(3) * quarter)),
                        next_step: if i < 4 { 8 * code_bytes } else { 0 },
                    };
                    let sums = sums.add(i * 4 * SQUARE);
                    amx::int8(&registers, operands, begin == 0, sums);
                }
            }
            for t in 0..count {
                let sums = sums.add(t * SQUARE);
                scale_rows::<S, PER_ROW>(simd, &weights, &gemm, tile + t, sums);
            }
        }
    }
}

/// Writes the results of a tile. `sums` begins with its square of the first 16 rows; that of the next is
/// two squares further.
#[inline(always)]
unsafe fn scale_rows<S: Simd, const PER_ROW: bool>(
    simd: S,
    weights: &Weights<S>,
    gemm: &Gemm,
    tile: usize,
    sums: *const i32,
) {
    let x = gemm.x;
    // SAFETY: within the matrix, the activations and the sums.
    unsafe {
        let place = weights.place(tile, 0);
        let scale_w = weights.scale(simd, place);
        for (i, block) in gemm.blocks.clone().enumerate() {
            let sums = sums.add(2 * i * SQUARE);
            for r in 0..LANES.min(x.rows - block * LANES) {
                let row = block * LANES + r;
                let sum = simd.load_i(sums.add(r * LANES).cast());
                let sum = simd.add_i(sum, simd.splat_i(x.biases[row]));
                let (mut scale, mut factor) = (scale_w, weights.factor);
                if PER_ROW {
                    factor *= x.scales[row];
                } else {
                    scale = simd.mul(scale, simd.splat(x.scales[row]));
                }
                let mut y = simd.fma(simd.to_float(sum), scale, simd.splat(0.0));
                if weights.shifted {
                    let shift = simd.load(weights.shifts.add(place));
                    y = simd.fma(shift, simd.splat(x.sums[row]), y);
                }
                let y = simd.mul(y, simd.splat(factor));
                store(simd, y, gemm.out, weights.rows, row, tile);
            }
        }
    }
}

/// Weights of several groups a row: 16 rows times one tile, whose results stay in registers while the
/// sums of group after group are scaled.
#[inline(always)]
unsafe fn groups<S: Simd, const PER_ROW: bool>(simd: S, weights: Weights<S>, gemm: Gemm) {
    let x = gemm.x;
    let size = 8 * weights.eights;
    let chunk = chunk(weights.groups, size).min(weights.depth);
    let unpacked = gemm.scratch.as_mut_ptr().cast::<u8>();
    let code_bytes = if weights.nibbles { LANES / 2 } else { LANES };
    // SAFETY: within the matrix, the activations and scratch; each tile is multiplied once.
    unsafe {
        let results = unpacked.add(2 * chunk * LANES).cast::<f32>();
        let registers = Tiles::new(size.min(64));
        for tile in gemm.tiles.clone() {
            let codes = weights.codes.add(tile * weights.tile_bytes);
            for begin in (0..weights.depth).step_by(chunk) {
                let end = weights.depth.min(begin + chunk);
                let from = codes.add(begin * code_bytes);
                if weights.nibbles {
                    Weights::unpack(simd, weights.signed, from, unpacked, (end - begin) / 8);
                } else {
                    amx::flip(from, unpacked, (end - begin) * LANES);
                }
                // More columns, or the next tile: they follow each other.
                let next = codes.wrapping_add(end * code_bytes);
                let next_bytes = if end < weights.depth || tile + 1 < gemm.tiles.end {
                    chunk * code_bytes
                } else {
                    0
                };
                for (i, block) in gemm.blocks.clone().enumerate() {
                    prefetch_part(simd, next, next_bytes, i, gemm.blocks.len());
                    let columns = Columns {
                        tile,
                        block,
                        groups: begin / size..end / size,
                        codes: unpacked,
                    };
                    let results = results.add(i * SQUARE);
                    square::<S, PER_ROW>(simd, &weights, &gemm, &registers, columns, results);
                }
            }
            for (i, block) in gemm.blocks.clone().enumerate() {
                for r in 0..LANES.min(x.rows - block * LANES) {
                    let mut factor = weights.factor;
                    if PER_ROW {
                        factor *= x.scales[block * weights.groups * LANES + r];
                    }
                    let y = simd.load(results.add(i * SQUARE + r * LANES));
                    let y = simd.mul(y, simd.splat(factor));
                    store(simd, y, gemm.out, weights.rows, block * LANES + r, tile);
                }
            }
        }
    }
}

/// Some groups of a tile.
struct Columns {
    tile: usize,
    block: usize,
    groups: Range<usize>,
    /// The first group's codes, a signed byte each.
    codes: *const u8,
}

/// Adds the products of some groups to the results of 16 rows, or writes them if they are the first.
#[inline(always)]
unsafe fn square<S: Simd, const PER_ROW: bool>(
    simd: S,
    weights: &Weights<S>,
    gemm: &Gemm,
    registers: &Tiles,
    columns: Columns,
    results: *mut f32,
) {
    let x = gemm.x;
    let Range { start, end } = columns.groups;
    let size = 8 * weights.eights;
    let steps = size.div_ceil(64);
    // Sums of two groups and of the next two, which are on their way while these are scaled.
    let mut room = [core::mem::MaybeUninit::<Line>::uninit(); 4 * LANES];
    let sums = room.as_mut_ptr().cast::<i32>();
    let mut acc = [simd.splat(0.0); LANES];
    // SAFETY: the caller's pointers.
    unsafe {
        let a = x
            .values
            .as_ptr()
            .add(columns.block * x.block_words())
            .cast::<u8>();
        let place_of = |group: usize| {
            let column = group * size;
            let a = a.add(column / 64 * amx::BYTES + column % 64);
            (a, columns.codes.add((group - start) * size * LANES))
        };
        let multiply = |group: usize| {
            let (a0, b0) = place_of(group);
            let (a1, b1) = place_of((group + 1).min(end - 1));
            let sums = sums.add((group - start) % 4 * SQUARE);
            amx::squares(registers, [a0, a1], [b0, b1], steps, sums);
        };
        multiply(start);
        if start > 0 {
            for r in 0..LANES {
                acc[r] = simd.load(results.add(r * LANES));
            }
        }
        for group in start..end {
            let nth = group - start;
            if nth % 2 == 0 && group + 2 < end {
                multiply(group + 2);
            }
            let sums = sums.add(nth % 4 * SQUARE);
            let place = weights.place(columns.tile, group);
            let scale_w = weights.scale(simd, place);
            let row = (columns.block * weights.groups + group) * LANES;
            let scales = x.scales.as_ptr().add(row);
            for r in 0..LANES {
                let scale = if PER_ROW {
                    scale_w
                } else {
                    simd.mul(scale_w, simd.splat(*scales.add(r)))
                };
                let sum = simd.load_i(sums.add(r * LANES).cast());
                acc[r] = simd.fma(simd.to_float(sum), scale, acc[r]);
            }
            if weights.shifted {
                let shift = simd.load(weights.shifts.add(place));
                let sums = x.sums.as_ptr().add(row);
                for r in 0..LANES {
                    acc[r] = simd.fma(shift, simd.splat(*sums.add(r)), acc[r]);
                }
            }
        }
        for r in 0..LANES {
            simd.store(acc[r], results.add(r * LANES));
        }
    }
}
