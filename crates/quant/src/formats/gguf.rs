//! GGUF's blocks of 32 elements with an f16 scale: Q8_0 and Q4_0.
//!
//! A [`Quantized`] matrix keeps codes and scales apart; a GGUF file keeps each scale before its block's
//! codes, and of Q4_0 the codes of elements `j` and `j + 16` in one byte. [`to_blocks`] and
//! [`from_blocks`] go from one to the other without a loss.

use crate::element::{round, round_to_i8};
use crate::error::{Error, Result, length};
use crate::format::{CodeLayout, Extent, Format, Grouping, Levels, Quantized, encode_each};
use crate::matrix::ScaleType;
use alloc::{vec, vec::Vec};
use half::f16;

/// Elements of a block.
pub const GGUF_BLOCK: usize = 32;

/// A format whose blocks GGUF files hold.
pub trait GgufFormat: Format<Scale = f16, Tensor = ()> + Default {
    /// Bytes of a block, its scale included.
    const BLOCK_BYTES: usize;
    /// Writes a block's codes, given one a byte, behind its scale.
    fn write(codes: &[u8; GGUF_BLOCK], out: &mut [u8]);
    /// Reads a block's codes, one a byte, from behind its scale.
    fn read(block: &[u8]) -> [u8; GGUF_BLOCK];
}

/// Q8_0: `value = code · d`, `d = amax ÷ 127` in f16.
///
/// A code is the nearest integer to `value · (1 ÷ d)` with the unrounded `d`, ties away from zero, as in
/// ggml. Worst error: half a step and 127 times the rounding of `d`: 1/254 + 2⁻¹¹ of amax. A `d` beyond
/// f16 (amax above 8.3 million) becomes infinite in ggml; here it is the largest f16.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Q8_0;

/// Q4_0: `value = (code − 8) · d`, where `−8 · d` is the value of the largest magnitude.
///
/// Worst error: 1/8 of amax at the end that is not reached, and 8 times the rounding of `d`, 2⁻¹¹ of
/// amax.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Q4_0;

/// 1 ÷ d, or 0 where that has no finite value, and d in f16.
#[inline(always)]
fn scale(d: f32) -> (f16, f32) {
    let inverse = 1.0 / d;
    let inverse = if inverse.is_finite() { inverse } else { 0.0 };
    (f16::from_f32(d.clamp(-65504.0, 65504.0)), inverse)
}

impl Format for Q8_0 {
    const NAME: &'static str = "q8_0";
    const CODES: CodeLayout = CodeLayout::Bytes;
    const SCALES: ScaleType = ScaleType::F16;
    type Scale = f16;
    type Tensor = ();
    type Encoder = f32;

    fn grouping(&self) -> Grouping {
        Grouping::Block(GGUF_BLOCK)
    }

    fn tensor(&self, _amax: f32) {}

    #[inline(always)]
    fn fit(&self, (): &(), extent: Extent) -> (f16, f32) {
        scale(extent.amax / 127.0)
    }

    #[inline(always)]
    fn encode(inverse: &f32, values: &[f32; 16]) -> [u8; 16] {
        encode_each(values, |value| {
            let exact = (value * inverse).clamp(-127.0, 127.0);
            let magnitude = exact.abs();
            let even = round(magnitude);
            // To even or away from zero differ where a tie went down.
            let away = if magnitude - even >= 0.5 {
                even + 1.0
            } else {
                even
            };
            round_to_i8(away.copysign(exact)).cast_unsigned()
        })
    }

    #[inline(always)]
    fn decode(&self, (): &(), scale: f16, code: u8) -> f32 {
        f32::from(code.cast_signed()) * scale.to_f32()
    }

    fn levels(&self) -> Levels {
        Levels::Int8
    }

    #[inline(always)]
    fn affine(&self, scale: f16) -> (f32, f32) {
        (scale.to_f32(), 0.0)
    }

    fn worst_error(&self) -> f32 {
        1.0 / 254.0 + 1.0 / 2048.0
    }
}

impl GgufFormat for Q8_0 {
    const BLOCK_BYTES: usize = 34;

    fn write(codes: &[u8; GGUF_BLOCK], out: &mut [u8]) {
        out.copy_from_slice(codes);
    }

    fn read(block: &[u8]) -> [u8; GGUF_BLOCK] {
        let mut codes = [0; GGUF_BLOCK];
        codes.copy_from_slice(block);
        codes
    }
}

impl Format for Q4_0 {
    const NAME: &'static str = "q4_0";
    const CODES: CodeLayout = CodeLayout::LowNibbleFirst;
    const SCALES: ScaleType = ScaleType::F16;
    const SIGNED: bool = true;
    type Scale = f16;
    type Tensor = ();
    type Encoder = f32;

    fn grouping(&self) -> Grouping {
        Grouping::Block(GGUF_BLOCK)
    }

    fn tensor(&self, _amax: f32) {}

    #[inline(always)]
    fn fit(&self, (): &(), extent: Extent) -> (f16, f32) {
        scale(extent.peak / -8.0)
    }

    #[inline(always)]
    fn encode(inverse: &f32, values: &[f32; 16]) -> [u8; 16] {
        encode_each(values, |value| {
            let exact = (value * inverse + 8.5).clamp(0.0, 15.0);
            let even = round(exact);
            // Down.
            let floor = if even > exact { even - 1.0 } else { even };
            round_to_i8(floor).cast_unsigned()
        })
    }

    #[inline(always)]
    fn decode(&self, (): &(), scale: f16, code: u8) -> f32 {
        (f32::from(code & 15) - 8.0) * scale.to_f32()
    }

    fn levels(&self) -> Levels {
        Levels::Table {
            values: core::array::from_fn(|code| code as f32 - 8.0),
            steps: core::array::from_fn(|code| code as i8 - 8),
            unit: 1.0,
        }
    }

    #[inline(always)]
    fn affine(&self, scale: f16) -> (f32, f32) {
        (scale.to_f32(), 0.0)
    }

    fn worst_error(&self) -> f32 {
        1.0 / 8.0 + 1.0 / 2048.0
    }
}

impl GgufFormat for Q4_0 {
    const BLOCK_BYTES: usize = 18;

    fn write(codes: &[u8; GGUF_BLOCK], out: &mut [u8]) {
        for (j, byte) in out.iter_mut().enumerate() {
            *byte = codes[j] | codes[j + 16] << 4;
        }
    }

    fn read(block: &[u8]) -> [u8; GGUF_BLOCK] {
        core::array::from_fn(|i| block[i % 16] >> (4 * (i / 16)) & 15)
    }
}

fn whole_blocks<F: Format>(cols: usize) -> Result<()> {
    if cols.is_multiple_of(GGUF_BLOCK) {
        return Ok(());
    }
    Err(Error::Block {
        format: F::NAME,
        block: GGUF_BLOCK,
        cols,
        reason: "must divide a row of a GGUF tensor",
    })
}

/// A matrix as a GGUF file holds it: block after block, row after row.
///
/// # Errors
/// Rows that are not whole blocks.
pub fn to_blocks<F: GgufFormat>(matrix: &Quantized<F>) -> Result<Vec<u8>> {
    let mut blocks = vec![0; matrix.scales().len() * F::BLOCK_BYTES];
    to_blocks_into(matrix, &mut blocks)?;
    Ok(blocks)
}

/// [`to_blocks`] into the caller's memory, [`GgufFormat::BLOCK_BYTES`] for every [`GGUF_BLOCK`] elements.
///
/// # Errors
/// Rows that are not whole blocks, memory of another length.
pub fn to_blocks_into<F: GgufFormat>(matrix: &Quantized<F>, blocks: &mut [u8]) -> Result<()> {
    whole_blocks::<F>(matrix.shape()[1])?;
    let bytes = matrix.scales().len() * F::BLOCK_BYTES;
    length("blocks, in bytes", bytes, blocks.len())?;
    let places = blocks.chunks_exact_mut(F::BLOCK_BYTES);
    for (i, (block, scale)) in places.zip(matrix.scales()).enumerate() {
        let codes = core::array::from_fn(|j| F::CODES.code(matrix.codes(), i * GGUF_BLOCK + j));
        block[..2].copy_from_slice(&scale.to_le_bytes());
        F::write(&codes, &mut block[2..]);
    }
    Ok(())
}

/// A matrix `[rows, cols]` from a GGUF file's blocks.
///
/// # Errors
/// Rows that are not whole blocks, bytes of another length, a scale that is not finite.
pub fn from_blocks<F: GgufFormat>(
    [rows, cols]: [usize; 2],
    blocks: &[u8],
) -> Result<Quantized<'static, F>> {
    whole_blocks::<F>(cols)?;
    let count = crate::view::elements(rows, cols)? / GGUF_BLOCK;
    length("blocks, in bytes", count * F::BLOCK_BYTES, blocks.len())?;
    let mut codes = vec![0; F::CODES.bytes(rows * cols)];
    let per_block = F::CODES.bytes(GGUF_BLOCK);
    let mut scales = Vec::with_capacity(count);
    let places = codes.chunks_exact_mut(per_block);
    for (block, codes) in blocks.chunks_exact(F::BLOCK_BYTES).zip(places) {
        scales.push(f16::from_le_bytes([block[0], block[1]]));
        let read = F::read(&block[2..]);
        match F::CODES {
            CodeLayout::Bytes => codes.copy_from_slice(&read),
            _ => {
                for (byte, pair) in codes.iter_mut().zip(read.as_chunks::<2>().0) {
                    *byte = pair[0] | pair[1] << 4;
                }
            }
        }
    }
    Quantized::from_parts(F::default(), [rows, cols], (), codes, scales)
}
