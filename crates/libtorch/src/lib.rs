//! What libtorch has and tch does not bind: one C++ shim, and safe Rust over it.
//!
//! The pinned [`tch`] is re-exported, so that every crate speaks of the same tensors. On top of it
//! come autograd functions written in Rust, gradient hooks, generators with a state, the fused
//! AdamW, memory statistics and CUDA at run time. Errors are one line: operation, shapes, and
//! libtorch's first sentence.
//!
//! ```
//! use ferrotune_libtorch::autograd::{Backward, Function, apply, backward};
//! use ferrotune_libtorch::{Result, tch::Tensor};
//!
//! /// x³, whose gradient is 3x².
//! struct Cube;
//! impl Function for Cube {
//!     const NAME: &'static str = "Cube";
//!     fn forward(&mut self, x: &[&Tensor], save: &mut Vec<Tensor>) -> Result<Vec<Tensor>> {
//!         save.push(x[0].shallow_clone());
//!         Ok(vec![x[0].f_pow_tensor_scalar(3)?])
//!     }
//!     fn backward(&self, given: &Backward) -> Result<Vec<Option<Tensor>>> {
//!         let slope = given.saved[0].f_square()? * 3.0;
//!         Ok(vec![given.gradients[0].as_ref().map(|gradient| gradient * slope)])
//!     }
//! }
//!
//! # fn main() -> Result<()> {
//! let x = Tensor::from_slice(&[2.0_f32, -1.0]).set_requires_grad(true);
//! let y = apply(Cube, &[&x])?.remove(0);
//! backward(&[&y.sum(None)], &[None], false)?;
//! assert_eq!(Vec::<f32>::try_from(x.grad())?, [12.0, 3.0]);
//! # Ok(()) }
//! ```
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod autograd;
pub mod cuda;
mod error;
mod ffi;
pub mod hooks;
pub mod memory;
pub mod optim;
pub mod random;

pub use error::{Context, Error};
pub use tch;

/// The result of a call into libtorch.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The device's number in the shim: −1 for the CPU.
fn device_index(device: tch::Device) -> libc::c_int {
    match device {
        tch::Device::Cuda(index) => index as libc::c_int,
        _ => -1,
    }
}
