//! LoRA adapters (Hu et al., 2021) in PEFT's format, for any module of `ferrotune-nn`.
//!
//! An adapter fills a slot of each target linear; the model's own code knows nothing of it.
//!
//! ```
//! use ferrotune_lora::{LoraConfig, attach, merge, train_only};
//! use ferrotune_nn::libtorch::tch::{Device, Kind, Tensor};
//! use ferrotune_nn::{Ctx, Factory, Linear, module, module::trainable};
//!
//! struct Net { q_proj: Linear, o_proj: Linear }
//! module!(Net { q_proj, o_proj });
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let factory = Factory::random(1, Kind::Float, Device::Cpu)?;
//! let mut net = Net {
//!     q_proj: factory.linear("q_proj", 8, 8, false, 0.3)?,
//!     o_proj: factory.linear("o_proj", 8, 8, false, 0.3)?,
//! };
//! let config = LoraConfig { r: 2, lora_alpha: 4.0, target_modules: ["q_proj"].into(), ..LoraConfig::default() };
//! attach(&mut net, "default", &config, 42)?;
//! train_only(&mut net, "default")?;
//! let names: Vec<String> = trainable(&net).into_iter().map(|(path, _)| path).collect();
//! assert_eq!(names, ["q_proj.lora_A.default.weight", "q_proj.lora_B.default.weight"]);
//! merge(&mut net, "default")?;
//! net.q_proj.forward(&Tensor::f_ones([1, 8], (Kind::Float, Device::Cpu))?, &Ctx::eval())?;
//! # Ok(()) }
//! ```
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod adapter;
mod config;
mod error;
mod manage;
pub mod peft;

pub use adapter::Lora;
pub use config::{LoraConfig, Targets};
pub use error::Error;
pub use manage::{attach, detach, merge, set_active, train_only, unmerge};

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;
