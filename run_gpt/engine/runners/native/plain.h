// Products of weights in bf16, fp16 and fp32.
#pragma once

#include "inputs.h"

namespace rungpt {

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

#ifdef RUNGPT_AMX

// sums: [rows, 16], rows <= TILED_ROWS.
static void bf16_tiled(const Matrix& m, int panel, const Inputs& x, int row, int rows, f16v* sums) {
  const uint8_t* w = m.data + panel_bytes(BF16, m.inputs) * panel;
  const size_t block = (size_t)TILE_ROWS * m.inputs * 2;
  const uint8_t* from = x.codes.data() + row / TILE_ROWS * block;
  with_tiles<false>(rows, TILE_INPUTS, [&](auto tiles) {
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

#endif

}  // namespace rungpt
