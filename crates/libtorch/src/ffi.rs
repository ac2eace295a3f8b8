//! The shim's C functions (`shim/*.cpp`), and the one way to call them.
//!
//! A function returns null, or a message that this module frees.

use crate::Error;
use libc::{c_char, c_int, c_void};
use std::ffi::CStr;
use tch::Tensor;
use torch_sys::C_tensor;

pub(crate) type Backward = unsafe extern "C" fn(
    *mut c_void,
    *const *mut C_tensor,
    c_int,
    *const *mut C_tensor,
    c_int,
    *const bool,
    *mut *mut C_tensor,
    c_int,
) -> *mut c_char;
pub(crate) type Hook = unsafe extern "C" fn(*mut c_void, *mut C_tensor) -> *mut c_char;
pub(crate) type Drop = unsafe extern "C" fn(*mut c_void);

/// An `at::Generator`.
pub(crate) enum Generator {}

unsafe extern "C" {
    pub(crate) fn ft_string_free(text: *mut c_char);
    pub(crate) fn ft_string_copy(text: *const c_char, length: usize) -> *mut c_char;
    pub(crate) fn ft_tensor_identity(tensor: *const C_tensor) -> *const c_void;
    pub(crate) fn ft_grad_enabled() -> bool;
    pub(crate) fn ft_autograd_attach(
        name: *const c_char,
        inputs: *const *mut C_tensor,
        input_count: c_int,
        outputs: *const *mut C_tensor,
        output_count: c_int,
        saved: *const *mut C_tensor,
        saved_count: c_int,
        state: *mut c_void,
        run: Backward,
        drop: Drop,
        results: *mut *mut C_tensor,
    ) -> *mut c_char;
    pub(crate) fn ft_backward(
        roots: *const *mut C_tensor,
        gradients: *const *mut C_tensor,
        count: c_int,
        retain_graph: bool,
    ) -> *mut c_char;
    pub(crate) fn ft_grad(
        roots: *const *mut C_tensor,
        gradients: *const *mut C_tensor,
        root_count: c_int,
        inputs: *const *mut C_tensor,
        input_count: c_int,
        retain_graph: bool,
        create_graph: bool,
        results: *mut *mut C_tensor,
    ) -> *mut c_char;
    pub(crate) fn ft_set_grad(tensor: *mut C_tensor, gradient: *const C_tensor) -> *mut c_char;
    pub(crate) fn ft_hook_set(
        tensor: *mut C_tensor,
        id: u64,
        state: *mut c_void,
        run: Hook,
        drop: Drop,
    ) -> *mut c_char;
    pub(crate) fn ft_hook_clear(tensor: *mut C_tensor, id: u64) -> *mut c_char;
    pub(crate) fn ft_fused_adamw(
        parameters: *const *mut C_tensor,
        gradients: *const *mut C_tensor,
        averages: *const *mut C_tensor,
        squares: *const *mut C_tensor,
        steps: *const *mut C_tensor,
        count: c_int,
        lr: f64,
        beta1: f64,
        beta2: f64,
        weight_decay: f64,
        eps: f64,
    ) -> *mut c_char;
    pub(crate) fn ft_generator_new(
        device: c_int,
        seed: u64,
        result: *mut *mut Generator,
    ) -> *mut c_char;
    pub(crate) fn ft_generator_default(device: c_int, result: *mut *mut Generator) -> *mut c_char;
    pub(crate) fn ft_generator_free(generator: *mut Generator);
    pub(crate) fn ft_generator_seed(generator: *mut Generator, seed: u64) -> *mut c_char;
    pub(crate) fn ft_generator_state(
        generator: *mut Generator,
        result: *mut *mut C_tensor,
    ) -> *mut c_char;
    pub(crate) fn ft_generator_set_state(
        generator: *mut Generator,
        state: *const C_tensor,
    ) -> *mut c_char;
    pub(crate) fn ft_bernoulli(
        tensor: *mut C_tensor,
        p: f64,
        generator: *const Generator,
    ) -> *mut c_char;
    pub(crate) fn ft_normal(
        tensor: *mut C_tensor,
        mean: f64,
        std: f64,
        generator: *const Generator,
    ) -> *mut c_char;
    pub(crate) fn ft_uniform(
        tensor: *mut C_tensor,
        from: f64,
        to: f64,
        generator: *const Generator,
    ) -> *mut c_char;
    pub(crate) fn ft_memory_empty_cache(device: c_int) -> *mut c_char;
    pub(crate) fn ft_memory_stats(device: c_int, values: *mut i64) -> *mut c_char;
    pub(crate) fn ft_memory_reset_peak(device: c_int) -> *mut c_char;
}

/// Turns what a shim function returned into a `Result`.
///
/// # Safety
/// `message` is null or a string that the shim allocated, and nobody else frees it.
pub(crate) unsafe fn check(
    operation: &'static str,
    tensors: &[&Tensor],
    message: *mut c_char,
) -> Result<(), Error> {
    if message.is_null() {
        return Ok(());
    }
    // SAFETY: non-null, so by this function's contract a live, NUL-terminated string of the shim's.
    let text = unsafe { CStr::from_ptr(message) }
        .to_string_lossy()
        .into_owned();
    // SAFETY: the shim allocated it and this is its only release.
    unsafe { ft_string_free(message) };
    Err(Error::operation(operation, tensors, &text))
}

/// The handles of `tensors`, for the length of one call.
pub(crate) fn handles(tensors: &[&Tensor]) -> Vec<*mut C_tensor> {
    tensors
        .iter()
        .map(|tensor| tensor.as_ptr().cast_mut())
        .collect()
}

/// A tensor handle that the shim handed over; null is an undefined tensor.
///
/// # Safety
/// `handle` is null or a handle that nobody else owns.
pub(crate) unsafe fn owned(handle: *mut C_tensor) -> Option<Tensor> {
    // SAFETY: by this function's contract the handle is ours alone.
    (!handle.is_null()).then(|| unsafe { Tensor::from_ptr(handle) })
}

/// Runs a callback that C++ entered and renders its outcome as the shim's null-or-message.
/// A panic must not unwind into C++, so it becomes a message too.
pub(crate) fn guarded(name: &str, run: impl FnOnce() -> Result<(), Error>) -> *mut c_char {
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
    let message = match outcome {
        Ok(Ok(())) => return std::ptr::null_mut(),
        Ok(Err(error)) => format!("{name}: {error}"),
        Err(payload) => {
            let text = payload
                .downcast_ref::<&str>()
                .map(|text| text.to_string())
                .or_else(|| payload.downcast_ref::<String>().cloned())
                .unwrap_or_else(|| "a payload that is no text".to_owned());
            format!("{name} panicked: {text}")
        }
    };
    // SAFETY: the pointer and length are those of a live string; the shim copies it.
    unsafe { ft_string_copy(message.as_ptr().cast(), message.len()) }
}

/// Frees the box behind a callback's state.
pub(crate) unsafe extern "C" fn drop_box<T>(state: *mut c_void) {
    // SAFETY: the shim calls this once, with the pointer that `Box::into_raw` gave it. A panicking
    // destructor must not unwind into C++.
    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| unsafe {
        drop(Box::from_raw(state.cast::<T>()));
    }));
}
