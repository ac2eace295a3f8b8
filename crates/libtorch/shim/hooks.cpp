// A Rust closure that runs after a leaf's gradient has been accumulated.
#include "shim.h"

#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

extern "C" {
typedef char *(*FtHook)(void *state, Tensor *tensor);
typedef void (*FtHookDrop)(void *state);
}

namespace {
struct RustHook : public torch::autograd::PostAccumulateGradHook {
  RustHook(uint64_t id, void *state, FtHook run, FtHookDrop drop)
      : id(id), state_(state), run_(run), drop_(drop) {}
  ~RustHook() override { drop_(state_); }
  void operator()(const torch::autograd::Variable &tensor) override {
    Tensor handle = tensor;
    if (char *message = run_(state_, &handle)) {
      std::string text(message);
      free(message);
      throw std::runtime_error(text);
    }
  }

  const uint64_t id;

 private:
  void *state_;
  FtHook run_;
  FtHookDrop drop_;
};
}  // namespace

extern "C" char *ft_hook_set(Tensor *tensor, uint64_t id, void *state, FtHook run,
                             FtHookDrop drop) {
  auto hook = std::make_unique<RustHook>(id, state, run, drop);
  FT_BEGIN
  TORCH_CHECK(tensor->requires_grad() && tensor->is_leaf(),
              "a post-accumulate-grad hook needs a leaf that requires grad");
  torch::autograd::impl::set_post_acc_grad_hooks(*tensor, std::move(hook));
  FT_END
}

// Leaves a hook of another id where it is: it has replaced the one that is meant.
extern "C" char *ft_hook_clear(Tensor *tensor, uint64_t id) {
  FT_BEGIN
  auto &slot = torch::autograd::impl::post_acc_grad_hooks(*tensor);
  const auto *hook = dynamic_cast<const RustHook *>(slot.get());
  if (hook && hook->id == id) torch::autograd::impl::set_post_acc_grad_hooks(*tensor, nullptr);
  FT_END
}
