//! `config.json` of decoder models, in both spellings that checkpoints use.

use crate::{Error, Result, files};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::path::Path;

/// Sizes and constants of a Llama-like decoder. Keys that we do not use are kept in `extra`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DecoderConfig {
    /// Classes that can load this, `LlamaForCausalLM` say.
    #[serde(default)]
    pub architectures: Vec<String>,
    /// The family, `llama` or `qwen2`.
    pub model_type: String,
    /// Rows of the embedding.
    pub vocab_size: i64,
    /// Width of the residual stream.
    pub hidden_size: i64,
    /// Width of the MLP.
    pub intermediate_size: i64,
    /// Number of blocks.
    pub num_hidden_layers: i64,
    /// Query heads.
    pub num_attention_heads: i64,
    /// Key and value heads; as many as query heads if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_key_value_heads: Option<i64>,
    /// Width of a head; `hidden_size / num_attention_heads` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head_dim: Option<i64>,
    /// The MLP's activation.
    #[serde(default = "silu")]
    pub hidden_act: String,
    /// Longest sequence.
    #[serde(default = "default_positions")]
    pub max_position_embeddings: i64,
    /// Epsilon of the norms.
    #[serde(default = "default_eps")]
    pub rms_norm_eps: f64,
    /// Whether the output layer is the embedding.
    #[serde(default)]
    pub tie_word_embeddings: bool,
    /// Llama: biases on the attention's projections.
    #[serde(default)]
    pub attention_bias: bool,
    /// Llama: biases in the MLP.
    #[serde(default)]
    pub mlp_bias: bool,
    /// Standard deviation of random weights.
    #[serde(default = "default_std")]
    pub initializer_range: f64,
    /// Older spelling of the rotary base.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_theta: Option<f64>,
    /// Older spelling of the rotary scaling.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_scaling: Option<Map<String, Value>>,
    /// Newer spelling of both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_parameters: Option<Map<String, Value>>,
    /// Every other key.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

fn silu() -> String {
    "silu".to_owned()
}
fn default_positions() -> i64 {
    2048
}
fn default_eps() -> f64 {
    1e-6
}
fn default_std() -> f64 {
    0.02
}

/// The rotary embedding's frequencies.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rope {
    /// The base, θ.
    pub theta: f64,
    /// How frequencies are stretched for longer contexts.
    pub scaling: RopeScaling,
}

/// Stretched frequencies.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// As they are.
    None,
    /// All divided by `factor` (Chen et al., 2023).
    Linear {
        /// The stretch.
        factor: f64,
    },
    /// Llama 3.1's: long wavelengths divided, short ones kept, a ramp between.
    Llama3 {
        /// The stretch of long wavelengths.
        factor: f64,
        /// Wavelengths over `original / low` are long.
        low: f64,
        /// Wavelengths under `original / high` are short.
        high: f64,
        /// Context length before stretching.
        original: f64,
    },
}

const PARTIAL: &str = "partial_rotary_factor";

impl DecoderConfig {
    /// Reads `config.json` of a checkpoint folder and checks that its sizes fit.
    ///
    /// # Errors
    /// A file that does not parse, or sizes that contradict each other.
    pub fn from_dir(dir: &Path) -> Result<Self> {
        let path = dir.join("config.json");
        let config: Self = files::read_json(&path)?;
        config.check().map_err(|error| error.in_file(&path))?;
        Ok(config)
    }

    /// Width of a head.
    pub fn head_dim(&self) -> i64 {
        self.head_dim
            .unwrap_or(self.hidden_size / self.num_attention_heads.max(1))
    }

    /// Key and value heads.
    pub fn kv_heads(&self) -> i64 {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    /// The dtype that the checkpoint names, `bfloat16` say, in either spelling.
    pub fn dtype(&self) -> Option<&str> {
        ["dtype", "torch_dtype"]
            .iter()
            .find_map(|key| self.extra.get(*key)?.as_str())
    }

    /// Names the dtype under the key that is there, or under the one that every reader knows.
    pub(crate) fn set_dtype(&mut self, dtype: &str) {
        let key = ["dtype", "torch_dtype"]
            .into_iter()
            .find(|key| self.extra.contains_key(*key))
            .unwrap_or("torch_dtype");
        self.extra.insert(key.to_owned(), dtype.into());
    }

    /// The rotary embedding, from either spelling.
    ///
    /// # Errors
    /// A `rope_type` that is not built, or a factor that is missing.
    pub fn rope(&self) -> Result<Rope> {
        let table = self.rope_parameters.as_ref().or(self.rope_scaling.as_ref());
        let get = |key: &str| table.and_then(|table| table.get(key));
        let theta = get("rope_theta")
            .and_then(Value::as_f64)
            .or(self.rope_theta)
            .unwrap_or(10_000.0);
        if theta <= 0.0 {
            return Err(Error::Config(format!("`rope_theta` is {theta}")));
        }
        let number = |key: &str| {
            get(key)
                .and_then(Value::as_f64)
                .filter(|number| *number > 0.0)
                .ok_or_else(|| {
                    Error::Config(format!("rope scaling lacks the positive number `{key}`"))
                })
        };
        let kind = get("rope_type")
            .or(get("type"))
            .and_then(Value::as_str)
            .unwrap_or("default");
        let scaling = match kind {
            "default" => RopeScaling::None,
            "linear" => RopeScaling::Linear {
                factor: number("factor")?,
            },
            "llama3" => RopeScaling::Llama3 {
                factor: number("factor")?,
                low: number("low_freq_factor")?,
                high: number("high_freq_factor")?,
                original: number("original_max_position_embeddings")?,
            },
            other => {
                return Err(Error::Config(format!(
                    "rope type `{other}` is not supported (default, linear, llama3 are)"
                )));
            }
        };
        Ok(Rope { theta, scaling })
    }

    /// Says whether a decoder can be built from this.
    pub(crate) fn check(&self) -> Result<()> {
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.kv_heads()),
            ("head_dim", self.head_dim()),
        ];
        let sane = 1..=i64::from(i32::MAX);
        if let Some((key, value)) = sizes.iter().find(|(_, value)| !sane.contains(value)) {
            return Err(Error::Config(format!("`{key}` is {value}")));
        }
        let (heads, kv_heads) = (self.num_attention_heads, self.kv_heads());
        if heads % kv_heads != 0 {
            return Err(Error::Config(format!(
                "{heads} attention heads are no multiple of {kv_heads} key-value heads"
            )));
        }
        if self.head_dim.is_none() && self.hidden_size % heads != 0 {
            let hidden = self.hidden_size;
            return Err(Error::Config(format!(
                "hidden_size {hidden} is no multiple of {heads} heads"
            )));
        }
        if self.head_dim() % 2 != 0 {
            return Err(Error::Config(format!(
                "head_dim {} is odd",
                self.head_dim()
            )));
        }
        if self.hidden_act != "silu" {
            return Err(Error::Config(format!(
                "hidden_act `{}` is not supported",
                self.hidden_act
            )));
        }
        if self.extra.get("use_sliding_window") == Some(&Value::Bool(true)) {
            return Err(Error::Config(
                "use_sliding_window is not supported".to_owned(),
            ));
        }
        let partial = self
            .rope_parameters
            .as_ref()
            .and_then(|table| table.get(PARTIAL))
            .or(self.extra.get(PARTIAL))
            .and_then(Value::as_f64);
        if let Some(part) = partial.filter(|part| *part != 1.0) {
            return Err(Error::Config(format!("{PARTIAL} {part} is not supported")));
        }
        self.rope().map(|_| ())
    }
}
