// Attention over the cache, and the cache's layout.
#pragma once

#include <algorithm>
#include <vector>

#include "model.h"
#include "norm.h"
#include "simd.h"

namespace rungpt {

constexpr int QUERIES = 16;    // query vectors that attention takes together, unless more heads share a key
constexpr int BLOCK = 64;      // positions that attention takes together
constexpr int PART = 512;      // positions of a part, whose softmax is a computation of its own; whole blocks
constexpr int PIECES = 4;      // smallest number of pieces for each thread, of those as long as the longest one
constexpr size_t MOST_SUMS = 1 << 24;  // largest number of sums that are kept of parts
constexpr int MAX_SIZE = 512;          // largest size of a head
constexpr float LOWEST = -1e30f;

INLINE int padded_size(const Model& m) { return (m.head_size + LANES - 1) / LANES * LANES; }
INLINE int element_bytes(const Model& m) { return m.bf16_cache ? 2 : 4; }

// Places of a slot, each for the key and the value of one head at one position. A layer with a window is a ring: it
// keeps the last positions only, see Layer.
INLINE size_t slot_places(const Model& m) {
  const Layer& last = m.layer[m.layers - 1];
  return last.before + (size_t)m.kv_heads * last.kept;
}

INLINE size_t place(const Model& m, int layer, int slot, int head) {
  return slot * slot_places(m) + m.layer[layer].before + (size_t)head * m.layer[layer].kept;
}

// Keys: blocks of 16 positions, [size / 2, 16, 2] in bf16, [size, 16] in fp32; as much room as the values have.
// A block never straddles the end of a ring, since rings have whole blocks.
INLINE uint8_t* keys_of(const Model& m, int layer, int slot, int head) {
  return m.keys + place(m, layer, slot, head) * padded_size(m) * element_bytes(m);
}

// Values: [positions / 2, size filled up to 16, 2] in bf16, [positions, size filled up] in fp32.
INLINE uint8_t* values_of(const Model& m, int layer, int slot, int head) {
  return m.values + place(m, layer, slot, head) * padded_size(m) * element_bytes(m);
}

static void write_cache(const Model& m, int layer, int slot, int head, int position, const float* key,
                        const float* value, bool last) {
  const int at = position % m.layer[layer].kept;
  uint8_t* keys = keys_of(m, layer, slot, head);
  uint8_t* values = values_of(m, layer, slot, head);
  const int size = m.head_size, padded = padded_size(m);
  if (m.bf16_cache) {
    uint16_t row[MAX_SIZE];
    uint32_t* k = (uint32_t*)keys + (size_t)(at / LANES) * LANES * size / 2 + at % LANES;
    scaled_bf16(key, 1.0f, size, row);
    for (int d = 0; d < size / 2; d++) k[(size_t)d * LANES] = row[2 * d] | (uint32_t)row[2 * d + 1] << 16;
    uint16_t* v = (uint16_t*)values + (size_t)(at / 2) * 2 * padded + at % 2;
    scaled_bf16(value, 1.0f, size, row);
    for (int d = 0; d < size; d++) v[2 * d] = row[d];
    if (last && at % 2 == 0)  // the pair is read as a whole, and an earlier row's number may be NaN
      for (int d = 0; d < size; d++) v[2 * d + 1] = 0;
  } else {
    float* k = (float*)keys + (size_t)(at / LANES) * LANES * size + at % LANES;
    for (int d = 0; d < size; d++) k[(size_t)d * LANES] = key[d];
    std::memcpy((float*)values + (size_t)at * padded, value, size * 4);
  }
}

// The next block of a long text comes from memory while this one is computed: the CPU by itself reads ahead within a
// page only, and 64 positions of a head take several pages.
INLINE void prefetch(const uint8_t* line) { __builtin_prefetch(line); }

// scores[i, 0 .. 16 BLOCKS) of `N` queries against blocks of keys; queries: [N, size] words (pairs of bf16, or fp32).
// Each score is a sum of its own, so that few queries take several blocks at once rather than wait for one sum's end.
template <bool HALF, int N, int BLOCKS>
INLINE void score_blocks(const uint8_t* keys, int size, const uint32_t* queries, float* scores) {
  const int steps = HALF ? size / 2 : size;
  f16v sums[BLOCKS][N] = {};
  for (int i = 0; i < steps; i++) {
    u16v k[BLOCKS];
    for (int b = 0; b < BLOCKS; b++) k[b] = *(const u16u*)(keys + ((size_t)b * steps + i) * 64);
    for (int b = 0; b < BLOCKS; b++) prefetch(keys + ((size_t)(b + BLOCK / LANES) * steps + i) * 64);
    for (int q = 0; q < N; q++)
      for (int b = 0; b < BLOCKS; b++) {
        if (HALF)
          sums[b][q] = dot2(sums[b][q], k[b], queries[(size_t)q * size + i]);
        else
          sums[b][q] += (f16v)k[b] * ((const float*)queries)[(size_t)q * size + i];
      }
  }
  for (int q = 0; q < N; q++)
    for (int b = 0; b < BLOCKS; b++) store(scores + q * BLOCK + b * LANES, sums[b][q]);
}

template <bool HALF, int N>
static void score_rows(const uint8_t* keys, int size, int blocks, const uint32_t* queries, float* scores) {
  constexpr int TOGETHER = N > 4 ? 1 : 4;
  const size_t bytes = (size_t)LANES * size * (HALF ? 2 : 4);
  int b = 0;
  for (; b + TOGETHER <= blocks; b += TOGETHER)
    score_blocks<HALF, N, TOGETHER>(keys + b * bytes, size, queries, scores + b * LANES);
  for (; b < blocks; b++) score_blocks<HALF, N, 1>(keys + b * bytes, size, queries, scores + b * LANES);
}

// out[i, 0 .. 16 WIDTH) += weights[i] * values for `N` queries; weights: [N, BLOCK] words, one for each `count`
template <bool HALF, int N, int WIDTH>
INLINE void add_values(const uint8_t* values, int padded, int count, const uint32_t* weights, float* out) {
  constexpr int ahead = HALF ? BLOCK / 2 : BLOCK;
  f16v sums[N][WIDTH];
  for (int q = 0; q < N; q++)
    for (int w = 0; w < WIDTH; w++) sums[q][w] = load(out + (size_t)q * padded + w * LANES);
  for (int i = 0; i < count; i++) {
    u16v v[WIDTH];
    for (int w = 0; w < WIDTH; w++) v[w] = *(const u16u*)(values + ((size_t)i * padded + w * LANES) * 4);
    for (int w = 0; w < WIDTH; w++) prefetch(values + ((size_t)(i + ahead) * padded + w * LANES) * 4);
    for (int q = 0; q < N; q++)
      for (int w = 0; w < WIDTH; w++) {
        if (HALF)
          sums[q][w] = dot2(sums[q][w], v[w], weights[q * BLOCK + i]);
        else
          sums[q][w] += (f16v)v[w] * ((const float*)weights)[q * BLOCK + i];
      }
  }
  for (int q = 0; q < N; q++)
    for (int w = 0; w < WIDTH; w++) store(out + (size_t)q * padded + w * LANES, sums[q][w]);
}

template <bool HALF>
static void score(const uint8_t* keys, int size, int blocks, const uint32_t* queries, int n, float* scores) {
  for (; n >= 8; n -= 8, queries += (size_t)8 * size, scores += 8 * BLOCK)
    score_rows<HALF, 8>(keys, size, blocks, queries, scores);
  if (n >= 4) {
    score_rows<HALF, 4>(keys, size, blocks, queries, scores);
    n -= 4, queries += (size_t)4 * size, scores += 4 * BLOCK;
  }
  if (n == 3) score_rows<HALF, 3>(keys, size, blocks, queries, scores);
  if (n == 2) score_rows<HALF, 2>(keys, size, blocks, queries, scores);
  if (n == 1) score_rows<HALF, 1>(keys, size, blocks, queries, scores);
}

template <bool HALF, int WIDTH>
static void weigh(const uint8_t* values, int padded, int count, const uint32_t* weights, int n, float* out) {
  for (; n >= 4; n -= 4, weights += 4 * BLOCK, out += 4 * padded)
    add_values<HALF, 4, WIDTH>(values, padded, count, weights, out);
  if (n == 3) add_values<HALF, 3, WIDTH>(values, padded, count, weights, out);
  if (n == 2) add_values<HALF, 2, WIDTH>(values, padded, count, weights, out);
  if (n == 1) add_values<HALF, 1, WIDTH>(values, padded, count, weights, out);
}

// Softmax of some positions for `n` queries, before its division: the highest scores, the sums of the weights, and the
// sums of the weighted values, [n, padded].
struct Softmax {
  float *tops, *totals, *sums;

  static size_t size(int n, int padded) { return (size_t)n * (padded + 2); }
  static Softmax at(float* data, int n, int padded) {
    return {data + (size_t)n * padded, data + (size_t)n * (padded + 1), data};
  }

  void clear(int n, int padded) const {
    std::fill_n(sums, (size_t)n * padded, 0.0f);
    std::fill_n(tops, n, LOWEST);
    std::fill_n(totals, n, 0.0f);
  }

  Softmax from(int i, int padded) const { return {tops + i, totals + i, sums + (size_t)i * padded}; }

  // Adds later positions. A softmax without positions changes nothing, to the last bit.
  void add(const Softmax& later, int n, int padded) const {
    for (int i = 0; i < n; i++) {
      const float top = std::max(tops[i], later.tops[i]);
      const float mine = exp2(splat(tops[i] - top))[0], its = exp2(splat(later.tops[i] - top))[0];
      for (int d = 0; d < padded; d += LANES) {
        float* to = sums + (size_t)i * padded + d;
        store(to, load(to) * mine + load(later.sums + (size_t)i * padded + d) * its);
      }
      totals[i] = totals[i] * mine + later.totals[i] * its;
      tops[i] = top;
    }
  }

  // Writes the average of a query: out [size]. sink: a score that stands for no position, or null.
  void divide(int i, int size, int padded, const float* sink, float* out) const {
    const float none = sink ? *sink * LOG2E : LOWEST, top = std::max(tops[i], none);
    const float mine = exp2(splat(tops[i] - top))[0], its = sink ? exp2(splat(none - top))[0] : 0;
    const float factor = mine / (totals[i] * mine + its);
    for (int d = 0; d < size; d++) out[d] = sums[(size_t)i * padded + d] * factor;
  }
};

// Scores of a block -> weights, which are added to the softmax with a running maximum (Milakov and Gimelshein 2018;
// FlashAttention). sees, hidden: positions of the block that the query sees, and those of them before its window.
template <bool HALF>
INLINE void weigh_scores(const Model& m, int query_head, int sees, int hidden, int blocks, int padded, float* s,
                         uint32_t* weights, const Softmax& softmax) {
  const float slope = m.slopes ? m.slopes[query_head] * LOG2E : 0, cap = m.attention_cap * LOG2E;
  f16v high = splat(LOWEST);
  for (int b = 0; b < blocks; b++) {
    f16v v = load(s + b * LANES);
    if (cap > 0) v = capped(v, cap);
    if (m.slopes) v += slope * (__builtin_convertvector(NUMBERS, f16v) + (float)(b * LANES + 1 - sees));
    if (hidden > b * LANES) v = NUMBERS + b * LANES < hidden ? splat(LOWEST) : v;
    if (sees < (b + 1) * LANES) v = NUMBERS + b * LANES < sees ? v : splat(LOWEST);
    store(s + b * LANES, v);
    high = maximum(high, v);
  }
  const float old = *softmax.tops, top = std::max(old, highest(high));
  const float shrink = exp2(splat(old - top))[0];
  f16v sum = {};
  for (int b = 0; b < blocks; b++) {
    f16v v = load(s + b * LANES);
    f16v w = v <= LOWEST ? f16v{} : exp2(v - top);
    sum += w;
    if (HALF)
      floats_to_bf16(w, (uint16_t*)weights + b * LANES);
    else
      store((float*)weights + b * LANES, w);
  }
  if (top != old)
    for (int d = 0; d < padded; d += LANES) store(softmax.sums + d, load(softmax.sums + d) * shrink);
  *softmax.totals = *softmax.totals * shrink + total(sum);
  *softmax.tops = top;
}

// Attention of `count` rows at `position`, position + 1, ... to the positions [start, end), for the heads of one key.
// queries: [n, size] words; scores, weights: scratch, [n, BLOCK].
template <bool HALF>
static void attend_part(const Model& m, int layer, int slot, int head, int position, int count, int start, int end,
                        const uint32_t* queries, float* scores, uint32_t* weights, const Softmax& softmax) {
  const int size = m.head_size, padded = padded_size(m), shared = m.heads / m.kv_heads, n = count * shared;
  const int window = m.layer[layer].window, kept = m.layer[layer].kept;
  const uint8_t* keys = keys_of(m, layer, slot, head);
  const uint8_t* values = values_of(m, layer, slot, head);
  softmax.clear(n, padded);
  for (; start < end; start += BLOCK) {
    const int here = std::min(BLOCK, end - start), blocks = (here + LANES - 1) / LANES;
    const size_t at = (size_t)(start % kept) * element_bytes(m);
    score<HALF>(keys + at * size, size, blocks, queries, n, scores);
    for (int i = 0; i < n; i++) {
      const int sees = position + i / shared + 1 - start;
      weigh_scores<HALF>(m, head * shared + i % shared, sees, window ? sees - window : 0, blocks, padded,
                         scores + i * BLOCK, weights + (size_t)i * BLOCK, softmax.from(i, padded));
    }
    const int steps = HALF ? (here + 1) / 2 : here;
    int d = 0;
    for (; d + 4 * LANES <= padded; d += 4 * LANES)
      weigh<HALF, 4>(values + at * padded + (size_t)d * 4, padded, steps, weights, n, softmax.sums + d);
    for (; d < padded; d += LANES)
      weigh<HALF, 1>(values + at * padded + (size_t)d * 4, padded, steps, weights, n, softmax.sums + d);
  }
}

// Rows of this pass, which follow each other in one slot, and the parts of the positions that they see.
struct Segment {
  int first, count;
  int position;  // of the first row

  int end() const { return position + count; }  // of the positions that the last row sees
  int begin(int window) const { return window ? std::max(0, position - window + 1) / BLOCK * BLOCK : 0; }
  int first_part(int window) const { return begin(window) / PART; }
  int parts(int window) const { return (end() - 1) / PART + 1 - first_part(window); }
};

// Attention of a segment to `parts` parts from `part` on, into `result`; q: [count, q stride] rows whose heads of this
// kv head begin at q. The bounds of the parts are positions, so a row's sums are the same whatever runs beside it, and
// whichever threads compute them.
template <bool HALF>
static void attend(const Model& m, int layer, int slot, int head, const Segment& s, int part, int parts, const float* q,
                   int q_stride, const Softmax& result) {
  const int size = m.head_size, padded = padded_size(m), shared = m.heads / m.kv_heads, n = s.count * shared;
  thread_local Lines<uint32_t> queries, weights;
  thread_local Lines<float> scores, sums;
  queries.resize((size_t)n * size), weights.resize((size_t)n * BLOCK), scores.resize((size_t)n * BLOCK);
  sums.resize(Softmax::size(n, padded));
  const float factor = m.attention_scale * LOG2E;
  for (int i = 0; i < n; i++) {
    const float* from = q + (size_t)(i / shared) * q_stride + i % shared * size;
    uint32_t* to = queries.data() + (size_t)i * size;
    if (HALF)
      scaled_bf16(from, factor, size, (uint16_t*)to);
    else
      for (int d = 0; d < size; d++) ((float*)to)[d] = from[d] * factor;
  }
  const Softmax next = Softmax::at(sums.data(), n, padded);
  for (int i = part; i < part + parts; i++) {
    const int start = std::max(s.begin(m.layer[layer].window), i * PART), end = std::min(s.end(), (i + 1) * PART);
    attend_part<HALF>(m, layer, slot, head, s.position, s.count, start, end, queries.data(), scores.data(),
                      weights.data(), i == part ? result : next);
    if (i > part) result.add(next, n, padded);
  }
}

// Pieces of a pass's attention in the layers with one window, to be taken by any thread: whole segments; or their
// parts, if a few long segments would leave threads without work.
struct Pieces {
  struct Piece {
    int segment, part, parts;
  };

  int window;
  bool apart;                // each part is a piece, and the sums of a segment are still to be added
  std::vector<Piece> all;    // in the segments' order
  std::vector<int> first;    // first piece of each segment, and the number of pieces

  // most: number of parts whose sums may be kept.
  void plan(const std::vector<Segment>& segments, int window_, int kv_heads, int threads, size_t most) {
    size_t longest = 0, sum = 0;
    for (const Segment& s : segments) {
      longest = std::max(longest, (size_t)s.parts(window_));
      sum += s.parts(window_);
    }
    window = window_;
    apart = threads > 1 && longest > 1 && sum <= most && longest * PIECES * threads > sum * kv_heads;
    all.clear(), first.clear();
    for (int i = 0; i < (int)segments.size(); i++) {
      const int begin = segments[i].first_part(window), parts = segments[i].parts(window);
      first.push_back((int)all.size());
      for (int part = 0; part < parts; part += apart ? 1 : parts)
        all.push_back({i, begin + part, apart ? 1 : parts});
    }
    first.push_back((int)all.size());
  }
};

}  // namespace rungpt
