//! The training loop: bring a model, an optimizer and a loader; [`prepare`] makes them one run that
//! steps, saves and resumes.
//!
//! The model is any [`Module`](ferrotune_nn::Module), your own included:
//!
//! ```
//! use ferrotune_nn::libtorch::tch::{Device, Kind, Reduction, Tensor};
//! use ferrotune_nn::{Factory, Linear, module, module::set_trainable};
//! use ferrotune_train::{AdamW, Loss, Repeat, prepare};
//!
//! struct Net { fc1: Linear, fc2: Linear }
//! module!(Net { fc1, fc2 });
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let factory = Factory::random(1, Kind::Float, Device::Cpu)?;
//! let net = Net { fc1: factory.linear("fc1", 4, 16, true, 0.5)?, fc2: factory.linear("fc2", 16, 1, true, 0.5)? };
//! set_trainable(&net, true)?;
//! let x = Tensor::f_randn([32, 4], (Kind::Float, Device::Cpu))?;
//! let batch = (x.shallow_clone(), x.f_sum_dim_intlist(-1, true, Kind::Float)?);
//!
//! let mut run = prepare(net, AdamW::new(0.01), Repeat::new([batch], 100))?;
//! let mut losses = Vec::new();
//! while let Some(step) = run.step(|net, batch, ctx| {
//!     let (x, y) = &**batch;
//!     let guess = net.fc2.forward(&net.fc1.forward(x, ctx)?.f_tanh()?, ctx)?;
//!     Loss::mean(&guess.f_mse_loss(y, Reduction::Mean)?, 32)
//! })? {
//!     losses.push(step.loss);
//! }
//! assert!(losses[99] < 0.1 * losses[0]);
//! # Ok(()) }
//! ```
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod artifact;
pub mod checkpoint;
mod curve;
mod error;
mod fit;
pub mod interrupt;
mod loader;
pub mod loss;
pub mod observe;
mod optimizer;
mod run;
mod schedule;
mod strategy;

pub use curve::svg as loss_curve;
pub use error::Error;
pub use ferrotune_nn::libtorch::optim::AdamWStep;
pub use fit::{Ended, Fit, Judge};
pub use loader::{Loader, Packed, Repeat};
pub use observe::Observer;
pub use optimizer::{AdamW, Optimizer};
pub use run::{Evaluation, Loss, Options, Run, Step, prepare};
pub use schedule::{Decay, Schedule};
pub use strategy::{Single, Strategy};

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;
