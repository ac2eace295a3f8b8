// Autograd functions whose backward is a Rust closure: one node in libtorch's graph.
#include "shim.h"

#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>

#include <mutex>

using torch::autograd::Node;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

extern "C" {
// Runs the Rust backward. Returns null, or an error message that ft_string_free frees.
// `gradients` and `results` hold null for an undefined tensor; non-null results are owned here.
typedef char *(*FtBackward)(void *state, Tensor *const *saved, int saved_count,
                            Tensor *const *gradients, int gradient_count, const bool *needed,
                            Tensor **results, int result_count);
typedef void (*FtDrop)(void *state);
}

namespace {

struct RustNode : public Node {
  RustNode(std::string name, void *state, FtBackward run, FtDrop drop)
      : name_(std::move(name)), state_(state), run_(run), drop_(drop) {}

  ~RustNode() override { release(); }

  std::string name() const override { return name_; }

  void release_variables() override {
    std::lock_guard<std::mutex> lock(mutex_);
    release();
  }

  variable_list apply(variable_list &&gradients) override {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!state_) throw std::runtime_error(torch::autograd::ERR_BACKWARD_TWICE);
    std::vector<Tensor> saved;
    saved.reserve(saved_.size());
    for (auto &variable : saved_) saved.push_back(variable.unpack(getptr()));

    std::vector<Tensor *> saved_handles, gradient_handles;
    for (auto &tensor : saved) saved_handles.push_back(&tensor);
    for (auto &tensor : gradients) {
      gradient_handles.push_back(tensor.defined() ? &tensor : nullptr);
    }
    const size_t count = num_outputs();
    std::vector<Tensor *> results(count, nullptr);
    std::unique_ptr<bool[]> needed(new bool[count]);
    for (size_t i = 0; i < count; ++i) needed[i] = task_should_compute_output(i);

    char *message = run_(state_, saved_handles.data(), static_cast<int>(saved_handles.size()),
                         gradient_handles.data(), static_cast<int>(gradient_handles.size()),
                         needed.get(), results.data(), static_cast<int>(count));
    variable_list out;
    out.reserve(count);
    for (Tensor *result : results) {
      out.push_back(result ? std::move(*result) : Tensor());
      delete result;
    }
    if (message) {
      std::string text(message);
      free(message);
      throw std::runtime_error(text);
    }
    return out;
  }

  void save(SavedVariable variable) { saved_.push_back(std::move(variable)); }

 private:
  void release() {
    saved_.clear();
    if (state_) drop_(state_);
    state_ = nullptr;
  }

  std::string name_;
  void *state_;
  FtBackward run_;
  FtDrop drop_;
  std::vector<SavedVariable> saved_;
};

int index_of(const std::vector<Tensor> &list, const Tensor &tensor) {
  for (size_t i = 0; i < list.size(); ++i) {
    if (list[i].unsafeGetTensorImpl() == tensor.unsafeGetTensorImpl()) return static_cast<int>(i);
  }
  return -1;
}

}  // namespace

extern "C" char *ft_autograd_attach(const char *name, Tensor *const *inputs, int input_count,
                                    Tensor *const *outputs, int output_count,
                                    Tensor *const *saved, int saved_count, void *state,
                                    FtBackward run, FtDrop drop, Tensor **results) {
  // The node owns `state` from here on, so that an exception frees it too.
  std::shared_ptr<RustNode> node;
  try {
    node = std::shared_ptr<RustNode>(new RustNode(name, state, run, drop),
                                     torch::autograd::deleteNode);
  } catch (const std::exception &error) {
    drop(state);
    return ft_copy(error.what());
  }
  FT_BEGIN
  const auto in = ft_list(inputs, input_count);
  const auto plain = ft_list(outputs, output_count);
  std::vector<Tensor> out;
  out.reserve(plain.size());
  // An output that aliases an input, or is a view, would drag that tensor's history along.
  for (const auto &tensor : plain) {
    const bool alias = tensor.is_view() || tensor.requires_grad() || index_of(in, tensor) >= 0;
    out.push_back(alias ? tensor.variable_data() : tensor);
  }
  if (torch::autograd::compute_requires_grad(in)) {
    node->set_next_edges(torch::autograd::collect_next_edges(in));
    for (auto &tensor : out) {
      if (torch::autograd::isDifferentiableType(tensor.scalar_type())) {
        torch::autograd::set_history(tensor, node);
      } else {
        node->add_input_metadata(Node::undefined_input());
      }
    }
    for (int i = 0; i < saved_count; ++i) {
      const int output = index_of(plain, *saved[i]);
      node->save(output >= 0 ? SavedVariable(out[output], true) : SavedVariable(*saved[i], false));
    }
  }
  for (size_t i = 0; i < out.size(); ++i) results[i] = new Tensor(std::move(out[i]));
  FT_END
}
