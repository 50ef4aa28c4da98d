// Vectors of 16 float lanes in GCC/Clang vector types: AVX-512, AVX2 and NEON from one source.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace moe_opt {

struct bf16 {
  uint16_t bits;
};

using f32x4 = float __attribute__((vector_size(16)));
using f32x8 = float __attribute__((vector_size(32)));
using f32x16 = float __attribute__((vector_size(64)));
using i32x16 = int32_t __attribute__((vector_size(64)));
using u32x16 = uint32_t __attribute__((vector_size(64)));
using u16x16 = uint16_t __attribute__((vector_size(32)));
using u16x32 = uint16_t __attribute__((vector_size(64)));

// What one 64-byte load of T holds: 16 floats, or 16 pairs of bfloat16.
template <typename T>
struct Packed;
template <>
struct Packed<float> {
  using type = f32x16;
  static constexpr int width = 16;
};
template <>
struct Packed<bf16> {
  using type = u32x16;
  static constexpr int width = 32;
};

template <typename V, typename T>
inline V load_as(const T* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <typename T>
inline typename Packed<T>::type load(const T* p) {
  return load_as<typename Packed<T>::type>(p);
}

// The first n < width elements, zeros behind them.
template <typename T>
inline typename Packed<T>::type load_part(const T* p, int64_t n) {
#if defined(__AVX512BW__)
  if constexpr (sizeof(T) == 2)
    return (u32x16)_mm512_maskz_loadu_epi16((__mmask32)((1ull << n) - 1), p);
  else
    return (f32x16)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
#else
  typename Packed<T>::type v = {};
  std::memcpy(&v, p, n * sizeof(T));
  return v;
#endif
}

// acc + a * b, lane by lane; a bfloat16 lane adds the products of its pair.
inline f32x16 dot(f32x16 acc, f32x16 a, f32x16 b) { return acc + a * b; }

inline f32x16 dot(f32x16 acc, u32x16 a, u32x16 b) {
#if defined(__AVX512BF16__)
  return (f32x16)_mm512_dpbf16_ps((__m512)acc, (__m512bh)a, (__m512bh)b);
#else
  const u32x16 high = u32x16{} + 0xffff0000u;
  acc += (f32x16)(a << 16) * (f32x16)(b << 16);
  return acc + (f32x16)(a & high) * (f32x16)(b & high);
#endif
}

inline f32x16 splat(float x) { return f32x16{} + x; }

inline float to_float(float x) { return x; }
inline float to_float(bf16 x) {
  const uint32_t bits = (uint32_t)x.bits << 16;
  return load_as<float>(&bits);
}

// 16 elements as floats.
inline f32x16 load16(const float* p) { return load_as<f32x16>(p); }
inline f32x16 load16(const bf16* p) {
  return (f32x16)(__builtin_convertvector(load_as<u16x16>(p), u32x16) << 16);
}

inline u16x16 round_to_bf16(f32x16 x) {
#if defined(__AVX512BF16__)
  return (u16x16)_mm512_cvtneps_pbh((__m512)x);
#else
  const u32x16 bits = (u32x16)x;
  return __builtin_convertvector((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16, u16x16);
#endif
}

inline void store16(float* p, f32x16 x) { std::memcpy(p, &x, sizeof x); }
inline void store16(bf16* p, f32x16 x) {
  const u16x16 bits = round_to_bf16(x);
  std::memcpy(p, &bits, sizeof bits);
}

inline void store1(float* p, float x) { *p = x; }
inline void store1(bf16* p, float x) { p->bits = round_to_bf16(splat(x))[0]; }

// Sum of the 16 lanes of each of four vectors, added in one fixed order.
inline f32x4 sum4(const f32x16* x) {
  f32x4 quarter[4];
  for (int i = 0; i < 4; ++i) {
    const f32x8 half = __builtin_shufflevector(x[i], x[i], 0, 1, 2, 3, 4, 5, 6, 7) +
                       __builtin_shufflevector(x[i], x[i], 8, 9, 10, 11, 12, 13, 14, 15);
    quarter[i] = __builtin_shufflevector(half, half, 0, 1, 2, 3) + __builtin_shufflevector(half, half, 4, 5, 6, 7);
  }
  const f32x4 low = __builtin_shufflevector(quarter[0], quarter[1], 0, 2, 4, 6) +
                    __builtin_shufflevector(quarter[0], quarter[1], 1, 3, 5, 7);
  const f32x4 high = __builtin_shufflevector(quarter[2], quarter[3], 0, 2, 4, 6) +
                     __builtin_shufflevector(quarter[2], quarter[3], 1, 3, 5, 7);
  return __builtin_shufflevector(low, high, 0, 2, 4, 6) + __builtin_shufflevector(low, high, 1, 3, 5, 7);
}

inline float sum(f32x16 x) {
  const f32x16 four[4] = {x, x, x, x};
  return sum4(four)[0];
}

inline f32x16 max(f32x16 a, f32x16 b) { return a > b ? a : b; }

inline f32x16 min(f32x16 a, f32x16 b) { return a < b ? a : b; }

// e^x as 2^n times a polynomial of the remainder, x held within +-87; relative error about 1e-7.
inline f32x16 exp(f32x16 x) {
  x = min(max(x, splat(-87.0f)), splat(87.0f));
  const f32x16 shift = splat(12582912.0f);  // 1.5 x 2^23: adding it rounds to an integer, which stays in the low bits
  const f32x16 shifted = x * 1.44269504f + shift;
  const f32x16 n = shifted - shift;
  const f32x16 r = x - n * 0.693359375f + n * 2.12194440e-4f;
  f32x16 p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  return (f32x16)((i32x16)p + ((i32x16)shifted << 23));
}

inline f32x16 silu(f32x16 x) { return x / (exp(-x) + 1.0f); }

}  // namespace moe_opt
