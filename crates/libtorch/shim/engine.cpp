// Running the autograd engine with gradients of one's own, and the `.grad` slot.
#include "shim.h"

#include <torch/csrc/autograd/autograd.h>

extern "C" void ft_string_free(char *text) { free(text); }
extern "C" char *ft_string_copy(const char *text, size_t length) {
  char *copy = static_cast<char *>(malloc(length + 1));
  if (!copy) return nullptr;
  memcpy(copy, text, length);
  copy[length] = 0;
  return copy;
}
extern "C" void ft_tensor_free(Tensor *tensor) { delete tensor; }
extern "C" const void *ft_tensor_identity(const Tensor *tensor) {
  return tensor->unsafeGetTensorImpl();
}

extern "C" bool ft_grad_enabled() { return at::GradMode::is_enabled(); }

extern "C" char *ft_backward(Tensor *const *roots, Tensor *const *gradients, int count,
                             bool retain_graph) {
  FT_BEGIN
  torch::autograd::backward(ft_list(roots, count), ft_list(gradients, count), retain_graph);
  FT_END
}

extern "C" char *ft_grad(Tensor *const *roots, Tensor *const *gradients, int root_count,
                         Tensor *const *inputs, int input_count, bool retain_graph,
                         bool create_graph, Tensor **results) {
  FT_BEGIN
  auto found = torch::autograd::grad(ft_list(roots, root_count), ft_list(inputs, input_count),
                                     ft_list(gradients, root_count), retain_graph, create_graph,
                                     /*allow_unused=*/true);
  for (int i = 0; i < input_count; ++i) {
    results[i] = found[i].defined() ? new Tensor(std::move(found[i])) : nullptr;
  }
  FT_END
}

extern "C" char *ft_set_grad(Tensor *tensor, const Tensor *gradient) {
  FT_BEGIN
  tensor->mutable_grad() = gradient ? *gradient : Tensor();
  FT_END
}
