//! Rows of a matrix, quantized column by column while the columns to come make good each error.

use super::triangle::{Lanes, Triangle, add_product};
use crate::element::Element;
use crate::format::{CodeLayout, Extent, Format, measure};
use crate::simd::{LANES, Simd, Work};
use crate::view::View;
use alloc::{vec, vec::Vec};
use core::ops::Range;

/// Columns whose errors are made good together in the columns far from them.
pub(super) const BLOCK: usize = 128;

/// What is the same for all rows.
pub(super) struct Columns<'a, F: Format, T> {
    pub format: &'a F,
    pub tensor: F::Tensor,
    pub weights: View<'a, T>,
    /// Elements of a group, and groups of a row.
    pub group: usize,
    pub groups: usize,
    pub feedback: &'a Triangle<f32>,
    /// The channels in the order in which they are quantized.
    pub order: &'a [usize],
    /// Channels that were never active; their weights become zeros.
    pub dead: &'a [bool],
    pub fitting: Fitting,
}

/// When scales are fitted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Fitting {
    /// Once for the whole matrix.
    Tensor(Extent),
    /// From the weights as they were.
    Before,
    /// When a group's first column comes, from the weights as they are by then.
    Entering,
}

/// Some rows, where their codes and scales go. Codes are zeros at first.
pub(super) struct Rows<'a, F: Format, T> {
    pub columns: &'a Columns<'a, F, T>,
    pub rows: Range<usize>,
    pub codes: &'a mut [u8],
    pub scales: &'a mut [F::Scale],
}

impl<F: Format, T: Element> Work for Rows<'_, F, T> {
    /// The row whose weights became infinite.
    type Output = Result<(), usize>;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> Self::Output {
        let columns = self.columns;
        let cols = columns.order.len();
        let padded = columns.feedback.padded();
        let count = self.rows.len();
        let mut weights = vec![[0.0; LANES]; count.div_ceil(LANES) * padded];
        let start = match columns.fitting {
            Fitting::Tensor(extent) => extent,
            _ => Extent::NOTHING,
        };
        let start = columns.format.fit(&columns.tensor, start);
        let mut fitted = vec![start; count * columns.groups];
        let mut values = vec![0.0; cols];
        for (i, row) in self.rows.clone().enumerate() {
            let row = columns.weights.row(row);
            for ((value, weight), dead) in values.iter_mut().zip(row).zip(columns.dead) {
                *value = if *dead { 0.0 } else { weight.to_f32() };
            }
            if columns.fitting == Fitting::Before {
                let fitted = &mut fitted[i * columns.groups..];
                for (fitted, values) in fitted.iter_mut().zip(values.chunks(columns.group)) {
                    let extent = measure(values).map_err(|_| self.rows.start + i)?;
                    *fitted = columns.format.fit(&columns.tensor, extent);
                }
            }
            let panel = &mut weights[i / LANES * padded..];
            for (lanes, channel) in panel.iter_mut().zip(columns.order) {
                lanes[i % LANES] = values[*channel];
            }
        }
        for block in Blocks::new(cols, columns) {
            let panels = weights
                .chunks_exact_mut(padded)
                .zip((0..count).step_by(LANES));
            for (panel, first) in panels {
                let mut job = Panel {
                    columns,
                    lanes: LANES.min(count - first),
                    first,
                    weights: panel,
                    fitted: &mut fitted[first * columns.groups..],
                    codes: self.codes,
                };
                let mut errors = [[0.0; LANES]; BLOCK];
                job.quantize(block.clone(), &mut errors)
                    .map_err(|lane| self.rows.start + first + lane)?;
                job.feed_back(block.clone(), &errors[..block.len()]);
            }
        }
        for (scale, (fitted, _)) in self.scales.iter_mut().zip(&fitted) {
            *scale = *fitted;
        }
        Ok(())
    }
}

/// Runs of at most [`BLOCK`] columns. A group begins with a run or lies within one, so that its weights
/// have had all the feedback they will get before it when its first column comes.
struct Blocks {
    at: usize,
    cols: usize,
    group: usize,
}

impl Blocks {
    fn new<F: Format, T>(cols: usize, columns: &Columns<F, T>) -> Self {
        let group = match columns.fitting {
            Fitting::Entering => columns.group,
            _ => cols,
        };
        Self { at: 0, cols, group }
    }
}

impl Iterator for Blocks {
    type Item = Range<usize>;

    fn next(&mut self) -> Option<Range<usize>> {
        let at = self.at;
        if at >= self.cols {
            return None;
        }
        self.at = if self.group > BLOCK {
            (at + BLOCK).min(at / self.group * self.group + self.group)
        } else {
            at + BLOCK / self.group * self.group
        };
        self.at = self.at.min(self.cols);
        Some(at..self.at)
    }
}

/// 16 rows.
struct Panel<'a, F: Format, T> {
    columns: &'a Columns<'a, F, T>,
    lanes: usize,
    /// The first row, counted from where `codes` begins.
    first: usize,
    /// `[in][16]`, in the order of quantization.
    weights: &'a mut [Lanes<f32>],
    fitted: &'a mut [(F::Scale, F::Encoder)],
    codes: &'a mut [u8],
}

impl<F: Format, T: Element> Panel<'_, F, T> {
    #[inline(always)]
    fn quantize(
        &mut self,
        block: Range<usize>,
        errors: &mut [Lanes<f32>; BLOCK],
    ) -> Result<(), usize> {
        let Columns {
            format,
            tensor,
            group,
            groups,
            order,
            feedback,
            ..
        } = self.columns;
        let cols = order.len();
        for (j, errors) in block.clone().zip(errors) {
            if self.columns.fitting == Fitting::Entering && j % group == 0 {
                self.fit(j..cols.min(j + group))?;
            }
            let channel = order[j];
            for (lane, error) in errors.iter_mut().enumerate().take(self.lanes) {
                let weight = self.weights[j][lane];
                if !weight.is_finite() {
                    return Err(lane);
                }
                let (scale, encoder) = &self.fitted[lane * groups + channel / group];
                let code = F::encode(encoder, &[weight; 16])[0];
                put::<F>(self.codes, (self.first + lane) * cols + channel, code);
                *error = weight - format.decode(tensor, *scale, code);
            }
            for k in j + 1..block.end {
                let factor = feedback.panel(k / LANES)[j][k % LANES];
                for (weight, error) in self.weights[k].iter_mut().zip(&*errors) {
                    *weight -= factor * error;
                }
            }
        }
        Ok(())
    }

    /// Fits the scales of a group to its weights as they are.
    #[inline(always)]
    fn fit(&mut self, group: Range<usize>) -> Result<(), usize> {
        let columns = self.columns;
        let place = group.start / columns.group;
        let mut values = Vec::with_capacity(group.len());
        for lane in 0..self.lanes {
            values.clear();
            values.extend(self.weights[group.clone()].iter().map(|lanes| lanes[lane]));
            let extent = measure(&values).map_err(|_| lane)?;
            self.fitted[lane * columns.groups + place] =
                columns.format.fit(&columns.tensor, extent);
        }
        Ok(())
    }

    /// Takes a block's errors from all columns after it.
    #[inline(always)]
    fn feed_back(&mut self, block: Range<usize>, errors: &[Lanes<f32>]) {
        let feedback = self.columns.feedback;
        for p in block.end / LANES..feedback.panels() {
            let mut product = [[0.0; LANES]; LANES];
            add_product::<f32, 16, false>(&feedback.panel(p)[block.clone()], errors, &mut product);
            // A block may end within a panel.
            let within = block.end.saturating_sub(p * LANES);
            let weights = &mut self.weights[p * LANES + within..];
            for (weights, product) in weights.iter_mut().zip(&product[within..]) {
                for (weight, product) in weights.iter_mut().zip(product) {
                    *weight -= product;
                }
            }
        }
    }
}

/// Writes the code of element `i` over zeros.
#[inline(always)]
pub(super) fn put<F: Format>(bytes: &mut [u8], i: usize, code: u8) {
    match F::CODES {
        CodeLayout::Bytes => bytes[i] = code,
        layout => {
            let high = (layout == CodeLayout::HighNibbleFirst) == (i.is_multiple_of(2));
            bytes[i / 2] |= if high { code << 4 } else { code & 15 };
        }
    }
}
