//! How the error of a column is made good by the columns after it.

use super::cholesky::{factor, inverse};
use super::gram::Gram;
use super::triangle::{Triangle, rows_of};
use crate::cpu::Cpu;
use crate::error::{Error, Result};
use crate::parallel::{Parts, for_each};
use crate::simd::LANES;
use alloc::{format, vec::Vec};

/// `U[i][j] ÷ U[i][i]` for the upper triangular `U` with `Uᵀ U = (H + λ I)⁻¹`, columns in `order`.
///
/// `U` is the inverse of the upper triangular `R` with `R Rᵀ = H + λ I`, which is Cholesky's factor of
/// the matrix read from its end. So there is one decomposition and one inverse of a triangle, where the
/// paper inverts the matrix and decomposes it again.
///
/// # Errors
/// A matrix that is not positive definite with this damping; activations that are all zero.
pub(super) fn feedback(
    method: &'static str,
    gram: &Gram,
    order: &[usize],
    damping: f64,
    cpu: &Cpu,
) -> Result<Triangle<f32>> {
    let n = order.len();
    let diagonal: Vec<f64> = (0..n).map(|i| gram.sum_of_products(i, i)).collect();
    let alive = diagonal.iter().filter(|value| **value > 0.0).count();
    if alive == 0 {
        return Err(Error::Calibration {
            method,
            reason: "all activations are zero".into(),
        });
    }
    // Channels that were never active would lower the mean.
    let mean = diagonal.iter().sum::<f64>() / alive as f64;
    let added = damping * mean;
    let mut matrix = Triangle::<f64>::new(n)?;
    let (panels, last) = (matrix.panels(), matrix.padded() - 1);
    // From the end: what fills the matrix up comes first and touches nothing. Nor do dead channels,
    // whose diagonal only has to be positive.
    let element = |i: usize, j: usize| match (order.get(last - i), order.get(last - j)) {
        (Some(a), Some(b)) if a == b && diagonal[*a] == 0.0 => mean,
        (Some(a), Some(b)) => gram.sums().symmetric(*a, *b) + if a == b { added } else { 0.0 },
        _ => f64::from(i == j),
    };
    let parts = Parts::new(matrix.data_mut());
    for_each(cpu.parallel(), panels, 4, |_, range| {
        for p in range {
            // SAFETY: panels are handed out once and do not overlap.
            let panel = unsafe { parts.part(rows_of(p)) };
            for (i, row) in panel.iter_mut().enumerate() {
                for (lane, value) in row.iter_mut().enumerate() {
                    *value = element(i, p * LANES + lane);
                }
            }
        }
    });
    factor(&mut matrix, cpu).map_err(|error| Error::Calibration {
        method,
        reason: format!(
            "the Gram matrix of {} activations, damped by {damping} of its mean diagonal ({added:e}), is \
             not positive definite: pivot {:e} at channel {}; raise the damping or add activations",
            gram.count(),
            error.pivot,
            order.get(last - error.row).unwrap_or(&n),
        ),
    })?;
    let inverse = inverse(&matrix, cpu)?;
    let mut feedback = Triangle::<f32>::new(n)?;
    let parts = Parts::new(feedback.data_mut());
    for_each(cpu.parallel(), panels, 4, |_, range| {
        for p in range {
            // SAFETY: panels are handed out once and do not overlap.
            let panel = unsafe { parts.part(rows_of(p)) };
            for (i, row) in panel.iter_mut().enumerate() {
                // Row i of U is column `last - i` of the inverse, read upwards.
                let at = last - i;
                let column = inverse.panel(at / LANES);
                let scale = column[at][at % LANES];
                for (lane, value) in row.iter_mut().enumerate() {
                    let j = p * LANES + lane;
                    if j >= i {
                        *value = (column[last - j][at % LANES] / scale) as f32;
                    }
                }
            }
        }
    });
    Ok(feedback)
}
