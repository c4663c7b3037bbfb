// Structures that Python fills in: see binding.py, which declares the same.
#pragma once

#include <cstdint>

// Q8 and Q4 hold what GGUF's Q8_0, Q4_0 and Q4_1 do, Q5 its Q5_0 and Q5_1, IQ4 its IQ4_NL; the rest has its names.
enum Format { F32, BF16, Q8, Q4, F16, Q5, IQ4, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_XS };
enum NormKind { NO_NORM = 0, RMS = 1, MEAN = 2 };  // RMSNorm; LayerNorm, which takes off the mean
enum Activation { SILU = 0, GELU = 1, GELU_TANH = 2, RELU = 3, RELU_SQUARED = 4 };

extern "C" {

struct Matrix {
  int32_t format, outputs, inputs;
  const uint8_t* data;
  const float* bias;  // [outputs, filled up to 16], or null
  // Null, or the matrices that hold the outputs, one after the other: layers with the same input in several formats.
  // `format` is then that of the part whose inputs need the most; data is that of the first part, bias is null.
  const Matrix* parts;
};

// kind: see NormKind. size: numbers that are normed together. weight, bias: [size], or null for ones and zeros.
struct Norm {
  int32_t kind, size;
  float epsilon;
  const float *weight, *bias;
};

// Gated MLPs of which a router chooses some for each row: see experts.h. count: of all experts, chosen: of a row's.
struct Experts {
  int32_t count, chosen, width;  // width: inputs of an expert's second product
  int32_t sigmoid;               // scores are sigmoids of the router's logits, else their softmax
  int32_t renormalised;          // the weights of a row's experts add up to `scale`
  int32_t groups, chosen_groups;
  float scale, alpha, limit;  // scale: of all weights; alpha, limit: of gpt-oss's activation, limit 0: another's
  Matrix router;              // in fp32
  const Matrix *up, *down;    // [count]; up: panels of gate and of up in turn
  const float* correction;    // [count]: added to the scores for the choice, not in the weights; or null
  const float* shared_gate;   // [hidden]: the shared MLP is multiplied by the sigmoid of this product; or null
};

struct Layer {
  Matrix qkv, output, up, down;  // up: panels of gate and of up in turn, if the MLP is gated; no data: there is no MLP
  Norm norm, q_norm, k_norm, after_attention, mlp_norm, after_mlp;
  const float *cos, *sin;  // [positions, rotated / 2], or null: this layer does not rotate
  const float* sinks;      // [heads]: scores in each softmax that stand for no position; or null
  const Experts* experts;  // beside the MLP, or null
  int32_t window;          // number of positions that a token sees, itself among them; 0: all
  int32_t kept;            // number of positions in the cache; position p lies at p % kept. Whole blocks
  int64_t before;          // places of a slot's cache before this layer's: positions of all heads of earlier layers
};

// Addition of a LoRA adapter to one linear layer: out += b^T (a x). Null where it adds nothing. That of a layer which
// joins queries, keys and values is `q`, and that of one which joins gate and up is `gate`: it has all their outputs.
struct Lora {
  int32_t rank, outputs, inputs;
  const float *a, *b;  // [rank, inputs], [rank, outputs]
};

struct LoraLayer {
  Lora q, k, v, output, gate, up, down;
};

struct Model {
  int32_t layers, hidden, heads, kv_heads, head_size, intermediate, vocabulary, slots, positions, bf16_cache;
  int32_t gated, activation, parallel;  // parallel: attention and MLP have the same input, else one follows the other
  int32_t rotated, pairs;               // rotated numbers of each head: pairs of neighbours, or of the two halves
  float attention_scale;
  float attention_cap, logit_cap;  // cap * tanh(x / cap) of scores and logits; 0: none
  float embedding_scale, residual_scale, logit_scale;
  float clip;  // largest query, key and value; 0: none
  const Layer* layer;
  Matrix embedding, head;
  Norm embedding_norm, norm;
  const float* learned;    // [positions, hidden]: added to the embedding; or null
  const float* slopes;     // [heads]: ALiBi, for scores after attention_scale; or null
  uint8_t *keys, *values;  // zeroed; see cache_bytes
};
}
