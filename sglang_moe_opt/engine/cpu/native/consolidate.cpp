// Batch-aware consolidation of one layer's routing: the rule of sglang_moe_opt/routing/consolidation.py, for a step of
// a few hundred tokens at most.
#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels.h"

namespace moe_opt {
namespace {

constexpr float kTinyMass = 1e-20f;

struct Rule {
  int64_t experts, slots, groups, max_experts;
  float min_share;
};

// One token as the router left it. rank: place of each slot by falling score, ties to the lower slot; -1 = no expert.
struct Token {
  float *weights, *scores, *shares;
  int32_t *ids, *rank;
  int32_t k0, na;
  float rescale;
};

// Scores (experts) choose, weights are proportional to shares (experts).
void score(const float* logits, const float* bias, bool sigmoid, int64_t experts, float* scores, float* shares) {
  if (sigmoid) {
    for (int64_t e = 0; e < experts; ++e) shares[e] = 1.0f / (1.0f + std::exp(-logits[e]));
    for (int64_t e = 0; e < experts; ++e) scores[e] = bias ? shares[e] + bias[e] : shares[e];
    return;
  }
  const float top = *std::max_element(logits, logits + experts);
  float total = 0;
  for (int64_t e = 0; e < experts; ++e) total += shares[e] = std::exp(logits[e] - top);
  // Without a bias logits rank like probabilities, and do not tie where those are rounded alike.
  for (int64_t e = 0; e < experts; ++e) scores[e] = bias ? shares[e] / total + bias[e] : logits[e];
}

void rank_slots(const Rule& rule, Token& t) {
  for (int64_t s = 0; s < rule.slots; ++s) {
    t.rank[s] = -1;
    if (t.ids[s] < 0) continue;
    t.rank[s] = 0;
    const float mine = t.scores[t.ids[s]];
    for (int64_t o = 0; o < rule.slots; ++o)
      if (t.ids[o] >= 0) t.rank[s] += t.scores[t.ids[o]] > mine || (o < s && t.scores[t.ids[o]] == mine);
  }
}

// Activates what consolidating tokens want most, until max_experts are active; ties to the lower id.
void activate_demanded(const Rule& rule, const std::vector<Token>& tokens, std::vector<char>& active) {
  std::vector<float> demand(rule.experts, 0.0f);
  std::vector<char> wanted(rule.experts, 0);
  for (const Token& t : tokens)
    for (int64_t s = 0; t.k0 > 0 && s < rule.slots; ++s)
      if (t.rank[s] >= t.k0 && t.rank[s] < t.na) wanted[t.ids[s]] = 1, demand[t.ids[s]] += t.weights[s];
  std::vector<int32_t> order;
  for (int32_t e = 0; e < rule.experts; ++e)
    if (wanted[e] && !active[e]) order.push_back(e);
  const int64_t room = rule.max_experts - std::count(active.begin(), active.end(), 1);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return demand[a] > demand[b]; });
  for (int64_t i = 0; i < std::min<int64_t>(room, order.size()); ++i) active[order[i]] = 1;
}

// Returns how many slots got an expert that the router had not chosen.
int32_t fill(const Rule& rule, Token& t, const std::vector<char>& active) {
  std::vector<char> taken(rule.experts, 0), group_chosen(rule.groups, 0), keep(rule.slots, 0);
  std::vector<int32_t> by_rank(rule.slots, -1);
  const int64_t group_size = rule.experts / rule.groups;
  float heaviest = 0, mass = 0;
  int64_t reference = 0;
  for (int64_t s = 0; s < rule.slots; ++s) {
    if (t.rank[s] < 0) continue;
    by_rank[t.rank[s]] = (int32_t)s;
    taken[t.ids[s]] = group_chosen[t.ids[s] / group_size] = 1;
    mass += t.weights[s];
    if (t.weights[s] > heaviest) heaviest = t.weights[s], reference = s;
  }
  if (by_rank[0] < 0) return 0;
  if (heaviest == 0) reference = *std::min_element(by_rank.begin(), std::find(by_rank.begin(), by_rank.end(), -1));
  int32_t kept = 0;
  bool changed = false;
  for (int32_t rank = 0; rank < rule.slots && by_rank[rank] >= 0; ++rank) {
    const int32_t s = by_rank[rank];
    const bool may = rank < t.k0 || (active[t.ids[s]] && (rank < t.na || t.weights[s] >= rule.min_share * heaviest));
    if (may && kept < t.na)
      keep[s] = 1, ++kept;
    else
      changed = true;
  }
  if (!changed) return 0;
  const float base = std::max(t.shares[t.ids[reference]], kTinyMass);
  int32_t filled = 0;
  float kept_mass = 0;
  for (int64_t s = 0; s < rule.slots; ++s) {
    if (t.rank[s] < 0) continue;
    if (!keep[s]) {
      int64_t best = -1;
      for (int64_t e = 0; kept < t.na && e < rule.experts; ++e)
        if (active[e] && !taken[e] && group_chosen[e / group_size] && t.scores[e] > -INFINITY &&
            t.shares[e] / base >= rule.min_share && (best < 0 || t.scores[e] > t.scores[best]))
          best = e;
      t.ids[s] = (int32_t)best;
      t.weights[s] = best < 0 ? 0.0f : heaviest * (t.shares[best] / base);
      if (best >= 0) taken[best] = 1, ++kept, ++filled;
    }
    kept_mass += t.weights[s];
  }
  const float factor = t.rescale < 0 ? mass / std::max(kept_mass, kTinyMass) : t.rescale;
  for (int64_t s = 0; s < rule.slots; ++s)
    if (t.rank[s] >= 0) t.weights[s] *= factor;
  return filled;
}

}  // namespace
}  // namespace moe_opt

// weights and ids (tokens, slots; -1 = no expert), logits (tokens, experts), bias (experts) or null, rows (tokens); k0,
// na and rescale point to the layer's column of tables whose rows are `stride` apart. kept and filled (tokens) are added
// to, touched (experts) is set; all three or none are null.
extern "C" void moe_opt_consolidate(float* weights, int32_t* ids, const float* logits, const float* bias,
                                    const int32_t* rows, const int32_t* k0, const int32_t* na, const float* rescale,
                                    int64_t stride, int64_t count, int64_t slots, int64_t experts, int sigmoid,
                                    int64_t groups, int64_t max_experts, float min_share, int32_t* kept,
                                    int32_t* filled, int32_t* touched) {
  using namespace moe_opt;
  const Rule rule{experts, slots, groups, max_experts, min_share};
  std::vector<float> scores(2 * count * experts);
  std::vector<int32_t> ranks(count * slots), fills(count, 0);
  std::vector<Token> tokens(count);
#pragma omp parallel for schedule(static) if (count * experts > 2048)
  for (int64_t i = 0; i < count; ++i) {
    const int64_t at = rows[i] * stride;
    Token& t = tokens[i] = {weights + i * slots, &scores[2 * i * experts], &scores[(2 * i + 1) * experts],
                            ids + i * slots,     &ranks[i * slots],        k0[at],
                            na[at],              rescale[at]};
    score(logits + i * experts, bias, sigmoid, experts, t.scores, t.shares);
    rank_slots(rule, t);
  }
  std::vector<char> active(experts, 0);
  for (const Token& t : tokens)
    for (int64_t s = 0; s < slots; ++s)
      if (t.rank[s] >= 0 && (t.k0 <= 0 || t.rank[s] < t.k0)) active[t.ids[s]] = 1;
  if (max_experts > 0) activate_demanded(rule, tokens, active);
#pragma omp parallel for schedule(static) if (count * experts > 2048)
  for (int64_t i = 0; i < count; ++i)
    if (tokens[i].k0 > 0) fills[i] = fill(rule, tokens[i], active);
  if (!kept) return;
  for (int64_t i = 0; i < count; ++i) {
    filled[i] += fills[i];
    for (int64_t s = 0; s < slots; ++s)
      if (tokens[i].ids[s] >= 0) ++kept[i], touched[tokens[i].ids[s]] = 1;
  }
}
