//! The small layers: embedding, RMS norm, rotary positions.

use crate::config::{Rope, RopeScaling};
use crate::factory::{Factory, Init};
use crate::{Param, Result, module};
use ferrotune_libtorch::Context;
use ferrotune_libtorch::tch::{Device, Kind, Tensor};

/// Token ids to vectors.
#[derive(Debug)]
pub struct Embedding {
    /// `[vocab, hidden]`.
    pub weight: Param,
}

module!(Embedding { weight });

impl Embedding {
    /// Builds `name.weight`.
    ///
    /// # Errors
    /// As [`Factory::param`].
    pub fn new(factory: &Factory, vocab: i64, hidden: i64, std: f64) -> Result<Self> {
        Ok(Self {
            weight: factory.param("weight", &[vocab, hidden], Init::Normal { std })?,
        })
    }

    /// `ids i64 [..]` to `[.., hidden]`.
    ///
    /// # Errors
    /// An id outside the vocabulary.
    pub fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        let weight = self.weight.tensor();
        Ok(Tensor::f_embedding(weight, ids, -1, false, false).on("embedding", &[weight, ids])?)
    }
}

/// Root-mean-square norm (Zhang and Sennrich, 2019), in fp32 whatever the input's dtype.
#[derive(Debug)]
pub struct RmsNorm {
    weight: Param,
    eps: f64,
}

module!(RmsNorm { weight });

impl RmsNorm {
    /// Builds `weight [size]`.
    ///
    /// # Errors
    /// As [`Factory::param`].
    pub fn new(factory: &Factory, size: i64, eps: f64) -> Result<Self> {
        Ok(Self {
            weight: factory.param("weight", &[size], Init::Ones)?,
            eps,
        })
    }

    /// `x [.., size]` to the same.
    ///
    /// # Errors
    /// Another width.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let kind = x.kind();
        let wide = x.f_to_kind(Kind::Float)?;
        let variance = wide.f_square()?.f_mean_dim(-1, true, Kind::Float)?;
        let scaled = wide.f_mul(&variance.f_add_scalar(self.eps)?.f_rsqrt()?)?;
        let weight = self.weight.tensor().f_to_kind(kind)?;
        Ok(scaled
            .f_to_kind(kind)?
            .f_mul(&weight)
            .on("rms_norm", &[x, self.weight.tensor()])?)
    }
}

/// Cosines and sines of the positions of one forward pass.
#[derive(Debug)]
pub struct RotaryTables {
    cos: Tensor,
    sin: Tensor,
}

impl Clone for RotaryTables {
    fn clone(&self) -> Self {
        Self {
            cos: self.cos.shallow_clone(),
            sin: self.sin.shallow_clone(),
        }
    }
}

/// Rotary positions (Su et al., 2021) in the half-split layout of Hugging Face's checkpoints.
#[derive(Debug, Clone)]
pub struct Rotary {
    frequencies: Vec<f32>,
}

impl Rotary {
    /// Frequencies of a head of width `head_dim`.
    pub fn new(rope: Rope, head_dim: i64) -> Self {
        let frequency = |i: i64| {
            let plain = rope.theta.powf(-((2 * i) as f64) / head_dim as f64);
            (match rope.scaling {
                RopeScaling::None => plain,
                RopeScaling::Linear { factor } => plain / factor,
                RopeScaling::Llama3 {
                    factor,
                    low,
                    high,
                    original,
                } => {
                    let turns = original * plain / std::f64::consts::TAU;
                    let keep = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                    plain / factor * (1.0 - keep) + plain * keep
                }
            }) as f32
        };
        Self {
            frequencies: (0..head_dim / 2).map(frequency).collect(),
        }
    }

    /// The tables for `positions i64 [seq]` or `[batch, seq]`, in `kind`.
    ///
    /// # Errors
    /// libtorch's.
    pub fn tables(&self, positions: &Tensor, kind: Kind, device: Device) -> Result<RotaryTables> {
        let frequencies = Tensor::f_from_slice(&self.frequencies)?.f_to_device(device)?;
        // [batch or 1, 1, seq, head_dim / 2]: broadcasts over the heads.
        let positions = match positions.dim() {
            1 => positions.f_unsqueeze(0)?,
            _ => positions.shallow_clone(),
        };
        let angles = positions
            .f_to_kind(Kind::Float)?
            .f_unsqueeze(1)?
            .f_unsqueeze(-1)?
            .f_mul(&frequencies)?;
        let angles = Tensor::f_cat(&[&angles, &angles], -1)?;
        Ok(RotaryTables {
            cos: angles.f_cos()?.f_to_kind(kind)?,
            sin: angles.f_sin()?.f_to_kind(kind)?,
        })
    }
}

impl RotaryTables {
    /// Turns `x [batch, heads, seq, head_dim]`.
    ///
    /// # Errors
    /// Sequence lengths that differ.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let half = x.size()[3] / 2;
        let (first, second) = (x.f_narrow(-1, 0, half)?, x.f_narrow(-1, half, half)?);
        let turned = Tensor::f_cat(&[second.f_neg()?, first], -1)?;
        let straight = x.f_mul(&self.cos).on("rotary", &[x, &self.cos])?;
        Ok(straight.f_add(&turned.f_mul(&self.sin)?)?)
    }
}
