//! A parameter: a handle that modules, optimizers and backward closures share.

use crate::Result;
use ferrotune_libtorch::autograd;
use ferrotune_libtorch::tch::{Tensor, no_grad_guard};
use std::sync::Arc;

/// A tensor with an identity. Clones are the same parameter, so tied weights are clones.
#[derive(Debug, Clone)]
pub struct Param(Arc<Shared>);

#[derive(Debug)]
struct Shared(Tensor);

// SAFETY: the one place where a tensor crosses threads by reference. libtorch counts references
// atomically, and reading a tensor (operations, sizes, detach) from several threads is allowed; its
// engine does so itself. What is not allowed is writing its data or `.grad` while another thread
// reads them. Those writes go through `assign`, `set_grad`, `set_trainable`, or an optimizer, whose
// contract is PyTorch's: no forward or backward of the same module runs at that moment.
unsafe impl Sync for Shared {}

impl Param {
    /// Makes a parameter of a tensor: a leaf that does not train yet.
    pub fn new(tensor: Tensor) -> Self {
        Self(Arc::new(Shared(tensor.detach())))
    }

    /// The tensor, in the graph if it trains.
    pub fn tensor(&self) -> &Tensor {
        &self.0.0
    }

    /// Equal for two handles of one parameter.
    pub fn id(&self) -> usize {
        Arc::as_ptr(&self.0) as usize
    }

    /// Whether backward gives it a gradient.
    pub fn trainable(&self) -> bool {
        self.0.0.requires_grad()
    }

    /// Lets it train, or freezes it and drops its gradient.
    ///
    /// # Errors
    /// An integer tensor cannot train.
    pub fn set_trainable(&self, trainable: bool) -> Result<()> {
        let _ = self.0.0.f_set_requires_grad(trainable)?;
        if !trainable {
            autograd::set_grad(&self.0.0, None)?;
        }
        Ok(())
    }

    /// The accumulated gradient.
    pub fn grad(&self) -> Option<Tensor> {
        let grad = self.0.0.grad();
        grad.defined().then_some(grad)
    }

    /// Sets or clears the gradient.
    ///
    /// # Errors
    /// A gradient of another shape, dtype or device.
    pub fn set_grad(&self, gradient: Option<&Tensor>) -> Result<()> {
        Ok(autograd::set_grad(&self.0.0, gradient)?)
    }

    /// Overwrites the values in place; every handle sees it.
    ///
    /// # Errors
    /// A value of another shape: nothing is broadcast.
    pub fn assign(&self, value: &Tensor) -> Result<()> {
        if value.size() != self.0.0.size() {
            return Err(crate::Error::Invalid(format!(
                "a value of shape {:?} for a parameter of shape {:?}",
                value.size(),
                self.0.0.size()
            )));
        }
        let _guard = no_grad_guard();
        Ok(self.0.0.shallow_clone().f_copy_(value)?)
    }
}
