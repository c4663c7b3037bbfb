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
constexpr int MAX_SIZE = 512;  // largest size of a head
constexpr float LOWEST = -1e30f;

struct Segment {
  int first, count;  // rows of this pass, which follow each other in one slot
};

INLINE int padded_size(const Model& m) { return (m.head_size + LANES - 1) / LANES * LANES; }
INLINE int element_bytes(const Model& m) { return m.bf16_cache ? 2 : 4; }

INLINE size_t place(const Model& m, int layer, int slot, int head) {
  return (((size_t)slot * m.layers + layer) * m.kv_heads + head) * m.positions;
}

// Keys: blocks of 16 positions, [size / 2, 16, 2] in bf16, [size, 16] in fp32; as much room as the values have.
INLINE uint8_t* keys_of(const Model& m, int layer, int slot, int head) {
  return m.keys + place(m, layer, slot, head) * padded_size(m) * element_bytes(m);
}

// Values: [positions / 2, size filled up to 16, 2] in bf16, [positions, size filled up] in fp32.
INLINE uint8_t* values_of(const Model& m, int layer, int slot, int head) {
  return m.values + place(m, layer, slot, head) * padded_size(m) * element_bytes(m);
}

static void write_cache(const Model& m, int layer, int slot, int head, int at, const float* key, const float* value,
                        bool last) {
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

// scores[i, 0 .. 16 BLOCKS) of `N` queries against blocks of keys; queries: [N, size] words (pairs of bf16, or fp32).
// Each score is a sum of its own, so that few queries take several blocks at once rather than wait for one sum's end.
template <bool HALF, int N, int BLOCKS>
INLINE void score_blocks(const uint8_t* keys, int size, const uint32_t* queries, float* scores) {
  const int steps = HALF ? size / 2 : size;
  f16v sums[BLOCKS][N] = {};
  for (int i = 0; i < steps; i++) {
    u16v k[BLOCKS];
    for (int b = 0; b < BLOCKS; b++) k[b] = *(const u16u*)(keys + ((size_t)b * steps + i) * 64);
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
  f16v sums[N][WIDTH];
  for (int q = 0; q < N; q++)
    for (int w = 0; w < WIDTH; w++) sums[q][w] = load(out + (size_t)q * padded + w * LANES);
  for (int i = 0; i < count; i++) {
    u16v v[WIDTH];
    for (int w = 0; w < WIDTH; w++) v[w] = *(const u16u*)(values + ((size_t)i * padded + w * LANES) * 4);
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

// Softmax over blocks of positions with a running maximum (Milakov and Gimelshein 2018; FlashAttention).
// q: [count, q stride] rows whose heads of this kv head begin at q; out likewise.
template <bool HALF>
static void attend(const Model& m, int layer, int slot, int head, int position, int count, const float* q, int q_stride,
                   float* out, int out_stride) {
  const int size = m.head_size, padded = padded_size(m), shared = m.heads / m.kv_heads, n = count * shared;
  const uint8_t* keys = keys_of(m, layer, slot, head);
  const uint8_t* values = values_of(m, layer, slot, head);
  thread_local Lines<uint32_t> queries, weights;
  thread_local Lines<float> scratch, sums;
  queries.resize((size_t)n * size), weights.resize((size_t)n * BLOCK), sums.assign((size_t)n * padded, 0.0f);
  scratch.resize((size_t)n * (BLOCK + 2));
  float *scores = scratch.data(), *tops = scores + (size_t)n * BLOCK, *totals = tops + n;
  const float factor = m.attention_scale * LOG2E, cap = m.attention_cap * LOG2E;
  const int window = m.layer[layer].window;
  for (int i = 0; i < n; i++) {
    const float* from = q + (size_t)(i / shared) * q_stride + i % shared * size;
    uint32_t* to = queries.data() + (size_t)i * size;
    if (HALF)
      scaled_bf16(from, factor, size, (uint16_t*)to);
    else
      for (int d = 0; d < size; d++) ((float*)to)[d] = from[d] * factor;
    tops[i] = LOWEST, totals[i] = 0;
  }
  const int end = position + count;  // end of the positions that the last query sees
  const int begin = window ? std::max(0, position - window + 1) / BLOCK * BLOCK : 0;
  for (int start = begin; start < end; start += BLOCK) {
    const int here = std::min(BLOCK, end - start), blocks = (here + LANES - 1) / LANES;
    score<HALF>(keys + (size_t)start * size * element_bytes(m), size, blocks, queries.data(), n, scores);
    for (int i = 0; i < n; i++) {
      const int sees = position + i / shared + 1 - start;  // positions of this block that the query sees
      const int hidden = window ? sees - window : 0;         // positions before its window
      const float slope = m.slopes ? m.slopes[head * shared + i % shared] * LOG2E : 0;
      float* s = scores + i * BLOCK;
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
      const float top = std::max(tops[i], highest(high));
      const float shrink = exp2(splat(tops[i] - top))[0];
      f16v sum = {};
      for (int b = 0; b < blocks; b++) {
        f16v v = load(s + b * LANES);
        f16v w = v <= LOWEST ? f16v{} : exp2(v - top);
        sum += w;
        if (HALF) {
          uint16_t* to = (uint16_t*)(weights.data() + (size_t)i * BLOCK) + b * LANES;
          floats_to_bf16(w, to);
        } else {
          store((float*)weights.data() + (size_t)i * BLOCK + b * LANES, w);
        }
      }
      if (top != tops[i]) {
        for (int d = 0; d < padded; d += LANES) {
          float* to = sums.data() + (size_t)i * padded + d;
          store(to, load(to) * shrink);
        }
      }
      totals[i] = totals[i] * shrink + total(sum);
      tops[i] = top;
    }
    const int steps = HALF ? (here + 1) / 2 : here;
    const uint8_t* from = values + (size_t)start * padded * element_bytes(m);
    int d = 0;
    for (; d + 4 * LANES <= padded; d += 4 * LANES)
      weigh<HALF, 4>(from + (size_t)d * 4, padded, steps, weights.data(), n, sums.data() + d);
    for (; d < padded; d += LANES)
      weigh<HALF, 1>(from + (size_t)d * 4, padded, steps, weights.data(), n, sums.data() + d);
  }
  for (int i = 0; i < n; i++) {
    float* to = out + (size_t)(i / shared) * out_stride + i % shared * size;
    const float factor = 1.0f / totals[i];
    for (int d = 0; d < size; d++) to[d] = sums[(size_t)i * padded + d] * factor;
  }
}

}  // namespace rungpt
