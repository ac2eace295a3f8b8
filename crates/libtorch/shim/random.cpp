// Random generators with a state that can be saved, and the draws that take one.
#include "shim.h"

#include <ATen/CPUGeneratorImpl.h>

extern "C" char *ft_generator_new(int device, uint64_t seed, at::Generator **result) {
  FT_BEGIN
  const auto where = ft_device(device);
  auto generator = where.is_cpu() ? at::detail::createCPUGenerator(seed)
                                  : at::globalContext().defaultGenerator(where).clone();
  {
    std::lock_guard<std::mutex> lock(generator.mutex());
    generator.set_current_seed(seed);
  }
  *result = new at::Generator(std::move(generator));
  FT_END
}

extern "C" char *ft_generator_default(int device, at::Generator **result) {
  FT_BEGIN
  *result = new at::Generator(at::globalContext().defaultGenerator(ft_device(device)));
  FT_END
}

extern "C" void ft_generator_free(at::Generator *generator) { delete generator; }

extern "C" char *ft_generator_seed(at::Generator *generator, uint64_t seed) {
  FT_BEGIN
  std::lock_guard<std::mutex> lock(generator->mutex());
  generator->set_current_seed(seed);
  FT_END
}

extern "C" char *ft_generator_state(at::Generator *generator, Tensor **result) {
  FT_BEGIN
  std::lock_guard<std::mutex> lock(generator->mutex());
  *result = new Tensor(generator->get_state());
  FT_END
}

extern "C" char *ft_generator_set_state(at::Generator *generator, const Tensor *state) {
  FT_BEGIN
  std::lock_guard<std::mutex> lock(generator->mutex());
  generator->set_state(*state);
  FT_END
}

// The in-place draws take the generator's lock themselves.
extern "C" char *ft_bernoulli(Tensor *tensor, double p, const at::Generator *generator) {
  FT_BEGIN
  c10::NoGradGuard guard;
  tensor->bernoulli_(p, *generator);
  FT_END
}

extern "C" char *ft_normal(Tensor *tensor, double mean, double std,
                           const at::Generator *generator) {
  FT_BEGIN
  c10::NoGradGuard guard;
  tensor->normal_(mean, std, *generator);
  FT_END
}

extern "C" char *ft_uniform(Tensor *tensor, double from, double to,
                            const at::Generator *generator) {
  FT_BEGIN
  c10::NoGradGuard guard;
  tensor->uniform_(from, to, *generator);
  FT_END
}
