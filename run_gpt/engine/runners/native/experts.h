// Experts: MLPs of which a router chooses some for each row, as in Mixtral (Jiang et al. 2024) and its like.
//
// The rows of a pass are put in the order of their experts, so that each expert's weights are read once for all of its
// rows. A row's result does not depend on the other rows: its products do not, see linear.h, and its experts' results
// are added in the order of their scores. Sizes of loops are bounds known before the pass, since a thread that comes
// late may run through a loop that is over while the next layer's rows are counted.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "linear.h"

namespace rungpt {

// Scratch memory of a pass's experts. A pair is a row and one of its experts: number row * chosen + rank.
struct Routes {
  struct Group {
    int expert, first, rows;  // rows of one expert, from place `first` on
  };

  Inputs inputs;               // of the products, by place
  Lines<float> scores;         // [rows, experts filled up to 16]
  Lines<float> weights;        // [pairs]
  Lines<float> shared;         // [rows]: weight of the shared MLP
  Lines<float> active, parts;  // [places, width], [places, hidden]: what the experts' products give
  std::vector<int32_t> experts, places;  // [pairs]
  std::vector<Group> groups;             // experts with rows
  std::vector<int32_t> counts;           // [experts]

  // Tiles take rows from a multiple of 16 on.
  static int room(int rows) { return has_tiles() ? (rows + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS : rows; }

  void resize(const Experts& e, int hidden, int rows) {
    const size_t pairs = (size_t)rows * e.chosen;
    const size_t most = pairs + (size_t)std::min<size_t>(pairs, e.count) * (room(1) - 1);
    inputs.resize((int)most, std::max(hidden, e.width));
    scores.resize((size_t)rows * panels(e.count) * LANES);
    if (weights.size() < pairs) weights.resize(pairs), experts.resize(pairs), places.resize(pairs);
    if ((int)shared.size() < rows) shared.resize(rows);
    if (active.size() < most * e.width) active.resize(most * e.width);
    if (parts.size() < most * hidden) parts.resize(most * hidden);
    groups.reserve(e.count);
    counts.resize(e.count);
  }
};

// The first of the largest of n numbers.
INLINE int largest_of(const float* x, int n) { return (int)(std::max_element(x, x + n) - x); }

// Makes scores of a router's logits: a sigmoid of each, or the softmax of all.
static void score_experts(const Experts& e, float* x) {
  const float top = e.sigmoid ? 0 : x[largest_of(x, e.count)];
  float sum = 0;
  for (int i = 0; i < e.count; i++) {
    x[i] = e.sigmoid ? 1 / (1 + std::exp(-x[i])) : std::exp(x[i] - top);
    sum += x[i];
  }
  for (int i = 0; i < e.count && !e.sigmoid; i++) x[i] /= sum;
}

// Takes the experts out of the choice that are not in the best groups, by the sum of a group's two highest (DeepSeek V3).
static void keep_best_groups(const Experts& e, Lines<float>& merits) {
  const int size = e.count / e.groups;
  Lines<float> sums(e.groups);
  for (int g = 0; g < e.groups; g++) {
    const float* x = merits.data() + (size_t)g * size;
    float first = -INFINITY, second = -INFINITY;
    for (int i = 0; i < size; i++) {
      second = std::max(second, std::min(first, x[i]));
      first = std::max(first, x[i]);
    }
    sums[g] = first + second;
  }
  for (int dropped = e.groups - e.chosen_groups; dropped > 0; dropped--) {
    const size_t worst = std::min_element(sums.begin(), sums.end()) - sums.begin();
    sums[worst] = INFINITY;
    std::fill_n(merits.begin() + worst * size, size, -INFINITY);
  }
}

// The experts of one row and their weights; scores [count]: the router's logits, which are overwritten.
static void choose_experts(const Experts& e, float* scores, int32_t* experts, float* weights) {
  thread_local Lines<float> merits;
  score_experts(e, scores);
  merits.assign(scores, scores + e.count);
  for (int i = 0; e.correction && i < e.count; i++) merits[i] += e.correction[i];
  if (e.groups > 1) keep_best_groups(e, merits);
  float sum = 1e-20f;  // as in transformers, where all weights may be 0
  for (int rank = 0; rank < e.chosen; rank++) {
    const int best = largest_of(merits.data(), e.count);
    merits[best] = -INFINITY;
    experts[rank] = best, weights[rank] = scores[best];
    sum += scores[best];
  }
  for (int rank = 0; rank < e.chosen; rank++) weights[rank] *= e.renormalised ? e.scale / sum : e.scale;
}

// Gives each pair its place, with all places of an expert together.
static void place_pairs(const Experts& e, Routes& routes, int pairs) {
  std::fill(routes.counts.begin(), routes.counts.end(), 0);
  for (int p = 0; p < pairs; p++) routes.counts[routes.experts[p]]++;
  routes.groups.clear();
  int first = 0;
  for (int i = 0; i < e.count; i++) {
    const int rows = routes.counts[i];
    if (rows) routes.groups.push_back({i, first, rows});
    routes.counts[i] = first;  // from here on the next free place
    first += Routes::room(rows);
  }
  for (int p = 0; p < pairs; p++) routes.places[p] = routes.counts[routes.experts[p]]++;
}

// The activation of gate, times up. With a limit as in gpt-oss: clamped, a sigmoid with a factor, and 1 added to up.
INLINE f16v gated(const Experts& e, int activation, f16v gate, f16v up) {
  if (e.limit <= 0) return activate(activation, gate) * up;
  gate = gate > e.limit ? splat(e.limit) : gate;  // NaN stays NaN
  up = up > e.limit ? splat(e.limit) : up;
  up = up < -e.limit ? splat(-e.limit) : up;
  return (up + 1.0f) * gate / (exp2(gate * (-e.alpha * LOG2E)) + 1.0f);
}

// Calls f(group, panel) for each panel of each expert that has rows; most: bound of the number of those.
template <class F>
static void each_panel(Team& team, const Routes& routes, int most, int count, F f) {
  team.loop(most * count, std::max(1, most * count / (16 * team.size())), [&](int item) {
    if (item / count < (int)routes.groups.size()) f(routes.groups[item / count], item % count);
  });
}

// The experts' products of all pairs, before they are weighted: routes.parts, by place. inputs: rows in fp32.
static void expert_products(Team& team, const Experts& e, int activation, int hidden, const Inputs& inputs,
                            Routes& routes, int rows) {
  const int pairs = rows * e.chosen, most = std::min(pairs, e.count), grain = std::max(1, pairs / (8 * team.size()));
  const float* from = (const float*)inputs.codes.data();
  team.loop(pairs, grain, [&](int p) {
    routes.inputs.put(e.up->format, routes.places[p], from + (size_t)(p / e.chosen) * hidden, hidden);
  });
  each_panel(team, routes, most, e.width / LANES, [&](const Routes::Group& group, int panel) {
    const Matrix& m = e.up[group.expert];
    const int at_once = rows_at_once(m, group.rows);
    for (int row = 0; row < group.rows; row += at_once) {
      f16v gate[TILED_ROWS], up[TILED_ROWS];
      const int n = std::min(at_once, group.rows - row), first = group.first + row;
      multiply(m, 2 * panel, routes.inputs, first, n, at_once, gate);
      multiply(m, 2 * panel + 1, routes.inputs, first, n, at_once, up);
      float* to = routes.active.data() + (size_t)first * e.width + panel * LANES;
      for (int r = 0; r < n; r++) store(to + (size_t)r * e.width, gated(e, activation, gate[r], up[r]));
    }
  });
  team.loop(pairs, grain, [&](int p) {
    const int place = routes.places[p];
    routes.inputs.put(e.down->format, place, routes.active.data() + (size_t)place * e.width, e.width);
  });
  each_panel(team, routes, most, hidden / LANES, [&](const Routes::Group& group, int panel) {
    const Matrix& m = e.down[group.expert];
    const int at_once = rows_at_once(m, group.rows);
    for (int row = 0; row < group.rows; row += at_once) {
      f16v sums[TILED_ROWS];
      const int n = std::min(at_once, group.rows - row), first = group.first + row;
      multiply(m, panel, routes.inputs, first, n, at_once, sums);
      for (int r = 0; r < n; r++) store(routes.parts.data() + (size_t)(first + r) * hidden + panel * LANES, sums[r]);
    }
  });
}

// Chooses and runs the experts of all rows; add_experts adds what they give. inputs: rows [rows, hidden] in fp32.
static void run_experts(Team& team, const Experts& e, int activation, int hidden, const Inputs& inputs, Routes& routes,
                        int rows) {
  const int stride = panels(e.count) * LANES;
  product<false>(team, e.router, inputs, rows, routes.scores.data(), stride);
  team.loop(rows, std::max(1, rows / (4 * team.size())), [&](int i) {
    choose_experts(e, routes.scores.data() + (size_t)i * stride, routes.experts.data() + (size_t)i * e.chosen,
                   routes.weights.data() + (size_t)i * e.chosen);
    if (!e.shared_gate) return;
    const float* x = (const float*)inputs.codes.data() + (size_t)i * hidden;
    f16v sums = {};
    for (int j = 0; j < hidden; j += LANES) sums += load(x + j) * load(e.shared_gate + j);
    routes.shared[i] = 1 / (1 + std::exp(-total(sums)));
  });
  team.loop(1, 1, [&](int) { place_pairs(e, routes, rows * e.chosen); });
  expert_products(team, e, activation, hidden, inputs, routes, rows);
}

// out [hidden]: what all experts give for one row. It holds what the shared MLP gives, if there is one.
static void add_experts(const Experts& e, int hidden, const Routes& routes, int row, bool shared, float* out) {
  for (int j = 0; j < hidden; j += LANES) {
    f16v sums = {};
    if (shared) sums = load(out + j) * (e.shared_gate ? routes.shared[row] : 1.0f);
    for (size_t p = (size_t)row * e.chosen; p < (size_t)(row + 1) * e.chosen; p++)
      sums += load(routes.parts.data() + (size_t)routes.places[p] * hidden + j) * routes.weights[p];
    store(out + j, sums);
  }
}

}  // namespace rungpt
