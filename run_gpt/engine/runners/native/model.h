// Structures that Python fills in: see binding.py, which declares the same.
#pragma once

#include <cstdint>

enum Format { F32 = 0, BF16 = 1, Q8 = 2, Q4 = 3, F16 = 4 };

extern "C" {

struct Matrix {
  int32_t format, outputs, inputs;
  const uint8_t* data;
  const float* bias;  // [outputs, filled up to 16], or null
};

struct Layer {
  Matrix qkv, output, gate_up, down;               // gate_up: panels of gate and of up in turn
  const float *norm, *mlp_norm, *q_norm, *k_norm;  // the last two: [head size], or null
};

// Addition of a LoRA adapter to one linear layer: out += b^T (a x). Null where it adds nothing.
struct Lora {
  int32_t rank, outputs, inputs;
  const float *a, *b;  // [rank, inputs], [rank, outputs]
};

struct LoraLayer {
  Lora q, k, v, output, gate, up, down;
};

struct Model {
  int32_t layers, hidden, heads, kv_heads, head_size, intermediate, vocabulary, slots, positions, bf16_cache;
  float epsilon, attention_scale;
  const Layer* layer;
  Matrix embedding, head;
  const float *norm, *cos, *sin;  // cos, sin: [positions, head size / 2]
  uint8_t *keys, *values;         // zeroed; see cache_bytes
};
}
