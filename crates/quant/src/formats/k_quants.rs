//! GGUF's super-blocks of 256 elements, whose groups have small integers as scales: Q4_K and Q6_K.
//!
//! | | bytes | groups | value |
//! |---|---|---|---|
//! | Q4_K | f16 d, f16 dmin, 12 of 6-bit scales and mins, 128 of codes | 8 of 32 | `d · scale · code − dmin · min`, codes 0 to 15 |
//! | Q6_K | 128 of low nibbles, 64 of high pairs, 16 i8 scales, f16 d | 16 of 16 | `d · scale · (code − 32)`, codes 0 to 63 |
//!
//! Bytes are those of ggml, and so are the values. The quantizers are our own: for each group the scale
//! (and min) of least squares over a range of candidate steps.

use crate::cpu::Cpu;
use crate::element::{Element, round};
use crate::error::{Error, Result, length};
use crate::format::Levels;
use crate::matrix::{Matrix, ScaleType, Structure};
use crate::parallel::{First, Parts, for_each};
use crate::view::{View, elements};
use alloc::{borrow::Cow, vec};
use core::marker::PhantomData;
use half::f16;

/// Elements of a super-block.
pub const SUPER_BLOCK: usize = 256;

/// A kind of super-block.
pub trait KFormat: core::fmt::Debug + Clone + PartialEq + Send + Sync + 'static {
    /// Its name.
    const NAME: &'static str;
    /// Bytes of a super-block.
    const BYTES: usize;
    /// Elements that share a scale.
    const GROUP: usize;
    /// Whether groups have a min.
    const SHIFTED: bool;
    /// Where the super-block's own f16 scales begin. Where these are finite, so is every value.
    const HALVES: &'static [usize];
    /// What codes stand for.
    fn levels() -> Levels;
    /// The codes, one a byte, and each group's scale and shift: `value = level · scale + shift`.
    fn unpack(block: &[u8], codes: &mut [u8], scales: &mut [f32], shifts: &mut [f32]);
    /// The block of 256 finite values.
    fn quantize(values: &[f32; SUPER_BLOCK], block: &mut [u8]);
}

/// Q4_K: 4.5 bits a weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Q4K;

/// Q6_K: 6.5625 bits a weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Q6K;

/// A matrix `[rows, cols]` of super-blocks, row after row, borrowed from a file or owned.
#[derive(Debug, Clone, PartialEq)]
pub struct KQuant<'a, K> {
    rows: usize,
    cols: usize,
    blocks: Cow<'a, [u8]>,
    kind: PhantomData<K>,
}

fn bytes<K: KFormat>([rows, cols]: [usize; 2]) -> Result<usize> {
    if !cols.is_multiple_of(SUPER_BLOCK) {
        return Err(Error::Block {
            format: K::NAME,
            block: SUPER_BLOCK,
            cols,
            reason: "must divide a row",
        });
    }
    Ok(elements(rows, cols)? / SUPER_BLOCK * K::BYTES)
}

impl<K: KFormat> KQuant<'static, K> {
    /// Quantizes a matrix.
    ///
    /// # Errors
    /// Rows that are not whole super-blocks; a value that is not finite.
    pub fn new<T: Element>(matrix: View<T>, cpu: &Cpu) -> Result<Self> {
        let (rows, cols) = (matrix.rows(), matrix.cols());
        let mut blocks = vec![0; bytes::<K>([rows, cols])?];
        let per_row = cols / SUPER_BLOCK * K::BYTES;
        let parts = Parts::new(&mut blocks);
        let bad = First::new();
        for_each(cpu.parallel(), rows, 1, |_, range| {
            for row in range {
                // SAFETY: rows are handed out once.
                let blocks = unsafe { parts.part(row * per_row..(row + 1) * per_row) };
                let values = matrix.row(row);
                if let Some(col) = values.iter().position(|value| !value.to_f32().is_finite()) {
                    bad.at(row * cols + col);
                    continue;
                }
                let chunks = values.as_chunks::<SUPER_BLOCK>().0;
                for (values, block) in chunks.iter().zip(blocks.chunks_exact_mut(K::BYTES)) {
                    K::quantize(&values.map(|value| value.to_f32()), block);
                }
            }
        });
        bad.check(|index| Error::NonFinite {
            index,
            row: index / cols,
            col: index % cols,
            value: matrix.row(index / cols)[index % cols].to_f32(),
        })?;
        Ok(Self {
            rows,
            cols,
            blocks: blocks.into(),
            kind: PhantomData,
        })
    }
}

impl<'a, K: KFormat> KQuant<'a, K> {
    /// A matrix from a GGUF file's bytes.
    ///
    /// # Errors
    /// Rows that are not whole super-blocks, bytes of another length, a `d` or `dmin` that is not
    /// finite.
    pub fn from_blocks(shape: [usize; 2], blocks: impl Into<Cow<'a, [u8]>>) -> Result<Self> {
        let blocks = blocks.into();
        length("super-blocks, in bytes", bytes::<K>(shape)?, blocks.len())?;
        for (index, block) in blocks.chunks_exact(K::BYTES).enumerate() {
            let mut halves = K::HALVES.iter().map(|at| half_at(block, *at));
            if let Some(bad) = halves.find(|half| !half.is_finite()) {
                return Err(Error::Stored {
                    what: "scale of super-block",
                    index,
                    value: f64::from(bad),
                    reason: "it is not finite",
                });
            }
        }
        Ok(Self {
            rows: shape[0],
            cols: shape[1],
            blocks,
            kind: PhantomData,
        })
    }

    /// `[rows, cols]`.
    pub fn shape(&self) -> [usize; 2] {
        [self.rows, self.cols]
    }

    /// The super-blocks, as a GGUF file holds them.
    pub fn blocks(&self) -> &[u8] {
        &self.blocks
    }

    /// Bits for each weight.
    pub fn bits_per_weight(&self) -> f64 {
        8.0 * K::BYTES as f64 / SUPER_BLOCK as f64
    }

    /// Writes all values, row by row, rounded once to the type of `out`.
    ///
    /// # Errors
    /// `out` of another length.
    pub fn dequantize_into<T: Element>(&self, out: &mut [T], cpu: &Cpu) -> Result<()> {
        length("output", self.rows * self.cols, out.len())?;
        let parts = Parts::new(out);
        for_each(cpu.parallel(), self.rows, 1, |_, range| {
            for row in range {
                // SAFETY: rows are handed out once.
                let out = unsafe { parts.part(row * self.cols..(row + 1) * self.cols) };
                self.each(row, |at, value| out[at] = T::from_f32(value));
            }
        });
        Ok(())
    }

    fn row_blocks(&self, row: usize) -> impl Iterator<Item = &[u8]> {
        let per_row = self.cols / SUPER_BLOCK * K::BYTES;
        self.blocks[row * per_row..(row + 1) * per_row].chunks_exact(K::BYTES)
    }

    /// The values of a row, with their columns.
    fn each(&self, row: usize, mut put: impl FnMut(usize, f32)) {
        let (mut codes, mut scales, mut shifts) = ([0; SUPER_BLOCK], [0.0; 16], [0.0; 16]);
        let levels = K::levels();
        for (i, block) in self.row_blocks(row).enumerate() {
            K::unpack(block, &mut codes, &mut scales, &mut shifts);
            for (j, code) in codes.iter().enumerate() {
                let level = crate::packed::level(&levels, *code);
                let group = j / K::GROUP;
                let value = scales[group] * level;
                let value = if K::SHIFTED {
                    value + shifts[group]
                } else {
                    value
                };
                put(i * SUPER_BLOCK + j, value);
            }
        }
    }
}

impl<K: KFormat> Matrix for KQuant<'_, K> {
    fn shape(&self) -> [usize; 2] {
        [self.rows, self.cols]
    }

    fn structure(&self) -> Result<Structure> {
        Ok(Structure {
            levels: K::levels(),
            nibbles: matches!(K::levels(), Levels::Table { .. }),
            group: K::GROUP,
            scales: ScaleType::F32,
            shifted: K::SHIFTED,
            factor: 1.0,
        })
    }

    fn unpack_row(&self, row: usize, codes: &mut [u8], scales: &mut [f32], shifts: &mut [f32]) {
        let groups = SUPER_BLOCK / K::GROUP;
        let (mut block_scales, mut block_shifts) = ([0.0; 16], [0.0; 16]);
        let places = codes.chunks_exact_mut(SUPER_BLOCK);
        for (i, (block, codes)) in self.row_blocks(row).zip(places).enumerate() {
            K::unpack(block, codes, &mut block_scales, &mut block_shifts);
            let range = i * groups..(i + 1) * groups;
            scales[range.clone()].copy_from_slice(&block_scales[..groups]);
            if let Some(shifts) = shifts.get_mut(range) {
                shifts.copy_from_slice(&block_shifts[..groups]);
            }
        }
    }

    fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        self.each(row, |at, value| out[at] = value);
    }
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

impl KFormat for Q4K {
    const NAME: &'static str = "q4_k";
    const BYTES: usize = 144;
    const GROUP: usize = 32;
    const SHIFTED: bool = true;
    const HALVES: &'static [usize] = &[0, 2];

    fn levels() -> Levels {
        Levels::Table {
            values: core::array::from_fn(|code| code as f32),
            steps: core::array::from_fn(|code| code as i8),
            unit: 1.0,
        }
    }

    fn unpack(block: &[u8], codes: &mut [u8], scales: &mut [f32], shifts: &mut [f32]) {
        let (d, dmin) = (half_at(block, 0), half_at(block, 2));
        let packed = &block[4..16];
        for group in 0..8 {
            let (scale, min) = if group < 4 {
                (packed[group] & 63, packed[group + 4] & 63)
            } else {
                (
                    packed[group + 4] & 15 | packed[group - 4] >> 6 << 4,
                    packed[group + 4] >> 4 | packed[group] >> 6 << 4,
                )
            };
            scales[group] = d * f32::from(scale);
            shifts[group] = -(dmin * f32::from(min));
        }
        for (pair, bytes) in block[16..].chunks_exact(32).enumerate() {
            for (i, byte) in bytes.iter().enumerate() {
                codes[64 * pair + i] = byte & 15;
                codes[64 * pair + 32 + i] = byte >> 4;
            }
        }
    }

    fn quantize(values: &[f32; SUPER_BLOCK], block: &mut [u8]) {
        let groups = values.as_chunks::<32>().0;
        let mut fits = [(0.0, 0.0); 8];
        for (fit, group) in fits.iter_mut().zip(groups) {
            *fit = fit_shifted(group);
        }
        let largest = |of: fn(&(f32, f32)) -> f32| fits.iter().map(of).fold(0.0, f32::max);
        let d = f16::from_f32((largest(|fit| fit.0) / 63.0).min(65504.0));
        let dmin = f16::from_f32((largest(|fit| fit.1) / 63.0).min(65504.0));
        block[..2].copy_from_slice(&d.to_le_bytes());
        block[2..4].copy_from_slice(&dmin.to_le_bytes());
        let step = |value: f32, unit: f16| {
            let steps = round(value / unit.to_f32());
            if steps.is_finite() {
                steps.clamp(0.0, 63.0) as u8
            } else {
                0
            }
        };
        let small = fits.map(|(scale, min)| (step(scale, d), step(min, dmin)));
        let packed = &mut block[4..16];
        packed.fill(0);
        for (group, (scale, min)) in small.into_iter().enumerate() {
            if group < 4 {
                packed[group] |= scale;
                packed[group + 4] |= min;
            } else {
                packed[group + 4] |= scale & 15 | min << 4;
                packed[group - 4] |= scale >> 4 << 6;
                packed[group] |= min >> 4 << 6;
            }
        }
        let code = |group: usize, value: f32| {
            let scale = d.to_f32() * f32::from(small[group].0);
            let min = dmin.to_f32() * f32::from(small[group].1);
            nearest((value + min) / scale, 0.0, 15.0) as u8
        };
        for (pair, bytes) in block[16..].chunks_exact_mut(32).enumerate() {
            for (i, byte) in bytes.iter_mut().enumerate() {
                let low = code(2 * pair, groups[2 * pair][i]);
                *byte = low | code(2 * pair + 1, groups[2 * pair + 1][i]) << 4;
            }
        }
    }
}

impl KFormat for Q6K {
    const NAME: &'static str = "q6_k";
    const BYTES: usize = 210;
    const GROUP: usize = 16;
    const SHIFTED: bool = false;
    const HALVES: &'static [usize] = &[208];

    fn levels() -> Levels {
        Levels::Int8
    }

    fn unpack(block: &[u8], codes: &mut [u8], scales: &mut [f32], _shifts: &mut [f32]) {
        let d = half_at(block, 208);
        for (scale, small) in scales.iter_mut().zip(&block[192..208]) {
            *scale = d * f32::from(small.cast_signed());
        }
        // 32 neighbours at a time stand in neighbouring bytes, which the compiler vectorizes.
        for (run, codes) in codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let (low, shift, high, pair) = place(32 * run);
            let bytes = block[low..][..32].iter().zip(&block[high..][..32]);
            for (code, (low, high)) in codes.iter_mut().zip(bytes) {
                let six = low >> shift & 15 | (high >> pair & 3) << 4;
                *code = six.wrapping_sub(32);
            }
        }
    }

    fn quantize(values: &[f32; SUPER_BLOCK], block: &mut [u8]) {
        let groups = values.as_chunks::<16>().0;
        let mut fits = [0.0; 16];
        for (fit, group) in fits.iter_mut().zip(groups) {
            *fit = fit_symmetric(group);
        }
        let largest = fits
            .iter()
            .fold(0.0_f32, |a, b| if b.abs() > a.abs() { *b } else { a });
        let d = f16::from_f32((largest / -128.0).clamp(-65504.0, 65504.0));
        block.fill(0);
        block[208..].copy_from_slice(&d.to_le_bytes());
        for (group, (values, fit)) in groups.iter().zip(fits).enumerate() {
            let small = nearest(fit / d.to_f32(), -128.0, 127.0) as i8;
            block[192 + group] = small.cast_unsigned();
            let scale = d.to_f32() * f32::from(small);
            for (i, value) in values.iter().enumerate() {
                let code = (nearest(value / scale, -32.0, 31.0) + 32.0) as u8;
                let (low, shift, high, pair) = place(16 * group + i);
                block[low] |= (code & 15) << shift;
                block[high] |= code >> 4 << pair;
            }
        }
    }
}

/// Where the low four bits of a code of Q6_K stand, and the high two: byte and shift each.
fn place(i: usize) -> (usize, usize, usize, usize) {
    let (half, i) = (i / 128, i % 128);
    let (quarter, l) = (i / 32, i % 32);
    let low = 64 * half + 32 * (quarter % 2) + l;
    (low, 4 * (quarter / 2), 128 + 32 * half + l, 2 * quarter)
}

/// The nearest integer within a range; 0 for what is not a number.
fn nearest(value: f32, low: f32, high: f32) -> f32 {
    if value.is_nan() {
        return 0.0_f32.clamp(low, high);
    }
    round(value.clamp(low, high))
}

/// Of candidate steps around the one that just covers a group, the scale with the least squared error
/// of `scale · code`, codes −32 to 31.
fn fit_symmetric(values: &[f32]) -> f32 {
    let peak = values
        .iter()
        .fold(0.0_f32, |a, b| if b.abs() > a.abs() { *b } else { a });
    let mut best = (0.0, 0.0);
    for tenth in -9..=9 {
        let inverse = -(32.0 + 0.1 * tenth as f32) / peak;
        if !inverse.is_finite() {
            return 0.0;
        }
        let (mut xq, mut qq) = (0.0_f64, 0.0_f64);
        for value in values {
            let code = f64::from(nearest(value * inverse, -32.0, 31.0));
            xq += f64::from(*value) * code;
            qq += code * code;
        }
        // The best scale for these codes takes xq² ÷ qq off the sum of squares.
        if qq > 0.0 && xq * xq / qq > best.0 {
            best = (xq * xq / qq, xq / qq);
        }
    }
    best.1 as f32
}

/// Of candidate steps around the one that just covers a group, the `(scale, min)` with the least squared
/// error of `scale · code − min`, codes 0 to 15, neither negative.
fn fit_shifted(values: &[f32; 32]) -> (f32, f32) {
    let low = values.iter().fold(0.0_f32, |a, b| a.min(*b));
    let high = values.iter().fold(low, |a, b| a.max(*b));
    let mut best = (f64::INFINITY, 0.0, 0.0);
    let n = values.len() as f64;
    let sum: f64 = values.iter().map(|x| f64::from(*x)).sum();
    for tenth in -15..=15 {
        let inverse = (15.0 + 0.1 * tenth as f32) / (high - low);
        if !inverse.is_finite() {
            // All alike: a min alone holds a negative one, a scale of one step a positive one.
            return if low < 0.0 {
                (0.0, -low)
            } else {
                (high / 15.0, 0.0)
            };
        }
        let (mut q, mut qq, mut xq) = (0.0_f64, 0.0_f64, 0.0_f64);
        for value in values {
            let code = f64::from(nearest((value - low) * inverse, 0.0, 15.0));
            q += code;
            qq += code * code;
            xq += code * f64::from(*value);
        }
        let determinant = n * qq - q * q;
        if determinant <= 0.0 {
            continue;
        }
        let (mut scale, mut min) = (
            (n * xq - sum * q) / determinant,
            (q * xq - sum * qq) / determinant,
        );
        if min < 0.0 {
            (scale, min) = (xq / qq, 0.0);
        }
        if scale <= 0.0 {
            continue;
        }
        // With the codes that this scale and min would have in the end.
        let error: f64 = values
            .iter()
            .map(|value| {
                let code = nearest((f64::from(*value) + min) as f32 / scale as f32, 0.0, 15.0);
                let error = scale * f64::from(code) - min - f64::from(*value);
                error * error
            })
            .sum();
        if error < best.0 {
            best = (error, scale, min);
        }
    }
    if best.0.is_infinite() {
        // All values have one code, which a scale alone reaches.
        return ((high - low) / 15.0, -low);
    }
    (best.1 as f32, best.2 as f32)
}
