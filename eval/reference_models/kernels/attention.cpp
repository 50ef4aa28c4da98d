// Causal attention over short sequences, forward and backward, one (sequence, head) at a time.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <cmath>
#include <vector>

#include "gemm.h"

namespace kernels {
namespace {

constexpr int64_t kRows = 64;  // queries at a time; a panel of packed keys is as wide, so the first keys are the first panels

struct Shape {
  int64_t batch, length, heads, dim, value_dim;
  float scale;
  Shape(const at::Tensor& q, const at::Tensor& v)
      : batch(q.size(0)), length(q.size(1)), heads(q.size(2)), dim(q.size(3)), value_dim(v.size(3)),
        scale(1.0f / std::sqrt((float)q.size(3))) {
    TORCH_CHECK(dim % 16 == 0 && value_dim % 16 == 0 && length % kRows == 0,
                "attention: head widths must be multiples of 16 and the length a multiple of 64");
  }
};

// Head h of sequence b, (length, dim), from a contiguous (batch, length, heads, dim) tensor.
std::vector<bf16> read_head(const at::Tensor& x, int64_t b, int64_t h) {
  const int64_t length = x.size(1), heads = x.size(2), dim = x.size(3);
  std::vector<bf16> out(length * dim);
  const bf16* from = (const bf16*)x.const_data_ptr<at::BFloat16>() + (b * length * heads + h) * dim;
  for (int64_t i = 0; i < length; ++i) std::memcpy(out.data() + i * dim, from + i * heads * dim, 2 * dim);
  return out;
}

// Rows from `first` on of that head, each multiplied with its factor.
void write_head(const float* rows, const float* factor, int64_t first, int64_t n, int64_t b, int64_t h, at::Tensor& x) {
  const int64_t length = x.size(1), heads = x.size(2), dim = x.size(3);
  bf16* to = (bf16*)x.data_ptr<at::BFloat16>() + ((b * length + first) * heads + h) * dim;
  for (int64_t i = 0; i < n; ++i)
    for (int64_t c = 0; c < dim; c += 16)
      store_bf16(to + i * heads * dim + c, _mm512_mul_ps(_mm512_set1_ps(factor[i]), _mm512_loadu_ps(rows + i * dim + c)));
}

// c (kRows, n) = a (kRows, k) @ b, where b was packed with `packed_rows` rows of which the first k are read.
void gemm_prefix(int64_t n, int64_t k, const bf16* a, int64_t lda, const std::vector<uint32_t>& b, int64_t packed_rows,
                 float* c) {
  const int64_t width = panel_vectors(n) * 16;
  for (int64_t col = 0; col < n; col += width) gemm(kRows, width, k, a, lda, b.data() + packed_rows / 2 * col, c + col, n);
}

__mmask16 up_to(int64_t count) { return count >= 16 ? 0xffff : count <= 0 ? 0 : (__mmask16)((1u << count) - 1); }

template <typename F>
void by_head(const Shape& s, const F& work) {
  at::parallel_for(0, s.batch * s.heads, 1, [&](int64_t first, int64_t last) {
    for (int64_t item = first; item < last; ++item) work(item, item / s.heads, item % s.heads);
  });
}

}  // namespace

// q and k (batch, length, heads, dim), v (batch, length, heads, value_dim), bfloat16, contiguous.
// Returns the output, like v, and each query's log of the sum of exponentials (batch, heads, length) float32.
std::tuple<at::Tensor, at::Tensor> attention_forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
  const Shape s(q, v);
  auto out = at::empty_like(v);
  auto lse = at::empty({s.batch, s.heads, s.length}, q.options().dtype(at::kFloat));
  float* sums = lse.data_ptr<float>();
  by_head(s, [&](int64_t item, int64_t b, int64_t h) {
    const auto queries = read_head(q, b, h), keys = read_head(k, b, h), values = read_head(v, b, h);
    std::vector<uint32_t> packed_keys(packed_size(s.dim, s.length)), packed_values(packed_size(s.length, s.value_dim));
    pack_transposed(keys.data(), s.dim, s.dim, s.length, packed_keys.data());
    pack(values.data(), s.value_dim, s.length, s.value_dim, packed_values.data());
    std::vector<float> scores(kRows * s.length), o(kRows * s.value_dim), inverse(kRows);
    std::vector<bf16> p(kRows * s.length);
    const __m512 scale = _mm512_set1_ps(s.scale);
    for (int64_t row = 0; row < s.length; row += kRows) {
      const int64_t n = row + kRows;
      gemm(kRows, n, s.dim, queries.data() + row * s.dim, s.dim, packed_keys.data(), scores.data(), s.length);
      for (int64_t i = 0; i < kRows; ++i) {
        const float* line = scores.data() + i * s.length;
        const int64_t seen = row + i + 1;
        __m512 most = _mm512_set1_ps(-INFINITY), sum = _mm512_setzero_ps();
        for (int64_t c = 0; c < n; c += 16)
          most = _mm512_mask_max_ps(most, up_to(seen - c), most, _mm512_loadu_ps(line + c));
        const float top = _mm512_reduce_max_ps(most) * s.scale;
        for (int64_t c = 0; c < n; c += 16) {
          const __m512 e = exp_ps(_mm512_fmsub_ps(_mm512_loadu_ps(line + c), scale, _mm512_set1_ps(top)));
          const __m512 kept = _mm512_maskz_mov_ps(up_to(seen - c), e);
          sum = _mm512_add_ps(sum, kept);
          store_bf16(p.data() + i * s.length + c, kept);
        }
        const float total = _mm512_reduce_add_ps(sum);
        inverse[i] = 1.0f / total;
        sums[item * s.length + row + i] = top + std::log(total);
      }
      gemm_prefix(s.value_dim, n, p.data(), s.length, packed_values, s.length, o.data());
      write_head(o.data(), inverse.data(), row, kRows, b, h, out);
    }
  });
  return {out, lse};
}

// Gradients of q, k and v from the gradient of the output.
std::tuple<at::Tensor, at::Tensor, at::Tensor> attention_backward(const at::Tensor& grad, const at::Tensor& q,
                                                                  const at::Tensor& k, const at::Tensor& v,
                                                                  const at::Tensor& out, const at::Tensor& lse) {
  const Shape s(q, v);
  auto dq = at::empty_like(q), dk = at::empty_like(k), dv = at::empty_like(v);
  const float* sums = lse.const_data_ptr<float>();
  by_head(s, [&](int64_t item, int64_t b, int64_t h) {
    const auto queries = read_head(q, b, h), keys = read_head(k, b, h), values = read_head(v, b, h);
    const auto grads = read_head(grad, b, h), outs = read_head(out, b, h);
    std::vector<uint32_t> keys_t(packed_size(s.dim, s.length)), values_t(packed_size(s.value_dim, s.length));
    std::vector<uint32_t> packed_keys(packed_size(s.length, s.dim));
    pack_transposed(keys.data(), s.dim, s.dim, s.length, keys_t.data());
    pack_transposed(values.data(), s.value_dim, s.value_dim, s.length, values_t.data());
    pack(keys.data(), s.dim, s.length, s.dim, packed_keys.data());
    // Transposed sums (dim, length): the gradients of keys and values get a contribution of each block of queries.
    std::vector<float> dkt(s.dim * s.length, 0.0f), dvt(s.value_dim * s.length, 0.0f);
    std::vector<float> p(kRows * s.length), dp(kRows * s.length), block(kRows * s.dim), factor(std::max(kRows, s.length));
    std::vector<bf16> ds(kRows * s.length), rows_t(std::max(s.dim, s.value_dim) * kRows);
    std::vector<uint32_t> packed(packed_size(kRows, s.length));
    const __m512 scale = _mm512_set1_ps(s.scale);
    for (int64_t row = 0; row < s.length; row += kRows) {
      const int64_t n = row + kRows;
      gemm(kRows, n, s.dim, queries.data() + row * s.dim, s.dim, keys_t.data(), p.data(), s.length);
      gemm(kRows, n, s.value_dim, grads.data() + row * s.value_dim, s.value_dim, values_t.data(), dp.data(), s.length);
      for (int64_t i = 0; i < kRows; ++i) {
        float *line = p.data() + i * s.length, *dline = dp.data() + i * s.length;
        const int64_t seen = row + i + 1;
        __m512 dot = _mm512_setzero_ps();
        for (int64_t c = 0; c < s.value_dim; c += 16)
          dot = _mm512_fmadd_ps(load_bf16(grads.data() + (row + i) * s.value_dim + c),
                                load_bf16(outs.data() + (row + i) * s.value_dim + c), dot);
        const __m512 delta = _mm512_set1_ps(_mm512_reduce_add_ps(dot));
        const __m512 minus = _mm512_set1_ps(sums[item * s.length + row + i]);
        for (int64_t c = 0; c < n; c += 16) {
          const __m512 e = exp_ps(_mm512_fmsub_ps(_mm512_loadu_ps(line + c), scale, minus));
          const __m512 prob = _mm512_maskz_mov_ps(up_to(seen - c), e);
          const __m512 d = _mm512_mul_ps(prob, _mm512_sub_ps(_mm512_loadu_ps(dline + c), delta));
          _mm512_storeu_ps(line + c, prob);
          _mm512_storeu_ps(dline + c, d);
          store_bf16(ds.data() + i * s.length + c, d);
        }
      }
      gemm_prefix(s.dim, n, ds.data(), s.length, packed_keys, s.length, block.data());
      std::fill(factor.begin(), factor.end(), s.scale);
      write_head(block.data(), factor.data(), row, kRows, b, h, dq);
      transpose(queries.data() + row * s.dim, s.dim, kRows, s.dim, rows_t.data(), kRows);
      pack(dp.data(), s.length, kRows, n, packed.data());
      gemm(s.dim, n, kRows, rows_t.data(), kRows, packed.data(), dkt.data(), s.length, true);
      transpose(grads.data() + row * s.value_dim, s.value_dim, kRows, s.value_dim, rows_t.data(), kRows);
      pack(p.data(), s.length, kRows, n, packed.data());
      gemm(s.value_dim, n, kRows, rows_t.data(), kRows, packed.data(), dvt.data(), s.length, true);
    }
    std::vector<float> back(s.length * std::max(s.dim, s.value_dim));
    for (const auto& [sum, dim, to, scaled] : {std::tuple<float*, int64_t, at::Tensor*, bool>{dkt.data(), s.dim, &dk, true},
                                               {dvt.data(), s.value_dim, &dv, false}}) {
      for (int64_t c = 0; c < dim; ++c)
        for (int64_t i = 0; i < s.length; ++i) back[i * dim + c] = sum[c * s.length + i];
      std::fill(factor.begin(), factor.end(), scaled ? s.scale : 1.0f);
      write_head(back.data(), factor.data(), 0, s.length, b, h, *to);
    }
  });
  return {dq, dk, dv};
}

}  // namespace kernels
