//! Products with activations in bf16 in AMX's tile registers.

use super::float::{DEPTH, dequantize};
use super::{Gemm, store};
use crate::simd::amx::{self, Operands, SQUARE, Tiles};
use crate::simd::{LANES, Simd};

/// Some tiles times some blocks of rows. Scratch begins with dequantized columns of two tiles; the sums
/// follow, in squares.
///
/// # Safety
/// AMX is allowed, the activations are laid out for it, and scratch is of `float::scratch_bytes`.
#[inline(always)]
pub(super) unsafe fn run<S: Simd>(simd: S, gemm: Gemm) {
    let (matrix, x) = (gemm.matrix, gemm.x);
    let weights = gemm.scratch.as_mut_ptr().cast::<f32>();
    // SAFETY: within scratch and the activations; each tile is multiplied once.
    unsafe {
        let sums = weights.add(DEPTH * 2 * LANES);
        let registers = Tiles::new(64);
        for tile in gemm.tiles.clone().step_by(2) {
            let count = (gemm.tiles.end - tile).min(2);
            for begin in (0..matrix.depth()).step_by(DEPTH) {
                let columns = begin..matrix.depth().min(begin + DEPTH);
                for t in 0..count {
                    let to = weights.add(t * LANES);
                    dequantize(simd, matrix, x.mode, tile + t, columns.clone(), to, 2);
                }
                for (i, block) in gemm.blocks.clone().step_by(2).enumerate() {
                    let b = weights.cast::<u8>().cast_const();
                    let operands = Operands {
                        a: gemm.two_blocks(block, begin * 2 * LANES),
                        b: [b, b.add((count - 1) * 4 * LANES)],
                        b_pitch: 8 * LANES,
                        steps: columns.len() / 32,
                        next: [b; 2],
                        next_step: 0,
                    };
                    amx::bf16(&registers, operands, begin == 0, sums.add(i * 4 * SQUARE));
                }
            }
            for (i, block) in gemm.blocks.clone().enumerate() {
                for r in 0..LANES.min(x.rows - block * LANES) {
                    for t in 0..count {
                        let sum = simd.load(sums.add((2 * i + t) * SQUARE + r * LANES));
                        let y = simd.mul(sum, simd.splat(matrix.structure.factor));
                        store(simd, y, gemm.out, matrix.rows, block * LANES + r, tile + t);
                    }
                }
            }
        }
    }
}
