#include <torch/library.h>

namespace kernels {
std::tuple<at::Tensor, at::Tensor> experts_forward(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                                   const at::Tensor&, const at::Tensor&);
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> experts_backward(const at::Tensor&, const at::Tensor&,
                                                                            const at::Tensor&, const at::Tensor&,
                                                                            const at::Tensor&, const at::Tensor&,
                                                                            const at::Tensor&);
std::tuple<at::Tensor, at::Tensor> attention_forward(const at::Tensor&, const at::Tensor&, const at::Tensor&);
std::tuple<at::Tensor, at::Tensor, at::Tensor> attention_backward(const at::Tensor&, const at::Tensor&,
                                                                  const at::Tensor&, const at::Tensor&,
                                                                  const at::Tensor&, const at::Tensor&);
at::Tensor cross_entropy_(at::Tensor, const at::Tensor&, double);
}  // namespace kernels

TORCH_LIBRARY(reference_models, m) {
  m.def("experts_forward(Tensor x, Tensor weights, Tensor indices, Tensor gate_up, Tensor down) -> (Tensor, Tensor)");
  m.def(
      "experts_backward(Tensor grad, Tensor x, Tensor weights, Tensor indices, Tensor gate_up, Tensor down, Tensor saved)"
      " -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("attention_forward(Tensor q, Tensor k, Tensor v) -> (Tensor, Tensor)");
  m.def("attention_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse) -> (Tensor, Tensor, Tensor)");
  m.def("cross_entropy_(Tensor(a!) logits, Tensor targets, float scale) -> Tensor");
}

TORCH_LIBRARY_IMPL(reference_models, CPU, m) {
  m.impl("experts_forward", kernels::experts_forward);
  m.impl("experts_backward", kernels::experts_backward);
  m.impl("attention_forward", kernels::attention_forward);
  m.impl("attention_backward", kernels::attention_backward);
  m.impl("cross_entropy_", kernels::cross_entropy_);
}
