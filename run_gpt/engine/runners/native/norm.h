// What is done to the numbers of one row between products: norms, rotations, activations.
#pragma once

#include "model.h"
#include "simd.h"

namespace rungpt {

// (x - mean) / sqrt(variance + epsilon) * weight + bias; of RMS the mean counts as 0. out may be x.
INLINE void apply_norm(const Norm& norm, const float* x, float* out) {
  const int n = norm.size;
  float mean = 0;
  int i;
  if (norm.kind == MEAN) {
    f16v sums = {};
    for (i = 0; i + LANES <= n; i += LANES) sums += load(x + i);
    mean = total(sums);
    for (; i < n; i++) mean += x[i];
    mean /= n;
  }
  f16v squares = {};
  for (i = 0; i + LANES <= n; i += LANES) {
    const f16v v = load(x + i) - mean;
    squares += v * v;
  }
  float sum = total(squares);
  for (; i < n; i++) sum += (x[i] - mean) * (x[i] - mean);
  const float factor = 1.0f / std::sqrt(sum / n + norm.epsilon);
  for (i = 0; i + LANES <= n; i += LANES) {
    f16v v = (load(x + i) - mean) * factor;
    if (norm.weight) v *= load(norm.weight + i);
    if (norm.bias) v += load(norm.bias + i);
    store(out + i, v);
  }
  for (; i < n; i++) out[i] = (x[i] - mean) * factor * (norm.weight ? norm.weight[i] : 1) + (norm.bias ? norm.bias[i] : 0);
}

// Rotates the first `rotated` numbers of a head (Su et al. 2021): halves as in GPT-NeoX, or pairs as in GPT-J.
INLINE void rotate(float* x, const float* cos, const float* sin, int rotated, bool pairs) {
  const int half = rotated / 2;
  auto turn = [&](float& a, float& b, int i) {
    const float before = a;
    a = before * cos[i] - b * sin[i];
    b = b * cos[i] + before * sin[i];
  };
  if (pairs)
    for (int i = 0; i < half; i++) turn(x[2 * i], x[2 * i + 1], i);
  else  // a loop of its own, which the compiler can vectorise
    for (int i = 0; i < half; i++) turn(x[i], x[i + half], i);
}

// x * (1 + erf(x / sqrt(2))) / 2, with erf by Abramowitz and Stegun 7.1.26: an error of at most 1.5e-7.
INLINE f16v gelu(f16v x) {
  const f16v z = maximum(x, -x) * 0.70710678f, t = 1.0f / (1.0f + 0.3275911f * z);
  f16v p = splat(1.061405429f);
  p = p * t - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  const f16v erf = 1.0f - p * t * exp2(z * z * -LOG2E);
  return 0.5f * x * (1.0f + (x < 0.0f ? -erf : erf));
}

INLINE f16v positive(f16v x) { return x < 0.0f ? f16v{} : x; }  // NaN stays NaN

INLINE f16v activate(int kind, f16v x) {
  switch (kind) {
    case SILU:
      return silu(x);
    case GELU:
      return gelu(x);
    case GELU_TANH:
      return x / (exp2((x + 0.044715f * x * x * x) * (-2 * 0.7978845608f * LOG2E)) + 1.0f);
    case RELU:
      return positive(x);
    default:
      return positive(x) * positive(x);
  }
}

// cap * tanh(x / cap)
INLINE f16v capped(f16v x, float cap) { return cap * tanh(x * (1.0f / cap)); }

}  // namespace rungpt
