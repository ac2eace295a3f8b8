//! Autograd functions written in Rust, and the engine run with gradients of one's own.

use crate::{Error, Result, ffi};
use libc::{c_char, c_int, c_void};
use std::ffi::CString;
use tch::Tensor;
use torch_sys::C_tensor;

/// A differentiable function: its forward runs without a graph, its backward as one node.
///
/// The value may hold whatever its backward needs besides tensors. Tensors belong into `save`:
/// libtorch then checks that nobody changes them in place, and frees them after the backward.
pub trait Function: Send + 'static {
    /// The node's name in errors and profiles.
    const NAME: &'static str;

    /// Computes the outputs. Gradients are off here. Tensors that backward needs (inputs, outputs
    /// or others) are pushed to `save`.
    ///
    /// # Errors
    /// Whatever the function finds wrong; it becomes the error of [`apply`].
    fn forward(&mut self, inputs: &[&Tensor], save: &mut Vec<Tensor>) -> Result<Vec<Tensor>>;

    /// The gradients of the inputs, in their order: `None` where there is none.
    ///
    /// # Errors
    /// Whatever the function finds wrong; it becomes the error of the call to `backward`.
    fn backward(&self, given: &Backward) -> Result<Vec<Option<Tensor>>>;
}

/// What a [`Function`]'s backward is given.
#[derive(Debug)]
pub struct Backward {
    /// The tensors that forward saved, in its order.
    pub saved: Vec<Tensor>,
    /// The gradient of each output, `None` where it is zero.
    pub gradients: Vec<Option<Tensor>>,
    /// Which inputs' gradients anyone asks for.
    pub needed: Vec<bool>,
}

/// Runs `function` on `inputs`, and joins it to the graph if any input requires grad.
///
/// Only inputs carry gradients: a parameter that the function merely holds does not train, so pass
/// parameters as inputs. The backward may run on a thread of libtorch's.
///
/// # Errors
/// The forward's own error, or libtorch's.
pub fn apply<F: Function>(mut function: F, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
    let mut saved = Vec::new();
    let outputs = {
        let _guard = tch::no_grad_guard();
        function.forward(inputs, &mut saved)?
    };
    let name = CString::new(F::NAME).map_err(Error::function)?;
    let input_handles = ffi::handles(inputs);
    let output_handles = ffi::handles(&outputs.iter().collect::<Vec<_>>());
    let saved_handles = ffi::handles(&saved.iter().collect::<Vec<_>>());
    let mut results = vec![std::ptr::null_mut(); outputs.len()];
    let state = Box::into_raw(Box::new(function));
    // SAFETY: every handle outlives the call; counts are those of the arrays; the shim owns `state`
    // from here on and frees it with `drop_box::<F>`, the type it was boxed as; F is Send, so
    // another thread may run and drop it. `results` has room for one handle an output.
    unsafe {
        let message = ffi::ft_autograd_attach(
            name.as_ptr(),
            input_handles.as_ptr(),
            input_handles.len() as c_int,
            output_handles.as_ptr(),
            output_handles.len() as c_int,
            saved_handles.as_ptr(),
            saved_handles.len() as c_int,
            state.cast(),
            run_backward::<F>,
            ffi::drop_box::<F>,
            results.as_mut_ptr(),
        );
        ffi::check(F::NAME, inputs, message)?;
        Ok(results
            .into_iter()
            .filter_map(|handle| ffi::owned(handle))
            .collect())
    }
}

/// The trampoline from the C++ node into [`Function::backward`].
#[allow(clippy::too_many_arguments, reason = "the shim's signature")]
unsafe extern "C" fn run_backward<F: Function>(
    state: *mut c_void,
    saved: *const *mut C_tensor,
    saved_count: c_int,
    gradients: *const *mut C_tensor,
    gradient_count: c_int,
    needed: *const bool,
    results: *mut *mut C_tensor,
    result_count: c_int,
) -> *mut c_char {
    ffi::guarded(F::NAME, || {
        // SAFETY: the node calls this with the state it was attached with, holds its own lock
        // meanwhile, and keeps the arrays alive; clones of the handles share the tensors.
        let (function, given) = unsafe {
            let clone = |array: *const *mut C_tensor, count: c_int| -> Vec<Option<Tensor>> {
                (0..count as usize)
                    .map(|i| *array.add(i))
                    .map(|handle| (!handle.is_null()).then(|| Tensor::clone_from_ptr(handle)))
                    .collect()
            };
            let given = Backward {
                saved: clone(saved, saved_count).into_iter().flatten().collect(),
                gradients: clone(gradients, gradient_count),
                needed: (0..result_count as usize).map(|i| *needed.add(i)).collect(),
            };
            (&*state.cast::<F>(), given)
        };
        let found = function.backward(&given)?;
        if found.len() != result_count as usize {
            return Err(Error::function(format!(
                "backward returned {} gradients for {result_count} inputs",
                found.len()
            )));
        }
        for (i, gradient) in found.into_iter().enumerate() {
            if let Some(gradient) = gradient {
                // SAFETY: `results` has `result_count` slots; the node takes the handle over, so
                // Rust forgets it.
                unsafe { *results.add(i) = into_handle(gradient) };
            }
        }
        Ok(())
    })
}

/// Gives a tensor's handle away.
fn into_handle(tensor: Tensor) -> *mut C_tensor {
    std::mem::ManuallyDrop::new(tensor).as_mut_ptr()
}

/// Accumulates the gradients of `roots` into the leaves' `.grad`, seeded with `gradients`
/// (`None` for a scalar root, which is seeded with one).
///
/// # Errors
/// libtorch's, or that of a [`Function`] in the graph.
pub fn backward(
    roots: &[&Tensor],
    gradients: &[Option<&Tensor>],
    retain_graph: bool,
) -> Result<()> {
    let root_handles = ffi::handles(roots);
    let gradient_handles = optional_handles(gradients, roots.len())?;
    // SAFETY: both arrays hold `roots.len()` handles that outlive the call.
    unsafe {
        let message = ffi::ft_backward(
            root_handles.as_ptr(),
            gradient_handles.as_ptr(),
            roots.len() as c_int,
            retain_graph,
        );
        ffi::check("backward", roots, message)
    }
}

/// The gradients of `roots` with respect to `inputs`; nothing is accumulated.
/// An input that the roots do not depend on has `None`.
///
/// # Errors
/// libtorch's, or that of a [`Function`] in the graph.
pub fn grad(
    roots: &[&Tensor],
    gradients: &[Option<&Tensor>],
    inputs: &[&Tensor],
    retain_graph: bool,
    create_graph: bool,
) -> Result<Vec<Option<Tensor>>> {
    let root_handles = ffi::handles(roots);
    let gradient_handles = optional_handles(gradients, roots.len())?;
    let input_handles = ffi::handles(inputs);
    let mut results = vec![std::ptr::null_mut(); inputs.len()];
    // SAFETY: the arrays hold as many handles as their counts say and outlive the call; each result
    // is a handle that only we own.
    unsafe {
        let message = ffi::ft_grad(
            root_handles.as_ptr(),
            gradient_handles.as_ptr(),
            roots.len() as c_int,
            input_handles.as_ptr(),
            inputs.len() as c_int,
            retain_graph,
            create_graph,
            results.as_mut_ptr(),
        );
        ffi::check("grad", roots, message)?;
        Ok(results
            .into_iter()
            .map(|handle| ffi::owned(handle))
            .collect())
    }
}

fn optional_handles(tensors: &[Option<&Tensor>], count: usize) -> Result<Vec<*mut C_tensor>> {
    if tensors.len() != count {
        return Err(Error::function(format!(
            "{} gradients for {count} roots",
            tensors.len()
        )));
    }
    Ok(tensors
        .iter()
        .map(|tensor| tensor.map_or(std::ptr::null_mut(), |t| t.as_ptr().cast_mut()))
        .collect())
}

/// Sets or clears a tensor's `.grad`. tch can only zero it.
///
/// # Errors
/// A gradient whose shape, dtype or device is not the tensor's.
pub fn set_grad(tensor: &Tensor, gradient: Option<&Tensor>) -> Result<()> {
    let mut tensor = tensor.shallow_clone();
    let handle = gradient.map_or(std::ptr::null(), |gradient| gradient.as_ptr());
    // SAFETY: both handles outlive the call.
    unsafe {
        let message = ffi::ft_set_grad(tensor.as_mut_ptr(), handle);
        ffi::check("set_grad", &[&tensor], message)
    }
}

/// The address of the tensor's implementation: equal for two handles of one tensor.
pub fn identity(tensor: &Tensor) -> usize {
    // SAFETY: the handle is live; the address is compared, never followed.
    unsafe { ffi::ft_tensor_identity(tensor.as_ptr()) as usize }
}

/// Whether a graph is being built on this thread.
pub fn enabled() -> bool {
    // SAFETY: reads a flag of this thread.
    unsafe { ffi::ft_grad_enabled() }
}

#[cfg(test)]
mod tests {
    use super::enabled;

    #[test]
    fn the_mode_is_that_of_the_guards_around() {
        assert!(enabled());
        let guard = tch::no_grad_guard();
        assert!(!enabled());
        assert!(tch::with_grad(enabled));
        assert!(!enabled());
        drop(guard);
        assert!(enabled());
    }
}
