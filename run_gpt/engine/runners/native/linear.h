// Linear layers: weights in panels of 16 outputs, the rows that go into them, and their products.
#pragma once

#include <algorithm>
#include <vector>

#include "amx.h"
#include "model.h"
#include "norm.h"
#include "simd.h"
#include "team.h"

namespace rungpt {

constexpr int GROUP = 32;  // inputs that share a scale
constexpr int TILE = 8;    // rows that one pass over a panel takes in vector registers
constexpr float PEAK = 4;  // see Inputs

INLINE int panels(int outputs) { return (outputs + LANES - 1) / LANES; }

// Bytes of codes, and of codes and what follows them, of one group of a panel: 16 scales, in 4 bits then 16 minima
// (fp16).
INLINE constexpr int code_bytes(int format) { return format == Q4 ? GROUP * LANES / 2 : GROUP * LANES; }
INLINE constexpr int group_bytes(int format) { return code_bytes(format) + (format == Q4 ? 2 : 1) * LANES * 2; }

INLINE size_t panel_bytes(int format, int inputs) {
  switch (format) {
    case F32:
      return (size_t)inputs * LANES * 4;
    case BF16:
    case F16:
      return (size_t)inputs * LANES * 2;
    default:
      return (size_t)inputs / GROUP * group_bytes(format);
  }
}

// True when all products with such weights use tiles, for few rows and for many: tiles add up a row's products in
// another order than vectors, and a row must not depend on the number of rows.
INLINE bool in_tiles(int format, int inputs) { return format == BF16 && inputs % TILE_INPUTS == 0 && has_tiles(); }

// Input rows of a product, in the form that the weights' format needs.
//
// For tiles, 16 rows are a block, of which 32 inputs of each row lie together.
// For 4- and 8-bit weights: 8 bits with a scale for each group of 32, as in llama.cpp; but 16 bits, in two halves, if
// the group's largest number is more than PEAK times the row's root mean square. Such groups (a few outlying inputs of
// every model, and their neighbours) cause nearly all of the error: with 16 bits for them it is near bf16's.
struct Inputs {
  Lines<uint8_t> codes;  // [rows, inputs] of fp32 (for fp16 too), bf16 or int8; [blocks, inputs / 32, 16, 32] of bf16
                         // in tiles
  Lines<int8_t> low;     // [rows, inputs]: the low halves of the groups in 16 bits
  Lines<uint8_t> fine;   // [rows, groups]: true if a group is in 16 bits
  Lines<float> scales;   // [rows, groups]
  Lines<float> sums;     // [rows, groups]: of the codes, times the scale

  void resize(int rows, int inputs) {
    const size_t whole = (rows + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS, n = whole * inputs, groups = n / GROUP + 1;
    if (codes.size() < n * 4) codes.resize(n * 4), low.resize(n);
    if (scales.size() < groups) scales.resize(groups), sums.resize(groups), fine.resize(groups);
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
      for (int i = 0; i < inputs; i += GROUP) quantise((size_t)row * inputs + i, x + i, limit);
    }
  }

 private:
  void quantise(size_t at, const float* x, float limit) {
    const f16v a = load(x), b = load(x + LANES);
    const float largest = highest(maximum(maximum(a, -a), maximum(b, -b)));
    const bool halves = largest > limit;
    const float none = total(a + b) * 0.0f;  // NaN and infinity must not become numbers
    const float scale = largest * (halves ? 1.0f / (127 * 256) : 1.0f / 127);
    const float inverse = scale > 0 ? 1.0f / scale : 0.0f;
    f16v counted = {};
    for (int half = 0; half < 2; half++) {
      const f16v shifted = (half ? b : a) * inverse + 12582912.0f;  // see exp2
      const i16v rounded = (i16v)shifted - 0x4b400000;
      counted += shifted - 12582912.0f;
      const i16v high = halves ? (rounded + 128) >> 8 : rounded;
      store_bytes(high, (int8_t*)codes.data() + at + half * LANES);
      if (halves) store_bytes(rounded - (high << 8), low.data() + at + half * LANES);
    }
    fine[at / GROUP] = halves;
    scales[at / GROUP] = scale + none;
    sums[at / GROUP] = scale * total(counted) + none;
  }
};

// The codes of one group of a panel, ready for products with inputs in 8 bits.
template <int FORMAT>
struct GroupCodes {
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
  __m512i v[8];  // of inputs 4j to 4j + 3

  INLINE_MEMBER explicit GroupCodes(const uint8_t* w) {
    const __m512i mask = _mm512_set1_epi8(15);
    for (int j = 0; j < 8; j++) {
      if (FORMAT == Q8)
        v[j] = _mm512_loadu_si512(w + 64 * j);
      else if (j < 4)
        v[j] = _mm512_and_si512(_mm512_loadu_si512(w + 64 * j), mask);
      else
        v[j] = _mm512_and_si512(_mm512_srli_epi16(_mm512_loadu_si512(w + 64 * (j - 4)), 4), mask);
    }
  }

  INLINE_MEMBER i16v dot(const uint8_t* x) const {
    __m512i sum = _mm512_setzero_si512();
    for (int j = 0; j < 8; j++) {
      int32_t four;
      std::memcpy(&four, x + 4 * j, 4);
      sum = _mm512_dpbusd_epi32(sum, v[j], _mm512_set1_epi32(four));
    }
    return (i16v)sum;
  }
#else
  // 8-bit codes go as two 4-bit halves: products of two pairs of 8 bits would not fit the 16 bits of maddubs.
  static constexpr int PARTS = FORMAT == Q4 ? 1 : 2;
  alignas(32) uint8_t v[PARTS][8 * 64];

  explicit GroupCodes(const uint8_t* w) {
    for (int i = 0; i < code_bytes(FORMAT); i++) {
      const uint8_t low = w[i] & 15, high = w[i] >> 4;
      v[0][i] = low;
      if (FORMAT == Q4)
        v[0][i + code_bytes(Q4)] = high;
      else
        v[PARTS - 1][i] = high;
    }
  }

  i16v dot(const uint8_t* x) const {
    i16v sums = {};
    for (int part = 0; part < PARTS; part++)
      for (int half = 0; half < 2; half++) {
        __m256i sum = _mm256_setzero_si256();  // at most 16 * 15 * 128 in each of the 16 bits
        for (int j = 0; j < 8; j++) {
          int32_t four;
          std::memcpy(&four, x + 4 * j, 4);
          const __m256i codes = _mm256_load_si256((const __m256i*)(v[part] + 64 * j + 32 * half));
          sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(codes, _mm256_set1_epi32(four)));
        }
        const __m256i wide = _mm256_madd_epi16(sum, _mm256_set1_epi16(1));
        __m256i& to = ((__m256i*)&sums)[half];
        to = _mm256_add_epi32(to, part ? _mm256_slli_epi32(wide, 4) : wide);
      }
    return sums;
  }
#endif
};

// Prefetches the weights `AHEAD` bytes further on: the CPU's own prefetch is late where each weight is used for little.
constexpr int AHEAD = 8192;
INLINE void prefetch(const uint8_t* w, int bytes) {
  for (int i = 0; i < bytes; i += 64) _mm_prefetch((const char*)w + AHEAD + i, _MM_HINT_T0);
}

// Sums for `ROWS` rows of a panel of 4- or 8-bit weights. scale * code + minimum; the minimum of Q8 is -128 * scale.
template <int FORMAT, int ROWS>
INLINE void quantised_panel(const uint8_t* w, int inputs, const Inputs& x, int row, f16v* sums) {
  const int groups = inputs / GROUP;
  for (int g = 0; g < groups; g++, w += group_bytes(FORMAT)) {
    const uint16_t* scales = (const uint16_t*)(w + code_bytes(FORMAT));
    const f16v scale = halves(scales);
    const f16v minimum = FORMAT == Q4 ? halves(scales + LANES) : scale * -128.0f;
    prefetch(w, group_bytes(FORMAT));
    const GroupCodes<FORMAT> codes(w);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++) {
      const size_t at = (size_t)(row + r) * groups + g;
      i16v dot = codes.dot(x.codes.data() + at * GROUP);
      if (x.fine[at]) dot = (dot << 8) + codes.dot((const uint8_t*)x.low.data() + at * GROUP);
      sums[r] += minimum * x.sums[at];
      sums[r] += __builtin_convertvector(dot, f16v) * (scale * x.scales[at]);
    }
  }
}

template <int ROWS>
INLINE void bf16_panel(const uint8_t* w, int inputs, const Inputs& x, int row, f16v* sums) {
  constexpr int CHAINS = 2;  // with few rows a sum would wait for the one before; the same with many, because a row's
                             // result must not depend on the number of rows
  const uint32_t* pairs = (const uint32_t*)x.codes.data() + (size_t)row * inputs / 2;
  f16v partial[CHAINS][ROWS] = {};
  const int count = inputs / 2;
  int i = 0;
  for (; i + CHAINS <= count; i += CHAINS)
#pragma GCC unroll 2
    for (int c = 0; c < CHAINS; c++) {
      prefetch(w + (size_t)(i + c) * 64, 64);
      u16v v = *(const u16u*)(w + (size_t)(i + c) * 64);
#pragma GCC unroll 8
      for (int r = 0; r < ROWS; r++) partial[c][r] = dot2(partial[c][r], v, pairs[(size_t)r * count + i + c]);
    }
  for (; i < count; i++)
    for (int r = 0; r < ROWS; r++)
      partial[0][r] = dot2(partial[0][r], *(const u16u*)(w + (size_t)i * 64), pairs[(size_t)r * count + i]);
  for (int c = 0; c < CHAINS; c++)
    for (int r = 0; r < ROWS; r++) sums[r] += partial[c][r];
}

// fp32 inputs, weights in fp32 or fp16
template <int FORMAT, int ROWS>
INLINE void plain_panel(const uint8_t* w, int inputs, const Inputs& x, int row, f16v* sums) {
  const float* rows = (const float*)x.codes.data() + (size_t)row * inputs;
  for (int i = 0; i < inputs; i++) {
    const size_t at = (size_t)i * LANES;
    prefetch(w + at * (FORMAT == F16 ? 2 : 4), FORMAT == F16 ? 32 : 64);
    const f16v v = FORMAT == F16 ? halves((const uint16_t*)w + at) : load((const float*)w + at);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++) sums[r] += v * rows[(size_t)r * inputs + i];
  }
}

template <int ROWS>
static void panel_rows(const Matrix& m, int panel, const Inputs& x, int row, f16v* sums) {
  const uint8_t* w = m.data + panel_bytes(m.format, m.inputs) * panel;
  f16v start = m.bias ? load(m.bias + panel * LANES) : f16v{};
  f16v local[ROWS];
  for (int r = 0; r < ROWS; r++) local[r] = start;
  switch (m.format) {
    case F32:
      plain_panel<F32, ROWS>(w, m.inputs, x, row, local);
      break;
    case F16:
      plain_panel<F16, ROWS>(w, m.inputs, x, row, local);
      break;
    case BF16:
      bf16_panel<ROWS>(w, m.inputs, x, row, local);
      break;
    case Q8:
      quantised_panel<Q8, ROWS>(w, m.inputs, x, row, local);
      break;
    default:
      quantised_panel<Q4, ROWS>(w, m.inputs, x, row, local);
  }
  for (int r = 0; r < ROWS; r++) sums[r] = local[r];
}

#ifdef RUNGPT_AMX

// sums: [rows, 16], rows <= TILED_ROWS.
static void bf16_tiled(const Matrix& m, int panel, const Inputs& x, int row, int rows, f16v* sums) {
  const uint8_t* w = m.data + panel_bytes(BF16, m.inputs) * panel;
  const size_t block = (size_t)TILE_ROWS * m.inputs * 2;
  const uint8_t* from = x.codes.data() + row / TILE_ROWS * block;
  with_tiles<false>(rows, [&](auto tiles) {
    tiles.clear();
    for (int i = 0; i < m.inputs / TILE_INPUTS; i++) {
      prefetch(w + i * TILE_BYTES, TILE_BYTES);
      tiles.add(w + i * TILE_BYTES, from + i * TILE_BYTES, block, 64);
    }
    tiles.store(sums);
  });
  if (m.bias)
    for (int r = 0; r < rows; r++) sums[r] += load(m.bias + panel * LANES);
}

// Same result as quantised_panel, to the last bit: sums of integers do not depend on the order.
template <int FORMAT>
static void quantised_tiled(const Matrix& m, int panel, const Inputs& x, int row, int rows, f16v* sums) {
  const uint8_t* w = m.data + panel_bytes(FORMAT, m.inputs) * panel;
  const int groups = m.inputs / GROUP;
  const f16v start = m.bias ? load(m.bias + panel * LANES) : f16v{};
  for (int r = 0; r < rows; r++) sums[r] = start;
  with_tiles<true>(rows, [&](auto tiles) {
    // A group's tiles run while the sums of the group before are scaled.
    alignas(64) i16v dots[2][TILED_ROWS], low[2][TILED_ROWS];
    int any_fine[2];
    auto multiply_group = [&](int g) {
      prefetch(w + (size_t)g * group_bytes(FORMAT), group_bytes(FORMAT));
      const GroupCodes<FORMAT> codes(w + (size_t)g * group_bytes(FORMAT));
      const size_t at = (size_t)row * m.inputs + g * GROUP;
      const int turn = g % 2;
      tiles.clear();
      tiles.add((const uint8_t*)codes.v, x.codes.data() + at, TILE_ROWS * m.inputs, m.inputs);
      tiles.store(dots[turn]);
      any_fine[turn] = 0;
      for (int r = 0; r < rows; r++) any_fine[turn] |= x.fine[(size_t)(row + r) * groups + g];
      if (!any_fine[turn]) return;  // mostly a group is fine in all rows or in none
      tiles.clear();
      tiles.add((const uint8_t*)codes.v, (const uint8_t*)x.low.data() + at, TILE_ROWS * m.inputs, m.inputs);
      tiles.store(low[turn]);
    };
    multiply_group(0);
    for (int g = 0; g < groups; g++) {
      if (g + 1 < groups) multiply_group(g + 1);
      const uint16_t* scales = (const uint16_t*)(w + (size_t)g * group_bytes(FORMAT) + code_bytes(FORMAT));
      const f16v scale = halves(scales);
      const f16v minimum = FORMAT == Q4 ? halves(scales + LANES) : scale * -128.0f;
      if (any_fine[g % 2])
        for (int r = 0; r < rows; r++)
          if (x.fine[(size_t)(row + r) * groups + g]) dots[g % 2][r] = (dots[g % 2][r] << 8) + low[g % 2][r];
      for (int r = 0; r < rows; r++) {
        const size_t at = (size_t)(row + r) * groups + g;
        sums[r] += minimum * x.sums[at];
        sums[r] += __builtin_convertvector(dots[g % 2][r], f16v) * (scale * x.scales[at]);
      }
    }
  });
}

#endif

constexpr int WORTH_TILES = 16;  // rows from which on the tiles of quantised weights are faster than vectors

// Largest number of rows in one pass over a panel.
INLINE int rows_at_once(const Matrix& m, int rows) {
  const bool worth = (m.format == Q8 || m.format == Q4) && rows >= WORTH_TILES && has_tiles();
  return worth || in_tiles(m.format, m.inputs) ? TILED_ROWS : TILE;
}

// sums[0 .. rows) of one panel; rows <= most, the result of rows_at_once
static void multiply(const Matrix& m, int panel, const Inputs& x, int row, int rows, int most, f16v* sums) {
#ifdef RUNGPT_AMX
  if (most == TILED_ROWS) {
    if (m.format == BF16) return bf16_tiled(m, panel, x, row, rows, sums);
    if (m.format == Q8) return quantised_tiled<Q8>(m, panel, x, row, rows, sums);
    return quantised_tiled<Q4>(m, panel, x, row, rows, sums);
  }
#endif
  switch (rows) {
    case 1:
      return panel_rows<1>(m, panel, x, row, sums);
    case 2:
      return panel_rows<2>(m, panel, x, row, sums);
    case 3:
      return panel_rows<3>(m, panel, x, row, sums);
    case 4:
      return panel_rows<4>(m, panel, x, row, sums);
    case 5:
      return panel_rows<5>(m, panel, x, row, sums);
    case 6:
      return panel_rows<6>(m, panel, x, row, sums);
    case 7:
      return panel_rows<7>(m, panel, x, row, sums);
    default:
      return panel_rows<TILE>(m, panel, x, row, sums);
  }
}

// out: [rows, stride]; adds to what is there if ADD
template <bool ADD>
static void product(Team& team, const Matrix& m, const Inputs& x, int rows, float* out, int stride) {
  const int count = panels(m.outputs), most = rows_at_once(m, rows);
  team.loop(count, std::max(1, count / (8 * team.size())), [&](int panel) {
    int width = std::min(LANES, m.outputs - panel * LANES);
    for (int row = 0; row < rows; row += most) {
      f16v sums[TILED_ROWS];
      int n = std::min(most, rows - row);
      multiply(m, panel, x, row, n, most, sums);
      for (int r = 0; r < n; r++) {
        float* to = out + (size_t)(row + r) * stride + panel * LANES;
        if (width == LANES) {
          store(to, ADD ? load(to) + sums[r] : sums[r]);
        } else {
          for (int i = 0; i < width; i++) to[i] = ADD ? to[i] + sums[r][i] : sums[r][i];
        }
      }
    }
  });
}

// out: [rows, intermediate]: the activation of up; `extra`: null, or an addition to up for the rows where `extra_of` is
// true, the second half of [rows, 2 * intermediate].
static void active_product(Team& team, int activation, const Matrix& m, const Inputs& x, int rows, float* out,
                           int stride, const float* extra, const uint8_t* extra_of) {
  const int count = panels(m.outputs), most = rows_at_once(m, rows);
  team.loop(count, std::max(1, count / (8 * team.size())), [&](int i) {
    for (int row = 0; row < rows; row += most) {
      f16v up[TILED_ROWS];
      const int n = std::min(most, rows - row);
      multiply(m, i, x, row, n, most, up);
      for (int r = 0; r < n; r++) {
        if (extra && extra_of[row + r]) up[r] += load(extra + (size_t)(row + r) * 2 * stride + stride + i * LANES);
        store(out + (size_t)(row + r) * stride + i * LANES, activate(activation, up[r]));
      }
    }
  });
}

// out: [rows, intermediate]: the activation of gate, times up. `extra`: null, or an addition to gate and up for the rows where
// `extra_of` is true, [rows, 2 * intermediate].
static void gated_product(Team& team, int activation, const Matrix& m, const Inputs& x, int rows, float* out,
                          int stride, const float* extra, const uint8_t* extra_of) {
  const int count = panels(m.outputs) / 2, most = rows_at_once(m, rows);
  team.loop(count, std::max(1, count / (8 * team.size())), [&](int i) {
    for (int row = 0; row < rows; row += most) {
      f16v gate[TILED_ROWS], up[TILED_ROWS];
      int n = std::min(most, rows - row);
      multiply(m, 2 * i, x, row, n, most, gate);
      multiply(m, 2 * i + 1, x, row, n, most, up);
      for (int r = 0; r < n; r++) {
        if (extra && extra_of[row + r]) {
          const float* more = extra + (size_t)(row + r) * 2 * stride + i * LANES;
          gate[r] += load(more), up[r] += load(more + stride);
        }
        store(out + (size_t)(row + r) * stride + i * LANES, activate(activation, gate[r]) * up[r]);
      }
    }
  });
}

// The first of the largest of n numbers, or -1 if one of them is NaN.
static int likeliest(const float* x, int n) {
  f16v best = splat(-INFINITY);
  i16v where = {}, broken = {};
  int i = 0;
  for (; i + LANES <= n; i += LANES) {
    const f16v v = load(x + i);
    const auto larger = v > best;
    best = larger ? v : best;
    where = larger ? NUMBERS + i : where;
    broken |= v != v;
  }
  int chosen = n, any = 0;
  float value = -INFINITY;
  for (int lane = 0; lane < LANES; lane++) {
    any |= broken[lane];
    if (best[lane] > value || (best[lane] == value && where[lane] < chosen)) value = best[lane], chosen = where[lane];
  }
  for (; i < n; i++) {
    any |= x[i] != x[i];
    if (x[i] > value) value = x[i], chosen = i;
  }
  return any ? -1 : chosen;
}

// out [outputs] += an adapter's addition for x [inputs]; `middle` is scratch memory, as large as its rank.
static void add_lora(const Lora& lora, const float* x, Lines<float>& middle, float* out) {
  if (!lora.a) return;
  if ((int)middle.size() < lora.rank) middle.resize(lora.rank);
  for (int j = 0; j < lora.rank; j++) {
    f16v sums = {};
    for (int i = 0; i < lora.inputs; i += LANES) sums += load(lora.a + (size_t)j * lora.inputs + i) * load(x + i);
    middle[j] = total(sums);
  }
  for (int i = 0; i < lora.outputs; i += LANES) {
    f16v sums = load(out + i);
    for (int j = 0; j < lora.rank; j++) sums += load(lora.b + (size_t)j * lora.outputs + i) * middle[j];
    store(out + i, sums);
  }
}

// One row of weights as fp32: [inputs]
static void unpack_row(const Matrix& m, int row, float* out) {
  const uint8_t* w = m.data + panel_bytes(m.format, m.inputs) * (row / LANES);
  const int lane = row % LANES;
  for (int i = 0; i < m.inputs; i++) {
    if (m.format == F32) {
      out[i] = ((const float*)w)[(size_t)i * LANES + lane];
    } else if (m.format == F16) {
      out[i] = half_to_float(((const uint16_t*)w)[(size_t)i * LANES + lane]);
    } else if (m.format == BF16) {
      out[i] = bf16_to_float(((const uint16_t*)w)[(size_t)(i / 2) * 2 * LANES + lane * 2 + i % 2]);
    } else {
      const int in = i % GROUP;
      const uint8_t* group = w + (size_t)(i / GROUP) * group_bytes(m.format);
      const uint16_t* scales = (const uint16_t*)(group + code_bytes(m.format));
      if (m.format == Q8) {
        out[i] = half_to_float(scales[lane]) * (group[in / 4 * 64 + lane * 4 + in % 4] - 128);
      } else {
        const int both = group[in % 16 / 4 * 64 + lane * 4 + in % 4], code = in < 16 ? both & 15 : both >> 4;
        out[i] = half_to_float(scales[lane]) * code + half_to_float(scales[LANES + lane]);
      }
    }
  }
}

// The numbers that the codes of one group stand for: code * scale + zero.
struct Grid {
  float scale, zero;
  int lowest, highest;

  Grid(float scale_, float zero_, int lowest_, int highest_)
      : scale(half_to_float(float_to_half(scale_))),
        zero(half_to_float(float_to_half(zero_))),
        lowest(lowest_),
        highest(highest_) {}
  int code(float x) const {
    return scale != 0 ? (int)std::clamp(std::nearbyint((x - zero) / scale), (float)lowest, (float)highest) : 0;
  }
  float reach() const { return std::fabs(zero) + std::fabs(scale) * highest; }
  float error(const float* x) const {
    float sum = 0;
    for (int i = 0; i < GROUP; i++) {
      const float e = x[i] - (code(x[i]) * scale + zero);
      sum += e * e;
    }
    return sum;
  }
};

// In 4 bits the better of the grids of GGUF's Q4_1 (from the lowest weight to the highest) and Q4_0 (whole steps of an
// eighth of the largest), so that weights from such a file are kept without loss. In 8 bits the grid of Q8_0.
static Grid best_grid(int format, const float* x) {
  const float low = *std::min_element(x, x + GROUP), high = *std::max_element(x, x + GROUP);
  const float largest = std::max(-low, high);
  if (format == Q8) return Grid(largest / 127, 0, -127, 127);
  const Grid span((high - low) / 15, low, 0, 15);
  const float step = half_to_float(float_to_half(largest / 8));
  const Grid even = -low >= high ? Grid(step, -8 * step, 0, 15) : Grid(-step, 8 * step, 0, 15);
  return even.error(x) < span.error(x) ? even : span;
}

// Writes weights [outputs, inputs] as panels, first panel `panel`, each `step` panels after the one before. Returns the
// largest error of a quantised weight, as a part of the largest number that its group can hold.
static float pack(int format, const float* weights, int outputs, int inputs, uint8_t* data, int panel, int step) {
  float worst = 0;
  const int groups = inputs / GROUP;
  for (int p = 0; p < panels(outputs); p++) {
    uint8_t* w = data + panel_bytes(format, inputs) * (panel + (size_t)p * step);
    for (int lane = 0; lane < LANES; lane++) {
      const int row = p * LANES + lane;
      std::vector<float> zeros;
      const float* from = weights + (size_t)row * inputs;
      if (row >= outputs) zeros.resize(inputs), from = zeros.data();
      if (format == F32) {
        for (int i = 0; i < inputs; i++) ((float*)w)[(size_t)i * LANES + lane] = from[i];
        continue;
      }
      if (format == F16) {
        for (int i = 0; i < inputs; i++) ((uint16_t*)w)[(size_t)i * LANES + lane] = float_to_half(from[i]);
        continue;
      }
      if (format == BF16) {
        for (int i = 0; i < inputs; i++)
          ((uint16_t*)w)[(size_t)(i / 2) * 2 * LANES + lane * 2 + i % 2] = float_to_bf16(from[i]);
        continue;
      }
      for (int g = 0; g < groups; g++) {
        const float* x = from + g * GROUP;
        const Grid grid = best_grid(format, x);
        uint8_t* group = w + (size_t)g * group_bytes(format);
        for (int i = 0; i < GROUP; i++) {
          const int code = grid.code(x[i]);
          const float error = std::fabs(x[i] - (code * grid.scale + grid.zero));
          if (error > 0) worst = std::max(worst, error / std::max(grid.reach(), 1e-30f));
          if (format == Q4) {
            uint8_t& both = group[i % 16 / 4 * 64 + lane * 4 + i % 4];
            both = i < 16 ? (both & 0xf0) | (uint8_t)code : (both & 0x0f) | (uint8_t)(code << 4);
          } else {
            group[i / 4 * 64 + lane * 4 + i % 4] = (uint8_t)(code + 128);
          }
        }
        uint16_t* scales = (uint16_t*)(group + code_bytes(format));
        scales[lane] = float_to_half(grid.scale);
        if (format == Q4) scales[LANES + lane] = float_to_half(grid.zero);
      }
    }
  }
  return worst;
}

}  // namespace rungpt
