// Linear layers: products of panels with all rows of a step, additions of adapters, and the likeliest token.
#pragma once

#include <algorithm>
#include <vector>

#include "norm.h"
#include "plain.h"
#include "quantised.h"
#include "team.h"

namespace rungpt {

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
    default:
      with_format(m.format, [&](auto format) { quantised_panel<format, ROWS>(w, m.inputs, x, row, local); });
  }
  for (int r = 0; r < ROWS; r++) sums[r] = local[r];
}

constexpr int WORTH_TILES = 16;  // rows from which on the tiles of quantised weights are faster than vectors

// Largest number of rows in one pass over a panel.
INLINE int rows_at_once(const Matrix& m, int rows) {
  const bool worth = is_quantised(m.format) && rows >= WORTH_TILES && has_tiles();
  return worth || in_tiles(m.format, m.inputs) ? TILED_ROWS : TILE;
}

// sums[0 .. rows) of one panel; rows <= most, the result of rows_at_once
static void multiply(const Matrix& m, int panel, const Inputs& x, int row, int rows, int most, f16v* sums) {
  if (const Matrix* part = m.parts) {
    for (; panel >= panels(part->outputs); part++) panel -= panels(part->outputs);
    return multiply(*part, panel, x, row, rows, most, sums);
  }
#ifdef RUNGPT_AMX
  if (most == TILED_ROWS) {
    if (m.format == BF16) return bf16_tiled(m, panel, x, row, rows, sums);
    return with_format(m.format, [&](auto format) { quantised_tiled<format>(m, panel, x, row, rows, sums); });
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
      multiply(m.parts ? m.parts[0] : m, m.parts ? i : 2 * i, x, row, n, most, gate);
      multiply(m.parts ? m.parts[1] : m, m.parts ? i : 2 * i + 1, x, row, n, most, up);
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

}  // namespace rungpt
