// Top-k routing of DeepSeek-V2 (softmax, groups by their best expert) and V3 (sigmoid, bias that only chooses, groups
// by the sum of their two best). Ties go to the lower expert id; slots are in falling order of the choice.
#include <cmath>
#include <vector>

#include "kernels.h"
#include "simd.h"

namespace moe_opt {

struct Router {
  int64_t experts, groups, kept_groups, k;
  bool sigmoid, renormalize;
  float scale;
};

constexpr float kRenormalizeEpsilon = 1e-20f;

inline void softmax(const float* logits, float* scores, int64_t n) {
  float top = -INFINITY, total = 0;
  for (int64_t e = 0; e < n; ++e) top = std::max(top, logits[e]);
  for (int64_t e = 0; e < n; ++e) total += scores[e] = std::exp(logits[e] - top);
  for (int64_t e = 0; e < n; ++e) scores[e] /= total;
}

// Sets all but the best `kept` of the groups in `choice` to `hidden`.
inline void hide_groups(const Router& r, float* choice, float* group_scores, bool two_best, float hidden) {
  const int64_t size = r.experts / r.groups;
  for (int64_t g = 0; g < r.groups; ++g) {
    float best = -INFINITY, second = -INFINITY;
    for (int64_t e = g * size; e < (g + 1) * size; ++e) {
      if (choice[e] > best)
        second = best, best = choice[e];
      else
        second = std::max(second, choice[e]);
    }
    group_scores[g] = two_best ? best + second : best;
  }
  for (int64_t kept = 0; kept < r.kept_groups; ++kept) {
    int64_t best = -1;
    for (int64_t g = 0; g < r.groups; ++g)
      if (!std::isnan(group_scores[g]) && (best < 0 || group_scores[g] > group_scores[best])) best = g;
    if (best >= 0) group_scores[best] = NAN;  // chosen
  }
  for (int64_t g = 0; g < r.groups; ++g)
    if (!std::isnan(group_scores[g]))
      for (int64_t e = g * size; e < (g + 1) * size; ++e) choice[e] = hidden;
}

inline void route(const Router& r, const float* logits, const float* bias, float* weights, int32_t* ids, float* scores,
                  float* choice, float* group_scores) {
  if (r.sigmoid)
    for (int64_t e = 0; e < r.experts; ++e) scores[e] = 1.0f / (1.0f + std::exp(-logits[e]));
  else
    softmax(logits, scores, r.experts);
  for (int64_t e = 0; e < r.experts; ++e) choice[e] = bias ? scores[e] + bias[e] : scores[e];
  if (r.kept_groups < r.groups) hide_groups(r, choice, group_scores, bias != nullptr, bias ? -INFINITY : 0.0f);
  float total = 0;
  for (int64_t s = 0; s < r.k; ++s) {
    int64_t best = -1;
    for (int64_t e = 0; e < r.experts; ++e)
      if (!std::isnan(choice[e]) && (best < 0 || choice[e] > choice[best])) best = e;
    ids[s] = (int32_t)best;
    total += weights[s] = bias ? scores[best] : choice[best];
    choice[best] = NAN;
  }
  const float factor = (r.renormalize ? 1.0f / (total + kRenormalizeEpsilon) : 1.0f) * r.scale;
  for (int64_t s = 0; s < r.k; ++s) weights[s] *= factor;
}

}  // namespace moe_opt

// logits (tokens, experts), bias (experts) or null, weights and ids (tokens, k)
extern "C" void moe_opt_route(const float* logits, const float* bias, float* weights, int32_t* ids, int64_t tokens,
                              int64_t experts, int64_t groups, int64_t kept_groups, int64_t k, int sigmoid,
                              int renormalize, float scale) {
  using namespace moe_opt;
  const Router router{experts, groups, kept_groups, k, sigmoid != 0, renormalize != 0, scale};
#pragma omp parallel if (tokens * experts > 16384)
  {
    std::vector<float> scratch(2 * experts + groups);
#pragma omp for schedule(static)
    for (int64_t t = 0; t < tokens; ++t)
      route(router, logits + t * experts, bias, weights + t * k, ids + t * k, scratch.data(), scratch.data() + experts,
            scratch.data() + 2 * experts);
  }
}
