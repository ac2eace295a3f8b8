//! The small layers: embedding, RMS norm, rotary positions.

use crate::config::{Rope, RopeScaling};
use crate::factory::{Factory, Init};
use crate::{Error, Param, Result, module};
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
    /// Frequencies of a head of width `head_dim`, in fp32 and in the order of transformers'
    /// operations: far into a text one unit in the last place of a frequency is a visible angle.
    ///
    /// # Errors
    /// libtorch's.
    pub fn new(rope: Rope, head_dim: i64) -> Result<Self> {
        let options = (Kind::Float, Device::Cpu);
        let exponents =
            Tensor::f_arange_start_step(0, head_dim, 2, options)?.f_div_scalar(head_dim)?;
        let plain = Tensor::f_pow_scalar(rope.theta, &exponents)?.f_reciprocal()?;
        let stretch = |frequency: f32| match rope.scaling {
            RopeScaling::None => frequency,
            RopeScaling::Linear { factor } => frequency / factor as f32,
            RopeScaling::Llama3 {
                factor,
                low,
                high,
                original,
            } => {
                let wavelength = frequency.recip() * std::f64::consts::TAU as f32;
                let keep =
                    (wavelength.recip() * original as f32 - low as f32) / (high - low) as f32;
                if wavelength > (original / low) as f32 {
                    frequency / factor as f32
                } else if wavelength < (original / high) as f32 {
                    frequency
                } else {
                    (1.0 - keep) * frequency / factor as f32 + keep * frequency
                }
            }
        };
        Ok(Self {
            frequencies: Vec::<f32>::try_from(plain)?
                .into_iter()
                .map(stretch)
                .collect(),
        })
    }

    /// The tables for `positions i64 [seq]` or `[batch, seq]`, in `kind`.
    ///
    /// # Errors
    /// Positions of another number of dimensions.
    pub fn tables(&self, positions: &Tensor, kind: Kind, device: Device) -> Result<RotaryTables> {
        let frequencies = Tensor::f_from_slice(&self.frequencies)?.f_to_device(device)?;
        // [batch or 1, 1, seq, head_dim / 2]: broadcasts over the heads.
        let positions = match positions.dim() {
            1 => positions.f_unsqueeze(0)?,
            2 => positions.shallow_clone(),
            _ => {
                let shape = positions.size();
                return Err(Error::Invalid(format!("positions of shape {shape:?}")));
            }
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
        let half = x.size4()?.3 / 2;
        let (first, second) = (x.f_narrow(-1, 0, half)?, x.f_narrow(-1, half, half)?);
        let turned = Tensor::f_cat(&[second.f_neg()?, first], -1)?;
        let straight = x.f_mul(&self.cos).on("rotary", &[x, &self.cos])?;
        Ok(straight.f_add(&turned.f_mul(&self.sin)?)?)
    }
}
