// Routed experts: tokens grouped by expert, gate and up fused with SiLU, weighted sum in slot order.
#include <vector>

#include "kernels.h"
#include "product.h"

namespace moe_opt {

struct Group {
  int64_t expert, first, count;  // its slots are order[first .. first + count)
};

// Groups the kept slots of ids (tokens, k; -1 = dropped) by expert, in slot order within an expert.
template <typename Id>
std::vector<Group> group_slots(const Id* ids, int64_t slots, int64_t experts, std::vector<int64_t>& order) {
  std::vector<int64_t> start(experts + 1, 0);
  for (int64_t s = 0; s < slots; ++s)
    if (ids[s] >= 0) ++start[ids[s] + 1];
  std::vector<Group> groups;
  for (int64_t e = 0; e < experts; ++e) {
    if (start[e + 1] > 0) groups.push_back({e, start[e], start[e + 1]});
    start[e + 1] += start[e];
  }
  order.resize(start[experts]);
  for (int64_t s = 0; s < slots; ++s)
    if (ids[s] >= 0) order[start[ids[s]]++] = s;
  return groups;
}

// x (tokens, hidden), w13 (experts, 2 inner, hidden) gate rows first, w2 (experts, hidden, inner), add and out
// (tokens, hidden); out may be x
template <typename T, typename Id>
void experts(const T* x, int64_t x_row, const T* w13, const T* w2, const Id* ids, const float* weights, float scale,
             const T* add, T* out, int64_t tokens, int64_t k, int64_t hidden, int64_t inner, int64_t n_experts) {
  std::vector<int64_t> order;
  const std::vector<Group> groups = group_slots(ids, tokens * k, n_experts, order);
  const Buffer<T> activated_buffer(order.size() * inner), outputs_buffer(tokens * k * hidden);
  T *activated = activated_buffer, *outputs = outputs_buffer;
  const int64_t* slots = order.data();
  constexpr int64_t up_columns = 64, down_columns = 64;
  const int64_t up_blocks = (inner + up_columns - 1) / up_columns;
  const int64_t down_blocks = (hidden + down_columns - 1) / down_columns;
  const int64_t n_groups = groups.size();
#pragma omp parallel if (order.size() * inner * hidden > (1 << 16))
  {
#pragma omp for collapse(2) schedule(guided)
    for (int64_t g = 0; g < n_groups; ++g)
      for (int64_t c = 0; c < up_blocks; ++c) {
        const Group group = groups[g];
        const int64_t first = c * up_columns, count = std::min(up_columns, inner - first);
        const T* gate = w13 + (group.expert * 2 * inner + first) * hidden;
        const T* up = gate + inner * hidden;
        product<T>(
            group.count, 2 * count, hidden, [=](int64_t i) { return x + slots[group.first + i] / k * x_row; },
            [=](int64_t j) { return j < count ? gate + j * hidden : up + (j - count) * hidden; },
            [=](int64_t row, int64_t rows, Block& values) {
              for (int64_t i = 0; i < rows; ++i) {
                T* to = activated + (group.first + row + i) * inner + first;
                const float *g = values[i], *u = values[i] + count;
                int64_t j = 0;
                for (; j + 16 <= count; j += 16) store16(to + j, silu(load16(g + j)) * load16(u + j));
                for (; j < count; ++j) store1(to + j, silu(splat(g[j]))[0] * u[j]);
              }
            });
      }
#pragma omp for collapse(2) schedule(guided)
    for (int64_t g = 0; g < n_groups; ++g)
      for (int64_t c = 0; c < down_blocks; ++c) {
        const Group group = groups[g];
        const int64_t first = c * down_columns, count = std::min(down_columns, hidden - first);
        const T* down = w2 + (group.expert * hidden + first) * inner;
        product<T>(
            group.count, count, inner, [=](int64_t i) { return activated + (group.first + i) * inner; },
            [=](int64_t j) { return down + j * inner; },
            [=](int64_t row, int64_t rows, Block& values) {
              for (int64_t i = 0; i < rows; ++i)
                store_row(outputs + slots[group.first + row + i] * hidden + first, values[i], count);
            });
      }
#pragma omp for schedule(static)
    for (int64_t t = 0; t < tokens; ++t) {
      int64_t j = 0;
      for (; j + 16 <= hidden; j += 16) {
        f32x16 acc = {};
        for (int64_t s = t * k; s < (t + 1) * k; ++s)
          if (ids[s] >= 0) acc += load16(outputs + s * hidden + j) * weights[s];
        acc *= scale;
        if (add) acc += load16(add + t * hidden + j);
        store16(out + t * hidden + j, acc);
      }
      for (; j < hidden; ++j) {
        float acc = 0;
        for (int64_t s = t * k; s < (t + 1) * k; ++s)
          if (ids[s] >= 0) acc += to_float(outputs[s * hidden + j]) * weights[s];
        store1(out + t * hidden + j, acc * scale + (add ? to_float(add[t * hidden + j]) : 0.0f));
      }
    }
  }
}

template <typename T>
void experts_of(const void* x, int64_t x_row, const void* w13, const void* w2, int wide_ids, const void* ids,
                const float* weights, float scale, const void* add, void* out, int64_t tokens, int64_t k,
                int64_t hidden, int64_t inner, int64_t n_experts) {
  const auto run = [&](auto typed_ids) {
    experts((const T*)x, x_row, (const T*)w13, (const T*)w2, typed_ids, weights, scale, (const T*)add, (T*)out, tokens,
            k, hidden, inner, n_experts);
  };
  if (wide_ids)
    run((const int64_t*)ids);
  else
    run((const int32_t*)ids);
}

}  // namespace moe_opt

extern "C" void moe_opt_experts(int is_bf16, const void* x, int64_t x_row, const void* w13, const void* w2,
                                int wide_ids, const void* ids, const float* weights, float scale, const void* add,
                                void* out, int64_t tokens, int64_t k, int64_t hidden, int64_t inner,
                                int64_t n_experts) {
  using namespace moe_opt;
  const auto run = is_bf16 ? experts_of<bf16> : experts_of<float>;
  run(x, x_row, w13, w2, wide_ids, ids, weights, scale, add, out, tokens, k, hidden, inner, n_experts);
}
