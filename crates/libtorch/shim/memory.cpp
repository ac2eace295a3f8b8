// The caching allocator of a device, through libtorch's device-generic interface.
#include "shim.h"

#include <c10/core/CachingDeviceAllocator.h>

namespace {
at::DeviceAllocator *allocator(int device) {
  TORCH_CHECK(device >= 0, "the CPU has no caching allocator, so there is nothing to report");
  TORCH_CHECK(at::globalContext().hasCUDA(), "CUDA is not loaded");
  return at::getDeviceAllocator(at::kCUDA);
}
}  // namespace

extern "C" char *ft_memory_empty_cache(int device) {
  FT_BEGIN
  allocator(device)->emptyCache();
  FT_END
}

// allocated, allocated peak, reserved, reserved peak; out-of-memory count, retries.
extern "C" char *ft_memory_stats(int device, int64_t *values) {
  FT_BEGIN
  const auto stats = allocator(device)->getDeviceStats(static_cast<c10::DeviceIndex>(device));
  const auto &allocated = stats.allocated_bytes[0];
  const auto &reserved = stats.reserved_bytes[0];
  values[0] = allocated.current;
  values[1] = allocated.peak;
  values[2] = reserved.current;
  values[3] = reserved.peak;
  values[4] = stats.num_ooms;
  values[5] = stats.num_alloc_retries;
  FT_END
}

extern "C" char *ft_memory_reset_peak(int device) {
  FT_BEGIN
  allocator(device)->resetPeakStats(static_cast<c10::DeviceIndex>(device));
  FT_END
}
