// Packing of GGUF's own quantised blocks, each weight as it is: from the format of ggml (see ggml-common.h and
// dequantize_row_* in ggml-quants.c of llama.cpp) into that of Coding.
#pragma once

#include "quantised.h"

namespace rungpt {

// One block of one output: codes, a scale and a minimum of each 16 or 32 inputs, and their factors in fp16. Without such
// integers the factors are scale and minimum themselves.
struct Block {
  uint8_t codes[BLOCK_GROUPS * GROUP];
  int8_t scales[2 * BLOCK_GROUPS], minima[2 * BLOCK_GROUPS];
  uint16_t scale, minimum;
};

INLINE uint16_t half_at(const uint8_t* from) { return (uint16_t)(from[0] | from[1] << 8); }

// A nibble of each input: the low ones of 32 bytes, then the high ones.
INLINE void read_nibbles(const uint8_t* from, int bytes, uint8_t* codes) {
  for (int i = 0; i < bytes; i++) codes[i] = from[i] & 15, codes[bytes + i] = from[i] >> 4;
}

// `bits` of each of 128 codes, in 32 bytes or more: those of 32 codes are in the lowest bits, the next ones above.
INLINE void add_bits(const uint8_t* from, int bits, int shift, int first, uint8_t* codes) {
  const int mask = (1 << bits) - 1;
  for (int j = 0; j < 4; j++)
    for (int i = 0; i < 32; i++) codes[32 * j + i] |= (from[i] >> (first + bits * j) & mask) << shift;
}

static void read_q4(const uint8_t* from, bool minimum, Block& to) {
  to.scale = half_at(from);
  to.minimum = minimum ? half_at(from + 2) : float_to_half(-8 * half_to_float(to.scale));
  read_nibbles(from + (minimum ? 4 : 2), 16, to.codes);
}

static void read_q5(const uint8_t* from, bool minimum, Block& to) {
  to.scale = half_at(from);
  to.minimum = minimum ? half_at(from + 2) : float_to_half(-16 * half_to_float(to.scale));
  from += minimum ? 4 : 2;
  read_nibbles(from + 4, 16, to.codes);
  for (int i = 0; i < GROUP; i++) to.codes[i] |= (from[i / 8] >> i % 8 & 1) << 4;
}

static void read_q8(const uint8_t* from, Block& to) {
  to.scale = half_at(from);
  for (int i = 0; i < GROUP; i++) to.codes[i] = from[2 + i] ^ 128;
}

static void read_iq4_nl(const uint8_t* from, Block& to) {
  to.scale = half_at(from);
  read_nibbles(from + 2, 16, to.codes);
}

static void read_iq4_xs(const uint8_t* from, Block& to) {
  const int high = half_at(from + 2);
  to.scale = half_at(from);
  for (int g = 0; g < BLOCK_GROUPS; g++) {
    to.scales[g] = ((from[4 + g / 2] >> g % 2 * 4 & 15) | (high >> 2 * g & 3) << 4) - 32;
    read_nibbles(from + 8 + 16 * g, 16, to.codes + GROUP * g);
  }
}

static void read_q2_k(const uint8_t* from, Block& to) {
  std::memset(to.codes, 0, sizeof to.codes);
  for (int i = 0; i < 16; i++) to.scales[i] = from[i] & 15, to.minima[i] = from[i] >> 4;
  for (int half = 0; half < 2; half++) add_bits(from + 16 + 32 * half, 2, 0, 0, to.codes + 128 * half);
  to.scale = half_at(from + 80), to.minimum = half_at(from + 82);
}

static void read_q3_k(const uint8_t* from, Block& to) {
  std::memset(to.codes, 0, sizeof to.codes);
  for (int half = 0; half < 2; half++) {
    add_bits(from + 32 + 32 * half, 2, 0, 0, to.codes + 128 * half);
    add_bits(from, 1, 2, 4 * half, to.codes + 128 * half);
  }
  const uint8_t* scales = from + 96;
  for (int i = 0; i < 16; i++) {
    const int low = i < 8 ? scales[i] & 15 : scales[i - 8] >> 4;
    to.scales[i] = (low | (scales[8 + i % 4] >> i / 4 * 2 & 3) << 4) - 32;
  }
  to.scale = half_at(from + 108);
}

// Q4_K, and Q5_K with its plane of fifth bits.
static void read_q4_k(const uint8_t* from, bool fifth, Block& to) {
  to.scale = half_at(from), to.minimum = half_at(from + 2);
  const uint8_t* s = from + 4;
  for (int i = 0; i < 4; i++) {
    to.scales[i] = s[i] & 63, to.scales[i + 4] = (s[i + 8] & 15) | s[i] >> 6 << 4;
    to.minima[i] = s[i + 4] & 63, to.minima[i + 4] = s[i + 8] >> 4 | s[i + 4] >> 6 << 4;
  }
  for (int j = 0; j < 4; j++) read_nibbles(from + (fifth ? 48 : 16) + 32 * j, 32, to.codes + 64 * j);
  for (int half = 0; fifth && half < 2; half++) add_bits(from + 16, 1, 4, 4 * half, to.codes + 128 * half);
}

static void read_q6_k(const uint8_t* from, Block& to) {
  for (int half = 0; half < 2; half++) {
    read_nibbles(from + 64 * half, 64, to.codes + 128 * half);
    add_bits(from + 128 + 32 * half, 2, 4, 0, to.codes + 128 * half);
  }
  std::memcpy(to.scales, from + 192, 16);
  to.scale = half_at(from + 208);
}

// Types by the numbers of ggml; bytes of a block, and the function that reads one. False if it is another type.
struct BlockType {
  int bytes = 0, format = 0;
  void (*read)(const uint8_t*, Block&) = nullptr;
};

static BlockType block_type(int type) {
  switch (type) {
    case 2:
      return {18, Q4, [](const uint8_t* from, Block& to) { read_q4(from, false, to); }};
    case 3:
      return {20, Q4, [](const uint8_t* from, Block& to) { read_q4(from, true, to); }};
    case 6:
      return {22, Q5, [](const uint8_t* from, Block& to) { read_q5(from, false, to); }};
    case 7:
      return {24, Q5, [](const uint8_t* from, Block& to) { read_q5(from, true, to); }};
    case 8:
      return {34, Q8, read_q8};
    case 10:
      return {84, Q2_K, read_q2_k};
    case 11:
      return {110, Q3_K, read_q3_k};
    case 12:
      return {144, Q4_K, [](const uint8_t* from, Block& to) { read_q4_k(from, false, to); }};
    case 13:
      return {176, Q5_K, [](const uint8_t* from, Block& to) { read_q4_k(from, true, to); }};
    case 14:
      return {210, Q6_K, read_q6_k};
    case 20:
      return {18, IQ4, read_iq4_nl};
    case 23:
      return {136, IQ4_XS, read_iq4_xs};
    default:
      return {};
  }
}

// Writes a plane of the bits of 512 codes from `shift` on: see Coding.
template <int BITS>
INLINE void write_plane(const uint8_t* codes, int shift, uint8_t* to) {
  constexpr int BYTES = 64 * BITS, MASK = (1 << BITS) - 1;
  for (int i = 0; i < BYTES; i++) {
    int byte = 0;
    for (int s = 0; s < 8 / BITS; s++) byte |= (codes[i + s * BYTES] >> shift & MASK) << s * BITS;
    to[i] = (uint8_t)byte;
  }
}

// Writes the blocks of 16 outputs to their place in a panel.
template <int FORMAT>
static void write_blocks(const Block* blocks, uint8_t* to) {
  constexpr Coding C = coding(FORMAT);
  for (int g = 0; g < (C.blocks ? BLOCK_GROUPS : 1); g++) {
    alignas(64) uint32_t words[8][LANES];
    for (int lane = 0; lane < LANES; lane++)
      for (int j = 0; j < 8; j++) std::memcpy(&words[j][lane], blocks[lane].codes + GROUP * g + 4 * j, 4);
    uint8_t* planes = to + g * code_bytes(FORMAT);
    write_plane<C.low>((const uint8_t*)words, 0, planes);
    if constexpr (C.high > 0) write_plane<C.high>((const uint8_t*)words, C.low, planes + 64 * C.low);
  }
  constexpr int INTEGERS = C.blocks ? BLOCK_GROUPS * C.scales : 0;
  uint8_t* integers = to + (C.blocks ? BLOCK_GROUPS : 1) * code_bytes(FORMAT);
  uint16_t* factors = (uint16_t*)(integers + (C.blocks ? integer_bytes(FORMAT) : 0));
  for (int lane = 0; lane < LANES; lane++) {
    const Block& from = blocks[lane];
    for (int i = 0; i < INTEGERS; i++) {
      integers[i * LANES + lane] = (uint8_t)from.scales[i];
      if (C.minima) integers[(INTEGERS + i) * LANES + lane] = (uint8_t)from.minima[i];
    }
    factors[lane] = from.scale;
    if (C.minima) factors[LANES + lane] = from.minimum;
  }
}

// Packs rows [outputs, inputs] of a GGUF tensor of this type into every `step`th panel from `panel` on. False if the
// type is not one that `format` holds, or does not fit the number of inputs.
static bool pack_blocks(int format, int type, const uint8_t* rows, int outputs, int inputs, uint8_t* data, int panel,
                        int step) {
  const BlockType known = block_type(type);
  const int width = coding(format).blocks ? BLOCK_GROUPS * GROUP : GROUP, count = inputs / width;
  if (!known.read || known.format != format || inputs % width) return false;
  with_format(format, [&](auto constant) {
    constexpr int SIZE = coding(constant).blocks ? block_bytes(constant) : group_bytes(constant);
    Block blocks[LANES] = {};
    for (int p = 0; p < panels(outputs); p++) {
      uint8_t* to = data + panel_bytes(constant, inputs) * (panel + (size_t)p * step);
      const int lanes = std::min(LANES, outputs - p * LANES);
      for (int lane = lanes; lane < LANES; lane++) blocks[lane] = Block{};
      for (int b = 0; b < count; b++) {
        for (int lane = 0; lane < lanes; lane++)
          known.read(rows + ((size_t)(p * LANES + lane) * count + b) * known.bytes, blocks[lane]);
        write_blocks<constant>(blocks, to + (size_t)b * SIZE);
      }
    }
  });
  return true;
}

}  // namespace rungpt
