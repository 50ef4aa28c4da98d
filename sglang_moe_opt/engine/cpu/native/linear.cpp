// Linear layers: x (m, k) @ w (n, k).T + bias, and the same head by head.
#include "kernels.h"
#include "product.h"

namespace moe_opt {

constexpr int64_t kSerialWork = 1 << 16;  // multiply-adds below which a second thread costs more than it gains

// out[head][row] = x[head][row] @ w[head].T; strides in elements.
template <typename T, typename Out>
void linear(const T* x, int64_t x_row, int64_t x_head, const T* w, const T* bias, Out* out, int64_t out_row,
            int64_t out_head, int64_t heads, int64_t m, int64_t n, int64_t k) {
  const int64_t columns = n > 1024 && m > 8 ? 64 : 32;
  const int64_t row_block = m <= 256 ? std::max<int64_t>(m, 1) : 192;
  const int64_t row_blocks = (m + row_block - 1) / row_block, column_blocks = (n + columns - 1) / columns;
#pragma omp parallel for collapse(3) schedule(guided) if (heads * m * n * k > kSerialWork)
  for (int64_t head = 0; head < heads; ++head)
    for (int64_t r = 0; r < row_blocks; ++r)
      for (int64_t c = 0; c < column_blocks; ++c) {
        const int64_t first_row = r * row_block, rows = std::min(row_block, m - first_row);
        const int64_t first = c * columns, count = std::min(columns, n - first);
        const T* a = x + head * x_head + first_row * x_row;
        const T* b = w + (head * n + first) * k;
        Out* to = out + head * out_head + first_row * out_row + first;
        product<T>(
            rows, count, k, [=](int64_t i) { return a + i * x_row; }, [=](int64_t j) { return b + j * k; },
            [=](int64_t row, int64_t tile_rows, Block& values) {
              for (int64_t i = 0; i < tile_rows; ++i) {
                if (bias)
                  for (int64_t j = 0; j < count; ++j) values[i][j] += to_float(bias[first + j]);
                store_row(to + (row + i) * out_row, values[i], count);
              }
            });
      }
}

}  // namespace moe_opt

extern "C" void moe_opt_linear(int is_bf16, int float_out, const void* x, int64_t x_row, int64_t x_head, const void* w,
                               const void* bias, void* out, int64_t out_row, int64_t out_head, int64_t heads,
                               int64_t m, int64_t n, int64_t k) {
  using namespace moe_opt;
  if (!is_bf16)
    linear((const float*)x, x_row, x_head, (const float*)w, (const float*)bias, (float*)out, out_row, out_head, heads,
           m, n, k);
  else if (float_out)
    linear((const bf16*)x, x_row, x_head, (const bf16*)w, (const bf16*)bias, (float*)out, out_row, out_head, heads, m,
           n, k);
  else
    linear((const bf16*)x, x_row, x_head, (const bf16*)w, (const bf16*)bias, (bf16*)out, out_row, out_head, heads, m, n,
           k);
}
