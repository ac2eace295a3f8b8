//! AWQ: input channels that matter are scaled up before rounding, and their activations down.

use super::clip::clipped;
use super::gram::{Gram, energy};
use super::{Report, groups, relative, signal};
use crate::cpu::Cpu;
use crate::element::Element;
use crate::error::Result;
use crate::format::{Format, Quantized};
use crate::parallel::{Parts, for_each};
use crate::view::View;
use alloc::{vec, vec::Vec};

const METHOD: &str = "awq";

/// How AWQ searches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AwqOptions {
    /// Steps of alpha from 0 to 1, both ends included; 20 by default, as in the paper. 0 leaves the
    /// channels as they are.
    pub steps: usize,
    /// Then shrink the range of each group where that lowers the error of what it adds to the output, in
    /// steps of 1/20 down to one half. Off by default. Formats with one scale for the tensor have no
    /// such choice, and are left as they are.
    pub clip: bool,
}

impl Default for AwqOptions {
    fn default() -> Self {
        Self {
            steps: 20,
            clip: false,
        }
    }
}

/// What AWQ made of a layer: `y = quantized · (x ÷ scales)`.
#[derive(Debug, Clone, PartialEq)]
pub struct Awq<F: Format> {
    /// The weights, each input channel multiplied by its scale.
    pub quantized: Quantized<'static, F>,
    /// What the layer's input channels are to be divided by.
    pub scales: Vec<f32>,
    /// The exponent of the channels' mean magnitudes. 0 means that all scales are 1.
    pub alpha: f64,
    /// Its error and that of rounding to nearest.
    pub report: Report,
}

/// Quantizes weights `[out, in]` so that the layer's outputs on the activations of `gram` change little
/// (Lin et al. 2023, arXiv 2306.00978).
///
/// Scales are `mean |x|^alpha`, over the root of their largest times their smallest; the exponent is the
/// one with the smallest output error of those tried. Means below 10⁻⁴ of the largest count as that, and
/// channels that were never active keep their scale of 1. As alpha = 0 is among those tried, the error
/// is never above that of rounding to nearest.
///
/// The layer then wants its inputs divided by [`Awq::scales`]. That costs nothing where what comes before
/// can do it:
///
/// * after a norm with weights (`q_proj`, `k_proj`, `v_proj` after `input_layernorm`; `gate_proj`, `up_proj`
///   after `post_attention_layernorm`): divide the norm's weights, and its bias if it has one. All layers
///   that share the norm must share the scales: stack their rows into one matrix and quantize that.
/// * after a linear layer with nothing but element-wise products between (`down_proj` after `up_proj`;
///   `o_proj` after `v_proj` where heads are not shared): divide that layer's rows, and its bias, before
///   it is quantized.
/// * elsewhere: divide the activations.
///
/// # Errors
/// Shapes that differ, a format whose groups run across rows, weights that are not finite, before or
/// after scaling, no activations.
pub fn awq<F: Format, T: Element>(
    format: F,
    weights: View<T>,
    gram: &Gram,
    options: AwqOptions,
    cpu: &Cpu,
) -> Result<Awq<F>> {
    let [group, _] = groups(METHOD, &format, weights, gram, cpu)?;
    let (rows, cols) = (weights.rows(), weights.cols());
    let magnitudes = gram.mean_magnitudes();
    let mut scaled = vec![0.0; rows * cols];
    let mut attempt = |scales: &[f32]| -> Result<(Quantized<'static, F>, f64)> {
        scale(weights, scales, &mut scaled, cpu);
        let quantized = Quantized::new(format.clone(), View::new(&scaled, rows, cols)?, cpu)?;
        let noise = noise(weights, &quantized, scales, gram, cpu);
        Ok((quantized, noise))
    };
    let mut best_scales = vec![1.0; cols];
    let (mut best, rtn_noise) = attempt(&best_scales)?;
    let (mut alpha, mut least) = (0.0, rtn_noise);
    for step in 1..=options.steps {
        let tried = step as f64 / options.steps as f64;
        let scales = channel_scales(&magnitudes, tried);
        let (quantized, noise) = attempt(&scales)?;
        if noise < least {
            (best, best_scales, alpha, least) = (quantized, scales, tried, noise);
        }
    }
    if options.clip && rows > 0 && cols > 0 {
        scale(weights, &best_scales, &mut scaled, cpu);
        let scaled = View::new(&scaled, rows, cols)?;
        let quantized = clipped(&best, scaled, &best_scales, group, gram, cpu)?;
        // Groups were judged one by one; together they may do worse.
        let noise = noise(weights, &quantized, &best_scales, gram, cpu);
        if noise < least {
            (best, least) = (quantized, noise);
        }
    }
    let signal = signal(weights, gram, cpu);
    Ok(Awq {
        quantized: best,
        scales: best_scales,
        alpha,
        report: Report {
            error: relative(least, signal),
            rtn_error: relative(rtn_noise, signal),
        },
    })
}

fn channel_scales(magnitudes: &[f32], alpha: f64) -> Vec<f32> {
    let largest = magnitudes.iter().fold(0.0_f32, |a, b| a.max(*b));
    let least = f64::from(largest) * 1e-4;
    // libm's power is the same everywhere.
    let powers = magnitudes.iter().map(|magnitude| match magnitude {
        0.0 => None,
        _ => Some(libm::pow(f64::from(*magnitude).max(least), alpha)),
    });
    let powers: Vec<Option<f64>> = powers.collect();
    let alive = || powers.iter().flatten();
    let max = alive().fold(0.0_f64, |a, b| a.max(*b));
    let min = alive().fold(f64::INFINITY, |a, b| a.min(*b));
    let middle = max.sqrt() * min.sqrt();
    let scales = powers
        .iter()
        .map(|power| power.map_or(1.0, |power| (power / middle) as f32));
    scales.collect()
}

/// `weights · diag(scales)`.
fn scale<T: Element>(weights: View<T>, scales: &[f32], out: &mut [f32], cpu: &Cpu) {
    let cols = weights.cols();
    let parts = Parts::new(out);
    for_each(cpu.parallel(), weights.rows(), 16, |_, range| {
        for row in range {
            // SAFETY: rows are handed out once.
            let out = unsafe { parts.part(row * cols..(row + 1) * cols) };
            for ((out, weight), scale) in out.iter_mut().zip(weights.row(row)).zip(scales) {
                *out = weight.to_f32() * scale;
            }
        }
    });
}

/// The output error of scaled weights whose activations are divided by the scales.
fn noise<F: Format, T: Element>(
    weights: View<T>,
    quantized: &Quantized<F>,
    scales: &[f32],
    gram: &Gram,
    cpu: &Cpu,
) -> f64 {
    let (cols, values) = (weights.cols(), quantized.dequantize(cpu));
    let difference = |row: usize, out: &mut [f64]| {
        let values = &values[row * cols..(row + 1) * cols];
        let pairs = weights.row(row).iter().zip(values).zip(scales);
        for (out, ((weight, value), scale)) in out.iter_mut().zip(pairs) {
            *out = f64::from(weight.to_f32()) - f64::from(*value) / f64::from(*scale);
        }
    };
    energy(gram, weights.rows(), difference, cpu)
}
