//! Products with activations in f32 or bf16: some columns of one or two tiles are dequantized at a
//! time, and multiplied with all rows while they are in the cache.

#![allow(clippy::needless_range_loop, reason = "several arrays at one index")]

use crate::activations::{Activations, Mode};
use crate::bytes::Line;
use crate::format::Levels;
use crate::matrix::ScaleType;
use crate::packed::Packed;
use crate::parallel::Parts;
use crate::product::store;
use crate::simd::{LANES, Simd, Work};
use core::ops::Range;

/// Columns that are dequantized at a time: 64 KiB in f32, in two tiles.
const DEPTH: usize = 512;

/// Bytes that a worker needs for `tiles` tiles.
pub(crate) fn scratch_bytes(x: &Activations, tiles: usize) -> usize {
    // Whole blocks of 32 rows, where tile registers multiply them.
    4 * LANES * tiles * (DEPTH + (x.blocks() * x.stride).next_multiple_of(32))
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
        let scratch = self.scratch.as_mut_ptr().cast::<f32>();
        let mut tile = self.tiles.start;
        #[cfg(target_arch = "x86_64")]
        if S::AMX && self.x.in_tiles {
            while tile < self.tiles.end {
                let count = (self.tiles.end - tile).min(2);
                // SAFETY: as below; `S::AMX` says that AMX is allowed.
                unsafe { tile_panel(simd, self.matrix, self.x, tile, count, scratch, self.out) };
                tile += count;
            }
            return;
        }
        while tile < self.tiles.end {
            // SAFETY: `scratch_bytes` for two tiles; each tile is multiplied once.
            unsafe {
                if S::TILES == 2 && tile + 1 < self.tiles.end {
                    panel::<S, 2>(simd, self.matrix, self.x, tile, scratch, self.out);
                    tile += 2;
                } else {
                    panel::<S, 1>(simd, self.matrix, self.x, tile, scratch, self.out);
                    tile += 1;
                }
            }
        }
    }
}

/// `TILES` tiles times all rows. `scratch` begins with dequantized columns; the sums follow.
#[inline(always)]
unsafe fn panel<S: Simd, const TILES: usize>(
    simd: S,
    matrix: &Packed,
    x: &Activations,
    tile: usize,
    scratch: *mut f32,
    out: &Parts<f32>,
) {
    // SAFETY: `scratch_bytes`.
    unsafe {
        let sums = scratch.add(DEPTH * TILES * LANES);
        let mut begin = 0;
        while begin < matrix.depth() {
            let end = matrix.depth().min(begin + DEPTH);
            for t in 0..TILES {
                dequantize(
                    simd,
                    matrix,
                    x.mode,
                    tile + t,
                    begin..end,
                    scratch.add(t * LANES),
                    TILES,
                );
            }
            for block in 0..x.blocks() {
                let used = x.stride.min(x.rows - block * x.stride);
                let mut row = 0;
                while row < used {
                    let left = used - row;
                    let a = x.values.as_ptr().add(block * x.block_words() + row);
                    let sums = sums.add((block * x.stride + row) * TILES * LANES);
                    let a = a.add(begin / words_a_column(x.mode) * x.stride);
                    if S::ROWS == 12 && left > 8 {
                        rows::<S, 12, TILES>(simd, x, a, scratch, begin..end, sums);
                        row += 12;
                    } else if S::ROWS == 12 && left > 4 {
                        rows::<S, 8, TILES>(simd, x, a, scratch, begin..end, sums);
                        row += 8;
                    } else if left > 1 {
                        rows::<S, 4, TILES>(simd, x, a, scratch, begin..end, sums);
                        row += 4;
                    } else {
                        rows::<S, 1, TILES>(simd, x, a, scratch, begin..end, sums);
                        row += 1;
                    }
                }
            }
            begin = end;
        }
        for row in 0..x.rows {
            for t in 0..TILES {
                let sum = simd.load(sums.add((row * TILES + t) * LANES));
                let y = simd.mul(sum, simd.splat(matrix.structure.factor));
                store(simd, y, out, matrix.rows, row, tile + t);
            }
        }
    }
}

/// One or two tiles times all rows in bf16, in tile registers. `scratch` as in [`panel`]; the sums are
/// squares of 16 rows of a tile.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn tile_panel<S: Simd>(
    simd: S,
    matrix: &Packed,
    x: &Activations,
    tile: usize,
    count: usize,
    scratch: *mut f32,
    out: &Parts<f32>,
) {
    use crate::simd::amx;
    // SAFETY: `scratch_bytes`; activations have room for a multiple of 16 rows.
    unsafe {
        let registers = amx::Tiles::new();
        let sums = scratch.add(DEPTH * 2 * LANES);
        sums.write_bytes(0, x.rows.next_multiple_of(amx::BLOCK_ROWS) * 2 * LANES);
        let mut begin = 0;
        while begin < matrix.depth() {
            let end = matrix.depth().min(begin + DEPTH);
            for t in 0..count {
                dequantize(
                    simd,
                    matrix,
                    x.mode,
                    tile + t,
                    begin..end,
                    scratch.add(t * LANES),
                    2,
                );
            }
            for row in (0..x.rows).step_by(amx::BLOCK_ROWS) {
                let a = x
                    .values
                    .as_ptr()
                    .add(row * x.block_words() + begin / 2)
                    .cast::<u8>();
                let pitch = 4 * x.block_words();
                let further = if x.rows - row > amx::ROWS {
                    amx::ROWS * pitch
                } else {
                    0
                };
                let b = scratch.cast::<u8>();
                let operands = amx::Operands {
                    a: [a, a.add(further)],
                    a_pitch: pitch,
                    b: [b, b.add(if count > 1 { 4 * LANES } else { 0 })],
                    b_pitch: 8 * LANES,
                    steps: (end - begin) / 32,
                };
                amx::bf16(&registers, operands, sums.add(row * 2 * LANES));
            }
            begin = end;
        }
        for row in 0..x.rows {
            for t in 0..count {
                let square = row / LANES * 2 + t;
                let sum = simd.load(sums.add((square * LANES + row % LANES) * LANES));
                let y = simd.mul(sum, simd.splat(matrix.structure.factor));
                store(simd, y, out, matrix.rows, row, tile + t);
            }
        }
    }
}

/// Columns in a word of activations and of dequantized weights.
#[inline(always)]
fn words_a_column(mode: Mode) -> usize {
    if mode == Mode::Bf16 { 2 } else { 1 }
}

/// Columns `begin..end` of `ROWS` rows times the dequantized ones of `TILES` tiles, added to `sums`.
#[inline(always)]
unsafe fn rows<S: Simd, const ROWS: usize, const TILES: usize>(
    simd: S,
    x: &Activations,
    mut a: *const u32,
    weights: *const f32,
    columns: Range<usize>,
    sums: *mut f32,
) {
    // SAFETY: the caller's pointers, see `panel`.
    unsafe {
        let mut acc = [[simd.splat(0.0); TILES]; ROWS];
        if columns.start > 0 {
            for (row, acc) in acc.iter_mut().enumerate() {
                for (tile, acc) in acc.iter_mut().enumerate() {
                    *acc = simd.load(sums.add((row * TILES + tile) * LANES));
                }
            }
        }
        let mut w = weights;
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

/// Writes columns of a tile, `tiles` vectors apart: values in f32, or pairs in bf16.
#[inline(always)]
unsafe fn dequantize<S: Simd>(
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
            let scale = match structure.scales {
                ScaleType::F32 => simd.scales_f32(at),
                ScaleType::F16 => simd.scales_f16(at),
                ScaleType::E8M0 => simd.scales_e8m0(at),
                ScaleType::E4M3 => simd.scales_e4m3(at),
            };
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
