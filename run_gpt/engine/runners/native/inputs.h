// Layout of packed weights in panels of 16 outputs, and the input rows that go into their products.
#pragma once

#include <vector>

#include "amx.h"
#include "model.h"
#include "simd.h"

namespace rungpt {

constexpr int GROUP = 32;  // inputs that share a scale
constexpr int TILE = 8;    // rows that one pass over a panel takes in vector registers
constexpr float PEAK = 4;  // see Inputs

INLINE int panels(int outputs) { return (outputs + LANES - 1) / LANES; }

// A quantised format: a weight is scale * (code - offset), or scale * code + minimum.
//
// The codes of a group of 32 inputs lie in one or two planes, of their low and their high bits. Code i of the group, the
// number i / 64 * 4 + i % 4 of output i % 64 / 4, has its b bits of a plane in byte i % (64 * b), from bit
// i / (64 * b) * b on. A panel is a row of groups or of blocks:
// - group: planes; 16 scales, and 16 minima if the format has them, in fp16
// - block of 8 groups, as in GGUF's K-quants: their planes; integers of 8 bits for each 16 outputs of each group or half
//   a group, the scales and then the minima; two factors of 16 outputs in fp16, by which they are multiplied
struct Coding {
  int low = 4, high = 0;  // bits of a code in the first and in the second plane
  int offset = 0;
  bool minima = false;
  bool blocks = false;
  int scales = 1;      // of each group: two if 16 inputs share one
  bool table = false;  // codes are indices into LEVELS
};

INLINE constexpr Coding coding(int format) {
  switch (format) {
    case Q8:
      return {.low = 8, .offset = 128};
    case Q5:
      return {.high = 1, .minima = true};
    case IQ4:
      return {.offset = 128, .table = true};
    case Q2_K:
      return {.low = 2, .minima = true, .blocks = true, .scales = 2};
    case Q3_K:
      return {.low = 2, .high = 1, .offset = 4, .blocks = true, .scales = 2};
    case Q4_K:
      return {.minima = true, .blocks = true};
    case Q5_K:
      return {.high = 1, .minima = true, .blocks = true};
    case Q6_K:
      return {.high = 2, .offset = 32, .blocks = true, .scales = 2};
    case IQ4_XS:
      return {.offset = 128, .blocks = true, .table = true};
    default:
      return {.minima = true};
  }
}

// The levels of GGUF's IQ4, and 128.
constexpr uint8_t LEVELS[16] = {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241};

constexpr int BLOCK_GROUPS = 8;  // groups of a block

INLINE constexpr bool is_quantised(int format) { return format != F32 && format != BF16 && format != F16; }
// Bytes of the planes of a group, of a whole group, of the integers of a block, and of a whole block.
INLINE constexpr int code_bytes(int format) { return 64 * (coding(format).low + coding(format).high); }
INLINE constexpr int group_bytes(int format) { return code_bytes(format) + (coding(format).minima ? 4 : 2) * LANES; }
INLINE constexpr int integer_bytes(int format) {
  return BLOCK_GROUPS * LANES * coding(format).scales * (coding(format).minima ? 2 : 1);
}
INLINE constexpr int block_bytes(int format) { return BLOCK_GROUPS * code_bytes(format) + integer_bytes(format) + 4 * LANES; }

INLINE size_t panel_bytes(int format, int inputs) {
  switch (format) {
    case F32:
      return (size_t)inputs * LANES * 4;
    case BF16:
    case F16:
      return (size_t)inputs * LANES * 2;
    default:
      return coding(format).blocks ? (size_t)inputs / (BLOCK_GROUPS * GROUP) * block_bytes(format)
                                   : (size_t)inputs / GROUP * group_bytes(format);
  }
}

// True when all products with such weights use tiles, for few rows and for many: tiles add up a row's products in
// another order than vectors, and a row must not depend on the number of rows.
INLINE bool in_tiles(int format, int inputs) { return format == BF16 && inputs % TILE_INPUTS == 0 && has_tiles(); }

// Input rows of a product, in the form that the weights' format needs.
//
// For tiles, 16 rows are a block, of which 32 inputs of each row lie together.
// For quantised weights: 8 bits with a scale for each group of 32, as in llama.cpp; but 16 bits, in two halves, if
// the group's largest number is more than PEAK times the row's root mean square. Such groups (a few outlying inputs of
// every model, and their neighbours) cause nearly all of the error: with 16 bits for them it is near bf16's.
struct Inputs {
  Lines<uint8_t> codes;  // [rows, inputs] of fp32 (for fp16 too), bf16 or int8; [blocks, inputs / 32, 16, 32] of bf16
                         // in tiles
  Lines<int8_t> low;     // [rows, inputs]: the low halves of the groups in 16 bits
  Lines<uint8_t> fine;   // [rows, groups]: true if a group is in 16 bits
  Lines<float> scales;   // [rows, groups]
  Lines<float> sums;     // [rows, groups]: of the codes, times the scale
  Lines<float> half_sums;  // [rows, groups, 2]: of 16 codes each; for formats with two scales a group

  void resize(int rows, int inputs) {
    const size_t whole = (rows + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS, n = whole * inputs, groups = n / GROUP + 1;
    if (codes.size() < n * 4) codes.resize(n * 4), low.resize(n);
    if (scales.size() < groups) scales.resize(groups), sums.resize(groups), half_sums.resize(2 * groups), fine.resize(groups);
  }

  void put(int format, int row, const float* x, int inputs) {
    if (format == F32 || format == F16) {
      std::memcpy(codes.data() + (size_t)row * inputs * 4, x, (size_t)inputs * 4);
    } else if (in_tiles(format, inputs)) {
      uint8_t* to = codes.data() + (size_t)(row / TILE_ROWS * TILE_ROWS) * inputs * 2 + row % TILE_ROWS * 64;
      for (int i = 0; i < inputs; i += TILE_INPUTS) scaled_bf16(x + i, 1.0f, TILE_INPUTS, (uint16_t*)(to + i * 32));
    } else if (format == BF16) {
      scaled_bf16(x, 1.0f, inputs, (uint16_t*)codes.data() + (size_t)row * inputs);
    } else {
      f16v squares = {};
      for (int i = 0; i < inputs; i += LANES) squares += load(x + i) * load(x + i);
      const float limit = PEAK * std::sqrt(total(squares) / inputs);
      for (int i = 0; i < inputs; i += GROUP) quantise((size_t)row * inputs + i, x + i, limit, coding(format).scales);
    }
  }

 private:
  void quantise(size_t at, const float* x, float limit, int parts) {
    const f16v a = load(x), b = load(x + LANES);
    const float largest = highest(maximum(maximum(a, -a), maximum(b, -b)));
    const bool halves = largest > limit;
    const float none = total(a + b) * 0.0f;  // NaN and infinity must not become numbers
    const float scale = largest * (halves ? 1.0f / (127 * 256) : 1.0f / 127);
    const float inverse = scale > 0 ? 1.0f / scale : 0.0f;
    f16v counted[2] = {};
    for (int half = 0; half < 2; half++) {
      const f16v shifted = (half ? b : a) * inverse + 12582912.0f;  // see exp2
      const i16v rounded = (i16v)shifted - 0x4b400000;
      counted[half] = shifted - 12582912.0f;
      const i16v high = halves ? (rounded + 128) >> 8 : rounded;
      store_bytes(high, (int8_t*)codes.data() + at + half * LANES);
      if (halves) store_bytes(rounded - (high << 8), low.data() + at + half * LANES);
    }
    fine[at / GROUP] = halves;
    scales[at / GROUP] = scale + none;
    sums[at / GROUP] = scale * total(counted[0] + counted[1]) + none;
    for (int half = 0; parts > 1 && half < 2; half++)
      half_sums[at / LANES + half] = scale * total(counted[half]) + none;
  }
};

// Prefetches the weights `AHEAD` bytes further on: the CPU's own prefetch is late where each weight is used for little.
constexpr int AHEAD = 8192;
INLINE void prefetch(const uint8_t* w, int bytes) {
  for (int i = 0; i < bytes; i += 64) _mm_prefetch((const char*)w + AHEAD + i, _MM_HINT_T0);
}

}  // namespace rungpt
