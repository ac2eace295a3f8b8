//! Products with activations in f32 or bf16: some columns of one or two tiles are dequantized at a
//! time, and multiplied with all rows while they are in the cache.

#![allow(clippy::needless_range_loop, reason = "several arrays at one index")]

use super::weights::load_scales;
use super::{Gemm, InRows, block_in_rows, store};
use crate::activations::{Activations, Mode};
use crate::format::Levels;
use crate::packed::Packed;
use crate::simd::{LANES, Simd, Work};
use core::ops::Range;

/// Columns that are dequantized at a time: 64 KiB in f32, in two tiles.
pub(super) const DEPTH: usize = 512;
/// Tiles that are multiplied side by side.
const TILES: usize = 2;

/// Bytes that a worker needs for `rows` rows of activations.
pub(crate) fn scratch_bytes(rows: usize) -> usize {
    // A block's rows, or two squares of tile registers, may be more than there are.
    4 * LANES * TILES * (DEPTH + rows.next_multiple_of(32) + 12)
}

/// The product in f32 or bf16.
pub(crate) struct Float<'a, 'b, 'c>(pub Gemm<'a, 'b, 'c>);

impl Work for Float<'_, '_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let gemm = self.0;
        let scratch = gemm.scratch.as_mut_ptr().cast::<f32>();
        #[cfg(target_arch = "x86_64")]
        if S::AMX && gemm.x.in_tiles {
            // SAFETY: `S::AMX` says that AMX is allowed; scratch is of `scratch_bytes`.
            unsafe { super::float_tiles::run(simd, gemm) };
            return;
        }
        let mut tile = gemm.tiles.start;
        while tile < gemm.tiles.end {
            // SAFETY: scratch is of `scratch_bytes`; each tile is multiplied once.
            unsafe {
                if S::TILES == 2 && tile + 1 < gemm.tiles.end {
                    panel::<S, 2>(simd, &gemm, tile, scratch);
                    tile += 2;
                } else {
                    panel::<S, 1>(simd, &gemm, tile, scratch);
                    tile += 1;
                }
            }
        }
    }
}

/// `TILES` tiles times the blocks. `weights` is scratch: dequantized columns, then the sums.
#[inline(always)]
unsafe fn panel<S: Simd, const TILES: usize>(simd: S, gemm: &Gemm, tile: usize, weights: *mut f32) {
    let (matrix, x) = (gemm.matrix, gemm.x);
    // SAFETY: `scratch_bytes`.
    unsafe {
        let sums = weights.add(DEPTH * TILES * LANES);
        for begin in (0..matrix.depth()).step_by(DEPTH) {
            let columns = begin..matrix.depth().min(begin + DEPTH);
            for t in 0..TILES {
                let to = weights.add(t * LANES);
                dequantize(simd, matrix, x.mode, tile + t, columns.clone(), to, TILES);
            }
            let panel = Panel::<TILES> {
                x,
                weights,
                columns,
                first: gemm.blocks.start,
                sums,
            };
            for block in gemm.blocks.clone() {
                block_in_rows(simd, x, block, &panel);
            }
        }
        let first = gemm.blocks.start * x.stride;
        for row in first..x.rows.min(gemm.blocks.end * x.stride) {
            for t in 0..TILES {
                let sum = simd.load(sums.add(((row - first) * TILES + t) * LANES));
                let y = simd.mul(sum, simd.splat(matrix.structure.factor));
                store(simd, y, gemm.out, matrix.rows, row, tile + t);
            }
        }
    }
}

/// Columns in a word of activations and of dequantized weights.
#[inline(always)]
fn columns_a_word(mode: Mode) -> usize {
    if mode == Mode::Bf16 { 2 } else { 1 }
}

/// Dequantized columns of `TILES` tiles on their way through the rows.
struct Panel<'a, const TILES: usize> {
    x: &'a Activations,
    weights: *const f32,
    columns: Range<usize>,
    /// The first block, and its sums.
    first: usize,
    sums: *mut f32,
}

impl<S: Simd, const TILES: usize> InRows<S> for Panel<'_, TILES> {
    #[inline(always)]
    unsafe fn rows<const ROWS: usize>(&self, simd: S, block: usize, row: usize) {
        let (x, columns) = (self.x, &self.columns);
        // SAFETY: see `panel`.
        unsafe {
            let mut a = x.values.as_ptr().add(block * x.block_words() + row);
            a = a.add(columns.start / columns_a_word(x.mode) * x.stride);
            let mut w = self.weights;
            let row = (block - self.first) * x.stride + row;
            let sums = self.sums.add(row * TILES * LANES);
            let mut acc = [[simd.splat(0.0); TILES]; ROWS];
            if columns.start > 0 {
                for (row, acc) in acc.iter_mut().enumerate() {
                    for (tile, acc) in acc.iter_mut().enumerate() {
                        *acc = simd.load(sums.add((row * TILES + tile) * LANES));
                    }
                }
            }
            if x.mode == Mode::Bf16 {
                for _ in 0..columns.len() / 2 {
                    let pairs: [S::I; TILES] =
                        core::array::from_fn(|tile| simd.load_i(w.add(tile * LANES).cast()));
                    for (row, acc) in acc.iter_mut().enumerate() {
                        for tile in 0..TILES {
                            acc[tile] = simd.dot_bf16(acc[tile], pairs[tile], a.add(row).cast());
                        }
                    }
                    (w, a) = (w.add(TILES * LANES), a.add(x.stride));
                }
            } else {
                for _ in 0..columns.len() {
                    let values: [S::F; TILES] =
                        core::array::from_fn(|tile| simd.load(w.add(tile * LANES)));
                    for (row, acc) in acc.iter_mut().enumerate() {
                        let a = simd.splat(a.add(row).cast::<f32>().read());
                        for tile in 0..TILES {
                            acc[tile] = simd.fma(values[tile], a, acc[tile]);
                        }
                    }
                    (w, a) = (w.add(TILES * LANES), a.add(x.stride));
                }
            }
            for (row, acc) in acc.iter().enumerate() {
                for (tile, acc) in acc.iter().enumerate() {
                    simd.store(*acc, sums.add((row * TILES + tile) * LANES));
                }
            }
        }
    }
}

/// Writes columns of a tile, `tiles` vectors apart: values in f32, or pairs in bf16.
#[inline(always)]
pub(super) unsafe fn dequantize<S: Simd>(
    simd: S,
    matrix: &Packed,
    mode: Mode,
    tile: usize,
    columns: Range<usize>,
    mut to: *mut f32,
    tiles: usize,
) {
    let structure = &matrix.structure;
    let (groups, size, bf16) = (matrix.groups(), structure.group, mode == Mode::Bf16);
    let words = if bf16 { 4 } else { 8 };
    // SAFETY: within the tile's codes and scales; `to` has room for the columns.
    unsafe {
        let codes = matrix.codes.as_ptr().add(tile * matrix.tile_bytes());
        let mut column = columns.start;
        while column < columns.end {
            // The last group of a row keeps its filling.
            let group = (column / size).min(groups - 1);
            let stop = columns.end.min(group * size + matrix.group_depth(group));
            let place = (tile * groups + group) * LANES;
            let at = matrix.scales.as_ptr().add(place * structure.scales.bytes());
            let scale = load_scales(simd, structure.scales, at);
            let shift = structure
                .shifted
                .then(|| simd.load(matrix.shifts.as_ptr().cast::<f32>().add(place)));
            while column < stop {
                let mut values = [simd.splat(0.0); 8];
                match &structure.levels {
                    Levels::Table { values: table, .. } => {
                        nibbles(
                            simd,
                            codes.add(column / 8 * 64),
                            simd.levels(table),
                            &mut values,
                        );
                    }
                    Levels::Int8 => bytes(simd, codes.add(column / 4 * 64), None, &mut values),
                    Levels::Bytes(table) => {
                        bytes(simd, codes.add(column / 4 * 64), Some(table), &mut values);
                    }
                }
                for value in &mut values {
                    *value = match shift {
                        Some(shift) => simd.fma(*value, scale, shift),
                        None => simd.mul(*value, scale),
                    };
                }
                put(simd, &values, bf16, to, tiles * LANES);
                to = to.add(words * tiles * LANES);
                column += 8;
            }
        }
    }
}

/// The levels of eight columns of 4-bit codes.
#[inline(always)]
unsafe fn nibbles<S: Simd>(simd: S, codes: *const u8, table: S::L, values: &mut [S::F; 8]) {
    // SAFETY: the caller's pointer.
    let eight = unsafe { simd.load_i(codes) };
    for i in 0..8 {
        // The low halves of four bytes, then the high ones.
        let code = simd.shift_right(eight, (8 * (i % 4) + 4 * (i / 4)) as u32);
        values[i] = simd.lookup(table, simd.and(code, 15));
    }
}

/// The levels of eight columns of 8-bit codes: in a table, or themselves.
#[inline(always)]
unsafe fn bytes<S: Simd>(
    simd: S,
    codes: *const u8,
    table: Option<&[f32; 256]>,
    values: &mut [S::F; 8],
) {
    // SAFETY: the caller's pointer.
    let fours = unsafe { [simd.load_i(codes), simd.load_i(codes.add(64))] };
    for i in 0..8 {
        let code = simd.and(simd.shift_right(fours[i / 4], 8 * (i % 4) as u32), 255);
        values[i] = match table {
            Some(table) => simd.lookup_byte(table, code),
            None => simd.to_float(simd.add_i(code, simd.splat_i(-128))),
        };
    }
}

/// Writes eight columns, `step` apart, or four pairs of them.
#[inline(always)]
unsafe fn put<S: Simd>(simd: S, values: &[S::F; 8], bf16: bool, to: *mut f32, step: usize) {
    // SAFETY: the caller's pointer.
    unsafe {
        if bf16 {
            for i in 0..4 {
                let pair = simd.pair_bf16(values[2 * i], values[2 * i + 1]);
                simd.store_i(pair, to.add(i * step).cast());
            }
        } else {
            for i in 0..8 {
                simd.store(values[i], to.add(i * step));
            }
        }
    }
}
