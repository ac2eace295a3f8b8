//! Upper triangles in panels of 16 columns, and the product that most of calibration consists of.

use crate::error::Result;
use crate::simd::LANES;
use crate::view::elements;
use alloc::{vec, vec::Vec};
use core::ops::{Add, Mul, Range, Sub};

/// 16 neighbours in a row of a panel.
pub(super) type Lanes<R> = [R; LANES];

/// f32 or f64.
pub(super) trait Real:
    Copy + Default + Send + Sync + Add<Output = Self> + Mul<Output = Self> + Sub<Output = Self>
{
    /// `self · b + c`, rounded once.
    fn fused(self, b: Self, c: Self) -> Self;
}

impl Real for f32 {
    #[inline(always)]
    fn fused(self, b: Self, c: Self) -> Self {
        self.mul_add(b, c)
    }
}

impl Real for f64 {
    #[inline(always)]
    fn fused(self, b: Self, c: Self) -> Self {
        self.mul_add(b, c)
    }
}

/// The upper triangle of a matrix `[16 p, 16 p]`. Panel `j` holds rows `0..16(j + 1)` of columns
/// `16j..16(j + 1)`, row by row, so that a tile of 16 × 16 is contiguous; the tiles on the diagonal are
/// whole.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Triangle<R> {
    panels: usize,
    data: Vec<Lanes<R>>,
}

impl<R: Real> Triangle<R> {
    /// Zeros, for a matrix of `n` columns and what fills it up.
    pub fn new(n: usize) -> Result<Self> {
        elements(n.div_ceil(LANES) * LANES, n)?;
        let panels = n.div_ceil(LANES);
        Ok(Self {
            panels,
            data: vec![[R::default(); LANES]; begin(panels)],
        })
    }

    pub fn panels(&self) -> usize {
        self.panels
    }

    /// Rows and columns, filling included.
    pub fn padded(&self) -> usize {
        self.panels * LANES
    }

    pub fn panel(&self, p: usize) -> &[Lanes<R>] {
        &self.data[rows_of(p)]
    }

    /// All panels one after another, panel `p` in [`rows_of`]`(p)`.
    pub fn data_mut(&mut self) -> &mut [Lanes<R>] {
        &mut self.data
    }

    /// An element of the symmetric matrix whose upper triangle this is.
    pub fn symmetric(&self, i: usize, j: usize) -> R {
        let (i, j) = (i.min(j), i.max(j));
        self.panel(j / LANES)[i][j % LANES]
    }
}

/// Where panel `p` begins.
fn begin(p: usize) -> usize {
    LANES / 2 * p * (p + 1)
}

/// The rows of panel `p` among those of all panels.
pub(super) fn rows_of(p: usize) -> Range<usize> {
    begin(p)..begin(p + 1)
}

/// `tile[i][j] += Σₖ a[k][i] · b[k][j]`, in the order of k whatever the instructions, `WIDE` columns at
/// a time. `FUSED` rounds product and sum once.
#[inline(always)]
pub(super) fn add_product<R: Real, const WIDE: usize, const FUSED: bool>(
    a: &[Lanes<R>],
    b: &[Lanes<R>],
    tile: &mut [Lanes<R>; LANES],
) {
    // Pieces that the first cache holds while all of the tile passes over them.
    for (a, b) in a.chunks(64).zip(b.chunks(64)) {
        for (quarter, rows) in tile.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            for part in 0..LANES / WIDE {
                let mut sums: [[R; WIDE]; 4] =
                    core::array::from_fn(|i| rows[i].as_chunks::<WIDE>().0[part]);
                for (a, b) in a.iter().zip(b) {
                    let a = a.as_chunks::<4>().0[quarter];
                    let b = b.as_chunks::<WIDE>().0[part];
                    for i in 0..4 {
                        for j in 0..WIDE {
                            sums[i][j] = if FUSED {
                                a[i].fused(b[j], sums[i][j])
                            } else {
                                sums[i][j] + a[i] * b[j]
                            };
                        }
                    }
                }
                for (row, sums) in rows.iter_mut().zip(sums) {
                    row.as_chunks_mut::<WIDE>().0[part] = sums;
                }
            }
        }
    }
}

/// `tile[i][j] -= Σₖ a[k][i] · b[k][j]`.
#[inline(always)]
pub(super) fn subtract_product<R: Real, const WIDE: usize>(
    a: &[Lanes<R>],
    b: &[Lanes<R>],
    tile: &mut [Lanes<R>],
) {
    let mut product = [[R::default(); LANES]; LANES];
    add_product::<R, WIDE, false>(a, b, &mut product);
    for (row, product) in tile.iter_mut().zip(product) {
        for (value, product) in row.iter_mut().zip(product) {
            *value = *value - product;
        }
    }
}
