//! What a matrix is multiplied with, in the form that the product was asked to compute in.

use crate::cpu::{Cpu, Isa};
use crate::element::{Element, bf16_bits, round_to_i8};
use crate::error::{Error, Result};
use crate::format::{Levels, amax};
use crate::packed::Packed;
use crate::parallel::{First, Parts, for_each};
use crate::simd::{self, Simd, Work};
use crate::view::View;
use alloc::vec::Vec;

/// In what form a product takes its activations. It is never chosen silently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Mode {
    /// Weights dequantized to f32, activations in f32, sums in f32.
    F32,
    /// Weights dequantized and rounded to bf16, activations in bf16, sums in f32.
    Bf16,
    /// Activations in int8 with one scale for each row; integer sums for each group of weights.
    Int8PerRow,
    /// Activations in int8 with one scale for each row and group of weights.
    Int8PerGroup,
    /// As [`Mode::Int8PerRow`] without the outliers: columns in which any row has a magnitude of at
    /// least 6 are multiplied in f32 (Dettmers et al. 2022, LLM.int8). [`Activations::set_threshold`]
    /// changes the 6.
    LlmInt8,
}

impl Mode {
    pub(crate) fn is_int8(self) -> bool {
        !matches!(self, Self::F32 | Self::Bf16)
    }

    /// Whether a row of int8 activations has one scale.
    pub(crate) fn is_per_row(self) -> bool {
        matches!(self, Self::Int8PerRow | Self::LlmInt8)
    }
}

pub(crate) fn int8_of_floats() -> Error {
    Error::Unsupported {
        operation: "int8 product",
        reason: "the weights are 8-bit floats; multiply them in f32 or bf16".into(),
    }
}

/// Activations `[rows, cols]` in a [`Mode`], laid out for the products of matrices with the same
/// columns and groups. Several matrices can share them, and they can be [`set`](Self::set) again
/// without allocating.
///
/// Int8: a scale is amax ÷ 127 and a code the nearest integer to `value · (127 ÷ amax)`, ties to even.
#[derive(Debug, Clone)]
pub struct Activations {
    pub(crate) mode: Mode,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) group: usize,
    /// Rows of a block: 1, 4, 8 or 12, or 16 in tiles.
    pub(crate) stride: usize,
    /// Whether tile registers are to multiply what was set last.
    pub(crate) in_tiles: bool,
    /// Block, column ÷ 4, row, column mod 4 (int8); block, column ÷ 2, row, column mod 2 (bf16); block,
    /// column, row (f32). In tiles, rows lie side by side by 64 bytes: block, column ÷ 64, row, column
    /// mod 64 (int8); block, column ÷ 32, row, column mod 32 (bf16).
    pub(crate) values: Vec<u32>,
    /// Block, group, row.
    pub(crate) scales: Vec<f32>,
    /// Block, group, row: −128 times the sum of the int8 values, for weights that are 128 too large.
    pub(crate) biases: Vec<i32>,
    /// Block, group, row: the sum of the int8 values, times their scale if it is the group's.
    pub(crate) sums: Vec<f32>,
    /// Magnitudes from here on are outliers.
    threshold: f32,
    /// Columns with outliers, in order, and whether a column is one.
    pub(crate) outliers: Vec<u32>,
    is_outlier: Vec<bool>,
    /// Row, outlier column: the values.
    pub(crate) outlier_values: Vec<f32>,
}

impl Activations {
    /// Room for activations of `matrix` in a mode.
    ///
    /// # Errors
    /// An int8 mode with weights whose codes are not integers times a unit.
    pub fn new(matrix: &Packed, mode: Mode) -> Result<Self> {
        if mode.is_int8() && matches!(matrix.structure.levels, Levels::Bytes(_)) {
            return Err(int8_of_floats());
        }
        Ok(Self {
            mode,
            rows: 0,
            cols: matrix.cols,
            group: matrix.structure.group,
            stride: 1,
            in_tiles: false,
            values: Vec::new(),
            scales: Vec::new(),
            biases: Vec::new(),
            sums: Vec::new(),
            threshold: 6.0,
            outliers: Vec::new(),
            is_outlier: Vec::new(),
            outlier_values: Vec::new(),
        })
    }

    /// From what magnitude on [`Mode::LlmInt8`] takes values for outliers; 6 if this is not called.
    /// Other modes have none.
    pub fn set_threshold(&mut self, threshold: f32) {
        self.threshold = threshold;
    }

    /// The columns whose values are multiplied in f32, of what was set last.
    pub fn outlier_columns(&self) -> &[u32] {
        &self.outliers
    }

    /// The mode.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// `[rows, cols]` of what was set last.
    pub fn shape(&self) -> [usize; 2] {
        [self.rows, self.cols]
    }

    pub(crate) fn depth(&self) -> usize {
        self.cols.next_multiple_of(8)
    }

    pub(crate) fn groups(&self) -> usize {
        self.cols.div_ceil(self.group)
    }

    pub(crate) fn blocks(&self) -> usize {
        self.rows.div_ceil(self.stride)
    }

    /// 32-bit words of a block of rows.
    pub(crate) fn block_words(&self) -> usize {
        self.stride * self.depth() / self.packing()
    }

    /// Whether rows and groups are whole tiles, 64 bytes, or groups a half or a quarter of one.
    fn fits_tiles(&self) -> bool {
        let depth = self.depth();
        match self.mode {
            Mode::F32 => false,
            Mode::Bf16 => depth.is_multiple_of(32),
            _ if self.group >= self.cols => depth.is_multiple_of(64),
            _ => {
                let part = matches!(self.group, 16 | 32) || self.group.is_multiple_of(64);
                part && depth.is_multiple_of(64) && depth.is_multiple_of(self.group)
            }
        }
    }

    /// Values in a word.
    fn packing(&self) -> usize {
        match self.mode {
            Mode::F32 => 1,
            Mode::Bf16 => 2,
            Mode::Int8PerRow | Mode::Int8PerGroup | Mode::LlmInt8 => 4,
        }
    }

    /// Takes over activations.
    ///
    /// # Errors
    /// Other columns than the matrix has; a value that is not finite.
    pub fn set<T: Element>(&mut self, x: View<T>, cpu: &Cpu) -> Result<()> {
        if x.cols() != self.cols {
            return Err(Error::Shapes {
                operation: "product",
                left_name: "activations",
                left: [x.rows(), x.cols()],
                right_name: "matrix, in columns,",
                right: [0, self.cols],
            });
        }
        let before = (self.rows, self.in_tiles);
        self.rows = x.rows();
        // In bf16 a single row too, so that it has the bits that it has among others.
        self.in_tiles =
            cpu.isa() == Isa::Amx && self.fits_tiles() && (x.rows() > 4 || self.mode == Mode::Bf16);
        self.stride = match x.rows() {
            _ if self.in_tiles => 16,
            0 | 1 => 1,
            2..=4 => 4,
            5..=8 => 8,
            _ => 12,
        };
        let (blocks, groups) = (self.blocks(), self.groups());
        let (words, scales) = (self.block_words(), self.stride * groups);
        // In the same layout everything but the filling, which is zero, is written again.
        if before != (self.rows, self.in_tiles) {
            self.values.clear();
            self.values.resize(blocks * words, 0);
            if self.mode.is_int8() {
                self.scales.clear();
                self.scales.resize(blocks * scales, 0.0);
                self.biases.clear();
                self.biases.resize(blocks * scales, 0);
                self.sums.clear();
                self.sums.resize(blocks * scales, 0.0);
            }
        }
        if self.cols == 0 {
            return Ok(());
        }
        self.find_outliers(x);
        let (mode, stride, group, in_tiles) = (self.mode, self.stride, self.group, self.in_tiles);
        let bad = First::new();
        let (threshold, is_outlier) = (self.threshold, &self.is_outlier[..]);
        let values = Parts::new(&mut self.values);
        let all_scales = Parts::new(&mut self.scales);
        let (all_biases, all_sums) = (Parts::new(&mut self.biases), Parts::new(&mut self.sums));
        for_each(cpu.parallel(), blocks, 1, |_, range| {
            for block in range {
                let of_block = block * scales..(block + 1) * scales;
                // SAFETY: blocks are handed out once, and their parts do not overlap.
                let (values, scales, biases, sums) = unsafe {
                    (
                        values.part(block * words..(block + 1) * words),
                        all_scales.part(of_block.clone()),
                        all_biases.part(of_block.clone()),
                        all_sums.part(of_block),
                    )
                };
                let fill = Fill {
                    x,
                    mode,
                    first: block * stride,
                    stride,
                    group,
                    in_tiles,
                    threshold,
                    is_outlier,
                    values,
                    scales,
                    biases,
                    sums,
                };
                if let Err(place) = simd::run(cpu.isa(), fill) {
                    bad.at(place);
                }
            }
        });
        bad.check(|index| {
            let (row, col) = (index / self.cols, index % self.cols);
            Error::NonFinite {
                index,
                row,
                col,
                value: x.row(row)[col].to_f32(),
            }
        })
    }
}

impl Activations {
    /// Lists the outliers of [`Mode::LlmInt8`]; there are none in other modes.
    fn find_outliers<T: Element>(&mut self, x: View<T>) {
        self.outliers.clear();
        self.outlier_values.clear();
        self.is_outlier.clear();
        if self.mode != Mode::LlmInt8 {
            return;
        }
        self.is_outlier.resize(self.cols, false);
        for row in 0..x.rows() {
            for (value, is_outlier) in x.row(row).iter().zip(&mut self.is_outlier) {
                // Where the threshold is no number nothing is ordinary.
                let ordinary = value.to_f32().abs() < self.threshold;
                *is_outlier |= !ordinary;
            }
        }
        let columns = self.is_outlier.iter().enumerate();
        let columns = columns.filter(|(_, is_outlier)| **is_outlier);
        self.outliers
            .extend(columns.map(|(column, _)| column as u32));
        for row in 0..x.rows() {
            let row = x.row(row);
            let values = self.outliers.iter().map(|col| row[*col as usize].to_f32());
            self.outlier_values.extend(values);
        }
    }
}

/// A block of rows.
struct Fill<'a, T> {
    x: View<'a, T>,
    mode: Mode,
    first: usize,
    stride: usize,
    group: usize,
    in_tiles: bool,
    threshold: f32,
    is_outlier: &'a [bool],
    values: &'a mut [u32],
    scales: &'a mut [f32],
    biases: &'a mut [i32],
    sums: &'a mut [f32],
}

impl<T: Element> Work for Fill<'_, T> {
    type Output = Result<(), usize>;

    #[inline(always)]
    fn run<S: Simd>(mut self, _: S) -> Self::Output {
        let cols = self.x.cols();
        for lane in 0..self.stride.min(self.x.rows() - self.first) {
            let row = self.x.row(self.first + lane);
            let begin = (self.first + lane) * cols;
            let place = |col| begin + col;
            match self.mode {
                Mode::F32 => {
                    if let Some(col) = row.iter().position(|value| !value.to_f32().is_finite()) {
                        return Err(place(col));
                    }
                    for (col, value) in row.iter().enumerate() {
                        self.put(lane, col, [value.to_f32().to_bits()], 1);
                    }
                }
                Mode::Bf16 => {
                    if let Some(col) = row.iter().position(|value| !value.to_f32().is_finite()) {
                        return Err(place(col));
                    }
                    for (i, piece) in row.chunks(PIECE).enumerate() {
                        let values = piece_of(piece, |_, value| value);
                        let (pairs, _) = values.as_chunks::<2>();
                        let mut words = [0; PIECE / 2];
                        for (word, [first, second]) in words.iter_mut().zip(pairs) {
                            *word =
                                u32::from(bf16_bits(*first)) | u32::from(bf16_bits(*second)) << 16;
                        }
                        self.put(lane, i * PIECE / 2, words, piece.len().div_ceil(2));
                    }
                }
                Mode::Int8PerRow => {
                    let amax = amax(row).map_err(place)?;
                    for (g, values) in row.chunks(self.group).enumerate() {
                        self.int8(lane, g, values, amax, |_, value| value);
                    }
                }
                Mode::LlmInt8 => {
                    amax(row).map_err(place)?;
                    // An outlier's column counts where its values are ordinary, as in bitsandbytes.
                    let ordinary = row.iter().map(|value| value.to_f32().abs());
                    let ordinary = ordinary.filter(|magnitude| *magnitude < self.threshold);
                    let amax = ordinary.fold(0.0, f32::max);
                    let is_outlier = self.is_outlier;
                    for (g, values) in row.chunks(self.group).enumerate() {
                        let is_outlier = &is_outlier[g * self.group..];
                        self.int8(lane, g, values, amax, |col, value| {
                            if is_outlier[col] { 0.0 } else { value }
                        });
                    }
                }
                Mode::Int8PerGroup => {
                    for (g, values) in row.chunks(self.group).enumerate() {
                        let amax = amax(values).map_err(|col| place(g * self.group + col))?;
                        self.int8(lane, g, values, amax, |_, value| value);
                    }
                }
            }
        }
        Ok(())
    }
}

/// Values that are converted at a time: as many as a vector has lanes.
const PIECE: usize = 16;

/// At most [`PIECE`] values, zeros after them.
#[inline(always)]
fn piece_of<T: Element>(piece: &[T], clean: impl Fn(usize, f32) -> f32) -> [f32; PIECE] {
    let mut values = [0.0; PIECE];
    // Its length known, a whole piece is one vector.
    if let Ok(piece) = <&[T; PIECE]>::try_from(piece) {
        for i in 0..PIECE {
            values[i] = clean(i, piece[i].to_f32());
        }
        return values;
    }
    for (i, (value, place)) in piece.iter().zip(&mut values).enumerate() {
        *place = clean(i, value.to_f32());
    }
    values
}

impl<T: Element> Fill<'_, T> {
    /// Writes the first `used` of some words, from word `first` of a row on. In tiles they may not lie in
    /// two.
    #[inline(always)]
    fn put<const N: usize>(&mut self, lane: usize, first: usize, words: [u32; N], used: usize) {
        let (from, step) = if self.in_tiles {
            (first / 16 * 256 + lane * 16 + first % 16, 1)
        } else {
            (first * self.stride + lane, self.stride)
        };
        let room = &mut self.values[from..];
        // Its length known, this is one instruction.
        if let (true, 1, Some(room)) = (used == N, step, room.first_chunk_mut::<N>()) {
            *room = words;
            return;
        }
        for (place, word) in room.iter_mut().step_by(step).zip(&words[..used]) {
            *place = *word;
        }
    }

    /// A group of a row; `clean` may change a value by its place in the group.
    #[inline(always)]
    fn int8(
        &mut self,
        lane: usize,
        g: usize,
        values: &[T],
        amax: f32,
        clean: impl Fn(usize, f32) -> f32,
    ) {
        // Above 2¹²⁰ or so the quotient would overflow; below, a group of such denormals is zero.
        let inverse = if amax > 0.0 { 127.0 / amax } else { 0.0 };
        let inverse = if inverse.is_finite() { inverse } else { 0.0 };
        let mut sums = [0_i32; PIECE];
        for (i, piece) in values.chunks(PIECE).enumerate() {
            let values = piece_of(piece, |col, value| clean(i * PIECE + col, value));
            let mut codes = [0_i8; PIECE];
            for (code, value) in codes.iter_mut().zip(values) {
                *code = round_to_i8(value * inverse);
            }
            for (sum, code) in sums.iter_mut().zip(codes) {
                *sum += i32::from(code);
            }
            let mut words = [0; PIECE / 4];
            for (word, four) in words.iter_mut().zip(codes.as_chunks::<4>().0) {
                *word = u32::from_le_bytes(four.map(i8::cast_unsigned));
            }
            let first = (g * self.group + i * PIECE) / 4;
            self.put(lane, first, words, piece.len().div_ceil(4));
        }
        let sum = sums.iter().sum::<i32>();
        let scale = if inverse > 0.0 { amax / 127.0 } else { 0.0 };
        self.scales[g * self.stride + lane] = scale;
        self.biases[g * self.stride + lane] = sum.wrapping_mul(-128);
        let per_group = self.mode == Mode::Int8PerGroup;
        self.sums[g * self.stride + lane] = sum as f32 * if per_group { scale } else { 1.0 };
    }
}
