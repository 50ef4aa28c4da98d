// The small operations between the products: normalisation, SiLU, rotary embedding with the write to the cache.
#include <cmath>

#include "kernels.h"
#include "product.h"

namespace moe_opt {

constexpr int64_t kSerialElements = 1 << 15;

// Root mean square norm of n elements; x may be given as a sum with `residual`, which is replaced by it.
template <typename T>
inline void rms_norm_row(const T* x, T* residual, const T* weight, T* out, int64_t n, float epsilon) {
  f32x16 squares = {};
  float rest = 0;
  int64_t j = 0;
  if (residual) {
    for (; j + 16 <= n; j += 16) {
      const f32x16 v = load16(x + j) + load16(residual + j);
      squares += v * v;
    }
    for (; j < n; ++j) {
      const float v = to_float(x[j]) + to_float(residual[j]);
      rest += v * v;
    }
  } else {
    for (; j + 16 <= n; j += 16) {
      const f32x16 v = load16(x + j);
      squares += v * v;
    }
    for (; j < n; ++j) rest += to_float(x[j]) * to_float(x[j]);
  }
  const float inverse = 1.0f / std::sqrt((sum(squares) + rest) / n + epsilon);
  for (j = 0; j + 16 <= n; j += 16) {
    f32x16 v = load16(x + j);
    if (residual) {
      v += load16(residual + j);
      store16(residual + j, v);
    }
    store16(out + j, v * inverse * load16(weight + j));
  }
  for (; j < n; ++j) {
    float v = to_float(x[j]);
    if (residual) {
      v += to_float(residual[j]);
      store1(residual + j, v);
    }
    store1(out + j, v * inverse * to_float(weight[j]));
  }
}

template <typename T>
void rms_norm(const T* x, int64_t x_row, T* residual, const T* weight, T* out, int64_t m, int64_t n, float epsilon) {
#pragma omp parallel for schedule(static) if (m * n > kSerialElements)
  for (int64_t i = 0; i < m; ++i)
    rms_norm_row(x + i * x_row, residual ? residual + i * n : nullptr, weight, out + i * n, n, epsilon);
}

template <typename T>
void silu_and_mul(const T* x, T* out, int64_t m, int64_t n) {
#pragma omp parallel for schedule(static) if (m * n > kSerialElements)
  for (int64_t i = 0; i < m; ++i) {
    const T *gate = x + i * 2 * n, *up = gate + n;
    int64_t j = 0;
    for (; j + 16 <= n; j += 16) store16(out + i * n + j, silu(load16(gate + j)) * load16(up + j));
    for (; j < n; ++j) store1(out + i * n + j, silu(splat(to_float(gate[j])))[0] * to_float(up[j]));
  }
}

// Rotates n elements; `angles` holds n/2 cosines, then n/2 sines. Pairs are (i, i + n/2), or neighbours if interleaved.
template <typename T>
inline void rotate(const T* x, T* out, const float* angles, int64_t n, bool interleaved) {
  const int64_t half = n / 2, step = interleaved ? 2 : 1, distance = interleaved ? 1 : half;
  for (int64_t i = 0; i < half; ++i) {
    const float a = to_float(x[i * step]), b = to_float(x[i * step + distance]);
    store1(out + i * step, a * angles[i] - b * angles[half + i]);
    store1(out + i * step + distance, b * angles[i] + a * angles[half + i]);
  }
}

// Rotary part of q into q_out, and the token's latent and rotated key into the cache.
template <typename T>
void mla_rope(const T* q, int64_t q_row, int64_t q_head, T* q_out, const T* latent, int64_t latent_row, const T* weight,
              float epsilon, const float* angles, const int64_t* positions, T* cache, const int64_t* cache_slots,
              int64_t tokens, int64_t heads, int64_t rank, int64_t rope, bool interleaved) {
  const int64_t width = rank + rope;
#pragma omp parallel for schedule(static) if (tokens * heads * rope > kSerialElements)
  for (int64_t t = 0; t < tokens; ++t) {
    const float* angle = angles + positions[t] * rope;
    for (int64_t h = 0; h < heads; ++h)
      rotate(q + t * q_row + h * q_head, q_out + (t * heads + h) * width + rank, angle, rope, interleaved);
    T* to = cache + cache_slots[t] * width;
    rms_norm_row<T>(latent + t * latent_row, nullptr, weight, to, rank, epsilon);
    rotate(latent + t * latent_row + rank, to + rank, angle, rope, interleaved);
  }
}

}  // namespace moe_opt

using namespace moe_opt;

extern "C" void moe_opt_rms_norm(int is_bf16, const void* x, int64_t x_row, void* residual, const void* weight,
                                 void* out, int64_t m, int64_t n, float epsilon) {
  if (is_bf16)
    rms_norm((const bf16*)x, x_row, (bf16*)residual, (const bf16*)weight, (bf16*)out, m, n, epsilon);
  else
    rms_norm((const float*)x, x_row, (float*)residual, (const float*)weight, (float*)out, m, n, epsilon);
}

extern "C" void moe_opt_silu_and_mul(int is_bf16, const void* x, void* out, int64_t m, int64_t n) {
  if (is_bf16)
    silu_and_mul((const bf16*)x, (bf16*)out, m, n);
  else
    silu_and_mul((const float*)x, (float*)out, m, n);
}

extern "C" void moe_opt_mla_rope(int is_bf16, const void* q, int64_t q_row, int64_t q_head, void* q_out,
                                 const void* latent, int64_t latent_row, const void* weight, float epsilon,
                                 const float* angles, const int64_t* positions, void* cache,
                                 const int64_t* cache_slots, int64_t tokens, int64_t heads, int64_t rank, int64_t rope,
                                 int interleaved) {
  if (is_bf16)
    mla_rope((const bf16*)q, q_row, q_head, (bf16*)q_out, (const bf16*)latent, latent_row, (const bf16*)weight, epsilon,
             angles, positions, (bf16*)cache, cache_slots, tokens, heads, rank, rope, interleaved);
  else
    mla_rope((const float*)q, q_row, q_head, (float*)q_out, (const float*)latent, latent_row, (const float*)weight,
             epsilon, angles, positions, (float*)cache, cache_slots, tokens, heads, rank, rope, interleaved);
}
