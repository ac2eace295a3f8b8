//! Cross-entropy over a large vocabulary, a chunk of tokens at a time.

use crate::{Loss, Result};
use ferrotune_data::Batch;
use ferrotune_nn::libtorch::autograd::{self, Backward, Function};
use ferrotune_nn::libtorch::tch::{Kind, Reduction, Tensor, with_grad};
use ferrotune_nn::libtorch::{self as libtorch};
use ferrotune_nn::module::trainable;
use ferrotune_nn::{Ctx, Decoder, Linear};
use std::sync::Arc;

/// Tokens whose logits exist at one time.
pub const CHUNK: i64 = 256;

/// The weighted sum of the cross-entropies of a packed batch, and nothing divided: a step divides by
/// the weight of all that goes into it.
///
/// Logits exist for [`CHUNK`] tokens at a time, in both directions: each chunk's gradient is taken
/// as soon as its loss is known (as in Liger, Hsu et al., 2024), and backward only scales.
///
/// # Errors
/// Ids outside the vocabulary, or what the model finds wrong.
pub fn causal_lm(model: &Decoder, batch: &Batch, ctx: &Ctx) -> Result<Loss> {
    let device = model.device();
    let loss = |sum| Loss {
        sum,
        weight: batch.weight(),
        tokens: batch.tokens() as u64,
    };
    if batch.tokens() == 0 {
        return Ok(loss(Tensor::f_zeros(
            [] as [i64; 0],
            (Kind::Float, device),
        )?));
    }
    let row = |values: &[i64]| -> Result<Tensor> {
        Ok(Tensor::f_from_slice(values)?.f_to_device(device)?)
    };
    let mut ctx = ctx.clone();
    ctx.positions = Some(row(&batch.positions)?);
    ctx.cu_seqlens = Some(Arc::from_iter(
        batch.cu_seqlens.iter().map(|bound| i64::from(*bound)),
    ));
    let hidden = model
        .hidden(&row(&batch.ids)?.f_unsqueeze(0)?, &ctx)?
        .f_squeeze_dim(0)?;
    // Tokens without a target need no logits: they are most of an instruction's.
    let targets: Vec<i64> = (0..)
        .zip(&batch.weights)
        .filter(|(_, w)| **w != 0.0)
        .map(|(i, _)| i)
        .collect();
    let targets = row(&targets)?;
    let weights = Tensor::f_from_slice(&batch.weights)?.f_to_device(device)?;
    let sum = chunked_cross_entropy(
        model.lm_head(),
        &hidden.f_index_select(0, &targets)?,
        &row(&batch.labels)?.f_index_select(0, &targets)?,
        &weights.f_index_select(0, &targets)?,
        &ctx,
        CHUNK,
    )?;
    Ok(loss(sum))
}

/// Σ weight · cross-entropy of `head(hidden [tokens, hidden])` against `labels i64 [tokens]` with
/// `weights f32 [tokens]`: an f32 scalar.
///
/// # Errors
/// Labels outside the vocabulary.
pub fn chunked_cross_entropy(
    head: &Linear,
    hidden: &Tensor,
    labels: &Tensor,
    weights: &Tensor,
    ctx: &Ctx,
    chunk: i64,
) -> Result<Tensor> {
    let tokens = hidden.size()[0];
    let params: Vec<Tensor> = trainable(head)
        .iter()
        .map(|(_, param)| param.tensor().shallow_clone())
        .collect();
    let loss_of = |start: i64, hidden: &Tensor| -> Result<Tensor> {
        let count = chunk.min(tokens - start);
        let logits = head.forward(hidden, ctx)?.f_to_kind(Kind::Float)?;
        let losses = logits.f_cross_entropy_loss::<Tensor>(
            &labels.f_narrow(0, start, count)?,
            None,
            Reduction::None,
            -100,
            0.0,
        )?;
        Ok(losses.f_dot(&weights.f_narrow(0, start, count)?)?)
    };
    let chunks: Vec<i64> = (0..tokens).step_by(chunk.max(1) as usize).collect();
    let part = |start: i64| -> Result<Tensor> {
        Ok(hidden
            .detach()
            .f_narrow(0, start, chunk.min(tokens - start))?)
    };
    let mut total = Tensor::f_zeros([] as [i64; 0], (Kind::Float, hidden.device()))?;
    let wants_grad = hidden.requires_grad() || !params.is_empty();
    if !wants_grad || !autograd::enabled() {
        for &start in &chunks {
            total = total.f_add(&loss_of(start, &part(start)?)?.detach())?;
        }
        return Ok(total);
    }
    let hidden_grad = hidden.detach().f_zeros_like()?;
    let mut param_grads: Vec<Tensor> = params
        .iter()
        .map(|param| param.detach().f_zeros_like())
        .collect::<Result<_, _>>()?;
    for &start in &chunks {
        let piece = part(start)?.f_set_requires_grad(true)?;
        let loss = with_grad(|| loss_of(start, &piece))?;
        let wanted: Vec<&Tensor> = std::iter::once(&piece).chain(&params).collect();
        let mut found = autograd::grad(&[&loss], &[None], &wanted, false, false)?.into_iter();
        if let Some(gradient) = found.next().flatten() {
            hidden_grad
                .f_narrow(0, start, piece.size()[0])?
                .f_copy_(&gradient)?;
        }
        for (sum, gradient) in param_grads.iter_mut().zip(found) {
            if let Some(gradient) = gradient {
                let _ = sum.f_add_(&gradient)?;
            }
        }
        total = total.f_add(&loss.detach())?;
    }
    let gradients = std::iter::once(hidden_grad).chain(param_grads).collect();
    let function = Precomputed {
        value: total,
        gradients,
    };
    let inputs: Vec<&Tensor> = std::iter::once(hidden).chain(&params).collect();
    Ok(autograd::apply(function, &inputs)?.remove(0))
}

/// A scalar whose gradients are known already.
struct Precomputed {
    value: Tensor,
    gradients: Vec<Tensor>,
}

impl Function for Precomputed {
    const NAME: &'static str = "ChunkedCrossEntropy";
    fn forward(&mut self, _: &[&Tensor], save: &mut Vec<Tensor>) -> libtorch::Result<Vec<Tensor>> {
        save.append(&mut self.gradients);
        Ok(vec![std::mem::take(&mut self.value)])
    }
    fn backward(&self, given: &Backward) -> libtorch::Result<Vec<Option<Tensor>>> {
        let Some(seed) = &given.gradients[0] else {
            return Ok(given.needed.iter().map(|_| None).collect());
        };
        given
            .saved
            .iter()
            .zip(&given.needed)
            .map(|(gradient, needed)| {
                needed
                    .then(|| Ok(gradient.f_mul(&seed.f_to_kind(gradient.kind())?)?))
                    .transpose()
            })
            .collect()
    }
}
