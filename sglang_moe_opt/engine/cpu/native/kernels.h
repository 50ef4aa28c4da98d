// The library's functions, as Python calls them and as layer.cpp puts them together. Tensors are float or bfloat16.
#pragma once

#include <cstdint>
#include <cstdlib>

extern "C" {
void moe_opt_linear(int is_bf16, int float_out, const void* x, int64_t x_row, int64_t x_head, const void* w,
                    const void* bias, void* out, int64_t out_row, int64_t out_head, int64_t heads, int64_t m, int64_t n,
                    int64_t k);
void moe_opt_experts(int is_bf16, const void* x, int64_t x_row, const void* w13, const void* w2, int wide_ids,
                     const void* ids, const float* weights, float scale, const void* add, void* out, int64_t tokens,
                     int64_t k, int64_t hidden, int64_t inner, int64_t n_experts);
void moe_opt_mla_attention(int is_bf16, const void* q, const void* cache, void* out, const int32_t* slots,
                           int64_t slots_row, const int64_t* pool_rows, const int64_t* lengths,
                           const int64_t* query_lengths, int64_t batch, int64_t heads, int64_t width, int64_t latent,
                           float scale);
void moe_opt_rms_norm(int is_bf16, const void* x, int64_t x_row, void* residual, const void* weight, void* out,
                      int64_t m, int64_t n, float epsilon);
void moe_opt_silu_and_mul(int is_bf16, const void* x, void* out, int64_t m, int64_t n);
void moe_opt_mla_rope(int is_bf16, const void* q, int64_t q_row, int64_t q_head, void* q_out, const void* latent,
                      int64_t latent_row, const void* weight, float epsilon, const float* angles,
                      const int64_t* positions, void* cache, const int64_t* cache_slots, int64_t tokens, int64_t heads,
                      int64_t rank, int64_t rope, int interleaved);
void moe_opt_route(const float* logits, const float* bias, float* weights, int32_t* ids, int64_t tokens,
                   int64_t experts, int64_t groups, int64_t kept_groups, int64_t k, int sigmoid, int renormalize,
                   float scale);
}

namespace moe_opt {

// Memory for the length of a call, aligned to a cache line.
template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t count) : data_((T*)std::aligned_alloc(64, (count * sizeof(T) + 127) / 64 * 64)) {}
  ~Buffer() { std::free(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  operator T*() const { return data_; }

 private:
  T* data_;
};

}  // namespace moe_opt
