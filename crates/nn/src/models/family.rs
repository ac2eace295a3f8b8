//! What tells one family from another.

use crate::config::DecoderConfig;
use crate::{Error, Result};

/// A family of decoders: where its parts lie in the checkpoint and which projections have biases.
#[derive(Debug, Clone, Copy)]
pub struct Family {
    /// `model_type` in config.json.
    pub model_type: &'static str,
    /// The class in `architectures`.
    pub architecture: &'static str,
    /// Path of the decoder without its output layer.
    pub body: &'static str,
    /// Whether q, k and v have biases.
    pub qkv_bias: fn(&DecoderConfig) -> bool,
    /// Whether the attention's output projection has one.
    pub o_bias: fn(&DecoderConfig) -> bool,
}

/// The families that are built.
pub const FAMILIES: [Family; 2] = [
    Family {
        model_type: "llama",
        architecture: "LlamaForCausalLM",
        body: "model",
        qkv_bias: |config| config.attention_bias,
        o_bias: |config| config.attention_bias,
    },
    Family {
        model_type: "qwen2",
        architecture: "Qwen2ForCausalLM",
        body: "model",
        qkv_bias: |_| true,
        o_bias: |_| false,
    },
];

impl Family {
    /// The family that a configuration names.
    ///
    /// # Errors
    /// One that is not built.
    pub fn of(config: &DecoderConfig) -> Result<&'static Family> {
        FAMILIES
            .iter()
            .find(|family| family.model_type == config.model_type)
            .filter(|family| {
                config.architectures.is_empty()
                    || config
                        .architectures
                        .iter()
                        .any(|name| name == family.architecture)
            })
            .ok_or_else(|| {
                let known: Vec<_> = FAMILIES.iter().map(|family| family.architecture).collect();
                Error::Config(format!(
                    "architecture {:?} of model_type `{}` is not supported (known: {})",
                    config.architectures,
                    config.model_type,
                    known.join(", ")
                ))
            })
    }
}
