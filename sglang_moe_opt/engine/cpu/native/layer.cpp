// A decoder layer from the kernels: a step's small operations without Python in between.
#include <cmath>

#include "kernels.h"

// One layer's MLA block. These plain C structs are mirrored by decoder.py.
struct MlaWeights {
  int64_t hidden, heads, q_rank, rank, nope, rope, value;  // q_rank 0: queries come from the hidden state
  const void *input_norm, *kv_a, *q_a_norm, *q, *kv_a_norm, *keys, *values, *output, *post_norm;
  const float* angles;
  void* cache;
  float epsilon, latent_epsilon, scale;
  int32_t interleaved;
};

// One layer's router, routed experts and shared experts (shared 0: none). slots (experts): where each of the router's
// experts lies in w13 and w2, -1 = nowhere, and it is not chosen; null where that is its id.
struct MoeWeights {
  int64_t hidden, inner, shared, experts, groups, kept_groups;
  const void *gate, *w13, *w2, *shared_gate_up, *shared_down;
  const float* bias;
  const int32_t* slots;
  float scale;
  int32_t sigmoid, renormalize;
};

// A decoder layer; gate_up and down are those of a dense MLP, null in an MoE layer.
struct Layer {
  MlaWeights mla;
  MoeWeights moe;
  const void *gate_up, *down;
  int64_t inner;
};

// The tokens of one step; query_lengths is null in a decode step.
struct Batch {
  int64_t tokens, sequences;
  const int64_t *positions, *cache_slots, *pool_rows, *lengths, *query_lengths;
  const int32_t* slots;
  int64_t slots_row;
};

// What the routers of one step write, one layer after the other: logits (tokens, experts), weights and ids
// (tokens, top_k[layer]). Before a layer's experts run, `drop` may set ids to -1 and change weights.
struct Routing {
  const int64_t* top_k;
  float *logits, *weights;
  int32_t* ids;
  void (*drop)(int64_t layer);
};

namespace moe_opt {
namespace {

using Bytes = Buffer<unsigned char>;

void mlp(int is_bf16, const void* x, const void* gate_up, const void* down, void* out, int64_t tokens,
                int64_t hidden, int64_t inner) {
  const int64_t size = is_bf16 ? 2 : 4;
  Bytes both(tokens * 2 * inner * size), activated(tokens * inner * size);
  moe_opt_linear(is_bf16, false, x, hidden, 0, gate_up, nullptr, both, 2 * inner, 0, 1, tokens, 2 * inner, hidden);
  moe_opt_silu_and_mul(is_bf16, both, activated, tokens, inner);
  moe_opt_linear(is_bf16, false, activated, inner, 0, down, nullptr, out, hidden, 0, 1, tokens, hidden, inner);
}

// hidden (tokens, hidden): the last layer's output, replaced by the normed input of the MLP; residual likewise.
void mla_block(int is_bf16, const MlaWeights& w, const Batch& b, void* hidden, void* residual) {
  const int64_t size = is_bf16 ? 2 : 4, n = b.tokens, width = w.rank + w.rope, head = w.nope + w.rope;
  const int64_t queries = w.heads * head, latent_row = w.q_rank + width;
  Bytes normed(n * w.hidden * size), q(n * queries * size), latents(n * latent_row * size);
  Bytes absorbed(n * w.heads * width * size), attended(n * w.heads * w.rank * size);
  const auto linear = [=](const void* x, int64_t x_row, const void* weight, void* out, int64_t columns, int64_t k) {
    moe_opt_linear(is_bf16, false, x, x_row, 0, weight, nullptr, out, columns, 0, 1, n, columns, k);
  };
  moe_opt_rms_norm(is_bf16, hidden, w.hidden, residual, w.input_norm, normed, n, w.hidden, w.epsilon);
  linear(normed, w.hidden, w.kv_a, latents, latent_row, w.hidden);  // with q_rank, its first rows are q_a
  if (w.q_rank) {
    Bytes low(n * w.q_rank * size);
    moe_opt_rms_norm(is_bf16, latents, latent_row, nullptr, w.q_a_norm, low, n, w.q_rank, w.latent_epsilon);
    linear(low, w.q_rank, w.q, q, queries, w.q_rank);
  } else {
    linear(normed, w.hidden, w.q, q, queries, w.hidden);
  }
  moe_opt_linear(is_bf16, false, q, queries, head, w.keys, nullptr, absorbed, w.heads * width, width, w.heads, n,
                 w.rank, w.nope);
  moe_opt_mla_rope(is_bf16, q + w.nope * size, queries, head, absorbed, latents + w.q_rank * size, latent_row,
                   w.kv_a_norm, w.latent_epsilon, w.angles, b.positions, w.cache, b.cache_slots, n, w.heads, w.rank,
                   w.rope, w.interleaved);
  moe_opt_mla_attention(is_bf16, absorbed, w.cache, attended, b.slots, b.slots_row, b.pool_rows, b.lengths,
                        b.query_lengths, b.sequences, w.heads, width, w.rank, w.scale);
  Bytes values(n * w.heads * w.value * size), output(n * w.hidden * size);
  moe_opt_linear(is_bf16, false, attended, w.heads * w.rank, w.rank, w.values, nullptr, values, w.heads * w.value,
                 w.value, w.heads, n, w.value, w.rank);
  linear(values, w.heads * w.value, w.output, output, w.hidden, w.heads * w.value);
  moe_opt_rms_norm(is_bf16, output, w.hidden, residual, w.post_norm, hidden, n, w.hidden, w.epsilon);
}

void route(int is_bf16, const MoeWeights& w, const void* x, const Routing& r, int64_t tokens, int64_t k) {
  moe_opt_linear(is_bf16, true, x, w.hidden, 0, w.gate, nullptr, r.logits, w.experts, 0, 1, tokens, w.experts,
                 w.hidden);
  if (w.slots)
    for (int64_t t = 0; t < tokens; ++t)
      for (int64_t e = 0; e < w.experts; ++e)
        if (w.slots[e] < 0) r.logits[t * w.experts + e] = -INFINITY;
  moe_opt_route(r.logits, w.bias, r.weights, r.ids, tokens, w.experts, w.groups, w.kept_groups, k, w.sigmoid,
                w.renormalize, 1.0f);
}

// x (tokens, hidden) becomes scale * routed experts + shared experts.
void moe(int is_bf16, const MoeWeights& w, void* x, const Routing& r, int64_t tokens, int64_t k) {
  Bytes shared(w.shared ? tokens * w.hidden * (is_bf16 ? 2 : 4) : 0);
  if (w.shared) mlp(is_bf16, x, w.shared_gate_up, w.shared_down, shared, tokens, w.hidden, w.shared);
  if (w.slots)
    for (int64_t s = 0; s < tokens * k; ++s)
      if (r.ids[s] >= 0) r.ids[s] = w.slots[r.ids[s]];
  moe_opt_experts(is_bf16, x, w.hidden, w.w13, w.w2, false, r.ids, r.weights, w.scale,
                  w.shared ? (const void*)shared : nullptr, x, tokens, k, w.hidden, w.inner, w.experts);
}

}  // namespace
}  // namespace moe_opt

// hidden (tokens, hidden): the embedding, and then the last layer's output, to be added to residual.
extern "C" void moe_opt_decoder(int is_bf16, const Layer* layers, int64_t count, const Batch* batch,
                                const Routing* routing, void* hidden, void* residual) {
  using namespace moe_opt;
  const int64_t tokens = batch->tokens;
  for (int64_t i = 0; i < count; ++i) {
    const Layer& layer = layers[i];
    mla_block(is_bf16, layer.mla, *batch, hidden, residual);
    if (layer.gate_up) {
      mlp(is_bf16, hidden, layer.gate_up, layer.down, hidden, tokens, layer.mla.hidden, layer.inner);
      continue;
    }
    const int64_t k = routing->top_k[i];
    route(is_bf16, layer.moe, hidden, *routing, tokens, k);
    if (routing->drop) routing->drop(i);
    moe(is_bf16, layer.moe, hidden, *routing, tokens, k);
  }
}
