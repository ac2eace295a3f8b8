//! Random generators whose state can be saved and restored.

use crate::{Result, ffi};
use std::sync::Arc;
use tch::{Device, Tensor};

/// A random generator of libtorch's on one device. Clones share the state.
#[derive(Debug, Clone)]
pub struct Generator {
    handle: Arc<Handle>,
    device: Device,
}

#[derive(Debug)]
struct Handle(*mut ffi::Generator);

// SAFETY: an at::Generator is a counted pointer to a state with its own mutex, which every function
// here takes (the draws take it inside libtorch).
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: the handle is ours alone and this is its only release.
        unsafe { ffi::ft_generator_free(self.0) }
    }
}

impl Generator {
    /// A generator of its own, seeded with `seed`.
    ///
    /// # Errors
    /// A device that is not there.
    pub fn new(device: Device, seed: u64) -> Result<Self> {
        let mut handle = std::ptr::null_mut();
        // SAFETY: the shim writes a handle that only we own, or fails and writes nothing.
        unsafe {
            let message = ffi::ft_generator_new(crate::device_index(device), seed, &mut handle);
            ffi::check("generator", &[], message)?;
        }
        Ok(Self {
            handle: Arc::new(Handle(handle)),
            device,
        })
    }

    /// libtorch's default generator of a device, which tch's own random functions draw from.
    ///
    /// # Errors
    /// A device that is not there.
    pub fn default_of(device: Device) -> Result<Self> {
        let mut handle = std::ptr::null_mut();
        // SAFETY: as in `new`.
        unsafe {
            let message = ffi::ft_generator_default(crate::device_index(device), &mut handle);
            ffi::check("generator", &[], message)?;
        }
        Ok(Self {
            handle: Arc::new(Handle(handle)),
            device,
        })
    }

    /// The device it draws on.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Starts anew from `seed`.
    ///
    /// # Errors
    /// libtorch's.
    pub fn seed(&self, seed: u64) -> Result<()> {
        // SAFETY: the handle is live; the shim takes the generator's mutex.
        unsafe { ffi::check("seed", &[], ffi::ft_generator_seed(self.handle.0, seed)) }
    }

    /// The state as bytes, `u8 [5056]` on CPU.
    ///
    /// # Errors
    /// libtorch's.
    pub fn state(&self) -> Result<Tensor> {
        let mut state = std::ptr::null_mut();
        // SAFETY: the shim writes a handle that only we own, or fails.
        unsafe {
            let message = ffi::ft_generator_state(self.handle.0, &mut state);
            ffi::check("generator state", &[], message)?;
            Ok(Tensor::from_ptr(state))
        }
    }

    /// Takes up a state that [`Generator::state`] gave.
    ///
    /// # Errors
    /// A tensor that is no state of this kind of generator.
    pub fn set_state(&self, state: &Tensor) -> Result<()> {
        // SAFETY: both handles are live; the shim takes the generator's mutex.
        unsafe {
            let message = ffi::ft_generator_set_state(self.handle.0, state.as_ptr());
            ffi::check("set generator state", &[state], message)
        }
    }

    /// Fills `tensor` with ones of probability `p`, else zeros.
    ///
    /// # Errors
    /// `p` outside 0..=1, or a tensor on another device.
    pub fn bernoulli(&self, tensor: &mut Tensor, p: f64) -> Result<()> {
        // SAFETY: both handles are live; libtorch locks the generator.
        unsafe {
            let message = ffi::ft_bernoulli(tensor.as_mut_ptr(), p, self.handle.0);
            ffi::check("bernoulli", &[tensor], message)
        }
    }

    /// Fills `tensor` from a normal distribution.
    ///
    /// # Errors
    /// A negative `std`, or a tensor on another device.
    pub fn normal(&self, tensor: &mut Tensor, mean: f64, std: f64) -> Result<()> {
        // SAFETY: both handles are live; libtorch locks the generator.
        unsafe {
            let message = ffi::ft_normal(tensor.as_mut_ptr(), mean, std, self.handle.0);
            ffi::check("normal", &[tensor], message)
        }
    }

    /// Fills `tensor` uniformly from `from..to`.
    ///
    /// # Errors
    /// An empty range, or a tensor on another device.
    pub fn uniform(&self, tensor: &mut Tensor, from: f64, to: f64) -> Result<()> {
        // SAFETY: both handles are live; libtorch locks the generator.
        unsafe {
            let message = ffi::ft_uniform(tensor.as_mut_ptr(), from, to, self.handle.0);
            ffi::check("uniform", &[tensor], message)
        }
    }
}
