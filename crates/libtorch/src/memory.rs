//! What a device's caching allocator holds. The CPU has none, and says so.

use crate::{Result, ffi};
use tch::Device;

/// Bytes and events of a device's caching allocator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryStats {
    /// Bytes in live tensors.
    pub allocated: i64,
    /// Highest `allocated` since the start or the last [`reset_peak`].
    pub allocated_peak: i64,
    /// Bytes taken from the device.
    pub reserved: i64,
    /// Highest `reserved`.
    pub reserved_peak: i64,
    /// Allocations that failed.
    pub out_of_memory: i64,
    /// Allocations that succeeded only after the cache was emptied.
    pub retries: i64,
}

/// Gives cached, unused memory back to the device.
///
/// # Errors
/// On a CPU, or without CUDA.
pub fn empty_cache(device: Device) -> Result<()> {
    // SAFETY: no pointers go in; the shim checks the device.
    unsafe {
        let message = ffi::ft_memory_empty_cache(crate::device_index(device));
        ffi::check("empty_cache", &[], message)
    }
}

/// The allocator's present figures.
///
/// # Errors
/// On a CPU, or without CUDA.
pub fn stats(device: Device) -> Result<MemoryStats> {
    let mut values = [0_i64; 6];
    // SAFETY: the shim writes six values.
    unsafe {
        let message = ffi::ft_memory_stats(crate::device_index(device), values.as_mut_ptr());
        ffi::check("memory stats", &[], message)?;
    }
    let [
        allocated,
        allocated_peak,
        reserved,
        reserved_peak,
        out_of_memory,
        retries,
    ] = values;
    Ok(MemoryStats {
        allocated,
        allocated_peak,
        reserved,
        reserved_peak,
        out_of_memory,
        retries,
    })
}

/// Starts the peaks anew from the present figures.
///
/// # Errors
/// On a CPU, or without CUDA.
pub fn reset_peak(device: Device) -> Result<()> {
    // SAFETY: no pointers go in; the shim checks the device.
    unsafe {
        let message = ffi::ft_memory_reset_peak(crate::device_index(device));
        ffi::check("reset_peak", &[], message)
    }
}
