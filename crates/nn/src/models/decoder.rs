//! The Llama-like decoder that every family here shares (Touvron et al., 2023).

use super::Family;
use crate::attention::{Mask, attention, check_bounds};
use crate::config::DecoderConfig;
use crate::factory::Factory;
use crate::layers::{Embedding, RmsNorm, Rotary};
use crate::module::{self, join, linear_paths};
use crate::{
    Adapters, Block, Ctx, Dense, Error, Linear, Param, Result, Weights, files, module as module_of,
    weights,
};
use ferrotune_libtorch::tch::{Device, Kind, Tensor};
use std::collections::HashSet;
use std::path::Path;
use std::sync::{Arc, PoisonError};

const CONFIG_FILE: &str = "config.json";

/// Self-attention with grouped heads. Head counts come from the projections' widths, so that a
/// rank that holds some of the heads runs the same code.
#[derive(Debug)]
pub struct SelfAttention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    head_dim: i64,
    layer: usize,
}

module_of!(SelfAttention {
    q_proj,
    k_proj,
    v_proj,
    o_proj
});

impl SelfAttention {
    fn new(
        factory: &Factory,
        config: &DecoderConfig,
        family: &Family,
        layer: usize,
    ) -> Result<Self> {
        let (hidden, head_dim) = (config.hidden_size, config.head_dim());
        let (q, kv) = (
            config.num_attention_heads * head_dim,
            config.kv_heads() * head_dim,
        );
        let (bias, std) = ((family.qkv_bias)(config), config.initializer_range);
        Ok(Self {
            q_proj: factory.linear("q_proj", hidden, q, bias, std)?,
            k_proj: factory.linear("k_proj", hidden, kv, bias, std)?,
            v_proj: factory.linear("v_proj", hidden, kv, bias, std)?,
            o_proj: factory.linear("o_proj", q, hidden, (family.o_bias)(config), std)?,
            head_dim,
            layer,
        })
    }

    /// `x [batch, seq, hidden]` to the same.
    ///
    /// # Errors
    /// Operands that do not fit.
    pub fn forward(&self, x: &Tensor, ctx: &Ctx) -> Result<Tensor> {
        let (batch, seq, _) = x.size3()?;
        // [batch, seq, heads * head_dim] to [batch, heads, seq, head_dim]
        let heads = |linear: &Linear| -> Result<Tensor> {
            let y = linear.forward(x, ctx)?;
            Ok(y.f_view([batch, seq, -1, self.head_dim])?
                .f_transpose(1, 2)?)
        };
        let (mut q, mut k, mut v) = (
            heads(&self.q_proj)?,
            heads(&self.k_proj)?,
            heads(&self.v_proj)?,
        );
        if let Some(rotary) = &ctx.rotary {
            (q, k) = (rotary.apply(&q)?, rotary.apply(&k)?);
        }
        if let Some(cache) = &ctx.cache {
            let mut cache = cache.lock().unwrap_or_else(PoisonError::into_inner);
            (k, v) = cache.append(self.layer, &k, &v)?;
        }
        let mask = ctx.cu_seqlens.as_deref().map_or(Mask::Causal, Mask::Packed);
        let y = attention(&q, &k, &v, mask)?;
        self.o_proj
            .forward(&y.f_transpose(1, 2)?.f_reshape([batch, seq, -1])?, ctx)
    }
}

/// The gated MLP (Shazeer, 2020): down(silu(gate(x)) · up(x)).
#[derive(Debug)]
pub struct Mlp {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
}

module_of!(Mlp {
    gate_proj,
    up_proj,
    down_proj
});

impl Mlp {
    fn new(factory: &Factory, config: &DecoderConfig) -> Result<Self> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let (bias, std) = (config.mlp_bias, config.initializer_range);
        Ok(Self {
            gate_proj: factory.linear("gate_proj", hidden, inner, bias, std)?,
            up_proj: factory.linear("up_proj", hidden, inner, bias, std)?,
            down_proj: factory.linear("down_proj", inner, hidden, bias, std)?,
        })
    }

    /// `x [.., hidden]` to the same.
    ///
    /// # Errors
    /// Operands that do not fit.
    pub fn forward(&self, x: &Tensor, ctx: &Ctx) -> Result<Tensor> {
        let gate = self.gate_proj.forward(x, ctx)?.f_silu()?;
        self.down_proj
            .forward(&gate.f_mul(&self.up_proj.forward(x, ctx)?)?, ctx)
    }
}

/// One block: attention and MLP, each behind a norm and beside a residual.
#[derive(Debug)]
pub struct DecoderLayer {
    input_layernorm: RmsNorm,
    self_attn: SelfAttention,
    post_attention_layernorm: RmsNorm,
    mlp: Mlp,
}

module_of!(DecoderLayer {
    input_layernorm,
    self_attn,
    post_attention_layernorm,
    mlp
});

impl DecoderLayer {
    fn new(
        factory: &Factory,
        config: &DecoderConfig,
        family: &Family,
        layer: usize,
    ) -> Result<Self> {
        let norm =
            |name: &str| RmsNorm::new(&factory.at(name), config.hidden_size, config.rms_norm_eps);
        Ok(Self {
            input_layernorm: norm("input_layernorm")?,
            self_attn: SelfAttention::new(&factory.at("self_attn"), config, family, layer)?,
            post_attention_layernorm: norm("post_attention_layernorm")?,
            mlp: Mlp::new(&factory.at("mlp"), config)?,
        })
    }
}

impl Block for DecoderLayer {
    fn forward(&self, x: &Tensor, ctx: &Ctx) -> Result<Tensor> {
        let x = x.f_add(
            &self
                .self_attn
                .forward(&self.input_layernorm.forward(x)?, ctx)?,
        )?;
        Ok(x.f_add(
            &self
                .mlp
                .forward(&self.post_attention_layernorm.forward(&x)?, ctx)?,
        )?)
    }
}

/// A causal language model: embedding, blocks, norm, output layer.
#[derive(Debug)]
pub struct Decoder {
    config: DecoderConfig,
    family: &'static Family,
    embed_tokens: Embedding,
    layers: Vec<Arc<DecoderLayer>>,
    norm: RmsNorm,
    lm_head: Linear,
    rotary: Rotary,
    kind: Kind,
}

impl module::Module for Decoder {
    fn visit(&self, path: &str, visitor: &mut dyn crate::Visitor) {
        let body = join(path, self.family.body);
        self.embed_tokens
            .visit(&join(&body, "embed_tokens"), visitor);
        self.layers.visit(&join(&body, "layers"), visitor);
        self.norm.visit(&join(&body, "norm"), visitor);
        self.lm_head.visit(&join(path, "lm_head"), visitor);
    }
    fn visit_mut(&mut self, path: &str, visitor: &mut dyn crate::VisitorMut) -> Result<()> {
        self.layers
            .visit_mut(&join(&join(path, self.family.body), "layers"), visitor)?;
        self.lm_head.visit_mut(&join(path, "lm_head"), visitor)
    }
}

impl Decoder {
    /// Builds the model of `config` through `factory`; `kind` is the dtype of its activations.
    ///
    /// # Errors
    /// An unknown architecture, or what the factory finds missing.
    pub fn new(factory: &Factory, config: DecoderConfig, kind: Kind) -> Result<Self> {
        config.check()?;
        let family = Family::of(&config)?;
        let body = factory.at(family.body);
        let (hidden, vocab, std) = (
            config.hidden_size,
            config.vocab_size,
            config.initializer_range,
        );
        let embed_tokens = Embedding::new(&body.at("embed_tokens"), vocab, hidden, std)?;
        let layers = (0..config.num_hidden_layers as usize)
            .map(|i| DecoderLayer::new(&body.at("layers").at(i), &config, family, i).map(Arc::new))
            .collect::<Result<_>>()?;
        let lm_head = if config.tie_word_embeddings {
            Linear::new(Box::new(Dense::new(embed_tokens.weight.clone())), None)
        } else {
            factory.linear("lm_head", hidden, vocab, false, std)?
        };
        Ok(Self {
            norm: RmsNorm::new(&body.at("norm"), hidden, config.rms_norm_eps)?,
            rotary: Rotary::new(config.rope()?, config.head_dim())?,
            config,
            family,
            embed_tokens,
            layers,
            lm_head,
            kind,
        })
    }

    /// Loads a Hugging Face checkpoint folder, its weights as `kind` on `device`.
    ///
    /// # Errors
    /// A file that is missing or corrupt, tensors that are missing, unknown or of other shapes, or
    /// an architecture that is not built.
    pub fn load(dir: impl AsRef<Path>, kind: Kind, device: Device) -> Result<Self> {
        let dir = dir.as_ref();
        let config = DecoderConfig::from_dir(dir)?;
        Family::of(&config).map_err(|error| error.in_file(&dir.join(CONFIG_FILE)))?;
        let weights = Arc::new(Weights::open(dir)?);
        let tied = config.tie_word_embeddings;
        let factory = Factory::from_weights(weights.clone(), kind, device);
        let model = Self::new(&factory, config, kind)?;
        // Old Llama checkpoints carry the rotary frequencies, tied ones sometimes the output layer.
        weights.finish(|name| {
            name.ends_with("rotary_emb.inv_freq") || (tied && name == "lm_head.weight")
        })?;
        Ok(model)
    }

    /// Writes `config.json` and the base weights under Hugging Face's names, tied ones once.
    /// Adapters are left out: merge them first. What is half written does not load; a full disk or
    /// a kill leaves the checkpoint that stood there.
    ///
    /// # Errors
    /// The system's.
    pub fn save(&self, dir: &Path, max_shard_bytes: usize) -> Result<()> {
        let linears = linear_paths(self);
        let own = |path: &str| {
            let linear = linears.iter().find(|linear| {
                path.strip_prefix(*linear)
                    .is_some_and(|r| r.starts_with('.'))
            });
            linear.is_none_or(|linear| matches!(&path[linear.len()..], ".weight" | ".bias"))
        };
        let tensors: Vec<(String, Tensor)> = module::params(self)
            .into_iter()
            .filter(|(path, _)| own(path))
            .map(|(path, param)| (path, param.tensor().detach()))
            .collect();
        let mut config = self.config.clone();
        config.set_dtype(match self.embed_tokens.weight.tensor().kind() {
            Kind::BFloat16 => "bfloat16",
            Kind::Half => "float16",
            Kind::Double => "float64",
            _ => "float32",
        });
        let staged = weights::stage(dir, &tensors, max_shard_bytes)?;
        let path = dir.join(CONFIG_FILE);
        let staged_config = files::stage_json(&path, &config)?;
        // From here on nothing needs space. Another model's configuration must not meet these
        // weights, so that folder is no checkpoint for a moment.
        if path.exists() && DecoderConfig::from_dir(dir).ok().as_ref() != Some(&config) {
            std::fs::remove_file(&path).map_err(|source| Error::io(&path, source))?;
        }
        staged.commit()?;
        staged_config.commit()
    }

    /// The configuration.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// Where the model lies.
    pub fn device(&self) -> Device {
        self.embed_tokens.weight.tensor().device()
    }

    /// The output layer, `[hidden] → [vocab]`.
    pub fn lm_head(&self) -> &Linear {
        &self.lm_head
    }

    /// The token embedding's weight, `[vocab, hidden]`.
    pub fn embedding(&self) -> &Param {
        &self.embed_tokens.weight
    }

    /// `ids i64 [batch, seq]` to the normed hidden states `[batch, seq, hidden]`.
    ///
    /// # Errors
    /// Ids outside the vocabulary, or a context that does not fit.
    pub fn hidden(&self, ids: &Tensor, ctx: &Ctx) -> Result<Tensor> {
        let ((_, seq), device) = (ids.size2()?, self.device());
        self.check_adapters(ctx)?;
        let past = ctx.cache.as_ref().map_or(0, |cache| {
            let mut cache = cache.lock().unwrap_or_else(PoisonError::into_inner);
            // A forward that failed half-way has filled some layers only.
            let past = cache.len();
            cache.truncate(past);
            past
        });
        let positions = match (&ctx.positions, &ctx.cu_seqlens) {
            (Some(positions), _) => positions.shallow_clone(),
            (None, Some(bounds)) => {
                check_bounds(bounds, seq)?;
                let each = bounds.windows(2).flat_map(|pair| 0..pair[1] - pair[0]);
                Tensor::f_from_slice(&each.collect::<Vec<i64>>())?.f_to_device(device)?
            }
            (None, None) => Tensor::f_arange_start(past, past + seq, (Kind::Int64, device))?,
        };
        let mut inner = ctx.clone();
        inner.rotary = Some(self.rotary.tables(&positions, self.kind, device)?);
        let mut x = self.embed_tokens.forward(ids)?.f_to_kind(self.kind)?;
        for (i, layer) in self.layers.iter().enumerate() {
            let path = join(self.family.body, &format!("layers.{i}"));
            x = ctx.runner.run(&path, layer.clone(), &x, &inner)?;
        }
        self.norm.forward(&x)
    }

    /// A name that no linear has would silently mean the base model.
    fn check_adapters(&self, ctx: &Ctx) -> Result<()> {
        struct Unknown<'a>(HashSet<&'a str>);
        impl crate::Visitor for Unknown<'_> {
            fn linear(&mut self, _: &str, linear: &Linear) {
                for attached in linear.adapters() {
                    self.0.remove(attached.name.as_str());
                }
            }
        }
        let mut unknown = Unknown(match &ctx.adapters {
            Adapters::Active | Adapters::Off => return Ok(()),
            Adapters::Named(names) => names.iter().map(String::as_str).collect(),
            Adapters::PerRow(rows) => rows.iter().flatten().map(String::as_str).collect(),
        });
        module::Module::visit(self, "", &mut unknown);
        match unknown.0.into_iter().next() {
            Some(name) => Err(Error::Invalid(format!("the model has no adapter `{name}`"))),
            None => Ok(()),
        }
    }

    /// `ids i64 [batch, seq]` to logits `[batch, seq, vocab]`.
    ///
    /// # Errors
    /// As [`Decoder::hidden`].
    pub fn forward(&self, ids: &Tensor, ctx: &Ctx) -> Result<Tensor> {
        self.lm_head.forward(&self.hidden(ids, ctx)?, ctx)
    }
}
