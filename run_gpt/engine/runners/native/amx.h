// Products of tiles of 16 rows and 16 outputs, by the AMX unit of some CPUs.
//
// A panel of weights lies in memory as the unit needs its second factor: rows of 64 bytes, with 2 inputs in bf16 or 4
// in 8 bits for each of 16 outputs. A row's sums do not depend on the rows beside it: each has a chain of its own, in
// the order of its inputs.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "simd.h"

#if defined(__linux__) && defined(__AMX_BF16__) && defined(__AMX_INT8__)
#define RUNGPT_AMX
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace rungpt {

constexpr int TILE_ROWS = 16;
constexpr int TILED_ROWS = 4 * TILE_ROWS;  // the most rows that share one pass over a panel
constexpr int TILE_INPUTS = 32;            // inputs of a row in one tile
constexpr int TILE_BYTES = 1024;           // bytes of a tile of weights or inputs in bf16, or of 16 x 16 sums

#ifdef RUNGPT_AMX

// True when this process may use tiles. Linux must be asked, since threads that use them have more state to save. It
// refuses if the stack of some thread's signal handlers is too small for that.
static bool has_tiles() {
  constexpr int ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18;
  static const bool allowed = syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
  return allowed;
}

static thread_local int tiles_shaped_for = 0;

// Tiles 0 to 3 hold the sums, 4 weights, 5 the inputs of 16 rows and 6 those of the last rows, which may be fewer.
// `bytes`: size of the inputs of a row.
static void shape_tiles(int rows, int bytes) {
  struct alignas(64) {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16};
  } shape;
  const int wanted = rows + (bytes << 8);
  if (tiles_shaped_for == wanted) return;
  shape.bytes[5] = shape.bytes[6] = (uint16_t)bytes;
  shape.rows[4] = (uint8_t)(bytes / 4);
  shape.rows[(rows - 1) / TILE_ROWS] = shape.rows[6] = (rows - 1) % TILE_ROWS + 1;
  _tile_loadconfig(&shape);
  tiles_shaped_for = wanted;
}

// Ends a thread's use of tiles, so that they need not be saved while it sleeps.
static void release_tiles() {
  if (tiles_shaped_for) _tile_release();
  tiles_shaped_for = 0;
}

// The products of one panel with up to TILED_ROWS rows. The numbers of tiles must be constants.
template <int TILES, bool BYTES>
struct Tiles {
  static void clear() {
    _tile_zero(0);
    if constexpr (TILES > 1) _tile_zero(1);
    if constexpr (TILES > 2) _tile_zero(2);
    if constexpr (TILES > 3) _tile_zero(3);
  }

  // Adds the products of TILE_INPUTS inputs. `next`: bytes from 16 rows to the next, `stride`: from a row to the next.
  INLINE_MEMBER static void add(const uint8_t* w, const uint8_t* x, size_t next, size_t stride) {
    _tile_loadd(4, w, 64);
    if constexpr (TILES > 1) {
      _tile_loadd(5, x, stride);
      if constexpr (BYTES)
        _tile_dpbsud(0, 5, 4);
      else
        _tile_dpbf16ps(0, 5, 4);
    }
    if constexpr (TILES > 2) {
      _tile_loadd(5, x + next, stride);
      if constexpr (BYTES)
        _tile_dpbsud(1, 5, 4);
      else
        _tile_dpbf16ps(1, 5, 4);
    }
    if constexpr (TILES > 3) {
      _tile_loadd(5, x + 2 * next, stride);
      if constexpr (BYTES)
        _tile_dpbsud(2, 5, 4);
      else
        _tile_dpbf16ps(2, 5, 4);
    }
    _tile_loadd(6, x + (TILES - 1) * next, stride);
    if constexpr (BYTES) {
      if constexpr (TILES == 1) _tile_dpbsud(0, 6, 4);
      if constexpr (TILES == 2) _tile_dpbsud(1, 6, 4);
      if constexpr (TILES == 3) _tile_dpbsud(2, 6, 4);
      if constexpr (TILES == 4) _tile_dpbsud(3, 6, 4);
    } else {
      if constexpr (TILES == 1) _tile_dpbf16ps(0, 6, 4);
      if constexpr (TILES == 2) _tile_dpbf16ps(1, 6, 4);
      if constexpr (TILES == 3) _tile_dpbf16ps(2, 6, 4);
      if constexpr (TILES == 4) _tile_dpbf16ps(3, 6, 4);
    }
  }

  // sums: [rows, 16] of 4 bytes
  static void store(void* sums) {
    uint8_t* to = (uint8_t*)sums;
    _tile_stored(0, to, 64);
    if constexpr (TILES > 1) _tile_stored(1, to + TILE_BYTES, 64);
    if constexpr (TILES > 2) _tile_stored(2, to + 2 * TILE_BYTES, 64);
    if constexpr (TILES > 3) _tile_stored(3, to + 3 * TILE_BYTES, 64);
  }
};

// Calls f with the Tiles for `rows` rows, each of which has `inputs` inputs in a tile.
template <bool BYTES, class F>
static void with_tiles(int rows, int inputs, F f) {
  shape_tiles(rows, BYTES ? inputs : 2 * inputs);
  switch ((rows - 1) / TILE_ROWS) {
    case 0:
      return f(Tiles<1, BYTES>());
    case 1:
      return f(Tiles<2, BYTES>());
    case 2:
      return f(Tiles<3, BYTES>());
    default:
      return f(Tiles<4, BYTES>());
  }
}

#else

static bool has_tiles() { return false; }
static void release_tiles() {}

#endif

}  // namespace rungpt
