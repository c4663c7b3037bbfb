// Threads and scratch memory of one engine, which a forward pass reuses.
#pragma once

#include "attention.h"
#include "experts.h"

namespace rungpt {

struct Context {
  explicit Context(int threads) : team(threads) {}
  Team team;
  Inputs inputs;
  Routes routes;
  Lines<float> x, branch, wide, attended, active, extra, sums;
  Lines<uint8_t> extra_of;
  std::vector<Segment> segments;
  std::vector<int> segment_of;  // of each row
  std::vector<Pieces> pieces;   // of each window that a layer has

  // Plans the attention to the segments; the sums of a piece take `size` numbers.
  void plan(const Model& m, int threads, size_t size) {
    size_t count = 0, most = 0;
    for (int l = 0; l < m.layers; l++) {
      const int window = m.layer[l].window;
      if (std::any_of(pieces.begin(), pieces.begin() + count, [&](auto& one) { return one.window == window; })) continue;
      pieces.resize(std::max(pieces.size(), ++count));
      pieces[count - 1].plan(segments, window, m.kv_heads, threads, MOST_SUMS / (m.kv_heads * size));
      if (pieces[count - 1].apart) most = std::max(most, pieces[count - 1].all.size());
    }
    pieces.resize(count);
    sums.resize(most * m.kv_heads * size);
  }
};

}  // namespace rungpt
