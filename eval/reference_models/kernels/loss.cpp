// Softmax cross-entropy over rows of logits, which are turned into their gradient in place.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <cmath>

#include "gemm.h"

namespace kernels {

// logits (rows, vocabulary) bfloat16, overwritten with (softmax - one-hot) * scale; targets (rows,) int64.
// Returns the loss of each row, float32.
at::Tensor cross_entropy_(at::Tensor logits, const at::Tensor& targets, double scale) {
  const int64_t rows = logits.size(0), vocabulary = logits.size(1);
  TORCH_CHECK(logits.is_contiguous() && vocabulary % 16 == 0, "cross_entropy_: vocabulary must be a multiple of 16");
  auto losses = at::empty({rows}, logits.options().dtype(at::kFloat));
  bf16* base = (bf16*)logits.data_ptr<at::BFloat16>();
  const int64_t* target = targets.const_data_ptr<int64_t>();
  at::parallel_for(0, rows, 16, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      bf16* line = base + i * vocabulary;
      __m512 most = _mm512_set1_ps(-INFINITY), sum = _mm512_setzero_ps();
      for (int64_t c = 0; c < vocabulary; c += 16) most = _mm512_max_ps(most, load_bf16(line + c));
      const float top = _mm512_reduce_max_ps(most);
      const __m512 shift = _mm512_set1_ps(top);
      for (int64_t c = 0; c < vocabulary; c += 16) sum = _mm512_add_ps(sum, exp_ps(_mm512_sub_ps(load_bf16(line + c), shift)));
      const float log_sum = top + std::log(_mm512_reduce_add_ps(sum));
      uint32_t bits = (uint32_t)line[target[i]] << 16;
      float chosen;
      std::memcpy(&chosen, &bits, 4);
      losses.data_ptr<float>()[i] = log_sum - chosen;
      const __m512 minus = _mm512_set1_ps(log_sum), factor = _mm512_set1_ps((float)scale);
      for (int64_t c = 0; c < vocabulary; c += 16)
        store_bf16(line + c, _mm512_mul_ps(factor, exp_ps(_mm512_sub_ps(load_bf16(line + c), minus))));
      const float corrected = (std::exp(chosen - log_sum) - 1.0f) * (float)scale;
      std::memcpy(&bits, &corrected, 4);
      line[target[i]] = (bf16)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
    }
  });
  return losses;
}

}  // namespace kernels
