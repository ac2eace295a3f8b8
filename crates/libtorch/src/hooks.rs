//! Closures that run when a leaf's gradient is complete.

use crate::{Result, ffi};
use libc::{c_char, c_void};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use tch::Tensor;
use torch_sys::C_tensor;

/// Keeps a hook registered; dropping it takes the hook away.
#[derive(Debug)]
#[must_use = "the hook is removed when this is dropped"]
pub struct HookHandle {
    tensor: Tensor,
    id: u64,
}

type Closure = Box<dyn FnMut(&Tensor) -> Result<()> + Send>;

/// Runs `hook` with the leaf each time a backward has added to its `.grad`.
///
/// A tensor has one slot: a second hook replaces the first, whose handle then does nothing. The hook may run on a thread of
/// libtorch's. A leaf that several checkpointed blocks share fires once for each of them only if
/// those blocks accumulate on their own; `nn`'s checkpointing hands gradients back instead, so
/// there it fires once.
///
/// # Errors
/// A tensor that is no leaf or does not require grad.
pub fn on_grad_accumulated(
    leaf: &Tensor,
    hook: impl FnMut(&Tensor) -> Result<()> + Send + 'static,
) -> Result<HookHandle> {
    static HOOKS: AtomicU64 = AtomicU64::new(0);
    let id = HOOKS.fetch_add(1, Ordering::Relaxed);
    let mut tensor = leaf.shallow_clone();
    let closure: Mutex<Closure> = Mutex::new(Box::new(hook));
    let state: *mut c_void = Box::into_raw(Box::new(closure)).cast();
    // SAFETY: the shim owns `state` from here on, also when it fails, and frees it with
    // `drop_box` of the type it was boxed as.
    unsafe {
        let message = ffi::ft_hook_set(
            tensor.as_mut_ptr(),
            id,
            state,
            run,
            ffi::drop_box::<Mutex<Closure>>,
        );
        ffi::check("on_grad_accumulated", &[leaf], message)?;
    }
    Ok(HookHandle { tensor, id })
}

impl Drop for HookHandle {
    fn drop(&mut self) {
        // SAFETY: the handle is live. Clearing an empty slot is harmless, and an error here leaves
        // the hook in place, which is sound.
        unsafe {
            let message = ffi::ft_hook_clear(self.tensor.as_mut_ptr(), self.id);
            let _ = ffi::check("clear hook", &[], message);
        }
    }
}

unsafe extern "C" fn run(state: *mut c_void, tensor: *mut C_tensor) -> *mut c_char {
    ffi::guarded("gradient hook", || {
        // SAFETY: the state is the boxed mutex that was registered, alive as long as the hook; the
        // mutex serialises threads. The tensor handle is the shim's for the length of this call.
        let (closure, tensor) = unsafe {
            (
                &*state.cast::<Mutex<Closure>>(),
                Tensor::clone_from_ptr(tensor),
            )
        };
        let mut closure = closure
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        closure(&tensor)
    })
}
