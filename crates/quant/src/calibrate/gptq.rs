//! GPTQ: column by column, each error made good by the columns that are still to come.

use super::columns::{Columns, Fitting, Rows};
use super::feedback::feedback;
use super::gram::{Gram, ROWS};
use super::{Report, groups, round_to_nearest};
use crate::cpu::Cpu;
use crate::element::Element;
use crate::error::{Error, Result};
use crate::format::{CodeLayout, Extent, Format, Grouping, Quantized, measure, sizes};
use crate::parallel::{First, Parts, for_each};
use crate::simd;
use crate::view::View;
use alloc::{format, vec, vec::Vec};

const METHOD: &str = "gptq";

/// How GPTQ runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GptqOptions {
    /// What is added to the diagonal of the Gram matrix, as a part of its mean over the channels that
    /// were ever active. The paper's 0.01 by default.
    pub damping: f64,
    /// Quantize the channels with the most energy first, while there is most left to make good their
    /// errors. Codes are stored in the original order all the same. Off by default.
    ///
    /// A group's channels then come at different times, so the scales of formats with several groups a
    /// row are fitted before, to the original weights ("static groups").
    pub act_order: bool,
}

impl Default for GptqOptions {
    fn default() -> Self {
        Self {
            damping: 0.01,
            act_order: false,
        }
    }
}

/// What GPTQ made of a layer.
#[derive(Debug, Clone, PartialEq)]
pub struct Gptq<F: Format> {
    /// The weights.
    pub quantized: Quantized<'static, F>,
    /// Its error and that of rounding to nearest.
    pub report: Report,
}

/// Quantizes weights `[out, in]` so that the layer's outputs on the activations of `gram` change little
/// (Frantar et al. 2023, arXiv 2210.17323).
///
/// Columns are quantized one after another; the weights that are still to come take over what each
/// rounding lost, in blocks of 128 columns with lazy updates far from the block. A group's scale is
/// fitted when its first column comes, to the weights as they are by then; a scale for the whole tensor
/// is that of the original weights. As in the authors' code, weights of channels that were never active
/// become zeros. Weights are updated in f32, the Gram matrix is decomposed in f64.
///
/// Codes and scales do not depend on the number of threads or the instruction set. Beside its operands
/// it needs memory for two and a half matrices like that of `gram`, and for the weights twice in f32.
///
/// # Errors
/// Shapes that differ, a format whose groups run across rows (or are counted across them, and the weights
/// have gaps between rows), weights that are not finite, no activations or only zeros, a damping that is negative or not finite, a Gram matrix that is not
/// positive definite with it, weights that overflow.
pub fn gptq<F: Format, T: Element>(
    format: F,
    weights: View<T>,
    gram: &Gram,
    options: GptqOptions,
    cpu: &Cpu,
) -> Result<Gptq<F>> {
    let (rows, cols) = (weights.rows(), weights.cols());
    let [group, groups] = groups(METHOD, &format, weights, gram, cpu)?;
    let GptqOptions { damping, act_order } = options;
    if !(damping >= 0.0 && damping.is_finite()) {
        return Err(Error::Calibration {
            method: METHOD,
            reason: format!("a damping of {damping} is not a number from 0"),
        });
    }
    let nearest = round_to_nearest(format.clone(), weights, cpu)?;
    if rows == 0 || cols == 0 {
        let report = Report::default();
        return Ok(Gptq {
            quantized: nearest,
            report,
        });
    }
    let energy: Vec<f64> = (0..cols).map(|i| gram.sum_of_products(i, i)).collect();
    let dead: Vec<bool> = energy.iter().map(|energy| *energy == 0.0).collect();
    let mut order: Vec<usize> = (0..cols).collect();
    if act_order {
        // Stable: channels of one energy keep their order.
        order.sort_by(|a, b| energy[*b].total_cmp(&energy[*a]));
    }
    let feedback = feedback(METHOD, gram, &order, damping, cpu)?;
    let columns = Columns {
        tensor: nearest.tensor(),
        weights,
        group,
        groups,
        feedback: &feedback,
        order: &order,
        dead: &dead,
        fitting: match format.grouping() {
            Grouping::Tensor => Fitting::Tensor(extent(weights)),
            _ if act_order => Fitting::Before,
            _ => Fitting::Entering,
        },
        format: &format,
    };
    let (codes, scales) = quantize(&columns, nearest.scales().to_vec(), cpu)?;
    let quantized =
        Quantized::from_parts(format.clone(), [rows, cols], columns.tensor, codes, scales)?;
    let report = Report::new(weights, gram, &quantized, &nearest, cpu);
    Ok(Gptq { quantized, report })
}

/// All rows, whose scales replace those given.
fn quantize<F: Format, T: Element>(
    columns: &Columns<F, T>,
    mut scales: Vec<F::Scale>,
    cpu: &Cpu,
) -> Result<(Vec<u8>, Vec<F::Scale>)> {
    let (rows, cols) = (columns.weights.rows(), columns.weights.cols());
    let [bytes, _] = sizes(columns.format, rows, cols)?;
    let mut codes = vec![0; bytes];
    let whole = matches!(columns.fitting, Fitting::Tensor(_));
    let overflow = First::new();
    let (code_parts, scale_parts) = (Parts::new(&mut codes), Parts::new(&mut scales));
    for_each(cpu.parallel(), rows.div_ceil(ROWS), 1, |_, range| {
        for item in range {
            let rows = item * ROWS..rows.min((item + 1) * ROWS);
            let elements = rows.start * cols..rows.end * cols;
            let bytes = match F::CODES {
                CodeLayout::Bytes => elements,
                _ => elements.start / 2..elements.end.div_ceil(2),
            };
            let groups = match whole {
                // The one scale is there already.
                true => 0..0,
                false => rows.start * columns.groups..rows.end * columns.groups,
            };
            // SAFETY: rows are handed out once; an even number of rows begins on a byte, and their
            // groups are their own.
            let (codes, scales) = unsafe { (code_parts.part(bytes), scale_parts.part(groups)) };
            if let Err(row) = simd::run(
                cpu.isa(),
                Rows {
                    columns,
                    rows,
                    codes,
                    scales,
                },
            ) {
                overflow.at(row);
            }
        }
    });
    overflow.check(|row| Error::Calibration {
        method: METHOD,
        reason: format!("the updated weights of row {row} are not finite; raise the damping"),
    })?;
    Ok((codes, scales))
}

/// The extent of finite weights, read row by row.
fn extent<T: Element>(weights: View<T>) -> Extent {
    // Weights that are not finite were refused when they were rounded to nearest.
    let of_row = |row| measure(weights.row(row)).unwrap_or(Extent::NOTHING);
    (0..weights.rows()).map(of_row).fold(Extent::NOTHING, join)
}

/// The extent of two parts, the first of which comes first.
fn join(a: Extent, b: Extent) -> Extent {
    let larger = if b.amax > a.amax { b } else { a };
    Extent {
        min: a.min.min(b.min),
        max: a.max.max(b.max),
        ..larger
    }
}
