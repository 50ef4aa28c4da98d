// bfloat16 matrix products for small dense blocks: AVX-512 BF16 tiles over packed panels, float32 accumulation.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace kernels {

using bf16 = uint16_t;

inline __m512 load_bf16(const bf16* p) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
}

inline __m256i to_bf16(__m512 x) { return (__m256i)_mm512_cvtneps_pbh(x); }

inline void store_bf16(bf16* p, __m512 x) { _mm256_storeu_si256((__m256i*)p, to_bf16(x)); }

inline __m256i load_as_bf16(const bf16* p) { return _mm256_loadu_si256((const __m256i*)p); }
inline __m256i load_as_bf16(const float* p) { return to_bf16(_mm512_loadu_ps(p)); }

// e^x by 2^n times a polynomial of the remainder; relative error about 1e-7, 0 far below, no overflow handling above 88.
inline __m512 exp_ps(__m512 x) {
  x = _mm512_max_ps(x, _mm512_set1_ps(-87.0f));
  const __m512 t = _mm512_mul_ps(x, _mm512_set1_ps(1.44269504f));
  const __m512 n = _mm512_roundscale_ps(t, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 p = _mm512_set1_ps(1.9875691500e-4f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
  p = _mm512_fmadd_ps(_mm512_mul_ps(p, r), r, _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
  return _mm512_scalef_ps(p, n);
}

inline __m512 sigmoid_ps(__m512 x) {
  const __m512 one = _mm512_set1_ps(1.0f);
  return _mm512_div_ps(one, _mm512_add_ps(one, exp_ps(_mm512_sub_ps(_mm512_setzero_ps(), x))));
}

// Vectors of 16 columns in one panel of a matrix with n columns (a multiple of 16).
inline int panel_vectors(int64_t n) { return n % 64 == 0 ? 4 : n % 48 == 0 ? 3 : n % 32 == 0 ? 2 : 1; }

// Packed size, in 32-bit pairs, of a (k, n) operand.
inline int64_t packed_size(int64_t k, int64_t n) { return (k + 1) / 2 * n; }

// Packs b (k, n), row-major: panel by panel, each [k/2][columns] of vertical pairs. An odd last row is paired with 0.
template <typename T>
void pack(const T* b, int64_t ld, int64_t k, int64_t n, uint32_t* out) {
  const int64_t width = panel_vectors(n) * 16;
  for (int64_t start = 0; start < n; start += width)
    for (int64_t row = 0; row < k; row += 2)
      for (int64_t col = start; col < start + width; col += 16, out += 16) {
        const __m512i low = _mm512_cvtepu16_epi32(load_as_bf16(b + row * ld + col));
        const __m512i high =
            row + 1 < k ? _mm512_cvtepu16_epi32(load_as_bf16(b + (row + 1) * ld + col)) : _mm512_setzero_si512();
        _mm512_storeu_si512(out, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
      }
}

// In-register transpose of a 16 x 16 block of 32-bit values.
inline void transpose16(__m512i r[16]) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 2; ++j) {
      r[i + 2 * j] = _mm512_unpacklo_epi64(t[i + j], t[i + 2 + j]);
      r[i + 2 * j + 1] = _mm512_unpackhi_epi64(t[i + j], t[i + 2 + j]);
    }
  for (int i = 0; i < 16; i += 8)
    for (int j = 0; j < 4; ++j) {
      t[i + j] = _mm512_shuffle_i32x4(r[i + j], r[i + 4 + j], 0x88);
      t[i + 4 + j] = _mm512_shuffle_i32x4(r[i + j], r[i + 4 + j], 0xdd);
    }
  for (int j = 0; j < 8; ++j) {
    r[j] = _mm512_shuffle_i32x4(t[j], t[8 + j], 0x88);
    r[8 + j] = _mm512_shuffle_i32x4(t[j], t[8 + j], 0xdd);
  }
}

// Transposes b (k, n) of bfloat16 into (n, ld_out), rows padded with zeros to an even k. ld_out is a multiple of 32, >= k.
inline void transpose(const bf16* b, int64_t ld, int64_t k, int64_t n, bf16* out, int64_t ld_out) {
  for (int64_t row = 0; row < k; row += 32)
    for (int64_t col = 0; col < n; col += 16) {
      __m512i block[16];
      for (int i = 0; i < 16; ++i) {
        const int64_t r = row + 2 * i;
        const __m512i low = r < k ? _mm512_cvtepu16_epi32(load_as_bf16(b + r * ld + col)) : _mm512_setzero_si512();
        const __m512i high =
            r + 1 < k ? _mm512_cvtepu16_epi32(load_as_bf16(b + (r + 1) * ld + col)) : _mm512_setzero_si512();
        block[i] = _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
      }
      transpose16(block);
      for (int i = 0; i < 16; ++i) _mm512_storeu_si512(out + (col + i) * ld_out + row, block[i]);
    }
}

// Packs the transpose of w (n, k), row-major: what x @ w.T needs.
template <typename T>
void pack_transposed(const T* w, int64_t ld, int64_t k, int64_t n, uint32_t* out) {
  const int64_t width = panel_vectors(n) * 16;
  for (int64_t start = 0; start < n; start += width)
    for (int64_t pair = 0; pair < k / 2; ++pair)
      for (int64_t col = start; col < start + width; ++col, ++out) {
        if constexpr (sizeof(T) == 2) {
          std::memcpy(out, w + col * ld + 2 * pair, 4);
        } else {
          const __m128 two = _mm_castpd_ps(_mm_load_sd((const double*)(w + col * ld + 2 * pair)));
          *out = (uint32_t)_mm_cvtsi128_si32((__m128i)_mm_cvtneps_pbh(two));
        }
      }
}

template <int M, int V>
inline void tile(int64_t pairs, const bf16* a, int64_t lda, const uint32_t* b, float* c, int64_t ldc, bool add) {
  __m512 acc[M][V];
  for (int m = 0; m < M; ++m)
    for (int v = 0; v < V; ++v) acc[m][v] = add ? _mm512_loadu_ps(c + m * ldc + v * 16) : _mm512_setzero_ps();
  for (int64_t k = 0; k < pairs; ++k, b += V * 16) {
    __m512bh columns[V];
    for (int v = 0; v < V; ++v) columns[v] = (__m512bh)_mm512_loadu_si512(b + v * 16);
    for (int m = 0; m < M; ++m) {
      int pair;
      std::memcpy(&pair, a + m * lda + 2 * k, 4);
      const __m512bh row = (__m512bh)_mm512_set1_epi32(pair);
      for (int v = 0; v < V; ++v) acc[m][v] = _mm512_dpbf16_ps(acc[m][v], row, columns[v]);
    }
  }
  for (int m = 0; m < M; ++m)
    for (int v = 0; v < V; ++v) _mm512_storeu_ps(c + m * ldc + v * 16, acc[m][v]);
}

template <int M, int V>
inline void rows(int64_t m, int64_t pairs, const bf16* a, int64_t lda, const uint32_t* b, float* c, int64_t ldc, bool add) {
  for (; m >= M; m -= M, a += M * lda, c += M * ldc) tile<M, V>(pairs, a, lda, b, c, ldc, add);
  if constexpr (M > 1)
    if (m > 0) rows<(M + 1) / 2, V>(m, pairs, a, lda, b, c, ldc, add);
}

// c (m, n) = or += a (m, k) @ b, with b packed; k counts to the next even number, where a must be readable.
inline void gemm(int64_t m, int64_t n, int64_t k, const bf16* a, int64_t lda, const uint32_t* b, float* c, int64_t ldc,
                 bool add = false) {
  const int vectors = panel_vectors(n);
  const int64_t pairs = (k + 1) / 2, width = vectors * 16;
  for (int64_t col = 0; col < n; col += width, b += pairs * width, c += width) {
    switch (vectors) {
      case 4: rows<6, 4>(m, pairs, a, lda, b, c, ldc, add); break;
      case 3: rows<8, 3>(m, pairs, a, lda, b, c, ldc, add); break;
      case 2: rows<12, 2>(m, pairs, a, lda, b, c, ldc, add); break;
      default: rows<16, 1>(m, pairs, a, lda, b, c, ldc, add); break;
    }
  }
}

}  // namespace kernels
