//! Decoding: from a prompt to text, token by token, over a KV cache.
//!
//! A [`Sampler`] draws one token from a row of logits; [`tokens`] and [`text`] run the loop.
//!
//! ```
//! use ferrotune_generate::{Options, Sampling, tokens};
//! use ferrotune_nn::libtorch::tch::{Device, Kind};
//! use ferrotune_nn::{Decoder, DecoderConfig, Factory};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let config: DecoderConfig = serde_json::from_value(serde_json::json!({
//!     "model_type": "llama", "vocab_size": 50, "hidden_size": 16, "intermediate_size": 32,
//!     "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2
//! }))?;
//! let model = Decoder::new(&Factory::random(3, Kind::Float, Device::Cpu)?, config, Kind::Float)?;
//! let sampling = Sampling { temperature: 0.8, top_k: 20, top_p: 0.95, seed: 7 };
//! let mut new = Vec::new();
//! tokens(&model, &[1, 2, 3], &Options { max_tokens: 8, sampling, ..Options::default() }, |token| {
//!     new.push(token);
//!     Ok(true)
//! })?;
//! assert_eq!(new.len(), 8);
//! # Ok(()) }
//! ```
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod decode;
mod error;
mod sampler;
mod stop;

pub use decode::{Options, eos_of, text, tokens};
pub use error::Error;
pub use sampler::{Sampler, Sampling};

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;
