// The C interface between ferrotune-libtorch's Rust and libtorch's C++.
//
// Every function returns null on success and otherwise a message that the caller frees with
// ft_string_free. Tensors travel as `at::Tensor *`, the same handles that tch uses; a handle that
// is returned belongs to the caller.
#pragma once

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <cstring>
#include <string>
#include <vector>

using Tensor = at::Tensor;

inline char *ft_copy(const char *text) { return strdup(text); }

inline std::vector<Tensor> ft_list(Tensor *const *tensors, int count) {
  std::vector<Tensor> list;
  list.reserve(count);
  for (int i = 0; i < count; ++i) list.push_back(tensors[i] ? *tensors[i] : Tensor());
  return list;
}

inline at::Device ft_device(int index) {
  return index < 0 ? at::Device(at::kCPU) : at::Device(at::kCUDA, index);
}

#define FT_BEGIN try {
#define FT_END                                        \
  return nullptr;                                     \
  }                                                   \
  catch (const std::exception &error) {               \
    return ft_copy(error.what());                     \
  }                                                   \
  catch (...) {                                       \
    return ft_copy("an exception of an unknown type"); \
  }
