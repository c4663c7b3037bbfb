// Products of weights in 4 and 8 bits with input rows in 8 bits, or 16 where a group has an outlier: see Inputs.
#pragma once

#include "inputs.h"

namespace rungpt {

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

#ifdef RUNGPT_AMX

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

}  // namespace rungpt
