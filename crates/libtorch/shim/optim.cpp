// The optimizer steps that libtorch fuses into one pass over each tensor.
#include "shim.h"

extern "C" char *ft_fused_adamw(Tensor *const *parameters, Tensor *const *gradients,
                                Tensor *const *averages, Tensor *const *squares,
                                Tensor *const *steps, int count, double lr, double beta1,
                                double beta2, double weight_decay, double eps) {
  FT_BEGIN
  c10::NoGradGuard guard;
  at::_fused_adamw_(ft_list(parameters, count), ft_list(gradients, count),
                    ft_list(averages, count), ft_list(squares, count), {}, ft_list(steps, count),
                    lr, beta1, beta2, weight_decay, eps, /*amsgrad=*/false, /*maximize=*/false);
  FT_END
}
