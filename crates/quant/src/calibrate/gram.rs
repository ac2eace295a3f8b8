//! What calibration knows of the activations: sums over them, which do not grow with their number.

use super::triangle::{Lanes, Triangle, add_product, rows_of};
use crate::cpu::{Cpu, Isa};
use crate::element::Element;
use crate::error::{Error, Result};
use crate::format::measure;
use crate::parallel::{First, Parts, for_each};
use crate::simd::{self, LANES, Simd, Work};
use crate::view::View;
use alloc::{vec, vec::Vec};

/// Activations that are summed at a time.
const CHUNK: usize = 128;

/// The Gram matrix `H = Σ xᵀ x` of a layer's inputs `x`, a row of `in` values each, and the mean
/// magnitude of each input channel.
///
/// Sums are kept in f64, in which products of f32 are exact. The upper triangle takes `4 · in²` bytes
/// (64 MiB for 4096 channels), and nothing else grows with the number of activations. Sums do not depend
/// on the number of threads or the instruction set; their last bits depend on how the activations were
/// split over calls of [`Gram::add`].
#[derive(Debug, Clone, PartialEq)]
pub struct Gram {
    cols: usize,
    count: usize,
    magnitudes: Vec<f64>,
    sums: Triangle<f64>,
}

impl Gram {
    /// Of no activations yet, for a layer with `cols` input channels.
    ///
    /// # Errors
    /// More channels than memory can hold the matrix of.
    pub fn new(cols: usize) -> Result<Self> {
        let sums = Triangle::new(cols)?;
        Ok(Self {
            cols,
            count: 0,
            magnitudes: vec![0.0; sums.padded()],
            sums,
        })
    }

    /// Adds activations `[n, in]`.
    ///
    /// # Errors
    /// Another number of columns; the first value that is not finite, with its row and column in this
    /// batch. Nothing of a refused batch is added.
    pub fn add<T: Element>(&mut self, activations: View<T>, cpu: &Cpu) -> Result<()> {
        let (rows, cols) = (activations.rows(), activations.cols());
        if cols != self.cols {
            return Err(Error::Shapes {
                operation: "add to the Gram matrix",
                left_name: "activations",
                left: [rows, cols],
                right_name: "Gram matrix",
                right: [self.cols; 2],
            });
        }
        refuse_non_finite(activations, cpu)?;
        let panels = self.sums.panels();
        let mut chunk = vec![[0.0; LANES]; panels * CHUNK.min(rows)];
        for first in (0..rows).step_by(CHUNK) {
            let n = CHUNK.min(rows - first);
            let chunk = &mut chunk[..panels * n];
            self.load(activations, first, n, chunk, cpu);
            self.sum(chunk, n, cpu);
        }
        self.count += rows;
        Ok(())
    }

    /// Input channels.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// How many activations were added.
    pub fn count(&self) -> usize {
        self.count
    }

    /// `Σ x[i] · x[j]`; panics past the last channel, as indexing does.
    pub fn sum_of_products(&self, i: usize, j: usize) -> f64 {
        assert!(
            i < self.cols && j < self.cols,
            "[{i}, {j}] of {}",
            self.cols
        );
        self.sums.symmetric(i, j)
    }

    /// The mean magnitude of each channel, zeros before there are activations.
    pub fn mean_magnitudes(&self) -> Vec<f32> {
        let count = self.count.max(1) as f64;
        let sums = &self.magnitudes[..self.cols];
        sums.iter().map(|sum| (sum / count) as f32).collect()
    }

    pub(super) fn sums(&self) -> &Triangle<f64> {
        &self.sums
    }

    /// Converts `n` activations into panels of 16 channels, and adds their magnitudes.
    fn load<T: Element>(
        &mut self,
        activations: View<T>,
        first: usize,
        n: usize,
        chunk: &mut [Lanes<f64>],
        cpu: &Cpu,
    ) {
        let panels = self.sums.panels();
        let (chunk, magnitudes) = (Parts::new(chunk), Parts::new(&mut self.magnitudes));
        for_each(cpu.parallel(), panels, 8, |_, range| {
            for p in range {
                let channels = p * LANES..self.cols.min((p + 1) * LANES);
                // SAFETY: panels are handed out once.
                let (panel, magnitudes) = unsafe {
                    (
                        chunk.part(p * n..(p + 1) * n),
                        magnitudes.part(channels.clone()),
                    )
                };
                for (row, lanes) in panel.iter_mut().enumerate() {
                    let values = &activations.row(first + row)[channels.clone()];
                    *lanes = [0.0; LANES];
                    for ((lane, sum), value) in lanes.iter_mut().zip(&mut *magnitudes).zip(values) {
                        *lane = f64::from(value.to_f32());
                        *sum += lane.abs();
                    }
                }
            }
        });
    }

    /// Adds the products of `n` activations.
    fn sum(&mut self, chunk: &[Lanes<f64>], n: usize, cpu: &Cpu) {
        let panels = self.sums.panels();
        let sums = Parts::new(self.sums.data_mut());
        for_each(cpu.parallel(), panels, 1, |_, range| {
            for p in range {
                // The longest first, so that threads end at about the same time.
                let p = panels - 1 - p;
                // SAFETY: panels are handed out once and do not overlap.
                let panel = unsafe { sums.part(rows_of(p)) };
                // Products of f32 are exact in f64, so fusing them with the sum changes no bit. Without
                // the instruction it is a slow call.
                if cpu.isa() == Isa::Scalar {
                    simd::run(cpu.isa(), Sum::<false> { chunk, n, p, panel });
                } else {
                    simd::run(cpu.isa(), Sum::<true> { chunk, n, p, panel });
                }
            }
        });
    }
}

/// The products of a panel with itself and those before it.
struct Sum<'a, const FUSED: bool> {
    chunk: &'a [Lanes<f64>],
    n: usize,
    p: usize,
    panel: &'a mut [Lanes<f64>],
}

impl<const FUSED: bool> Work for Sum<'_, FUSED> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let of = |p: usize| &self.chunk[p * self.n..(p + 1) * self.n];
        let tiles = self.panel.as_chunks_mut::<LANES>().0;
        for (i, tile) in tiles.iter_mut().enumerate() {
            add_product::<f64, 8, FUSED>(of(i), of(self.p), tile);
        }
    }
}

/// Names the first value that is NaN or infinite.
pub(super) fn refuse_non_finite<T: Element>(matrix: View<T>, cpu: &Cpu) -> Result<()> {
    let (rows, cols) = (matrix.rows(), matrix.cols());
    let bad = First::new();
    for_each(cpu.parallel(), rows, 16, |_, range| {
        for row in range {
            if let Err(place) = simd::run(cpu.isa(), Check(matrix.row(row))) {
                bad.at(row * cols + place);
            }
        }
    });
    bad.check(|index| {
        let (row, col) = (index / cols, index % cols);
        Error::NonFinite {
            index,
            row,
            col,
            value: matrix.row(row)[col].to_f32(),
        }
    })
}

struct Check<'a, T>(&'a [T]);

impl<T: Element> Work for Check<'_, T> {
    type Output = Result<(), usize>;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> Self::Output {
        measure(self.0).map(|_| ())
    }
}

/// Rows that are multiplied with a triangle at a time: it is read once for all of them.
pub(super) const ROWS: usize = 64;

/// `Σ d H dᵀ` over the rows `d` of a matrix `[rows, in]`, whose rows `fill` writes.
pub(super) fn energy(
    gram: &Gram,
    rows: usize,
    fill: impl Fn(usize, &mut [f64]) + Sync,
    cpu: &Cpu,
) -> f64 {
    let padded = gram.sums.padded();
    let mut energies = vec![0.0; rows];
    let parts = Parts::new(&mut energies);
    for_each(cpu.parallel(), rows.div_ceil(ROWS), 1, |_, range| {
        for item in range {
            let range = item * ROWS..rows.min((item + 1) * ROWS);
            let mut row = vec![0.0; gram.cols];
            let mut panels = vec![[0.0; LANES]; range.len().div_ceil(LANES) * padded];
            for (i, r) in range.clone().enumerate() {
                fill(r, &mut row);
                let panel = &mut panels[i / LANES * padded..];
                for (lanes, value) in panel.iter_mut().zip(&row) {
                    lanes[i % LANES] = *value;
                }
            }
            // SAFETY: rows are handed out once.
            let energies = unsafe { parts.part(range) };
            let sums = &gram.sums;
            simd::run(
                cpu.isa(),
                Energy {
                    sums,
                    panels: &panels,
                    energies,
                },
            );
        }
    });
    // In the order of rows, whoever summed them.
    energies.iter().sum()
}

/// The energies of rows, 16 a panel `[in][16]`.
struct Energy<'a> {
    sums: &'a Triangle<f64>,
    panels: &'a [Lanes<f64>],
    energies: &'a mut [f64],
}

impl Work for Energy<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        for p in 0..self.sums.panels() {
            let (above, diagonal) = self.sums.panel(p).split_at(p * LANES);
            let panels = self.panels.chunks(self.sums.padded());
            for (panel, energies) in panels.zip(self.energies.chunks_mut(LANES)) {
                let mut product = [[f64::default(); LANES]; LANES];
                add_product::<f64, 8, false>(above, panel, &mut product);
                // What lies above the diagonal counts twice, for what lies below.
                product = product.map(|row| row.map(|value| value + value));
                let own = &panel[p * LANES..(p + 1) * LANES];
                add_product::<f64, 8, false>(diagonal, own, &mut product);
                for (product, own) in product.iter().zip(own) {
                    for ((energy, a), b) in energies.iter_mut().zip(product).zip(own) {
                        *energy += a * b;
                    }
                }
            }
        }
    }
}
