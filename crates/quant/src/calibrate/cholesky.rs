//! Cholesky's decomposition and the inverse of a triangle, in f64.

use super::triangle::{Lanes, Triangle, rows_of, subtract_product};
use crate::cpu::Cpu;
use crate::error::Result;
use crate::parallel::{Parts, for_each};
use crate::simd::{self, LANES, Simd, Work};
use alloc::{vec, vec::Vec};

/// Rows that are decomposed at a time, in panels: 64 rows.
const STEP: usize = 4;

/// The row whose pivot is not positive, and the pivot.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct NotPositive {
    pub row: usize,
    pub pivot: f64,
}

/// Turns the upper triangle of `A` into the upper triangular `V` with `A = Vᵀ V`.
///
/// # Errors
/// A pivot that is nothing but rounding error: below `n · 2⁻⁵²` of the diagonal's element. The matrix is
/// then unspecified.
pub(super) fn factor(matrix: &mut Triangle<f64>, cpu: &Cpu) -> Result<(), NotPositive> {
    let panels = matrix.panels();
    let negligible: Vec<f64> = (0..matrix.padded())
        .map(|i| matrix.symmetric(i, i) * matrix.padded() as f64 * f64::EPSILON)
        .collect();
    // The rows that were decomposed last, which everybody reads while panels are written.
    let mut rows = vec![[0.0; LANES]; panels * STEP * LANES];
    for first in (0..panels).step_by(STEP) {
        let end = panels.min(first + STEP);
        let (top, depth) = (first * LANES, (end - first) * LANES);
        let diagonal = diagonal(matrix, top, depth, &negligible)?;
        let data = Parts::new(matrix.data_mut());
        let solved = Parts::new(&mut rows);
        for_each(cpu.parallel(), panels - first, 8, |_, range| {
            for p in range.start + first..range.end + first {
                let begin = rows_of(p).start + top;
                // SAFETY: panels are handed out once, and neither their rows nor the copies overlap. The
                // panels of the diagonal block hold fewer rows than it has.
                let (panel, solved) = unsafe {
                    (
                        data.part(begin..(begin + depth).min(rows_of(p).end)),
                        solved.part(p * depth..(p + 1) * depth),
                    )
                };
                if p < end {
                    for (i, row) in panel.iter_mut().enumerate() {
                        let column = (p - first) * LANES;
                        row.copy_from_slice(&diagonal[i * depth + column..][..LANES]);
                    }
                } else {
                    let diagonal = &diagonal;
                    simd::run(cpu.isa(), Solve { diagonal, panel });
                    solved.copy_from_slice(panel);
                }
            }
        });
        let rows = &rows;
        for_each(cpu.parallel(), panels - end, 1, |_, range| {
            for p in range {
                // The longest first, so that threads end at about the same time.
                let p = panels - 1 - p;
                let begin = rows_of(p).start + end * LANES;
                // SAFETY: panels are handed out once.
                let panel = unsafe { data.part(begin..rows_of(p).end) };
                let of = |p: usize| &rows[p * depth..(p + 1) * depth];
                let update = Update {
                    of,
                    first: end,
                    p,
                    panel,
                };
                simd::run(cpu.isa(), update);
            }
        });
    }
    Ok(())
}

/// The factor of a block of `depth` rows on the diagonal, row by row, zeros below.
fn diagonal(
    matrix: &Triangle<f64>,
    top: usize,
    depth: usize,
    negligible: &[f64],
) -> Result<Vec<f64>, NotPositive> {
    let mut block = vec![0.0; depth * depth];
    for i in 0..depth {
        for j in i..depth {
            block[i * depth + j] = matrix.symmetric(top + i, top + j);
        }
    }
    for i in 0..depth {
        let (done, below) = block.split_at_mut((i + 1) * depth);
        let row = &mut done[i * depth..];
        let pivot = row[i];
        // NaN is refused too.
        if !(pivot > negligible[top + i] && pivot.is_finite()) {
            return Err(NotPositive {
                row: top + i,
                pivot,
            });
        }
        let root = pivot.sqrt();
        row[i..].iter_mut().for_each(|value| *value /= root);
        for (k, other) in below.chunks_exact_mut(depth).enumerate() {
            let k = i + 1 + k;
            for j in k..depth {
                other[j] -= row[k] * row[j];
            }
        }
    }
    Ok(block)
}

/// Solves `Vᵀ X = panel` for the block `V` of the diagonal.
struct Solve<'a> {
    diagonal: &'a [f64],
    panel: &'a mut [Lanes<f64>],
}

impl Work for Solve<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let depth = self.panel.len();
        for (i, row) in self.diagonal.chunks_exact(depth).enumerate() {
            let (done, below) = self.panel.split_at_mut(i + 1);
            let solved = &mut done[i];
            solved.iter_mut().for_each(|value| *value /= row[i]);
            for (other, factor) in below.iter_mut().zip(&row[i + 1..]) {
                for (value, solved) in other.iter_mut().zip(&*solved) {
                    *value -= factor * solved;
                }
            }
        }
    }
}

/// Subtracts the products of the rows decomposed last from a panel's rows below them.
struct Update<'a, Of> {
    of: Of,
    first: usize,
    p: usize,
    panel: &'a mut [Lanes<f64>],
}

impl<'a, Of: Fn(usize) -> &'a [Lanes<f64>]> Work for Update<'_, Of> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let own = (self.of)(self.p);
        for (i, tile) in self.panel.chunks_exact_mut(LANES).enumerate() {
            subtract_product::<f64, 8>((self.of)(self.first + i), own, tile);
        }
    }
}

/// The inverse of an upper triangular matrix without zeros on its diagonal.
///
/// # Errors
/// More memory than there can be.
pub(super) fn inverse(matrix: &Triangle<f64>, cpu: &Cpu) -> Result<Triangle<f64>> {
    let panels = matrix.panels();
    let mut inverse = Triangle::new(matrix.padded())?;
    let data = Parts::new(inverse.data_mut());
    for_each(cpu.parallel(), panels, 1, |_, range| {
        for p in range {
            let p = panels - 1 - p;
            // SAFETY: panels are handed out once and do not overlap.
            let panel = unsafe { data.part(rows_of(p)) };
            simd::run(cpu.isa(), Invert { matrix, panel });
        }
    });
    Ok(inverse)
}

/// Solves `V X = I` for 16 columns of X, from the last row upwards.
struct Invert<'a> {
    matrix: &'a Triangle<f64>,
    panel: &'a mut [Lanes<f64>],
}

impl Work for Invert<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let tiles = self.panel.as_chunks_mut::<LANES>().0;
        if let Some(last) = tiles.last_mut() {
            for (i, row) in last.iter_mut().enumerate() {
                row[i] = 1.0;
            }
        }
        for p in (0..tiles.len()).rev() {
            let factors = self.matrix.panel(p).as_chunks::<LANES>().0;
            let (above, rest) = tiles.split_at_mut(p);
            let own = &mut rest[0];
            for i in (0..LANES).rev() {
                let (above, rest) = own.split_at_mut(i);
                let solved = &mut rest[0];
                solved
                    .iter_mut()
                    .for_each(|value| *value /= factors[p][i][i]);
                for (other, factors) in above.iter_mut().zip(&factors[p]) {
                    for (value, solved) in other.iter_mut().zip(&*solved) {
                        *value -= factors[i] * solved;
                    }
                }
            }
            for (tile, factors) in above.iter_mut().zip(factors) {
                subtract_tile(factors, own, tile);
            }
        }
    }
}

/// `tile -= a · b`, `a` row by row.
#[inline(always)]
fn subtract_tile(a: &[Lanes<f64>; LANES], b: &[Lanes<f64>; LANES], tile: &mut [Lanes<f64>; LANES]) {
    for (rows, a) in tile
        .as_chunks_mut::<4>()
        .0
        .iter_mut()
        .zip(a.as_chunks::<4>().0)
    {
        for part in 0..2 {
            let mut sums: [[f64; 8]; 4] =
                core::array::from_fn(|i| rows[i].as_chunks::<8>().0[part]);
            for k in 0..LANES {
                let b = b[k].as_chunks::<8>().0[part];
                for i in 0..4 {
                    for j in 0..8 {
                        sums[i][j] -= a[i][k] * b[j];
                    }
                }
            }
            for (row, sums) in rows.iter_mut().zip(sums) {
                row.as_chunks_mut::<8>().0[part] = sums;
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// `A = B Bᵀ + I`, and the identity where it is filled up.
    fn positive(n: usize) -> Triangle<f64> {
        let b = |i: usize, j: usize| ((i * 31 + j * 17) as f64 * 0.37).sin();
        let mut matrix = Triangle::new(n).unwrap();
        for p in 0..matrix.panels() {
            let panel = &mut matrix.data_mut()[rows_of(p)];
            for (i, row) in panel.iter_mut().enumerate() {
                for (lane, value) in row.iter_mut().enumerate() {
                    let j = p * LANES + lane;
                    let inside = i < n && j < n;
                    let sum: f64 = (0..n).map(|k| b(i, k) * b(j, k)).sum();
                    *value = f64::from(i == j) + if inside { sum } else { 0.0 };
                }
            }
        }
        matrix
    }

    fn upper(matrix: &Triangle<f64>, i: usize, j: usize) -> f64 {
        if i <= j { matrix.symmetric(i, j) } else { 0.0 }
    }

    #[test]
    fn the_factor_reconstructs_and_its_inverse_inverts() {
        let cpu = Cpu::detect();
        for n in [1, 15, 16, 64, 65, 100, 150] {
            let matrix = positive(n);
            let mut factor = matrix.clone();
            super::factor(&mut factor, &cpu).unwrap();
            let inverse = inverse(&factor, &cpu).unwrap();
            let padded = matrix.padded();
            for i in 0..padded {
                for j in i..padded {
                    let product = |a: &Triangle<f64>, transposed: bool| -> f64 {
                        (0..padded)
                            .map(|k| {
                                let a = if transposed {
                                    upper(a, k, i)
                                } else {
                                    upper(a, i, k)
                                };
                                a * upper(&factor, k, j)
                            })
                            .sum()
                    };
                    let expected = matrix.symmetric(i, j);
                    let found = product(&factor, true);
                    assert!((found - expected).abs() < 1e-10 * n as f64, "{n} {i} {j}");
                    let found = product(&inverse, false);
                    assert!(
                        (found - f64::from(i == j)).abs() < 1e-10,
                        "{n} {i} {j} {found}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_matrix_that_is_not_positive_names_the_row() {
        let cpu = Cpu::detect();
        let mut matrix = positive(100);
        // Row and column 80 become those of 3: a rank less.
        let copy: Vec<f64> = (0..100).map(|i| matrix.symmetric(3, i)).collect();
        for (i, value) in copy.iter().enumerate() {
            let (i, j) = (i.min(80), i.max(80));
            matrix.data_mut()[rows_of(j / LANES)][i][j % LANES] = *value;
        }
        let last = rows_of(5).start + 80;
        matrix.data_mut()[last][0] = copy[3];
        let error = factor(&mut matrix, &cpu).unwrap_err();
        assert_eq!(error.row, 80);
        assert!(error.pivot.abs() < 1e-8);
    }
}
