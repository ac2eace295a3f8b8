//! Whether a product is one: the exact one of the same weights, and how far int8 may be from it.

use anyhow::{Result, ensure};
use ferrotune_quant::{Matrix, Mode, Packed};
use rayon::prelude::*;

/// The exact products of one row of activations with the rows of a matrix, and what each may be off by.
#[derive(Debug, Clone)]
pub struct Expected {
    exact: Vec<f64>,
    bounds: Vec<f64>,
}

impl Expected {
    /// Of a mode, see [`ferrotune_quant::bound`].
    ///
    /// # Errors
    /// Another number of activations than columns.
    pub fn new(matrix: &Packed, mode: Mode, x: &[f32]) -> Result<Self> {
        let [rows, cols] = matrix.shape();
        let mut bounds = vec![0.0; rows];
        matrix.error_bounds(mode, x, &mut bounds)?;
        let exact = (0..rows).into_par_iter().map(|row| {
            let mut weights = vec![0.0; cols];
            matrix.dequantize_row(row, &mut weights);
            let products = weights.iter().zip(x);
            products.map(|(w, x)| f64::from(*w) * f64::from(*x)).sum()
        });
        Ok(Self {
            exact: exact.collect(),
            bounds,
        })
    }

    /// Refuses a product that is further off than `times` the bound anywhere. The matrix may have been
    /// multiplied several times over.
    ///
    /// # Errors
    /// Says where.
    pub fn check(&self, what: &str, product: &[f32], times: f64) -> Result<()> {
        let expected = self.exact.iter().zip(&self.bounds).cycle();
        for (i, (found, (exact, bound))) in product.iter().zip(expected).enumerate() {
            let off = (f64::from(*found) - exact).abs();
            ensure!(
                off <= bound * times,
                "{what}: element {i} is {found} and should be {exact}; {off:.2e} is more than {times} × {bound:.2e}"
            );
        }
        Ok(())
    }
}

/// The first rows of a packed matrix, without a copy; a multiple of 16, or all.
///
/// # Errors
/// Those of [`Packed::from_parts`].
pub fn first_rows<'a>(matrix: &'a Packed, count: usize) -> Result<Packed<'a>> {
    let [rows, cols] = matrix.shape();
    let count = count.min(rows);
    let structure = matrix.structure().clone();
    let sizes = Packed::sizes([count, cols], &structure)?;
    Ok(Packed::from_parts(
        [count, cols],
        structure,
        &matrix.codes()[..sizes.codes],
        &matrix.scales()[..sizes.scales],
        &matrix.shifts()[..sizes.shifts],
    )?)
}
