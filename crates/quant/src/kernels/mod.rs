//! The kernels of products, each written once for every instruction set.

pub(crate) mod float;
#[cfg(target_arch = "x86_64")]
mod float_tiles;
pub(crate) mod gemv;
pub(crate) mod int8;
#[cfg(target_arch = "x86_64")]
mod int8_tiles;
mod weights;

use crate::activations::Activations;
use crate::bytes::Line;
use crate::packed::Packed;
use crate::parallel::Parts;
use crate::simd::{LANES, Simd};
use core::ops::Range;

/// Some tiles of a matrix times some blocks of rows of activations.
pub(crate) struct Gemm<'a, 'b, 'c> {
    pub matrix: &'a Packed<'b>,
    pub x: &'a Activations,
    pub tiles: Range<usize>,
    pub blocks: Range<usize>,
    /// As long as the kernel's `scratch_bytes` says.
    pub scratch: &'a mut [Line],
    pub out: &'a Parts<'c, f32>,
}

#[cfg(target_arch = "x86_64")]
impl Gemm<'_, '_, '_> {
    /// Activations in tiles from so many bytes of a block on, and of the next block, or the same once more
    /// after the last.
    ///
    /// # Safety
    /// A block has so many bytes.
    #[inline(always)]
    unsafe fn two_blocks(&self, block: usize, bytes: usize) -> [*const u8; 2] {
        let words = self.x.block_words();
        let next = (block + 1).min(self.blocks.end - 1);
        // SAFETY: the blocks are among the activations.
        [block, next].map(|block| unsafe {
            let block = self.x.values.as_ptr().add(block * words);
            block.cast::<u8>().add(bytes)
        })
    }
}

/// A kernel that multiplies some rows at a time.
trait InRows<S: Simd> {
    /// Multiplies `ROWS` rows of a block from its row `row` on.
    ///
    /// # Safety
    /// A block has room for as many rows; the kernel's pointers are valid.
    unsafe fn rows<const ROWS: usize>(&self, simd: S, block: usize, row: usize);
}

/// Multiplies all rows of a block: twelve at a time where the registers can hold their sums, and the
/// least that there is a kernel for at the end.
///
/// # Safety
/// That of [`InRows::rows`].
#[inline(always)]
unsafe fn block_in_rows<S: Simd>(simd: S, x: &Activations, block: usize, kernel: &impl InRows<S>) {
    let used = x.stride.min(x.rows - block * x.stride);
    let mut row = 0;
    while row < used {
        let left = used - row;
        // SAFETY: the caller's promise; a block's stride is at least what is multiplied.
        unsafe {
            if S::ROWS == 12 && left > 8 {
                kernel.rows::<12>(simd, block, row);
                row += 12;
            } else if S::ROWS == 12 && left > 4 {
                kernel.rows::<8>(simd, block, row);
                row += 8;
            } else if left > 1 {
                kernel.rows::<4>(simd, block, row);
                row += 4;
            } else {
                kernel.rows::<1>(simd, block, row);
                row += 1;
            }
        }
    }
}

/// Writes a vector of results: the rows of tile `tile` for activation row `row`.
///
/// # Safety
/// No other call writes the same tile and row at the same time.
#[inline(always)]
unsafe fn store<S: Simd>(
    simd: S,
    value: S::F,
    out: &Parts<f32>,
    rows: usize,
    row: usize,
    tile: usize,
) {
    let begin = row * rows + tile * LANES;
    let end = begin + LANES.min(rows - tile * LANES);
    // SAFETY: the caller's promise.
    let out = unsafe { out.part(begin..end) };
    store_some(simd, value, out);
}

/// Writes a vector's first values, as many as `out` takes, 16 at most.
#[inline(always)]
fn store_some<S: Simd>(simd: S, value: S::F, out: &mut [f32]) {
    if out.len() >= LANES {
        // SAFETY: 16 floats.
        unsafe { simd.store(value, out.as_mut_ptr()) }
    } else {
        let mut all = [0.0; LANES];
        // SAFETY: 16 floats.
        unsafe { simd.store(value, all.as_mut_ptr()) }
        out.copy_from_slice(&all[..out.len()]);
    }
}
