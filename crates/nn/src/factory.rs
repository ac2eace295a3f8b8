//! The per-path factory that models are built through, from a checkpoint or from random draws.

use crate::module::join;
use crate::{Dense, Linear, Param, Result, Weights};
use ferrotune_libtorch::random::Generator;
use ferrotune_libtorch::tch::{Device, Kind, Tensor};
use std::sync::Arc;

/// How a parameter starts when it is not read.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    /// All ones.
    Ones,
    /// All zeros.
    Zeros,
    /// Normal with mean 0.
    Normal {
        /// Standard deviation.
        std: f64,
    },
}

#[derive(Debug)]
enum Source {
    Weights(Arc<Weights>),
    Random(Generator),
}

/// Makes the parameters below one path of the checkpoint: `factory.at("self_attn").at("q_proj")`.
#[derive(Debug, Clone)]
pub struct Factory {
    source: Arc<Source>,
    path: String,
    kind: Kind,
    device: Device,
}

impl Factory {
    /// Reads from a checkpoint, as `kind` on `device`.
    pub fn from_weights(weights: Arc<Weights>, kind: Kind, device: Device) -> Self {
        Self {
            source: Arc::new(Source::Weights(weights)),
            path: String::new(),
            kind,
            device,
        }
    }

    /// Draws every parameter anew.
    ///
    /// # Errors
    /// A device that is not there.
    pub fn random(seed: u64, kind: Kind, device: Device) -> Result<Self> {
        let source = Arc::new(Source::Random(Generator::new(device, seed)?));
        Ok(Self {
            source,
            path: String::new(),
            kind,
            device,
        })
    }

    /// The factory one path further down.
    pub fn at(&self, name: impl std::fmt::Display) -> Self {
        Self {
            path: join(&self.path, &name.to_string()),
            ..self.clone()
        }
    }

    /// The path so far.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The parameter `name` of the given shape.
    ///
    /// # Errors
    /// A tensor that is missing or of another shape or dtype, with its file.
    pub fn param(&self, name: &str, shape: &[i64], init: Init) -> Result<Param> {
        let path = join(&self.path, name);
        Ok(Param::new(match self.source.as_ref() {
            Source::Weights(weights) => {
                weights.load(&path, Some(shape), Some(self.kind), self.device)?
            }
            Source::Random(generator) => {
                let options = (self.kind, self.device);
                match init {
                    Init::Ones => Tensor::f_ones(shape, options)?,
                    Init::Zeros => Tensor::f_zeros(shape, options)?,
                    Init::Normal { std } => {
                        let mut tensor = Tensor::f_empty(shape, options)?;
                        generator.normal(&mut tensor, 0.0, std)?;
                        tensor
                    }
                }
            }
        }))
    }

    /// The linear `name`, `[in] → [out]`.
    ///
    /// # Errors
    /// As [`Factory::param`].
    pub fn linear(
        &self,
        name: &str,
        inputs: i64,
        outputs: i64,
        bias: bool,
        std: f64,
    ) -> Result<Linear> {
        let factory = self.at(name);
        let weight = factory.param("weight", &[outputs, inputs], Init::Normal { std })?;
        let bias = bias
            .then(|| factory.param("bias", &[outputs], Init::Zeros))
            .transpose()?;
        Ok(Linear::new(Box::new(Dense::new(weight)), bias))
    }
}
