// MLA attention over the latent cache: decode and (chunked, prefix-cached) prefill of a ragged batch in one call.
#include <cmath>
#include <vector>

#include "kernels.h"
#include "product.h"

namespace moe_opt {

constexpr int64_t kItemRows = 16;

// Rows t and t + 1 of the cache, 32 columns each, as pairs for the bfloat16 dot.
inline void interleave(const bf16* even, const bf16* odd, u32x16* out) {
  const u16x32 a = load_as<u16x32>(even), b = load_as<u16x32>(odd);
  out[0] = (u32x16)__builtin_shufflevector(a, b, 0, 32, 1, 33, 2, 34, 3, 35, 4, 36, 5, 37, 6, 38, 7, 39, 8, 40, 9, 41,
                                           10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47);
  out[1] = (u32x16)__builtin_shufflevector(a, b, 16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53, 22, 54, 23, 55, 24, 56,
                                           25, 57, 26, 58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63);
}

// out[m][32 columns] = sum over t of p[m][t] * row(t)[columns]; p is padded with a zero to an even count.
template <int M, typename Row>
inline void weighted_sum(const bf16* const* p, Row row, int64_t count, float* out, int64_t out_row) {
  f32x16 acc[M][2] = {};
  for (int64_t t = 0; t < count; t += 2) {
    u32x16 pairs[2];
    interleave(row(t), row(std::min(t + 1, count - 1)), pairs);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const u32x16 weight = u32x16{} + load_as<uint32_t>(p[m] + t);
      acc[m][0] = dot(acc[m][0], weight, pairs[0]);
      acc[m][1] = dot(acc[m][1], weight, pairs[1]);
    }
  }
  for (int m = 0; m < M; ++m)
    for (int v = 0; v < 2; ++v) store16(out + m * out_row + v * 16, acc[m][v]);
}

template <int M, typename Row>
inline void weighted_sum(const float* const* p, Row row, int64_t count, float* out, int64_t out_row) {
  f32x16 acc[M][2] = {};
  for (int64_t t = 0; t < count; ++t) {
    const float* values = row(t);
    const f32x16 first = load16(values), second = load16(values + 16);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      acc[m][0] += p[m][t] * first;
      acc[m][1] += p[m][t] * second;
    }
  }
  for (int m = 0; m < M; ++m)
    for (int v = 0; v < 2; ++v) store16(out + m * out_row + v * 16, acc[m][v]);
}

// Softmax of scores[0..visible) * scale into p (length padded), zeros behind.
template <typename T>
inline void softmax(float* scores, int64_t visible, int64_t padded, float scale, T* p) {
  const int64_t whole = (padded + 15) / 16 * 16;
  for (int64_t t = visible; t < whole; ++t) scores[t] = -INFINITY;
  f32x16 top = splat(-INFINITY);
  for (int64_t t = 0; t < whole; t += 16) top = max(top, load16(scores + t));
  float highest = top[0];
  for (int i = 1; i < 16; ++i) highest = std::max(highest, (float)top[i]);
  f32x16 total = {};
  for (int64_t t = 0; t < whole; t += 16) {
    const f32x16 x = load16(scores + t);
    const f32x16 e = x > splat(-INFINITY) ? exp((x - highest) * scale) : splat(0.0f);
    store16(scores + t, e);
    total += e;
  }
  const float inverse = 1.0f / sum(total);
  for (int64_t t = 0; t < whole; t += 16) store16(p + t, load16(scores + t) * inverse);
}

template <typename T>
struct Attention {
  const T* q;      // (tokens, heads, width)
  const T* cache;  // (slots, width): latent, then rotary key
  T* out;          // (tokens, heads, latent)
  const int32_t* slots;
  int64_t slots_row, heads, width, latent;
  float scale;

  // Rows [first, first + rows) of a sequence, a row being (token, head), over its cached positions.
  void item(const int32_t* positions, int64_t first_token, int64_t prefix, int64_t first, int64_t rows) const {
    static thread_local std::vector<float> score_memory;
    static thread_local std::vector<T> weight_memory;
    const int64_t keys = prefix + (first + rows - 1) / heads + 1, stride = (keys + 31) / 16 * 16;
    score_memory.resize(std::max<size_t>(score_memory.size(), rows * stride));
    weight_memory.resize(std::max<size_t>(weight_memory.size(), rows * stride));
    float* scores = score_memory.data();
    T* weights = weight_memory.data();
    const T* queries = q + (first_token * heads + first) * width;
    const auto key = [&](int64_t t) { return cache + (int64_t)positions[t] * width; };
    for (int64_t start = 0; start < keys; start += kBlockColumns) {
      const int64_t count = std::min<int64_t>(kBlockColumns, keys - start);
      product<T>(
          rows, count, width, [&](int64_t i) { return queries + i * width; },
          [&](int64_t j) { return key(start + j); },
          [&](int64_t row, int64_t tile_rows, Block& values) {
            for (int64_t i = 0; i < tile_rows; ++i)
              std::memcpy(scores + (row + i) * stride + start, values[i], count * sizeof(float));
          });
    }
    for (int64_t i = 0; i < rows; ++i)
      softmax(scores + i * stride, prefix + (first + i) / heads + 1, keys + 1, scale, weights + i * stride);
    T* to = out + (first_token * heads + first) * latent;
    for (int64_t column = 0; column < latent; column += 32) {
      const auto value = [&](int64_t t) { return key(t) + column; };
      for (int64_t row = 0; row < rows; row += 4) {
        const T* p[4];
        for (int64_t i = 0; i < 4; ++i) p[i] = weights + std::min(row + i, rows - 1) * stride;
        float block[4 * 32];
        weighted_sum<4>(p, value, keys, block, 32);
        for (int64_t i = 0; i < std::min<int64_t>(4, rows - row); ++i)
          store_row(to + (row + i) * latent + column, block + i * 32, 32);
      }
    }
  }
};

struct Item {
  int64_t sequence, first_token, first, rows;
};

template <typename T>
void attention(const Attention<T>& self, const int64_t* pool_rows, const int64_t* lengths, const int64_t* query_lengths,
               int64_t batch) {
  std::vector<Item> items;
  int64_t token = 0;
  for (int64_t b = 0; b < batch; ++b) {
    const int64_t queries = query_lengths ? query_lengths[b] : 1;
    const int64_t step = batch == 1 && queries == 1 ? (self.heads + 1) / 2 : kItemRows;
    for (int64_t row = 0; row < queries * self.heads; row += step)
      items.push_back({b, token, row, std::min(step, queries * self.heads - row)});
    token += queries;
  }
  const int64_t count = items.size();
#pragma omp parallel for schedule(dynamic) if (count > 1)
  for (int64_t i = count - 1; i >= 0; --i) {
    const Item item = items[i];
    const int64_t queries = query_lengths ? query_lengths[item.sequence] : 1;
    self.item(self.slots + pool_rows[item.sequence] * self.slots_row, item.first_token,
              lengths[item.sequence] - queries, item.first, item.rows);
  }
}

}  // namespace moe_opt

extern "C" void moe_opt_mla_attention(int is_bf16, const void* q, const void* cache, void* out, const int32_t* slots,
                                      int64_t slots_row, const int64_t* pool_rows, const int64_t* lengths,
                                      const int64_t* query_lengths, int64_t batch, int64_t heads, int64_t width,
                                      int64_t latent, float scale) {
  using namespace moe_opt;
  if (is_bf16)
    attention(Attention<bf16>{(const bf16*)q, (const bf16*)cache, (bf16*)out, slots, slots_row, heads, width, latent,
                              scale},
              pool_rows, lengths, query_lengths, batch);
  else
    attention(Attention<float>{(const float*)q, (const float*)cache, (float*)out, slots, slots_row, heads, width,
                               latent, scale},
              pool_rows, lengths, query_lengths, batch);
}
