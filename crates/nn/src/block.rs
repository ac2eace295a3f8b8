//! Blocks, and who runs them.
//!
//! Whatever wraps the running of a block (recomputation, gathering of shards, pipeline cuts,
//! profiler ranges, calibration) is a [`BlockRunner`] around another one; the outermost stands in
//! [`Ctx::runner`].

use crate::module::trainable;
use crate::{Ctx, Module, Result};
use ferrotune_libtorch::autograd::{self, Backward, Function};
use ferrotune_libtorch::tch::{Tensor, with_grad};
use ferrotune_libtorch::{self as libtorch};
use std::fmt::Debug;
use std::sync::Arc;

/// A layer from hidden states to hidden states.
pub trait Block: Module + 'static {
    /// `x [batch, seq, hidden]` to the same shape.
    ///
    /// # Errors
    /// Operands that do not fit.
    fn forward(&self, x: &Tensor, ctx: &Ctx) -> Result<Tensor>;
}

/// Runs blocks.
pub trait BlockRunner: Debug + Send + Sync {
    /// Runs `block`, which lies at `path`.
    ///
    /// # Errors
    /// The block's, or the runner's own.
    fn run(&self, path: &str, block: Arc<dyn Block>, x: &Tensor, ctx: &Ctx) -> Result<Tensor>;
}

/// Runs a block and nothing else.
#[derive(Debug, Clone, Copy, Default)]
pub struct Direct;

impl BlockRunner for Direct {
    fn run(&self, _: &str, block: Arc<dyn Block>, x: &Tensor, ctx: &Ctx) -> Result<Tensor> {
        block.forward(x, ctx)
    }
}

/// Activation checkpointing (Chen et al., 2016): keeps a block's input only, and runs the block
/// again in backward, dropout masks included.
///
/// The block's trainable parameters are inputs of the one node, and their gradients its results, so
/// that a parameter shared by several blocks is accumulated, and its hooks run, once.
#[derive(Debug, Clone, Copy, Default)]
pub struct Checkpoint<R = Direct>(pub R);

impl<R: BlockRunner + Clone + 'static> BlockRunner for Checkpoint<R> {
    fn run(&self, path: &str, block: Arc<dyn Block>, x: &Tensor, ctx: &Ctx) -> Result<Tensor> {
        let params: Vec<Tensor> = trainable(block.as_ref() as &dyn Module)
            .iter()
            .map(|(_, param)| param.tensor().shallow_clone())
            .collect();
        let function = Recompute {
            runner: self.0.clone(),
            path: path.to_owned(),
            block,
            ctx: ctx.clone(),
            rng: ctx.rng.as_ref().map(|rng| rng.state()).transpose()?,
        };
        let inputs: Vec<&Tensor> = std::iter::once(x).chain(&params).collect();
        Ok(autograd::apply(function, &inputs)?.remove(0))
    }
}

struct Recompute<R> {
    runner: R,
    path: String,
    block: Arc<dyn Block>,
    ctx: Ctx,
    rng: Option<Tensor>,
}

impl<R: BlockRunner + 'static> Function for Recompute<R> {
    const NAME: &'static str = "Checkpoint";

    fn forward(
        &mut self,
        inputs: &[&Tensor],
        save: &mut Vec<Tensor>,
    ) -> libtorch::Result<Vec<Tensor>> {
        save.extend(inputs.iter().map(|input| input.shallow_clone()));
        let out = self
            .runner
            .run(&self.path, self.block.clone(), inputs[0], &self.ctx);
        Ok(vec![out.map_err(libtorch::Error::function)?])
    }

    fn backward(&self, given: &Backward) -> libtorch::Result<Vec<Option<Tensor>>> {
        let Some(gradient) = &given.gradients[0] else {
            return Ok(given.saved.iter().map(|_| None).collect());
        };
        let x = given.saved[0]
            .detach()
            .f_set_requires_grad(given.needed[0])?;
        let later = match (&self.ctx.rng, &self.rng) {
            (Some(rng), Some(then)) => {
                let now = rng.state()?;
                rng.set_state(then)?;
                Some((rng, now))
            }
            _ => None,
        };
        let out = with_grad(|| {
            self.runner
                .run(&self.path, self.block.clone(), &x, &self.ctx)
        });
        if let Some((rng, now)) = later {
            rng.set_state(&now)?;
        }
        let out = out.map_err(libtorch::Error::function)?;
        let wanted: Vec<&Tensor> = std::iter::once(&x)
            .chain(&given.saved[1..])
            .zip(&given.needed)
            .filter(|(_, needed)| **needed)
            .map(|(tensor, _)| tensor)
            .collect();
        let mut found =
            autograd::grad(&[&out], &[Some(gradient)], &wanted, false, false)?.into_iter();
        let next = |needed: &bool| {
            if *needed {
                found.next().flatten()
            } else {
                None
            }
        };
        Ok(given.needed.iter().map(next).collect())
    }
}
