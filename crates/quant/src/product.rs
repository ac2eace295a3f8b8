//! `y = x · Wᵀ`: the entry points, and how the work is dealt out.

use crate::activations::{Activations, int8_of_floats};
use crate::cpu::{Cpu, Isa};
use crate::element::fma;
use crate::error::{Error, Result, length};
use crate::format::Levels;
use crate::kernels::{Gemm, float, gemv::Gemv, int8};
use crate::packed::{Packed, Scratch};
use crate::parallel::{Parts, Turns, for_each};
use crate::simd::{self, LANES};

/// Rows of activations that are multiplied with all tiles before the next: a cache of the second level
/// should hold them.
const ROWS: usize = 256;

/// How many tiles a worker takes at a time: several, since it asks memory for the next two while it
/// multiplies two; few enough that all workers end together. An even number.
fn tiles_a_run(tiles: usize, cpu: &Cpu) -> usize {
    let even = tiles / (16 * cpu.parallel().threads().max(1)) * 2;
    even.clamp(2, 16)
}

impl Packed<'_> {
    /// One row of activations `[1, cols]` times the transposed matrix: `[1, rows]` into `out`. Each
    /// weight is read once.
    ///
    /// # Errors
    /// Activations with other columns or groups, or not one row; `out` of another length; a mode other
    /// than int8, which needs scratch memory: see [`Packed::gemm`].
    pub fn gemv(&self, x: &Activations, out: &mut [f32], cpu: &Cpu) -> Result<()> {
        self.check(x, out, cpu)?;
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
        // About 512 KiB a piece: memory takes its time at the beginning of each. Of a small matrix less,
        // so that all threads end together.
        let pieces = 8 * cpu.parallel().threads().max(1);
        let bytes = (self.bytes() / pieces).min(524_288);
        let run = (bytes / self.tile_bytes().max(1)).max(1);
        for_each(cpu.parallel(), self.tiles(), run, |_, tiles| {
            // SAFETY: tiles are handed out once, and so are their rows.
            let out = unsafe { parts.part(tiles.start * LANES..tiles.end * LANES) };
            let first = tiles.start * LANES;
            let gemv = Gemv {
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
    /// Each row of the result has the same bits as it would have alone; in an int8 mode they are also the
    /// same on every instruction set. Among other rows LLM.int8 finds other outliers, and other results.
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
        self.check(x, out, cpu)?;
        if x.rows == 1 && x.mode.is_int8() {
            return self.gemv(x, out, cpu);
        }
        if self.cols == 0 {
            out.fill(0.0);
            return Ok(());
        }
        let blocks = (ROWS / x.stride).max(1);
        let rows = x.rows.min(blocks * x.stride);
        let bytes = if x.mode.is_int8() {
            int8::scratch_bytes(self, x, rows)
        } else {
            float::scratch_bytes(rows)
        };
        let run = tiles_a_run(self.tiles(), cpu);
        let turns = Turns::new(cpu.parallel(), self.tiles(), run);
        let (lines, each) = scratch.lines(turns.slots(), bytes);
        let lines = Parts::new(lines);
        let out = Parts::new(out);
        for first in (0..x.blocks()).step_by(blocks) {
            let blocks = first..x.blocks().min(first + blocks);
            turns.each(|worker, tiles| {
                let gemm = Gemm {
                    matrix: self,
                    x,
                    tiles: tiles.clone(),
                    blocks: blocks.clone(),
                    // SAFETY: no two calls have the same worker at the same time.
                    scratch: unsafe { lines.part(worker * each..(worker + 1) * each) },
                    out: &out,
                };
                if x.mode.is_int8() {
                    simd::run(cpu.isa(), int8::Int8(gemm));
                } else {
                    simd::run(cpu.isa(), float::Float(gemm));
                }
                if x.outliers.is_empty() {
                    return;
                }
                for row in blocks.start * x.stride..x.rows.min(blocks.end * x.stride) {
                    let range = tiles.start * LANES..self.rows.min(tiles.end * LANES);
                    let begin = row * self.rows;
                    // SAFETY: tiles are handed out once, and the kernel is done with them.
                    let out = unsafe { out.part(begin + range.start..begin + range.end) };
                    self.add_outliers(x, row, range.start, out);
                }
            });
        }
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

    fn check(&self, x: &Activations, out: &[f32], cpu: &Cpu) -> Result<()> {
        if x.cols != self.cols || x.group != self.structure.group {
            return Err(Error::Shapes {
                operation: "product: columns and groups must be the same",
                left_name: "activations [columns, group]",
                left: [x.cols, x.group],
                right_name: "matrix [columns, group]",
                right: [self.cols, self.structure.group],
            });
        }
        length("product", x.rows * self.rows, out.len())?;
        let levels = &self.structure.levels;
        if x.mode.is_int8() && matches!(levels, Levels::Bytes(_)) {
            return Err(int8_of_floats());
        }
        if x.in_tiles && cpu.isa() != Isa::Amx {
            return Err(Error::Unsupported {
                operation: "product",
                reason: alloc::format!(
                    "the activations are laid out for {}, not for {}: set them with the same instructions",
                    Isa::Amx,
                    cpu.isa()
                ),
            });
        }
        Ok(())
    }
}
