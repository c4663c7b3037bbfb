// Attention over the cache, and the cache's layout.
#pragma once

#include <algorithm>
#include <vector>

#include "model.h"
#include "simd.h"

namespace rungpt {

constexpr int QUERIES = 16;    // query vectors that attention takes together, unless more heads share a key
constexpr int BLOCK = 64;      // positions that attention takes together
constexpr int MAX_SIZE = 512;  // of a head
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
    if (last && at % 2 == 0)  // the pair is read as a whole, and what an earlier row left may be NaN
      for (int d = 0; d < size; d++) v[2 * d + 1] = 0;
  } else {
    float* k = (float*)keys + (size_t)(at / LANES) * LANES * size + at % LANES;
    for (int d = 0; d < size; d++) k[(size_t)d * LANES] = key[d];
    std::memcpy((float*)values + (size_t)at * padded, value, size * 4);
  }
}

// scores[i, 0 .. 16) of `N` queries against one block of keys; queries: [N, stride] words (pairs of bf16, or fp32)
template <bool HALF, int N>
INLINE void score_block(const uint8_t* keys, int size, const uint32_t* queries, int stride, float* scores) {
  f16v sums[N] = {};
  for (int i = 0; i < (HALF ? size / 2 : size); i++) {
    u16v k = *(const u16u*)(keys + (size_t)i * 64);
    for (int q = 0; q < N; q++) {
      if (HALF)
        sums[q] = dot2(sums[q], k, queries[(size_t)q * stride + i]);
      else
        sums[q] += (f16v)k * ((const float*)queries)[(size_t)q * stride + i];
    }
  }
  for (int q = 0; q < N; q++) store(scores + q * BLOCK, sums[q]);
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
static void score(const uint8_t* keys, int size, const uint32_t* queries, int stride, int n, float* scores) {
  for (; n >= 8; n -= 8, queries += 8 * stride, scores += 8 * BLOCK)
    score_block<HALF, 8>(keys, size, queries, stride, scores);
  if (n >= 4)
    score_block<HALF, 4>(keys, size, queries, stride, scores), n -= 4, queries += 4 * stride, scores += 4 * BLOCK;
  if (n == 3) score_block<HALF, 3>(keys, size, queries, stride, scores);
  if (n == 2) score_block<HALF, 2>(keys, size, queries, stride, scores);
  if (n == 1) score_block<HALF, 1>(keys, size, queries, stride, scores);
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
  thread_local std::vector<uint32_t> queries, weights;
  thread_local std::vector<float> sums;
  queries.resize((size_t)n * size), weights.resize((size_t)n * BLOCK), sums.assign((size_t)n * padded, 0.0f);
  alignas(64) float scores_of[QUERIES * BLOCK];
  std::vector<float> many;  // more heads share a kv head than a tile holds
  float* scores = scores_of;
  if (n > QUERIES) many.resize((size_t)n * BLOCK), scores = many.data();
  float highest_of[QUERIES], total_of[QUERIES];
  std::vector<float> more;
  float *tops = highest_of, *totals = total_of;
  if (n > QUERIES) more.resize(2 * n), tops = more.data(), totals = tops + n;
  const float factor = m.attention_scale * LOG2E;
  for (int i = 0; i < n; i++) {
    const float* from = q + (size_t)(i / shared) * q_stride + i % shared * size;
    uint32_t* to = queries.data() + (size_t)i * size;
    if (HALF)
      scaled_bf16(from, factor, size, (uint16_t*)to);
    else
      for (int d = 0; d < size; d++) ((float*)to)[d] = from[d] * factor;
    tops[i] = LOWEST, totals[i] = 0;
  }
  const int end = position + count;  // of the positions that the last query sees
  for (int start = 0; start < end; start += BLOCK) {
    const int here = std::min(BLOCK, end - start), blocks = (here + LANES - 1) / LANES;
    for (int b = 0; b < blocks; b++)
      score<HALF>(keys + (size_t)(start + b * LANES) * size * element_bytes(m), size, queries.data(), size, n,
                  scores + b * LANES);
    for (int i = 0; i < n; i++) {
      const int sees = position + i / shared + 1 - start;  // positions of this block that the query sees
      float* s = scores + i * BLOCK;
      f16v high = splat(LOWEST);
      for (int b = 0; b < blocks; b++) {
        f16v v = load(s + b * LANES);
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
