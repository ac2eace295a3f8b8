//! Transformers that mirror Hugging Face checkpoints, with the seams that adapters, quantization
//! and parallelism need.
//!
//! A model names its parts by checkpoint path and forwards with a [`Ctx`]; a [`Linear`] has slots
//! for an operator, adapters, a placement and a bias; a [`BlockRunner`] runs each block. Your own
//! layers take part by [`module!`]:
//!
//! ```
//! use ferrotune_libtorch::tch::{Device, Kind, Tensor};
//! use ferrotune_nn::{Ctx, Factory, Linear, Result, module, module::params};
//!
//! struct Net { fc1: Linear, fc2: Linear }
//! module!(Net { fc1, fc2 });
//!
//! impl Net {
//!     fn new(factory: &Factory) -> Result<Self> {
//!         Ok(Self { fc1: factory.linear("fc1", 4, 8, true, 0.3)?, fc2: factory.linear("fc2", 8, 2, true, 0.3)? })
//!     }
//!     fn forward(&self, x: &Tensor, ctx: &Ctx) -> Result<Tensor> {
//!         self.fc2.forward(&self.fc1.forward(x, ctx)?.f_relu()?, ctx)
//!     }
//! }
//!
//! # fn main() -> Result<()> {
//! let net = Net::new(&Factory::random(7, Kind::Float, Device::Cpu)?)?;
//! let names: Vec<String> = params(&net).into_iter().map(|(path, _)| path).collect();
//! assert_eq!(names, ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"]);
//! assert_eq!(net.forward(&Tensor::f_ones([3, 4], (Kind::Float, Device::Cpu))?, &Ctx::eval())?.size(), [3, 2]);
//! # Ok(()) }
//! ```
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod attention;
pub mod block;
pub mod config;
pub mod ctx;
mod error;
pub mod factory;
pub mod files;
pub mod layers;
pub mod linear;
pub mod models;
pub mod module;
mod param;
pub mod weights;

pub use attention::KvCache;
pub use block::{Block, BlockRunner, Checkpoint, Direct};
pub use config::DecoderConfig;
pub use ctx::{Adapters, Ctx};
pub use error::Error;
pub use factory::{Factory, Init};
pub use ferrotune_libtorch as libtorch;
pub use layers::{Embedding, RmsNorm, Rotary, RotaryTables};
pub use linear::{Adapter, Attached, Dense, Linear, LinearOp, Placement, Shard, Split};
pub use models::Decoder;
pub use module::{Module, Visitor, VisitorMut};
pub use param::Param;
pub use weights::Weights;

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;
