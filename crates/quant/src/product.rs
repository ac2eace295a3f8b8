//! `y = x · Wᵀ`: the entry points, and how the work is dealt out.

use crate::activations::{Activations, Mode};
use crate::cpu::Cpu;
use crate::element::fma;
use crate::error::{Error, Result, length};
use crate::packed::{Packed, Scratch};
use crate::parallel::{Parts, for_each, worker_slots};
use crate::simd::{self, LANES};
use crate::{float_kernel, int8_kernel};

impl Packed<'_> {
    /// One row of activations `[1, cols]` times the transposed matrix: `[1, rows]` into `out`. Each
    /// weight is read once.
    ///
    /// # Errors
    /// Activations with other columns or groups, or not one row; `out` of another length; a mode other
    /// than int8, which needs scratch memory: see [`Packed::gemm`].
    pub fn gemv(&self, x: &Activations, out: &mut [f32], cpu: &Cpu) -> Result<()> {
        self.check(x, out)?;
        if x.rows != 1 || !x.mode.is_int8() {
            return Err(Error::Unsupported {
                operation: "gemv",
                reason: alloc::format!(
                    "{} rows of activations in {:?}: gemv is for one row in int8, gemm for the others",
                    x.rows,
                    x.mode
                ),
            });
        }
        // Kernels read at least one group and its scale.
        if self.cols == 0 {
            out.fill(0.0);
            return Ok(());
        }
        let parts = Parts::new(out);
        // About 128 KiB a piece: enough to be worth a turn, few enough that two threads end together.
        let run = (131_072 / self.tile_bytes().max(1)).max(1);
        for_each(cpu.parallel(), self.tiles(), run, |_, tiles| {
            // SAFETY: tiles are handed out once, and so are their rows.
            let out = unsafe { parts.part(tiles.start * LANES..tiles.end * LANES) };
            let first = tiles.start * LANES;
            let gemv = int8_kernel::Gemv {
                matrix: self,
                x,
                tiles,
                out: &mut *out,
            };
            simd::run(cpu.isa(), gemv);
            if !x.outliers.is_empty() {
                self.add_outliers(x, 0, first, out);
            }
        });
        Ok(())
    }

    /// Activations `[m, cols]` times the transposed matrix: `[m, rows]`, row by row, into `out`.
    ///
    /// Each row of the result has the same bits as it would have alone. In an int8 mode they are also
    /// the same on every instruction set.
    ///
    /// # Errors
    /// Activations with other columns or groups; `out` of another length.
    pub fn gemm(
        &self,
        x: &Activations,
        out: &mut [f32],
        scratch: &mut Scratch,
        cpu: &Cpu,
    ) -> Result<()> {
        self.check(x, out)?;
        if x.rows == 1 && x.mode.is_int8() {
            return self.gemv(x, out, cpu);
        }
        if self.cols == 0 {
            out.fill(0.0);
            return Ok(());
        }
        const TILES: usize = 2;
        let bytes = match x.mode {
            Mode::F32 | Mode::Bf16 => float_kernel::scratch_bytes(x, TILES),
            _ => int8_kernel::scratch_bytes(self, TILES),
        };
        let slots = worker_slots(cpu.parallel(), self.tiles(), TILES);
        let (lines, each) = scratch.lines(slots, bytes);
        let lines = Parts::new(lines);
        let out = Parts::new(out);
        for_each(cpu.parallel(), self.tiles(), TILES, |worker, tiles| {
            // SAFETY: no two calls have the same worker at the same time.
            let scratch = unsafe { lines.part(worker * each..(worker + 1) * each) };
            if x.mode.is_int8() {
                let gemm = int8_kernel::Gemm {
                    matrix: self,
                    x,
                    tiles: tiles.clone(),
                    scratch,
                    out: &out,
                };
                simd::run(cpu.isa(), gemm);
                let rows = if x.outliers.is_empty() { 0 } else { x.rows };
                for row in 0..rows {
                    let range = tiles.start * LANES..self.rows.min(tiles.end * LANES);
                    let begin = row * self.rows;
                    // SAFETY: tiles are handed out once, and the kernel is done with them.
                    let out = unsafe { out.part(begin + range.start..begin + range.end) };
                    self.add_outliers(x, row, range.start, out);
                }
            } else {
                let gemm = float_kernel::Gemm {
                    matrix: self,
                    x,
                    tiles,
                    scratch,
                    out: &out,
                };
                simd::run(cpu.isa(), gemm);
            }
        });
        Ok(())
    }

    /// Adds the outliers of a row of activations to its products with some rows, from row `first`.
    fn add_outliers(&self, x: &Activations, row: usize, first: usize, out: &mut [f32]) {
        let count = x.outliers.len();
        let values = &x.outlier_values[row * count..][..count];
        for (i, out) in out.iter_mut().enumerate() {
            let terms = x.outliers.iter().zip(values);
            *out += terms.fold(0.0_f32, |sum, (col, x)| {
                fma(self.value(first + i, *col as usize), *x, sum)
            });
        }
    }

    fn check(&self, x: &Activations, out: &[f32]) -> Result<()> {
        if x.cols != self.cols || x.group != self.structure.group {
            return Err(Error::Shapes {
                operation: "product: columns and groups must be the same",
                left_name: "activations [columns, group]",
                left: [x.cols, x.group],
                right_name: "matrix [columns, group]",
                right: [self.cols, self.structure.group],
            });
        }
        length("product", x.rows * self.rows, out.len())
    }
}

/// Writes a vector of results: the rows of tile `tile` for activation row `row`.
///
/// # Safety
/// No other call writes the same tile and row at the same time.
#[inline(always)]
pub(crate) unsafe fn store<S: simd::Simd>(
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
    if out.len() == LANES {
        // SAFETY: 16 floats.
        unsafe { simd.store(value, out.as_mut_ptr()) }
    } else {
        let mut all = [0.0; LANES];
        // SAFETY: 16 floats.
        unsafe { simd.store(value, all.as_mut_ptr()) }
        out.copy_from_slice(&all[..out.len()]);
    }
}
