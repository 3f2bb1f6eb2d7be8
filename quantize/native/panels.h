// Weights in panels, and the step that multiplies bytes with two of them: what layers of bytes have in common.
//
// A panel is 32 outputs; four inputs of an output lie side by side, as the instruction reads them.

#pragma once

#include <cstring>

#include "vector.h"

namespace {

constexpr int kRows = 6;                // of a tile: 24 sums, and 8 registers for what is multiplied
constexpr int64_t kPanel = 2 * kLanes;  // outputs
constexpr int64_t kGroup = 4;           // inputs that one instruction multiplies
constexpr int64_t kSumsPerValue = 64;  // products that cost a thread as much as a value elsewhere

// What turns one vector of sums into numbers.
struct Scaling {
  __m512i start;
  Vec scale, bias;

  // call: of a layer, with its sums, scale, bias, zero and x_scale.
  template <class Call>
  Scaling(const Call& call, int64_t column) {
    const __m512i sums = _mm512_loadu_si512(call.sums + column);
    start = _mm512_mullo_epi32(sums, _mm512_set1_epi32(static_cast<int>(-call.zero)));
    scale = _mm512_mul_ps(load(call.scale + column, kAll), splat(call.x_scale));
    bias = load(call.bias + column, kAll);
  }
  Vec number(__m512i sum) const { return _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale, bias); }
};

template <int kCount>
inline void step(const uint8_t* const (&x)[kCount], int64_t at, size_t bytes, const int8_t* one,
                 const int8_t* two, __m512i (&sum)[kCount][4]) {
  const __m512i weights[4] = {_mm512_loadu_si512(one), _mm512_loadu_si512(one + 64), _mm512_loadu_si512(two),
                              _mm512_loadu_si512(two + 64)};
#pragma GCC unroll 6
  for (int r = 0; r < kCount; ++r) {
    int32_t group = 0;
    std::memcpy(&group, x[r] + at, bytes);
    const __m512i inputs = _mm512_set1_epi32(group);
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) sum[r][v] = _mm512_dpbusd_epi32(sum[r][v], inputs, weights[v]);
  }
}

}  // namespace
