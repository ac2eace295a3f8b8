//! Products with int8 activations: integer sums for each group of weights, which are the same on every
//! instruction set, and one fused multiply-add in f32 for each sum, in the order of the groups.
//!
//! ```text
//! one scale for each row and group:  y = unit · Σ_g (fma(Σ w·a, scale_w · scale_a, …), fma(shift, Σa · scale_a, …))
//! one scale for each row:            y = scale_a · unit · Σ_g (fma(Σ w·a, scale_w, …), fma(shift, Σa, …))
//! ```

#![allow(clippy::needless_range_loop, reason = "several arrays at one index")]

use crate::activations::Activations;
use crate::bytes::Line;
use crate::format::Levels;
use crate::matrix::ScaleType;
use crate::packed::Packed;
use crate::parallel::Parts;
use crate::product::store;
use crate::simd::{self, LANES, Simd, Work};
use core::ops::Range;

/// A matrix as the kernels walk through it: everything that a loop asks for, by value.
#[derive(Clone, Copy)]
struct Weights<S: Simd> {
    codes: *const u8,
    scales: *const u8,
    shifts: *const f32,
    table: S::T,
    factor: f32,
    rows: usize,
    nibbles: bool,
    shifted: bool,
    scale_type: ScaleType,
    groups: usize,
    /// Eights of columns in a group, and in the last.
    eights: usize,
    last_eights: usize,
    /// Bytes of a tile's codes.
    tile_bytes: usize,
    /// How many bytes ahead of the codes to ask memory for more.
    ahead: usize,
}

impl<S: Simd> Weights<S> {
    #[inline(always)]
    fn new(simd: S, matrix: &Packed) -> Self {
        let structure = &matrix.structure;
        let (steps, unit) = match &structure.levels {
            Levels::Table { steps, unit, .. } => (*steps, *unit),
            _ => ([0; 16], 1.0),
        };
        let groups = matrix.groups();
        Self {
            codes: matrix.codes.as_ptr(),
            scales: matrix.scales.as_ptr(),
            shifts: matrix.shifts.as_ptr().cast(),
            table: simd.table(&steps.map(|step| step.cast_unsigned() ^ 0x80)),
            factor: unit * structure.factor,
            rows: matrix.rows,
            nibbles: structure.nibbles,
            shifted: structure.shifted,
            scale_type: structure.scales,
            groups,
            eights: structure.group / 8,
            last_eights: if groups == 0 {
                0
            } else {
                matrix.group_depth(groups - 1) / 8
            },
            tile_bytes: matrix.tile_bytes(),
            ahead: simd::bytes_ahead(),
        }
    }

    #[inline(always)]
    fn eights(&self, group: usize) -> usize {
        if group + 1 == self.groups {
            self.last_eights
        } else {
            self.eights
        }
    }

    /// Scales of a tile's group. `place` is `(tile · groups + group) · 16`.
    #[inline(always)]
    unsafe fn scale(&self, simd: S, place: usize) -> S::F {
        // SAFETY: the matrix has scales for each tile and group; prefetching may name any address.
        unsafe {
            let ahead = place * self.scale_type.bytes() + self.ahead / 4;
            simd.prefetch(self.scales.wrapping_add(ahead));
            match self.scale_type {
                ScaleType::F32 => simd.scales_f32(self.scales.add(4 * place)),
                ScaleType::F16 => simd.scales_f16(self.scales.add(2 * place)),
                ScaleType::E8M0 => simd.scales_e8m0(self.scales.add(place)),
                ScaleType::E4M3 => simd.scales_e4m3(self.scales.add(place)),
            }
        }
    }
}

/// Where a sum begins, so that weights which are 128 too large come out right.
#[inline(always)]
unsafe fn begin<S: Simd>(simd: S, bias: *const i32) -> S::I {
    // SAFETY: the caller's pointer.
    simd.splat_i(if S::BIASED { unsafe { *bias } } else { 0 })
}

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
                    let (low, high) = simd.nibbles(simd.load_b(codes), weights.table);
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
            let place = (tile * weights.groups + group) * LANES;
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
        let depth = matrix.depth();
        let base = if weights.nibbles {
            let mut to = self.scratch.as_mut_ptr().cast::<u8>();
            // SAFETY: the tiles' codes follow each other, and `scratch_bytes` is their room.
            unsafe {
                let mut from = weights.codes.add(self.tiles.start * weights.tile_bytes);
                for _ in 0..self.tiles.len() * depth / 8 {
                    let (low, high) = simd.nibbles(simd.load_b(from), weights.table);
                    simd.store_b(low, to);
                    simd.store_b(high, to.add(64));
                    (from, to) = (from.add(64), to.add(128));
                }
            }
            self.scratch.as_ptr().cast::<u8>()
        } else {
            // SAFETY: within the matrix.
            unsafe { weights.codes.add(self.tiles.start * weights.tile_bytes) }
        };
        #[cfg(target_arch = "x86_64")]
        if S::AMX && x.in_tiles {
            let panel = TilePanel {
                weights,
                x,
                codes: base,
                tile_bytes: depth * LANES,
                out: self.out,
            };
            // SAFETY: within what was unpacked, or within the matrix; `S::AMX` says that AMX is allowed.
            unsafe { panel.run(simd, self.tiles.clone()) };
            return;
        }
        let mut panel = Panel {
            weights,
            x,
            tile: self.tiles.start,
            codes: base,
            tile_bytes: depth * LANES,
            out: self.out,
        };
        while panel.tile < self.tiles.end {
            let tiles = if S::TILES == 2 {
                (self.tiles.end - panel.tile).min(2)
            } else {
                1
            };
            // SAFETY: within what was unpacked, or within the matrix; each tile is multiplied once.
            unsafe {
                match (tiles, x.mode.is_per_row()) {
                    (2, true) => panel.run::<2, true>(simd),
                    (2, false) => panel.run::<2, false>(simd),
                    (_, true) => panel.run::<1, true>(simd),
                    (_, false) => panel.run::<1, false>(simd),
                }
                panel.codes = panel.codes.add(tiles * panel.tile_bytes);
            }
            panel.tile += tiles;
        }
    }
}

/// Some tiles, a byte for each code, times all rows.
struct Panel<'a, 'b, S: Simd> {
    weights: Weights<S>,
    x: &'a Activations,
    /// The first tile, and its codes.
    tile: usize,
    codes: *const u8,
    tile_bytes: usize,
    out: &'a Parts<'b, f32>,
}

impl<S: Simd> Panel<'_, '_, S> {
    #[inline(always)]
    unsafe fn run<const TILES: usize, const PER_ROW: bool>(&self, simd: S) {
        let x = self.x;
        for block in 0..x.blocks() {
            let used = x.stride.min(x.rows - block * x.stride);
            let mut row = 0;
            while row < used {
                let left = used - row;
                // SAFETY: the caller's promise; a block has room for as many rows as are multiplied.
                unsafe {
                    if S::ROWS == 12 && left > 8 {
                        self.rows::<12, TILES, PER_ROW>(simd, block, row, left);
                        row += 12;
                    } else if S::ROWS == 12 && left > 4 {
                        self.rows::<8, TILES, PER_ROW>(simd, block, row, left);
                        row += 8;
                    } else if left > 1 {
                        self.rows::<4, TILES, PER_ROW>(simd, block, row, left);
                        row += 4;
                    } else {
                        self.rows::<1, TILES, PER_ROW>(simd, block, row, left);
                        row += 1;
                    }
                }
            }
        }
    }

    /// `ROWS` rows, from row `row` of a block, of which `used` exist.
    #[inline(always)]
    unsafe fn rows<const ROWS: usize, const TILES: usize, const PER_ROW: bool>(
        &self,
        simd: S,
        block: usize,
        row: usize,
        used: usize,
    ) {
        let (weights, x) = (self.weights, self.x);
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
            let mut codes = self.codes;
            for group in 0..groups {
                let fours = 2 * weights.eights(group);
                let tiles = (codes, self.tile_bytes);
                let total = dots::<S, ROWS, TILES>(simd, biases, tiles, (a, 4 * stride), fours);
                (codes, a) = (codes.add(64 * fours), a.add(4 * stride * fours));
                let mut scale_w = [simd.splat(0.0); TILES];
                for tile in 0..TILES {
                    let place = ((self.tile + tile) * groups + group) * LANES;
                    scale_w[tile] = weights.scale(simd, place);
                }
                for row in 0..ROWS {
                    for tile in 0..TILES {
                        let at = acc.add((row * TILES + tile) * LANES);
                        let scale = if PER_ROW {
                            scale_w[tile]
                        } else {
                            simd.mul(scale_w[tile], simd.splat(*scales.add(row)))
                        };
                        let y = simd.fma(simd.to_float(total[row][tile]), scale, simd.load(at));
                        simd.store(y, at);
                    }
                }
                if weights.shifted {
                    for tile in 0..TILES {
                        let place = ((self.tile + tile) * groups + group) * LANES;
                        let shift = simd.load(weights.shifts.add(place));
                        for row in 0..ROWS {
                            let at = acc.add((row * TILES + tile) * LANES);
                            simd.store(
                                simd.fma(shift, simd.splat(*sums.add(row)), simd.load(at)),
                                at,
                            );
                        }
                    }
                }
                (biases, sums) = (biases.add(stride), sums.add(stride));
                scales = scales.add(stride);
            }
            for i in 0..ROWS.min(used) {
                let factor = if PER_ROW {
                    weights.factor * *row_scales.add(i)
                } else {
                    weights.factor
                };
                for tile in 0..TILES {
                    let y = simd.mul(
                        simd.load(acc.add((i * TILES + tile) * LANES)),
                        simd.splat(factor),
                    );
                    let row = block * stride + row + i;
                    store(simd, y, self.out, weights.rows, row, self.tile + tile);
                }
            }
        }
    }
}

/// Integer sums of `ROWS` rows and `TILES` tiles over `fours` times four columns. A function of its own
/// so that the sums stay in registers. Tiles lie `codes.1` bytes apart, steps of activations `a.1`.
#[inline(always)]
unsafe fn dots<S: Simd, const ROWS: usize, const TILES: usize>(
    simd: S,
    biases: *const i32,
    codes: (*const u8, usize),
    a: (*const i8, usize),
    fours: usize,
) -> [[S::I; TILES]; ROWS] {
    let ((mut codes, next_tile), (mut a, next_a)) = (codes, a);
    let mut sum = [[simd.splat_i(0); TILES]; ROWS];
    // SAFETY: the caller's pointers.
    unsafe {
        for row in 0..ROWS {
            for tile in 0..TILES {
                sum[row][tile] = begin(simd, biases.add(row));
            }
        }
        for _ in 0..fours {
            let mut w = [simd.weights(simd.load_b(codes)); TILES];
            for tile in 1..TILES {
                w[tile] = simd.weights(simd.load_b(codes.add(tile * next_tile)));
            }
            for row in 0..ROWS {
                for tile in 0..TILES {
                    sum[row][tile] = simd.dot(sum[row][tile], w[tile], a.add(4 * row));
                }
            }
            (codes, a) = (codes.add(64), a.add(next_a));
        }
    }
    sum
}

/// Some tiles, a byte for each code, times all rows, in tile registers.
#[cfg(target_arch = "x86_64")]
struct TilePanel<'a, 'b, S: Simd> {
    weights: Weights<S>,
    x: &'a Activations,
    /// The codes of the first tile.
    codes: *const u8,
    tile_bytes: usize,
    out: &'a Parts<'b, f32>,
}

#[cfg(target_arch = "x86_64")]
impl<S: Simd> TilePanel<'_, '_, S> {
    /// # Safety
    /// AMX is allowed; `codes` holds the tiles; no other call has the same ones.
    #[inline(always)]
    unsafe fn run(&self, simd: S, tiles: Range<usize>) {
        // SAFETY: the caller's promise.
        unsafe {
            let registers = simd::amx::Tiles::new();
            let mut tile = tiles.start;
            while tile < tiles.end {
                let codes = self.codes.add((tile - tiles.start) * self.tile_bytes);
                let count = (tiles.end - tile).min(2);
                for row in (0..self.x.rows).step_by(simd::amx::BLOCK_ROWS) {
                    self.block(simd, &registers, codes, tile, count, row);
                }
                tile += count;
            }
        }
    }

    /// 32 rows times two tiles; where there are fewer, the same ones twice.
    #[inline(always)]
    unsafe fn block(
        &self,
        simd: S,
        registers: &simd::amx::Tiles,
        codes: *const u8,
        tile: usize,
        count: usize,
        row: usize,
    ) {
        let (weights, x) = (&self.weights, self.x);
        let (groups, depth) = (weights.groups, x.depth());
        let rows = simd::amx::BLOCK_ROWS.min(x.rows - row);
        // Sums of this group and of the next, which is on its way while this one is scaled.
        let mut sums = [[[[0_i32; LANES]; LANES]; 4]; 2];
        let mut acc = [[[0_f32; LANES]; 2]; simd::amx::BLOCK_ROWS];
        // SAFETY: within the activations, which have room for a multiple of 16 rows, and the tiles.
        unsafe {
            let a = x.values.as_ptr().cast::<u8>().add(row * depth);
            let further = if rows > 16 { 16 * depth } else { 0 };
            let next_tile = if count > 1 { self.tile_bytes } else { 0 };
            let sums = sums.as_mut_ptr();
            let multiply = |group: usize| {
                let first = group * 8 * weights.eights;
                let b = codes.add(first * LANES);
                let operands = simd::amx::Operands {
                    a: [a.add(first), a.add(first + further)],
                    a_pitch: depth,
                    b: [b, b.add(next_tile)],
                    b_pitch: 64,
                    steps: weights.eights(group) / 8,
                };
                simd::amx::int8(registers, operands, sums.add(group % 2).cast());
            };
            multiply(0);
            for group in 0..groups {
                if group + 1 < groups {
                    multiply(group + 1);
                }
                let first = row * groups + group;
                let group = Scaled {
                    sums: sums.add(group % 2).cast(),
                    acc: acc.as_mut_ptr().cast(),
                    biases: x.biases.as_ptr().add(first),
                    scales: x.scales.as_ptr().add(first),
                    shifts: x.sums.as_ptr().add(first),
                    groups,
                    rows,
                };
                for t in 0..count {
                    let place = ((tile + t) * groups) * LANES + LANES * (first % groups);
                    if x.mode.is_per_row() {
                        group.add::<S, true>(simd, weights, place, t);
                    } else {
                        group.add::<S, false>(simd, weights, place, t);
                    }
                }
            }
            for r in 0..rows {
                let mut factor = weights.factor;
                if x.mode.is_per_row() {
                    factor *= x.scales[(row + r) * groups];
                }
                for t in 0..count {
                    let y = simd.mul(simd.load(acc[r][t].as_ptr()), simd.splat(factor));
                    store(simd, y, self.out, weights.rows, row + r, tile + t);
                }
            }
        }
    }
}

/// The sums of a group on their way to the results.
#[cfg(target_arch = "x86_64")]
struct Scaled {
    /// Four squares, see [`simd::amx::int8`].
    sums: *const i32,
    /// Row, tile: the results so far.
    acc: *mut f32,
    /// Of the first row; those of the next are `groups` further.
    biases: *const i32,
    scales: *const f32,
    shifts: *const f32,
    groups: usize,
    rows: usize,
}

#[cfg(target_arch = "x86_64")]
impl Scaled {
    /// Adds a group to the results of one of the two tiles.
    #[inline(always)]
    unsafe fn add<S: Simd, const PER_ROW: bool>(
        &self,
        simd: S,
        weights: &Weights<S>,
        place: usize,
        tile: usize,
    ) {
        // SAFETY: the caller's pointers.
        unsafe {
            let scale_w = weights.scale(simd, place);
            for half in 0..self.rows.div_ceil(LANES) {
                let sums = self.sums.add((2 * half + tile) * LANES * LANES);
                let acc = self.acc.add((2 * half * LANES + tile) * LANES);
                let first = half * LANES * self.groups;
                for r in 0..LANES.min(self.rows - half * LANES) {
                    let at = first + r * self.groups;
                    let sum = simd.load_i(sums.add(r * LANES).cast());
                    let sum = simd.add_i(sum, simd.splat_i(*self.biases.add(at)));
                    let scale = if PER_ROW {
                        scale_w
                    } else {
                        simd.mul(scale_w, simd.splat(*self.scales.add(at)))
                    };
                    let to = acc.add(2 * r * LANES);
                    simd.store(simd.fma(simd.to_float(sum), scale, simd.load(to)), to);
                }
                if weights.shifted {
                    let shift = simd.load(weights.shifts.add(place));
                    for r in 0..LANES.min(self.rows - half * LANES) {
                        let to = acc.add(2 * r * LANES);
                        let sum = simd.splat(*self.shifts.add(first + r * self.groups));
                        simd.store(simd.fma(shift, sum, simd.load(to)), to);
                    }
                }
            }
        }
    }
}
