//! CUDA turned on at run time, by loading `libtorch_cuda.so` where it lies.
//!
//! The linker drops libtorch_cuda from every binary, even with the full layout, so without this
//! libtorch says that there is no CUDA. It must come before the first question about CUDA: libtorch
//! keeps the first answer for the life of the process.

use crate::{Error, Result};
use std::ffi::{CStr, CString};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use tch::{Cuda, Device};

/// Loads CUDA once, and says whether a device can be used.
///
/// `libtorch_cuda.so` is looked for beside the libtorch that the binary was built with, or in the
/// folder that the variable `FERROTUNE_CUDA_LIB` names (the `torch/lib` of a Python environment
/// with the same version, say).
///
/// # Errors
/// The library is there but does not load; the message is the loader's.
pub fn enable() -> Result<bool> {
    static LOADED: OnceLock<std::result::Result<(), String>> = OnceLock::new();
    match LOADED.get_or_init(load) {
        Ok(()) => Ok(Cuda::is_available()),
        Err(message) => Err(Error::Cuda(message.clone())),
    }
}

/// The first CUDA device if there is one, otherwise the CPU.
///
/// # Errors
/// As [`enable`].
pub fn best_device() -> Result<Device> {
    Ok(if enable()? {
        Device::Cuda(0)
    } else {
        Device::Cpu
    })
}

fn load() -> std::result::Result<(), String> {
    let folder = std::env::var_os("FERROTUNE_CUDA_LIB").map_or_else(
        || PathBuf::from(env!("FERROTUNE_LIBTORCH_LIB")),
        PathBuf::from,
    );
    let library = folder.join("libtorch_cuda.so");
    if library.exists() {
        open(&library)
    } else {
        Ok(())
    }
}

fn open(library: &Path) -> std::result::Result<(), String> {
    let name = CString::new(library.as_os_str().as_encoded_bytes()).map_err(|e| e.to_string())?;
    // SAFETY: loading runs the library's initialisers, which register CUDA with libtorch; that is
    // the purpose. The handle is kept for the life of the process. dlerror is read at once, on the
    // same thread.
    unsafe {
        if !libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL).is_null() {
            return Ok(());
        }
        let message = libc::dlerror();
        if message.is_null() {
            return Err(format!("{} did not load", library.display()));
        }
        Err(CStr::from_ptr(message).to_string_lossy().into_owned())
    }
}
