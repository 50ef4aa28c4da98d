// Dense products a @ b.T of rows that are contiguous along k, wherever the rows lie.
//
// Weights stay as the checkpoint has them: (out, in), each output row contiguous. Every output is one accumulator that
// runs along k in the same order whatever the number of rows, so a token's result does not depend on its batch.
#pragma once

#include <algorithm>

#include "simd.h"

namespace moe_opt {

constexpr int kTileRows = 6;
constexpr int kBlockColumns = 128;
constexpr int64_t kAhead = 24;  // of 64-byte lines

using Block = float[kTileRows][kBlockColumns];

// out[m][n] = a[m] . b[n]. From two rows on, a tile computes too long for the processor to look ahead far enough by
// itself: the columns are prefetched kAhead lines early, at the end of a tile those of the next one.
template <typename T, int M, int N>
inline void tile(const T* const* a, const T* const* b, const T* const* next, int64_t k, float* out) {
  constexpr int width = Packed<T>::width;
  f32x16 acc[M][N] = {};
  const T* rows[M];
  const T* columns[N];
  const T* ahead[N];
  for (int m = 0; m < M; ++m) rows[m] = a[m];
  for (int n = 0; n < N; ++n) columns[n] = b[n];
  const auto steps = [&](int64_t i, int64_t end) __attribute__((always_inline)) {
    for (; i + width <= end; i += width) {
      typename Packed<T>::type column[N];
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) {
        column[n] = load(columns[n] + i);
        if (M > 1) __builtin_prefetch(ahead[n] + i);
      }
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {
        const auto row = load(rows[m] + i);
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) acc[m][n] = dot(acc[m][n], row, column[n]);
      }
    }
    return i;
  };
  const int64_t distance = M == 1 ? 0 : std::min(k, kAhead * width);
  for (int n = 0; n < N; ++n) ahead[n] = columns[n] + distance;
  int64_t i = steps(0, k - distance);
  for (int n = 0; n < N; ++n) ahead[n] = next[n] + distance - k;
  i = steps(i, k);
  if (i < k)
    for (int m = 0; m < M; ++m) {
      const auto row = load_part(rows[m] + i, k - i);
      for (int n = 0; n < N; ++n) acc[m][n] = dot(acc[m][n], row, load_part(columns[n] + i, k - i));
    }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
    for (int n = 0; n < N; n += 4) {
      const f32x4 sums = sum4(&acc[m][n]);
      std::memcpy(out + m * kBlockColumns + n, &sums, sizeof sums);
    }
}

template <typename T, int M, typename B>
inline void tile_row(const T* const* a, B b, int64_t n, int64_t k, float* out) {
  constexpr int width = 4;  // wider tiles read more streams at a time, which the processor follows less well
  const T* columns[2][width];
  for (int i = 0; i < width; ++i) columns[0][i] = b(std::min<int64_t>(i, n - 1));
  for (int64_t j = 0, t = 0; j < n; j += width, ++t) {
    for (int i = 0; i < width; ++i) columns[(t + 1) % 2][i] = b(std::min(j + width + i, n - 1));
    tile<T, M, width>(a, columns[t % 2], columns[(t + 1) % 2], k, out + j);
  }
}

// For every row tile of a (m rows) and n <= kBlockColumns rows of b: epilogue(first row, rows, values).
template <typename T, typename A, typename B, typename Epilogue>
void product(int64_t m, int64_t n, int64_t k, A a, B b, Epilogue epilogue) {
  alignas(64) Block values;
  const int64_t tiles = (m + kTileRows - 1) / kTileRows;
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t first = t * m / tiles, rows = (t + 1) * m / tiles - first;
    const T* pointers[kTileRows];
    for (int64_t i = 0; i < rows; ++i) pointers[i] = a(first + i);
    switch (rows) {
      case 1: tile_row<T, 1>(pointers, b, n, k, values[0]); break;
      case 2: tile_row<T, 2>(pointers, b, n, k, values[0]); break;
      case 3: tile_row<T, 3>(pointers, b, n, k, values[0]); break;
      case 4: tile_row<T, 4>(pointers, b, n, k, values[0]); break;
      case 5: tile_row<T, 5>(pointers, b, n, k, values[0]); break;
      default: tile_row<T, 6>(pointers, b, n, k, values[0]); break;
    }
    epilogue(first, rows, values);
  }
}

// Writes n floats as T.
template <typename T>
inline void store_row(T* out, const float* values, int64_t n) {
  int64_t j = 0;
  for (; j + 16 <= n; j += 16) store16(out + j, load16(values + j));
  for (; j < n; ++j) store1(out + j, values[j]);
}

}  // namespace moe_opt
