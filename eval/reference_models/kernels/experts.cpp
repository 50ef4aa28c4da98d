// All routed experts of one layer, forward and backward: SwiGLU experts over tokens grouped by expert.
// Each thread owns a range of tokens, so that sums over a token's experts need no synchronisation.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>

#include <vector>

#include "gemm.h"

namespace kernels {
namespace {

constexpr int64_t kBlock = 256;  // tokens of one expert at a time: everything of a block stays in the L2 cache

struct Shape {
  int64_t tokens, hidden, slots, experts, width;
  Shape(const at::Tensor& x, const at::Tensor& indices, const at::Tensor& down)
      : tokens(x.size(0)), hidden(x.size(1)), slots(indices.size(1)), experts(down.size(0)), width(down.size(2)) {
    TORCH_CHECK(hidden % 16 == 0 && width % 16 == 0, "experts: hidden size and expert width must be multiples of 16");
  }
};

// A thread's slots grouped by expert: slot numbers (token * slots + place) and the start of each expert's run.
struct Groups {
  std::vector<int32_t> order, start;
  Groups(const int64_t* indices, int64_t first, int64_t last, const Shape& s)
      : order((last - first) * s.slots), start(s.experts + 1, 0) {
    for (int64_t i = first * s.slots; i < last * s.slots; ++i) ++start[indices[i] + 1];
    for (int64_t e = 0; e < s.experts; ++e) start[e + 1] += start[e];
    std::vector<int32_t> next(start.begin(), start.end() - 1);
    for (int64_t i = first * s.slots; i < last * s.slots; ++i) order[next[indices[i]]++] = (int32_t)i;
  }
};

template <typename T>
std::vector<uint32_t> pack_all(const T* w, int64_t n_matrices, int64_t rows, int64_t cols, bool transposed) {
  std::vector<uint32_t> out(n_matrices * packed_size(transposed ? cols : rows, transposed ? rows : cols));
  const int64_t each = out.size() / n_matrices;
  at::parallel_for(0, n_matrices, 1, [&](int64_t first, int64_t last) {
    for (int64_t e = first; e < last; ++e) {
      if (transposed) pack_transposed(w + e * rows * cols, cols, cols, rows, out.data() + e * each);
      else pack(w + e * rows * cols, cols, rows, cols, out.data() + e * each);
    }
  });
  return out;
}

void gather(const bf16* x, const int32_t* slots, int64_t n, const Shape& s, bf16* out) {
  for (int64_t i = 0; i < n; ++i) std::memcpy(out + i * s.hidden, x + slots[i] / s.slots * s.hidden, 2 * s.hidden);
}

void scatter_add(const float* rows, const int32_t* slots, int64_t n, const Shape& s, float* out) {
  for (int64_t i = 0; i < n; ++i) {
    float* to = out + slots[i] / s.slots * s.hidden;
    for (int64_t c = 0; c < s.hidden; c += 16)
      _mm512_storeu_ps(to + c, _mm512_add_ps(_mm512_loadu_ps(to + c), _mm512_loadu_ps(rows + i * s.hidden + c)));
  }
}

template <typename F>
void by_token_range(int64_t tokens, const F& work) {
  const int64_t threads = std::max<int64_t>(1, std::min<int64_t>(at::get_num_threads(), tokens));
  at::parallel_for(0, threads, 1, [&](int64_t first, int64_t last) {
    for (int64_t t = first; t < last; ++t) work(t, tokens * t / threads, tokens * (t + 1) / threads);
  });
}

const bf16* data(const at::Tensor& x) { return (const bf16*)x.const_data_ptr<at::BFloat16>(); }

}  // namespace

// x (tokens, hidden) bfloat16, weights and indices (tokens, slots), gate_up (experts, 2 width, hidden) and
// down (experts, hidden, width) float32. Returns the sum over slots (tokens, hidden) float32 and, for the backward pass,
// gate and up of every slot (tokens * slots, 2 width) bfloat16.
std::tuple<at::Tensor, at::Tensor> experts_forward(const at::Tensor& x, const at::Tensor& weights,
                                                   const at::Tensor& indices, const at::Tensor& gate_up,
                                                   const at::Tensor& down) {
  const Shape s(x, indices, down);
  auto out = at::zeros({s.tokens, s.hidden}, weights.options());
  auto saved = at::empty({s.tokens * s.slots, 2 * s.width}, x.options());
  const auto packed_gu = pack_all(gate_up.const_data_ptr<float>(), s.experts, 2 * s.width, s.hidden, true);
  const auto packed_down = pack_all(down.const_data_ptr<float>(), s.experts, s.hidden, s.width, true);
  const int64_t gu_size = packed_size(s.hidden, 2 * s.width), down_size = packed_size(s.width, s.hidden);
  const int64_t* index = indices.const_data_ptr<int64_t>();
  const float* weight = weights.const_data_ptr<float>();
  bf16* keep = (bf16*)saved.data_ptr<at::BFloat16>();
  by_token_range(s.tokens, [&](int64_t, int64_t first, int64_t last) {
    const Groups groups(index, first, last, s);
    std::vector<bf16> rows(kBlock * s.hidden), act(kBlock * s.width);
    std::vector<float> h(kBlock * 2 * s.width), y(kBlock * s.hidden);
    for (int64_t e = 0; e < s.experts; ++e)
      for (int64_t at = groups.start[e]; at < groups.start[e + 1]; at += kBlock) {
        const int64_t n = std::min<int64_t>(kBlock, groups.start[e + 1] - at);
        const int32_t* slots = groups.order.data() + at;
        gather(data(x), slots, n, s, rows.data());
        gemm(n, 2 * s.width, s.hidden, rows.data(), s.hidden, packed_gu.data() + e * gu_size, h.data(), 2 * s.width);
        for (int64_t i = 0; i < n; ++i) {
          const __m512 w = _mm512_set1_ps(weight[slots[i]]);
          const float* gate = h.data() + i * 2 * s.width;
          bf16* kept = keep + (int64_t)slots[i] * 2 * s.width;
          for (int64_t c = 0; c < s.width; c += 16) {
            const __m512 g = _mm512_loadu_ps(gate + c), u = _mm512_loadu_ps(gate + s.width + c);
            store_bf16(kept + c, g);
            store_bf16(kept + s.width + c, u);
            store_bf16(act.data() + i * s.width + c,
                       _mm512_mul_ps(w, _mm512_mul_ps(u, _mm512_mul_ps(g, sigmoid_ps(g)))));
          }
        }
        gemm(n, s.hidden, s.width, act.data(), s.width, packed_down.data() + e * down_size, y.data(), s.hidden);
        scatter_add(y.data(), slots, n, s, out.data_ptr<float>());
      }
  });
  return {out, saved};
}

// Gradients with respect to x (float32), weights, gate_up and down; grad (tokens, hidden) bfloat16.
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> experts_backward(
    const at::Tensor& grad, const at::Tensor& x, const at::Tensor& weights, const at::Tensor& indices,
    const at::Tensor& gate_up, const at::Tensor& down, const at::Tensor& saved) {
  const Shape s(x, indices, down);
  const int64_t two = 2 * s.width;
  auto dx = at::zeros({s.tokens, s.hidden}, weights.options());
  auto dweights = at::empty_like(weights);
  const int64_t threads = std::max<int64_t>(1, std::min<int64_t>(at::get_num_threads(), s.tokens));
  auto dgu = at::zeros({threads, s.experts, two, s.hidden}, weights.options());
  auto ddown = at::zeros({threads, s.experts, s.hidden, s.width}, weights.options());
  const auto packed_gu = pack_all(gate_up.const_data_ptr<float>(), s.experts, two, s.hidden, false);
  const auto packed_down = pack_all(down.const_data_ptr<float>(), s.experts, s.hidden, s.width, false);
  const int64_t gu_size = packed_size(two, s.hidden), down_size = packed_size(s.hidden, s.width);
  const int64_t* index = indices.const_data_ptr<int64_t>();
  const float* weight = weights.const_data_ptr<float>();
  by_token_range(s.tokens, [&](int64_t thread, int64_t first, int64_t last) {
    const Groups groups(index, first, last, s);
    std::vector<bf16> rows(kBlock * s.hidden), dy(kBlock * s.hidden), act(kBlock * s.width), dh(kBlock * two);
    std::vector<bf16> transposed(kBlock * two);
    std::vector<uint32_t> packed(packed_size(kBlock, s.hidden));
    std::vector<float> da(kBlock * s.width), dxs(kBlock * s.hidden), ddown_t(s.width * s.hidden);
    for (int64_t e = 0; e < s.experts; ++e) {
      if (groups.start[e] == groups.start[e + 1]) continue;
      float* dgu_e = dgu.data_ptr<float>() + (thread * s.experts + e) * two * s.hidden;
      float* ddown_e = ddown.data_ptr<float>() + (thread * s.experts + e) * s.hidden * s.width;
      bool add = false;
      for (int64_t at = groups.start[e]; at < groups.start[e + 1]; at += kBlock, add = true) {
        const int64_t n = std::min<int64_t>(kBlock, groups.start[e + 1] - at);
        const int32_t* slots = groups.order.data() + at;
        gather(data(grad), slots, n, s, dy.data());
        gather(data(x), slots, n, s, rows.data());
        gemm(n, s.width, s.hidden, dy.data(), s.hidden, packed_down.data() + e * down_size, da.data(), s.width);
        for (int64_t i = 0; i < n; ++i) {
          const __m512 one = _mm512_set1_ps(1.0f), w = _mm512_set1_ps(weight[slots[i]]);
          const bf16* gate = data(saved) + (int64_t)slots[i] * two;
          __m512 dw = _mm512_setzero_ps();
          for (int64_t c = 0; c < s.width; c += 16) {
            const __m512 g = load_bf16(gate + c), u = load_bf16(gate + s.width + c);
            const __m512 sig = sigmoid_ps(g), silu = _mm512_mul_ps(g, sig), a = _mm512_mul_ps(silu, u);
            __m512 d = _mm512_loadu_ps(da.data() + i * s.width + c);
            dw = _mm512_fmadd_ps(d, a, dw);
            d = _mm512_mul_ps(d, w);
            const __m512 slope = _mm512_mul_ps(sig, _mm512_fmadd_ps(g, _mm512_sub_ps(one, sig), one));
            store_bf16(act.data() + i * s.width + c, _mm512_mul_ps(a, w));
            store_bf16(dh.data() + i * two + c, _mm512_mul_ps(_mm512_mul_ps(d, u), slope));
            store_bf16(dh.data() + i * two + s.width + c, _mm512_mul_ps(d, silu));
          }
          dweights.data_ptr<float>()[slots[i]] = _mm512_reduce_add_ps(dw);
        }
        gemm(n, s.hidden, two, dh.data(), two, packed_gu.data() + e * gu_size, dxs.data(), s.hidden);
        scatter_add(dxs.data(), slots, n, s, dx.data_ptr<float>());
        transpose(dh.data(), two, n, two, transposed.data(), kBlock);
        pack(rows.data(), s.hidden, n, s.hidden, packed.data());
        gemm(two, s.hidden, n, transposed.data(), kBlock, packed.data(), dgu_e, s.hidden, add);
        transpose(act.data(), s.width, n, s.width, transposed.data(), kBlock);
        pack(dy.data(), s.hidden, n, s.hidden, packed.data());
        gemm(s.width, s.hidden, n, transposed.data(), kBlock, packed.data(), ddown_t.data(), s.hidden, add);
      }
      for (int64_t c = 0; c < s.width; ++c)
        for (int64_t r = 0; r < s.hidden; ++r) ddown_e[r * s.width + c] = ddown_t[c * s.hidden + r];
    }
  });
  if (threads == 1) return {dx, dweights, dgu[0], ddown[0]};
  return {dx, dweights, dgu.sum(0), ddown.sum(0)};
}

}  // namespace kernels
