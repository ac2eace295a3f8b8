//! What a forward pass is told: nothing is hidden in the modules.

use crate::{BlockRunner, Direct, KvCache, Result, RotaryTables};
use ferrotune_libtorch::random::Generator;
use ferrotune_libtorch::tch::Tensor;
use std::sync::{Arc, Mutex};

/// Which adapters a forward pass applies.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Adapters {
    /// Those that are active on each linear.
    #[default]
    Active,
    /// None: the base model.
    Off,
    /// The named ones.
    Named(Vec<String>),
    /// One for each row of the batch, or none for that row.
    PerRow(Vec<Option<String>>),
}

/// The context of one forward pass.
#[derive(Debug)]
pub struct Ctx {
    /// Whether dropout is on.
    pub train: bool,
    /// Draws the dropout masks; its state is saved and restored around recomputation.
    pub rng: Option<Generator>,
    /// Positions `i64 [seq]` or `[batch, seq]`; by default they count on from the cache.
    pub positions: Option<Tensor>,
    /// Boundaries of the sequences packed into one row, `[0, 7, 12]` for lengths 7 and 5.
    pub cu_seqlens: Option<Arc<[i64]>>,
    /// Keys and values of earlier tokens.
    pub cache: Option<Arc<Mutex<KvCache>>>,
    /// Which adapters apply.
    pub adapters: Adapters,
    /// Runs each block.
    pub runner: Arc<dyn BlockRunner>,
    /// Set by a model for its blocks.
    pub rotary: Option<RotaryTables>,
}

impl Ctx {
    /// Evaluation: no dropout, no cache.
    pub fn eval() -> Self {
        Self {
            train: false,
            rng: None,
            positions: None,
            cu_seqlens: None,
            cache: None,
            adapters: Adapters::Active,
            runner: Arc::new(Direct),
            rotary: None,
        }
    }

    /// Training, with dropout drawn from `rng`.
    pub fn train(rng: Generator) -> Self {
        Self {
            train: true,
            rng: Some(rng),
            ..Self::eval()
        }
    }

    /// Dropout as Srivastava et al. (2014) with inverted scaling; the identity at evaluation.
    ///
    /// # Errors
    /// Training without an `rng`, or `p` outside 0..1.
    pub fn dropout(&self, x: &Tensor, p: f64) -> Result<Tensor> {
        if !self.train || p == 0.0 {
            return Ok(x.shallow_clone());
        }
        let rng = self
            .rng
            .as_ref()
            .ok_or_else(|| crate::Error::Invalid("dropout needs Ctx::rng in training".into()))?;
        if !(0.0..1.0).contains(&p) {
            return Err(crate::Error::Invalid(format!("dropout {p} is not in 0..1")));
        }
        let mut mask = x.detach().f_empty_like()?;
        rng.bernoulli(&mut mask, 1.0 - p)?;
        let mask = mask.f_div_scalar_(1.0 - p)?;
        Ok(x.f_mul(&mask)?)
    }
}

impl Clone for Ctx {
    fn clone(&self) -> Self {
        Self {
            train: self.train,
            rng: self.rng.clone(),
            positions: self.positions.as_ref().map(Tensor::shallow_clone),
            cu_seqlens: self.cu_seqlens.clone(),
            cache: self.cache.clone(),
            adapters: self.adapters.clone(),
            runner: self.runner.clone(),
            rotary: self.rotary.clone(),
        }
    }
}
