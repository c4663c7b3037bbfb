// Vectors of 16 numbers by the compiler's own vector types: one AVX-512 register, or two of AVX2.
#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

#define INLINE_MEMBER inline __attribute__((always_inline))
#define INLINE static INLINE_MEMBER

namespace rungpt {

constexpr int LANES = 16;  // fp32 numbers of a vector: outputs of a panel, positions of a block of keys
constexpr float LOG2E = 1.4426950408889634f;

typedef float f16v __attribute__((vector_size(64)));
typedef float f16u __attribute__((vector_size(64), aligned(4)));
typedef int32_t i16v __attribute__((vector_size(64)));
typedef uint32_t u16v __attribute__((vector_size(64)));
typedef uint32_t u16u __attribute__((vector_size(64), aligned(4)));

constexpr i16v NUMBERS = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

// Allocator of memory that begins at a cache line: a vector across two lines would cost two stores, and threads that
// write next to each other would compete for the line.
template <class T>
struct LineAllocator {
  using value_type = T;
  LineAllocator() = default;
  template <class U>
  LineAllocator(const LineAllocator<U>&) {}
  T* allocate(size_t n) { return (T*)::operator new(n * sizeof(T), std::align_val_t(64)); }
  void deallocate(T* p, size_t) { ::operator delete(p, std::align_val_t(64)); }
  bool operator==(const LineAllocator&) const { return true; }
};

template <class T>
using Lines = std::vector<T, LineAllocator<T>>;

INLINE f16v load(const float* p) { return *(const f16u*)p; }
INLINE void store(float* p, f16v v) { *(f16u*)p = v; }
INLINE f16v splat(float x) { return x - f16v{}; }

INLINE float bf16_to_float(uint16_t x) {
  uint32_t bits = (uint32_t)x << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}

INLINE uint16_t float_to_bf16(float f) {  // to the nearest, ties to even
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fc0;
  return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

INLINE void floats_to_bf16(f16v v, uint16_t* to) {
#ifdef __AVX512BF16__
  _mm256_storeu_si256((__m256i*)to, (__m256i)_mm512_cvtneps_pbh((__m512)v));
#else
  for (int i = 0; i < LANES; i++) to[i] = float_to_bf16(v[i]);
#endif
}

// to[i] = x[i] * factor for 0 <= i < n
INLINE void scaled_bf16(const float* x, float factor, int n, uint16_t* to) {
  int i = 0;
  for (; i + LANES <= n; i += LANES) floats_to_bf16(load(x + i) * factor, to + i);
  for (; i < n; i++) to[i] = float_to_bf16(x[i] * factor);
}

INLINE f16v small_integers(const uint8_t* p) {  // of 8 bits, with signs
#ifdef __AVX512F__
  return (f16v)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
#else
  f16v v;
  ((__m256*)&v)[0] = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
  ((__m256*)&v)[1] = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)(p + 8))));
  return v;
#endif
}

INLINE uint16_t float_to_half(float f) { return (uint16_t)_cvtss_sh(f, 0); }
INLINE float half_to_float(uint16_t h) { return _cvtsh_ss(h); }

INLINE f16v halves(const uint16_t* p) {
#ifdef __AVX512F__
  return (f16v)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#else
  f16v v;
  ((__m256*)&v)[0] = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
  ((__m256*)&v)[1] = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p + 1));
  return v;
#endif
}

// sum + a.first * b.first + a.second * b.second, in each lane, of pairs of bf16
INLINE f16v dot2(f16v sum, u16v a, uint32_t b) {
#ifdef __AVX512BF16__
  return (f16v)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)_mm512_set1_epi32((int)b));
#else
  sum += (f16v)(a << 16) * bf16_to_float((uint16_t)b);
  return sum + (f16v)(a & 0xffff0000u) * bf16_to_float((uint16_t)(b >> 16));
#endif
}

INLINE void store_bytes(i16v v, int8_t* to) {
#ifdef __AVX512F__
  _mm_storeu_si128((__m128i*)to, _mm512_cvtepi32_epi8((__m512i)v));
#else
  for (int i = 0; i < LANES; i++) to[i] = (int8_t)v[i];
#endif
}

INLINE float highest(f16v v) {
#ifdef __AVX512F__
  return _mm512_reduce_max_ps((__m512)v);
#else
  float m = v[0];
  for (int i = 1; i < LANES; i++) m = v[i] > m ? v[i] : m;
  return m;
#endif
}

INLINE float total(f16v v) {
#ifdef __AVX512F__
  return _mm512_reduce_add_ps((__m512)v);
#else
  float s = 0;
  for (int i = 0; i < LANES; i++) s += v[i];
  return s;
#endif
}

INLINE f16v maximum(f16v a, f16v b) { return a > b ? a : b; }

// 2^x, about one unit in the last place; 0 below 2^-126. A polynomial on [-0.5, 0.5] (the Taylor series of 2^x).
INLINE f16v exp2(f16v x) {
  f16v bounded = x > 126.0f ? splat(126.0f) : x;
  bounded = bounded < -126.0f ? splat(-126.0f) : bounded;
  f16v shifted = bounded + 12582912.0f;  // 1.5 * 2^23: rounds to an integer in the low bits
  f16v fraction = bounded - (shifted - 12582912.0f);
  f16v p = splat(1.5252734e-5f);
  p = p * fraction + 1.5403530e-4f;
  p = p * fraction + 1.3333558e-3f;
  p = p * fraction + 9.6181291e-3f;
  p = p * fraction + 5.5504109e-2f;
  p = p * fraction + 2.4022651e-1f;
  p = p * fraction + 6.9314718e-1f;
  p = p * fraction + 1.0f;
  f16v result = (f16v)((i16v)p + ((i16v)shifted << 23));
  return x < -126.0f ? f16v{} : result;
}

INLINE f16v silu(f16v x) { return x / (exp2(x * -LOG2E) + 1.0f); }

INLINE f16v tanh(f16v x) { return 1.0f - 2.0f / (exp2(x * (2 * LOG2E)) + 1.0f); }

}  // namespace rungpt
