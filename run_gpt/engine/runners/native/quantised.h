// Products of quantised weights with input rows in 8 bits, or 16 where a group has an outlier: see Inputs, and Coding
// for the layouts.
#pragma once

#include <type_traits>

#include "inputs.h"

namespace rungpt {

// Calls f with the format as a constant, std::integral_constant<int, FORMAT>; it is a quantised one.
template <class F>
INLINE void with_format(int format, F f) {
  switch (format) {
    case Q8:
      return f(std::integral_constant<int, Q8>());
    case Q5:
      return f(std::integral_constant<int, Q5>());
    case IQ4:
      return f(std::integral_constant<int, IQ4>());
    case Q2_K:
      return f(std::integral_constant<int, Q2_K>());
    case Q3_K:
      return f(std::integral_constant<int, Q3_K>());
    case Q4_K:
      return f(std::integral_constant<int, Q4_K>());
    case Q5_K:
      return f(std::integral_constant<int, Q5_K>());
    case Q6_K:
      return f(std::integral_constant<int, Q6_K>());
    case IQ4_XS:
      return f(std::integral_constant<int, IQ4_XS>());
    default:
      return f(std::integral_constant<int, Q4>());
  }
}

// The planes of group g of a panel.
template <int FORMAT>
INLINE const uint8_t* planes(const uint8_t* panel, int g) {
  if constexpr (coding(FORMAT).blocks)
    return panel + (size_t)(g / BLOCK_GROUPS) * block_bytes(FORMAT) + g % BLOCK_GROUPS * code_bytes(FORMAT);
  else
    return panel + (size_t)g * group_bytes(FORMAT);
}

// The scales and minima of group g of a panel: a weight is scale * code + minimum, where its code is not less than 0.
template <int FORMAT>
struct GroupScales {
  static constexpr Coding C = coding(FORMAT);
  static constexpr int PARTS = C.scales;
  f16v scale[PARTS], minimum[PARTS];

  INLINE_MEMBER GroupScales(const uint8_t* panel, int g) {
    if constexpr (C.blocks) {
      const uint8_t* integers = panel + (size_t)(g / BLOCK_GROUPS) * block_bytes(FORMAT) + BLOCK_GROUPS * code_bytes(FORMAT);
      const uint16_t* factors = (const uint16_t*)(integers + integer_bytes(FORMAT));
      const uint8_t* own = integers + g % BLOCK_GROUPS * PARTS * LANES;
      for (int p = 0; p < PARTS; p++) {
        scale[p] = halves(factors) * small_integers(own + p * LANES);
        minimum[p] = C.minima
                         ? -halves(factors + LANES) * small_integers(own + integer_bytes(FORMAT) / 2 + p * LANES)
                         : scale[p] * (float)-C.offset;
      }
    } else {
      const uint16_t* scales = (const uint16_t*)(planes<FORMAT>(panel, g) + code_bytes(FORMAT));
      scale[0] = halves(scales);
      minimum[0] = C.minima ? halves(scales + LANES) : scale[0] * (float)-C.offset;
    }
  }
};

// The codes of group g of a panel, ready for products with inputs in 8 bits.
template <int FORMAT>
struct GroupCodes {
  static constexpr Coding C = coding(FORMAT);
  static constexpr int STEPS = 8 / C.scales;  // of 4 inputs, for each of a group's scales
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
  __m512i v[8];  // of inputs 4j to 4j + 3

  template <int BITS>
  INLINE_MEMBER static __m512i plane(const uint8_t* w, int j) {
    const __m512i bytes = _mm512_loadu_si512(w + 64 * (j % BITS));
    if (BITS == 8) return bytes;
    return _mm512_and_si512(_mm512_srli_epi16(bytes, j / BITS * BITS), _mm512_set1_epi8((1 << BITS) - 1));
  }

  INLINE_MEMBER GroupCodes(const uint8_t* panel, int g) {
    const uint8_t* w = planes<FORMAT>(panel, g);
#pragma GCC unroll 8
    for (int j = 0; j < 8; j++) {
      v[j] = plane<C.low>(w, j);
      if constexpr (C.high > 0)
        v[j] = _mm512_or_si512(v[j], _mm512_slli_epi16(plane<C.high>(w + 64 * C.low, j), C.low));
      if constexpr (C.table)
        v[j] = _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)LEVELS)), v[j]);
    }
  }

  int at(int input, int lane) const { return ((const uint8_t*)v)[input / 4 * 64 + lane * 4 + input % 4]; }

  // Sums over the inputs of scale `part`; x: the group's inputs.
  INLINE_MEMBER i16v dot(const uint8_t* x, int part) const {
    __m512i sum = _mm512_setzero_si512();
#pragma GCC unroll 8
    for (int j = part * STEPS; j < (part + 1) * STEPS; j++) {
      int32_t four;
      std::memcpy(&four, x + 4 * j, 4);
      sum = _mm512_dpbusd_epi32(sum, v[j], _mm512_set1_epi32(four));
    }
    return (i16v)sum;
  }
#else
  // Codes of 8 bits go as two 4-bit halves: products of two pairs of 8 bits would not fit the 16 bits of maddubs.
  static constexpr bool WIDE = C.low == 8 || C.table;
  static constexpr int BITS = WIDE ? 4 : C.low + C.high;
  static constexpr int AT_ONCE = BITS > 5 ? 2 : BITS > 4 ? 4 : STEPS;  // steps whose sums fit 16 bits
  alignas(32) uint8_t v[WIDE ? 2 : 1][8 * 64];

  __attribute__((noinline)) GroupCodes(const uint8_t* panel, int g) {
    const uint8_t* w = planes<FORMAT>(panel, g);
    uint8_t code[8 * 64];
    for (int i = 0; i < 8 * 64; i++)
      code[i] = w[i % (64 * C.low)] >> i / (64 * C.low) * C.low & ((1 << C.low) - 1);
    if constexpr (C.high > 0) {
      constexpr int PLANE = 64 * C.high;
      for (int i = 0; i < 8 * 64; i++)
        code[i] |= (w[64 * C.low + i % PLANE] >> i / PLANE * C.high & ((1 << C.high) - 1)) << C.low;
    }
    for (int i = 0; i < 8 * 64; i++) {
      const uint8_t level = C.table ? LEVELS[code[i]] : code[i];
      v[0][i] = WIDE ? level & 15 : level;
      if (WIDE) v[WIDE][i] = level >> 4;
    }
  }

  int at(int input, int lane) const {
    const int i = input / 4 * 64 + lane * 4 + input % 4;
    return WIDE ? v[0][i] + 16 * v[WIDE][i] : v[0][i];
  }

  __attribute__((noinline)) i16v dot(const uint8_t* x, int part) const {
    i16v sums = {};
    for (int nibble = 0; nibble <= (int)WIDE; nibble++)
      for (int half = 0; half < 2; half++) {
        __m256i wide = _mm256_setzero_si256();
        for (int first = part * STEPS; first < (part + 1) * STEPS; first += AT_ONCE) {
          __m256i sum = _mm256_setzero_si256();
          for (int j = first; j < first + AT_ONCE; j++) {
            int32_t four;
            std::memcpy(&four, x + 4 * j, 4);
            const __m256i codes = _mm256_load_si256((const __m256i*)(v[nibble] + 64 * j + 32 * half));
            sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(codes, _mm256_set1_epi32(four)));
          }
          wide = _mm256_add_epi32(wide, _mm256_madd_epi16(sum, _mm256_set1_epi16(1)));
        }
        __m256i& to = ((__m256i*)&sums)[half];
        to = _mm256_add_epi32(to, nibble ? _mm256_slli_epi32(wide, 4) : wide);
      }
    return sums;
  }
#endif
};

// sums += the products of one group, whose codes and inputs have these sums; `at`: row and group of the inputs.
template <int FORMAT>
INLINE void add_group(f16v& sums, const GroupScales<FORMAT>& group, const i16v* dots, const Inputs& x, size_t at) {
  if constexpr (GroupScales<FORMAT>::PARTS == 1) {
    sums += group.minimum[0] * x.sums[at];
    sums += __builtin_convertvector(dots[0], f16v) * (group.scale[0] * x.scales[at]);
  } else {
    sums += group.minimum[0] * x.half_sums[2 * at];
    sums += group.minimum[1] * x.half_sums[2 * at + 1];
    f16v both = __builtin_convertvector(dots[0], f16v) * group.scale[0];
    both += __builtin_convertvector(dots[1], f16v) * group.scale[1];
    sums += both * x.scales[at];
  }
}

// Sums for `ROWS` rows of a panel.
template <int FORMAT, int ROWS>
INLINE void quantised_panel(const uint8_t* panel, int inputs, const Inputs& x, int row, f16v* sums) {
  constexpr int PARTS = GroupScales<FORMAT>::PARTS;
  constexpr int BYTES = coding(FORMAT).blocks ? block_bytes(FORMAT) / BLOCK_GROUPS : group_bytes(FORMAT);
  const int groups = inputs / GROUP;
  for (int g = 0; g < groups; g++) {
    prefetch(panel + (size_t)g * BYTES, BYTES);
    const GroupScales<FORMAT> scales(panel, g);
    const GroupCodes<FORMAT> codes(panel, g);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++) {
      const size_t at = (size_t)(row + r) * groups + g;
      i16v dots[PARTS];
      for (int p = 0; p < PARTS; p++) dots[p] = codes.dot(x.codes.data() + at * GROUP, p);
      if (x.fine[at])
        for (int p = 0; p < PARTS; p++)
          dots[p] = (dots[p] << 8) + codes.dot((const uint8_t*)x.low.data() + at * GROUP, p);
      add_group(sums[r], scales, dots, x, at);
    }
  }
}

#ifdef RUNGPT_AMX

// Same result as quantised_panel, to the last bit: sums of integers do not depend on the order.
template <int FORMAT>
static void quantised_tiled(const Matrix& m, int panel, const Inputs& x, int row, int rows, f16v* sums) {
  constexpr int PARTS = GroupScales<FORMAT>::PARTS, INPUTS = GROUP / PARTS;
  constexpr int BYTES = coding(FORMAT).blocks ? block_bytes(FORMAT) / BLOCK_GROUPS : group_bytes(FORMAT);
  const uint8_t* w = m.data + panel_bytes(FORMAT, m.inputs) * panel;
  const int groups = m.inputs / GROUP;
  const f16v start = m.bias ? load(m.bias + panel * LANES) : f16v{};
  for (int r = 0; r < rows; r++) sums[r] = start;
  with_tiles<true>(rows, INPUTS, [&](auto tiles) {
    // A group's tiles run while the sums of the group before are scaled.
    alignas(64) i16v dots[2][PARTS][TILED_ROWS], low[2][PARTS][TILED_ROWS];
    int any_fine[2];
    auto multiply_tiles = [&](const GroupCodes<FORMAT>& codes, const uint8_t* from, i16v (*to)[TILED_ROWS]) {
      for (int p = 0; p < PARTS; p++) {
        tiles.clear();
        tiles.add((const uint8_t*)(codes.v + p * (8 / PARTS)), from + p * INPUTS, TILE_ROWS * m.inputs, m.inputs);
        tiles.store(to[p]);
      }
    };
    auto multiply_group = [&](int g) {
      prefetch(w + (size_t)g * BYTES, BYTES);
      const GroupCodes<FORMAT> codes(w, g);
      const size_t at = (size_t)row * m.inputs + g * GROUP;
      const int turn = g % 2;
      multiply_tiles(codes, x.codes.data() + at, dots[turn]);
      any_fine[turn] = 0;
      for (int r = 0; r < rows; r++) any_fine[turn] |= x.fine[(size_t)(row + r) * groups + g];
      // mostly a group is fine in all rows or in none
      if (any_fine[turn]) multiply_tiles(codes, (const uint8_t*)x.low.data() + at, low[turn]);
    };
    multiply_group(0);
    for (int g = 0; g < groups; g++) {
      if (g + 1 < groups) multiply_group(g + 1);
      const GroupScales<FORMAT> scales(w, g);
      for (int r = 0; r < rows; r++) {
        const size_t at = (size_t)(row + r) * groups + g;
        i16v own[PARTS];
        for (int p = 0; p < PARTS; p++) {
          own[p] = dots[g % 2][p][r];
          if (any_fine[g % 2] && x.fine[at]) own[p] = (own[p] << 8) + low[g % 2][p][r];
        }
        add_group(sums[r], scales, own, x, at);
      }
    }
  });
}

#endif

}  // namespace rungpt
