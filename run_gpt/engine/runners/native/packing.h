// Packing of weights into panels, whose layout `inputs.h` describes, and rows of them as fp32 again.
#pragma once

#include <algorithm>
#include <vector>

#include "quantised.h"

namespace rungpt {

// One row of weights as fp32: [inputs]
static void unpack_row(const Matrix& m, int row, float* out) {
  const uint8_t* w = m.data + panel_bytes(m.format, m.inputs) * (row / LANES);
  const int lane = row % LANES;
  if (is_quantised(m.format))
    return with_format(m.format, [&](auto format) {
      for (int g = 0; g < m.inputs / GROUP; g++) {
        const GroupScales<format> scales(w, g);
        const GroupCodes<format> codes(w, g);
        for (int i = 0; i < GROUP; i++) {
          const int part = i * scales.PARTS / GROUP;
          out[g * GROUP + i] = std::fma((float)codes.at(i, lane), scales.scale[part][lane], scales.minimum[part][lane]);
        }
      }
    });
  for (int i = 0; i < m.inputs; i++) {
    if (m.format == F32) {
      out[i] = ((const float*)w)[(size_t)i * LANES + lane];
    } else if (m.format == F16) {
      out[i] = half_to_float(((const uint16_t*)w)[(size_t)i * LANES + lane]);
    } else {
      out[i] = bf16_to_float(((const uint16_t*)w)[(size_t)(i / 2) * 2 * LANES + lane * 2 + i % 2]);
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
