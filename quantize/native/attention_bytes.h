// Weights as bytes times int8 values, sums in 32 bits.
//
// The weights of a block of tokens are relative to the row's largest among them, which gets 255; sums of
// blocks join in float32. Their own sum is one more column of values, all ones, so that it is that of the
// rounded weights.

#pragma once

#include "attention_steps.h"

namespace attention {
namespace {

constexpr float kLn2 = 0.693147181f;
constexpr int kQuads = kBlock / kGroupBytes;  // of a block's tokens: four weights side by side

// Rounded up from a quarter on: rounding halves of them once more would bias the smaller weights.
constexpr double kMantissaEdge = 0.25;

struct Mantissas {  // of a weight i / kSteps of a power of two below the largest
  alignas(64) uint8_t of[kSteps];
  Mantissas() {
    for (int i = 0; i < kSteps; ++i) of[i] = std::ceil(255 * std::exp2(-i / double(kSteps)) - kMantissaEdge);
  }
};
const Mantissas kMantissas;

// Steps below the largest -> minus the weight, both 16-bit numbers. Minus, since fifteen bits of fraction
// can say minus 1, not 1.
inline __m512i minus_weight(__m512i below) {
  const __m512i low = _mm512_load_si512(kMantissas.of), high = _mm512_load_si512(kMantissas.of + 64);
  const __m512i mantissa = _mm512_maskz_permutex2var_epi8(0x5555555555555555, low, below, high);
  const __m512i power = _mm512_srav_epi16(_mm512_set1_epi16(-32768), _mm512_srli_epi16(below, 7));
  return _mm512_mulhrs_epi16(mantissa, power);
}

// The largest of both tokens in a lane, in both its halves.
inline __m512i both(__m512i top) { return _mm512_max_epi16(top, _mm512_rol_epi32(top, 16)); }

// What the weights relative to a block's largest step stand for.
inline Vec power(__m512i top) {
  const Vec steps = _mm512_cvtepi32_ps(_mm512_srai_epi32(top, 16));
  return exp(_mm512_max_ps(_mm512_mul_ps(steps, splat(kLn2 / kSteps)), splat(-kExpLimit)));
}

// weights: [count / 4, 2 vectors], four tokens in each lane.
inline void weigh(const Head& head, const Queries& queries, int64_t first, int64_t count, __m512i* weights,
                  Vec (&factor)[2]) {
  const __m512i bytes = _mm512_set_epi8(
      126, 124, 62, 60, 122, 120, 58, 56, 118, 116, 54, 52, 114, 112, 50, 48, 110, 108, 46, 44, 106, 104, 42,
      40, 102, 100, 38, 36, 98, 96, 34, 32, 94, 92, 30, 28, 90, 88, 26, 24, 86, 84, 22, 20, 82, 80, 18, 16,
      78, 76, 14, 12, 74, 72, 10, 8, 70, 68, 6, 4, 66, 64, 2, 0);
  alignas(64) __m512i steps[kBlock];
  __m512i top[2] = {_mm512_set1_epi16(-32768), _mm512_set1_epi16(-32768)};
  for (int64_t t = 0; t < count; t += kTile) {
    find_steps<Int8>(head, queries, first + t, steps + t);
#pragma GCC unroll 8
    for (int i = 0; i < kTile; ++i) top[i % 2] = _mm512_max_epi16(top[i % 2], steps[t + i]);
  }
  for (int half = 0; half < 2; ++half) {
    top[half] = both(top[half]);
    factor[half] = power(top[half]);
#pragma GCC unroll 4
    for (int64_t t = 0; t < count; t += kGroupBytes) {
      const __m512i low = minus_weight(_mm512_sub_epi16(top[half], steps[t + half]));
      const __m512i high = minus_weight(_mm512_sub_epi16(top[half], steps[t + 2 + half]));
      const __m512i four = _mm512_permutex2var_epi8(low, bytes, high);
      weights[t / 2 + half] = _mm512_sub_epi8(_mm512_setzero_si512(), four);
    }
  }
}

// Of some columns: their int8 values of a block, how those stand for numbers, what is summed up.
struct Columns {
  const uint8_t* values;  // [quads, columns, 4]
  const float* scale;
  float* sums;  // [columns, kRows]
};

// sums[kCount, 2 vectors] += factor * scale * (weights times values).
template <int kCount>
void add_bytes(const __m512i* weights, const Vec (&factor)[2], int64_t quads, int64_t columns, Columns to) {
  Ints sum[kCount][2];
#pragma GCC unroll 16
  for (int c = 0; c < kCount; ++c) sum[c][0] = sum[c][1] = Ints{};
  do {  // not `for`: the compiler would keep a copy of all sums for a block of no tokens
    const __m512i low = weights[0], high = weights[1];
#pragma GCC unroll 16
    for (int c = 0; c < kCount; ++c) {
      int32_t four;
      std::memcpy(&four, to.values + kGroupBytes * c, kGroupBytes);
      const __m512i value = _mm512_set1_epi32(four);
      sum[c][0] = (Ints)_mm512_dpbusd_epi32((__m512i)sum[c][0], low, value);
      sum[c][1] = (Ints)_mm512_dpbusd_epi32((__m512i)sum[c][1], high, value);
    }
    weights += 2;
    to.values += kGroupBytes * columns;
  } while (--quads);
#pragma GCC unroll 16
  for (int c = 0; c < kCount; ++c) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      float* const into = to.sums + c * kRows + 16 * half;
      const Vec part = _mm512_mul_ps(_mm512_cvtepi32_ps((__m512i)sum[c][half]), splat(to.scale[c]));
      _mm512_store_ps(into, _mm512_fmadd_ps(part, factor[half], _mm512_load_ps(into)));
    }
  }
}

constexpr decltype(&add_bytes<1>) kAddBytes[kColumns + 1] = {
    nullptr,       add_bytes<1>,  add_bytes<2>,  add_bytes<3>,  add_bytes<4>,
    add_bytes<5>,  add_bytes<6>,  add_bytes<7>,  add_bytes<8>,  add_bytes<9>,
    add_bytes<10>, add_bytes<11>, add_bytes<12>, add_bytes<13>, add_bytes<14>};

inline void sum_up(Int8, const Head& head, const Queries& queries, float* sums) {
  alignas(64) __m512i weights[2 * kQuads];
  for (int64_t t = 0; t < head.tokens; t += kBlock) {
    const int64_t count = std::min<int64_t>(kBlock, head.tokens - t);
    Vec factor[2];
    weigh(head, queries, t, count, weights, factor);
    in_passes(head.columns, [&](int64_t c, int64_t width) {
      const float* scale = head.value_scale + t / kBlock * head.columns + c;
      const uint8_t* values = head.values + t * head.columns + c * kGroupBytes;
      kAddBytes[width](weights, factor, count / kGroupBytes, head.columns, {values, scale, sums + c * kRows});
    });
  }
}

}  // namespace
}  // namespace attention
